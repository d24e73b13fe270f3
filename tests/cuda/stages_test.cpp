// All four stages on a GPU against the same stages on the CPU, on the small checkpoint.
//
// Skipped without a GPU. Where the model and the golden files are: MINICPMO_MODEL and
// MINICPMO_FIXTURES, by default in the checkout that this was built from.
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "../unit/tts/tiny_speech.h"
#include "../unit/weights_file.h"
#include "audioenc/audio_encoder.h"
#include "backend/cuda_devices.h"
#include "backend/device.h"
#include "engine/speech_gate.h"
#include "engine/stage_scope.h"
#include "engine/torch_tensor.h"
#include "llm/language_model.h"
#include "vocoder/vocoder.h"

namespace minicpmo {
namespace {

// float32: what differs is the order of sums. bfloat16 has 8 bits (2^-9 = 0.002 of each value).
constexpr double kFloatBound = 1e-4;
constexpr double kPcmBound = 1e-4;
constexpr double kBfloat16Bound = 5e-2;

std::string directory(const char* variable, const char* otherwise) {
  const char* const set = std::getenv(variable);
  return set ? set : otherwise;
}

Golden golden(const std::string& name) {
  return Golden::at(directory("MINICPMO_FIXTURES", FIXTURES) + "/golden/" + name + ".safetensors");
}

struct Models {
  std::shared_ptr<const AudioEncoderModel> audio;
  std::shared_ptr<const LanguageModelWeights> language;
  std::shared_ptr<const SpeechModelWeights> speech;
  std::shared_ptr<const VocoderModel> vocoder;
};

Models load_models(const StageDevice& device) {
  const std::string path = directory("MINICPMO_MODEL", MODEL_DIR);
  const CancelFlag cancel;
  return must(run_stage("test", [&]() -> Result<Models> {
    ASSIGN_OR_RETURN(const ModelConfig config, read_config(path));
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::open(path));
    ASSIGN_OR_RETURN(const auto vocos, Checkpoint::open_file(path + "/assets/Vocos.safetensors"));
    ASSIGN_OR_RETURN(const auto words, load_bpe_tokenizer(path + "/tokenizer.json"));
    ASSIGN_OR_RETURN(const auto speech_words,
                     load_wordpiece_tokenizer(path + "/assets/chattts_tokenizer/tokenizer.json"));
    Models models;
    ASSIGN_OR_RETURN(models.audio, load_audio_encoder(*checkpoint, config, device, {}, cancel));
    ASSIGN_OR_RETURN(models.language,
                     load_language_model(*checkpoint, config, words, device, {}, cancel));
    ASSIGN_OR_RETURN(models.speech,
                     load_speech_model(*checkpoint, config, speech_words, device, {}, cancel));
    ASSIGN_OR_RETURN(models.vocoder, load_vocoder(*checkpoint, *vocos, config, device, {}, cancel));
    return models;
  }));
}

std::vector<float> host_floats(const Tensor& tensor) {
  const auto bytes = must(tensor.host_bytes());
  std::vector<float> values(bytes.size() / size_of(tensor.type()));
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits = 0;
    if (tensor.type() == DataType::kFloat32) {
      std::memcpy(&bits, bytes.data() + 4 * i, 4);
    } else {
      uint16_t upper = 0;
      std::memcpy(&upper, bytes.data() + 2 * i, 2);
      bits = static_cast<uint32_t>(upper) << 16;
    }
    std::memcpy(&values[i], &bits, 4);
  }
  return values;
}

void append(std::vector<float>& to, const std::vector<float>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

std::vector<TensorPtr> encode(const Models& models, const std::vector<float>& pcm) {
  const auto encoder = must(new_audio_encoder(models.audio));
  std::vector<TensorPtr> chunks;
  for (size_t at = 0; at < pcm.size(); at += 16000) {
    const auto part = std::span(pcm).subspan(at, std::min<size_t>(16000, pcm.size() - at));
    if (auto rows = must(encoder->step(part, CancelFlag()))) chunks.push_back(std::move(rows));
  }
  return chunks;
}

LanguageModelOptions greedy(int tokens = 512) {
  LanguageModelOptions options;
  options.temperature = 0;
  options.repetition_penalty = 1;
  options.max_new_tokens = tokens;
  return options;
}

struct Said {
  std::vector<int32_t> ids;
  std::vector<std::string> bursts;
  TensorPtr speaker;
};

Said say(LanguageModel& session, const std::vector<TensorPtr>& question) {
  const CancelFlag cancel;
  for (const TensorPtr& rows : question) {
    const auto read = session.prefill_audio(*rows, cancel);
    if (!read.ok()) throw std::runtime_error(read.error().message + " " + read.error().detail);
  }
  const auto started = session.start_answer(cancel);
  if (!started.ok()) throw std::runtime_error(started.error().message);
  Said said;
  for (FinishReason finish = FinishReason::kNone; finish == FinishReason::kNone;) {
    const Burst burst = must(session.next_burst(cancel));
    said.ids.insert(said.ids.end(), burst.ids.begin(), burst.ids.end());
    said.bursts.push_back(burst.text);
    if (burst.speaker) said.speaker = burst.speaker;
    finish = burst.finish;
  }
  return said;
}

std::vector<float> sound_of(const Models& models, const std::vector<CodeRow>& codes) {
  const auto vocoder = must(new_vocoder(models.vocoder, {}));
  std::vector<float> pcm;
  for (size_t at = 0; at < codes.size(); at += 25) {
    const auto bytes =
        std::as_bytes(std::span(codes).subspan(at, std::min<size_t>(25, codes.size() - at)));
    const HostTensor rows(DataType::kUInt16, {static_cast<int64_t>(bytes.size()) / 8, 4},
                          {bytes.begin(), bytes.end()});
    append(pcm, host_floats(*must(vocoder->step(rows, at == 0, CancelFlag()))));
  }
  append(pcm, host_floats(*must(vocoder->flush())));
  return pcm;
}

// A spoken question through all stages.
struct Turn {
  std::vector<float> embeddings;
  std::vector<int32_t> ids;
  std::vector<float> speaker;
  std::vector<CodeRow> codes;
  std::vector<float> pcm;
  bool operator==(const Turn&) const = default;
};

Turn converse(const Models& models, const std::vector<float>& question,
              const LanguageModelOptions& options, const SpeechModelOptions& speech_options) {
  Turn turn;
  const auto chunks = encode(models, question);
  for (const TensorPtr& rows : chunks) append(turn.embeddings, host_floats(*rows));
  const auto language = must(new_language_model(models.language, options));
  const Said said = say(*language, chunks);
  turn.ids = said.ids;
  turn.speaker = host_floats(*said.speaker);
  SpeechSession session(models.speech);
  turn.codes = speak(session, speaker_tensor(turn.speaker), said.bursts, speech_options).codes;
  turn.pcm = sound_of(models, turn.codes);
  return turn;
}

double agreement(const std::vector<CodeRow>& a, const std::vector<CodeRow>& b) {
  const size_t n = std::min(a.size(), b.size());
  const auto differ =
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin());
  return static_cast<double>(differ.first - a.begin());
}

class CudaStages : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const auto devices = list_cuda_devices();
    if (!devices.ok() || devices->empty()) {
      why_ = devices.ok() ? "no GPU" : devices.error().message;
      return;
    }
    const StageDevice cuda = device("bfloat16");  // a GPU that cannot be used is a failure
    std::printf("%s\n", devices->front().text().c_str());
    cpu_ = load_models({});
    StageDevice plain = cuda.with(at::kFloat);
    plain.runners = nullptr;
    cuda_float_ = load_models(plain);
    plain.type = at::kBFloat16;
    cuda_plain_ = load_models(plain);
    cuda_ = load_models(cuda);
    StageDevice eager = cuda;
    eager.graphs = false;
    cuda_eager_ = load_models(eager);
  }
  static void TearDownTestSuite() { cpu_ = cuda_float_ = cuda_plain_ = cuda_ = cuda_eager_ = {}; }
  void SetUp() override {
    if (!why_.empty()) GTEST_SKIP() << why_;
  }

  static StageDevice device(const std::string& precision) {
    return must(choose_device("cuda:0", precision)).stage;
  }
  static std::vector<float> question() { return golden("q05_count").floats("input.audio"); }
  static std::vector<CodeRow> codes() {
    return to_code_rows(golden("q05_count").integers("tts.codes"));
  }
  static HostTensor speaker() {
    return speaker_tensor(golden("q05_count").floats("llm.spk_hidden"));
  }

  // The logits of the golden answer, token by token.
  static std::vector<float> forced_logits(const Models& models) {
    const Golden turn = golden("q05_count");
    const auto tokens = turn.integers("llm.tokens");
    LanguageSession session(models.language, greedy());
    std::vector<float> logits;
    size_t n = 0;
    session.set_token_hook([&](std::span<const float> seen, int32_t id) {
      if (n == tokens.size()) return id;
      logits.insert(logits.end(), seen.begin(), seen.end());
      return static_cast<int32_t>(tokens[n++]);
    });
    std::vector<TensorPtr> chunks;
    for (int i = 0; i < turn.count("chunk.", ".embed"); ++i)
      chunks.push_back(wrap_tensor(turn["chunk." + std::to_string(i) + ".embed"]));
    say(session, chunks);
    return logits;
  }
  static std::vector<float> embeddings(const Models& models) {
    std::vector<float> values;
    for (const TensorPtr& rows : encode(models, question())) append(values, host_floats(*rows));
    return values;
  }
  // Codes of a long text, in more than one segment.
  static std::vector<CodeRow> long_speech(const Models& models, SpeechModelOptions options) {
    const auto bursts = nlohmann::json::parse(golden("two_segments_none").metadata("bursts"))
                            .get<std::vector<std::string>>();
    SpeechSession session(models.speech);
    return speak(session, speaker(), bursts, options).codes;
  }

  static inline std::string why_;
  static inline Models cpu_, cuda_float_, cuda_plain_, cuda_, cuda_eager_;
};

// Weights.

TEST_F(CudaStages, ALargeTensorIsReadInPartsByThreads) {
  WeightsFile file;
  file.add("x", {1100, 6000}, 1);  // four parts
  const auto checkpoint = file.open();
  set_stage_threads(4);
  const auto read = [&](const StageDevice& to) {
    return run_stage("test", [&] { return checkpoint->load("x", {1100, 6000}, to); });
  };
  const at::Tensor on_cpu = must(read({}));
  EXPECT_TRUE(must(read(device("float32"))).to(at::kCPU).equal(on_cpu));
  EXPECT_TRUE(must(read(device("bfloat16"))).to(at::kCPU).equal(on_cpu.to(at::kBFloat16)));
  set_stage_threads(1);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    file["x"].data.back() = bad;
    const auto damaged = file.open()->load("x", {1100, 6000}, device("float32"));
    ASSERT_FALSE(damaged.ok());
    EXPECT_EQ(damaged.error().code, ErrorCode::kCorrupt);
  }
}

// float32 through torch's operators: the CPU's answers.

TEST_F(CudaStages, EncoderInFloat32) {
  EXPECT_LE(relative_error(embeddings(cuda_float_), embeddings(cpu_)), kFloatBound);
}

TEST_F(CudaStages, LogitsInFloat32) {
  EXPECT_LE(relative_error(forced_logits(cuda_float_), forced_logits(cpu_)), kFloatBound);
}

TEST_F(CudaStages, AHundredGreedyTokensInFloat32) {
  // Where the model would end its answer it says the best word instead.
  const auto said = [](const Models& models) {
    LanguageSession session(models.language, greedy(100));
    const Tokenizer& tokenizer = *models.language->tokenizer;
    session.set_token_hook([&](std::span<const float> logits, int32_t id) {
      if (!tokenizer.is_added_token(id)) return id;
      int32_t best = -1;
      for (int32_t i = 0; i < static_cast<int32_t>(logits.size()); ++i) {
        if (!tokenizer.is_added_token(i) && (best < 0 || logits[i] > logits[best])) best = i;
      }
      return best;
    });
    return say(session, encode(models, question())).ids;
  };
  const auto expected = said(cpu_);
  EXPECT_EQ(expected.size(), 100u);
  EXPECT_EQ(said(cuda_float_), expected);
}

TEST_F(CudaStages, FiveHundredGreedyCodesInFloat32) {
  const auto expected = long_speech(cpu_, {.temperature = 0});
  EXPECT_GE(expected.size(), 500u);
  EXPECT_EQ(long_speech(cuda_float_, {.temperature = 0}), expected);
}

TEST_F(CudaStages, SoundInFloat32) {
  const auto expected = sound_of(cpu_, codes());
  EXPECT_LE(max_difference(sound_of(cuda_float_, codes()), expected), kPcmBound);
  // The runner, which is float32 in either precision.
  const double runner = max_difference(sound_of(cuda_, codes()), expected);
  std::printf("vocoder's runner and the CPU: %.2g of full scale\n", runner);
  EXPECT_LE(runner, kPcmBound);
}

TEST_F(CudaStages, AWholeTurnInFloat32) {
  const Turn expected = converse(cpu_, question(), greedy(), {.temperature = 0});
  const Turn turn = converse(cuda_float_, question(), greedy(), {.temperature = 0});
  EXPECT_EQ(turn.ids, expected.ids);
  EXPECT_EQ(turn.codes, expected.codes);
  EXPECT_LE(max_difference(turn.pcm, expected.pcm), 1e-3);
}

// bfloat16, through torch's operators and through the kernels.

TEST_F(CudaStages, EncoderInBfloat16) {
  const auto expected = embeddings(cpu_);
  const double plain = relative_error(embeddings(cuda_plain_), expected);
  const double runner = relative_error(embeddings(cuda_), expected);
  std::printf("encoder in bfloat16 and the CPU in float32: torch %.2g, runner %.2g\n", plain,
              runner);
  EXPECT_LE(plain, kBfloat16Bound);
  EXPECT_LE(runner, kBfloat16Bound);
}

TEST_F(CudaStages, LogitsInBfloat16) {
  const auto expected = forced_logits(cpu_);
  const double plain = relative_error(forced_logits(cuda_plain_), expected);
  const double runner = relative_error(forced_logits(cuda_), expected);
  std::printf("logits in bfloat16 and the CPU in float32: torch %.2g, runner %.2g\n", plain,
              runner);
  EXPECT_LE(plain, kBfloat16Bound);
  EXPECT_LE(runner, kBfloat16Bound);
}

TEST_F(CudaStages, AnswersInBfloat16) {
  const Turn expected = converse(cpu_, question(), greedy(), {.temperature = 0});
  for (const Models* models : {&cuda_plain_, &cuda_}) {
    const Turn turn = converse(*models, question(), greedy(), {.temperature = 0});
    std::printf("%s: codes as in float32 up to row %.0f of %zu (%zu)\n",
                models == &cuda_ ? "runners" : "torch", agreement(turn.codes, expected.codes),
                expected.codes.size(), turn.codes.size());
    EXPECT_EQ(turn.ids, expected.ids);  // the small model is sure of this answer
    EXPECT_LE(relative_error(turn.speaker, expected.speaker), kBfloat16Bound);
    EXPECT_GE(turn.codes.size(), expected.codes.size() / 2);
    EXPECT_LE(turn.codes.size(), expected.codes.size() * 2);
    EXPECT_GE(agreement(turn.codes, expected.codes), 1);
  }
}

// The runners: replayed graphs and single launches do the same arithmetic.
TEST_F(CudaStages, GraphsChangeNothing) {
  EXPECT_EQ(embeddings(cuda_), embeddings(cuda_eager_));
  EXPECT_EQ(forced_logits(cuda_), forced_logits(cuda_eager_));
  EXPECT_EQ(sound_of(cuda_, codes()), sound_of(cuda_eager_, codes()));
  EXPECT_EQ(long_speech(cuda_, {.temperature = 0}), long_speech(cuda_eager_, {.temperature = 0}));
  LanguageModelOptions options;
  options.seed = 7;
  const SpeechModelOptions speech{.seed = 7};
  const Turn graphs = converse(cuda_, question(), options, speech);
  EXPECT_TRUE(graphs == converse(cuda_eager_, question(), options, speech));
  EXPECT_TRUE(graphs == converse(cuda_, question(), options, speech)) << "not deterministic";
}

// Tensors between stages.

TEST_F(CudaStages, EmbeddingsStayOnTheDevice) {
  const auto chunks = encode(cuda_, question());
  const at::Device gpu(at::kCUDA, 0);
  const at::Tensor there = must(run_stage("test", [&] { return unwrap_tensor(*chunks[0], gpu); }));
  EXPECT_TRUE(there.is_cuda());
  const at::Tensor here = must(unwrap_tensor(*chunks[0]));
  EXPECT_TRUE(here.is_cpu());
  EXPECT_TRUE(there.to(at::kCPU).equal(here));
  // Several readers see one copy.
  std::vector<const std::byte*> read(4);
  std::vector<std::thread> threads;
  for (auto& at : read) threads.emplace_back([&] { at = must(chunks[1]->host_bytes()).data(); });
  for (auto& thread : threads) thread.join();
  for (const std::byte* at : read) EXPECT_EQ(at, read[0]);
}

// Each stage's time on the GPU grows with its calls, and lies within the time that they took.
TEST_F(CudaStages, CallsAreTimed) {
  using Clock = std::chrono::steady_clock;
  const std::vector<float> pcm = question();
  for (const Models& models : {cuda_, cuda_float_}) {
    const auto encoder = must(new_audio_encoder(models.audio));
    const auto language = must(new_language_model(models.language, greedy()));
    SpeechSession speech(models.speech);
    const int64_t primed = language->gpu_nanoseconds();
    EXPECT_EQ(language->gpu_prefill_nanoseconds(), primed);
    const auto begin = Clock::now();
    const auto rows = must(encoder->step(std::span(pcm).first(16000), CancelFlag()));
    const Said said = say(*language, {rows});
    speak(speech, speaker_tensor(host_floats(*said.speaker)), said.bursts, {});
    const std::chrono::nanoseconds took = Clock::now() - begin;
    const int64_t prefill = language->gpu_prefill_nanoseconds() - primed;
    const int64_t decode = language->gpu_nanoseconds() - primed - prefill;
    std::printf("on the GPU: encoder %.3f, prefill %.3f, decode %.3f, speech %.3f of %.3f ms\n",
                1e-6 * static_cast<double>(encoder->gpu_nanoseconds()),
                1e-6 * static_cast<double>(prefill), 1e-6 * static_cast<double>(decode),
                1e-6 * static_cast<double>(speech.gpu_nanoseconds()),
                1e-6 * static_cast<double>(took.count()));
    for (const int64_t part :
         {encoder->gpu_nanoseconds(), prefill, decode, speech.gpu_nanoseconds()}) {
      EXPECT_GT(part, 10'000);
    }
    // One after the other.
    EXPECT_LT(encoder->gpu_nanoseconds() + prefill + decode + speech.gpu_nanoseconds(),
              took.count());
    const auto vocoder = must(new_vocoder(models.vocoder, {}));
    const HostTensor window(DataType::kUInt16, {25, 4}, std::vector<std::byte>(200));
    must(vocoder->step(window, false, CancelFlag()));
    const int64_t once = vocoder->gpu_nanoseconds();
    EXPECT_GT(once, 10'000);
    must(vocoder->step(window, false, CancelFlag()));
    EXPECT_GT(vocoder->gpu_nanoseconds(), once);
  }
}

// A tensor is read only after what computes it, which takes a while here.
TEST_F(CudaStages, AReaderOnAnotherStreamWaits) {
  const StageDevice gpu = device("float32");
  const StageStream writer(gpu, false), reader(gpu, true);
  const auto sum = run_stage("test", [&]() -> Result<double> {
    TensorPtr wrapped;
    {
      const StreamScope scope(writer);
      at::Tensor x = at::empty({4096, 4096}, gpu.options()).fill_(1);
      const at::Tensor mixing = at::empty({4096, 4096}, gpu.options()).fill_(1.0 / 4096);
      for (int i = 0; i < 50; ++i) x = x.matmul(mixing);
      wrapped = wrap_tensor(x.add_(1));
    }
    const StreamScope scope(reader);
    ASSIGN_OR_RETURN(const at::Tensor x, unwrap_tensor(*wrapped, gpu.device));
    return x.mean().item<double>();
  });
  EXPECT_NEAR(must(sum), 2, 1e-3);
}

// Several at once.

TEST_F(CudaStages, TwoAtOnceAnswerAsOneAlone) {
  LanguageModelOptions options;
  options.seed = 3;
  const SpeechModelOptions speech{.seed = 3};
  const Models other = load_models(device("bfloat16"));
  const Turn alone = converse(cuda_, question(), options, speech);
  for (int round = 0; round < 3; ++round) {
    Turn a, b;
    std::thread first([&] { a = converse(cuda_, question(), options, speech); });
    std::thread second([&] { b = converse(other, question(), options, speech); });
    first.join();
    second.join();
    EXPECT_TRUE(a == alone) << round;
    EXPECT_TRUE(b == alone) << round;
  }
}

// Sessions that are there at once have streams of their own; a new one gets that of one that is
// gone. torch's own pool has 32.
TEST_F(CudaStages, StreamsAreNotShared) {
  const StageDevice gpu = device("bfloat16");
  for (const bool high : {false, true}) {
    std::vector<StageStream> streams;
    std::set<void*> handles;
    must(run_stage("test", [&]() -> Result<int> {
      for (int i = 0; i < 100; ++i) {
        const StageStream& made = streams.emplace_back(gpu, high);
        handles.insert(made.handle());
        const StreamScope scope(made);
        if (at::empty({64}, gpu.options()).fill_(i).sum().item<double>() != 64 * i)
          return Error{ErrorCode::kFailed, "wrong sum"};
      }
      return 0;
    }));
    EXPECT_EQ(handles.size(), streams.size());
    const StageStream copy = streams.back();
    const void* const gone = streams.front().handle();
    streams.erase(streams.begin());
    streams.pop_back();
    const StageStream next(gpu, high);
    EXPECT_EQ(next.handle(), gone);
    EXPECT_NE(next.handle(), copy.handle());
  }
}

// One speaks while many others begin: what it launches must not end in their graphs.
TEST_F(CudaStages, OthersBeginWhileOneAnswers) {
  LanguageModelOptions options;
  options.seed = 3;
  const SpeechModelOptions speech{.seed = 3};
  const Turn alone = converse(cuda_, question(), options, speech);
  std::atomic<bool> done = false;
  std::thread others([&] {
    // More than torch's pool has streams; kept, so that each has another one.
    std::vector<std::unique_ptr<LanguageModel>> models;
    std::vector<std::unique_ptr<Vocoder>> vocoders;
    for (int i = 0; i < 40; ++i) {
      models.push_back(must(new_language_model(cuda_.language, greedy())));
      vocoders.push_back(must(new_vocoder(cuda_.vocoder, {})));
    }
    done = true;
  });
  int rounds = 0;
  do {
    EXPECT_TRUE(converse(cuda_, question(), options, speech) == alone) << rounds;
    ++rounds;
  } while (!done);
  others.join();
  std::printf("%d answers meanwhile\n", rounds);
}

// While another answer's first words are made: its own are made at once, later ones wait.
TEST_F(CudaStages, LaterWordsWaitForFirstWordsOfOthers) {
  const auto language = must(new_language_model(cuda_.language, greedy()));
  const CancelFlag cancel;
  for (const TensorPtr& rows : encode(cuda_, question()))
    ASSERT_TRUE(language->prefill_audio(*rows, cancel).ok());
  ASSERT_TRUE(language->start_answer(cancel).ok());
  const SpeechGate::FirstWords others(SpeechGate::of_device(0));
  std::vector<double> ms;
  for (FinishReason finish = FinishReason::kNone; finish == FinishReason::kNone;) {
    const auto begin = std::chrono::steady_clock::now();
    finish = must(language->next_burst(cancel)).finish;
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                     .count());
  }
  ASSERT_GT(ms.size(), 5u);
  for (size_t i = 0; i < ms.size(); ++i) {
    if (i < 4)
      EXPECT_LT(ms[i], 40) << i;
    else
      EXPECT_GE(ms[i], 40) << i;
  }
}

// Out of memory.

TEST_F(CudaStages, AnAbsurdContextIsRefusedAndOthersGoOn) {
  const LanguageModelOptions options = greedy();
  const auto running = must(new_language_model(cuda_.language, options));
  const auto chunks = encode(cuda_, question());
  const auto expected = say(*must(new_language_model(cuda_.language, options)), chunks).ids;
  const auto refused = run_stage("language model", [&]() -> Result<int> {
    KvCache cache(cuda_.language->config.language, int64_t{1} << 30, device("bfloat16"));
    return 0;
  });
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace) << refused.error().detail;
  for (const char* words :
       {"language model: cuda:0 is out of memory", "asked for", "free", "context-length"}) {
    EXPECT_NE(refused.error().message.find(words), std::string::npos) << refused.error().message;
  }
  EXPECT_EQ(say(*running, chunks).ids, expected);
}

TEST_F(CudaStages, NoSessionOnAFullGpu) {
  const LanguageModelOptions options = greedy();
  const auto running = must(new_language_model(cuda_.language, options));
  const auto chunks = encode(cuda_, question());
  c10::DeviceAllocator* const allocator = c10::getDeviceAllocator(at::kCUDA);
  allocator->emptyCache();
  std::vector<at::Tensor> all;
  for (int64_t bytes = int64_t{1} << 34; bytes >= 1 << 20;) {
    const auto more = run_stage("test", [&]() -> Result<at::Tensor> {
      return at::empty({bytes}, device("float32").with(at::kByte).options());
    });
    if (more.ok())
      all.push_back(*more);
    else
      bytes /= 2;
  }
  // The encoder's session wants 32 MiB for cuBLAS at once.
  const auto encoder = run_stage("test", [&] { return new_audio_encoder(cuda_.audio); });
  EXPECT_FALSE(encoder.ok());
  if (!encoder.ok()) {
    EXPECT_EQ(encoder.error().code, ErrorCode::kNoSpace) << encoder.error().message;
    std::printf("%s\n", encoder.error().message.c_str());
  }
  all.clear();
  allocator->emptyCache();
  EXPECT_EQ(say(*running, chunks).ids,
            say(*must(new_language_model(cuda_.language, options)), chunks).ids);
  EXPECT_EQ(sound_of(cuda_, codes()).size(), codes().size() * 512);
}

}  // namespace
}  // namespace minicpmo
