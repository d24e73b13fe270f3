// The two decoders at once, as in a call: how long a call of the speech model (25 steps) takes
// while the language model decodes on another stream, with and without dependent launch and
// priorities. Usage: overlap_bench. Exits with 77 where there is no CUDA device.
#include <algorithm>
#include <cstdio>
#include <functional>

#include "random_model.cuh"

namespace minicpmo::cuda::test {
namespace {

constexpr int kVocabulary = 151700, kTokens = 626, kSteps = 25, kCalls = 15;

struct Speech {
  RandomModel model{tts_shape(20), kSpeechBooks* kTokens, 2400, false, 1e4, 1};
  SpeechCodes codes{model.random(size_t{kSpeechBooks} * kTokens * model.shape.hidden, 0, 0.8F),
                    kTokens};
  SpeechState* state = static_cast<SpeechState*>(model.allocate(sizeof(SpeechState)));
  DecodeStep step;
  Graph call;
  cudaStream_t stream = nullptr;

  void prepare() {
    SpeechState s;
    for (int b = 0; b < kSpeechBooks; ++b) s.temperature[b] = 0.2F;
    s.text_end = 302;
    s.limit = s.min_steps = kMaxCallCodes;
    s.decode = {350, speech_visible_front(s, 350), 303};
    CHECK(cudaMemcpyAsync(state, &s, sizeof s, cudaMemcpyHostToDevice, stream));
    CHECK(cudaStreamSynchronize(stream));
  }
};

struct Language {
  RandomModel model{llm_shape(28), kVocabulary, 4096, true, 1e6, 2};
  uint16_t* embedding = model.random(size_t{kVocabulary} * model.shape.hidden, 0, 1);
  int32_t* token = static_cast<int32_t*>(model.allocate(4));
  DecodeState* state = static_cast<DecodeState*>(model.allocate(sizeof(DecodeState)));
  DecodeStep step;
  Graph one;
  cudaStream_t stream = nullptr;
};

double elapsed_us(cudaEvent_t begin, cudaEvent_t end) {
  CHECK(cudaEventSynchronize(end));
  float ms;
  CHECK(cudaEventElapsedTime(&ms, begin, end));
  return 1000.0 * ms;
}

void run(bool llm_overlap, bool tts_overlap, bool priority) {
  static Speech speech;
  static Language language;
  int least, greatest;
  CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  CHECK(cudaStreamCreateWithPriority(&speech.stream, cudaStreamNonBlocking,
                                     priority ? greatest : least));
  CHECK(cudaStreamCreateWithPriority(&language.stream, cudaStreamNonBlocking, least));
  DecodeStep talk, think;
  CHECK(talk.init(speech.model.shape, speech.model.weights, tts_overlap));
  CHECK(think.init(language.model.shape, language.model.weights, llm_overlap));
  to_device(language.token, std::vector<int32_t>{1234});
  speech.call = captured(speech.stream, [&] {
    for (int i = 0; i < kSteps; ++i)
      CHECK(talk.speech_step(speech.codes, speech.state, speech.stream));
  });
  language.one = captured(language.stream, [&] {
    CHECK(think.token_step(language.embedding, language.token, language.state, language.stream));
  });
  cudaEvent_t a, b, c, d;
  for (cudaEvent_t* event : {&a, &b, &c, &d}) CHECK(cudaEventCreate(event));

  std::vector<double> alone, together, token_alone, token_together;
  for (int i = 0; i < kCalls; ++i) {
    speech.prepare();
    CHECK(cudaEventRecord(a, speech.stream));
    CHECK(speech.call.launch(speech.stream));
    CHECK(cudaEventRecord(b, speech.stream));
    alone.push_back(elapsed_us(a, b));

    to_device(language.state, std::vector<DecodeState>{{1024, 0, 0}});
    CHECK(cudaEventRecord(a, language.stream));
    for (int n = 0; n < 3; ++n) CHECK(language.one.launch(language.stream));
    CHECK(cudaEventRecord(b, language.stream));
    token_alone.push_back(elapsed_us(a, b) / 3);

    // The language model has work for longer than the call can take.
    to_device(language.state, std::vector<DecodeState>{{1024, 0, 0}});
    speech.prepare();
    constexpr int kTokensAhead = 20;
    CHECK(cudaEventRecord(c, language.stream));
    for (int n = 0; n < kTokensAhead; ++n) CHECK(language.one.launch(language.stream));
    CHECK(cudaEventRecord(d, language.stream));
    CHECK(cudaEventRecord(a, speech.stream));
    CHECK(speech.call.launch(speech.stream));
    CHECK(cudaEventRecord(b, speech.stream));
    together.push_back(elapsed_us(a, b));
    token_together.push_back(elapsed_us(c, d) / kTokensAhead);
  }
  std::printf(
      "dependent launch llm %d tts %d, priority %d: call of 25 steps alone %.2f ms, beside the llm "
      "%.2f ms; token alone %.2f ms, with one call beside 20 of them %.2f ms\n",
      llm_overlap, tts_overlap, priority, median(alone) / 1e3, median(together) / 1e3,
      median(token_alone) / 1e3, median(token_together) / 1e3);
  CHECK(cudaStreamDestroy(speech.stream));
  CHECK(cudaStreamDestroy(language.stream));
}

}  // namespace
}  // namespace minicpmo::cuda::test

int main() {
  using namespace minicpmo::cuda::test;
  if (no_device()) return 77;
  for (const bool priority : {false, true}) {
    for (const bool llm_overlap : {false, true}) {
      for (const bool tts_overlap : {false, true}) run(llm_overlap, tts_overlap, priority);
    }
  }
  return 0;
}
