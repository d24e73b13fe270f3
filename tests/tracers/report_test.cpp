// What is told about a turn that is made up here.
#include <gst/gst.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "elements/chain/stream_log.h"
#include "outputs.h"
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

// Spans of one id must lie in each other: what is opened last is closed first.
TEST(Trace, OfATurnThatIsToldAgainIsNested) {
  const testing::TemporaryFile file;
  GstElement* const element =
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("identity", nullptr)));
  const ElementInfo info(element);
  gst_object_unref(element);
  Parts parts{GST_SECOND, {}, true};
  for (const char* name : {"endpoint", "decode", "vocoder"}) {
    const GstClockTime from = parts.list.empty() ? parts.begin : parts.list.back().to;
    parts.list.push_back({name, &info, from, from + 5 * GST_MSECOND});
  }
  {
    Outputs outputs;
    ASSERT_TRUE(outputs.open_trace(file.path()));
    Turn turn = late_turn();
    outputs.turn(1, turn, parts, report(turn, parts, "call"));
    turn.finish = "interrupted";
    outputs.turn(1, turn, parts, report(turn, parts, "call"));
  }
  nlohmann::json events = nlohmann::json::parse(file.read());
  std::stable_sort(events.begin(), events.end(), [](const auto& a, const auto& b) {
    return a.value("ts", 0.0) < b.value("ts", 0.0);
  });
  std::map<std::string, std::vector<std::string>> open;
  for (const auto& event : events) {
    if (event["ph"] != "b" && event["ph"] != "e") continue;
    auto& names = open[event["id2"]["local"]];
    if (event["ph"] == "b") {
      names.push_back(event["name"]);
    } else {
      ASSERT_FALSE(names.empty());
      EXPECT_EQ(names.back(), event["name"]);
      names.pop_back();
    }
  }
  EXPECT_EQ(open.size(), 2u);
  for (const auto& [id, names] : open) EXPECT_TRUE(names.empty()) << id;
}

// How long the GPU worked is known, not when: behind the call, and one after the other.
TEST(Trace, OfTheGpuHasATrackForEachStage) {
  const testing::TemporaryFile file;
  {
    Outputs outputs;
    ASSERT_TRUE(outputs.open_trace(file.path()));
    outputs.gpu_work(1, "call", "decode", 7, 10 * GST_MSECOND, 5 * GST_MSECOND);
    outputs.gpu_work(1, "call", "speech", 7, 12 * GST_MSECOND, 1 * GST_MSECOND);
    outputs.gpu_work(1, "call", "decode", 7, 12 * GST_MSECOND, 4 * GST_MSECOND);
    outputs.gpu_work(1, "call", "decode", 8, 30 * GST_MSECOND, 2 * GST_MSECOND);
    outputs.gpu_work(2, "other", "decode", 1, 11 * GST_MSECOND, 3 * GST_MSECOND);
  }
  std::map<std::pair<int, int>, std::string> tracks;
  std::map<std::string, std::vector<double>> work;  // begin and duration, ms
  for (const auto& event : nlohmann::json::parse(file.read())) {
    const std::pair<int, int> track(event["pid"], event["tid"]);
    if (event["name"] == "thread_name") {
      EXPECT_TRUE(tracks.try_emplace(track, event["args"]["name"]).second);
      EXPECT_GE(track.second, 1 << 22) << "may be a thread";
    }
    if (event["ph"] != "X") continue;
    EXPECT_EQ("CUDA stream: " + event["name"].get<std::string>(), tracks.at(track));
    auto& times = work[std::to_string(track.first) + ' ' + event["name"].get<std::string>()];
    times.push_back(event["ts"].get<double>() / 1e3);
    times.push_back(event["dur"].get<double>() / 1e3);
  }
  const std::map<std::string, std::vector<double>> wanted{
      {"1 decode", {10, 5, 15, 4, 30, 2}}, {"1 speech", {12, 1}}, {"2 decode", {11, 3}}};
  EXPECT_EQ(work, wanted);
}

using Names = std::vector<std::pair<std::string, std::string>>;

// The parts of a turn on its way through elements of these factories, each of which keeps it for
// 10 ms.
Names parts_of_way(const std::vector<const char*>& factories) {
  auto path = std::make_shared<TurnPath>();
  Turn turn;
  turn.marked = true;
  turn.captured = GST_SECOND;
  GstClockTime now = turn.captured;
  for (const char* factory : factories) {
    GstElement* element =
        GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make(factory, nullptr)));
    const auto pad = std::make_shared<PadInfo>(element, nullptr);
    gst_object_unref(element);
    const int index = static_cast<int>(path->pads.size());
    if (pad->element.role == Role::kTurn) path->turn = path->first = index;
    if (pad->element.role == Role::kLanguageModel) path->llm = index;
    if (pad->element.role == Role::kVocoder) path->vocoder = index;
    now += 10 * GST_MSECOND;
    Passed& passed = turn.passed[pad.get()];
    passed.question = passed.first = passed.done = now;
    path->pads.push_back(pad);
  }
  turn.path = path;
  Names found;
  for (const Part& part : parts_of(turn).list) {
    if (part.to == part.from) continue;
    EXPECT_EQ(part.to - part.from, 10 * GST_MSECOND) << part.name;
    found.emplace_back(part.element->factory, part.name);
  }
  return found;
}

const std::vector<const char*> kRest{"minicpmoturn", "minicpmollm", "minicpmovocoder"};

Names with_rest(Names before) {
  before.insert(
      before.end(),
      {{"minicpmoturn", "endpoint"}, {"minicpmollm", "decode"}, {"minicpmovocoder", "vocoder"}});
  return before;
}

Names parts_before(std::vector<const char*> factories) {
  factories.insert(factories.end(), kRest.begin(), kRest.end());
  return parts_of_way(factories);
}

TEST(Parts, AreNamedByWhatIsBeforeMinicpmoturn) {
  EXPECT_EQ(parts_before({"udpsrc", "rtpjitterbuffer", "identity", "queue"}),
            with_rest({{"udpsrc", "network"},
                       {"rtpjitterbuffer", "jitter-buffer"},
                       {"identity", "media-in"},
                       {"queue", "queue"}}));
  EXPECT_EQ(parts_before({"udpsrc", "identity"}),
            with_rest({{"udpsrc", "network"}, {"identity", "media-in"}}));
  EXPECT_EQ(parts_before({"appsrc", "netsim", "identity", "rtpjitterbuffer"}),
            with_rest({{"appsrc", "capture"},
                       {"netsim", "network"},
                       {"identity", "network"},
                       {"rtpjitterbuffer", "jitter-buffer"}}));
  EXPECT_EQ(parts_before({"appsrc", "netsim", "identity"}),
            with_rest({{"appsrc", "capture"}, {"netsim", "network"}, {"identity", "media-in"}}));
}

TEST(Parts, AreNamedByWhatIsBehindTheVocoder) {
  std::vector<const char*> way = kRest;
  way.insert(way.end(), {"queue", "audioconvert", "rtpL16pay"});
  Names names = with_rest({});
  names.insert(names.end(),
               {{"queue", "queue"}, {"audioconvert", "media-out"}, {"rtpL16pay", "packetise"}});
  EXPECT_EQ(parts_of_way(way), names);
}

}  // namespace
}  // namespace minicpmo::tracers
