// The shared decoder against a plain float64 implementation that knows nothing of caches, fusion or
// blocks.
#include "engine/transformer.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <functional>
#include <map>
#include <random>

#include "test_files.h"

namespace minicpmo {
namespace {

using namespace minicpmo::testing;

using Matrix = std::vector<std::vector<double>>;

struct Weight {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using Weights = std::map<std::string, Weight>;

Weights random_weights(const DecoderConfig& c, uint32_t seed) {
  std::mt19937 random(seed);
  Weights weights;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float scale,
                       float mean) {
    std::normal_distribution<float> normal(mean, scale);
    size_t n = 1;
    for (int64_t d : shape) n *= static_cast<size_t>(d);
    Weight w{std::move(shape), std::vector<float>(n)};
    for (float& x : w.values) x = normal(random);
    weights["m." + name] = std::move(w);
  };
  const int64_t width = c.hidden_size, kv = width / c.heads * c.kv_heads, ffn = c.intermediate_size;
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string base = "layers." + std::to_string(i) + ".";
    add(base + "input_layernorm.weight", {width}, 0.2f, 1);
    add(base + "post_attention_layernorm.weight", {width}, 0.2f, 1);
    add(base + "self_attn.q_proj.weight", {width, width}, 0.3f, 0);
    add(base + "self_attn.k_proj.weight", {kv, width}, 0.3f, 0);
    add(base + "self_attn.v_proj.weight", {kv, width}, 0.3f, 0);
    add(base + "self_attn.o_proj.weight", {width, width}, 0.2f, 0);
    if (c.qkv_bias) {
      add(base + "self_attn.q_proj.bias", {width}, 0.5f, 0);
      add(base + "self_attn.k_proj.bias", {kv}, 0.5f, 0);
      add(base + "self_attn.v_proj.bias", {kv}, 0.5f, 0);
    }
    add(base + "mlp.gate_proj.weight", {ffn, width}, 0.2f, 0);
    add(base + "mlp.up_proj.weight", {ffn, width}, 0.2f, 0);
    add(base + "mlp.down_proj.weight", {width, ffn}, 0.2f, 0);
  }
  add("norm.weight", {width}, 0.2f, 1);
  return weights;
}

// y = W x + b for each row, in float64.
Matrix linear(const Matrix& x, const Weights& w, const std::string& name) {
  const Weight& weight = w.at(name + ".weight");
  const auto bias = w.find(name + ".bias");
  Matrix y(x.size(), std::vector<double>(weight.shape[0]));
  for (size_t r = 0; r < x.size(); ++r) {
    for (int64_t o = 0; o < weight.shape[0]; ++o) {
      double sum = bias == w.end() ? 0 : bias->second.values[o];
      for (size_t i = 0; i < x[r].size(); ++i) sum += weight.values[o * x[r].size() + i] * x[r][i];
      y[r][o] = sum;
    }
  }
  return y;
}

Matrix norm(const Matrix& x, const Weight& w, double eps) {
  Matrix y = x;
  for (auto& row : y) {
    double squares = 0;
    for (double v : row) squares += v * v;
    const double scale = 1 / std::sqrt(squares / row.size() + eps);
    for (size_t i = 0; i < row.size(); ++i) row[i] *= scale * w.values[i];
  }
  return y;
}

// Pairs (i, i + d/2) of each head turned by position * theta^(-2i/d).
void rope(Matrix& x, int64_t begin, int64_t d, double theta) {
  for (size_t r = 0; r < x.size(); ++r) {
    for (size_t base = 0; base < x[r].size(); base += d) {
      for (int64_t i = 0; i < d / 2; ++i) {
        const double angle = (begin + static_cast<double>(r)) * std::pow(theta, -2.0 * i / d);
        double &a = x[r][base + i], &b = x[r][base + i + d / 2];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
  }
}

// Rows of keys and values per layer; rows may have been put there before.
using PlainCache = std::vector<std::pair<Matrix, Matrix>>;
// Whether the query at row r of the call may see key k, as an addend.
using PlainMask = std::function<double(size_t r, size_t k)>;

Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, const DecoderConfig& c,
                 const PlainMask& mask) {
  const int64_t d = c.hidden_size / c.heads;
  Matrix out(q.size(), std::vector<double>(c.hidden_size));
  for (size_t r = 0; r < q.size(); ++r) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads);
      std::vector<double> weight(k.size());
      double sum = 0;
      for (size_t j = 0; j < k.size(); ++j) {
        double score = 0;
        for (int64_t i = 0; i < d; ++i) score += q[r][h * d + i] * k[j][kv * d + i];
        sum += weight[j] = std::exp(score / std::sqrt(static_cast<double>(d)) + mask(r, j));
      }
      for (size_t j = 0; j < k.size(); ++j) {
        for (int64_t i = 0; i < d; ++i) out[r][h * d + i] += weight[j] / sum * v[j][kv * d + i];
      }
    }
  }
  return out;
}

Matrix plain_forward(const Weights& w, const DecoderConfig& c, Matrix x, int64_t begin,
                     PlainCache& cache, const PlainMask& mask) {
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string base = "m.layers." + std::to_string(l) + ".";
    const Matrix y = norm(x, w.at(base + "input_layernorm.weight"), c.rms_norm_eps);
    Matrix q = linear(y, w, base + "self_attn.q_proj"), k = linear(y, w, base + "self_attn.k_proj");
    const Matrix v = linear(y, w, base + "self_attn.v_proj");
    rope(q, begin, c.hidden_size / c.heads, c.rope_theta);
    rope(k, begin, c.hidden_size / c.heads, c.rope_theta);
    auto& [keys, values] = cache[l];
    keys.resize(begin);
    values.resize(begin);
    keys.insert(keys.end(), k.begin(), k.end());
    values.insert(values.end(), v.begin(), v.end());
    const Matrix attended =
        linear(attention(q, keys, values, c, mask), w, base + "self_attn.o_proj");
    for (size_t r = 0; r < x.size(); ++r) {
      for (size_t i = 0; i < x[r].size(); ++i) x[r][i] += attended[r][i];
    }
    const Matrix z = norm(x, w.at(base + "post_attention_layernorm.weight"), c.rms_norm_eps);
    Matrix gate = linear(z, w, base + "mlp.gate_proj");
    const Matrix up = linear(z, w, base + "mlp.up_proj");
    for (size_t r = 0; r < gate.size(); ++r) {
      for (size_t i = 0; i < gate[r].size(); ++i)
        gate[r][i] *= up[r][i] / (1 + std::exp(-gate[r][i]));
    }
    const Matrix down = linear(gate, w, base + "mlp.down_proj");
    for (size_t r = 0; r < x.size(); ++r) {
      for (size_t i = 0; i < x[r].size(); ++i) x[r][i] += down[r][i];
    }
  }
  return norm(x, w.at("m.norm.weight"), c.rms_norm_eps);
}

PlainMask causal(int64_t begin) {
  return [begin](size_t r, size_t k) { return k <= begin + r ? 0.0 : -INFINITY; };
}

class TransformerTest : public ::testing::Test {
 protected:
  TransformerTest() {
    config_.hidden_size = 48;
    config_.layers = 3;
    config_.heads = 6;
    config_.kv_heads = 2;
    config_.intermediate_size = 72;
    config_.max_positions = 1024;
    config_.rope_theta = 1e4;
    config_.qkv_bias = true;
  }

  void save(const Weights& weights) {
    Float32File file;
    for (const auto& [name, w] : weights) file.add(name, w.shape, w.values);
    write_file(dir_ / "model.safetensors", file.bytes());
  }
  Result<Transformer> load(at::ScalarType type = at::kFloat) {
    auto checkpoint = Checkpoint::open(dir_.path());
    if (!checkpoint.ok()) return checkpoint.error();
    return Transformer::load(**checkpoint, "m.", config_, type);
  }
  Transformer make(at::ScalarType type = at::kFloat) {
    weights_ = random_weights(config_, 5);
    save(weights_);
    auto model = load(type);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(model).value();
  }
  Matrix random_input(size_t rows, uint32_t seed = 11) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Matrix x(rows, std::vector<double>(config_.hidden_size));
    for (auto& row : x) {
      for (double& v : row) v = normal(random);
    }
    return x;
  }
  static at::Tensor tensor(const Matrix& x) {
    std::vector<float> flat;
    for (const auto& row : x) flat.insert(flat.end(), row.begin(), row.end());
    const auto rows = static_cast<int64_t>(x.size());
    return at::from_blob(flat.data(), {rows, static_cast<int64_t>(flat.size()) / rows}, at::kFloat)
        .clone();
  }
  // Largest difference relative to the largest value.
  static double difference(const at::Tensor& ours, const Matrix& plain) {
    const at::Tensor y = ours.to(at::kFloat).contiguous();
    double error = 0, scale = 0;
    for (size_t r = 0; r < plain.size(); ++r) {
      for (size_t i = 0; i < plain[r].size(); ++i) {
        const double value = y.const_data_ptr<float>()[r * plain[r].size() + i];
        error = std::max(error, std::isfinite(value) ? std::abs(value - plain[r][i]) : 1e9);
        scale = std::max(scale, std::abs(plain[r][i]));
      }
    }
    return error / scale;
  }
  static double difference(const at::Tensor& a, const at::Tensor& b) {
    return (a.to(at::kFloat).sub(b.to(at::kFloat))).abs().max().item<float>() /
           b.abs().max().item<float>();
  }
  PlainCache plain_cache() const { return PlainCache(config_.layers); }
  // Rows from the beginning on.
  void expect_plain(size_t rows, int64_t capacity) {
    const Transformer model = make();
    KvCache cache(config_, capacity, at::kFloat);
    PlainCache plain = plain_cache();
    const Matrix x = random_input(rows);
    EXPECT_LT(difference(model.forward(tensor(x), 0, cache),
                         plain_forward(weights_, config_, x, 0, plain, causal(0))),
              1e-5);
    EXPECT_EQ(cache.length(), 0);  // the caller's to change
  }

  TempDir dir_;
  DecoderConfig config_;
  Weights weights_;
  c10::InferenceMode inference_;
};

TEST_F(TransformerTest, EqualsThePlainImplementation) {
  expect_plain(17, 40);
}

TEST_F(TransformerTest, EqualsThePlainImplementationWithoutGroupsAndBiases) {
  config_.kv_heads = config_.heads;
  config_.qkv_bias = false;
  expect_plain(9, 9);
}

TEST_F(TransformerTest, OneKeyHeadForAll) {
  config_.kv_heads = 1;
  expect_plain(9, 9);
}

TEST_F(TransformerTest, ContinuesAtLaterPositions) {
  const Transformer model = make();
  KvCache cache(config_, 64, at::kFloat);
  PlainCache plain = plain_cache();
  int64_t at = 0;
  for (const size_t rows : {5, 1, 1, 12, 3, 1}) {
    const Matrix x = random_input(rows, static_cast<uint32_t>(at));
    const auto expected = plain_forward(weights_, config_, x, at, plain, causal(at));
    EXPECT_LT(difference(model.forward(tensor(x), at, cache), expected), 1e-5) << "at " << at;
    at += static_cast<int64_t>(rows);
  }
}

TEST_F(TransformerTest, StepByStepEqualsAtOnce) {
  const Transformer model = make();
  KvCache whole(config_, 30, at::kFloat), steps(config_, 30, at::kFloat);
  const at::Tensor x = tensor(random_input(30));
  const at::Tensor y = model.forward(x, 0, whole);
  for (int64_t i = 0; i < 30; ++i) {
    const at::Tensor row = model.forward(x.narrow(0, i, 1), i, steps);
    EXPECT_LT(difference(row, y.narrow(0, i, 1)), 1e-5) << i;
  }
  for (int64_t l = 0; l < config_.layers; ++l) {
    EXPECT_LT(difference(steps.keys(l), whole.keys(l)), 1e-5);
    EXPECT_LT(difference(steps.values(l), whole.values(l)), 1e-5);
  }
}

TEST_F(TransformerTest, ALongTextEqualsItsPieces) {
  config_.layers = 2;
  const Transformer model = make();
  KvCache whole(config_, 700, at::kFloat), pieces(config_, 700, at::kFloat);
  const at::Tensor x = tensor(random_input(700));
  const at::Tensor y = model.forward(x, 0, whole);
  for (int64_t at = 0; at < 700; at += 100) {
    EXPECT_LT(difference(model.forward(x.narrow(0, at, 100), at, pieces), y.narrow(0, at, 100)),
              1e-5)
        << at;
  }
}

TEST_F(TransformerTest, LaterRowsDoNotChangeEarlierOnes) {
  const Transformer model = make();
  KvCache a(config_, 20, at::kFloat), b(config_, 20, at::kFloat);
  Matrix x = random_input(20);
  const at::Tensor before = model.forward(tensor(x), 0, a);
  for (double& v : x[19]) v += 1;
  const at::Tensor after = model.forward(tensor(x), 0, b);
  EXPECT_EQ(difference(after.narrow(0, 0, 19), before.narrow(0, 0, 19)), 0);
  EXPECT_GT(difference(after.narrow(0, 19, 1), before.narrow(0, 19, 1)), 1e-3);
}

TEST_F(TransformerTest, OneMaskRowServesAllQueriesAndReplacesCausality) {
  const Transformer model = make();
  KvCache cache(config_, 40, at::kFloat);
  PlainCache plain = plain_cache();
  const Matrix first = random_input(10), second = random_input(6, 3);
  model.forward(tensor(first), 0, cache);
  plain_forward(weights_, config_, first, 0, plain, causal(0));
  at::Tensor mask = at::zeros({1, 16});
  mask.narrow(1, 3, 4).fill_(-std::numeric_limits<float>::max());
  const PlainMask same = [](size_t, size_t k) { return k >= 3 && k < 7 ? -INFINITY : 0.0; };
  const auto expected = plain_forward(weights_, config_, second, 10, plain, same);
  EXPECT_LT(difference(model.forward(tensor(second), 10, cache, mask), expected), 1e-5);
}

TEST_F(TransformerTest, AMaskRowForEachQuery) {
  const Transformer model = make();
  KvCache cache(config_, 8, at::kFloat);
  PlainCache plain = plain_cache();
  const Matrix x = random_input(8);
  at::Tensor mask = at::zeros({8, 8});
  std::mt19937 random(2);
  for (int i = 0; i < 64; ++i) {
    mask.data_ptr<float>()[i] = i % 9 == 0 ? 0 : std::normal_distribution<float>(0, 2)(random);
  }
  const PlainMask same = [&](size_t r, size_t k) {
    return mask.const_data_ptr<float>()[r * 8 + k];
  };
  const auto expected = plain_forward(weights_, config_, x, 0, plain, same);
  EXPECT_LT(difference(model.forward(tensor(x), 0, cache, mask), expected), 1e-5);
}

TEST_F(TransformerTest, AMaskedSingleStepSeesOnlyWhatItMay) {
  const Transformer model = make();
  KvCache cache(config_, 12, at::kFloat);
  PlainCache plain = plain_cache();
  const Matrix text = random_input(5), step = random_input(1, 77);
  model.forward(tensor(text), 0, cache);
  plain_forward(weights_, config_, text, 0, plain, causal(0));
  at::Tensor mask = at::zeros({1, 6});
  mask.narrow(1, 5, 1).fill_(-std::numeric_limits<float>::max());  // not even itself
  const PlainMask same = [](size_t, size_t k) { return k == 5 ? -INFINITY : 0.0; };
  const auto expected = plain_forward(weights_, config_, step, 5, plain, same);
  EXPECT_LT(difference(model.forward(tensor(step), 5, cache, mask), expected), 1e-5);
}

// The speech model's cache: zero rows between the text and the codes, which take weight when they
// are visible.
TEST_F(TransformerTest, VisibleZeroRowsTakeWeight) {
  const Transformer model = make();
  KvCache cache(config_, 40, at::kFloat, 20);
  cache.set_length(20);
  PlainCache plain = plain_cache();
  const Matrix text = random_input(6), step = random_input(1, 5);
  model.forward(tensor(text), 0, cache);
  plain_forward(weights_, config_, text, 0, plain, causal(0));
  const int64_t kv = config_.hidden_size / config_.heads * config_.kv_heads;
  for (auto& [keys, values] : plain) {
    keys.resize(20, std::vector<double>(kv));
    values.resize(20, std::vector<double>(kv));
  }
  at::Tensor mask = at::zeros({1, 21});
  mask.narrow(1, 12, 8).fill_(-std::numeric_limits<float>::max());
  const PlainMask same = [](size_t, size_t k) { return k >= 12 && k < 20 ? -INFINITY : 0.0; };
  const auto expected = plain_forward(weights_, config_, step, 20, plain, same);
  EXPECT_LT(difference(model.forward(tensor(step), 20, cache, mask), expected), 1e-5);
}

TEST_F(TransformerTest, PositionsFarOutStayExact) {
  config_.layers = 1;
  config_.rope_theta = 1e6;
  config_.max_positions = 9000;
  const Transformer model = make();
  KvCache cache(config_, 8200, at::kFloat, 8190);
  PlainCache plain = plain_cache();
  const int64_t kv = config_.hidden_size / config_.heads * config_.kv_heads;
  plain[0].first.assign(8190, std::vector<double>(kv));
  plain[0].second.assign(8190, std::vector<double>(kv));
  const Matrix x = random_input(4);
  const auto expected = plain_forward(weights_, config_, x, 8190, plain, causal(8190));
  // The angles are float32, as in the reference: 8190 has an error of 5e-4 rad.
  EXPECT_LT(difference(model.forward(tensor(x), 8190, cache), expected), 2e-3);
}

TEST_F(TransformerTest, Bfloat16StaysCloseToFloat32) {
  const Transformer wide = make(), narrow = make(at::kBFloat16);
  KvCache a(config_, 24, at::kFloat), b(config_, 24, at::kBFloat16);
  const at::Tensor x = tensor(random_input(24));
  const at::Tensor whole = narrow.forward(x, 0, b);
  EXPECT_EQ(whole.scalar_type(), at::kBFloat16);
  EXPECT_LT(difference(whole, wide.forward(x, 0, a)), 0.08);
  KvCache steps(config_, 24, at::kBFloat16);
  for (int64_t i = 0; i < 24; ++i) {
    EXPECT_LT(difference(narrow.forward(x.narrow(0, i, 1), i, steps), whole.narrow(0, i, 1)), 0.08)
        << i;
  }
}

TEST_F(TransformerTest, HugeMasksDoNotOverflowInBfloat16) {
  const Transformer model = make(at::kBFloat16);
  KvCache cache(config_, 8, at::kBFloat16);
  at::Tensor mask = at::zeros({1, 4});
  mask.narrow(1, 0, 3).fill_(-std::numeric_limits<float>::max());
  const at::Tensor y = model.forward(tensor(random_input(4)), 0, cache, mask);
  EXPECT_TRUE(y.isfinite().all().item<bool>());
}

TEST_F(TransformerTest, RefusesPositionsThatDoNotFit) {
  config_.max_positions = 16;
  const Transformer model = make();
  KvCache cache(config_, 12, at::kFloat), large(config_, 32, at::kFloat);
  const at::Tensor x = tensor(random_input(4));
  EXPECT_NO_THROW(model.forward(x, 8, cache));
  EXPECT_THROW(model.forward(x, 9, cache), c10::Error);
  EXPECT_THROW(model.forward(x, -1, cache), c10::Error);
  EXPECT_NO_THROW(model.forward(x, 12, large));
  EXPECT_THROW(model.forward(x, 13, large), c10::Error);
}

TEST_F(TransformerTest, RefusesMasksOfTheWrongSize) {
  const Transformer model = make();
  KvCache cache(config_, 32, at::kFloat);
  for (const int64_t rows : {1, 4}) {
    const at::Tensor x = tensor(random_input(static_cast<size_t>(rows)));
    EXPECT_THROW(model.forward(x, 2, cache, at::zeros({1, rows + 1})), c10::Error);
    EXPECT_THROW(model.forward(x, 2, cache, at::zeros({1, rows + 3})), c10::Error);
    EXPECT_THROW(model.forward(x, 2, cache, at::zeros({rows + 1, rows + 2})), c10::Error);
  }
}

TEST_F(TransformerTest, LoadNamesTheTensorAtFault) {
  make();
  Weights broken = weights_;
  broken.erase("m.layers.1.mlp.up_proj.weight");
  save(broken);
  EXPECT_TRUE(fails(load(), ErrorCode::kCorrupt, {"m.layers.1.mlp.up_proj.weight"}));
  broken = weights_;
  broken["m.layers.0.self_attn.k_proj.weight"] = {{48, 16}, std::vector<float>(48 * 16)};
  save(broken);
  EXPECT_TRUE(fails(load(), ErrorCode::kCorrupt,
                    {"m.layers.0.self_attn.k_proj.weight", "(48, 16)", "(16, 48)"}));
  save(weights_);
  config_.layers = 4;
  EXPECT_TRUE(fails(load(), ErrorCode::kCorrupt, {"3 layers", "4"}));
}

TEST(KvCacheTest, LengthIsBoundedAndZeroRowsAreZero) {
  DecoderConfig config;
  config.hidden_size = 8;
  config.heads = 2;
  config.kv_heads = 1;
  config.layers = 2;
  KvCache cache(config, 10, at::kBFloat16, 6);
  EXPECT_EQ(cache.capacity(), 10);
  EXPECT_EQ(cache.length(), 0);
  cache.set_length(10);
  cache.set_length(0);
  EXPECT_THROW(cache.set_length(11), c10::Error);
  EXPECT_THROW(cache.set_length(-1), c10::Error);
  EXPECT_THROW(KvCache(config, 4, at::kFloat, 5), c10::Error);
  EXPECT_EQ(cache.keys(1).sizes(), (std::vector<int64_t>{1, 10, 4}));
  EXPECT_EQ(cache.keys(1).scalar_type(), at::kBFloat16);
  EXPECT_TRUE(cache.keys(1).narrow(1, 0, 6).eq(0).all().item<bool>());
  EXPECT_TRUE(cache.values(0).narrow(1, 0, 6).eq(0).all().item<bool>());
}

}  // namespace
}  // namespace minicpmo
