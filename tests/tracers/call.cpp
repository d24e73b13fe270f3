#include "call.h"

#include <gst/app/gstappsrc.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>

namespace minicpmo::testing {

namespace {

constexpr GstClockTime kBuffer = 20 * GST_MSECOND;
constexpr size_t kBufferSamples = 320;

std::string next(const std::string& element) {
  return element.empty() ? "" : element + " ! ";
}

std::string named(GstElement* pipeline) {
  static std::atomic<int> count{0};
  const std::string name = "call" + std::to_string(++count);
  gst_object_set_name(GST_OBJECT(pipeline), name.c_str());
  return name;
}

}  // namespace

std::map<guint64, nlohmann::json> turns_of(const std::string& pipeline) {
  std::map<guint64, nlohmann::json> turns;
  std::ifstream file(turns_path());
  for (std::string line; std::getline(file, line) && !file.eof();) {
    nlohmann::json record = nlohmann::json::parse(line);
    const guint64 id = record["turn"];
    if (record["pipeline"] == pipeline) turns[id] = std::move(record);
  }
  return turns;
}

std::map<guint64, nlohmann::json> wait_for_turns(const std::string& pipeline, size_t count) {
  const auto limit = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    auto turns = turns_of(pipeline);
    if (turns.size() >= count) return turns;
    if (std::chrono::steady_clock::now() > limit) {
      ADD_FAILURE() << pipeline << ": " << turns.size() << " turns of " << count;
      return turns;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

double part_ms(const nlohmann::json& turn, const std::string& part, const std::string& element) {
  double ms = 0;
  for (const auto& p : turn["parts"])
    if ((part.empty() || p["part"] == part) && (element.empty() || p["element"] == element))
      ms += p["ms"].get<double>();
  return ms;
}

double sum_ms(const nlohmann::json& turn) {
  return part_ms(turn, "");
}

// ---------------------------------------------------------------- PadTimes

PadTimes::PadTimes(GstElement* element, const char* pad)
    : pad_(gst_element_get_static_pad(element, pad)) {
  const auto what =
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM);
  id_ = gst_pad_add_probe(pad_.get(), what, probe, this, nullptr);
}

PadTimes::~PadTimes() {
  gst_pad_remove_probe(pad_.get(), id_);
}

GstPadProbeReturn PadTimes::probe(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<PadTimes*>(data);
  Item item{"buffer", gst_util_get_timestamp(), GST_CLOCK_TIME_NONE};
  if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) != 0) {
    item.pts = GST_BUFFER_PTS(GST_PAD_PROBE_INFO_BUFFER(info));
  } else {
    const GstStructure* fields = gst_event_get_structure(GST_PAD_PROBE_INFO_EVENT(info));
    item.name = fields != nullptr ? gst_structure_get_name(fields) : "";
  }
  std::lock_guard lock(self->mutex_);
  self->items_.push_back(std::move(item));
  return GST_PAD_PROBE_OK;
}

std::vector<PadTimes::Item> PadTimes::all(const std::string& name) const {
  std::lock_guard lock(mutex_);
  std::vector<Item> found;
  for (const Item& item : items_)
    if (item.name == name) found.push_back(item);
  return found;
}

// ---------------------------------------------------------------- Voice

Voice::Voice(const PipelineRun& run) : pipeline_(run.pipeline()), source_(run.element("source")) {}

void Voice::sound(GstClockTime duration, float value) {
  const auto now = [this] { return gst_element_get_current_running_time(pipeline_); };
  if (!GST_CLOCK_TIME_IS_VALID(time_)) time_ = now();
  const std::vector<float> pcm(kBufferSamples, value);
  for (GstClockTime end = time_ + duration; time_ < end;) {
    GstBuffer* buffer = gst_buffer_new_memdup(pcm.data(), pcm.size() * sizeof(float));
    GST_BUFFER_PTS(buffer) = time_;
    GST_BUFFER_DURATION(buffer) = kBuffer;
    time_ += kBuffer;
    if (const GstClockTime t = now(); t < time_)
      std::this_thread::sleep_for(std::chrono::nanoseconds(time_ - t));
    gst_app_src_push_buffer(GST_APP_SRC(source_.get()), buffer);
  }
}

void Voice::end() {
  gst_app_src_end_of_stream(GST_APP_SRC(source_.get()));
}

// ---------------------------------------------------------------- Call

std::string Line::text(const std::string& speaker) const {
  return source + " ! " + next(before) + "minicpmoturn name=turn " + turn + " ! " + next(heard) +
         "minicpmoaudioenc name=encoder ! " + next(embedded) + next(embeddings) +
         "minicpmollm name=llm ! " + next(words) + next(worded) +
         "minicpmotts name=speech speaker=" + speaker + " ! queue name=codes ! " + next(coded) +
         "minicpmovocoder name=vocoder ! queue name=answer ! " + next(sounded) + sink;
}

Call::Call(const Line& line)
    : speaker_(std::string(8 * sizeof(float), '\0')),
      run_(line.text(speaker_.path())),
      name_(named(run_.pipeline())),
      voice_(run_) {
  gst_element_set_state(run_.pipeline(), GST_STATE_PLAYING);
  gst_element_get_state(run_.pipeline(), nullptr, nullptr, GST_SECOND);
}

GstElement* Call::element(const char* name) {
  found_.push_back(run_.element(name));
  return found_.back().get();
}

void Call::begin_turn() {
  voice_.say(300 * GST_MSECOND);
  ++turns_;
}

nlohmann::json Call::turn() {
  begin_turn();
  const auto limit = std::chrono::steady_clock::now() + kPatience;
  while (turns_of(name_).size() < turns_ && std::chrono::steady_clock::now() < limit)
    voice_.be_silent(100 * GST_MSECOND);
  auto turns = wait(turns_);
  return turns.empty() ? nlohmann::json() : turns.rbegin()->second;
}

}  // namespace minicpmo::testing
