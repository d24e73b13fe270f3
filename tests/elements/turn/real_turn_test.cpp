// minicpmoturn with silero's network and recorded questions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "common/gstminicpmoturn.h"
#include "elements/turn/turn_harness.h"

namespace minicpmo::testing {
namespace {

// The sample files are 16-bit mono at 16 kHz with the plain header.
std::vector<float> samples_of(const char* name) {
  std::ifstream in(std::string(SAMPLES "/") + name, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  EXPECT_GT(bytes.size(), 44u) << name;
  const size_t data = bytes.find("data") + 8;
  std::vector<float> values((bytes.size() - data) / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    int16_t sample;
    std::memcpy(&sample, bytes.data() + data + 2 * i, 2);
    values[i] = static_cast<float>(sample) / 32768.0f;
  }
  return values;
}

float peak(std::span<const float> samples) {
  float most = 0;
  for (const float x : samples) most = std::max(most, std::abs(x));
  return most;
}

class RealTurn : public ::testing::Test {
 protected:
  RealTurn() : h_("minicpmoturn"), log_(h_.element()) { h_.set_caps(kPcmCaps); }

  // In buffers of 20 ms.
  void play(const std::vector<float>& samples) {
    for (size_t at = 0; at < samples.size(); at += 320) {
      const size_t part = std::min<size_t>(320, samples.size() - at);
      BufferPtr buffer(gst_buffer_new_memdup(&samples[at], part * sizeof(float)));
      GST_BUFFER_PTS(buffer.get()) = (heard_.size() + at) * 62500;
      ASSERT_EQ(h_.push(std::move(buffer)), GST_FLOW_OK);
    }
    heard_.insert(heard_.end(), samples.begin(), samples.end());
  }
  void pause() { play(std::vector<float>(16000, 0.0f)); }
  // First samples of the turns and what follows their last ones.
  std::vector<std::pair<size_t, size_t>> turns() {
    std::vector<std::pair<size_t, size_t>> turns;
    guint64 turn = 0;
    for (const BufferPtr& buffer : h_.pull_all()) {
      const guint64 id = gst_buffer_get_minicpmo_turn_meta(buffer.get())->turn_id;
      const size_t begin = GST_BUFFER_PTS(buffer.get()) / 62500;
      if (id != turn) turns.emplace_back(begin, begin);
      turn = id;
      EXPECT_EQ(begin, turns.back().second);
      turns.back().second = begin + gst_buffer_get_size(buffer.get()) / sizeof(float);
    }
    return turns;
  }

  ElementHarness h_;
  TurnLog log_;
  std::vector<float> heard_;
};

TEST_F(RealTurn, TwoQuestionsAreTwoTurns) {
  pause();
  for (const char* name : {"session_1.wav", "session_2.wav"}) {
    play(samples_of(name));
    pause();
  }
  h_.push_eos();
  const auto found = turns();
  ASSERT_EQ(found.size(), 2u);
  const size_t first = 16000, second = first + samples_of("session_1.wav").size() + 16000;
  EXPECT_GE(found[0].first, first - 8000);
  EXPECT_LT(found[0].second, second);
  EXPECT_GE(found[1].first, second - 8000);
  const auto loud = [&, least = 0.05f * peak(heard_)](size_t i) {
    return std::abs(heard_[i]) > least;
  };
  for (const auto& [begin, end] : found) {
    size_t loud_begin = begin, loud_end = end;
    while (!loud(loud_begin)) ++loud_begin;
    while (!loud(loud_end - 1)) --loud_end;
    EXPECT_GE(loud_begin - begin, 1600u);  // pre-roll
    EXPECT_GE(end - loud_end, 6400u);      // hang-over
  }
  // Everything that can be heard is in one of the turns, sample by sample.
  std::vector<float> rest = heard_, passed;
  for (const auto& [begin, end] : found) {
    passed.insert(passed.end(), &heard_[begin], &heard_[0] + end);
    std::fill(&rest[begin], &rest[0] + end, 0.0f);
  }
  EXPECT_EQ(log_.samples(), passed);
  EXPECT_LT(peak(rest), 0.05f * peak(heard_));
  Names ends;
  for (const std::string& word : log_.story())
    if (word.compare(0, 8, "turn-end") == 0) ends.push_back(word.substr(0, 10));
  EXPECT_EQ(ends, (Names{"turn-end 1", "turn-end 2"}));
}

TEST_F(RealTurn, NoiseIsNoTurn) {
  pause();
  play(samples_of("noise.wav"));
  pause();
  h_.push_eos();
  EXPECT_TRUE(turns().empty());
}

}  // namespace

}  // namespace minicpmo::testing
