#include "turn/timed_samples.h"

#include <gtest/gtest.h>

#include <numeric>

namespace minicpmo {
namespace {

constexpr uint64_t kSecond = 1000000000;
constexpr uint64_t kSample = TimedSamples::kSampleTime;

std::vector<float> ramp(size_t count, float first = 0) {
  std::vector<float> samples(count);
  std::iota(samples.begin(), samples.end(), first);
  return samples;
}

std::vector<float> copy(std::span<const float> samples) {
  return {samples.begin(), samples.end()};
}

TEST(TimedSamples, SamplesStayUntilTheyAreDropped) {
  TimedSamples samples;
  float next = 0;
  uint64_t dropped = 0;
  for (size_t part = 0; part < 300; ++part) {
    samples.append(ramp(part, next));
    next += static_cast<float>(part);
    dropped = std::min(samples.end(), dropped + (part * 7) % 250);
    samples.drop_until(dropped);
    ASSERT_EQ(samples.begin(), dropped);
    ASSERT_EQ(samples.end(), static_cast<uint64_t>(next));
    const auto count = static_cast<size_t>(samples.end() - samples.begin());
    ASSERT_EQ(copy(samples.view(dropped, count)), ramp(count, static_cast<float>(dropped)));
  }
  samples.drop_until(0);  // behind us
  EXPECT_EQ(samples.begin(), dropped);
}

TEST(TimedSamples, TimeIsCountedFromTheLastStamp) {
  TimedSamples samples;
  samples.set_time(2 * kSecond, false);
  samples.append(ramp(16000));
  EXPECT_EQ(samples.time_of(0), 2 * kSecond);
  EXPECT_EQ(samples.time_of(8000), 2 * kSecond + kSecond / 2);
  EXPECT_EQ(samples.time_of(16000), 3 * kSecond);
  samples.set_time(3 * kSecond + 30000000, false);  // 30 ms late
  samples.append(ramp(16000));
  EXPECT_EQ(samples.time_of(15999), 3 * kSecond - kSample);
  EXPECT_EQ(samples.end_time_of(16000), 3 * kSecond);
  EXPECT_EQ(samples.time_of(16000), 3 * kSecond + 30000000);
  samples.drop_until(20000);
  EXPECT_EQ(samples.time_of(20000), 3 * kSecond + 30000000 + 4000 * kSample);
  EXPECT_EQ(samples.end_time_of(20000), samples.time_of(20000));
  samples.set_time(40 * kSecond, false);
  samples.append(ramp(1));
  samples.drop_until(32000);
  EXPECT_EQ(samples.end_time_of(32000), 40 * kSecond);  // what was before is forgotten
}

TEST(TimedSamples, SmallDeviationsAreRounding) {
  TimedSamples samples;
  samples.set_time(kSecond, false);
  samples.append(ramp(100));
  for (const uint64_t time : {kSecond + 100 * kSample + 999999, kSecond + 100 * kSample - 999999}) {
    samples.set_time(time, false);
    EXPECT_EQ(samples.time_of(100), kSecond + 100 * kSample);
  }
  samples.set_time(kSecond + 100 * kSample + 1000000, false);
  EXPECT_EQ(samples.time_of(100), kSecond + 100 * kSample + 1000000);
}

TEST(TimedSamples, JumpsAreFoundUntilTheyAreDropped) {
  TimedSamples samples;
  samples.set_time(0, false);
  samples.append(ramp(100));
  samples.set_time(9 * kSecond, true);
  samples.append(ramp(50));
  samples.set_time(10 * kSecond, false);  // off, and no jump
  samples.append(ramp(50));
  samples.set_time(5 * kSecond, true);
  EXPECT_EQ(samples.next_jump(0), 100u);
  EXPECT_EQ(samples.next_jump(99), 100u);
  EXPECT_EQ(samples.next_jump(100), 200u);
  EXPECT_TRUE(samples.jump_at(100));
  EXPECT_FALSE(samples.jump_at(150));
  EXPECT_TRUE(samples.jump_at(200));
  EXPECT_EQ(samples.end_time_of(100), 100 * kSample);
  samples.append(ramp(10));
  samples.drop_until(120);
  EXPECT_EQ(samples.next_jump(120), 200u);
  EXPECT_EQ(samples.time_of(120), 9 * kSecond + 20 * kSample);
  samples.drop_until(205);
  EXPECT_EQ(samples.next_jump(205), 210u);
  EXPECT_EQ(samples.time_of(205), 5 * kSecond + 5 * kSample);
}

TEST(TimedSamples, TheLastOfTwoStampsAtOnePlaceCounts) {
  TimedSamples samples;
  samples.set_time(0, false);
  samples.append(ramp(100));
  samples.set_time(9 * kSecond, true);
  samples.set_time(8 * kSecond, false);
  samples.append(ramp(1));
  EXPECT_TRUE(samples.jump_at(100));
  EXPECT_EQ(samples.time_of(100), 8 * kSecond);
}

TEST(TimedSamples, ClearedTheyAreNewAndPositionsGoOn) {
  TimedSamples samples;
  samples.set_time(kSecond, false);
  samples.append(ramp(100));
  samples.drop_until(10);
  samples.set_time(2 * kSecond, true);
  samples.clear();
  EXPECT_EQ(samples.begin(), 100u);
  EXPECT_EQ(samples.end(), 100u);
  EXPECT_FALSE(samples.jump_at(100));
  samples.set_time(7 * kSecond, false);
  samples.append(ramp(10, 3));
  EXPECT_EQ(samples.time_of(105), 7 * kSecond + 5 * kSample);
  EXPECT_EQ(copy(samples.view(100, 10)), ramp(10, 3));
}

}  // namespace
}  // namespace minicpmo
