#include "llm/gstminicpmollmsettings.h"

#include <climits>

#include "common/gstminicpmoelement.h"
#include "llm/gstminicpmollm.h"

using minicpmo::TimestampMode;

GType gst_minicpmo_timestamp_mode_get_type(void) {
  static const GType type = [] {
    static const GEnumValue values[] = {
        {static_cast<int>(TimestampMode::kInput),
         "An answer starts at the end of its question: deterministic, for files", "input"},
        {static_cast<int>(TimestampMode::kArrival),
         "Words have the running time at which they come: for live pipelines", "arrival"},
        {static_cast<int>(TimestampMode::kAuto), "Arrival if the input is live, otherwise input",
         "auto"},
        {0, nullptr, nullptr}};
    return g_enum_register_static("GstMiniCpmoTimestampMode", values);
  }();
  return type;
}

namespace minicpmo {

namespace {

enum {
  PROP_0,
  PROP_TEMPERATURE,
  PROP_TOP_P,
  PROP_TOP_K,
  PROP_REPETITION_PENALTY,
  PROP_SEED,
  PROP_MAX_NEW_TOKENS,
  PROP_CONTEXT_LENGTH,
  PROP_SYSTEM_PROMPT,
  PROP_VOICE,
  PROP_COMPATIBILITY,
  PROP_TIMESTAMP_MODE,
  PROP_RESUME_FALSE_INTERRUPTION,
  PROP_MAX_MESSAGE_BYTES,
  PROP_STATS
};

constexpr int kMinContext = 64;
constexpr int kMaxContext = 1 << 20;

constexpr auto kPlaying = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                   GST_PARAM_MUTABLE_PLAYING);
constexpr auto kReady =
    static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS | GST_PARAM_MUTABLE_READY);

void install_sampling(GObjectClass* object_class, const LanguageModelOptions& defaults) {
  g_object_class_install_property(
      object_class, PROP_TEMPERATURE,
      g_param_spec_double("temperature", "Temperature",
                          "Sampling temperature, 0 to 10; 0 is greedy, -1 as the checkpoint says. "
                          "Takes effect with the next answer",
                          -1, 10, defaults.temperature, kPlaying));
  g_object_class_install_property(
      object_class, PROP_TOP_P,
      g_param_spec_double("top-p", "Top P",
                          "Sample from the most likely tokens whose probabilities add up to this, "
                          "0 to 1; 1 is off, -1 as the checkpoint says",
                          -1, 1, defaults.top_p, kPlaying));
  g_object_class_install_property(
      object_class, PROP_TOP_K,
      g_param_spec_int("top-k", "Top K",
                       "Sample from this many of the most likely tokens; 0 is off, -1 as the "
                       "checkpoint says",
                       -1, INT_MAX, defaults.top_k, kPlaying));
  g_object_class_install_property(
      object_class, PROP_REPETITION_PENALTY,
      g_param_spec_double("repetition-penalty", "Repetition Penalty",
                          "Makes tokens of the current burst less likely to come again, 0 to 10; "
                          "1 is off, -1 as the checkpoint says",
                          -1, 10, defaults.repetition_penalty, kPlaying));
  g_object_class_install_property(
      object_class, PROP_SEED,
      g_param_spec_uint64("seed", "Seed",
                          "Seed of the random numbers; the same seed and input give the same "
                          "answers",
                          0, G_MAXUINT64, defaults.seed, kPlaying));
}

void install_conversation(GObjectClass* object_class, const LanguageModelOptions& defaults) {
  g_object_class_install_property(
      object_class, PROP_MAX_NEW_TOKENS,
      g_param_spec_int("max-new-tokens", "Maximum New Tokens",
                       "Longest answer in tokens (one is about three quarters of a word)", 1,
                       INT_MAX, defaults.max_new_tokens, kPlaying));
  g_object_class_install_property(
      object_class, PROP_CONTEXT_LENGTH,
      g_param_spec_int("context-length", "Context Length",
                       "Positions of the model's memory, at most what the checkpoint allows; a "
                       "turn that would not fit starts a new session. Takes effect with the next "
                       "session",
                       kMinContext, kMaxContext, defaults.context_length, kPlaying));
  g_object_class_install_property(
      object_class, PROP_SYSTEM_PROMPT,
      g_param_spec_string(
          "system-prompt", "System Prompt",
          "What the model is told at the start of a session. Takes effect with the "
          "next session",
          defaults.system_prompt.c_str(),
          static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_NAME | G_PARAM_STATIC_NICK |
                                   G_PARAM_STATIC_BLURB | GST_PARAM_MUTABLE_PLAYING)));
  g_object_class_install_property(
      object_class, PROP_VOICE,
      g_param_spec_string("voice", "Voice",
                          "Sound file with the voice to speak in; its first 30 s are used. The "
                          "model imitates it as far as it learnt to. NULL: the model's own. Takes "
                          "effect with the next session",
                          nullptr, kPlaying));
  g_object_class_install_property(
      object_class, PROP_COMPATIBILITY,
      g_param_spec_enum("compatibility", "Compatibility",
                        "Whether flaws of upstream's streaming code are mended or kept",
                        GST_TYPE_MINICPMO_COMPATIBILITY, static_cast<int>(defaults.compatibility),
                        kReady));
}

void install_stream(GObjectClass* object_class) {
  const LlmSettingsValues defaults;
  g_object_class_install_property(
      object_class, PROP_TIMESTAMP_MODE,
      g_param_spec_enum("timestamp-mode", "Timestamp Mode", "What the output's timestamps tell",
                        GST_TYPE_MINICPMO_TIMESTAMP_MODE, static_cast<int>(defaults.timestamp_mode),
                        kReady));
  g_object_class_install_property(
      object_class, PROP_RESUME_FALSE_INTERRUPTION,
      g_param_spec_boolean("resume-false-interruption", "Resume False Interruption",
                           "Whether an answer that was interrupted goes on when nobody has spoken "
                           "after all (a cough): from the word it stopped at",
                           defaults.resume, kPlaying));
  g_object_class_install_property(
      object_class, PROP_MAX_MESSAGE_BYTES,
      g_param_spec_uint("max-message-bytes", "Maximum Message Bytes",
                        "Longest text message in bytes; longer ones are refused with a warning", 1,
                        64u << 20, defaults.max_message_bytes, kPlaying));
  g_object_class_install_property(
      object_class, PROP_STATS,
      g_param_spec_boxed(
          "stats", "Statistics",
          "Counted since the element was made: turns, interrupted, resumed (after a "
          "false interruption), discarded (speculative answers), cut-back (not heard "
          "to the end), tokens, rows "
          "(embeddings read), messages, refused, prefill-time and decode-time (ns, "
          "in the model), gpu-time (ns of them on a GPU) and gpu-prefill-time (of "
          "that, reading), tokens-per-second; of the last answer: "
          "first-text-latency (ns from its start), context-used (positions)",
          GST_TYPE_STRUCTURE, static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));
}

GstStructure* make_stats(const LlmStats& stats) {
  const double seconds = static_cast<double>(stats.decode_time) / GST_SECOND;
  const double rate = seconds > 0 ? static_cast<double>(stats.tokens) / seconds : 0;
  return gst_structure_new(
      "application/x-minicpmollm-stats", "turns", G_TYPE_UINT64, stats.turns, "interrupted",
      G_TYPE_UINT64, stats.interrupted, "resumed", G_TYPE_UINT64, stats.resumed, "discarded",
      G_TYPE_UINT64, stats.discarded, "cut-back", G_TYPE_UINT64, stats.cut_back, "tokens",
      G_TYPE_UINT64, stats.tokens, "rows", G_TYPE_UINT64, stats.rows, "messages", G_TYPE_UINT64,
      stats.messages, "refused", G_TYPE_UINT64, stats.refused, "prefill-time", G_TYPE_UINT64,
      stats.prefill_time, "decode-time", G_TYPE_UINT64, stats.decode_time, "gpu-time",
      G_TYPE_UINT64, stats.gpu_time, "gpu-prefill-time", G_TYPE_UINT64, stats.gpu_prefill_time,
      "tokens-per-second", G_TYPE_DOUBLE, rate, "first-text-latency", G_TYPE_UINT64,
      stats.first_text_latency, "context-used", G_TYPE_INT64, stats.context_used, nullptr);
}

}  // namespace

void LlmSettings::install(GObjectClass* object_class) {
  const LanguageModelOptions defaults;
  install_sampling(object_class, defaults);
  install_conversation(object_class, defaults);
  install_stream(object_class);
}

LlmSettingsValues LlmSettings::values() const {
  std::lock_guard lock(mutex_);
  return values_;
}

bool LlmSettings::voice_due() const {
  std::lock_guard lock(mutex_);
  return values_.voice != values_.encoded_voice;
}

void LlmSettings::set_voice_embeddings(TensorPtr embeddings, const std::string& path) {
  std::lock_guard lock(mutex_);
  values_.encoded_voice = path;
  values_.options.voice = std::move(embeddings);
}

bool LlmSettings::set(guint id, const GValue* value) {
  std::lock_guard lock(mutex_);
  LanguageModelOptions& options = values_.options;
  switch (id) {
    case PROP_TEMPERATURE:
      options.temperature = g_value_get_double(value);
      return true;
    case PROP_TOP_P:
      options.top_p = g_value_get_double(value);
      return true;
    case PROP_TOP_K:
      options.top_k = g_value_get_int(value);
      return true;
    case PROP_REPETITION_PENALTY:
      options.repetition_penalty = g_value_get_double(value);
      return true;
    case PROP_SEED:
      options.seed = g_value_get_uint64(value);
      return true;
    case PROP_MAX_NEW_TOKENS:
      options.max_new_tokens = g_value_get_int(value);
      return true;
    case PROP_CONTEXT_LENGTH:
      options.context_length = g_value_get_int(value);
      return true;
    case PROP_SYSTEM_PROMPT: {
      const gchar* prompt = g_value_get_string(value);
      options.system_prompt = prompt != nullptr ? prompt : "";
      return true;
    }
    case PROP_VOICE: {
      const gchar* voice = g_value_get_string(value);
      values_.voice = voice != nullptr ? voice : "";
      return true;
    }
    case PROP_COMPATIBILITY:
      options.compatibility = static_cast<Compatibility>(g_value_get_enum(value));
      return true;
    case PROP_TIMESTAMP_MODE:
      values_.timestamp_mode = static_cast<TimestampMode>(g_value_get_enum(value));
      return true;
    case PROP_RESUME_FALSE_INTERRUPTION:
      values_.resume = g_value_get_boolean(value) != FALSE;
      return true;
    case PROP_MAX_MESSAGE_BYTES:
      values_.max_message_bytes = g_value_get_uint(value);
      return true;
    default:
      return false;
  }
}

bool LlmSettings::get(guint id, GValue* value, const LlmWorker& worker) const {
  const LlmSettingsValues now = values();
  const LanguageModelOptions& options = now.options;
  switch (id) {
    case PROP_TEMPERATURE:
      g_value_set_double(value, options.temperature);
      return true;
    case PROP_TOP_P:
      g_value_set_double(value, options.top_p);
      return true;
    case PROP_TOP_K:
      g_value_set_int(value, options.top_k);
      return true;
    case PROP_REPETITION_PENALTY:
      g_value_set_double(value, options.repetition_penalty);
      return true;
    case PROP_SEED:
      g_value_set_uint64(value, options.seed);
      return true;
    case PROP_MAX_NEW_TOKENS:
      g_value_set_int(value, options.max_new_tokens);
      return true;
    case PROP_CONTEXT_LENGTH:
      g_value_set_int(value, options.context_length);
      return true;
    case PROP_SYSTEM_PROMPT:
      g_value_set_string(value, options.system_prompt.c_str());
      return true;
    case PROP_VOICE:
      g_value_set_string(value, now.voice.empty() ? nullptr : now.voice.c_str());
      return true;
    case PROP_COMPATIBILITY:
      g_value_set_enum(value, static_cast<int>(options.compatibility));
      return true;
    case PROP_TIMESTAMP_MODE:
      g_value_set_enum(value, static_cast<int>(now.timestamp_mode));
      return true;
    case PROP_RESUME_FALSE_INTERRUPTION:
      g_value_set_boolean(value, now.resume);
      return true;
    case PROP_MAX_MESSAGE_BYTES:
      g_value_set_uint(value, now.max_message_bytes);
      return true;
    case PROP_STATS:
      g_value_take_boxed(value, make_stats(worker.stats()));
      return true;
    default:
      return false;
  }
}

}  // namespace minicpmo
