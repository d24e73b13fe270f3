// The stages of the model as the elements see them, and the one C entry through which a backend
// offers them.
//
// Elements know this header and nothing of torch; backends implement it and know nothing of
// GStreamer.
//
// Engine: one per (model directory, device, precision) in a process; holds the weights and
// tokenizers. Thread-safe.
// Sessions (AudioEncoder, LanguageModel, SpeechModel, Vocoder): one per element instance; hold only
// state (KV cache, positions, sampling state, overlap tails). A session is used by one thread at a
// time, but for its gpu_nanoseconds(); a CancelFlag may be set from any thread, and the running
// call returns ErrorCode::kCancelled at the next token. A cancelled or failed call leaves the
// session in a state from which reset() works.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/tensor.h"

namespace minicpmo {

class CancelFlag {
 public:
  void set() { set_.store(true, std::memory_order_release); }
  void clear() { set_.store(false, std::memory_order_release); }
  bool is_set() const { return set_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> set_{false};
};

// none: our own decisions where upstream's streaming code has a flaw. upstream: its behaviour, flaw
// for flaw (README.md, "Compatibility", lists each one).
enum class Compatibility { kNone, kUpstream };

// A value below 0 means: as the checkpoint says (generation_config.json), otherwise the model's
// published default.
struct LanguageModelOptions {
  double temperature = -1;         // 0 is greedy; published default 0.7
  double top_p = -1;               // 0..1; published default 0.8
  int top_k = -1;                  // 0 is off; published default 100
  double repetition_penalty = -1;  // 1 is off; published default 1.05; scope: model-spec 3.4
  uint64_t seed = 0;
  int max_new_tokens = 512;
  // Positions of the KV cache; a turn that would not fit starts a new session.
  int context_length = 8192;
  std::string system_prompt =
      "You are a helpful assistant. You can accept audio and text input and output voice and text.";
  // Embeddings (rows, hidden_size) of a reference voice, which the system message then asks to
  // speak with; the published system prompt is replaced by the one for voices. Null: the model's
  // own.
  TensorPtr voice;
  Compatibility compatibility = Compatibility::kNone;
};

struct SpeechModelOptions {
  // 0 is greedy; otherwise a factor on the model's temperatures (0.1, 0.3, 0.1, 0.3).
  double temperature = -1;
  uint64_t seed = 0;
  int max_codes = 2048;  // per segment, as upstream; one code row is 512 samples
  Compatibility compatibility = Compatibility::kNone;
};

struct VocoderOptions {
  Compatibility compatibility = Compatibility::kNone;
};

// PCM (16 kHz mono, float32, nominally in [-1, 1]) to embeddings for the language model.
class AudioEncoder {
 public:
  virtual ~AudioEncoder() = default;
  // Encodes one chunk: normally EngineInfo::chunk_samples samples, fewer at the end of a turn; a
  // reference voice is one long chunk. At most EngineInfo::max_chunk_samples. Returns (rows,
  // hidden_size), one row per 40 ms; nullptr if the chunk is shorter than
  // EngineInfo::min_chunk_samples, which upstream cannot encode either: it is too short to hear
  // (20 ms). Samples that are not finite count as 0.
  virtual Result<TensorPtr> step(std::span<const float> pcm, const CancelFlag& cancel) = 0;
  // Start of a user turn: empties the KV cache.
  virtual void reset() = 0;
  // Time on a GPU of the calls that it has finished since the session was made, launches included;
  // 0 on a CPU. From any thread.
  virtual int64_t gpu_nanoseconds() const { return 0; }
};

enum class FinishReason {
  kNone,     // the answer goes on
  kStop,     // a stop token
  kLength,   // max_new_tokens
  kContext,  // the context is full
};

// What the language model says in one burst (3 tokens).
struct Burst {
  std::string text;          // whole UTF-8 characters, no special tokens; may be empty
  std::vector<int32_t> ids;  // the sampled tokens, stop token included
  TensorPtr speaker;         // float32 (1, hidden_size); first burst of an answer only
  FinishReason finish = FinishReason::kNone;
};

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  // The embeddings of one chunk, (rows <= 25, hidden_size), as part of the user's turn. Opens the
  // turn if need be (and the session, with the system prompt). kContextFull if they leave no room
  // for an answer: nothing changed.
  virtual Result<void> prefill_audio(const Tensor& embeddings, const CancelFlag& cancel) = 0;
  // Text as part of the user's turn; same rules.
  virtual Result<void> prefill_text(std::string_view text, const CancelFlag& cancel) = 0;
  // Whether the user's turn holds anything to answer.
  virtual bool turn_open() const = 0;
  // Ends the user's turn and starts the answer. Then next_burst until finish != kNone.
  virtual Result<void> start_answer(const CancelFlag& cancel) = 0;
  virtual Result<Burst> next_burst(const CancelFlag& cancel) = 0;
  // Ends a running answer early, or cuts the last one back after it ended, until the next user turn
  // begins (without effect then, and before the first answer). `heard_bytes` of the answer's text
  // reached the listener: the context is cut back to the token that completes them (compatibility
  // none; upstream keeps all that was generated). Negative: keep all.
  virtual void interrupt(int64_t heard_bytes) = 0;
  // Forgets what was read of the user's open turn, as if it had not begun. With `resume` also the
  // interruption (or cut) before it: the answer can go on with next_burst, if it was not finished.
  // Without effect once the turn's answer has started. Reads again what was overwritten.
  virtual Result<void> cancel_turn(bool resume, const CancelFlag& cancel) = 0;
  // Takes the last answer back, running or not: the user's turn is open again, and more may be
  // read. Without effect once the next turn has begun.
  virtual void reopen_turn() = 0;
  // A new session: forgets everything, system prompt included (it is read again at the next turn).
  virtual void reset() = 0;
  // Takes effect with the next answer (sampling) or session (system prompt, context length).
  virtual void set_options(const LanguageModelOptions& options) = 0;
  virtual int64_t context_used() const = 0;
  // Sessions begun so far. It grows by itself when the context has no room for the next turn
  // (context_length), and the model then knows nothing of what was said before.
  virtual int64_t sessions() const { return 1; }
  // As AudioEncoder's, and the part of it that went into reading (prefill). From any thread.
  virtual int64_t gpu_nanoseconds() const { return 0; }
  virtual int64_t gpu_prefill_nanoseconds() const { return 0; }
};

// One call of the speech model: at most 25 code rows.
struct CodeChunk {
  TensorPtr codes;  // uint16 (rows, 4), each value in [0, 624]; rows may be 0 in the last chunk
  bool segment_start = false;  // first chunk of a continuation segment (model-spec 4.5)
  bool last = false;           // the answer's speech ends here
};

class SpeechModel {
 public:
  virtual ~SpeechModel() = default;
  // Starts an answer. speaker: float32 (1, llm hidden_size).
  virtual Result<void> start(const Tensor& speaker, const SpeechModelOptions& options) = 0;
  // The text of one burst, as the language model reported it (may be empty). Bursts matter:
  // model-spec 4.5.
  virtual void push_text(std::string_view burst) = 0;
  // No more text comes.
  virtual void end_text() = 0;
  // Makes the next chunk if the text so far allows one; nullopt if more text is needed, or after
  // the last chunk. To be called after each push_text until nullopt, and after end_text until
  // `last`.
  virtual Result<std::optional<CodeChunk>> step(const CancelFlag& cancel) = 0;
  virtual void reset() = 0;
  // As AudioEncoder's. From any thread.
  virtual int64_t gpu_nanoseconds() const { return 0; }
};

// Codes to PCM (24 kHz mono, float32).
class Vocoder {
 public:
  virtual ~Vocoder() = default;
  // codes: uint16 or int32 (rows 1..25, 4). Returns float32 (samples): all samples that are final,
  // i.e. all but the 2048 that the next chunk is cross-faded into; may be empty.
  virtual Result<TensorPtr> step(const Tensor& codes, bool segment_start,
                                 const CancelFlag& cancel) = 0;
  // End of an answer: the held-back tail, float32 (samples <= 2048); the next step starts afresh.
  virtual Result<TensorPtr> flush() = 0;
  virtual void reset() = 0;
  // As AudioEncoder's. From any thread.
  virtual int64_t gpu_nanoseconds() const { return 0; }
};

// How likely it is that somebody speaks, window by window. State: what was heard before.
class VoiceActivity {
 public:
  static constexpr size_t kWindow = 512;  // samples at 16 kHz: 32 ms
  virtual ~VoiceActivity() = default;
  // The probability, 0..1, that this window (mono, float32, nominally in [-1, 1]) holds speech.
  // Samples that are not finite count as 0.
  virtual Result<float> step(std::span<const float, kWindow> pcm) = 0;
  virtual void reset() = 0;
};

enum class Stage { kAudioEncoder, kLanguageModel, kSpeechModel, kVocoder };

struct EngineOptions {
  std::string model_dir;
  std::string device = "auto";     // auto, cpu, cuda:N
  std::string precision = "auto";  // auto, float32, bfloat16
};

struct EngineInfo {
  std::string model_dir;  // resolved
  std::string device;     // what was chosen: "cpu" or "cuda:N"
  std::string precision;  // what was chosen: "float32" or "bfloat16"
  std::string notes;      // why, for the log
  DataType embedding_type = DataType::kFloat32;
  // Of the language model: columns of an embedding and of the speaker vector.
  int64_t hidden_size = 0;
  int64_t chunk_samples = 16000;  // one encoder chunk at 16 kHz
  int64_t min_chunk_samples = 321;
  int64_t max_chunk_samples = 480000;  // the longest that AudioEncoder::step takes
  int64_t chunk_rows = 25;             // embeddings per full chunk
  std::string
      default_speaker;  // path of the checkpoint's default speaker vector (raw float32), or empty
};

// percent in 0..100
using Progress = std::function<void(int percent, const std::string& what)>;

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const EngineInfo& info() const = 0;
  // Reads a stage's weights (once; later calls return at once). Blocks; to be called before new_*.
  virtual Result<void> load(Stage stage, const Progress& progress, const CancelFlag& cancel) = 0;
  virtual Result<std::unique_ptr<AudioEncoder>> new_audio_encoder() = 0;
  virtual Result<std::unique_ptr<LanguageModel>> new_language_model(
      const LanguageModelOptions& options) = 0;
  virtual Result<std::unique_ptr<SpeechModel>> new_speech_model() = 0;
  virtual Result<std::unique_ptr<Vocoder>> new_vocoder(const VocoderOptions& options) = 0;
};

enum class LogLevel { kWarning, kInfo, kDebug };
using LogFunction = void (*)(LogLevel level, const char* message);

// What a backend library offers. Plugin and backends are built together; the version catches a
// stale pair.
struct Backend {
  static constexpr uint32_t kVersion = 3;
  uint32_t version;
  // Reads config.json and the headers of the weights, not the weights themselves. One engine per
  // distinct options in a process: a second call with the same options returns the same engine
  // while it is alive.
  Result<std::shared_ptr<Engine>> (*open_engine)(const EngineOptions& options);
  void (*set_log)(LogFunction log);
  // Reads silero's network from the safetensors file `path` (1.2 MB, milliseconds); needs no
  // engine. kNotFound, kOpenRead or kCorrupt, naming the file and the tensor at fault.
  Result<std::unique_ptr<VoiceActivity>> (*new_voice_activity)(const std::string& path);
};

// The only exported symbol of a backend library.
constexpr const char* kBackendSymbol = "minicpmo_backend";
using BackendFunction = const Backend* (*)();

}  // namespace minicpmo
