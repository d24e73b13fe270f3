#include "cuda/speech_runner.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "cuda/decode.h"
#include "cuda/device.cuh"
#include "cuda/event.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"
#include "cuda/prefill.h"

namespace minicpmo::cuda {
namespace {

static_assert(SpeechRunner::kMaxSteps == kMaxCallCodes);

// Rows of the graph of a prefill: a slice of ten tokens, what goes before and behind it, and a word
// that came with them. What is longer is launched kernel by kernel.
constexpr int kSliceRows = 16;
// Steps of the graphs. A whole call is one; a part of one is a chain of the smaller ones, with one
// always queued behind the one that runs, so that the device never waits for the host.
constexpr int kCallSteps = 25, kGraphSteps = 5;
constexpr int kSpecialsBefore = 2;  // [Stts] and the speaker
constexpr int kThreads = 256;

// Row i of x is the embedding of ids[i], or the speaker's vector in row 1 of the cache.
__global__ void embed_text_kernel(const uint16_t* embedding, const uint16_t* speaker,
                                  const PrefillState* text, const int32_t* ids, int hidden,
                                  float* x) {
  const int row = static_cast<int>(blockIdx.x);
  const bool filling = row >= text->rows;
  const uint16_t* from = embedding;
  if (!filling) from += static_cast<int64_t>(ids[row]) * hidden;
  if (text->begin + row == 1) from = speaker;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads)
    x[static_cast<int64_t>(row) * hidden + i] = filling ? 0.0F : widen(from[i]);
}

// What the first step of a call reads: the audio start, or the codes before it, in the order in
// which DecodeStep adds them.
__global__ void first_input_kernel(const SpeechState* state, const uint16_t* audio_start,
                                   const uint16_t* codes, int tokens, int hidden, float* x) {
  const bool start = state->decode.position == state->front_rows + state->text_slots;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    float sum = 0;
    for (int b = 0; b < kSpeechBooks && !start; ++b)
      sum += widen(codes[(static_cast<int64_t>(b) * tokens + state->last[b]) * hidden + i]);
    x[i] = start ? widen(audio_start[i]) : sum;
  }
}

// Zeros in the first `rows` rows of each head; block (side, head). `sides`: keys and values of all
// layers. Lengths in units of 16 bytes.
__global__ void clear_kernel(bfloat16_bits* const* sides, int head_size, int size) {
  uint4* const to =
      reinterpret_cast<uint4*>(sides[blockIdx.x]) + static_cast<int64_t>(blockIdx.y) * head_size;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads)
    to[i] = make_uint4(0, 0, 0, 0);
}

const char* unsupported(const SpeechRunnerSpec& spec) {
  if (const char* why = DecodeStep::unsupported(spec.shape)) return why;
  if (const char* why = Prefill::unsupported(spec.shape)) return why;
  if (spec.tokens < 2 || spec.tokens > 1024) return "a book has more codes than the sampler takes";
  if (spec.text_slots < 1 || spec.text_slice < 1 || spec.codes_per_slice < 1 ||
      spec.weights.capacity < spec.text_slots + kSpecialsBefore + kSliceRows) {
    return "the cache has no room for a segment";
  }
  return nullptr;
}

class GraphedSpeechRunner final : public SpeechRunner {
 public:
  explicit GraphedSpeechRunner(const SpeechRunnerSpec& spec)
      : spec_(spec), stream_(static_cast<cudaStream_t>(spec.options.stream)) {}

  cudaError_t init();
  Result<void> begin_segment() override { return check(clear(), "speech model"); }
  Result<void> prefill_text(std::span<const int32_t> ids, int begin) override;
  Result<Outcome> speak(const SpeechCallSpec& call, const CancelFlag& cancel,
                        std::span<std::array<uint16_t, 4>> codes) override;
  const float* logits() override { return step_.logits(); }

 private:
  // Text to prefill, in pinned memory and on the device: a PrefillState and the ids behind it.
  static constexpr size_t kDeviceText = sizeof(SpeechState), kHostText = 2 * sizeof(SpeechState);
  static size_t text_bytes(int rows) { return sizeof(PrefillState) + sizeof(int32_t) * rows; }
  PrefillState* host_text() const { return host_.as<PrefillState>(kHostText); }
  int32_t* host_ids() const { return host_.as<int32_t>(kHostText + sizeof(PrefillState)); }
  PrefillState* text() const { return device_.as<PrefillState>(kDeviceText); }
  int32_t* ids() const { return device_.as<int32_t>(kDeviceText + sizeof(PrefillState)); }
  // A call.
  SpeechState* state() const { return device_.as<SpeechState>(); }
  SpeechState* sent() const { return host_.as<SpeechState>(); }
  SpeechState* received() const { return host_.as<SpeechState>(sizeof(SpeechState)); }
  int audio_start() const { return spec_.text_slots + kSpecialsBefore; }

  cudaError_t allocate();
  cudaError_t capture();
  cudaError_t clear();
  cudaError_t embed_text(int rows);
  cudaError_t prefill_slice();
  cudaError_t prefill_rows(int rows, int begin);
  cudaError_t run_steps(int steps);
  cudaError_t begin_call(const SpeechCallSpec& call);
  cudaError_t queue_steps(int steps, const Event& done);
  cudaError_t run_call(int steps, const CancelFlag& cancel, bool& cancelled);
  Result<void> check_call(const SpeechCallSpec& call, size_t room) const;

  SpeechRunnerSpec spec_;
  cudaStream_t stream_;
  Blas blas_;
  Prefill prefill_;
  DecodeStep step_;
  SpeechCodes codes_;
  DeviceMemory device_, sides_;
  PinnedMemory host_;
  Event events_[2];  // of the last two groups of steps
  Event text_read_;  // host_text() may be written again
  Graph slice_graph_, call_graph_, steps_graph_, step_graph_;
};

cudaError_t GraphedSpeechRunner::init() {
  const DecoderWeights& weights = spec_.weights;
  RETURN_IF_CUDA_ERROR(allocate());
  RETURN_IF_CUDA_ERROR(blas_.init(stream_));
  RETURN_IF_CUDA_ERROR(prefill_.init(spec_.shape, weights, audio_start(),
                                     audio_start() + kSliceRows, &blas_, stream_));
  RETURN_IF_CUDA_ERROR(step_.init(spec_.shape, weights, true));
  codes_ = {spec_.code_embedding, spec_.tokens};
  for (Event* event : {&events_[0], &events_[1], &text_read_})
    RETURN_IF_CUDA_ERROR(event->create());
  RETURN_IF_CUDA_ERROR(capture());
  return cudaStreamSynchronize(stream_);
}

cudaError_t GraphedSpeechRunner::allocate() {
  RETURN_IF_CUDA_ERROR(device_.allocate(sizeof(SpeechState) + text_bytes(audio_start())));
  RETURN_IF_CUDA_ERROR(host_.allocate(2 * sizeof(SpeechState) + text_bytes(audio_start())));
  std::vector<bfloat16_bits*> sides;
  for (const LayerWeights& layer : spec_.weights.layers)
    sides.insert(sides.end(), {layer.keys, layer.values});
  RETURN_IF_CUDA_ERROR(sides_.allocate(sides.size() * sizeof(sides[0])));
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(sides_.as<void>(), sides.data(),
                                       sides.size() * sizeof(sides[0]), cudaMemcpyHostToDevice,
                                       stream_));
  return cudaStreamSynchronize(stream_);
}

// Runs everything once, as the libraries need; that leaves only the row of the audio start behind,
// which no step sees before it has been written again.
cudaError_t GraphedSpeechRunner::capture() {
  *host_text() = {};
  RETURN_IF_CUDA_ERROR(prefill_slice());
  SpeechCallSpec nothing;
  nothing.position = audio_start();
  nothing.steps = 0;
  RETURN_IF_CUDA_ERROR(begin_call(nothing));
  RETURN_IF_CUDA_ERROR(run_steps(1));
  if (!spec_.options.graphs) return cudaSuccess;
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  RETURN_IF_CUDA_ERROR(slice_graph_.capture(stream_, [&] { return prefill_slice(); }));
  RETURN_IF_CUDA_ERROR(step_graph_.capture(stream_, [&] { return run_steps(1); }));
  RETURN_IF_CUDA_ERROR(steps_graph_.capture(stream_, [&] { return run_steps(kGraphSteps); }));
  return call_graph_.capture(stream_, [&] { return run_steps(kCallSteps); });
}

cudaError_t GraphedSpeechRunner::clear() {
  constexpr int kUnit = sizeof(uint4) / sizeof(bfloat16_bits);
  const DecoderShape& shape = spec_.shape;
  return launch(clear_kernel, dim3(2 * shape.layers, shape.kv_heads), kThreads, 0, stream_, false,
                sides_.as<bfloat16_bits*>(), spec_.weights.capacity * shape.head_dim / kUnit,
                audio_start() * shape.head_dim / kUnit);
}

cudaError_t GraphedSpeechRunner::embed_text(int rows) {
  RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(text(), host_text(), text_bytes(rows), cudaMemcpyHostToDevice, stream_));
  return launch(embed_text_kernel, dim3(rows), kThreads, 0, stream_, false, spec_.text_embedding,
                spec_.speaker, text(), ids(), spec_.shape.hidden, prefill_.x());
}

cudaError_t GraphedSpeechRunner::prefill_slice() {
  RETURN_IF_CUDA_ERROR(embed_text(kSliceRows));
  return prefill_.run(text(), kSliceRows, audio_start() + kSliceRows);
}

cudaError_t GraphedSpeechRunner::prefill_rows(int rows, int begin) {
  if (rows > kSliceRows) {
    RETURN_IF_CUDA_ERROR(embed_text(rows));
    RETURN_IF_CUDA_ERROR(prefill_.run(rows, begin));
  } else {
    RETURN_IF_CUDA_ERROR(slice_graph_.captured() ? slice_graph_.launch(stream_) : prefill_slice());
  }
  return text_read_.record(stream_);
}

Result<void> GraphedSpeechRunner::prefill_text(std::span<const int32_t> ids, int begin) {
  const int rows = static_cast<int>(ids.size());
  if (rows == 0) return {};
  const bool known = std::all_of(ids.begin(), ids.end(),
                                 [&](int32_t id) { return id >= 0 && id < spec_.text_tokens; });
  if (!known || begin < 0 || begin + rows > audio_start()) {
    return Error{ErrorCode::kFailed, "speech model: bad text",
                 std::to_string(rows) + " tokens at " + std::to_string(begin)};
  }
  RETURN_IF_ERROR(check(text_read_.wait(), "speech model"));
  *host_text() = {begin, rows};
  std::copy(ids.begin(), ids.end(), host_ids());
  return check(prefill_rows(rows, begin), "speech model: reading text");
}

// `steps` steps, and what has come of the call so far back to the host.
cudaError_t GraphedSpeechRunner::run_steps(int steps) {
  for (int i = 0; i < steps; ++i) RETURN_IF_CUDA_ERROR(step_.speech_step(codes_, state(), stream_));
  return cudaMemcpyAsync(received(), state(), sizeof(SpeechState), cudaMemcpyDeviceToHost, stream_);
}

cudaError_t GraphedSpeechRunner::begin_call(const SpeechCallSpec& call) {
  SpeechState s;
  s.front_rows = kSpecialsBefore;
  s.text_slots = spec_.text_slots;
  s.text_slice = spec_.text_slice;
  s.codes_per_slice = spec_.codes_per_slice;
  s.text_end = std::min(call.text_tokens + kSpecialsBefore + 1, audio_start());  // with [Etts]
  s.decode.position = call.position;
  s.decode.visible_front = speech_visible_front(s, call.position);
  s.decode.visible_from = audio_start() + 1;
  s.limit = call.steps;
  s.min_steps = call.min_steps;
  std::copy(call.last.begin(), call.last.end(), s.last);
  const SpeechSampling& sampling = call.sampling;
  std::copy(sampling.temperature.begin(), sampling.temperature.end(), s.temperature);
  s.top_k = sampling.top_k;
  s.min_keep = sampling.min_keep;
  s.top_p = sampling.top_p;
  s.seed = sampling.seed;
  s.stream = sampling.stream;
  s.counter = sampling.counter;
  *sent() = s;
  received()->ended = 0;
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(state(), sent(), sizeof s, cudaMemcpyHostToDevice, stream_));
  const int hidden = spec_.shape.hidden;
  return launch(first_input_kernel, dim3(1), kThreads, 0, stream_, false, state(),
                spec_.text_embedding + static_cast<int64_t>(spec_.audio_bos_token) * hidden,
                spec_.code_embedding, spec_.tokens, hidden, step_.x());
}

cudaError_t GraphedSpeechRunner::queue_steps(int steps, const Event& done) {
  const Graph& graph = steps == 1 ? step_graph_ : steps == kGraphSteps ? steps_graph_ : call_graph_;
  RETURN_IF_CUDA_ERROR(graph.captured() ? graph.launch(stream_) : run_steps(steps));
  return done.record(stream_);
}

cudaError_t GraphedSpeechRunner::run_call(int steps, const CancelFlag& cancel, bool& cancelled) {
  bool stop = false;
  for (int queued = 0, done = 0; done < queued || (steps > 0 && !stop);) {
    if (steps > 0 && !stop && queued - done < 2) {
      const int group = steps >= kCallSteps ? kCallSteps : steps >= kGraphSteps ? kGraphSteps : 1;
      RETURN_IF_CUDA_ERROR(queue_steps(group, events_[queued++ % 2]));
      steps -= group;
      continue;
    }
    RETURN_IF_CUDA_ERROR(events_[done++ % 2].wait());
    cancelled = cancelled || cancel.is_set();
    // The next copy may be on its way already; it can only set it.
    const bool ended = std::atomic_ref(received()->ended).load(std::memory_order_relaxed) != 0;
    stop = cancelled || ended;
  }
  return cudaSuccess;
}

Result<void> GraphedSpeechRunner::check_call(const SpeechCallSpec& call, size_t room) const {
  const auto bad = [](const std::string& what) {
    return Error{ErrorCode::kFailed, "speech model: a call that cannot be run", what};
  };
  if (call.steps < 1 || call.steps > kMaxSteps || static_cast<size_t>(call.steps) > room)
    return bad(std::to_string(call.steps) + " steps");
  if (call.position < audio_start() || call.position + call.steps > spec_.weights.capacity)
    return bad("position " + std::to_string(call.position));
  if (call.text_tokens < 0) return bad("text tokens");
  for (uint16_t code : call.last) {
    if (code >= spec_.tokens) return bad("code " + std::to_string(code));
  }
  return {};
}

Result<SpeechRunner::Outcome> GraphedSpeechRunner::speak(const SpeechCallSpec& call,
                                                         const CancelFlag& cancel,
                                                         std::span<std::array<uint16_t, 4>> codes) {
  RETURN_IF_ERROR(check_call(call, codes.size()));
  bool cancelled = false;
  RETURN_IF_ERROR(check(begin_call(call), "speech model"));
  RETURN_IF_ERROR(check(run_call(call.steps, cancel, cancelled), "speech model"));
  if (cancelled) return Error{ErrorCode::kCancelled, "speaking was stopped", ""};
  const SpeechState& s = *received();
  for (int i = 0; i < s.count; ++i)
    std::copy(std::begin(s.codes[i]), std::end(s.codes[i]), codes[i].begin());
  return Outcome{s.count, s.ended != 0, s.counter};
}

}  // namespace

Result<std::unique_ptr<SpeechRunner>> new_speech_runner(const SpeechRunnerSpec& spec) {
  if (const char* why = unsupported(spec)) {
    return Error{ErrorCode::kSettings, "speech model: no GPU kernels for its sizes", why};
  }
  auto runner = std::make_unique<GraphedSpeechRunner>(spec);
  RETURN_IF_ERROR(check(runner->init(), "speech model: setting up the GPU"));
  return std::unique_ptr<SpeechRunner>(std::move(runner));
}

}  // namespace minicpmo::cuda
