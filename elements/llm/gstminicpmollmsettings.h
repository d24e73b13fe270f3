// The properties of minicpmollm, and what they stand for.
#pragma once

#include <gst/gst.h>

#include <mutex>
#include <string>

#include "common/stage.h"
#include "llm/gstminicpmollmworker.h"

namespace minicpmo {

struct LlmSettingsValues {
  LanguageModelOptions options;  // `voice` is filled in from the file below before a session
  std::string voice;             // path, or empty
  std::string encoded_voice;     // the path that options.voice was made of
  TimestampMode timestamp_mode = TimestampMode::kAuto;
  bool resume = true;  // after a false interruption
  guint max_message_bytes = 256 * 1024;
};

class LlmSettings {
 public:
  static void install(GObjectClass* object_class);

  // False if `id` is none of ours, or not writable.
  bool set(guint id, const GValue* value);
  // False if `id` is none of ours. `stats` is read for the property of that name.
  bool get(guint id, GValue* value, const LlmWorker& worker) const;
  LlmSettingsValues values() const;
  // Whether the voice has changed since it was encoded.
  bool voice_due() const;
  void set_voice_embeddings(TensorPtr embeddings, const std::string& path);

 private:
  mutable std::mutex mutex_;  // guards values_
  LlmSettingsValues values_;
};

}  // namespace minicpmo
