// What is told about a turn that is made up here.
#include <gst/gst.h>
#include <gtest/gtest.h>

#include "turn.h"

namespace minicpmo::tracers {
namespace {

constexpr double kRounding = 1e-9;

// Sound that begins 100 ms after the turn: a second, half a second, a second; the last two each
// come 200 ms later than what was there before has been played.
Turn late_turn() {
  Turn turn;
  turn.id = 3;
  turn.finish = "stop";
  turn.begun = GST_SECOND;
  turn.tokens = 30;
  turn.codes = 100;
  turn.stages["decode"] = {5, 2 * GST_SECOND, GST_SECOND};
  turn.stages["speech"] = {4, 500 * GST_MSECOND, 400 * GST_MSECOND};
  turn.stages["vocoder"] = {3, 250 * GST_MSECOND, 0};
  const GstClockTime first = GST_SECOND + 100 * GST_MSECOND;
  turn.sound.chunks = {{first, GST_SECOND},
                       {first + 1200 * GST_MSECOND, GST_SECOND / 2},
                       {first + 1900 * GST_MSECOND, GST_SECOND}};
  turn.sound.put_off = 2;
  return turn;
}

TEST(Report, SoundThatComesTooLateWouldHaveStopped) {
  const auto sound = report(late_turn(), Parts{GST_SECOND, {}, true}, "call")["sound"];
  EXPECT_EQ(sound["chunks"], 3);
  EXPECT_EQ(sound["put_off"], 2);
  EXPECT_NEAR(sound["seconds"].get<double>(), 2.5, kRounding);
  EXPECT_NEAR(sound["underrun_ms"].get<double>(), 400, kRounding);
  EXPECT_NEAR(sound["rtf"].get<double>(), 2.0 / 2.5, kRounding);
  EXPECT_NEAR(sound["steady_rtf"].get<double>(), 1.9 / 2.5, kRounding);
}

TEST(Report, SoundInTimeDoesNotStop) {
  Turn turn = late_turn();
  for (auto& chunk : turn.sound.chunks) chunk.time = turn.sound.chunks.front().time;
  EXPECT_EQ(report(turn, Parts{GST_SECOND, {}, true}, "call")["sound"]["underrun_ms"], 0);
}

TEST(Report, StagesHaveRates) {
  const auto stages = report(late_turn(), Parts{GST_SECOND, {}, true}, "call")["stages"];
  EXPECT_EQ(stages["decode"]["calls"], 5);
  EXPECT_NEAR(stages["decode"]["ms"].get<double>(), 2000, kRounding);
  EXPECT_NEAR(stages["decode"]["gpu_ms"].get<double>(), 1000, kRounding);
  EXPECT_EQ(stages["decode"]["tokens"], 30);
  EXPECT_NEAR(stages["decode"]["tokens_per_s"].get<double>(), 15, kRounding);
  EXPECT_EQ(stages["speech"]["codes"], 100);
  EXPECT_NEAR(stages["speech"]["codes_per_s"].get<double>(), 200, kRounding);
  EXPECT_NEAR(stages["speech"]["rtf"].get<double>(), 0.2, kRounding);
  EXPECT_NEAR(stages["vocoder"]["rtf"].get<double>(), 0.1, kRounding);
}

TEST(Report, PartsNameTheSettingThatOwnsThem) {
  GstElement* const queue =
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("queue", "waits")));
  g_object_set(queue, "max-size-buffers", 7u, nullptr);
  const ElementInfo element(queue);
  Parts parts{GST_SECOND, {}, true};
  parts.list.push_back(
      {"queue", &element, GST_SECOND, GST_SECOND + 5 * GST_MSECOND, 4, 80 * GST_MSECOND});
  const auto told = report(late_turn(), parts, "call");
  EXPECT_NEAR(told["total_ms"].get<double>(), 5, kRounding);
  const auto& part = told["parts"][0];
  EXPECT_EQ(part["element"], "waits");
  EXPECT_EQ(part["queue_buffers"], 4);
  EXPECT_NEAR(part["queue_ms"].get<double>(), 80, kRounding);
  EXPECT_NE(part["setting"].get<std::string>().find("max-size-buffers=7"), std::string::npos);
  gst_object_unref(queue);
  EXPECT_EQ(setting_of(parts.list[0], TurnPath{}), "") << "the element is gone";
}

}  // namespace
}  // namespace minicpmo::tracers
