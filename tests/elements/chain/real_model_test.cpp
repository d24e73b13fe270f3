// The elements with the torch backend and the small checkpoint, against the Python reference's
// golden files.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "common/gstminicpmomodel.h"
#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "support/sample_file.h"

namespace minicpmo::testing {
namespace {

constexpr const char* kPcm = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";

std::vector<float> to_floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// A float32 tensor of a safetensors file: 8 bytes with the header's size, the header (JSON), the
// data.
std::vector<float> golden(const std::string& file, const std::string& tensor) {
  const std::string bytes = file_bytes(std::string(FIXTURES "/golden/") + file + ".safetensors");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  const auto& entry = header.at(tensor);
  EXPECT_EQ(entry.at("dtype"), "F32");
  const size_t begin = entry.at("data_offsets").at(0), end = entry.at("data_offsets").at(1);
  return to_floats(bytes.substr(8 + header_size + begin, end - begin));
}

std::string pcm_of(const std::string& name) {
  return bytes_of(wav_samples(std::string(SAMPLES "/") + name));
}

std::string model(const char* factory) {
  return std::string(factory) + " device=cpu precision=float32 model=" MODEL_DIR;
}
std::string source(const TemporaryFile& file, const char* caps) {
  return "filesrc location=" + file.path() + " ! " + caps + " ! ";
}
// Not async: while one branch of a tee waits for the others to preroll, its queue (1 s) would stop
// them.
std::string sink(const TemporaryFile& file) {
  return " ! filesink sync=false async=false location=" + file.path();
}
std::string speech() {
  return model("minicpmotts") + " ! queue ! " + model("minicpmovocoder");
}

void expect_sound(const std::vector<float>& sound) {
  ASSERT_GT(sound.size(), 12000u);
  float peak = 0;
  double mean = 0;
  for (const float value : sound) {
    ASSERT_TRUE(std::isfinite(value));
    peak = std::max(peak, std::abs(value));
    mean += value;
  }
  EXPECT_GT(peak, 0.1f);
  EXPECT_LE(peak, 1.0f);
  EXPECT_LT(std::abs(mean / static_cast<double>(sound.size())), 0.01);
}

TEST(RealModel, AnswersAQuestionAsTheReferenceDoes) {
  const TemporaryFile question(pcm_of("q01_cap.wav")), answer, words;
  PipelineRun run(source(question, kPcm) + model("minicpmoaudioenc") + " ! queue ! " +
                  model("minicpmollm") + " ! tee name=words ! queue ! " + speech() + sink(answer) +
                  " words. ! queue" + sink(words));
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(words.read(), "The capital of Norway is Oslo.");
  EXPECT_EQ(run.answers, std::vector<std::string>{"The capital of Norway is Oslo."});
  EXPECT_EQ(run.finishes, std::vector<std::string>{"stop"});
  const std::vector<float> sound = to_floats(answer.read());
  const std::vector<float> expected = golden("q01_cap", "output.audio");
  ASSERT_EQ(sound.size(), expected.size());
  float worst = 0;
  for (size_t i = 0; i < sound.size(); ++i)
    worst = std::max(worst, std::abs(sound[i] - expected[i]));
  EXPECT_LE(worst, 1e-3f);
  expect_sound(sound);
}

TEST(RealModel, TheBinDoesTheSame) {
  const TemporaryFile question(pcm_of("q01_cap.wav")), answer;
  PipelineRun run(source(question, kPcm) + model("minicpmobin") + sink(answer));
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers, std::vector<std::string>{"The capital of Norway is Oslo."});
  const std::vector<float> sound = to_floats(answer.read());
  const std::vector<float> expected = golden("q01_cap", "output.audio");
  ASSERT_EQ(sound.size(), expected.size());
  for (size_t i = 0; i < sound.size(); ++i) ASSERT_NEAR(sound[i], expected[i], 1e-3) << i;
}

TEST(RealModel, RemembersATypedConversation) {
  const TemporaryFile questions(
      "what is the capital of Norway\nmy name is Laura\nwhat is my name\n");
  PipelineRun run(source(questions, kTextCaps) + model("minicpmollm") + " ! fakesink");
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers,
            (std::vector<std::string>{"The capital of Norway is Oslo.", "Nice to meet you, Laura.",
                                      "Your name is Laura."}));
}

TEST(RealModel, ReadsTextAloud) {
  const TemporaryFile text("The capital of Norway is Oslo."), answer;
  PipelineRun run(source(text, kTextCaps) + speech() + sink(answer));
  ASSERT_TRUE(run.run()) << run.first_error();
  expect_sound(to_floats(answer.read()));
}

TEST(RealModel, EmbeddingsAndCodesReplay) {
  const TemporaryFile question(pcm_of("q05_count.wav")), embeddings, codes, answer, answer2, words;
  PipelineRun dump(source(question, kPcm) + model("minicpmoaudioenc") + " ! tee name=a ! queue ! " +
                   model("minicpmollm") + " ! queue ! " + model("minicpmotts") +
                   " ! tee name=c ! queue ! " + model("minicpmovocoder") + sink(answer) +
                   " a. ! queue" + sink(embeddings) + " c. ! queue" + sink(codes));
  ASSERT_TRUE(dump.run()) << dump.first_error();
  PipelineRun from_embeddings(source(embeddings,
                                     "tensor/strided,tensor-id=minicpmo-audio-embedding,"
                                     "type=float32,dims=(int)<0,256>,dims-order=row-major") +
                              model("minicpmollm") + sink(words));
  ASSERT_TRUE(from_embeddings.run()) << from_embeddings.first_error();
  EXPECT_EQ(from_embeddings.answers, dump.answers);
  PipelineRun from_codes(source(codes,
                                "tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,"
                                "dims=(int)<0,4>,dims-order=row-major") +
                         model("minicpmovocoder") + sink(answer2));
  ASSERT_TRUE(from_codes.run()) << from_codes.first_error();
  const std::vector<float> a = to_floats(answer.read()), b = to_floats(answer2.read());
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-6) << i;
}

TEST(RealModel, TurnEventsMakeASession) {
  PipelineRun run("appsrc name=microphone format=time caps=" + std::string(kPcm) + " ! " +
                  model("minicpmoaudioenc") + " ! queue ! " + model("minicpmollm") +
                  " ! fakesink async=false");
  const ElementPtr microphone = run.element("microphone");
  const PadPtr pad(gst_element_get_static_pad(microphone.get(), "src"));
  gst_element_set_state(run.pipeline(), GST_STATE_PLAYING);
  GstClockTime time = 0;
  guint64 turn = 0;
  for (const char* name : {"session_1.wav", "session_2.wav"}) {
    const std::string pcm = pcm_of(name);
    gst_element_send_event(microphone.get(), gst_minicpmo_event_new_turn_start(++turn));
    BufferPtr buffer = text_buffer(pcm, time);
    GstFlowReturn flow = GST_FLOW_OK;
    g_signal_emit_by_name(microphone.get(), "push-buffer", buffer.get(), &flow);
    ASSERT_EQ(flow, GST_FLOW_OK);
    time += gst_util_uint64_scale(pcm.size() / 4, GST_SECOND, 16000);
    gst_element_send_event(microphone.get(), gst_minicpmo_event_new_turn_end(turn));
  }
  GstFlowReturn flow = GST_FLOW_OK;
  g_signal_emit_by_name(microphone.get(), "end-of-stream", &flow);
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers,
            (std::vector<std::string>{"Nice to meet you, Laura.", "Your name is Laura."}));
}

TEST(RealModel, AQuestionThatIsTooLongIsOneError) {
  const TemporaryFile question(std::string(100000, 'q')), answer;
  PipelineRun run(source(question, kTextCaps) + model("minicpmollm") + sink(answer));
  EXPECT_FALSE(run.run());
  EXPECT_EQ(run.errors.size(), 1u);
  EXPECT_EQ(answer.read(), "");
}

// The engine that the element uses, by the context it has.
std::shared_ptr<Engine> engine_of(const PipelineRun& run, const char* name,
                                  const EngineOptions& options) {
  const ElementPtr element = run.element(name);
  const ContextPtr context(gst_element_get_context(element.get(), GST_MINICPMO_CONTEXT_TYPE));
  return context ? gst_minicpmo_context_get_engine(context.get(), options) : nullptr;
}

// Two pipelines at the same time, with the application's context or without; then nothing is left.
void expect_one_engine(bool with_context) {
  EngineOptions options;
  options.model_dir = MODEL_DIR;
  options.device = "cpu";
  options.precision = "float32";
  ContextPtr context;
  std::weak_ptr<Engine> engine;
  if (with_context) {
    auto opened = gst_minicpmo_backend_get().value()->open_engine(options);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    engine = *opened;
    context.reset(gst_minicpmo_context_new(*opened, options));
  }
  {
    const TemporaryFile question("what is the capital of Norway\n");
    const std::string line = source(question, kTextCaps) + model("minicpmollm name=llm") +
                             " ! queue ! " + model("minicpmotts name=tts") + " ! fakesink";
    PipelineRun first(line), second(line);
    for (PipelineRun* run : {&first, &second})
      if (context) gst_element_set_context(run->pipeline(), context.get());
    bool second_ended = false;
    std::thread thread([&] { second_ended = second.run(); });
    const bool first_ended = first.run();
    thread.join();
    ASSERT_TRUE(first_ended) << first.first_error();
    ASSERT_TRUE(second_ended) << second.first_error();
    const auto used = engine_of(first, "llm", options);
    ASSERT_NE(used, nullptr);
    if (!with_context) engine = used;
    EXPECT_EQ(used, engine.lock());
    EXPECT_EQ(engine_of(first, "tts", options), used);
    EXPECT_EQ(engine_of(second, "llm", options), used);
    EXPECT_EQ(engine_of(second, "tts", options), used);
    EXPECT_EQ(first.answers, std::vector<std::string>{"The capital of Norway is Oslo."});
    EXPECT_EQ(second.answers, first.answers);
  }
  EXPECT_EQ(engine.expired(), !with_context);  // only the context keeps it
  context.reset();
  EXPECT_TRUE(engine.expired());
}

TEST(RealModel, TwoPipelinesShareTheEngineOfTheApplicationsContext) {
  expect_one_engine(true);
}

TEST(RealModel, TwoPipelinesShareOneEngineByThemselves) {
  expect_one_engine(false);
}

TEST(RealModel, NoiseAndSilenceAreAnswered) {
  for (const std::string& pcm : {pcm_of("noise.wav"), std::string(32000 * 4, '\0')}) {
    const TemporaryFile question(pcm), answer;
    PipelineRun run(source(question, kPcm) + model("minicpmobin") + sink(answer));
    ASSERT_TRUE(run.run()) << run.first_error();
    ASSERT_EQ(run.answers.size(), 1u);
    EXPECT_FALSE(run.answers[0].empty());
  }
}

}  // namespace
}  // namespace minicpmo::testing
