// What libminicpmo-cuda.so offers the stages: each stage's bfloat16 path on a GPU, from our own
// kernels, cuBLAS and CUDA graphs. The stages' ATen code is the same computation without them, runs
// on every device and in float32 too, and is the oracle.
//
// A runner belongs to one session and one stream; it is not thread-safe, but different runners may
// run at the same time. The thread's current CUDA device has to be the runner's. Pointers are to
// device memory unless they say "host"; what they point to must outlive the runner. Calls enqueue
// and return, unless they say that they wait. All memory and all graphs are made in the factory
// functions, so a call neither allocates nor captures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "common/result.h"
#include "cuda/decoder_types.h"

namespace minicpmo::cuda {

using Stream = void*;  // cudaStream_t

struct LanguageRunnerSpec;
class LanguageRunner;  // language_runner.h
struct SpeechRunnerSpec;
class SpeechRunner;  // speech_runner.h
struct EncoderRunnerSpec;
class EncoderRunner;  // encoder_runner.h
struct VocoderRunnerSpec;
class VocoderRunner;  // vocoder_runner.h

// Whether graphs are replayed or their kernels launched one by one, for tests ("graph = eager") and
// profilers. Taken when a runner is made.
struct RunnerOptions {
  int device = 0;
  Stream stream = nullptr;
  bool graphs = true;
};

struct Library {
  static constexpr uint32_t kVersion = 3;  // goes up when this table or a runner changes
  uint32_t version;
  // Each fails with kSettings if the kernels cannot run these shapes (the caller then stays with
  // ATen), kNoSpace if memory is short.
  Result<std::unique_ptr<LanguageRunner>> (*new_language_runner)(const LanguageRunnerSpec&);
  Result<std::unique_ptr<SpeechRunner>> (*new_speech_runner)(const SpeechRunnerSpec&);
  Result<std::unique_ptr<EncoderRunner>> (*new_encoder_runner)(const EncoderRunnerSpec&);
  Result<std::unique_ptr<VocoderRunner>> (*new_vocoder_runner)(const VocoderRunnerSpec&);
  // Held while a graph is captured. What waits for the whole device, as freeing its memory does,
  // invalidates every capture under way: hold this for it.
  std::mutex& (*capture_mutex)() = nullptr;
  // A stream that does not wait for the default one, nor that for it. It is never destroyed.
  Result<Stream> (*new_stream)(int device, bool high_priority) = nullptr;
};

constexpr const char* kLibrarySymbol = "minicpmo_cuda_library";
using LibraryFunction = const Library* (*)();

}  // namespace minicpmo::cuda
