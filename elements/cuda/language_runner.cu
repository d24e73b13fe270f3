#include "cuda/language_runner.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cuda/blas.h"
#include "cuda/decode.h"
#include "cuda/error.h"
#include "cuda/event.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/prefill.h"
#include "cuda/token_sampling.h"

namespace minicpmo::cuda {
namespace {

constexpr const char* kWhat = "language model";
// Without dependent launch: the next kernel would take the registers that the speech model's need
// beside it, and inside a graph it gains nothing (PERF.md, both decoders at once).
constexpr bool kOverlap = false;

// What the kernels of a token read and write, in device memory.
struct BurstState {
  DecodeState decode;
  TokenState token;
};

// What the host reads back after each token: the first fields of TokenState.
struct Drawn {
  int32_t token, drawn, not_finite;
};
static_assert(offsetof(TokenState, token) == 0 && offsetof(TokenState, not_finite) == 8);

// Pinned host memory of one kind.
template <class T>
class Pinned {
 public:
  cudaError_t allocate(size_t count) { return memory_.allocate(count * sizeof(T)); }
  T* data() const { return memory_.template as<T>(); }
  T& operator[](size_t i) const { return data()[i]; }

 private:
  PinnedMemory memory_;
};

// Rows and keys of the passes that are graphs: a question's last words with the answer prompt are
// 10 to 60 rows. The next larger ones are taken.
constexpr int kGraphRows[] = {16, 32, 64};
constexpr int kGraphKeys[] = {256, 512, 1024, 2048, 4096, 8192};

struct PrefillGraph {
  int rows, keys;
  Graph graph;
};

class Runner final : public LanguageRunner {
 public:
  explicit Runner(const LanguageRunnerSpec& spec)
      : spec_(spec), stream_(static_cast<cudaStream_t>(spec.options.stream)) {}
  // What was enqueued still uses the buffers.
  ~Runner() override { cudaStreamSynchronize(stream_); }

  cudaError_t init();

  Result<void> prefill(const bfloat16_bits* x, int rows, int begin, int keep) override {
    if (keep < 0 || keep > rows)
      return Error{ErrorCode::kFailed, "language model: more rows to keep than rows", kWhat};
    return check(enqueue_prefill(x, rows, begin, keep), kWhat);
  }
  const float* states() const override { return states_.as<float>(); }
  Result<void> next_logits(std::optional<int32_t> carried, int begin,
                           std::span<float> logits) override;
  Result<std::vector<int32_t>> draw(const TokenBurst& burst, const CancelFlag& cancel) override;

 private:
  cudaError_t allocate();
  cudaError_t warm_up();
  cudaError_t capture_prefills();
  cudaError_t run_layers(int rows, int begin);
  cudaError_t enqueue_prefill(const bfloat16_bits* x, int rows, int begin, int keep);
  cudaError_t read_logits(std::optional<int32_t> carried, int begin);
  cudaError_t upload(const BurstState& state, std::span<const int32_t> penalised);
  cudaError_t step();
  cudaError_t enqueue_draw(int index, bool from_prompt);
  BurstState* state() const { return state_.as<BurstState>(); }
  size_t logits_bytes() const { return sizeof(float) * spec_.vocab; }

  LanguageRunnerSpec spec_;
  cudaStream_t stream_;
  Blas blas_;
  Prefill prefill_;
  DecodeStep decode_;
  TokenSampler sampler_;
  Graph step_graph_;                          // reads the latest token and draws the next one
  std::vector<PrefillGraph> prefill_graphs_;  // in the order of rows, then keys
  DeviceMemory prefill_state_;
  Pinned<PrefillState> prefill_state_to_send_;
  // prompt_logits_: of the last prefill; its answer's first burst may have to be made again.
  DeviceMemory state_, states_, prompt_logits_;
  Pinned<BurstState> state_to_send_;
  Pinned<int32_t> penalised_to_send_;
  Pinned<Drawn> drawn_;
  Pinned<float> logits_;
  Event sent_;
  std::array<Event, kMaxBurst> drawn_there_;
};

cudaError_t Runner::init() {
  RETURN_IF_CUDA_ERROR(blas_.init(stream_));
  RETURN_IF_CUDA_ERROR(decode_.init(spec_.shape, spec_.weights, kOverlap));
  RETURN_IF_CUDA_ERROR(prefill_.init(spec_.shape, spec_.weights,
                                     std::min(kMaxRows, spec_.weights.capacity),
                                     spec_.weights.capacity, &blas_, stream_));
  RETURN_IF_CUDA_ERROR(sampler_.init(spec_.vocab, kMaxPenalised, kOverlap));
  RETURN_IF_CUDA_ERROR(allocate());
  RETURN_IF_CUDA_ERROR(warm_up());
  if (!spec_.options.graphs) return cudaSuccess;
  RETURN_IF_CUDA_ERROR(capture_prefills());
  return step_graph_.capture(stream_, [&] { return step(); });
}

cudaError_t Runner::capture_prefills() {
  const auto* const at = prefill_state_.as<PrefillState>();
  for (const int rows : kGraphRows) {
    for (const int wanted : kGraphKeys) {
      const int keys = std::min(wanted, spec_.weights.capacity);
      if (rows > keys) continue;
      // cuBLAS sets itself up for these sizes at their first call.
      RETURN_IF_CUDA_ERROR(prefill_.run(at, rows, keys));
      RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
      PrefillGraph made{rows, keys, {}};
      RETURN_IF_CUDA_ERROR(
          made.graph.capture(stream_, [&] { return prefill_.run(at, rows, keys); }));
      // The first launch of a graph takes longer. With 0 rows in *at the cache stays as it is.
      RETURN_IF_CUDA_ERROR(made.graph.launch(stream_));
      prefill_graphs_.push_back(std::move(made));
      if (keys < wanted) break;
    }
  }
  return cudaSuccess;
}

// On what prefill_.x() holds.
cudaError_t Runner::run_layers(int rows, int begin) {
  const auto found =
      std::find_if(prefill_graphs_.begin(), prefill_graphs_.end(),
                   [&](const PrefillGraph& g) { return rows <= g.rows && begin + rows <= g.keys; });
  if (found == prefill_graphs_.end()) return prefill_.run(rows, begin);
  RETURN_IF_CUDA_ERROR(sent_.wait());  // what was sent last may not have been read yet
  prefill_state_to_send_[0] = {begin, rows};
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(prefill_state_.as<void>(), prefill_state_to_send_.data(),
                                       sizeof(PrefillState), cudaMemcpyHostToDevice, stream_));
  RETURN_IF_CUDA_ERROR(sent_.record(stream_));
  return found->graph.launch(stream_);
}

cudaError_t Runner::allocate() {
  RETURN_IF_CUDA_ERROR(state_.allocate(sizeof(BurstState)));
  RETURN_IF_CUDA_ERROR(states_.allocate(sizeof(float) * kMaxRows * spec_.shape.hidden));
  RETURN_IF_CUDA_ERROR(prompt_logits_.allocate(logits_bytes()));
  RETURN_IF_CUDA_ERROR(prefill_state_.allocate(sizeof(PrefillState)));
  RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(prefill_state_.as<void>(), 0, sizeof(PrefillState), stream_));
  RETURN_IF_CUDA_ERROR(prefill_state_to_send_.allocate(1));
  RETURN_IF_CUDA_ERROR(state_to_send_.allocate(1));
  RETURN_IF_CUDA_ERROR(penalised_to_send_.allocate(kMaxPenalised));
  RETURN_IF_CUDA_ERROR(drawn_.allocate(kMaxBurst));
  RETURN_IF_CUDA_ERROR(logits_.allocate(spec_.vocab));
  RETURN_IF_CUDA_ERROR(sent_.create(cudaEventBlockingSync));
  for (Event& event : drawn_there_) RETURN_IF_CUDA_ERROR(event.create(cudaEventBlockingSync));
  return cudaSuccess;
}

// The first call of a kernel loads it. Zeros go through the layers: what that leaves in the cache
// is finite, and overwritten before it is seen.
cudaError_t Runner::warm_up() {
  const int most = std::min(kMaxRows, spec_.weights.capacity);
  RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(prefill_.x(), 0, sizeof(float) * most * spec_.shape.hidden, stream_));
  for (const int rows : {8, 40, kMaxRows}) {
    RETURN_IF_CUDA_ERROR(prefill_.run(std::min(rows, most), 0));
  }
  RETURN_IF_CUDA_ERROR(upload({{spec_.weights.capacity, 0, 0}, {}}, {}));
  RETURN_IF_CUDA_ERROR(step());
  return cudaStreamSynchronize(stream_);
}

cudaError_t Runner::enqueue_prefill(const bfloat16_bits* x, int rows, int begin, int keep) {
  RETURN_IF_CUDA_ERROR(prefill_.load(x, rows));
  RETURN_IF_CUDA_ERROR(run_layers(rows, begin));
  if (keep == 0) return cudaSuccess;
  RETURN_IF_CUDA_ERROR(prefill_.final_norm(rows - keep, keep, states_.as<float>()));
  const size_t hidden = spec_.shape.hidden;
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(decode_.x(), prefill_.x() + (rows - 1) * hidden,
                                       sizeof(float) * hidden, cudaMemcpyDeviceToDevice, stream_));
  RETURN_IF_CUDA_ERROR(decode_.run_head(stream_));
  return cudaMemcpyAsync(prompt_logits_.as<float>(), decode_.logits(), logits_bytes(),
                         cudaMemcpyDeviceToDevice, stream_);
}

cudaError_t Runner::upload(const BurstState& state, std::span<const int32_t> penalised) {
  RETURN_IF_CUDA_ERROR(sent_.wait());  // what was sent last may not have been read yet
  state_to_send_[0] = state;
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(state_.as<void>(), state_to_send_.data(), sizeof(BurstState),
                                       cudaMemcpyHostToDevice, stream_));
  if (!penalised.empty()) {
    std::copy(penalised.begin(), penalised.end(), penalised_to_send_.data());
    RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(sampler_.penalised(), penalised_to_send_.data(),
                                         penalised.size_bytes(), cudaMemcpyHostToDevice, stream_));
  }
  return sent_.record(stream_);
}

cudaError_t Runner::step() {
  RETURN_IF_CUDA_ERROR(
      decode_.token_step(spec_.embedding, &state()->token.token, &state()->decode, stream_));
  return sampler_.draw(decode_.logits(), &state()->token, stream_);
}

cudaError_t Runner::read_logits(std::optional<int32_t> carried, int begin) {
  const float* from = prompt_logits_.as<float>();
  if (carried) {
    BurstState start{{begin, 0, 0}, {}};
    start.token.token = *carried;
    RETURN_IF_CUDA_ERROR(upload(start, {}));
    RETURN_IF_CUDA_ERROR(
        decode_.token_step(spec_.embedding, &state()->token.token, &state()->decode, stream_));
    from = decode_.logits();
  }
  RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(logits_.data(), from, logits_bytes(), cudaMemcpyDeviceToHost, stream_));
  RETURN_IF_CUDA_ERROR(drawn_there_[0].record(stream_));
  return drawn_there_[0].wait();
}

Result<void> Runner::next_logits(std::optional<int32_t> carried, int begin,
                                 std::span<float> logits) {
  RETURN_IF_ERROR(check(read_logits(carried, begin), kWhat));
  std::copy_n(logits_.data(), std::min<size_t>(logits.size(), spec_.vocab), logits.begin());
  return {};
}

cudaError_t Runner::enqueue_draw(int index, bool from_prompt) {
  if (from_prompt) {
    RETURN_IF_CUDA_ERROR(sampler_.draw(prompt_logits_.as<float>(), &state()->token, stream_));
  } else if (step_graph_.captured()) {
    RETURN_IF_CUDA_ERROR(step_graph_.launch(stream_));
  } else {
    RETURN_IF_CUDA_ERROR(step());
  }
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(&drawn_[index], &state()->token, sizeof(Drawn),
                                       cudaMemcpyDeviceToHost, stream_));
  return drawn_there_[index].record(stream_);
}

BurstState first_state(const TokenBurst& burst) {
  const TokenSampling& sampling = burst.sampling;
  BurstState state{{burst.begin, 0, 0}, {}};
  state.token.token = burst.carried.value_or(0);
  state.token.penalised = static_cast<int32_t>(burst.penalised.size());
  state.token.penalty = sampling.repetition_penalty;
  state.token.temperature = sampling.temperature;
  state.token.top_k = sampling.top_k;
  state.token.top_p = sampling.top_p;
  state.token.seed = sampling.seed;
  state.token.stream = sampling.stream;
  state.token.counter = sampling.counter;
  return state;
}

// The device is always one token ahead of the host, so that it need not wait for it. What it does
// beyond a stop token or a cancellation touches only rows behind the cache's length.
Result<std::vector<int32_t>> Runner::draw(const TokenBurst& burst, const CancelFlag& cancel) {
  const int rows = burst.carried ? burst.count : burst.count - 1;
  if (burst.count < 1 || burst.count > kMaxBurst || burst.begin < 0 ||
      burst.begin + rows > spec_.weights.capacity || burst.penalised.size() > kMaxPenalised) {
    return Error{ErrorCode::kFailed, "language model: a burst that does not fit", kWhat};
  }
  RETURN_IF_ERROR(check(upload(first_state(burst), burst.penalised), kWhat));
  RETURN_IF_ERROR(check(enqueue_draw(0, !burst.carried), kWhat));
  std::vector<int32_t> ids;
  for (int i = 0; i < burst.count; ++i) {
    if (i + 1 < burst.count) RETURN_IF_ERROR(check(enqueue_draw(i + 1, false), kWhat));
    RETURN_IF_ERROR(check(drawn_there_[i].wait(), kWhat));
    const Drawn drawn = drawn_[i];
    if (drawn.not_finite != 0) {
      return Error{ErrorCode::kFailed,
                   "language model: the logits are not finite; the weights may be damaged", kWhat};
    }
    ids.push_back(drawn.token);
    if (std::find(burst.stops.begin(), burst.stops.end(), drawn.token) != burst.stops.end()) break;
    if (i + 1 < burst.count && cancel.is_set())
      return Error{ErrorCode::kCancelled, "cancelled", kWhat};
  }
  return ids;
}

const char* unsupported(const LanguageRunnerSpec& spec) {
  if (const char* const why = DecodeStep::unsupported(spec.shape)) return why;
  if (const char* const why = Prefill::unsupported(spec.shape)) return why;
  if (spec.vocab < 1 || spec.vocab > TokenSampler::kMaxVocabulary)
    return "the vocabulary is too large";
  return nullptr;
}

}  // namespace

Result<std::unique_ptr<LanguageRunner>> new_language_runner(const LanguageRunnerSpec& spec) {
  if (const char* const why = unsupported(spec)) {
    return Error{ErrorCode::kSettings,
                 std::string("language model: no CUDA kernels for this checkpoint: ") + why, kWhat};
  }
  auto runner = std::make_unique<Runner>(spec);
  RETURN_IF_ERROR(check(runner->init(), "preparing the language model"));
  return std::unique_ptr<LanguageRunner>(std::move(runner));
}

}  // namespace minicpmo::cuda
