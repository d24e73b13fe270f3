#include "sound.h"

#include <gst/app/gstappsink.h>
#include <gst/gst.h>

#include <algorithm>
#include <cmath>

namespace minicpmo::caller {

namespace {

std::string error_of(GstElement* pipeline) {
  GstBus* bus = gst_element_get_bus(pipeline);
  GstMessage* message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
  gst_object_unref(bus);
  if (!message) return "no sound in it";
  GError* error = nullptr;
  gst_message_parse_error(message, &error, nullptr);
  std::string text = error->message;
  g_error_free(error);
  gst_message_unref(message);
  return text;
}

void append(GstSample* sample, std::vector<int16_t>* samples) {
  GstMapInfo map;
  GstBuffer* buffer = gst_sample_get_buffer(sample);
  if (!gst_buffer_map(buffer, &map, GST_MAP_READ)) return;
  const auto* data = reinterpret_cast<const int16_t*>(map.data);
  samples->insert(samples->end(), data, data + map.size / 2);
  gst_buffer_unmap(buffer, &map);
}

}  // namespace

bool load_sound(const std::string& file, int rate, Sound* sound, std::string* problem) {
  const std::string line =
      "filesrc name=file ! decodebin ! audioconvert ! audioresample ! "
      "audio/x-raw,format=S16LE,channels=1,rate=" +
      std::to_string(rate) + " ! appsink name=sink sync=false";
  GstElement* pipeline = gst_parse_launch(line.c_str(), nullptr);
  if (!pipeline) {
    *problem = "GStreamer's base plugins are missing";
    return false;
  }
  GstElement* source = gst_bin_get_by_name(GST_BIN(pipeline), "file");
  g_object_set(source, "location", file.c_str(), nullptr);
  gst_object_unref(source);
  GstElement* sink = gst_bin_get_by_name(GST_BIN(pipeline), "sink");
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  constexpr GstClockTime kPatience = 10 * GST_SECOND;
  while (GstSample* sample = gst_app_sink_try_pull_sample(GST_APP_SINK(sink), kPatience)) {
    append(sample, &sound->samples);
    gst_sample_unref(sample);
  }
  const bool ok = gst_app_sink_is_eos(GST_APP_SINK(sink)) && !sound->samples.empty();
  if (!ok) *problem = file + ": " + error_of(pipeline);
  gst_element_set_state(pipeline, GST_STATE_NULL);
  gst_object_unref(sink);
  gst_object_unref(pipeline);
  sound->file = file;
  find_voice(rate, sound);
  return ok;
}

void find_voice(int rate, Sound* sound) {
  const size_t step = static_cast<size_t>(rate) / 100;
  std::vector<double> level;
  for (size_t i = 0; i + step <= sound->samples.size(); i += step) {
    double sum = 0;
    for (size_t k = i; k < i + step; ++k) sum += double(sound->samples[k]) * sound->samples[k];
    level.push_back(std::sqrt(sum / step) / 32768);
  }
  const double loudest = level.empty() ? 0 : *std::max_element(level.begin(), level.end());
  const double threshold = std::max(std::pow(10, -45 / 20.0), loudest * std::pow(10, -30 / 20.0));
  sound->voice_begin = sound->voice_end = 0;
  bool any = false;
  for (size_t i = 0; i < level.size(); ++i) {
    if (level[i] <= threshold) continue;
    if (!any) sound->voice_begin = i * step;
    any = true;
    sound->voice_end = (i + 1) * step;
  }
}

}  // namespace minicpmo::caller
