#include "bin/gstminicpmobinproperties.h"

#include <array>
#include <iterator>
#include <string>

#include "audioenc/gstminicpmoaudioenc.h"
#include "common/gst_ptr.h"
#include "llm/gstminicpmollm.h"
#include "tts/gstminicpmotts.h"
#include "vocoder/gstminicpmovocoder.h"

namespace {

constexpr std::array<const char*, 4> kChildren{"audioenc", "llm", "tts", "vocoder"};
constexpr guint kAudioEnc = 1, kLlm = 2, kTts = 4, kVocoder = 8;  // bits in the order of kChildren
constexpr guint kAll = kAudioEnc | kLlm | kTts | kVocoder;

struct Proxied {
  const char* name;
  const char* child_property;
  guint children;  // the first of them describes it
};

constexpr Proxied kProxied[] = {
    {"model", "model", kAll},
    {"device", "device", kAll},
    {"precision", "precision", kAll},
    {"async-load", "async-load", kAll},
    {"system-prompt", "system-prompt", kLlm},
    {"voice", "voice", kLlm},
    {"temperature", "temperature", kLlm},
    {"top-p", "top-p", kLlm},
    {"top-k", "top-k", kLlm},
    {"repetition-penalty", "repetition-penalty", kLlm},
    {"max-new-tokens", "max-new-tokens", kLlm},
    {"context-length", "context-length", kLlm},
    {"timestamp-mode", "timestamp-mode", kLlm},
    {"resume-false-interruption", "resume-false-interruption", kLlm},
    {"seed", "seed", kLlm | kTts},
    {"compatibility", "compatibility", kLlm | kTts | kVocoder},
    {"speaker", "speaker", kTts},
    {"speech-temperature", "temperature", kTts},
    {"max-codes", "max-codes", kTts},
    {"headroom", "headroom", kVocoder},
};
constexpr guint kStats = std::size(kProxied) + 1;

GType child_type(size_t index) {
  switch (index) {
    case 0:
      return GST_TYPE_MINICPMO_AUDIO_ENC;
    case 1:
      return GST_TYPE_MINICPMO_LLM;
    case 2:
      return GST_TYPE_MINICPMO_TTS;
    default:
      return GST_TYPE_MINICPMO_VOCODER;
  }
}

// A specification like `from` under another name: one cannot belong to two classes.
GParamSpec* copy_spec(GParamSpec* from, const char* name) {
  const gchar* nick = g_param_spec_get_nick(from);
  const gchar* blurb = g_param_spec_get_blurb(from);
  constexpr guint kStatic = G_PARAM_STATIC_NICK | G_PARAM_STATIC_BLURB;
  const auto flags = static_cast<GParamFlags>(from->flags & ~kStatic);
  if (G_IS_PARAM_SPEC_STRING(from)) {
    return g_param_spec_string(name, nick, blurb, G_PARAM_SPEC_STRING(from)->default_value, flags);
  }
  if (G_IS_PARAM_SPEC_BOOLEAN(from)) {
    return g_param_spec_boolean(name, nick, blurb, G_PARAM_SPEC_BOOLEAN(from)->default_value,
                                flags);
  }
  if (G_IS_PARAM_SPEC_ENUM(from)) {
    return g_param_spec_enum(name, nick, blurb, G_PARAM_SPEC_VALUE_TYPE(from),
                             G_PARAM_SPEC_ENUM(from)->default_value, flags);
  }
  if (G_IS_PARAM_SPEC_DOUBLE(from)) {
    const auto* spec = G_PARAM_SPEC_DOUBLE(from);
    return g_param_spec_double(name, nick, blurb, spec->minimum, spec->maximum, spec->default_value,
                               flags);
  }
  if (G_IS_PARAM_SPEC_INT(from)) {
    const auto* spec = G_PARAM_SPEC_INT(from);
    return g_param_spec_int(name, nick, blurb, spec->minimum, spec->maximum, spec->default_value,
                            flags);
  }
  g_return_val_if_fail(G_IS_PARAM_SPEC_UINT64(from), nullptr);
  const auto* spec = G_PARAM_SPEC_UINT64(from);
  return g_param_spec_uint64(name, nick, blurb, spec->minimum, spec->maximum, spec->default_value,
                             flags);
}

template <class Body>
void for_each_child(GstBin* bin, guint children, Body&& body) {
  for (size_t i = 0; i < kChildren.size(); ++i) {
    if ((children & (1u << i)) == 0) continue;
    const minicpmo::ElementPtr child(gst_bin_get_by_name(bin, kChildren[i]));
    if (child != nullptr && !body(child.get(), kChildren[i])) return;
  }
}

GstStructure* make_stats(GstBin* bin) {
  GstStructure* all = gst_structure_new_empty("application/x-minicpmobin-stats");
  for_each_child(bin, kAll, [all](GstElement* child, const char* name) {
    GstStructure* stats = nullptr;
    g_object_get(child, "stats", &stats, nullptr);
    if (stats == nullptr) return true;
    gst_structure_set(all, name, GST_TYPE_STRUCTURE, stats, nullptr);
    gst_structure_free(stats);
    return true;
  });
  return all;
}

}  // namespace

void gst_minicpmo_bin_properties_install(GObjectClass* object_class) {
  for (guint i = 0; i < std::size(kProxied); ++i) {
    const Proxied& proxied = kProxied[i];
    size_t first = 0;
    while ((proxied.children & (1u << first)) == 0) ++first;
    auto* child = static_cast<GObjectClass*>(g_type_class_ref(child_type(first)));
    GParamSpec* spec = g_object_class_find_property(child, proxied.child_property);
    g_object_class_install_property(object_class, i + 1, copy_spec(spec, proxied.name));
    g_type_class_unref(child);
  }
  g_object_class_install_property(
      object_class, kStats,
      g_param_spec_boxed(
          "stats", "Statistics",
          "The statistics of the children: audioenc, llm, tts, vocoder (GstStructure "
          "each)",
          GST_TYPE_STRUCTURE, static_cast<GParamFlags>(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS)));
}

gboolean gst_minicpmo_bin_properties_set(GstBin* bin, guint id, const GValue* value) {
  if (id == 0 || id > std::size(kProxied)) return FALSE;
  const Proxied& proxied = kProxied[id - 1];
  for_each_child(bin, proxied.children, [&](GstElement* child, const char*) {
    g_object_set_property(G_OBJECT(child), proxied.child_property, value);
    return true;
  });
  return TRUE;
}

gboolean gst_minicpmo_bin_properties_get(GstBin* bin, guint id, GValue* value) {
  if (id == kStats) {
    g_value_take_boxed(value, make_stats(bin));
    return TRUE;
  }
  if (id == 0 || id > std::size(kProxied)) return FALSE;
  const Proxied& proxied = kProxied[id - 1];
  for_each_child(bin, proxied.children, [&](GstElement* child, const char*) {
    g_object_get_property(G_OBJECT(child), proxied.child_property, value);
    return false;
  });
  return TRUE;
}
