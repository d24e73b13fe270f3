// What is told about a turn.
#include <algorithm>
#include <array>

#include "turn.h"

namespace minicpmo::tracers {

namespace {

using nlohmann::json;

double milliseconds(GstClockTime time) {
  return static_cast<double>(time) / 1e6;
}

double seconds(GstClockTime time) {
  return static_cast<double>(time) / 1e9;
}

double per_second(guint64 count, GstClockTime time) {
  return time > 0 ? static_cast<double>(count) / seconds(time) : 0;
}

// Which properties of an element decide how long it keeps a turn.
struct Owner {
  const char* factory;
  std::array<const char*, 3> properties;
};
constexpr std::array kOwners{
    Owner{"minicpmoturn", {"silence-duration", "speculative-after"}},
    Owner{"rtpjitterbuffer", {"latency", "do-lost"}},
    Owner{"netsim", {"min-delay", "max-delay"}},
    Owner{"identity", {"sleep-time"}},
    Owner{"queue", {"max-size-buffers", "max-size-bytes", "max-size-time"}},
    Owner{"queue2", {"max-size-buffers", "max-size-bytes", "max-size-time"}},
    Owner{"opusenc", {"frame-size"}},
    Owner{"opusdec", {"use-inband-fec", "plc"}},
    Owner{"audiomixer", {"latency", "output-buffer-duration"}},
    Owner{"liveadder", {"latency", "output-buffer-duration"}},
    Owner{"minicpmotts", {"max-codes"}},
    Owner{"minicpmoaudioenc", {"max-turn-duration"}},
};
// Whoever waits for its time: the vocoder says how far ahead that is.
constexpr std::array<const char*, 5> kSinkProperties{"sync", "ts-offset", "render-delay",
                                                     "buffer-time", "processing-deadline"};

void add_property(std::string& to, GObject* object, const char* name) {
  if (name == nullptr) return;
  if (g_object_class_find_property(G_OBJECT_GET_CLASS(object), name) == nullptr) return;
  GValue value = G_VALUE_INIT;
  g_object_get_property(object, name, &value);
  gchar* text = gst_value_serialize(&value);
  if (text != nullptr) to += (to.empty() ? "" : " ") + std::string(name) + "=" + text;
  g_free(text);
  g_value_unset(&value);
}

// What is sent on early, and then waits for its time in a mixer or a sink.
void add_headroom(std::string& to, const TurnPath& path) {
  if (path.vocoder < 0 || !path.live) return;
  const ElementInfo& vocoder = path.pads[static_cast<size_t>(path.vocoder)]->element;
  auto* element = static_cast<GObject*>(g_weak_ref_get(&vocoder.element));
  if (element == nullptr) return;
  std::string headroom;
  add_property(headroom, element, "headroom");
  to += (to.empty() ? "" : " ") + vocoder.name + " " + headroom;
  g_object_unref(element);
}

json stage_report(const StageWork& work) {
  return {
      {"calls", work.calls}, {"ms", milliseconds(work.busy)}, {"gpu_ms", milliseconds(work.gpu)}};
}

// Of sound that is played from its first sample on, as it comes.
GstClockTime underrun(const Sound& sound) {
  GstClockTime stopped = 0, before = 0;
  for (const Sound::Chunk& chunk : sound.chunks) {
    const GstClockTime played_out = before + stopped;
    const GstClockTime came = chunk.time - sound.chunks.front().time;
    if (came > played_out) stopped += came - played_out;
    before += chunk.duration;
  }
  return stopped;
}

GstClockTime duration_of(const Sound& sound) {
  GstClockTime duration = 0;
  for (const Sound::Chunk& chunk : sound.chunks) duration += chunk.duration;
  return duration;
}

json sound_report(const Sound& sound, GstClockTime begin) {
  const double length = seconds(duration_of(sound));
  json out = {{"seconds", length},
              {"chunks", sound.chunks.size()},
              {"put_off", sound.put_off},
              {"underrun_ms", milliseconds(underrun(sound))}};
  if (length > 0) {
    const GstClockTime last = sound.chunks.back().time;
    out["rtf"] = seconds(last - std::min(last, begin)) / length;
    out["steady_rtf"] = seconds(last - sound.chunks.front().time) / length;
  }
  return out;
}

json stages_report(const Turn& turn) {
  json out = json::object();
  for (const auto& [name, work] : turn.stages) out[name] = stage_report(work);
  const double length = seconds(duration_of(turn.sound));
  if (out.contains("decode")) {
    out["decode"]["tokens"] = turn.tokens;
    out["decode"]["tokens_per_s"] = per_second(turn.tokens, turn.stages.at("decode").busy);
  }
  if (out.contains("speech")) {
    out["speech"]["codes"] = turn.codes;
    out["speech"]["codes_per_s"] = per_second(turn.codes, turn.stages.at("speech").busy);
  }
  for (const char* name : {"speech", "vocoder"})
    if (out.contains(name) && length > 0)
      out[name]["rtf"] = seconds(turn.stages.at(name).busy) / length;
  return out;
}

json part_report(const Part& part, const TurnPath& path) {
  json out = {{"part", part.name},
              {"element", part.element->name},
              {"ms", milliseconds(part.to - part.from)}};
  if (const std::string setting = setting_of(part, path); !setting.empty())
    out["setting"] = setting;
  if (part.queue_buffers >= 0) {
    out["queue_buffers"] = part.queue_buffers;
    out["queue_ms"] = milliseconds(part.queue_time);
  }
  return out;
}

const char* kind_of(const Turn& turn) {
  if (turn.marked) return "spoken";
  return turn.encoded ? "recorded" : "typed";
}

}  // namespace

std::string setting_of(const Part& part, const TurnPath& path) {
  auto* element = static_cast<GstElement*>(g_weak_ref_get(&part.element->element));
  if (element == nullptr) return "";
  std::string text;
  if (part.name == "sink") {
    for (const char* name : kSinkProperties) add_property(text, G_OBJECT(element), name);
  } else {
    for (const Owner& owner : kOwners)
      if (part.element->factory == owner.factory)
        for (const char* name : owner.properties) add_property(text, G_OBJECT(element), name);
  }
  if (part.name == "sink" || part.element->factory == "audiomixer" ||
      part.element->factory == "liveadder")
    add_headroom(text, path);
  gst_object_unref(element);
  return text;
}

json report(const Turn& turn, const Parts& parts, const std::string& pipeline) {
  json out = {{"type", "turn"},
              {"pipeline", pipeline},
              {"turn", turn.id},
              {"kind", kind_of(turn)},
              {"finish", turn.finish},
              {"again", turn.again},
              {"discarded", turn.discarded},
              {"complete", parts.complete},
              {"parts", json::array()}};
  if (GST_CLOCK_TIME_IS_VALID(parts.begin)) {
    out["begin_ns"] = parts.begin;
    const GstClockTime end = parts.list.empty() ? parts.begin : parts.list.back().to;
    if (parts.complete) out["total_ms"] = milliseconds(end - parts.begin);
    for (const Part& part : parts.list)
      if (part.to > part.from) out["parts"].push_back(part_report(part, *turn.path));
  }
  out["stages"] = stages_report(turn);
  if (!turn.sound.chunks.empty())
    out["sound"] =
        sound_report(turn.sound, GST_CLOCK_TIME_IS_VALID(parts.begin) ? parts.begin : turn.begun);
  return out;
}

}  // namespace minicpmo::tracers
