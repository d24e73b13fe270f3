// Every turn is told, whatever became of it, and in the pipeline that it belongs to.
#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <future>
#include <mutex>
#include <thread>

#include "call.h"
#include "common/gstminicpmoturn.h"

namespace minicpmo::testing {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

class Turns : public ::testing::Test {
 protected:
  Turns() { backend_.settings().answer = "alpha bravo gamma delta hotel"; }
  FakeBackend backend_;
};

void expect_whole(const json& turn) {
  ASSERT_TRUE(turn.is_object());
  ASSERT_TRUE(turn["complete"]) << turn.dump(1);
  EXPECT_NEAR(sum_ms(turn), turn["total_ms"].get<double>(), 0.001);
}

TEST_F(Turns, AreWhole) {
  Call call;
  const PadTimes sink(call.element("sink"), "sink");
  for (guint64 i = 1; i <= 3; ++i) {
    const json turn = call.turn();
    expect_whole(turn);
    EXPECT_EQ(turn["turn"], i);
    EXPECT_EQ(turn["finish"], "stop");
    EXPECT_EQ(turn["kind"], "spoken");
    EXPECT_GT(part_ms(turn, "endpoint"), 200 - 33);
  }
}

// Applications hear what the file has.
TEST_F(Turns, AreToldOnTheBus) {
  Call call;
  struct Heard {
    std::mutex mutex;  // guards what follows
    std::map<guint64, json> turns;
  } heard;
  const ElementPtr pipeline(GST_ELEMENT(gst_element_get_parent(call.element("sink"))));
  const BusPtr bus(gst_element_get_bus(pipeline.get()));
  gst_bus_enable_sync_message_emission(bus.get());
  const gulong id =
      g_signal_connect(bus.get(), "sync-message::element",
                       G_CALLBACK(+[](GstBus*, GstMessage* message, gpointer to) {
                         if (!gst_message_has_name(message, "minicpmo/turn-trace")) return;
                         const GstStructure* fields = gst_message_get_structure(message);
                         guint64 turn = 0;
                         gst_structure_get_uint64(fields, "turn-id", &turn);
                         auto* all = static_cast<Heard*>(to);
                         std::lock_guard lock(all->mutex);
                         all->turns[turn] = json::parse(gst_structure_get_string(fields, "report"));
                       }),
                       &heard);
  call.turn();
  call.turn();  // interrupts the answer to the first, which is told again
  call.stop();
  g_signal_handler_disconnect(bus.get(), id);
  gst_bus_disable_sync_message_emission(bus.get());
  std::lock_guard lock(heard.mutex);
  EXPECT_EQ(heard.turns.size(), 2u);
  EXPECT_EQ(heard.turns, turns_of(call.name()));
}

// From the user's last sample to the moment that the sink has taken the first of the answer.
TEST_F(Turns, BeginAndEndWhereTheyShould) {
  Line line;
  line.sink = "fakesink name=sink sync=true async=false signal-handoffs=true";
  double told = 0, seen = 0;
  for (int i = 0; i < 4 && (i == 0 || std::abs(told - seen) > 2); ++i) {
    Call call(line);
    GstElement* sink = call.element("sink");
    static std::atomic<GstClockTime> left{0};
    left = 0;
    g_signal_connect(sink, "handoff", G_CALLBACK(+[](GstElement*, GstBuffer*, GstPad*, gpointer) {
                       GstClockTime none = 0;
                       left.compare_exchange_strong(none, gst_util_get_timestamp());
                     }),
                     nullptr);
    const PadTimes in(call.element("turn"), "sink");
    const json turn = call.turn();
    expect_whole(turn);
    told = turn["total_ms"];
    // The window of 32 ms that ends at 320 ms is the last with voice: the end of the 16th buffer.
    seen = (static_cast<double>(left) - static_cast<double>(in.all("buffer").at(15).time)) / 1e6;
  }
  EXPECT_NEAR(told, seen, 2);
}

TEST_F(Turns, ThatAreInterruptedAreMarked) {
  backend_.settings().answer = std::string(4000, 'a');
  backend_.settings().step_delay = milliseconds(5);
  Call call;
  call.begin_turn();
  call.voice().be_silent(1000 * GST_MSECOND);
  backend_.settings().answer = "alpha";
  call.turn();
  const auto turns = call.wait(2);
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns.at(1)["finish"], "interrupted");
  expect_whole(turns.at(1));  // it had been heard
  EXPECT_EQ(turns.at(2)["finish"], "stop");
}

// The answer had been made, and was sounding.
TEST_F(Turns, ThatAreCutShortAreMarked) {
  backend_.settings().answer = std::string(120, 'a');  // 5 s
  Call call;
  call.turn();
  backend_.settings().answer = "alpha";
  call.turn();
  const auto turns = call.wait(2);
  EXPECT_EQ(turns.at(1)["finish"], "interrupted");
  EXPECT_TRUE(turns.at(1)["again"]);
  expect_whole(turns.at(1));
}

TEST_F(Turns, WithoutAnAnswerAreThere) {
  backend_.settings().bursts = {""};
  Call call;
  const json turn = call.turn();
  EXPECT_EQ(turn["finish"], "empty");
  EXPECT_FALSE(turn["complete"]);
  EXPECT_FALSE(turn.contains("total_ms"));
  EXPECT_GT(part_ms(turn, "endpoint"), 100);
}

TEST_F(Turns, ThatWereACoughAreMarked) {
  Line line;
  line.turn = "silence-duration=200 min-turn-speech=250";
  Call call(line);
  call.voice().say(120 * GST_MSECOND);
  call.voice().be_silent(500 * GST_MSECOND);
  EXPECT_EQ(call.wait(1).at(1)["finish"], "cancelled");
}

TEST_F(Turns, ThatWereAnsweredTooSoonCountIt) {
  Line line;
  line.turn = "silence-duration=400 speculative-after=150";
  Call call(line);
  call.voice().say(300 * GST_MSECOND);
  call.voice().be_silent(260 * GST_MSECOND);
  const json turn = call.turn();
  expect_whole(turn);
  EXPECT_EQ(turn["turn"], 1u);
  EXPECT_EQ(turn["discarded"], 1u);
  EXPECT_GT(part_ms(turn, "confirm"), 100);
}

// The second question is asked while the first is answered, and waits for that.
TEST_F(Turns, ThatOverlapAreToldApart) {
  backend_.settings().step_delay = milliseconds(20);
  Line line;
  line.source =
      "appsrc name=source format=time "
      "caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
  line.sink = "fakesink name=sink async=false";
  Call call(line);
  for (int i = 0; i < 2; ++i) {
    call.voice().say(300 * GST_MSECOND);
    call.voice().be_silent(300 * GST_MSECOND);
  }
  call.voice().end();
  const auto turns = call.wait(2);
  ASSERT_EQ(turns.size(), 2u);
  for (const auto& [id, turn] : turns) {
    expect_whole(turn);
    EXPECT_EQ(turn["finish"], "stop");
  }
}

TEST_F(Turns, ThatAreCutByTheEndAreThere) {
  backend_.settings().answer = std::string(4000, 'a');
  backend_.settings().step_delay = milliseconds(20);
  Call call;
  call.voice().say(300 * GST_MSECOND);
  call.voice().be_silent(400 * GST_MSECOND);
  call.stop();
  EXPECT_EQ(call.wait(1).at(1)["finish"], "unfinished");
}

// While what the GPU took is asked for the first turn, the second becomes ready: it is told with
// all that the GPU took for it, not with what was known when the first one asked.
TEST_F(Turns, ThatBecomeReadyWhileAnotherIsToldKeepTheirGpuTime) {
  backend_.settings().gpu_time = milliseconds(7);
  std::promise<void> telling, go_on;
  std::atomic<bool> told{false};
  backend_.settings().vocoder_gpu_asked = [&] {
    std::array<char, 16> thread{};
    pthread_getname_np(pthread_self(), thread.data(), thread.size());
    // The first turn is told by who takes its first sound to the sink.
    if (std::string(thread.data()) != "answer:src" || told.exchange(true)) return;
    telling.set_value();
    go_on.get_future().wait_for(kPatience);
  };
  Line line;
  line.source =
      "appsrc name=source format=time "
      "caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
  line.sounded = "identity sleep-time=200000";  // by then its answer has ended
  line.sink = "fakesink name=sink async=false";
  Call call(line);
  const PadTimes answers(call.element("vocoder"), "sink");
  call.voice().say(300 * GST_MSECOND);
  call.voice().be_silent(300 * GST_MSECOND);
  ASSERT_EQ(telling.get_future().wait_for(kPatience), std::future_status::ready);
  backend_.settings().bursts = {""};  // nothing to wait for: ready when it ends
  call.voice().say(300 * GST_MSECOND);
  call.voice().be_silent(300 * GST_MSECOND);
  for (int i = 0; i < 500 && answers.all(GST_MINICPMO_EVENT_ANSWER_END).size() < 2; ++i)
    std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(answers.all(GST_MINICPMO_EVENT_ANSWER_END).size(), 2u);
  std::this_thread::sleep_for(milliseconds(50));  // and has passed the vocoder
  go_on.set_value();
  const auto turns = call.wait(2);
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns.at(2)["finish"], "empty");
  for (const auto& [id, turn] : turns)
    for (const char* stage : {"encode", "prefill", "decode"}) {
      const auto& found = turn["stages"][stage];
      EXPECT_NEAR(found["gpu_ms"].get<double>(), 7 * found["calls"].get<double>(), 0.01)
          << id << ' ' << stage;
    }
  call.stop();
  backend_.settings().vocoder_gpu_asked = nullptr;
}

// Four bursts of a token each, and two codes for each of 29 letters.
TEST_F(Turns, CountTheirTokensAndCodes) {
  Call call;
  for (int i = 0; i < 2; ++i) {
    const json stages = call.turn()["stages"];
    EXPECT_EQ(stages["decode"]["tokens"], 4);
    EXPECT_EQ(stages["speech"]["codes"], 58);
  }
}

// Chunks of 533 ms that take 700 ms each.
TEST_F(Turns, CountTheSoundThatWasPutOff) {
  Line line;
  line.coded = "identity sleep-time=700000";
  Call call(line);
  const json sound = call.turn()["sound"];
  GstStructure* stats = nullptr;
  g_object_get(call.element("vocoder"), "stats", &stats, nullptr);
  guint64 late = 0;
  EXPECT_TRUE(gst_structure_get_uint64(stats, "late", &late));
  gst_structure_free(stats);
  EXPECT_GE(late, 1u);
  EXPECT_EQ(sound["put_off"], late);
  EXPECT_GT(sound["underrun_ms"].get<double>(), 100);
}

// The encoder is kept busy, and the end of the turn waits behind the sound before it.
TEST_F(Turns, SayHowMuchWaitedInAQueue) {
  Line line;
  line.heard = "queue name=heard ! identity sleep-time=60000";
  Call call(line);
  struct Level {
    GstElement* queue;
    guint buffers = 0;
    guint64 time = 0;
  } level{call.element("heard")};
  const PadPtr pad(gst_element_get_static_pad(level.queue, "sink"));
  const auto look = [](GstPad*, GstPadProbeInfo* info, gpointer data) {
    auto* seen = static_cast<Level*>(data);
    if (gst_event_has_name(GST_PAD_PROBE_INFO_EVENT(info), GST_MINICPMO_EVENT_TURN_END))
      g_object_get(seen->queue, "current-level-buffers", &seen->buffers, "current-level-time",
                   &seen->time, nullptr);
    return GST_PAD_PROBE_OK;
  };
  const gulong probe =
      gst_pad_add_probe(pad.get(), GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM, look, &level, nullptr);
  const json turn = call.turn();
  gst_pad_remove_probe(pad.get(), probe);
  EXPECT_GT(level.buffers, 5u);
  json queue;
  for (const json& part : turn["parts"])
    if (part["element"] == "heard") queue = part;
  ASSERT_TRUE(queue.contains("queue_buffers")) << turn.dump(1);
  // The encoder may take one more between the two looks.
  EXPECT_NEAR(queue["queue_buffers"].get<double>(), level.buffers, 1);
  EXPECT_NEAR(queue["queue_ms"].get<double>(), static_cast<double>(level.time) / 1e6, 21);
  for (const json& part : turn["parts"])
    EXPECT_EQ(part.contains("queue_ms"), part["part"] == "queue");
}

// Two callers in one process: their turns have the same numbers, and different delays.
TEST_F(Turns, OfTwoCallersDoNotMix) {
  constexpr int kTurns = 4;
  std::array<Line, 2> lines;
  lines[0].coded = "identity name=slow sleep-time=60000";
  lines[1].sounded = "identity name=late sleep-time=30000";
  std::array<std::string, 2> names;
  std::array<std::thread, 2> threads;
  for (size_t i = 0; i < 2; ++i)
    threads[i] = std::thread([&, i] {
      Call call(lines[i]);
      names[i] = call.name();
      for (int turn = 0; turn < kTurns; ++turn) call.turn();
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < 2; ++i) {
    const auto turns = turns_of(names[i]);
    ASSERT_EQ(turns.size(), static_cast<size_t>(kTurns));
    for (const auto& [id, turn] : turns) {
      expect_whole(turn);
      EXPECT_EQ(part_ms(turn, "", i == 0 ? "late" : "slow"), 0);
      EXPECT_GT(part_ms(turn, "", i == 0 ? "slow" : "late"), i == 0 ? 59 : 29);
    }
  }
}

}  // namespace
}  // namespace minicpmo::testing
