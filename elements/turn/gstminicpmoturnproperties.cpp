#include "turn/gstminicpmoturnproperties.h"

#include "turn/gstminicpmoturn.h"

namespace minicpmo {

namespace {

enum {
  PROP_0,
  PROP_MODEL,
  PROP_MODE,
  PROP_THRESHOLD,
  PROP_RELEASE_THRESHOLD,
  PROP_MIN_SPEECH,
  PROP_SILENCE_DURATION,
  PROP_PREFIX_PADDING,
  PROP_MAX_TURN,
  PROP_MIN_TURN_SPEECH,
  PROP_BARGE_IN,
  PROP_INTERRUPT_AFTER,
  PROP_SPECULATIVE_AFTER,
  PROP_STATS,
};

constexpr uint64_t kSamplesPerMs = 16;
constexpr guint kMostMs = 60000;

const EndpointingSettings kDefaults;

// A time that is a property: in milliseconds there, in samples here.
struct TimeProperty {
  guint id;
  uint64_t EndpointingSettings::*samples;
  guint most;
  const gchar* name;
  const gchar* nick;
  const gchar* blurb;
};

constexpr TimeProperty kTimes[] = {
    {PROP_MIN_SPEECH, &EndpointingSettings::min_speech, 10000, "min-speech", "Minimum Speech",
     "Voice without a pause, in milliseconds (whole windows of 32), that starts a turn"},
    {PROP_SILENCE_DURATION, &EndpointingSettings::silence, kMostMs, "silence-duration",
     "Silence Duration", "Silence in milliseconds (whole windows of 32) that ends a turn"},
    {PROP_PREFIX_PADDING, &EndpointingSettings::padding, 10000, "prefix-padding", "Prefix Padding",
     "Audio in milliseconds from before the first voice that belongs to the turn"},
    {PROP_MAX_TURN, &EndpointingSettings::max_turn, 3600000, "max-turn", "Maximum Turn",
     "Longest turn in milliseconds (0 = no limit); it ends there, and the next one starts after a "
     "pause"},
    {PROP_MIN_TURN_SPEECH, &EndpointingSettings::min_turn_speech, kMostMs, "min-turn-speech",
     "Minimum Speech of a Turn",
     "A turn with less voice than this, in milliseconds, was a cough: it is cancelled, and what it "
     "interrupted may go on (0 = never)"},
    {PROP_INTERRUPT_AFTER, &EndpointingSettings::interrupt_after, kMostMs, "interrupt-after",
     "Interrupt After",
     "Voice in milliseconds after which a turn interrupts the answer (0 = when it starts); at the "
     "latest it does when it ends"},
    {PROP_SPECULATIVE_AFTER, &EndpointingSettings::speculative_after, kMostMs, "speculative-after",
     "Speculative After",
     "Silence in milliseconds after which the turn's end is announced as a guess, so that the "
     "answer can be begun (0, or silence-duration and more = never)"},
};

const TimeProperty* time_property(guint id) {
  for (const TimeProperty& time : kTimes) {
    if (time.id == id) return &time;
  }
  return nullptr;
}

constexpr auto kPlaying = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                   GST_PARAM_MUTABLE_PLAYING);

void install_thresholds(GObjectClass* object_class) {
  g_object_class_install_property(
      object_class, PROP_THRESHOLD,
      g_param_spec_float("threshold", "Threshold",
                         "Probability of speech, 0 to 1, from which on a window is voice", 0, 1,
                         kDefaults.threshold, kPlaying));
  g_object_class_install_property(
      object_class, PROP_RELEASE_THRESHOLD,
      g_param_spec_float("release-threshold", "Release Threshold",
                         "Probability of speech, 0 to 1, below which voice is over (not above "
                         "threshold)",
                         0, 1, kDefaults.release_threshold, kPlaying));
}

GstStructure* make_stats(const TurnStats& stats) {
  return gst_structure_new(
      "application/x-minicpmoturn-stats", "turns", G_TYPE_UINT64, stats.turns.load(), "cancelled",
      G_TYPE_UINT64, stats.cancelled.load(), "interrupts", G_TYPE_UINT64, stats.interrupts.load(),
      "speculative-ends", G_TYPE_UINT64, stats.speculative_ends.load(), "resumed", G_TYPE_UINT64,
      stats.resumed.load(), "speech-time", G_TYPE_UINT64, stats.speech_time.load(), "silence-time",
      G_TYPE_UINT64, stats.silence_time.load(), "vad-time", G_TYPE_UINT64, stats.vad_time.load(),
      "passed-samples", G_TYPE_UINT64, stats.passed_samples.load(), "dropped-samples",
      G_TYPE_UINT64, stats.dropped_samples.load(), "filled-samples", G_TYPE_UINT64,
      stats.filled_samples.load(), "non-finite-samples", G_TYPE_UINT64,
      stats.non_finite_samples.load(), nullptr);
}

// $MINICPMO_VAD, the installed file, or the one that tools/setup fetched.
const gchar* default_model() {
  if (const gchar* wanted = g_getenv("MINICPMO_VAD"); wanted != nullptr && *wanted != 0)
    return wanted;
#if defined(MINICPMO_INSTALLED_VAD) && defined(MINICPMO_DEFAULT_VAD)
  if (!g_file_test(MINICPMO_INSTALLED_VAD, G_FILE_TEST_EXISTS)) return MINICPMO_DEFAULT_VAD;
  return MINICPMO_INSTALLED_VAD;
#else
  return "";
#endif
}

}  // namespace

void TurnProperties::install(GObjectClass* object_class) {
  g_object_class_install_property(
      object_class, PROP_MODEL,
      g_param_spec_string("model", "Model",
                          "File of the voice activity network, silero_vad_16k.safetensors; none: "
                          "$MINICPMO_VAD, or the one that tools/setup fetched. Read in NULL to "
                          "READY",
                          nullptr,
                          static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS |
                                                   GST_PARAM_MUTABLE_READY)));
  g_object_class_install_property(
      object_class, PROP_MODE,
      g_param_spec_enum("mode", "Mode",
                        "What makes turns: voice, or the signals start-turn and "
                        "end-turn only",
                        GST_TYPE_MINICPMO_TURN_MODE, static_cast<int>(TurnMode::kVad), kPlaying));
  install_thresholds(object_class);
  for (const TimeProperty& time : kTimes) {
    g_object_class_install_property(
        object_class, time.id,
        g_param_spec_uint(time.name, time.nick, time.blurb, 0, time.most,
                          static_cast<guint>(kDefaults.*time.samples / kSamplesPerMs), kPlaying));
  }
  g_object_class_install_property(
      object_class, PROP_BARGE_IN,
      g_param_spec_boolean("barge-in", "Barge In",
                           "Whether a turn interrupts an answer that is being made or played", TRUE,
                           kPlaying));
  g_object_class_install_property(
      object_class, PROP_STATS,
      g_param_spec_boxed("stats", "Statistics",
                         "Counted since the element was made: turns, cancelled, interrupts, "
                         "speculative-ends, resumed; speech-time, silence-time, vad-time (ns); "
                         "passed-samples, dropped-samples, filled-samples, non-finite-samples "
                         "(16 kHz samples)",
                         GST_TYPE_STRUCTURE,
                         static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));
}

bool TurnProperties::set(guint id, const GValue* value, TurnGate& gate) {
  std::lock_guard lock(mutex_);
  TurnSettings settings = gate.settings();
  const TimeProperty* time = time_property(id);
  if (time != nullptr) {
    settings.endpointing.*time->samples = g_value_get_uint(value) * kSamplesPerMs;
  } else {
    switch (id) {
      case PROP_MODEL: {
        const gchar* path = g_value_get_string(value);
        model_ = path != nullptr ? std::optional<std::string>(path) : std::nullopt;
        break;
      }
      case PROP_MODE:
        settings.mode = static_cast<TurnMode>(g_value_get_enum(value));
        break;
      case PROP_THRESHOLD:
        settings.endpointing.threshold = g_value_get_float(value);
        break;
      case PROP_RELEASE_THRESHOLD:
        settings.endpointing.release_threshold = g_value_get_float(value);
        break;
      case PROP_BARGE_IN:
        settings.barge_in = g_value_get_boolean(value);
        break;
      default:
        return false;
    }
  }
  gate.set_settings(settings);
  return true;
}

bool TurnProperties::get(guint id, GValue* value, const TurnGate& gate) const {
  std::lock_guard lock(mutex_);
  const TurnSettings settings = gate.settings();
  if (const TimeProperty* time = time_property(id); time != nullptr) {
    g_value_set_uint(value,
                     static_cast<guint>(settings.endpointing.*time->samples / kSamplesPerMs));
    return true;
  }
  switch (id) {
    case PROP_MODEL:
      g_value_set_string(value, model_ ? model_->c_str() : nullptr);
      return true;
    case PROP_MODE:
      g_value_set_enum(value, static_cast<int>(settings.mode));
      return true;
    case PROP_THRESHOLD:
      g_value_set_float(value, settings.endpointing.threshold);
      return true;
    case PROP_RELEASE_THRESHOLD:
      g_value_set_float(value, settings.endpointing.release_threshold);
      return true;
    case PROP_BARGE_IN:
      g_value_set_boolean(value, settings.barge_in);
      return true;
    case PROP_STATS:
      g_value_take_boxed(value, make_stats(gate.stats()));
      return true;
    default:
      return false;
  }
}

std::string TurnProperties::model() const {
  std::lock_guard lock(mutex_);
  return model_ ? *model_ : default_model();
}

}  // namespace minicpmo

GType gst_minicpmo_turn_mode_get_type(void) {
  static const GType type = [] {
    static const GEnumValue values[] = {
        {static_cast<int>(minicpmo::TurnMode::kVad), "Voice starts and ends turns", "vad"},
        {static_cast<int>(minicpmo::TurnMode::kManual),
         "Only the signals start-turn and end-turn do; no network is used", "manual"},
        {0, nullptr, nullptr}};
    return g_enum_register_static("GstMiniCpmoTurnMode", values);
  }();
  return type;
}
