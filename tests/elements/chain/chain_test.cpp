// The four elements in a row, with the fake backend: files in, files out, dumps of every seam
// replayed.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "elements/chain/stream_log.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {
namespace {

constexpr const char* kPcm = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
constexpr const char* kCodes =
    "tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,4>,"
    "dims-order=row-major";

std::string pcm_bytes(size_t samples) {
  std::vector<float> values(samples);
  for (size_t i = 0; i < samples; ++i) values[i] = static_cast<float>(i % 100) / 100.0f;
  return {reinterpret_cast<const char*>(values.data()), samples * sizeof(float)};
}

std::string source(const TemporaryFile& file, const std::string& caps) {
  return "filesrc location=" + file.path() + " ! " + caps + " ! ";
}

// Not async: while one branch of a tee waits for the others to preroll, its queue (1 s) would stop
// them.
std::string sink(const TemporaryFile& file) {
  return " ! filesink sync=false async=false location=" + file.path();
}

// What the fake makes of `samples` samples: rows of 40 ms, and a text about them, two code rows for
// each of its bytes, 512 samples for each row.
std::string answer_to(size_t samples) {
  return "You said " + std::to_string((samples + 639) / 640) + " rows.";
}
size_t answer_bytes(const std::string& answer) {
  return answer.size() * 2 * 512 * sizeof(float);
}

class Chain : public ::testing::Test {
 protected:
  // The speech model's test voice.
  Chain() : voice_(std::string(8 * sizeof(float), '\0')) {
    backend_.settings().info.default_speaker = voice_.path();
  }
  TemporaryFile voice_;
  FakeBackend backend_;
};

TEST_F(Chain, AQuestionBecomesAnAnswer) {
  const TemporaryFile question(pcm_bytes(40000)), answer;
  PipelineRun run(source(question, kPcm) +
                  "minicpmoaudioenc ! queue ! minicpmollm ! queue ! minicpmotts ! queue ! "
                  "minicpmovocoder" +
                  sink(answer));
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers, std::vector<std::string>{answer_to(40000)});
  EXPECT_EQ(answer.read().size(), answer_bytes(answer_to(40000)));
  EXPECT_TRUE(run.warnings.empty());
}

TEST_F(Chain, CaptionsNeedOnlyATee) {
  const TemporaryFile question(pcm_bytes(20000)), answer, words;
  PipelineRun run(source(question, kPcm) +
                  "minicpmoaudioenc ! queue ! minicpmollm ! tee name=words ! queue ! minicpmotts ! "
                  "queue ! minicpmovocoder" +
                  sink(answer) + " words. ! queue" + sink(words));
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(words.read(), answer_to(20000));
  EXPECT_EQ(answer.read().size(), answer_bytes(answer_to(20000)));
}

TEST_F(Chain, EverySeamCanBeDumpedAndReplayed) {
  const TemporaryFile question(pcm_bytes(40000)), embeddings, words, codes, answer;
  PipelineRun dump(source(question, kPcm) +
                   "minicpmoaudioenc ! tee name=a ! queue ! minicpmollm ! tee name=b ! queue ! "
                   "minicpmotts ! tee name=c ! queue ! minicpmovocoder" +
                   sink(answer) + " a. ! queue" + sink(embeddings) + " b. ! queue" + sink(words) +
                   " c. ! queue" + sink(codes));
  ASSERT_TRUE(dump.run()) << dump.first_error();

  const TemporaryFile words2, codes2, answer2;
  PipelineRun from_embeddings(source(embeddings, kEmbeddingCaps) + "minicpmollm" + sink(words2));
  ASSERT_TRUE(from_embeddings.run()) << from_embeddings.first_error();
  EXPECT_EQ(words2.read(), words.read());
  PipelineRun from_words(source(words, kTextCaps) + "minicpmotts" + sink(codes2));
  ASSERT_TRUE(from_words.run()) << from_words.first_error();
  EXPECT_EQ(codes2.read(), codes.read());
  PipelineRun from_codes(source(codes, kCodes) + "minicpmovocoder" + sink(answer2));
  ASSERT_TRUE(from_codes.run()) << from_codes.first_error();
  EXPECT_EQ(answer2.read(), answer.read());
  EXPECT_EQ(embeddings.read().size(), 63u * 8 * sizeof(float));
}

TEST_F(Chain, ATypedConversationIsSpoken) {
  const TemporaryFile question("Hello.\nHow are you?\n"), answer;
  PipelineRun run(source(question, kTextCaps) +
                  "minicpmollm ! queue ! minicpmotts ! queue ! minicpmovocoder" + sink(answer));
  ASSERT_TRUE(run.run()) << run.first_error();
  const std::vector<std::string> expected{"You wrote Hello..", "You wrote How are you?."};
  EXPECT_EQ(run.answers, expected);
  EXPECT_EQ(answer.read().size(), answer_bytes(expected[0] + expected[1]));
}

TEST_F(Chain, TextIsReadAloud) {
  const TemporaryFile text("A sentence.\n"), answer;
  PipelineRun run(source(text, kTextCaps) + "minicpmotts ! queue ! minicpmovocoder" + sink(answer));
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(answer.read().size(), answer_bytes("A sentence.\n"));
}

TEST_F(Chain, AnEmptyFileIsAWarningAndAnEnd) {
  for (const char* caps : {kPcm, kTextCaps}) {
    const TemporaryFile nothing, answer;
    const bool spoken = caps == std::string(kPcm);
    PipelineRun run(source(nothing, caps) + (spoken ? "minicpmoaudioenc ! " : "") +
                    "minicpmollm ! minicpmotts ! minicpmovocoder" + sink(answer));
    ASSERT_TRUE(run.run()) << run.first_error();
    EXPECT_EQ(run.warnings.size(), 1u);
    EXPECT_EQ(answer.read(), "");
  }
}

TEST_F(Chain, WavFilesAreClosedProperly) {
  const TemporaryFile text("Hi"), wav;
  PipelineRun run(source(text, kTextCaps) + "minicpmotts ! queue ! minicpmovocoder ! wavenc" +
                  sink(wav));
  ASSERT_TRUE(run.run()) << run.first_error();
  const std::string bytes = wav.read();
  ASSERT_GT(bytes.size(), 44u);
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + 4, 4);
  EXPECT_EQ(bytes.substr(0, 4), "RIFF");
  EXPECT_EQ(size, bytes.size() - 8);  // filled in when the stream ended
}

TEST_F(Chain, OneEngineServesThemAll) {
  const TemporaryFile question(pcm_bytes(20000));
  PipelineRun run(source(question, kPcm) +
                  "minicpmoaudioenc ! queue ! minicpmollm ! queue ! minicpmotts ! queue ! "
                  "minicpmovocoder ! fakesink");
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(backend_.counters().engines_opened, 1);
  EXPECT_EQ(backend_.counters().loads, 4);
}

TEST_F(Chain, AStageThatFailsStopsThePipelineWithOneError) {
  backend_.settings().step_error = Error{ErrorCode::kNoSpace, "Out of memory.", ""};
  backend_.settings().steps_before_error = 1;
  const TemporaryFile question(pcm_bytes(40000));
  PipelineRun run(source(question, kPcm) +
                  "minicpmoaudioenc ! queue ! minicpmollm ! queue ! minicpmotts ! queue ! "
                  "minicpmovocoder ! fakesink");
  EXPECT_FALSE(run.run());
  ASSERT_EQ(run.errors.size(), 1u);
  EXPECT_EQ(run.errors[0], "Out of memory.");
}

}  // namespace
}  // namespace minicpmo::testing
