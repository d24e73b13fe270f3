// A call of ten turns over RTP/Opus, on a clock that only the test moves: every answer is right and
// without a gap, and a second call is the same to the last packet.
#include <gst/app/gstappsrc.h>
#include <gst/check/gsttestclock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>

#include "common/gstminicpmoturn.h"
#include "robustness/robustness.h"
#include "support/sample_file.h"

namespace minicpmo::testing {
namespace {

const bool kHeld = (keep_model_loaded(), true);

constexpr size_t kBuffer = 320;  // 20 ms
constexpr const char* kOverRtp =
    " ! audioconvert ! audioresample ! opusenc ! rtpopuspay name=%s ssrc=1 seqnum-offset=1 "
    "timestamp-offset=0";

std::string over_rtp(const char* name) {
  const GCharPtr line(g_strdup_printf(kOverRtp, name));
  return line.get();
}

struct Unref {
  void operator()(GstClock* clock) const { gst_object_unref(clock); }
};

struct Packet {
  GstClockTime pts;
  std::string bytes;
  bool operator==(const Packet&) const = default;
};

// The small checkpoint was trained on few turns: a new session every six or so.
constexpr const char* kShortMemory = "context-length=400";

class Call {
 public:
  explicit Call(const std::string& llm = kShortMemory)
      : run_("appsrc name=source format=time is-live=true caps=" + std::string(kAudioCaps) +
             over_rtp("in") + " ! rtpopusdepay ! opusdec ! audioconvert ! audioresample ! " +
             std::string(kAudioCaps) + " ! minicpmoturn ! " + kBigQueue + " ! " +
             element("minicpmoaudioenc") + " ! " + kBigQueue + " ! " + element("minicpmollm") +
             " name=llm " + llm + " ! " + kBigQueue + " ! " + element("minicpmotts") + " ! " +
             kBigQueue + " ! " + element("minicpmovocoder") + " name=vocoder ! " + kBigQueue +
             over_rtp("out") + " ! fakesink name=sink sync=true async=false"),
        source_(run_.element("source")),
        clock_(gst_test_clock_new()) {
    gst_pipeline_use_clock(GST_PIPELINE(run_.pipeline()), clock_.get());
    const ElementPtr sink = run_.element("sink"), vocoder = run_.element("vocoder");
    wire_.emplace(sink.get(), "sink");
    speech_.emplace(vocoder.get(), "src");
    gst_element_set_state(run_.pipeline(), GST_STATE_PLAYING);
  }
  ~Call() { run_.stop(); }

  void say(std::vector<float> samples) {
    samples.resize(samples.size() + 14400);  // 0.9 s of silence: the turn ends
    samples.resize(samples.size() / kBuffer * kBuffer);
    for (size_t at = 0; at < samples.size(); at += kBuffer) {
      BufferPtr buffer(gst_buffer_new_memdup(&samples[at], kBuffer * sizeof(float)));
      GST_BUFFER_PTS(buffer.get()) = time_;
      GST_BUFFER_DURATION(buffer.get()) = 20 * GST_MSECOND;
      time_ += 20 * GST_MSECOND;
      move_clock(time_);
      gst_app_src_push_buffer(GST_APP_SRC(source_.get()), buffer.release());
    }
  }

  void say_file(const char* name) { say(wav_samples(std::string(SAMPLES "/") + name)); }

  // The clock stands until the answer is made, and then goes on to its end.
  void listen(size_t turn) {
    ASSERT_TRUE(speech_->wait_for(GST_MINICPMO_EVENT_ANSWER_END, turn));
    const Passed last = speech_->all("buffer").back();
    // To the last packet. The encoder keeps what fills none until there is sound again.
    for (int idle = 0; idle < 200; ++idle) {
      if (render_next()) idle = 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    time_ = std::max(time_, (last.pts + last.duration) / GST_MSECOND / 20 * 20 * GST_MSECOND +
                                200 * GST_MSECOND);
    move_clock(time_);
  }

  // Waits until the answers so far are as wanted.
  bool hears(const std::function<bool(const std::vector<std::string>&)>& wanted) {
    for (int wait = 0; wait < 200 && !wanted(run_.answers); ++wait)
      run_.listen(std::chrono::milliseconds(50));
    return wanted(run_.answers);
  }

  std::vector<Packet> packets() const {
    std::vector<Packet> packets;
    for (const Passed& passed : wire_->all("buffer")) packets.push_back({passed.pts, passed.bytes});
    return packets;
  }
  std::vector<Passed> sound() const { return speech_->all("buffer"); }
  PipelineRun& run() { return run_; }

 private:
  static constexpr const char* kBigQueue =
      "queue max-size-buffers=0 max-size-bytes=0 max-size-time=0";

  bool render_next() {
    GstClockID id = nullptr;
    if (!gst_test_clock_peek_next_pending_id(GST_TEST_CLOCK(clock_.get()), &id)) return false;
    move_clock(gst_clock_id_get_time(id));
    gst_clock_id_unref(id);
    return true;
  }

  void move_clock(GstClockTime time) {
    auto* clock = GST_TEST_CLOCK(clock_.get());
    if (time > gst_clock_get_time(clock_.get())) gst_test_clock_set_time(clock, time);
    GstClockID id = nullptr;
    while (gst_test_clock_peek_next_pending_id(clock, &id)) {
      const bool due = gst_clock_id_get_time(id) <= gst_clock_get_time(clock_.get());
      gst_clock_id_unref(id);
      if (!due) break;
      if (GstClockID done = gst_test_clock_process_next_clock_id(clock)) gst_clock_id_unref(done);
    }
  }

  PipelineRun run_;
  ElementPtr source_;
  std::unique_ptr<GstClock, Unref> clock_;
  std::optional<StreamLog> wire_, speech_;
  GstClockTime time_ = 0;
};

TEST(TestCall, TenTurnsAreRightAndTheSameTwice) {
  const auto list = nlohmann::json::parse(std::ifstream(SAMPLES "/list.json"));
  std::vector<std::string> files, expected;
  for (const auto& entry : list) {
    const std::string file = entry["file"];
    if (!file.starts_with("q")) continue;
    files.push_back(std::string(SAMPLES "/") + file);
    expected.push_back(entry["expected_reply"]);
  }
  ASSERT_EQ(files.size(), 10u);
  std::vector<Packet> first;
  for (int round = 0; round < 2; ++round) {
    Call call;
    for (size_t i = 0; i < files.size(); ++i) {
      call.say(wav_samples(files[i]));
      call.listen(i + 1);
    }
    call.run().listen(std::chrono::milliseconds(50));
    EXPECT_EQ(call.run().answers, expected);
    EXPECT_TRUE(call.run().errors.empty());
    guint64 turn = 0;
    GstClockTime end = 0;
    for (const Passed& sound : call.sound()) {
      if (sound.turn_id == turn) {
        EXPECT_EQ(sound.pts, end) << "a gap in answer " << turn;
      }
      turn = sound.turn_id;
      end = sound.pts + sound.duration;
    }
    EXPECT_EQ(turn, 10u);
    if (round == 0) {
      first = call.packets();
      EXPECT_GT(first.size(), 500u);  // 20 ms each
    } else {
      EXPECT_TRUE(call.packets() == first);
    }
  }
}

bool capital_last(const std::vector<std::string>& answers) {
  return !answers.empty() && answers.back() == kCapital;
}

// More than a minute without a pause: a turn ends after 60 s, and the next one begins. What it says
// is answered, and so is the next question.
TEST(TestCall, AMonologueIsAnsweredAndSoIsWhatFollows) {
  Call call("");
  const std::vector<float> question = wav_samples(SAMPLES "/q01_cap.wav");
  std::vector<float> monologue;
  while (monologue.size() < 64 * 16000) {
    // Without the silence at its ends.
    monologue.insert(monologue.end(), question.begin() + 4000, question.end() - 4000);
  }
  call.say(monologue);
  EXPECT_TRUE(call.hears([](const std::vector<std::string>& answers) { return !answers.empty(); }));
  const ElementPtr llm = call.run().element("llm");
  g_signal_emit_by_name(llm.get(), "reset-session");
  call.say_file("q01_cap.wav");
  EXPECT_TRUE(call.hears(capital_last)) << ::testing::PrintToString(call.run().answers);
  EXPECT_TRUE(call.run().errors.empty());
}

// Whatever a room makes a microphone hear, the question after it is understood.
TEST(TestCall, NoiseBeforeAQuestionDoesNotSpoilIt) {
  std::mt19937 random(3);
  std::normal_distribution<float> white(0, 1);
  const auto sound = [&](double seconds, auto&& sample) {
    std::vector<float> samples(static_cast<size_t>(seconds * 16000));
    for (size_t i = 0; i < samples.size(); ++i) samples[i] = sample(static_cast<float>(i) / 16000);
    return samples;
  };
  const std::vector<std::pair<const char*, std::vector<float>>> sounds = {
      {"silence", sound(3, [](float) { return 0.0f; })},
      {"DC", sound(2, [](float) { return 0.5f; })},
      {"cough", sound(0.15, [&](float) { return 0.3f * white(random); })},
      {"noise", sound(3, [&](float) { return 0.02f * white(random); })},
      {"chord", sound(3,
                      [](float t) {
                        return 0.1f * (std::sin(1382.3f * t) + std::sin(1741.6f * t) +
                                       std::sin(2073.5f * t));
                      })},
      {"clipped", sound(0.5, [&](float) { return white(random) > 0 ? 1.0f : -1.0f; })},
  };
  for (const auto& [name, samples] : sounds) {
    SCOPED_TRACE(name);
    Call call;
    call.say(samples);
    call.say_file("q01_cap.wav");
    EXPECT_TRUE(call.hears(capital_last)) << ::testing::PrintToString(call.run().answers);
    EXPECT_TRUE(call.run().errors.empty());
  }
}

}  // namespace
}  // namespace minicpmo::testing
