// An element that stands for minicpmobin and minicpmoturn: it has the properties and signals that
// calls use, and does nothing.
#pragma once

#include <gst/gst.h>

namespace minicpmo::call_server {

inline GType fake_mode_type() {
  static const GEnumValue modes[] = {
      {0, "vad", "vad"}, {1, "manual", "manual"}, {0, nullptr, nullptr}};
  static const GType type = g_enum_register_static("FakeMode", modes);
  return type;
}

inline void fake_element_class(gpointer fake_class, gpointer) {
  auto* const object = static_cast<GObjectClass*>(fake_class);
  object->set_property = [](GObject*, guint, const GValue*, GParamSpec*) {};
  const GParamFlags flags = static_cast<GParamFlags>(G_PARAM_WRITABLE | G_PARAM_STATIC_STRINGS);
  GParamSpec* const specs[] = {g_param_spec_string("system-prompt", "", "", nullptr, flags),
                               g_param_spec_string("voice", "", "", nullptr, flags),
                               g_param_spec_float("threshold", "", "", 0, 1, 0, flags),
                               g_param_spec_uint("prefix-padding", "", "", 0, 10000, 0, flags),
                               g_param_spec_uint("silence-duration", "", "", 0, 60000, 0, flags),
                               g_param_spec_boolean("barge-in", "", "", TRUE, flags),
                               g_param_spec_enum("mode", "", "", fake_mode_type(), 0, flags)};
  guint id = 0;
  for (GParamSpec* const spec : specs) g_object_class_install_property(object, ++id, spec);
  const GType type = G_TYPE_FROM_CLASS(fake_class);
  for (const char* name : {"interrupt", "reset-session", "start-turn", "end-turn", "cancel-turn"})
    g_signal_new(name, type, G_SIGNAL_RUN_LAST, 0, nullptr, nullptr, nullptr, G_TYPE_NONE, 0);
  // Takes texts of an even length.
  g_signal_new_class_handler("push-text", type, G_SIGNAL_RUN_LAST,
                             G_CALLBACK(+[](GstElement*, const char* text) -> gboolean {
                               return g_utf8_validate(text, -1, nullptr) && strlen(text) % 2 == 0;
                             }),
                             nullptr, nullptr, nullptr, G_TYPE_BOOLEAN, 1, G_TYPE_STRING);
}

// The caller's.
inline GstElement* fake_element() {
  static const GType type = g_type_register_static_simple(
      GST_TYPE_ELEMENT, "FakeElement", sizeof(GstElementClass), fake_element_class,
      sizeof(GstElement), nullptr, static_cast<GTypeFlags>(0));
  return GST_ELEMENT(gst_object_ref_sink(g_object_new(type, nullptr)));
}

}  // namespace minicpmo::call_server
