// Live calls with the fake backend: answers start when they come, the user interrupts them, and
// nothing of an old turn is heard afterwards.
#include <gst/app/gstappsrc.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {
namespace {

using std::chrono::milliseconds;

// Words of the same length: 6 bytes, which the fake says in 12 rows of 21.3 ms.
constexpr const char* kAnswer = "alpha bravo gamma delta hotel india romeo tango";
constexpr GstClockTime kRow = 512 * GST_SECOND / 24000;

// The four elements behind a live source, in front of a sink that renders in time.
class Call {
 public:
  explicit Call(const std::string& llm = "", bool live = true)
      : voice_(std::string(8 * sizeof(float), '\0')),
        run_("appsrc name=source format=time is-live=" + std::string(live ? "true" : "false") +
             " do-timestamp=" + (live ? "true" : "false") +
             " caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"
             " ! minicpmoaudioenc ! queue ! minicpmollm name=llm " +
             llm + " ! queue ! minicpmotts name=tts speaker=" + voice_.path() +
             " ! queue ! minicpmovocoder name=vocoder ! queue ! fakesink name=sink sync=true "
             "async=false"),
        source_(run_.element("source")),
        sink_(run_.element("sink")),
        llm_(run_.element("llm")) {
    words_.emplace(llm_.get(), "src");
    speech_.emplace(sink_.get(), "sink");
    gst_element_set_state(run_.pipeline(), GST_STATE_PLAYING);
  }
  ~Call() { run_.stop(); }

  void send(GstEvent* event) { gst_element_send_event(source_.get(), event); }
  void speak(guint64 turn, size_t samples = 16000) {
    send(gst_minicpmo_event_new_turn_start(turn));
    if (samples > 0) push(std::vector<float>(samples, 0.25f));
  }
  void push(const std::vector<float>& pcm) {
    gst_app_src_push_buffer(GST_APP_SRC(source_.get()),
                            gst_buffer_new_memdup(pcm.data(), pcm.size() * sizeof(float)));
  }
  void ask(guint64 turn, size_t samples = 16000) {
    speak(turn, samples);
    send(gst_minicpmo_event_new_turn_end(turn));
  }
  // The user may have finished.
  void ask_speculatively(guint64 turn, size_t samples = 16000) {
    speak(turn, samples);
    send(gst_minicpmo_event_new_turn_end_full(turn, GST_CLOCK_TIME_NONE, TRUE));
  }
  void barge_in(guint64 turn) { send(gst_minicpmo_event_new_barge_in(turn)); }
  void end() { gst_app_src_end_of_stream(GST_APP_SRC(source_.get())); }

  GstClockTime now() const { return gst_element_get_current_running_time(run_.pipeline()); }
  // Until the answer has sounded for so long.
  void listen(GstClockTime time) {
    ASSERT_TRUE(speech_->wait_for("buffer"));
    const GstClockTime until = speech_->all("buffer").front().pts + time;
    while (now() < until) std::this_thread::sleep_for(milliseconds(1));
  }
  // Where the flush of the sink stands among what came there; -1 if there was none.
  std::ptrdiff_t flush_at() const {
    const auto names = speech_->names();
    const auto found = std::find(names.begin(), names.end(), "flush-stop");
    return found == names.end() ? -1 : found - names.begin();
  }
  size_t old_buffers_after_flush(guint64 turn) const {
    const auto all = speech_->all();
    return static_cast<size_t>(std::count_if(
        all.begin() + std::max<std::ptrdiff_t>(flush_at(), 0), all.end(),
        [&](const Passed& passed) { return passed.name == "buffer" && passed.turn_id == turn; }));
  }
  guint64 stat(const char* name) {
    GstStructure* stats = nullptr;
    g_object_get(llm_.get(), "stats", &stats, nullptr);
    const StructurePtr owned(stats);
    guint64 value = G_MAXUINT64;
    EXPECT_TRUE(gst_structure_get_uint64(stats, name, &value)) << name;
    return value;
  }

  StreamLog& words() { return *words_; }
  StreamLog& speech() { return *speech_; }
  PipelineRun& run() { return run_; }
  GstElement* llm() const { return llm_.get(); }

 private:
  TemporaryFile voice_;
  PipelineRun run_;
  ElementPtr source_, sink_, llm_;
  std::optional<StreamLog> words_, speech_;
};

class BargeIn : public ::testing::Test {
 protected:
  BargeIn() {
    backend_.settings().answer = kAnswer;
    backend_.settings().burst_bytes = 6;
  }
  int64_t heard() { return backend_.counters().heard_bytes; }
  FakeBackend backend_;
};

TEST_F(BargeIn, SilencesAnAnswerAndRemembersWhatWasHeard) {
  Call call;
  call.ask(1);
  call.listen(500 * GST_MSECOND);
  const GstClockTime first = call.speech().all("buffer").front().pts;
  const GstClockTime before = call.now();
  call.barge_in(2);
  const GstClockTime after = call.now();
  ASSERT_TRUE(call.speech().wait_for("flush-stop"));
  call.ask(2);
  ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  EXPECT_EQ(call.old_buffers_after_flush(1), 0u);
  EXPECT_GT(call.old_buffers_after_flush(2), 0u);
  // Rendered between the two times, in words, at most one wrong.
  const double word = 12.0 * static_cast<double>(kRow);
  EXPECT_GE(heard(), (static_cast<double>(before - first) / word - 1) * 6 - 1);
  EXPECT_LE(heard(), (static_cast<double>(after - first) / word + 2) * 6);
  EXPECT_EQ(call.stat("cut-back"), 1u);
  EXPECT_EQ(call.stat("interrupted"), 0u);  // the last word had been thought long before
}

TEST_F(BargeIn, StopsTheModelInMidAnswer) {
  backend_.settings().step_delay = milliseconds(30);
  backend_.settings().answer = std::string(6000, 'a');
  Call call;
  call.ask(1);
  ASSERT_TRUE(call.speech().wait_for("buffer"));
  call.barge_in(2);
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  EXPECT_EQ(call.words().all(GST_MINICPMO_EVENT_ANSWER_END)[0].finish, "interrupted");
  EXPECT_EQ(call.stat("interrupted"), 1u);
  EXPECT_EQ(backend_.counters().interrupts, 1);
  EXPECT_GE(heard(), 0);
  // The new segment comes first, or nothing could follow.
  const auto names = call.words().names();
  const auto flush = std::find(names.begin(), names.end(), "flush-stop");
  ASSERT_NE(flush, names.end());
  const auto segment = std::find(flush, names.end(), "segment");
  const auto end = std::find(flush, names.end(), GST_MINICPMO_EVENT_ANSWER_END);
  EXPECT_LT(segment, end);
  backend_.settings().step_delay = milliseconds(0);
  backend_.settings().answer = "Yes.";
  call.speech().clear();
  call.ask(2);
  ASSERT_TRUE(call.speech().wait_for("buffer"));
  EXPECT_EQ(call.speech().all("buffer")[0].turn_id, 2u);
}

TEST_F(BargeIn, WhatHasBeenHeardToTheEndIsNotFlushed) {
  backend_.settings().answer = "Yes.";
  Call call;
  call.ask(1);
  ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  const Passed last = call.speech().all("buffer").back();
  while (call.now() < last.pts + last.duration + 100 * GST_MSECOND)  // more than the latency
    std::this_thread::sleep_for(milliseconds(1));
  call.barge_in(2);
  call.ask(2);
  ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END, 2));
  EXPECT_EQ(call.flush_at(), -1);
  EXPECT_EQ(call.stat("cut-back"), 0u);
}

// The user pauses, and goes on before the answer has begun: it is one question.
TEST_F(BargeIn, ATurnThatGoesOnIsNotAnsweredInTwoParts) {
  backend_.settings().step_delay = milliseconds(50);
  backend_.settings().answer.clear();
  Call call;
  call.speak(1);
  call.barge_in(2);
  call.send(gst_minicpmo_event_new_turn_end(1));
  call.ask(2);
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END, 2));
  const auto ends = call.words().all(GST_MINICPMO_EVENT_ANSWER_END);
  EXPECT_EQ(ends[0].finish, "interrupted");
  EXPECT_EQ(ends[1].finish, "stop");
  EXPECT_EQ(call.words().bytes(), "You said 50 rows.");
}

TEST_F(BargeIn, ACoughDoesNotLeaveAQuestionUnanswered) {
  backend_.settings().step_delay = milliseconds(50);
  backend_.settings().answer.clear();
  Call call;
  call.speak(1);
  call.barge_in(2);
  call.send(gst_minicpmo_event_new_turn_end(1));
  call.speak(2, 0);
  call.send(gst_minicpmo_event_new_turn_cancel(2));
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END, 2));
  EXPECT_EQ(call.words().bytes(), "You said 25 rows.");
  EXPECT_EQ(call.words().all("buffer").back().turn_id, 1u);
}

TEST_F(BargeIn, AfterACoughTheAnswerGoesOn) {
  Call call;
  call.ask(1);
  call.listen(600 * GST_MSECOND);
  call.barge_in(2);
  ASSERT_TRUE(call.speech().wait_for("flush-stop"));
  while (backend_.counters().interrupts == 0) std::this_thread::sleep_for(milliseconds(1));
  const int64_t cut = heard();
  call.words().clear();
  call.speak(2, 0);
  call.send(gst_minicpmo_event_new_turn_cancel(2));
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  // From the word on that it stopped in.
  const std::string answer = kAnswer, rest = call.words().bytes();
  ASSERT_LE(rest.size(), answer.size());
  const size_t from = answer.size() - rest.size();
  EXPECT_EQ(rest, answer.substr(from));
  EXPECT_LE(from, static_cast<size_t>(cut));
  EXPECT_GE(from + 6, static_cast<size_t>(cut));
  EXPECT_EQ(call.words().all("buffer")[0].turn_id, 1u);
  EXPECT_EQ(call.stat("resumed"), 1u);
  EXPECT_EQ(call.run().finishes.size(), 0u);
  call.end();
  ASSERT_TRUE(call.run().run()) << call.run().first_error();
  EXPECT_EQ(call.run().answers.back(), kAnswer);
}

TEST_F(BargeIn, ACoughDoesNotBringBackWhatAnApplicationStopped) {
  Call call;
  call.ask(1);
  call.listen(300 * GST_MSECOND);
  g_signal_emit_by_name(call.llm(), "interrupt");
  ASSERT_TRUE(call.speech().wait_for("flush-stop"));
  call.words().clear();
  call.barge_in(2);
  call.speak(2, 0);
  call.send(gst_minicpmo_event_new_turn_cancel(2));
  call.ask(3);
  ASSERT_TRUE(call.words().wait_for("buffer"));
  EXPECT_EQ(call.words().all("buffer")[0].turn_id, 3u);
  EXPECT_EQ(call.stat("resumed"), 0u);
}

TEST_F(BargeIn, WithoutResumeACoughEndsTheAnswer) {
  Call call("resume-false-interruption=false");
  call.ask(1);
  call.listen(300 * GST_MSECOND);
  call.barge_in(2);
  call.speak(2, 0);
  call.send(gst_minicpmo_event_new_turn_cancel(2));
  call.ask(3);
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END, 1));
  ASSERT_TRUE(call.speech().wait_for("flush-stop"));
  while (backend_.log().count("lm.start_answer") < 2) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(call.stat("resumed"), 0u);
  EXPECT_EQ(backend_.log().count("lm.cancel_turn resume"), 0);
}

TEST_F(BargeIn, TheTurnsOfAFileAreAllAnswered) {
  Call call("", false);
  call.ask(1);
  call.barge_in(2);
  call.ask(2);
  call.end();
  ASSERT_TRUE(call.run().run()) << call.run().first_error();
  EXPECT_EQ(call.run().answers, (std::vector<std::string>{kAnswer, kAnswer}));
  EXPECT_EQ(call.run().finishes, (std::vector<std::string>{"stop", "stop"}));
  EXPECT_EQ(call.flush_at(), -1);
}

TEST_F(BargeIn, AnApplicationSilencesToo) {
  for (const char* how : {"interrupt", "reset-session"}) {
    Call call;
    call.ask(1);
    call.listen(100 * GST_MSECOND);
    g_signal_emit_by_name(call.llm(), how);
    ASSERT_TRUE(call.speech().wait_for("flush-stop")) << how;
    call.ask(2);
    ASSERT_TRUE(call.speech().wait_for("segment", 2));
    EXPECT_EQ(call.old_buffers_after_flush(1), 0u);
  }
}

// Each answer starts when it comes, after the one before, and has no hole.
TEST_F(BargeIn, LiveAnswersAreContinuous) {
  Call call;
  for (guint64 turn = 1; turn <= 2; ++turn) {
    const GstClockTime asked = call.now();
    call.speech().clear();
    call.ask(turn);
    ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
    const auto buffers = call.speech().all("buffer");
    ASSERT_GT(buffers.size(), 1u);
    EXPECT_GT(buffers[0].pts, asked);
    for (size_t i = 1; i < buffers.size(); ++i)
      EXPECT_EQ(buffers[i].pts, buffers[i - 1].pts + buffers[i - 1].duration);
  }
}

// ---- Speculative answers

TEST_F(BargeIn, ASpeculativeAnswerIsKeptUntilItIsConfirmed) {
  Call call;
  call.ask_speculatively(1);
  ASSERT_TRUE(call.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  std::this_thread::sleep_for(milliseconds(100));  // more than it would take to sound
  EXPECT_EQ(call.speech().count("buffer"), 0u);
  const GstClockTime confirmed = call.now();
  call.send(gst_minicpmo_event_new_turn_confirm(1));
  ASSERT_TRUE(call.speech().wait_for("buffer"));
  EXPECT_GE(call.speech().all("buffer")[0].pts, confirmed);
  ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  EXPECT_EQ(call.stat("discarded"), 0u);
}

TEST_F(BargeIn, AConfirmationMayComeBeforeTheAnswer) {
  backend_.settings().step_delay = milliseconds(30);
  Call call;
  call.ask_speculatively(1);
  call.send(gst_minicpmo_event_new_turn_confirm(1));
  ASSERT_TRUE(call.speech().wait_for("buffer"));
}

// Before the answer, in the middle of it, and after its last word.
TEST_F(BargeIn, WhenTheUserGoesOnTheAnswerIsDiscarded) {
  for (const int delay : {0, 20, 200}) {
    SCOPED_TRACE(delay);
    backend_.settings().answer.clear();
    backend_.settings().step_delay = milliseconds(delay == 0 ? 50 : 10);
    Call call;
    call.ask_speculatively(1);
    std::this_thread::sleep_for(milliseconds(delay));
    call.send(gst_minicpmo_event_new_turn_resume(1));
    const std::vector<float> more(16000, 0.25f);
    call.push(more);
    call.send(gst_minicpmo_event_new_turn_end(1));
    ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
    if (call.speech().all(GST_MINICPMO_EVENT_ANSWER_END)[0].finish == "discarded") {
      ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END, 2));
    }
    const auto words = call.words().all("buffer");
    std::string said;
    for (const Passed& word : words) said += word.bytes;
    EXPECT_TRUE(said.ends_with("You said 50 rows.")) << said;
    // Nothing of the first one has sounded: 2 rows of 512 samples for each byte.
    EXPECT_EQ(call.speech().bytes().size(), 17u * 2 * 512 * sizeof(float));
    EXPECT_EQ(backend_.counters().interrupts, 0);
  }
}

// ---- Time

TEST_F(BargeIn, SilenceIsToldAndDoesNotOverlapSound) {
  backend_.settings().answer = "Yes, of course I can.";
  Call call;
  call.ask(1);
  ASSERT_TRUE(call.speech().wait_for("gap", 2));
  GstClockTime end = 0;
  for (const Passed& passed : call.speech().all()) {
    if (passed.name != "buffer" && passed.name != "gap") continue;
    EXPECT_GE(passed.pts, end) << passed.name;
    end = passed.pts + passed.duration;
  }
  EXPECT_LE(call.speech().all("gap").back().pts, call.now());
}

// A model that is too slow: what comes late is put off, not thrown away.
TEST_F(BargeIn, WhatComesTooLateIsPutOff) {
  backend_.settings().step_delay = milliseconds(700);
  backend_.settings().answer = std::string(40, 'a');
  backend_.settings().burst_bytes = 13;
  Call call;
  call.ask(1);
  ASSERT_TRUE(call.speech().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  const auto buffers = call.speech().all("buffer");
  size_t samples = 0, holes = 0;
  for (size_t i = 0; i < buffers.size(); ++i) {
    samples += buffers[i].bytes.size() / sizeof(float);
    if (i == 0) continue;
    const GstClockTime end = buffers[i - 1].pts + buffers[i - 1].duration;
    EXPECT_GE(buffers[i].pts, end);
    if (buffers[i].pts > end) {
      ++holes;
      EXPECT_TRUE(buffers[i].discont);
    }
  }
  EXPECT_EQ(samples, 40u * 2 * 512);
  EXPECT_GT(holes, 0u);
}

TEST_F(BargeIn, AtRandomMomentsNothingOldFollowsAndNothingHangs) {
  backend_.settings().step_delay = milliseconds(2);
  Call call;
  std::mt19937 random(5);
  for (guint64 turn = 1; turn <= 150; ++turn) {
    call.barge_in(turn);
    call.speech().clear();
    call.ask(turn, random() % 20000);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 40000));
    for (const Passed& passed : call.speech().all("buffer"))
      ASSERT_TRUE(passed.turn_id >= turn) << passed.turn_id << " after " << turn;
  }
  call.barge_in(151);
  call.ask(151);
  const auto answered = [&] {
    const auto ends = call.words().all(GST_MINICPMO_EVENT_ANSWER_END);
    return !ends.empty() && ends.back().turn_id == 151;
  };
  while (!answered()) std::this_thread::sleep_for(milliseconds(1));  // or the test's time is up
  EXPECT_EQ(call.words().all(GST_MINICPMO_EVENT_ANSWER_END).back().finish, "stop");
  EXPECT_TRUE(call.run().errors.empty());
}

}  // namespace
}  // namespace minicpmo::testing
