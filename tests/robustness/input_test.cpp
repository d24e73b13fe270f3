// Sound, text and codes that no user means to send: each is answered, or refused in one message.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "robustness/robustness.h"

namespace minicpmo::testing {
namespace {

constexpr const char* kNothing = "There is nothing to answer";
using Samples = std::vector<float>;

// ---- Sound

struct Sound {
  const char* name;
  Samples (*make)();
  bool answered;
  const char* warning;  // nullptr: none
};

void PrintTo(const Sound& sound, std::ostream* out) {
  *out << sound.name;
}

Samples noise(size_t count, float level) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> value(-level, level);
  Samples samples(count);
  for (float& sample : samples) sample = value(random);
  return samples;
}

Samples square(size_t count, float level) {
  Samples samples(count);
  for (size_t i = 0; i < count; ++i) samples[i] = i / 40 % 2 == 0 ? level : -level;
  return samples;
}

// The good question with every `step`-th sample replaced.
Samples spoilt(float value, size_t step) {
  Samples samples = question_samples();
  for (size_t i = 0; i < samples.size(); i += step) samples[i] = value;
  return samples;
}

class SoundInput : public ::testing::TestWithParam<Sound> {};

TEST_P(SoundInput, IsAnsweredOrWarnedOf) {
  const TemporaryFile question(bytes_of(GetParam().make())), answer;
  PipelineRun run(source_of(question, kAudioCaps) + element("minicpmobin") +
                  " ! filesink async=false location=" + answer.path());
  ASSERT_TRUE(play(run, GetParam().name)) << run.first_error();
  EXPECT_EQ(run.answers.size(), GetParam().answered ? 1u : 0u);
  for (const std::string& text : run.answers) EXPECT_FALSE(text.empty());
  ASSERT_EQ(run.warnings.size(), GetParam().warning ? 1u : 0u);
  if (GetParam().warning) {
    EXPECT_NE(run.warnings[0].find(GetParam().warning), std::string::npos) << run.warnings[0];
  }
  const std::string sound = answer.read();
  EXPECT_EQ(sound.size() % sizeof(float), 0u);
  EXPECT_EQ(sound.empty(), !GetParam().answered);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kTiny = std::numeric_limits<float>::denorm_min();

const Sound kSounds[] = {
    {"NoBytes", [] { return Samples(); }, false, kNothing},
    {"OneSample", [] { return Samples(1, 0.5f); }, false, kNothing},
    {"Samples320", [] { return noise(320, 0.1f); }, false, kNothing},
    {"Samples321", [] { return noise(321, 0.1f); }, true, nullptr},
    {"OneSecond", [] { return noise(16000, 0.1f); }, true, nullptr},
    {"OneSecondAndOneSample", [] { return noise(16001, 0.1f); }, true, nullptr},
    {"Silence", [] { return Samples(32000, 0.0f); }, true, nullptr},
    {"Noise", [] { return noise(32000, 1.0f); }, true, nullptr},
    {"Clipping", [] { return square(32000, 1.0f); }, true, nullptr},
    {"FarTooLoud", [] { return square(32000, 1e6f); }, true, nullptr},
    {"Constant", [] { return Samples(32000, 0.9f); }, true, nullptr},
    {"Denormal", [] { return Samples(32000, kTiny); }, true, nullptr},
    {"Largest", [] { return square(32000, kMax); }, true, nullptr},
    {"AllNan", [] { return Samples(32000, kNan); }, true, "no finite numbers"},
    {"AllInfinite", [] { return Samples(32000, -kInf); }, true, "no finite numbers"},
    {"SomeNan", [] { return spoilt(kNan, 997); }, true, "no finite numbers"},
    {"SomeInfinite", [] { return spoilt(kInf, 997); }, true, "no finite numbers"},
};
INSTANTIATE_TEST_SUITE_P(Bin, SoundInput, ::testing::ValuesIn(kSounds),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SoundInput, FewNanSamplesDoNotSpoilTheAnswer) {
  const TemporaryFile question(bytes_of(spoilt(kNan, 4001)));
  PipelineRun run(source_of(question, kAudioCaps) + whole_chain());
  ASSERT_TRUE(play(run, "FewNan"));
  EXPECT_EQ(run.answers, std::vector<std::string>{kCapital});
}

TEST(SoundInput, TenMinutesAreAnsweredFromTheirBeginning) {
  Samples samples = question_samples();
  samples.resize(600 * 16000, 0.0f);
  const TemporaryFile question(bytes_of(samples));
  PipelineRun run(source_of(question, kAudioCaps) + element("minicpmoaudioenc") + " ! queue ! " +
                  element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(play(run, "TenMinutes")) << run.first_error();
  EXPECT_EQ(run.warnings.size(), 1u);
  ASSERT_EQ(run.answers.size(), 1u);
  EXPECT_FALSE(run.answers[0].empty());
}

TEST(SoundInput, MoreThanTheContextHoldsIsAnswered) {
  const TemporaryFile question(bytes_of(noise(340 * 16000, 0.05f)));
  PipelineRun run(source_of(question, kAudioCaps) + element("minicpmoaudioenc") +
                  " max-turn-duration=0 ! queue ! " + element("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(play(run, "MoreThanTheContext")) << run.first_error();
  EXPECT_EQ(run.warnings.size(), 1u);
  EXPECT_EQ(run.answers.size(), 1u);
}

TEST(SoundInput, ALastSampleThatIsCutIsLeftOut) {
  const TemporaryFile question(good_question() + "abc");
  PipelineRun run(source_of(question, kAudioCaps) + whole_chain());
  ASSERT_TRUE(play(run, "CutSample")) << run.first_error();
  EXPECT_EQ(run.answers, std::vector<std::string>{kCapital});
}

// ---- WAV files

std::string le(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// 16-bit mono, 16 kHz, with sizes as told.
std::string wav(uint32_t riff_size, uint32_t data_size, uint32_t rate = 16000) {
  std::string out = "RIFF" + le(riff_size, 4) + "WAVEfmt " + le(16, 4) + le(1, 2) + le(1, 2) +
                    le(rate, 4) + le(2 * rate, 4) + le(2, 2) + le(16, 2) + "data" +
                    le(data_size, 4);
  for (const float sample : question_samples())
    out += le(static_cast<uint16_t>(std::lround(sample * 32768.0f)), 2);
  return out;
}

std::string wav_chain(const TemporaryFile& file) {
  return "filesrc location=" + file.path() + " ! wavparse ! audioconvert ! audioresample ! " +
         whole_chain();
}

TEST(WavInput, HeadersWithSizesThatLieAreAnswered) {
  for (const uint32_t size : {0u, 0xFFFFFFFFu, 0x7FFFFFFFu}) {
    const TemporaryFile file(wav(size, size));
    PipelineRun run(wav_chain(file));
    play(run, "WavSizesLie");
    EXPECT_EQ(run.answers, std::vector<std::string>{kCapital}) << size << run.first_error();
  }
}

TEST(WavInput, HeadersAloneAreNoQuestion) {
  const TemporaryFile file(wav(36, 0).substr(0, 44));
  PipelineRun run(wav_chain(file));
  play(run, "WavHeaderOnly");
  EXPECT_EQ(run.errors.size() + run.warnings.size(), 1u);
  EXPECT_TRUE(run.answers.empty());
}

TEST(WavInput, AnotherFileIsOneError) {
  const TemporaryFile file("this is no WAV file, as every reader can see at once, surely");
  PipelineRun run(wav_chain(file));
  play(run, "WavIsText");
  EXPECT_EQ(run.errors.size(), 1u);
  EXPECT_TRUE(run.answers.empty());
}

// ---- Caps

struct Caps {
  const char* name;
  const char* caps;
  const char* factory;
};

void PrintTo(const Caps& caps, std::ostream* out) {
  *out << caps.name;
}

class WrongCaps : public ::testing::TestWithParam<Caps> {};

// appsrc with caps of its own: what is wrong is found when they are negotiated.
TEST_P(WrongCaps, AreRefusedWithOneError) {
  PipelineRun run(std::string("appsrc name=source format=time caps=\"") + GetParam().caps +
                  "\" ! identity ! " + element(GetParam().factory) + " ! fakesink async=false");
  const ElementPtr source = run.element("source");
  if (!source) return;  // said already
  gst_element_set_state(run.pipeline(), GST_STATE_PLAYING);
  BufferPtr buffer = text_buffer(std::string(4096, '\0'), 0);
  GstFlowReturn flow = GST_FLOW_OK;
  g_signal_emit_by_name(source.get(), "push-buffer", buffer.get(), &flow);
  g_signal_emit_by_name(source.get(), "end-of-stream", &flow);
  EXPECT_FALSE(play(run, GetParam().name));
  EXPECT_EQ(run.errors.size(), 1u);
}

#define TENSOR(id, type, dims, order) \
  "tensor/strided,tensor-id=" id ",type=" type ",dims=(int)" dims ",dims-order=" order
#define EMBEDDING "minicpmo-audio-embedding"
#define CODE "minicpmo-audio-code"
const Caps kWrongCaps[] = {
    {"Rate", "audio/x-raw,format=F32LE,rate=44100,channels=1,layout=interleaved",
     "minicpmoaudioenc"},
    {"Channels", "audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved",
     "minicpmoaudioenc"},
    {"Format", "audio/x-raw,format=S16LE,rate=16000,channels=1,layout=interleaved",
     "minicpmoaudioenc"},
    {"SoundToLlm", kAudioCaps, "minicpmollm"},
    {"SoundToTts", kAudioCaps, "minicpmotts"},
    {"SoundToVocoder", kAudioCaps, "minicpmovocoder"},
    {"TextToBin", kTextCaps, "minicpmobin"},
    {"TextNotUtf8", "text/x-raw,format=pango-markup", "minicpmotts"},
    {"TextNotUtf8Llm", "text/x-raw,format=pango-markup", "minicpmollm"},
    {"EmbeddingWidth", TENSOR(EMBEDDING, "float32", "<0,8>", "row-major"), "minicpmollm"},
    {"EmbeddingType", TENSOR(EMBEDDING, "uint16", "<0,256>", "row-major"), "minicpmollm"},
    {"EmbeddingId", TENSOR(CODE, "float32", "<0,256>", "row-major"), "minicpmollm"},
    {"EmbeddingOrder", TENSOR(EMBEDDING, "float32", "<0,256>", "col-major"), "minicpmollm"},
    {"EmbeddingRank", TENSOR(EMBEDDING, "float32", "<0,256,1>", "row-major"), "minicpmollm"},
    {"EmbeddingNegative", TENSOR(EMBEDDING, "float32", "<0,-256>", "row-major"), "minicpmollm"},
    {"CodeBooks", TENSOR(CODE, "uint16", "<0,3>", "row-major"), "minicpmovocoder"},
    {"CodeType", TENSOR(CODE, "float32", "<0,4>", "row-major"), "minicpmovocoder"},
    {"CodeId", TENSOR(EMBEDDING, "uint16", "<0,4>", "row-major"), "minicpmovocoder"},
};
INSTANTIATE_TEST_SUITE_P(Element, WrongCaps, ::testing::ValuesIn(kWrongCaps),
                         [](const auto& info) { return std::string(info.param.name); });

// ---- Codes and embeddings whose values or sizes are wrong

TEST(SeamInput, CodesOutOfRangeAreOneError) {
  const TemporaryFile codes(std::string(25 * 8, '\xff'));
  PipelineRun run(source_of(codes, kCodesCaps) + element("minicpmovocoder") +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, "CodesOutOfRange"));
  expect_one_error(run, {"65535"});
}

TEST(SeamInput, CodesCutInARowAreOneError) {
  const TemporaryFile codes(std::string(25 * 8 + 3, '\0'));
  PipelineRun run(source_of(codes, kCodesCaps) + element("minicpmovocoder") +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, "CodesCut"));
  expect_one_error(run, {"middle of a row", "caps"});
}

constexpr const char* kRealEmbeddings =
    "tensor/strided,tensor-id=minicpmo-audio-embedding,type=float32,dims=(int)<0,256>,"
    "dims-order=row-major";

TEST(SeamInput, EmbeddingsCutInARowAreOneError) {
  const TemporaryFile rows(std::string(1024 * 25 + 5, '\0'));
  PipelineRun run(source_of(rows, kRealEmbeddings) + element("minicpmollm") +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, "EmbeddingsCut"));
  expect_one_error(run, {"within a row", "caps"});
}

TEST(SeamInput, EmbeddingsThatAreNotFiniteAreOneError) {
  const TemporaryFile rows(bytes_of(Samples(256 * 25, kNan)));
  PipelineRun run(source_of(rows, kRealEmbeddings) + element("minicpmollm") +
                  " ! fakesink async=false");
  EXPECT_FALSE(play(run, "EmbeddingsNan"));
  expect_one_error(run, {"finite"});
}

TEST(SeamInput, SpeechCodesOfAMinuteAreSpoken) {
  constexpr size_t kRows = 2812;
  const TemporaryFile codes(std::string(kRows * 8, '\0')), answer;
  PipelineRun run(source_of(codes, kCodesCaps) + element("minicpmovocoder") +
                  " ! filesink async=false location=" + answer.path());
  ASSERT_TRUE(play(run, "CodesLong")) << run.first_error();
  EXPECT_EQ(answer.read().size(), kRows * 512 * sizeof(float));
}

const bool kHeld = (keep_model_loaded(), true);

}  // namespace
}  // namespace minicpmo::testing
