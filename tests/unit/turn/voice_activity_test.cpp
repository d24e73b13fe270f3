// The reader of voice activity's weights, its kernel, and the background that speech stands out of.
// What the network computes: tests/parity/turn.
#include "turn/voice_activity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numbers>

#include "../weights_file.h"
#include "engine/cpu_kernels.h"
#include "turn/background.h"

namespace minicpmo {
namespace {

using Window = std::span<const float, VoiceActivity::kWindow>;

class VoiceActivityFileTest : public testing::Test {
 protected:
  void SetUp() override {
    weights_.add_linear("stft_conv", {258, 1, 256}, false);
    weights_.add_linear("conv1", {128, 129, 3});
    weights_.add_linear("conv2", {64, 128, 3});
    weights_.add_linear("conv3", {64, 64, 3});
    weights_.add_linear("conv4", {128, 64, 3});
    for (const char* part : {"ih", "hh"}) {
      weights_.add(std::string("lstm_cell.weight_") + part, {512, 128}, 0.1);
      weights_.add(std::string("lstm_cell.bias_") + part, {512}, 0.1);
    }
    weights_.add_linear("final_conv", {1, 128, 1});
  }
  void TearDown() override { std::filesystem::remove(path_); }

  auto open() {
    weights_.write(path_);
    return new_voice_activity(path_);
  }
  void expect_error(const Result<std::unique_ptr<VoiceActivity>>& result, ErrorCode code,
                    std::initializer_list<std::string> words) {
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, code);
    for (const std::string& word : words)
      EXPECT_NE(result.error().message.find(word), std::string::npos)
          << word << " is not in: " << result.error().message;
    EXPECT_NE(result.error().message.find("tools/setup"), std::string::npos);
  }

  WeightsFile weights_;
  const std::string path_ = testing::TempDir() + "vad-" + std::to_string(getpid()) + ".safetensors";
};

TEST_F(VoiceActivityFileTest, ReadsANetwork) {
  const auto vad = open();
  ASSERT_TRUE(vad.ok()) << vad.error().message;
  std::vector<float> pcm(VoiceActivity::kWindow);
  for (size_t i = 0; i < pcm.size(); ++i) pcm[i] = std::sin(static_cast<float>(i));
  const auto p = (*vad)->step(Window(pcm));
  ASSERT_TRUE(p.ok());
  EXPECT_GT(*p, 0);
  EXPECT_LT(*p, 1);
}

TEST_F(VoiceActivityFileTest, NamesTheTensorAtFault) {
  const std::vector<std::string> names = [&] {
    std::vector<std::string> all;
    for (const auto& [name, values] : weights_.tensors()) all.push_back(name);
    return all;
  }();
  EXPECT_EQ(names.size(), 15u);
  for (const std::string& name : names) {
    const WeightsFile good = weights_;
    weights_.remove(name);
    expect_error(open(), ErrorCode::kCorrupt, {path_, "\"" + name + "\""});
    weights_ = good;
    weights_[name].shape.push_back(1);
    expect_error(open(), ErrorCode::kCorrupt, {path_, "\"" + name + "\"", "shape"});
    weights_ = good;
    weights_[name].data.back() = std::nanf("");
    expect_error(open(), ErrorCode::kCorrupt, {path_, "\"" + name + "\"", "not finite"});
    weights_ = good;
  }
}

TEST_F(VoiceActivityFileTest, NamesTheFile) {
  expect_error(new_voice_activity("/nowhere/vad.safetensors"), ErrorCode::kNotFound,
               {"/nowhere/vad.safetensors"});
  expect_error(new_voice_activity(""), ErrorCode::kNotFound, {});
  std::ofstream(path_) << "RIFF, and no safetensors at all";
  expect_error(new_voice_activity(path_), ErrorCode::kCorrupt, {path_});
  weights_.write(path_);
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 4);
  expect_error(new_voice_activity(path_), ErrorCode::kCorrupt, {path_});
}

TEST_F(VoiceActivityFileTest, AnotherModelIsRefused) {
  expect_error(new_voice_activity(MODEL_DIR "/assets/Vocos.safetensors"), ErrorCode::kCorrupt,
               {"Vocos.safetensors", "stft_conv.weight"});
}

// Of any number of outputs, over rows that overlap.
TEST(CpuLinear, AsAPlainLoop) {
  constexpr int64_t kIn = 37, kRows = 3, kStep = 5;
  std::vector<float> x(kIn + kRows * kStep), weight(9 * kIn), bias(9);
  const auto fill = [](std::vector<float>& values, double by) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(std::sin(by * static_cast<double>(i + 1)));
  };
  fill(x, 1.7);
  fill(weight, 0.9);
  fill(bias, 2.3);
  for (int64_t out = 1; out <= 9; ++out) {
    std::vector<float> y(static_cast<size_t>(kRows * out + 1), 4711);
    cpu::linear(x.data(), kRows, kStep, weight.data(), bias.data(), out, kIn, y.data());
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = bias[static_cast<size_t>(o)];
        for (int64_t i = 0; i < kIn; ++i)
          sum += static_cast<double>(x[static_cast<size_t>(r * kStep + i)]) *
                 weight[static_cast<size_t>(o * kIn + i)];
        EXPECT_NEAR(y[static_cast<size_t>(r * out + o)], sum, 1e-5) << out << " " << r << " " << o;
      }
    }
    EXPECT_EQ(y.back(), 4711) << "written behind the end";
  }
}

class BackgroundTest : public testing::Test {
 protected:
  // `count` windows of a tone; how many of them stand out by 7 dB.
  int hear(int count, double amplitude, double offset = 0) {
    int out = 0;
    std::vector<float> pcm(VoiceActivity::kWindow);
    for (int n = 0; n < count; ++n) {
      for (size_t i = 0; i < pcm.size(); ++i)
        pcm[i] = static_cast<float>(
            offset + amplitude * std::sin(2 * std::numbers::pi * static_cast<double>(i) / 16));
      out += background_.stands_out(pcm, 7);
    }
    return out;
  }
  static constexpr int kMemory = Background::kWindows;
  static double decibels(double value) { return std::pow(10.0, value / 20); }

  Background background_;
};

TEST_F(BackgroundTest, SevenDecibelsAboveIt) {
  hear(kMemory, 0.01);
  EXPECT_EQ(hear(30, 0.1), 30);
  EXPECT_EQ(hear(10, 0.01), 0);
  EXPECT_EQ(hear(10, 0.01 * decibels(6.9)), 0);
  EXPECT_EQ(hear(10, 0.01 * decibels(7.1)), 10);
}

TEST_F(BackgroundTest, HalfWayToAVoiceThatIsHardlyLouder) {
  hear(kMemory, 0.01);
  EXPECT_EQ(hear(30, 0.01 * decibels(6)), 30);
  EXPECT_EQ(hear(10, 0.01 * decibels(2.9)), 0);
  EXPECT_EQ(hear(10, 0.01 * decibels(3.1)), 10);
}

TEST_F(BackgroundTest, WhatIsHeardFirstStandsOut) {
  EXPECT_EQ(hear(90, 0.1), 90);
}

TEST_F(BackgroundTest, WhatNeverChangesStandsOut) {
  EXPECT_EQ(hear(3 * kMemory, 0.1), 3 * kMemory);
}

TEST_F(BackgroundTest, SpeechWithItsPausesStandsOut) {
  int heard = 0;
  for (int syllable = 0; syllable < 200; ++syllable) {
    heard += hear(5, 0.1);
    hear(2, 0.002);
  }
  EXPECT_EQ(heard, 1000);
}

TEST_F(BackgroundTest, AQuieterVoiceIsHeardSoonAfterALouderOne) {
  hear(2 * kMemory, 0.1);
  hear(kMemory / 5 + 1, 0.001);
  EXPECT_EQ(hear(5, 0.02), 5);
}

TEST_F(BackgroundTest, AnOffsetIsNoSound) {
  hear(kMemory, 0.01);
  hear(30, 0.1);
  EXPECT_EQ(hear(10, 0.01, 0.5), 0);
  EXPECT_EQ(hear(10, 0.1, -0.5), 10);
}

TEST_F(BackgroundTest, ResetForgets) {
  hear(kMemory, 0.1);
  hear(30, 1);
  EXPECT_EQ(hear(1, 0.1), 0);
  background_.reset();
  EXPECT_EQ(hear(1, 0.1), 1);
}

}  // namespace
}  // namespace minicpmo
