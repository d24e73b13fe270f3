// Voice activity against silero's own model (tools/tiny/reference/make_voice_activity.py). Needs
// the published weights: VAD_MODEL is where tools/setup puts them.
#include "turn/voice_activity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>

#include "engine/stage_scope.h"
#include "golden.h"
#include "sound_file.h"

namespace minicpmo {
namespace {

using Window = std::span<const float, VoiceActivity::kWindow>;

class VoiceActivityTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(VAD_MODEL)) GTEST_SKIP() << "no " VAD_MODEL ": run tools/setup";
    vad_ = open();
  }
  static std::unique_ptr<VoiceActivity> open() {
    auto vad = new_voice_activity(VAD_MODEL, 0);
    if (!vad.ok()) throw std::runtime_error(vad.error().message);
    return std::move(*vad);
  }
  static std::vector<float> run(VoiceActivity& vad, const std::vector<float>& pcm) {
    std::vector<float> out;
    for (size_t i = 0; i + VoiceActivity::kWindow <= pcm.size(); i += VoiceActivity::kWindow) {
      const auto p = vad.step(Window(&pcm[i], VoiceActivity::kWindow));
      if (!p.ok()) throw std::runtime_error(p.error().message);
      out.push_back(*p);
    }
    return out;
  }
  std::vector<float> run(const std::vector<float>& pcm) { return run(*vad_, pcm); }

  std::unique_ptr<VoiceActivity> vad_;
};

constexpr double kBound = 1e-5;

TEST_F(VoiceActivityTest, RecordingsAsTheReference) {
  const Golden golden("voice_activity/probabilities");
  for (const char* name : {"q01_cap.wav", "q05_count.wav", "q06_repeat.wav", "q08_talk.wav"}) {
    const auto expected = golden.floats(std::string(name) + ".probabilities");
    const auto actual = run(read_wav(std::string(SAMPLES "/") + name));
    EXPECT_LT(max_difference(actual, expected), kBound) << name;
    vad_->reset();
  }
}

TEST_F(VoiceActivityTest, NoiseAndSilenceAsTheReference) {
  const Golden golden("voice_activity/probabilities");
  std::vector<float> pcm = golden.floats("noise.input");
  for (float& x : pcm) x /= 32768;
  EXPECT_LT(max_difference(run(pcm), golden.floats("noise.probabilities")), kBound);
}

TEST_F(VoiceActivityTest, ResetForgets) {
  const auto pcm = read_wav(SAMPLES "/q08_talk.wav");
  const auto first = run(pcm);
  EXPECT_GT(max_difference(run(pcm), first), 0.01) << "the state does not matter";
  vad_->reset();
  EXPECT_EQ(run(pcm), first);
}

TEST_F(VoiceActivityTest, SessionsDoNotShareState) {
  const auto pcm = read_wav(SAMPLES "/q08_talk.wav");
  const auto other = open();
  run(*other, pcm);
  EXPECT_EQ(run(pcm), run(*open(), pcm));
}

TEST_F(VoiceActivityTest, HostileSamplesLeaveNoTrace) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float huge = std::numeric_limits<float>::max();
  const auto pcm = read_wav(SAMPLES "/q08_talk.wav");
  const auto clean = run(pcm);
  for (const float bad : {kInfinity, -kInfinity, std::nanf(""), huge, -huge, 1e-40f}) {
    vad_->reset();
    for (const float p : run(std::vector<float>(4 * VoiceActivity::kWindow, bad))) {
      EXPECT_TRUE(p >= 0 && p <= 1) << bad << " gives " << p;
    }
    // Half a second later the speech is found as if nothing had been.
    run(std::vector<float>(16 * VoiceActivity::kWindow));
    const auto after = run(pcm);
    const auto voiced = [](const std::vector<float>& probabilities) {
      return std::count_if(probabilities.begin(), probabilities.end(),
                           [](float p) { return p > 0.5f; });
    };
    EXPECT_NEAR(voiced(after), voiced(clean), 3) << bad;
  }
}

TEST_F(VoiceActivityTest, NotFiniteCountsAsNothing) {
  auto pcm = read_wav(SAMPLES "/q08_talk.wav");
  auto silenced = pcm;
  for (size_t i = 9000; i < 9400; ++i) {
    pcm[i] = i % 2 ? std::nanf("") : -std::numeric_limits<float>::infinity();
    silenced[i] = 0;
  }
  const auto with_holes = run(pcm);
  vad_->reset();
  EXPECT_EQ(with_holes, run(silenced));
}

// A window has to be done long before the next one comes: 32 ms. Prints what one takes.
TEST_F(VoiceActivityTest, IsFastEnough) {
  const auto pcm = read_wav(SAMPLES "/q05_count.wav");
  run(pcm);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto windows = static_cast<double>(run(pcm).size());
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count() / windows);
  }
  std::printf("voice activity: %.0f us per window of 32 ms\n", best);
  RecordProperty("microseconds_per_window", static_cast<int>(best));
  EXPECT_LT(best, 16000);
}

}  // namespace
}  // namespace minicpmo
