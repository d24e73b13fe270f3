#include "support/fake_sessions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace minicpmo::testing {

namespace {

constexpr int kChunkRows = 25;
constexpr int kSamplesPerCode = 512;
constexpr size_t kHeldBack = 2048;
constexpr size_t kSamplesPerRow = 640;  // 40 ms

TensorPtr float_tensor(const std::vector<float>& values, std::vector<int64_t> dims) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return std::make_shared<HostTensor>(DataType::kFloat32, std::move(dims), std::move(bytes));
}

TensorPtr bfloat16_tensor(const std::vector<float>& values, std::vector<int64_t> dims) {
  std::vector<std::byte> bytes(values.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    const uint16_t high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(&bytes[2 * i], &high, 2);
  }
  return std::make_shared<HostTensor>(DataType::kBFloat16, std::move(dims), std::move(bytes));
}

// What all sessions share: they are counted, and know when two threads are in one of them.
class Session {
 public:
  explicit Session(FakeBackend& owner) : owner_(owner) { ++owner_.counters().sessions_alive; }
  ~Session() { --owner_.counters().sessions_alive; }

 protected:
  class Inside {
   public:
    explicit Inside(Session& session) : session_(session) {
      if (session_.busy_.exchange(true)) session_.owner_.counters().overlapped = true;
    }
    ~Inside() { session_.busy_ = false; }

   private:
    Session& session_;
  };

  // What every step starts with: the delay and the failures of the settings.
  Result<void> begin_step(const CancelFlag& cancel, bool prefill = false) {
    const FakeSettings& settings = owner_.settings();
    ++owner_.counters().steps;
    if (settings.throw_in_step) throw std::runtime_error("thrown by the fake step");
    if (!sleep_unless_cancelled(settings.step_delay, cancel)) {
      ++owner_.counters().cancelled;
      return Error{ErrorCode::kCancelled, "cancelled", ""};
    }
    if (settings.step_error && steps_ >= settings.steps_before_error) return *settings.step_error;
    ++steps_;
    const std::lock_guard lock(gpu_mutex_);
    gpu_work_.push_back({std::chrono::steady_clock::now() + settings.gpu_behind,
                         settings.gpu_time.count(), prefill});
    return {};
  }
  int64_t gpu_time(bool prefill_only = false) const {
    const std::lock_guard lock(gpu_mutex_);
    const auto now = std::chrono::steady_clock::now();
    int64_t sum = 0;
    for (const GpuWork& work : gpu_work_)
      if (work.done <= now && (work.prefill || !prefill_only)) sum += work.nanoseconds;
    return sum;
  }
  void note(std::string call) { owner_.log().add(std::move(call)); }

  FakeBackend& owner_;

 private:
  std::atomic<bool> busy_{false};
  int steps_ = 0;
  mutable std::mutex gpu_mutex_;
  struct GpuWork {
    std::chrono::steady_clock::time_point done;
    int64_t nanoseconds;
    bool prefill;
  };
  std::vector<GpuWork> gpu_work_;  // guarded by gpu_mutex_
};

class FakeAudioEncoder final : public AudioEncoder, Session {
 public:
  FakeAudioEncoder(FakeBackend& owner, const EngineInfo& info) : Session(owner), info_(info) {}

  Result<TensorPtr> step(std::span<const float> pcm, const CancelFlag& cancel) override {
    Inside inside(*this);
    note("audio.step " + std::to_string(pcm.size()));
    RETURN_IF_ERROR(begin_step(cancel));
    if (static_cast<int64_t>(pcm.size()) > info_.max_chunk_samples)
      return Error{ErrorCode::kFailed, "More samples than an encoder takes.", ""};
    if (static_cast<int64_t>(pcm.size()) < info_.min_chunk_samples) return TensorPtr();
    const size_t rows = (pcm.size() + kSamplesPerRow - 1) / kSamplesPerRow;
    const size_t columns = static_cast<size_t>(info_.hidden_size);
    std::vector<float> values(rows * columns, 0.0f);
    for (size_t r = 0; r < rows; ++r) {
      const size_t begin = r * kSamplesPerRow;
      const size_t end = std::min(pcm.size(), begin + kSamplesPerRow);
      double sum = 0;
      for (size_t i = begin; i < end; ++i) sum += std::isfinite(pcm[i]) ? pcm[i] : 0.0f;
      values[r * columns] = static_cast<float>(sum / static_cast<double>(end - begin));
      if (columns > 1) values[r * columns + 1] = static_cast<float>(chunk_);
      if (columns > 2) values[r * columns + 2] = static_cast<float>(pcm.size());
    }
    ++chunk_;
    const std::vector<int64_t> dims{static_cast<int64_t>(rows), info_.hidden_size};
    return info_.embedding_type == DataType::kBFloat16 ? bfloat16_tensor(values, dims)
                                                       : float_tensor(values, dims);
  }

  void reset() override {
    Inside inside(*this);
    note("audio.reset");
    ++owner_.counters().resets;
    chunk_ = 0;
  }
  int64_t gpu_nanoseconds() const override { return gpu_time(); }

 private:
  const EngineInfo info_;
  int chunk_ = 0;
};

class FakeLanguageModel final : public LanguageModel, Session {
 public:
  FakeLanguageModel(FakeBackend& owner, const EngineInfo& info) : Session(owner), info_(info) {}

  Result<void> prefill_audio(const Tensor& embeddings, const CancelFlag& cancel) override {
    Inside inside(*this);
    note("lm.prefill_audio " + std::to_string(embeddings.rows()));
    RETURN_IF_ERROR(begin_prefill(cancel));
    if (embeddings.dims().size() != 2 || embeddings.dims()[1] != info_.hidden_size)
      return Error{ErrorCode::kFormat, "Embeddings of another width.", ""};
    return add_rows(embeddings.rows());
  }

  Result<void> prefill_text(std::string_view text, const CancelFlag& cancel) override {
    Inside inside(*this);
    note("lm.prefill_text " + std::string(text));
    RETURN_IF_ERROR(begin_prefill(cancel));
    RETURN_IF_ERROR(add_rows(1));
    text_ += text;
    return {};
  }

  bool turn_open() const override { return rows_ > 0; }

  Result<void> start_answer(const CancelFlag& cancel) override {
    Inside inside(*this);
    note("lm.start_answer");
    RETURN_IF_ERROR(begin_prefill(cancel));
    answer_ = owner_.settings().answer;
    if (answer_.empty())
      answer_ = text_.empty() ? "You said " + std::to_string(rows_) + " rows."
                              : "You wrote " + text_ + ".";
    spoken_ = 0;
    burst_ = 0;
    first_ = true;
    context_ += rows_;
    answered_rows_ = std::exchange(rows_, 0);
    answered_text_ = std::exchange(text_, {});
    return {};
  }

  Result<Burst> next_burst(const CancelFlag& cancel) override {
    Inside inside(*this);
    note("lm.burst");
    RETURN_IF_ERROR(begin_step(cancel));
    size_t end =
        std::min(answer_.size(), spoken_ + static_cast<size_t>(owner_.settings().burst_bytes));
    while (end < answer_.size() && (static_cast<unsigned char>(answer_[end]) & 0xC0) == 0x80) ++end;
    Burst burst;
    const std::vector<std::string>& bursts = owner_.settings().bursts;
    const bool scripted = !bursts.empty();
    burst.text = scripted ? bursts[burst_] : answer_.substr(spoken_, end - spoken_);
    burst.ids = {static_cast<int32_t>(spoken_)};
    spoken_ = end;
    ++burst_;
    if (first_) {
      std::vector<float> speaker(static_cast<size_t>(info_.hidden_size));
      for (size_t i = 0; i < speaker.size(); ++i) speaker[i] = static_cast<float>(i);
      burst.speaker = float_tensor(speaker, {1, info_.hidden_size});
      first_ = false;
    }
    const bool done = scripted ? burst_ == bursts.size() : spoken_ == answer_.size();
    if (done) burst.finish = owner_.settings().finish;
    return burst;
  }

  void interrupt(int64_t heard_bytes) override {
    Inside inside(*this);
    note("lm.interrupt " + std::to_string(heard_bytes));
    ++owner_.counters().interrupts;
    owner_.counters().heard_bytes = heard_bytes;
  }

  Result<void> cancel_turn(bool resume, const CancelFlag& cancel) override {
    Inside inside(*this);
    note(resume ? "lm.cancel_turn resume" : "lm.cancel_turn");
    RETURN_IF_ERROR(begin_step(cancel));
    rows_ = 0;
    text_.clear();
    return {};
  }

  void reopen_turn() override {
    Inside inside(*this);
    note("lm.reopen_turn");
    rows_ = answered_rows_;
    context_ -= answered_rows_;
    text_ = answered_text_;
  }

  void reset() override {
    Inside inside(*this);
    note("lm.reset");
    ++owner_.counters().resets;
    rows_ = 0;
    context_ = 0;
    text_.clear();
  }

  void set_options(const LanguageModelOptions& options) override {
    Inside inside(*this);
    note("lm.set_options");
    owner_.remember(options);
  }

  int64_t context_used() const override { return context_ + rows_; }
  int64_t gpu_nanoseconds() const override { return gpu_time(); }
  int64_t gpu_prefill_nanoseconds() const override { return gpu_time(true); }

 private:
  Result<void> begin_prefill(const CancelFlag& cancel) { return begin_step(cancel, true); }

  Result<void> add_rows(int64_t rows) {
    if (rows_ + rows > owner_.settings().context_rows)
      return Error{ErrorCode::kContextFull, "The question is too long.", ""};
    rows_ += rows;
    return {};
  }

  const EngineInfo info_;
  int64_t rows_ = 0;
  int64_t context_ = 0;
  std::string text_;
  int64_t answered_rows_ = 0;  // of the last question
  std::string answered_text_;
  std::string answer_;
  size_t spoken_ = 0;
  size_t burst_ = 0;
  bool first_ = false;
};

class FakeSpeechModel final : public SpeechModel, Session {
 public:
  explicit FakeSpeechModel(FakeBackend& owner) : Session(owner) {}

  Result<void> start(const Tensor& speaker, const SpeechModelOptions& options) override {
    Inside inside(*this);
    note("tts.start");
    owner_.remember(options);
    if (speaker.type() != DataType::kFloat32)
      return Error{ErrorCode::kFormat, "A speaker vector must be float32.", ""};
    clear();
    return {};
  }

  void push_text(std::string_view burst) override {
    Inside inside(*this);
    note("tts.push_text " + std::string(burst));
    pending_ += static_cast<int64_t>(burst.size()) * owner_.settings().rows_per_byte;
  }

  void end_text() override {
    Inside inside(*this);
    note("tts.end_text");
    ended_ = true;
  }

  Result<std::optional<CodeChunk>> step(const CancelFlag& cancel) override {
    Inside inside(*this);
    if (done_ || (!ended_ && pending_ < kChunkRows)) return std::optional<CodeChunk>();
    RETURN_IF_ERROR(begin_step(cancel));
    const int64_t segment_rows = owner_.settings().segment_rows;
    int64_t rows = std::min<int64_t>(pending_, kChunkRows);
    CodeChunk chunk;
    if (segment_rows > 0) {
      chunk.segment_start = made_ > 0 && made_ % segment_rows == 0;
      rows = std::min(rows, segment_rows - made_ % segment_rows);
    }
    note("tts.step " + std::to_string(rows));
    std::vector<std::byte> bytes(static_cast<size_t>(rows) * 4 * sizeof(uint16_t));
    for (int64_t i = 0; i < rows * 4; ++i) {
      const auto code = static_cast<uint16_t>((made_ + i / 4) % 625);
      std::memcpy(&bytes[static_cast<size_t>(i) * 2], &code, 2);
    }
    chunk.codes = std::make_shared<HostTensor>(DataType::kUInt16, std::vector<int64_t>{rows, 4},
                                               std::move(bytes));
    made_ += rows;
    pending_ -= rows;
    chunk.last = ended_ && pending_ == 0;
    done_ = chunk.last;
    return std::optional<CodeChunk>(std::move(chunk));
  }

  void reset() override {
    Inside inside(*this);
    note("tts.reset");
    ++owner_.counters().resets;
    clear();
  }
  int64_t gpu_nanoseconds() const override { return gpu_time(); }

 private:
  void clear() {
    pending_ = 0;
    made_ = 0;
    ended_ = false;
    done_ = false;
  }

  int64_t pending_ = 0;
  int64_t made_ = 0;
  bool ended_ = false;
  bool done_ = false;
};

class FakeVocoder final : public Vocoder, Session {
 public:
  explicit FakeVocoder(FakeBackend& owner) : Session(owner) {}

  Result<TensorPtr> step(const Tensor& codes, bool segment_start,
                         const CancelFlag& cancel) override {
    Inside inside(*this);
    note("vocoder.step " + std::to_string(codes.rows()) + (segment_start ? " segment" : ""));
    RETURN_IF_ERROR(begin_step(cancel));
    if (codes.rows() < 1 || codes.rows() > kChunkRows)
      return Error{ErrorCode::kFailed, "A chunk has 1 to 25 rows.", ""};
    ASSIGN_OR_RETURN(auto bytes, codes.host_bytes());
    for (int64_t row = 0; row < codes.rows(); ++row) {
      for (int64_t book = 0; book < 4; ++book) {
        const int32_t code = read_code(codes.type(), bytes, static_cast<size_t>(row * 4 + book));
        if (code < 0 || code > 624)
          return Error{ErrorCode::kFormat,
                       "An audio code of " + std::to_string(code) + " is outside 0 to 624.", ""};
        if (book == 0)
          held_.insert(held_.end(), kSamplesPerCode, static_cast<float>(code) / 625.0f);
      }
    }
    const size_t final_samples = held_.size() > kHeldBack ? held_.size() - kHeldBack : 0;
    return take(final_samples);
  }

  Result<TensorPtr> flush() override {
    Inside inside(*this);
    note("vocoder.flush");
    ++owner_.counters().flushes;
    return take(held_.size());
  }

  void reset() override {
    Inside inside(*this);
    note("vocoder.reset");
    ++owner_.counters().resets;
    held_.clear();
  }
  int64_t gpu_nanoseconds() const override {
    if (const auto& asked = owner_.settings().vocoder_gpu_asked) asked();
    return gpu_time();
  }

 private:
  static int32_t read_code(DataType type, std::span<const std::byte> bytes, size_t index) {
    if (type == DataType::kUInt16) {
      uint16_t code;
      std::memcpy(&code, &bytes[index * 2], 2);
      return code;
    }
    int32_t code;
    std::memcpy(&code, &bytes[index * 4], 4);
    return code;
  }

  TensorPtr take(size_t count) {
    std::vector<float> samples(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(count));
    held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(count));
    return float_tensor(samples, {static_cast<int64_t>(count)});
  }

  std::vector<float> held_;
};

class FakeVoiceActivity final : public VoiceActivity, Session {
 public:
  explicit FakeVoiceActivity(FakeBackend& owner) : Session(owner) {}

  Result<float> step(std::span<const float, kWindow> pcm) override {
    Inside inside(*this);
    const FakeSettings& settings = owner_.settings();
    ++owner_.counters().windows;
    if (settings.throw_in_step) throw std::runtime_error("thrown by the fake step");
    if (settings.voice_activity_error && windows_ >= settings.windows_before_error)
      return *settings.voice_activity_error;
    ++windows_;
    double sum = 0;
    for (const float sample : pcm) sum += std::isfinite(sample) ? std::abs(sample) : 0.0f;
    return sum > 0.01 * kWindow ? 0.95f : 0.05f;
  }

  void reset() override {
    Inside inside(*this);
    note("vad.reset");
    ++owner_.counters().resets;
  }

 private:
  int windows_ = 0;
};

}  // namespace

std::unique_ptr<AudioEncoder> new_fake_audio_encoder(FakeBackend& owner, const EngineInfo& info) {
  return std::make_unique<FakeAudioEncoder>(owner, info);
}

std::unique_ptr<LanguageModel> new_fake_language_model(FakeBackend& owner, const EngineInfo& info) {
  return std::make_unique<FakeLanguageModel>(owner, info);
}

std::unique_ptr<SpeechModel> new_fake_speech_model(FakeBackend& owner) {
  return std::make_unique<FakeSpeechModel>(owner);
}

std::unique_ptr<Vocoder> new_fake_vocoder(FakeBackend& owner) {
  return std::make_unique<FakeVocoder>(owner);
}

std::unique_ptr<VoiceActivity> new_fake_voice_activity(FakeBackend& owner) {
  return std::make_unique<FakeVoiceActivity>(owner);
}

}  // namespace minicpmo::testing
