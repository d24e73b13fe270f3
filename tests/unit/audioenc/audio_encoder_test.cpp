#include "audioenc/audio_encoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "audioenc/encoder_weights.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"
#include "naive.h"

namespace minicpmo {
namespace {

ModelConfig small_config(int64_t max_positions = 1500) {
  ModelConfig config;
  config.audio.hidden_size = 12;
  config.audio.layers = 2;
  config.audio.heads = 3;
  config.audio.intermediate_size = 20;
  config.audio.mel_bins = 10;
  config.audio.max_positions = max_positions;
  config.audio.pool_step = 2;
  config.language.hidden_size = 14;
  return config;
}

// The encoder in double precision; keys and values of all chunks since the last reset are kept.
class NaiveEncoder {
 public:
  NaiveEncoder(const WeightsFile& weights, const AudioConfig& config)
      : w_(weights), c_(config), keys_(config.layers), values_(config.layers) {}

  // mel: of the implementation under test, which log_mel_test checks.
  naive::Matrix step(const at::Tensor& mel) {
    naive::Matrix x(mel.size(0), naive::Row(mel.size(1)));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t b = 0; b < x[t].size(); ++b) x[t][b] = mel[t][b].item<float>();
    }
    x = naive::map(naive::conv(w_, "apm.conv1", x), naive::gelu);
    x = naive::map(naive::conv(w_, "apm.conv2", x, 2), naive::gelu);
    if (static_cast<int64_t>(keys_[0].size() + x.size()) >= c_.max_positions) {
      for (int64_t i = 0; i < c_.layers; ++i) keys_[i].clear(), values_[i].clear();
    }
    const size_t begin = keys_[0].size();
    for (size_t t = 0; t < x.size(); ++t) {
      for (int64_t c = 0; c < c_.hidden_size; ++c) {
        x[t][c] +=
            w_["apm.embed_positions.weight"][static_cast<int64_t>(begin + t) * c_.hidden_size + c];
      }
    }
    for (int64_t i = 0; i < c_.layers; ++i) x = layer(i, x);
    return project(naive::layer_norm(w_, "apm.layer_norm", x, 1e-5));
  }

 private:
  naive::Matrix layer(int64_t i, const naive::Matrix& x) {
    const std::string p = "apm.layers." + std::to_string(i) + ".";
    const naive::Matrix y = naive::layer_norm(w_, p + "self_attn_layer_norm", x, 1e-5);
    const naive::Matrix q = naive::linear(w_, p + "self_attn.q_proj", y);
    for (const auto& row : naive::linear(w_, p + "self_attn.k_proj", y)) keys_[i].push_back(row);
    for (const auto& row : naive::linear(w_, p + "self_attn.v_proj", y)) values_[i].push_back(row);
    const size_t size = static_cast<size_t>(c_.hidden_size / c_.heads);
    naive::Matrix mixed(x.size(), naive::Row(c_.hidden_size, 0));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t h = 0; h < static_cast<size_t>(c_.heads) * size; h += size) {
        double sum = 0;
        naive::Row out(size, 0);
        for (size_t j = 0; j < keys_[i].size(); ++j) {
          double score = 0;
          for (size_t d = h; d < h + size; ++d) score += q[t][d] * keys_[i][j][d];
          const double weight = std::exp(score / std::sqrt(static_cast<double>(size)));
          sum += weight;
          for (size_t d = 0; d < size; ++d) out[d] += weight * values_[i][j][h + d];
        }
        for (size_t d = 0; d < size; ++d) mixed[t][h + d] = out[d] / sum;
      }
    }
    const naive::Matrix z = naive::add(x, naive::linear(w_, p + "self_attn.out_proj", mixed));
    const naive::Matrix up = naive::map(
        naive::linear(w_, p + "fc1", naive::layer_norm(w_, p + "final_layer_norm", z, 1e-5)),
        naive::gelu);
    return naive::add(z, naive::linear(w_, p + "fc2", up));
  }

  naive::Matrix project(const naive::Matrix& x) {
    const naive::Matrix y =
        naive::linear(w_, "audio_projection_layer.linear2",
                      naive::map(naive::linear(w_, "audio_projection_layer.linear1", x),
                                 [](double v) { return std::max(v, 0.0); }));
    naive::Matrix pooled;
    const size_t step = static_cast<size_t>(c_.pool_step);
    for (size_t t = 0; t + step <= y.size(); t += step) {
      naive::Row row(y[0].size(), 0);
      for (size_t s = 0; s < step; ++s) {
        for (size_t c = 0; c < row.size(); ++c) row[c] += y[t + s][c] / static_cast<double>(step);
      }
      pooled.push_back(row);
    }
    return pooled;
  }

  const WeightsFile& w_;
  AudioConfig c_;
  std::vector<naive::Matrix> keys_, values_;
};

std::vector<float> noise(size_t samples, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.4f, 0.4f);
  std::vector<float> pcm(samples);
  for (float& x : pcm) x = uniform(random);
  return pcm;
}

std::shared_ptr<const AudioEncoderModel> model_of(const ModelConfig& config,
                                                  const WeightsFile& weights,
                                                  at::ScalarType type = at::kFloat) {
  auto model = load_audio_encoder(*weights.open(), config, type, {}, CancelFlag());
  if (!model.ok()) throw std::runtime_error(model.error().message);
  return *model;
}

std::shared_ptr<const AudioEncoderModel> small_model(int64_t max_positions = 1500) {
  const ModelConfig config = small_config(max_positions);
  return model_of(config, encoder_weights(config));
}

std::unique_ptr<AudioEncoder> new_session(std::shared_ptr<const AudioEncoderModel> model) {
  auto session = new_audio_encoder(std::move(model));
  if (!session.ok()) throw std::runtime_error(session.error().message);
  return std::move(*session);
}

// The rows of a step; an undefined tensor if there are none.
at::Tensor step(AudioEncoder& session, const std::vector<float>& pcm) {
  auto rows = session.step(pcm, CancelFlag());
  if (!rows.ok()) throw std::runtime_error(rows.error().message);
  if (*rows == nullptr) return {};
  return *unwrap_tensor(**rows);
}

class AudioEncoderTest : public testing::Test {
 protected:
  StageScope scope_;
};

// --- formulas
// ---------------------------------------------------------------------------------------------------

void expect_naive(const ModelConfig& config, const std::vector<size_t>& chunks) {
  const WeightsFile weights = encoder_weights(config);
  const auto model = model_of(config, weights);
  NaiveEncoder naive(weights, config.audio);
  auto session = new_session(model);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto pcm = noise(chunks[i], static_cast<unsigned>(i + 1));
    const double error = naive::relative_error(step(*session, pcm), naive.step(model->mel(pcm)));
    EXPECT_LE(error, 1e-5) << "chunk " << i;
  }
}

TEST_F(AudioEncoderTest, ChunksEqualTheFormulas) {
  expect_naive(small_config(), {16000, 16000, 16000, 5130});
}

TEST_F(AudioEncoderTest, CacheIsDroppedAsSoonAsItWouldReachTheLastPosition) {
  expect_naive(small_config(101), {16000, 16000, 16000});  // 50 + 50 fit, the third starts anew
  expect_naive(small_config(100), {16000, 16000});         // 50 + 50 do not
}

TEST_F(AudioEncoderTest, ALongChunkIsEncodedInOnePiece) {
  expect_naive(small_config(), {70001, 16000});
}

TEST_F(AudioEncoderTest, PoolStepComesFromTheConfiguration) {
  ModelConfig config = small_config();
  config.audio.pool_step = 5;
  expect_naive(config, {16000, 15000});
}

// --- lengths
// ----------------------------------------------------------------------------------------------------

TEST_F(AudioEncoderTest, RowsOfEveryLength) {
  auto session = new_session(small_model());
  for (size_t samples : {0, 1, 160, 320})
    EXPECT_FALSE(step(*session, noise(samples)).defined()) << samples;
  const std::vector<std::pair<size_t, int64_t>> expected = {
      {321, 1},    {640, 1},    {960, 1},    {961, 2},    {1280, 2},  {15360, 24},
      {15361, 24}, {15680, 24}, {15681, 25}, {15999, 25}, {16000, 25}};
  for (const auto& [samples, rows] : expected) {
    session->reset();
    const at::Tensor tensor = step(*session, noise(samples));
    ASSERT_TRUE(tensor.defined()) << samples;
    EXPECT_EQ(tensor.sizes(), at::IntArrayRef({rows, 14})) << samples;
  }
}

TEST_F(AudioEncoderTest, TooShortChunksLeaveNoTrace) {
  const auto model = small_model();
  auto a = new_session(model), b = new_session(model);
  for (auto* session : {a.get(), b.get()}) step(*session, noise(16000));
  EXPECT_FALSE(step(*a, noise(320)).defined());
  EXPECT_FALSE(step(*a, {}).defined());
  EXPECT_TRUE(step(*a, noise(8000)).equal(step(*b, noise(8000))));
}

TEST_F(AudioEncoderTest, ThirtySecondsAreTheLongestChunk) {
  auto session = new_session(small_model());
  EXPECT_EQ(step(*session, noise(480000)).size(0), 750);
  auto longer = session->step(noise(480001), CancelFlag());
  ASSERT_FALSE(longer.ok());
  EXPECT_EQ(longer.error().code, ErrorCode::kFormat);
  EXPECT_NE(longer.error().message.find("480001"), std::string::npos) << longer.error().message;
}

TEST_F(AudioEncoderTest, FewerPositionsAllowShorterChunks) {
  const auto model = small_model(100);
  EXPECT_EQ(model->max_samples(), 32000);
  auto session = new_session(model);
  EXPECT_EQ(step(*session, noise(32000)).size(0), 50);
  EXPECT_FALSE(session->step(noise(32001), CancelFlag()).ok());
}

// --- state
// ------------------------------------------------------------------------------------------------------

TEST_F(AudioEncoderTest, MoreThanThirtySecondsStartAnewAtTheThirtiethChunk) {
  auto session = new_session(small_model());
  const auto pcm = noise(16000);
  const at::Tensor first = step(*session, pcm);
  at::Tensor second;
  for (int chunk = 2; chunk <= 29; ++chunk) {
    const at::Tensor rows = step(*session, pcm);
    if (chunk == 2) second = rows;
    EXPECT_FALSE(rows.equal(first)) << "chunk " << chunk;  // it sees those before it
  }
  EXPECT_TRUE(step(*session, pcm).equal(first));   // 1450 + 50 = 1500
  EXPECT_TRUE(step(*session, pcm).equal(second));  // and on from there
}

TEST_F(AudioEncoderTest, ResetStartsATurn) {
  auto session = new_session(small_model());
  const auto pcm = noise(16000);
  session->reset();  // before anything: nothing happens
  const at::Tensor first = step(*session, pcm);
  EXPECT_FALSE(step(*session, pcm).equal(first));
  session->reset();
  EXPECT_TRUE(step(*session, pcm).equal(first));
}

TEST_F(AudioEncoderTest, SessionsDoNotShareState) {
  const auto model = small_model();
  auto alone = new_session(model), a = new_session(model), b = new_session(model);
  for (unsigned seed = 1; seed < 4; ++seed) {
    const at::Tensor expected = step(*alone, noise(16000, seed));
    EXPECT_TRUE(step(*a, noise(16000, seed)).equal(expected));
    step(*b, noise(9000, seed + 10));
  }
}

TEST_F(AudioEncoderTest, ResultsStayAsTheyAreWhenMoreFollows) {
  auto session = new_session(small_model());
  const at::Tensor first = step(*session, noise(16000));
  const at::Tensor copy = first.clone();
  for (int i = 0; i < 3; ++i) step(*session, noise(16000, 7));
  EXPECT_TRUE(first.equal(copy));
}

TEST_F(AudioEncoderTest, ACancelledStepLeavesTheCacheAsItWas) {
  const auto model = small_model();
  auto a = new_session(model), b = new_session(model);
  for (auto* session : {a.get(), b.get()}) step(*session, noise(16000));
  CancelFlag cancel;
  cancel.set();
  auto cancelled = a->step(noise(16000, 3), cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(step(*a, noise(16000, 2)).equal(step(*b, noise(16000, 2))));
}

// --- input
// ------------------------------------------------------------------------------------------------------

TEST_F(AudioEncoderTest, NotANumberCountsAsSilence) {
  auto session = new_session(small_model());
  const at::Tensor silence = step(*session, std::vector<float>(16000, 0.f));
  session->reset();
  EXPECT_TRUE(step(*session, std::vector<float>(16000, std::nanf(""))).equal(silence));
  session->reset();
  EXPECT_TRUE(step(*session, std::vector<float>(16000, -INFINITY)).equal(silence));
}

TEST_F(AudioEncoderTest, ClippedAndAbsurdAudioStaysFinite) {
  auto session = new_session(small_model());
  auto pcm = noise(16000);
  for (float& x : pcm) x = x > 0 ? 1.f : -1.f;
  EXPECT_TRUE(step(*session, pcm).isfinite().all().item<bool>());
  for (float& x : pcm) x *= std::numeric_limits<float>::max();
  EXPECT_TRUE(step(*session, pcm).isfinite().all().item<bool>());
  EXPECT_TRUE(step(*session, noise(16000)).isfinite().all().item<bool>());
}

TEST_F(AudioEncoderTest, BFloat16StaysNearFloat32) {
  const ModelConfig config = small_config();
  const WeightsFile weights = encoder_weights(config);
  auto exact = new_session(model_of(config, weights));
  auto coarse = new_session(model_of(config, weights, at::kBFloat16));
  for (unsigned seed = 1; seed < 4; ++seed) {
    const at::Tensor a = step(*exact, noise(16000, seed)), b = step(*coarse, noise(16000, seed));
    ASSERT_EQ(b.scalar_type(), at::kBFloat16);
    const double error = a.sub(b).abs().max().item<double>() / a.abs().max().item<double>();
    EXPECT_LE(error, 0.05);
    EXPECT_GT(error, 1e-4);
  }
}

// --- checkpoints that are not what they should be
// ---------------------------------------------------------------

Error load_error(const ModelConfig& config, const WeightsFile& weights) {
  auto model = load_audio_encoder(*weights.open(), config, at::kFloat, {}, CancelFlag());
  return model.ok() ? Error{ErrorCode::kFailed, "loaded", ""} : model.error();
}

TEST_F(AudioEncoderTest, EveryMissingTensorIsNamed) {
  const ModelConfig config = small_config();
  const WeightsFile weights = encoder_weights(config);
  for (const auto& [name, values] : weights.tensors()) {
    WeightsFile broken = weights;
    broken.remove(name);
    const Error error = load_error(config, broken);
    EXPECT_EQ(error.code, ErrorCode::kCorrupt) << name;
    EXPECT_NE(error.message.find(name), std::string::npos) << name << ": " << error.message;
  }
}

TEST_F(AudioEncoderTest, EveryTensorOfAnotherShapeIsRefused) {
  const ModelConfig config = small_config();
  const WeightsFile weights = encoder_weights(config);
  for (const auto& [name, values] : weights.tensors()) {
    for (size_t d = 0; d < values.shape.size(); ++d) {
      for (int64_t change : {-1, 1}) {
        WeightsFile broken = weights;
        auto shape = values.shape;
        shape[d] += change;
        broken.add(name, shape, 1);
        const Error error = load_error(config, broken);
        EXPECT_EQ(error.code, ErrorCode::kCorrupt)
            << name << " dimension " << d << ": " << error.message;
      }
    }
    WeightsFile broken = weights;
    broken[name].shape.push_back(1);
    EXPECT_EQ(load_error(config, broken).code, ErrorCode::kCorrupt) << name;
  }
}

TEST_F(AudioEncoderTest, MoreLayersThanConfiguredAreRefused) {
  ModelConfig config = small_config();
  const WeightsFile weights = encoder_weights(config);
  config.audio.layers = 1;
  const Error error = load_error(config, weights);
  EXPECT_EQ(error.code, ErrorCode::kCorrupt);
  EXPECT_NE(error.message.find("encoder_layers"), std::string::npos) << error.message;
}

TEST_F(AudioEncoderTest, NonsenseInTheConfigurationIsRefused) {
  const ModelConfig good = small_config();
  const WeightsFile weights = encoder_weights(good);
  const std::vector<std::pair<int64_t AudioConfig::*, int64_t>> bad = {
      {&AudioConfig::heads, 0},
      {&AudioConfig::heads, 5},
      {&AudioConfig::hidden_size, 0},
      {&AudioConfig::layers, 0},
      {&AudioConfig::pool_step, 0},
      {&AudioConfig::mel_bins, 0},
      {&AudioConfig::mel_bins, 1000},
      {&AudioConfig::max_positions, -1},
      {&AudioConfig::intermediate_size, -4}};
  for (const auto& [field, value] : bad) {
    ModelConfig config = good;
    config.audio.*field = value;
    EXPECT_EQ(load_error(config, weights).code, ErrorCode::kCorrupt) << value;
  }
}

TEST_F(AudioEncoderTest, LoadingReportsProgressAndCanBeCancelled) {
  const ModelConfig config = small_config();
  const auto checkpoint = encoder_weights(config).open();
  std::vector<int> percents;
  CancelFlag cancel;
  const auto note = [&](int percent, const std::string& what) {
    EXPECT_FALSE(what.empty());
    percents.push_back(percent);
  };
  ASSERT_TRUE(load_audio_encoder(*checkpoint, config, at::kFloat, note, cancel).ok());
  ASSERT_GE(percents.size(), 3u);
  EXPECT_TRUE(std::is_sorted(percents.begin(), percents.end()));
  EXPECT_EQ(percents.back(), 100);
  const auto stop = [&](int, const std::string&) { cancel.set(); };
  auto stopped = load_audio_encoder(*checkpoint, config, at::kFloat, stop, cancel);
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
}

}  // namespace
}  // namespace minicpmo
