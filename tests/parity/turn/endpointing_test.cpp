// Voice activity and endpointing with their defaults over the labelled set: how often a turn is cut
// short or missed, and how long the decision takes. Needs the published weights (VAD_MODEL).
#include "turn/endpointing.h"

#include <gst/app/gstappsink.h>
#include <gst/gst.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "labelled_set.h"
#include "sound_file.h"
#include "turn/voice_activity.h"

namespace minicpmo {
namespace {

constexpr double kMillisecond = 16;  // samples

// Any sound file, by GStreamer. Throws.
Pcm decode(const std::string& path) {
  GError* error = nullptr;
  GstElement* pipeline = gst_parse_launch(
      ("filesrc location=\"" + path +
       "\" ! flacparse ! flacdec ! audioconvert ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! "
       "appsink name=out sync=false")
          .c_str(),
      &error);
  if (error) throw std::runtime_error(path + ": " + error->message);
  GstElement* sink = gst_bin_get_by_name(GST_BIN(pipeline), "out");
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  Pcm pcm;
  while (GstSample* sample = gst_app_sink_pull_sample(GST_APP_SINK(sink))) {
    GstMapInfo map;
    GstBuffer* buffer = gst_sample_get_buffer(sample);
    gst_buffer_map(buffer, &map, GST_MAP_READ);
    const auto* data = reinterpret_cast<const float*>(map.data);
    pcm.insert(pcm.end(), data, data + map.size / sizeof(float));
    gst_buffer_unmap(buffer, &map);
    gst_sample_unref(sample);
  }
  gst_element_set_state(pipeline, GST_STATE_NULL);
  gst_object_unref(sink);
  gst_object_unref(pipeline);
  if (pcm.empty()) throw std::runtime_error(path + " cannot be decoded");
  return pcm;
}

std::vector<Pcm> read_sources() {
  std::vector<std::string> paths;
  for (const char* folder : {FIXTURES "/questions", SAMPLES}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename();
      const bool question = name[0] == 'q' && entry.path().extension() == ".wav";
      if (question || entry.path().extension() == ".flac") paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Pcm> sources;
  for (const std::string& path : paths)
    sources.push_back(path.ends_with(".wav") ? read_wav(path) : decode(path));
  return sources;
}

std::vector<Decision> decide(VoiceActivity& vad, const Pcm& pcm) {
  constexpr size_t kWindow = VoiceActivity::kWindow;
  vad.reset();
  std::vector<float> probabilities;
  for (size_t i = 0; i + kWindow <= pcm.size(); i += kWindow) {
    const auto p = vad.step(std::span<const float, kWindow>(&pcm[i], kWindow));
    if (!p.ok()) throw std::runtime_error(p.error().message);
    probabilities.push_back(*p);
  }
  return Endpointing().step(probabilities);
}

struct Turn {
  Decision start;
  std::optional<Decision> end;  // kEnd or kCancel
};

std::vector<Turn> turns_of(const std::vector<Decision>& decisions) {
  std::vector<Turn> turns;
  for (const Decision& d : decisions) {
    if (d.kind == Decision::Kind::kStart) turns.push_back({d, {}});
    if (d.kind == Decision::Kind::kEnd || d.kind == Decision::Kind::kCancel) turns.back().end = d;
  }
  return turns;
}

// Of the items of one sound.
struct Score {
  int items = 0;
  int missed_start = 0;   // no turn has begun while the speech lasted
  int clipped_start = 0;  // the turn begins behind the first sample of the speech
  int cut = 0;            // the turn ended, or was cancelled, before the speech had
  int missed_end = 0;     // the turn did not end
  int false_starts = 0;   // turns outside the speech
  int false_turns = 0;    // those of them that were not cancelled
  std::vector<double> start_delays, end_delays;  // ms, from label to decision

  void add(const Score& other) {
    items += other.items;
    missed_start += other.missed_start;
    clipped_start += other.clipped_start;
    cut += other.cut;
    missed_end += other.missed_end;
    false_starts += other.false_starts;
    false_turns += other.false_turns;
    start_delays.insert(start_delays.end(), other.start_delays.begin(), other.start_delays.end());
    end_delays.insert(end_delays.end(), other.end_delays.begin(), other.end_delays.end());
  }
};

// The turn of an item is the first one that is open while its speech lasts.
Score judge(const LabelledItem& item, const std::vector<Turn>& turns) {
  Score score;
  score.items = 1;
  const Turn* found = nullptr;
  for (const Turn& turn : turns) {
    const bool over = turn.end && turn.end->at <= item.speech_begin;
    if (item.has_speech && !over && turn.start.at < item.speech_end) {
      if (!found) found = &turn;
      continue;
    }
    ++score.false_starts;
    score.false_turns += turn.end && turn.end->kind == Decision::Kind::kEnd;
  }
  if (!item.has_speech) return score;
  if (!found) {
    score.missed_start = 1;
    return score;
  }
  score.clipped_start = found->start.begin > item.speech_begin;
  score.start_delays.push_back(
      (static_cast<double>(found->start.at) - static_cast<double>(item.speech_begin)) /
      kMillisecond);
  if (!found->end) {
    score.missed_end = 1;
  } else if (found->end->at < item.speech_end) {
    score.cut = 1;
  } else {
    score.end_delays.push_back(static_cast<double>(found->end->at - item.speech_end) /
                               kMillisecond);
  }
  return score;
}

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1) + 0.5)];
}

void print(const std::string& name, const Score& s) {
  std::printf("%-14s %5d %6d %7d %4d %6d %6d %6d  %5.0f %5.0f  %5.0f %5.0f %5.0f\n", name.c_str(),
              s.items, s.missed_start, s.clipped_start, s.cut, s.missed_end, s.false_starts,
              s.false_turns, percentile(s.start_delays, 0.5), percentile(s.start_delays, 0.95),
              percentile(s.end_delays, 0), percentile(s.end_delays, 0.5),
              percentile(s.end_delays, 0.95));
}

void print_heading() {
  std::printf("%-14s %5s %6s %7s %4s %6s %6s %6s  %5s %5s  %5s %5s %5s\n", "ms from label", "items",
              "missed", "clipped", "cut", "no end", "false", "turns", "start", "p95", "min", "p50",
              "p95");
}

class EndpointingSetTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    gst_init(nullptr, nullptr);
    if (std::filesystem::exists(VAD_MODEL)) set_ = std::make_unique<LabelledSet>(read_sources());
  }
  static void TearDownTestSuite() { set_.reset(); }
  void SetUp() override {
    if (!set_) GTEST_SKIP() << "no " VAD_MODEL ": run tools/setup";
    auto vad = new_voice_activity(VAD_MODEL);
    ASSERT_TRUE(vad.ok()) << vad.error().message;
    vad_ = std::move(*vad);
  }
  Score score(const LabelledItem& item) {
    const std::vector<Turn> turns = turns_of(decide(*vad_, item.pcm));
    Score s = judge(item, turns);
    if (s.cut || s.missed_start || s.missed_end) {
      std::printf("  %s, speech %.0f..%.0f ms, longest pause %d ms:", item.sound.c_str(),
                  static_cast<double>(item.speech_begin) / kMillisecond,
                  static_cast<double>(item.speech_end) / kMillisecond, item.longest_pause);
      for (const Turn& turn : turns)
        std::printf(" %.0f..%.0f", static_cast<double>(turn.start.at) / kMillisecond,
                    turn.end ? static_cast<double>(turn.end->at) / kMillisecond : -1);
      std::printf("\n");
    }
    return s;
  }

  static std::unique_ptr<LabelledSet> set_;
  std::unique_ptr<VoiceActivity> vad_;
};
std::unique_ptr<LabelledSet> EndpointingSetTest::set_;

TEST_F(EndpointingSetTest, SpeechBeginsAndEndsWhereItDoes) {
  std::map<std::string, Score> scores;
  Score all;
  for (int i = 0; i < LabelledSet::kSpeechItems; ++i) {
    const LabelledItem item = set_->speech(i);
    const Score s = score(item);
    scores[item.sound].add(s);
    all.add(s);
  }
  print_heading();
  for (const auto& [name, s] : scores) print(name, s);
  print("all speech", all);
  EXPECT_GE(all.items, 200);
  EXPECT_EQ(all.missed_start, 0);
  EXPECT_EQ(all.missed_end, 0);
  EXPECT_LT(all.cut, 0.03 * all.items);
}

TEST_F(EndpointingSetTest, OtherSoundsAreNoSpeech) {
  std::map<std::string, Score> scores;
  Score all;
  for (int i = 0; i < LabelledSet::kOtherItems; ++i) {
    const LabelledItem item = set_->other(i);
    const Score s = score(item);
    scores[item.sound].add(s);
    all.add(s);
  }
  print_heading();
  for (const auto& [name, s] : scores) print(name, s);
  print("no speech", all);
  for (const char* name : {"silence", "DC offset", "white noise"})
    EXPECT_EQ(scores[name].false_starts, 0) << name;
}

}  // namespace
}  // namespace minicpmo
