// The session: windows, cross-fades, what is emitted when.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "engine/stage_scope.h"
#include "small_vocoder.h"

namespace minicpmo {
namespace {

using Codes = std::vector<int32_t>;
using Pcm = std::vector<float>;

template <class T>
TensorPtr tensor_of(DataType type, const std::vector<T>& values, int64_t columns = 4) {
  const auto bytes = std::as_bytes(std::span(values));
  return std::make_shared<HostTensor>(
      type, std::vector<int64_t>{static_cast<int64_t>(values.size()) / columns, columns},
      std::vector<std::byte>(bytes.begin(), bytes.end()));
}

Pcm pcm_of(const Result<TensorPtr>& result) {
  if (!result.ok()) throw std::runtime_error(result.error().message);
  const Tensor& tensor = **result;
  EXPECT_EQ(tensor.type(), DataType::kFloat32);
  EXPECT_EQ(tensor.dims().size(), 1u);
  const auto bytes = *tensor.host_bytes();
  Pcm pcm(bytes.size() / sizeof(float));
  if (!pcm.empty()) std::memcpy(pcm.data(), bytes.data(), bytes.size());
  return pcm;
}

void append(Pcm& pcm, const Pcm& more) {
  pcm.insert(pcm.end(), more.begin(), more.end());
}

class VocoderTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = small_vocoder(); }
  static void TearDownTestSuite() { model_.reset(); }

  std::unique_ptr<Vocoder> session(Compatibility compatibility = Compatibility::kNone) const {
    auto vocoder = new_vocoder(model_, VocoderOptions{compatibility});
    if (!vocoder.ok()) throw std::runtime_error(vocoder.error().message);
    return std::move(*vocoder);
  }
  static Pcm step(Vocoder& vocoder, const Codes& codes, bool segment_start = false) {
    return pcm_of(vocoder.step(*tensor_of(DataType::kInt32, codes), segment_start, CancelFlag()));
  }
  // Rows [begin, end) decoded as one window.
  static Pcm window(const Codes& codes, int64_t begin, int64_t end) {
    StageScope scope;
    const at::Tensor wav =
        model_->decode(std::span(codes).subspan(4 * begin, 4 * (end - begin))).wav;
    return {wav.const_data_ptr<float>(), wav.const_data_ptr<float>() + wav.numel()};
  }
  static Codes rows(const Codes& codes, int64_t begin, int64_t end) {
    return {codes.begin() + 4 * begin, codes.begin() + 4 * end};
  }
  // What upstream makes of calls that end at these rows: it holds a whole window back. joins: calls
  // that start a continuation segment, upstream's way.
  static Pcm upstream(const Codes& codes, const std::vector<int64_t>& ends,
                      const std::vector<size_t>& joins = {}) {
    Pcm out, held;
    int64_t begin = 0;
    for (size_t call = 0; call < ends.size(); ++call) {
      const Pcm wav = window(codes, std::max<int64_t>(begin - 4, 0), ends[call]);
      const bool join = std::find(joins.begin(), joins.end(), call) != joins.end();
      const size_t n = join ? 0 : std::min({size_t{2048}, held.size(), wav.size()});
      append(out, Pcm(held.begin(), held.end() - static_cast<std::ptrdiff_t>(n)));
      for (size_t i = 0; i < n; ++i) {
        const float old = held[held.size() - n + i];
        out.push_back((old * static_cast<float>(n - i) + wav[i] * static_cast<float>(i + 1)) /
                      static_cast<float>(n + 1));
      }
      held.assign(wav.begin() + static_cast<std::ptrdiff_t>(n), wav.end());
      begin = ends[call];
    }
    append(out, held);
    return out;
  }
  // The whole answer of a session whose calls end at these rows.
  static Pcm stream(Vocoder& vocoder, const Codes& codes, const std::vector<int64_t>& ends,
                    const std::vector<size_t>& joins = {}) {
    Pcm out;
    int64_t begin = 0;
    for (size_t call = 0; call < ends.size(); ++call) {
      const bool join = std::find(joins.begin(), joins.end(), call) != joins.end();
      append(out, step(vocoder, rows(codes, begin, ends[call]), join));
      begin = ends[call];
    }
    append(out, pcm_of(vocoder.flush()));
    return out;
  }

  static std::shared_ptr<const VocoderModel> model_;
};
std::shared_ptr<const VocoderModel> VocoderTest::model_;

TEST_F(VocoderTest, EmitsAllButTheCrossFadeAtOnce) {
  auto vocoder = session();
  EXPECT_EQ(step(*vocoder, some_codes(25)).size(), 10752u);
  EXPECT_EQ(step(*vocoder, some_codes(25, 2)).size(), 12800u);
  EXPECT_EQ(step(*vocoder, some_codes(25, 3)).size(), 12800u);
  EXPECT_EQ(step(*vocoder, some_codes(17, 4)).size(), 17 * 512u);
  EXPECT_EQ(pcm_of(vocoder->flush()).size(), 2048u);
}

TEST_F(VocoderTest, FirstSamplesAreThoseOfTheFirstWindow) {
  const Codes codes = some_codes(25);
  const Pcm wav = window(codes, 0, 25);
  auto vocoder = session();
  EXPECT_EQ(step(*vocoder, codes), Pcm(wav.begin(), wav.end() - 2048));
  EXPECT_EQ(pcm_of(vocoder->flush()), Pcm(wav.end() - 2048, wav.end()));
}

TEST_F(VocoderTest, StitchedStreamIsUpstreamsBitForBit) {
  const Codes codes = some_codes(92);
  const std::vector<int64_t> ends = {25, 50, 75, 92};
  EXPECT_EQ(stream(*session(), codes, ends), upstream(codes, ends));
  EXPECT_EQ(stream(*session(), codes, {10, 14, 39, 45}), upstream(codes, {10, 14, 39, 45}));
}

TEST_F(VocoderTest, CrossFadeFollowsItsFormula) {
  const Codes codes = some_codes(50);
  const Pcm first = window(codes, 0, 25), second = window(codes, 21, 50);
  auto vocoder = session();
  step(*vocoder, rows(codes, 0, 25));
  const Pcm joined = step(*vocoder, rows(codes, 25, 50));
  for (size_t i = 0; i < 2048; ++i) {
    const double expected = (first[10752 + i] * (2048.0 - static_cast<double>(i)) +
                             second[i] * (static_cast<double>(i) + 1)) /
                            2049;
    ASSERT_NEAR(joined[i], expected, 1e-6) << i;
  }
  EXPECT_EQ(Pcm(joined.begin() + 2048, joined.end()),
            Pcm(second.begin() + 2048, second.end() - 2048));
}

class VocoderChunks : public VocoderTest, public testing::WithParamInterface<int64_t> {};

TEST_P(VocoderChunks, EverySizeGivesEverySampleOnceAndInPlace) {
  const int64_t size = GetParam();
  const Codes codes = some_codes(53);
  auto vocoder = session();
  Pcm out;
  for (int64_t begin = 0; begin < 53; begin += size) {
    const int64_t end = std::min<int64_t>(begin + size, 53);
    append(out, step(*vocoder, rows(codes, begin, end)));
    EXPECT_EQ(out.size(),
              static_cast<size_t>(512 * std::max<int64_t>(0, end - std::min<int64_t>(end, 4))));
  }
  append(out, pcm_of(vocoder->flush()));
  ASSERT_EQ(out.size(), 512u * 53);
  // Beyond the cross-fades each sample is that of the window that its row was new in.
  for (int64_t begin = size; begin + size <= 53 && size > 4; begin += size) {
    const Pcm wav = window(codes, begin - 4, begin + size);
    const auto at = out.begin() + 512 * begin;
    EXPECT_TRUE(std::equal(at, at + 512 * (size - 4), wav.begin() + 2048)) << "rows from " << begin;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, VocoderChunks, testing::Range<int64_t>(1, 26));

TEST_F(VocoderTest, ShortFirstChunksAreFadedInPlace) {
  const Codes codes = some_codes(5);
  auto vocoder = session();
  EXPECT_EQ(step(*vocoder, rows(codes, 0, 1)).size(), 0u);  // all of it may still be faded
  EXPECT_EQ(step(*vocoder, rows(codes, 1, 2)).size(), 0u);
  const Pcm out = step(*vocoder, rows(codes, 2, 5));
  ASSERT_EQ(out.size(), 512u);
  // Row 0 was decoded three times: alone, with row 1, and with all; the second cross-fade is over
  // two rows.
  const Pcm a = window(codes, 0, 1), b = window(codes, 0, 2), c = window(codes, 0, 5);
  for (size_t i = 0; i < 512; ++i) {
    const float k = static_cast<float>(i);
    const float ab = (a[i] * (512 - k) + b[i] * (k + 1)) / 513;
    ASSERT_FLOAT_EQ(out[i], (ab * (1024 - k) + c[i] * (k + 1)) / 1025) << i;
  }
  EXPECT_EQ(pcm_of(vocoder->flush()).size(), 2048u);
}

TEST_F(VocoderTest, AStepWithoutRowsChangesNothing) {
  const Codes codes = some_codes(50);
  auto a = session(), b = session();
  EXPECT_TRUE(step(*a, {}).empty());  // before anything
  for (auto* vocoder : {a.get(), b.get()}) step(*vocoder, rows(codes, 0, 25));
  EXPECT_TRUE(step(*a, {}).empty());
  EXPECT_EQ(step(*a, rows(codes, 25, 50)), step(*b, rows(codes, 25, 50)));
  EXPECT_TRUE(step(*a, {}).empty());
  EXPECT_EQ(pcm_of(a->flush()), pcm_of(b->flush()));
}

// --- segments
// ---------------------------------------------------------------------------------------------------

TEST_F(VocoderTest, ASegmentStartIsAWindowLikeAnyOther) {
  const Codes codes = some_codes(92);
  const std::vector<int64_t> ends = {25, 42, 67, 92};
  EXPECT_EQ(stream(*session(), codes, ends, {2}), stream(*session(), codes, ends));
}

TEST_F(VocoderTest, UpstreamsSegmentStartRepeatsFourRows) {
  const Codes codes = some_codes(92);
  const std::vector<int64_t> ends = {25, 42, 67, 92};
  auto vocoder = session(Compatibility::kUpstream);
  const Pcm out = stream(*vocoder, codes, ends, {2});
  EXPECT_EQ(out.size(), 512u * 92 + 2048);
  EXPECT_EQ(out, upstream(codes, ends, {2}));
  EXPECT_NE(out, upstream(codes, ends));
}

TEST_F(VocoderTest, UpstreamsSegmentStartEmitsTheTailAndTheWindowUnfaded) {
  const Codes codes = some_codes(50);
  const Pcm first = window(codes, 0, 25), second = window(codes, 21, 50);
  auto vocoder = session(Compatibility::kUpstream);
  step(*vocoder, rows(codes, 0, 25));
  Pcm expected(first.end() - 2048, first.end());
  expected.insert(expected.end(), second.begin(), second.end() - 2048);
  EXPECT_EQ(step(*vocoder, rows(codes, 25, 50), true), expected);
}

TEST_F(VocoderTest, UpstreamWithoutSegmentsIsTheSame) {
  const Codes codes = some_codes(60);
  EXPECT_EQ(stream(*session(Compatibility::kUpstream), codes, {25, 50, 60}),
            stream(*session(), codes, {25, 50, 60}));
  // The first chunk of an answer joins nothing, whatever it says.
  EXPECT_EQ(stream(*session(Compatibility::kUpstream), codes, {25, 50, 60}, {0}),
            stream(*session(), codes, {25, 50, 60}));
}

TEST_F(VocoderTest, ASegmentStartWithoutRowsCountsForTheNextRows) {
  const Codes codes = some_codes(50);
  auto a = session(Compatibility::kUpstream), b = session(Compatibility::kUpstream);
  for (auto* vocoder : {a.get(), b.get()}) step(*vocoder, rows(codes, 0, 25));
  EXPECT_TRUE(step(*a, {}, true).empty());
  EXPECT_EQ(step(*a, rows(codes, 25, 50)), step(*b, rows(codes, 25, 50), true));
}

// --- state
// ------------------------------------------------------------------------------------------------------

TEST_F(VocoderTest, FlushStartsAfresh) {
  const Codes codes = some_codes(40);
  auto vocoder = session();
  EXPECT_TRUE(pcm_of(vocoder->flush()).empty());
  const Pcm once = stream(*vocoder, codes, {25, 40});
  EXPECT_TRUE(pcm_of(vocoder->flush()).empty());
  EXPECT_EQ(stream(*vocoder, codes, {25, 40}), once);
}

TEST_F(VocoderTest, ResetForgetsTheTailAndTheContext) {
  const Codes codes = some_codes(40);
  auto vocoder = session(), fresh = session();
  step(*vocoder, some_codes(25, 9));
  vocoder->reset();
  EXPECT_TRUE(pcm_of(vocoder->flush()).empty());
  step(*vocoder, some_codes(25, 9));
  vocoder->reset();
  EXPECT_EQ(stream(*vocoder, codes, {25, 40}), stream(*fresh, codes, {25, 40}));
}

TEST_F(VocoderTest, SessionsDoNotShareState) {
  const Codes codes = some_codes(50);
  auto alone = session(), a = session(), b = session();
  for (int64_t begin : {0, 25}) {
    EXPECT_EQ(step(*a, rows(codes, begin, begin + 25)),
              step(*alone, rows(codes, begin, begin + 25)));
    step(*b, some_codes(7, 5));
  }
}

TEST_F(VocoderTest, ACancelledStepChangesNothing) {
  const Codes codes = some_codes(50);
  auto a = session(), b = session();
  for (auto* vocoder : {a.get(), b.get()}) step(*vocoder, rows(codes, 0, 25));
  CancelFlag cancel;
  cancel.set();
  auto cancelled = a->step(*tensor_of(DataType::kInt32, some_codes(25, 3)), false, cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(step(*a, rows(codes, 25, 50)), step(*b, rows(codes, 25, 50)));
}

// --- input
// ------------------------------------------------------------------------------------------------------

TEST_F(VocoderTest, BothTypesOfCodesAreTheSame) {
  const Codes codes = some_codes(25);
  auto a = session(), b = session();
  const std::vector<uint16_t> narrow(codes.begin(), codes.end());
  EXPECT_EQ(pcm_of(a->step(*tensor_of(DataType::kUInt16, narrow), false, CancelFlag())),
            step(*b, codes));
}

void expect_format_error(const Result<TensorPtr>& result, const std::string& named) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kFormat);
  EXPECT_NE(result.error().message.find(named), std::string::npos) << result.error().message;
}

TEST_F(VocoderTest, CodesOutOfRangeAreNamed) {
  auto vocoder = session();
  for (int32_t bad : {625, -1, 65535, INT32_MAX, INT32_MIN}) {
    for (size_t at : {0, 41, 99}) {
      Codes codes = some_codes(25);
      codes[at] = bad;
      expect_format_error(vocoder->step(*tensor_of(DataType::kInt32, codes), false, CancelFlag()),
                          std::to_string(bad));
    }
  }
  std::vector<uint16_t> narrow(100, 624);
  EXPECT_TRUE(vocoder->step(*tensor_of(DataType::kUInt16, narrow), false, CancelFlag()).ok());
  narrow[50] = 65535;
  expect_format_error(vocoder->step(*tensor_of(DataType::kUInt16, narrow), false, CancelFlag()),
                      "65535");
}

TEST_F(VocoderTest, BadInputLeavesTheStreamAsItWas) {
  const Codes codes = some_codes(50);
  auto a = session(), b = session();
  for (auto* vocoder : {a.get(), b.get()}) step(*vocoder, rows(codes, 0, 25));
  EXPECT_FALSE(a->step(*tensor_of(DataType::kInt32, Codes(40, 700)), true, CancelFlag()).ok());
  EXPECT_EQ(step(*a, rows(codes, 25, 50)), step(*b, rows(codes, 25, 50)));
}

TEST_F(VocoderTest, OtherTensorsAreRefused) {
  auto vocoder = session();
  const auto refused = [&](const TensorPtr& tensor, const std::string& named) {
    expect_format_error(vocoder->step(*tensor, false, CancelFlag()), named);
  };
  refused(tensor_of(DataType::kInt32, Codes(30, 1), 3), "columns");
  refused(tensor_of(DataType::kInt32, Codes(40, 1), 5), "columns");
  refused(tensor_of(DataType::kFloat32, Pcm(40, 1.f)), "type");
  refused(tensor_of(DataType::kInt32, some_codes(26)), "26 rows");
  refused(std::make_shared<HostTensor>(DataType::kInt32, std::vector<int64_t>{4},
                                       std::vector<std::byte>(16)),
          "columns");
}

TEST_F(VocoderTest, LoadingReportsProgressAndCanBeCancelled) {
  const auto dvae = dvae_weights().open(), vocos = vocos_weights().open();
  std::vector<int> percents;
  CancelFlag cancel;
  const auto note = [&](int percent, const std::string&) { percents.push_back(percent); };
  ASSERT_TRUE(load_vocoder(*dvae, *vocos, vocoder_config(), at::kFloat, note, cancel).ok());
  EXPECT_TRUE(std::is_sorted(percents.begin(), percents.end()));
  ASSERT_FALSE(percents.empty());
  EXPECT_EQ(percents.back(), 100);
  cancel.set();
  auto stopped = load_vocoder(*dvae, *vocos, vocoder_config(), at::kFloat, {}, cancel);
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
}

}  // namespace
}  // namespace minicpmo
