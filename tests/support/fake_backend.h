// A backend without torch and without a model, for tests of the elements: deterministic stages
// whose output a test can predict, failures and delays on request, and counters of what is alive.
//
//   FakeBackend backend;                  // before any element leaves NULL; takes itself away when
//   it goes backend.settings().load_delay = 50ms;
//
// What the stages do:
//   audio encoder   one row of hidden_size float32 (or bfloat16) per 640 samples begun, at least
//   one: column 0 is the
//                   mean of those samples, column 1 the index of the chunk since reset(), column 2
//                   the number of samples of the chunk, the others 0. Fewer than min_chunk_samples:
//                   nullptr.
//   language model  the answer is settings().answer, or if that is empty "You said N rows." for
//   audio and "You wrote
//                   TEXT." for text; one burst per settings().burst_bytes bytes (cut between
//                   characters), the first with a speaker vector (0, 1, 2, ...).
//   speech model    settings().rows_per_byte code rows for every byte of text, in chunks of 25;
//   every code of a row is
//                   the row's index since start() modulo 625. settings().segment_rows > 0: a
//                   continuation segment starts after that many rows.
//   vocoder         512 samples for every row, each code[0] / 625.0; keeps the last 2048 samples
//   back until the next
//                   step or flush(). Codes outside [0, 624]: kFormat.
//   voice activity  0.95 for a window whose mean absolute sample is above 0.01, otherwise 0.05; any
//                   path will do.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/stage.h"

namespace minicpmo::testing {

struct FakeSettings {
  EngineInfo info;  // hidden_size 8, chunk_samples 16000, min_chunk_samples 321 unless changed

  std::chrono::milliseconds open_delay{0};  // Backend::open_engine
  std::chrono::milliseconds load_delay{0};  // Engine::load, cancellable; 10 reports of progress
  std::chrono::milliseconds step_delay{0};  // every step, prefill, burst; cancellable
  std::chrono::nanoseconds gpu_time{0};     // that each of these says it took on a GPU
  std::chrono::milliseconds gpu_behind{0};  // and says it so long after it has returned
  std::function<void()> vocoder_gpu_asked;  // called when the vocoder is asked what that was
  std::optional<Error> open_error;          // returned by Backend::open_engine
  std::optional<Error> load_error;          // returned by Engine::load, after load_delay
  std::optional<Error> session_error;       // returned by Engine::new_*, Backend::new_*
  std::optional<Error>
      step_error;  // returned by step, prefill_*, next_burst once steps_before_error are done
  int steps_before_error = 0;
  bool throw_in_load = false;  // std::runtime_error, as a stage must not
  bool throw_in_step = false;

  std::string answer;  // empty: made of the question
  int burst_bytes = 8;
  // Whole bursts, may be empty; instead of `answer`.
  std::vector<std::string> bursts;
  FinishReason finish = FinishReason::kStop;
  int context_rows = 1 << 20;  // prefill of more rows in a turn: kContextFull

  int rows_per_byte = 2;
  int segment_rows = 0;

  std::optional<Error> voice_activity_error;  // returned once windows_before_error were heard
  int windows_before_error = 0;
};

// What happened, over all engines and sessions of a FakeBackend.
struct FakeCounters {
  std::atomic<int> engines_opened{0};
  std::atomic<int> engines_alive{0};
  std::atomic<int> sessions_alive{0};
  std::atomic<int> loads{0};  // Engine::load that did read (not those that found the stage loaded)
  std::atomic<int> steps{0};  // step, prefill_*, next_burst; not those of voice activity
  std::atomic<int> windows{0};  // VoiceActivity::step
  std::atomic<int> resets{0};
  std::atomic<int> flushes{0};
  std::atomic<int> cancelled{0};  // calls that returned kCancelled
  std::atomic<int> interrupts{0};
  std::atomic<int64_t> heard_bytes{-2};  // of the last LanguageModel::interrupt
  // Set when two threads were inside one session at a time, which the stages' contract forbids.
  std::atomic<bool> overlapped{false};
};

// Calls of sessions in order: "audio.step 16000", "lm.prefill_audio 25", "lm.prefill_text Hello",
// "lm.start_answer", "lm.burst", "lm.interrupt 12", "lm.reset", "lm.set_options", "tts.start",
// "tts.push_text Hi", "tts.end_text", "tts.step 25", "tts.reset", "vocoder.step 25", "vocoder.step
// 25 segment", "vocoder.flush", "vocoder.reset", "vad.reset", ...
class CallLog {
 public:
  void add(std::string call);
  std::vector<std::string> take();  // and empties it
  std::vector<std::string> calls() const;
  int count(const std::string& prefix) const;

 private:
  mutable std::mutex mutex_;  // guards calls_
  std::vector<std::string> calls_;
};

class FakeBackend {
 public:
  FakeBackend();   // installs itself by gst_minicpmo_backend_set_for_testing
  ~FakeBackend();  // takes itself away; nothing of it may be alive any more

  // Change them only while nothing runs.
  FakeSettings& settings() { return settings_; }
  FakeCounters& counters() { return counters_; }
  CallLog& log() { return log_; }
  // Options of the last LanguageModel (new_language_model or set_options), SpeechModel (start),
  // Vocoder (new_vocoder).
  LanguageModelOptions language_model_options() const;
  SpeechModelOptions speech_model_options() const;
  VocoderOptions vocoder_options() const;
  // Options of each open_engine call that was answered.
  std::vector<EngineOptions> opened() const;
  // Of each new_voice_activity call that was answered.
  std::vector<std::string> voice_activity_paths() const;

  // For the stages in fake_backend.cpp and fake_sessions.cpp.
  void remember(const LanguageModelOptions& options);
  void remember(const SpeechModelOptions& options);
  void remember(const VocoderOptions& options);
  void remember(const EngineOptions& options);
  void remember_voice_activity(const std::string& path);
  static FakeBackend* current();

 private:
  FakeSettings settings_;
  FakeCounters counters_;
  CallLog log_;
  mutable std::mutex options_mutex_;  // guards what follows
  LanguageModelOptions language_model_options_;
  SpeechModelOptions speech_model_options_;
  VocoderOptions vocoder_options_;
  std::vector<EngineOptions> opened_;
  std::vector<std::string> voice_activity_paths_;
};

}  // namespace minicpmo::testing
