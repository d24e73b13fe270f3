// Delays of known size show up in the part that they belong to: what the tracer tells is compared
// with what probes on the pads saw.
#include <gtest/gtest.h>

#include <functional>

#include "call.h"
#include "common/gstminicpmoturn.h"

namespace minicpmo::testing {
namespace {

constexpr double kTolerance = 2;  // ms
// A busy machine may stop a thread between a probe and the tracer.
constexpr int kAttempts = 6;

double ms_between(GstClockTime from, GstClockTime to) {
  return (static_cast<double>(to) - static_cast<double>(from)) / 1e6;
}

class Delays : public ::testing::Test {
 protected:
  Delays() { backend_.settings().answer = "alpha bravo gamma delta hotel"; }

  struct Found {
    double told = 0, seen = 0;
  };
  // `attempt` may be repeated until what was told is what was seen.
  void expect_equal(const std::function<Found()>& attempt, double at_least) {
    Found found;
    for (int i = 0; i < kAttempts; ++i) {
      found = attempt();
      if (std::abs(found.told - found.seen) <= kTolerance && found.told >= at_least - kTolerance)
        return;
    }
    EXPECT_NEAR(found.told, found.seen, kTolerance);
    EXPECT_GE(found.told, at_least - kTolerance);
  }

  // Sleeps in `slow` of the line; the tracer's part is compared with the pads of that element.
  // `item`: the buffer that counts, or -1: the event of the turn's end.
  void check_identity(std::string Line::*place, int item, int sleep_ms) {
    Line line;
    line.*place = "identity name=slow sleep-time=" + std::to_string(sleep_ms * 1000);
    expect_equal(
        [&] {
          Call call(line);
          const PadTimes in(call.element("slow"), "sink"), out(call.element("slow"), "src");
          const nlohmann::json turn = call.turn();
          const char* what = item < 0 ? GST_MINICPMO_EVENT_TURN_END : "buffer";
          const auto from = in.all("buffer"), to = out.all(what);
          const size_t i = item < 0 ? 0 : static_cast<size_t>(item);
          if (from.size() <= i || to.size() <= i) return Found{};
          // The turn's end comes behind the last embeddings.
          const GstClockTime begin = item < 0 ? from.back().time : from[i].time;
          return Found{part_ms(turn, "", "slow"), ms_between(begin, to[i].time)};
        },
        sleep_ms);
  }

  FakeBackend backend_;
};

TEST_F(Delays, BehindTheEncoder) {
  check_identity(&Line::embedded, -1, 40);
}
TEST_F(Delays, BeforeTheSpeechModel) {
  check_identity(&Line::worded, 1, 40);
}
TEST_F(Delays, BeforeTheVocoder) {
  check_identity(&Line::coded, 0, 40);
}
TEST_F(Delays, BeforeTheSink) {
  check_identity(&Line::sounded, 0, 40);
}

// The sound that counts is the buffer with the user's last voiced sample.
TEST_F(Delays, BeforeTheTurnDetector) {
  Line line;
  line.before = "identity name=slow sleep-time=15000";
  expect_equal(
      [&] {
        Call call(line);
        const PadTimes in(call.element("slow"), "sink"), out(call.element("slow"), "src");
        const nlohmann::json turn = call.turn();
        // Voice begins with the first buffer; 300 ms of it end in the tenth window of 32 ms.
        constexpr size_t kLast = 15;
        const auto from = in.all("buffer"), to = out.all("buffer");
        if (to.size() <= kLast) return Found{};
        return Found{part_ms(turn, "media-in", "slow"),
                     ms_between(from[kLast].time, to[kLast].time)};
      },
      15);
}

// The second burst waits for the first, which the sleep before the speech model keeps.
TEST_F(Delays, InASmallQueue) {
  Line line;
  line.words = "queue name=words max-size-buffers=1";
  line.worded = "identity name=slow sleep-time=40000";
  expect_equal(
      [&] {
        Call call(line);
        const PadTimes in(call.element("llm"), "src"), out(call.element("words"), "src");
        const nlohmann::json turn = call.turn();
        const auto from = in.all("buffer"), to = out.all("buffer");
        if (from.size() < 2 || to.size() < 2) return Found{};
        for (const auto& part : turn["parts"]) {
          if (part["element"] != "words") continue;
          const auto setting = part["setting"].get<std::string>();
          EXPECT_NE(setting.find("max-size-buffers=1"), std::string::npos) << setting;
        }
        return Found{part_ms(turn, "queue", "words"), ms_between(from[1].time, to[1].time)};
      },
      39);
}

// The silence that decides, by the clock of the sound.
TEST_F(Delays, InTheEndpointDecision) {
  for (const int silence : {200, 400}) {
    Line line;
    line.turn = "silence-duration=" + std::to_string(silence);
    expect_equal(
        [&] {
          Call call(line);
          const PadTimes in(call.element("turn"), "sink"), out(call.element("turn"), "src");
          const nlohmann::json turn = call.turn();
          const auto from = in.all("buffer"), to = out.all(GST_MINICPMO_EVENT_TURN_END);
          constexpr size_t kLast = 15;
          if (from.size() <= kLast || to.empty()) return Found{};
          return Found{part_ms(turn, "endpoint"), ms_between(from[kLast].time, to[0].time)};
        },
        silence);
  }
}

TEST_F(Delays, InTheStages) {
  constexpr int kDelay = 40;
  backend_.settings().step_delay = std::chrono::milliseconds(kDelay);
  backend_.settings().gpu_time = std::chrono::milliseconds(7);
  std::map<std::string, int> calls{{"encode", 1},      {"prefill", 2}, {"decode", 1},
                                   {"decode-more", 1}, {"speech", 1},  {"vocoder", 1}};
  nlohmann::json turn;
  // None is ever shorter, and each is once not longer.
  for (int i = 0; i < 2 * kAttempts && !calls.empty(); ++i) {
    Call call;
    turn = call.turn();
    std::erase_if(calls, [&](const auto& part) {
      const double ms = part_ms(turn, part.first);
      EXPECT_GE(ms, part.second * kDelay) << part.first;
      return ms <= part.second * (kDelay + kTolerance);
    });
  }
  for (const auto& [part, count] : calls)
    ADD_FAILURE() << part << " is longer than " << count << " calls:\n" << turn.dump(1);
  // The GPU's time stands beside the wall's.
  const auto& stages = turn["stages"];
  for (const char* stage : {"encode", "prefill", "decode", "vocoder"})
    EXPECT_NEAR(stages[stage]["gpu_ms"].get<double>(), 7.0 * stages[stage]["calls"].get<double>(),
                0.01)
        << stage;
  EXPECT_GE(stages["speech"]["gpu_ms"].get<double>(), 7);
  for (const char* stage : {"encode", "prefill", "decode"})
    EXPECT_GE(stages[stage]["ms"].get<double>(), kDelay * stages[stage]["calls"].get<double>())
        << stage;
  EXPECT_GT(stages["speech"]["codes_per_s"].get<double>(), 0);
  EXPECT_GT(stages["decode"]["tokens_per_s"].get<double>(), 0);
}

// Calls that return before the GPU is done: what it took is known when the turn is told, and is of
// the stage and the turn that asked for it.
TEST_F(Delays, OfTheGpuBehindTheCalls) {
  Call call;
  for (const int ms : {7, 11}) {
    backend_.settings().step_delay = std::chrono::milliseconds(30);
    backend_.settings().gpu_time = std::chrono::milliseconds(ms);
    backend_.settings().gpu_behind = std::chrono::milliseconds(50);
    const nlohmann::json turn = call.turn();
    for (const char* stage : {"encode", "prefill"}) {
      const auto& found = turn["stages"][stage];
      EXPECT_NEAR(found["gpu_ms"].get<double>(), ms * found["calls"].get<double>(), 0.01) << stage;
    }
  }
}

// A network that is late, in front of a jitter buffer.
TEST_F(Delays, InTheNetwork) {
  Line line;
  line.before =
      "audioconvert ! rtpL16pay max-ptime=20000000 ! netsim name=net delay-probability=1 "
      "min-delay=50 max-delay=50 ! rtpjitterbuffer name=jitter latency=200 ! rtpL16depay ! "
      "audioconvert ! audio/x-raw,format=F32LE,layout=interleaved,rate=16000,channels=1";
  expect_equal(
      [&] {
        Call call(line);
        const PadTimes in(call.element("net"), "sink"), out(call.element("net"), "src");
        const nlohmann::json turn = call.turn();
        constexpr size_t kLast = 15;
        const auto from = in.all("buffer"), to = out.all("buffer");
        if (to.size() <= kLast) return Found{};
        return Found{part_ms(turn, "network", "net"), ms_between(from[kLast].time, to[kLast].time)};
      },
      50);
}

}  // namespace
}  // namespace minicpmo::testing
