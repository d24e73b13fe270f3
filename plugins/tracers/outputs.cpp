#include "outputs.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

namespace minicpmo::tracers {

namespace {

using nlohmann::json;

// The first of the tracks that are no thread: above every thread's number (PID_MAX_LIMIT).
constexpr gint64 kGpuTrack = 1 << 22;

double microseconds(GstClockTime time) {
  return static_cast<double>(time) / 1e3;
}

gint64 thread_id() {
  thread_local const gint64 id = syscall(SYS_gettid);
  return id;
}

std::string thread_name() {
  std::array<char, 32> name{};
  pthread_getname_np(pthread_self(), name.data(), name.size());
  return name.data();
}

}  // namespace

std::string line(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Outputs::~Outputs() {
  if (trace_) std::fputs("\n]\n", trace_.get());
}

bool Outputs::open_lines(const std::string& path) {
  lines_.reset(std::fopen(path.c_str(), "we"));
  return lines_ != nullptr;
}

bool Outputs::open_trace(const std::string& path) {
  trace_.reset(std::fopen(path.c_str(), "we"));
  if (trace_) std::fputs("[", trace_.get());
  return trace_ != nullptr;
}

void Outputs::trace(const json& event) {
  std::fputs(any_ ? ",\n" : "\n", trace_.get());
  any_ = true;
  std::fputs(line(event).c_str(), trace_.get());
}

void Outputs::name_process(int pipeline, const std::string& name) {
  if (!processes_.insert(pipeline).second) return;
  trace({{"ph", "M"},
         {"name", "process_name"},
         {"pid", pipeline},
         {"tid", 0},
         {"args", {{"name", name}}}});
}

void Outputs::name_thread(int pipeline, gint64 thread, const std::string& name) {
  if (!threads_.insert({pipeline, thread}).second) return;
  trace({{"ph", "M"},
         {"name", "thread_name"},
         {"pid", pipeline},
         {"tid", thread},
         {"args", {{"name", name}}}});
}

void Outputs::work(int pipeline, const std::string& pipeline_name, const std::string& what,
                   guint64 turn_id, GstClockTime begin, GstClockTime end) {
  const gint64 thread = thread_id();
  std::lock_guard lock(mutex_);
  if (!trace_) return;
  name_process(pipeline, pipeline_name);
  name_thread(pipeline, thread, thread_name());
  trace({{"ph", "X"},
         {"cat", "stage"},
         {"name", what},
         {"pid", pipeline},
         {"tid", thread},
         {"ts", microseconds(begin)},
         {"dur", microseconds(end - begin)},
         {"args", {{"turn", turn_id}}}});
}

void Outputs::gpu_work(int pipeline, const std::string& pipeline_name, const std::string& stage,
                       guint64 turn_id, GstClockTime call_begin, GstClockTime duration) {
  std::lock_guard lock(mutex_);
  if (!trace_) return;
  const auto count = static_cast<gint64>(gpu_tracks_.size());
  const gint64 track = gpu_tracks_.try_emplace(stage, kGpuTrack + count).first->second;
  name_process(pipeline, pipeline_name);
  name_thread(pipeline, track, "CUDA stream: " + stage);
  // How long the GPU worked is known, not when: after the call had begun, and after what was
  // before.
  GstClockTime& ends = gpu_ends_[{pipeline, track}];
  const GstClockTime begin = std::max(ends, call_begin);
  ends = begin + duration;
  trace({{"ph", "X"},
         {"cat", "gpu"},
         {"name", stage},
         {"pid", pipeline},
         {"tid", track},
         {"ts", microseconds(begin)},
         {"dur", microseconds(duration)},
         {"args", {{"turn", turn_id}}}});
}

void Outputs::turn(int pipeline, const Turn& turn, const Parts& parts, const json& report) {
  log_records(report);
  std::lock_guard lock(mutex_);
  if (lines_) {
    std::fputs((line(report) + "\n").c_str(), lines_.get());
    std::fflush(lines_.get());
  }
  if (!trace_ || parts.list.empty()) return;
  name_process(pipeline, report["pipeline"]);
  const std::string id = std::to_string(++told_);  // a turn that is told again is another one here
  const auto add = [&](const char* phase, const std::string& name, GstClockTime time, json args) {
    trace({{"ph", phase},
           {"cat", "turn"},
           {"id2", {{"local", id}}},  // shown with the threads of its pipeline
           {"name", name},
           {"pid", pipeline},
           {"tid", 0},
           {"ts", microseconds(time)},
           {"args", std::move(args)}});
  };
  const std::string name = "turn " + std::to_string(turn.id) + " (" + turn.finish + ")";
  add("b", name, parts.begin, {{"kind", report["kind"]}});
  for (const Part& part : parts.list) {
    if (part.to == part.from) continue;
    add("b", part.name, part.from, {{"element", part.element->name}});
    add("e", part.name, part.to, json::object());
    if (part.queue_buffers < 0) continue;
    trace({{"ph", "C"},
           {"cat", "queue"},
           {"name", part.element->name},
           {"pid", pipeline},
           {"tid", 0},
           {"ts", microseconds(part.from)},
           {"args", {{"buffers", part.queue_buffers}}}});
  }
  add("e", name, parts.list.back().to, json::object());
  std::fflush(trace_.get());
}

// ---------------------------------------------------------------- records of the log

namespace {

GstTracerRecord* turn_record = nullptr;
GstTracerRecord* part_record = nullptr;

GstStructure* field(GType type, const char* description) {
  return gst_structure_new("value", "type", G_TYPE_GTYPE, type, "description", G_TYPE_STRING,
                           description, "flags", GST_TYPE_TRACER_VALUE_FLAGS,
                           GST_TRACER_VALUE_FLAGS_NONE, nullptr);
}

GstStructure* scope() {
  return gst_structure_new("scope", "type", G_TYPE_GTYPE, G_TYPE_STRING, "related-to",
                           GST_TYPE_TRACER_VALUE_SCOPE, GST_TRACER_VALUE_SCOPE_PROCESS, nullptr);
}

guint64 nanoseconds(const json& of, const char* key) {
  return of.contains(key) ? static_cast<guint64>(of[key].get<double>() * 1e6) : 0;
}

}  // namespace

void init_records() {
  turn_record = gst_tracer_record_new(
      "minicpmo-turn.class", "pipeline", GST_TYPE_STRUCTURE, scope(), "turn-id", GST_TYPE_STRUCTURE,
      field(G_TYPE_UINT64, "number of the turn"), "finish", GST_TYPE_STRUCTURE,
      field(G_TYPE_STRING, "how its answer ended"), "time", GST_TYPE_STRUCTURE,
      field(G_TYPE_UINT64, "ns from the user's last sample to the first of the answer, or 0"),
      nullptr);
  part_record = gst_tracer_record_new(
      "minicpmo-part.class", "pipeline", GST_TYPE_STRUCTURE, scope(), "turn-id", GST_TYPE_STRUCTURE,
      field(G_TYPE_UINT64, "number of the turn"), "part", GST_TYPE_STRUCTURE,
      field(G_TYPE_STRING, "what the time went into"), "element", GST_TYPE_STRUCTURE,
      field(G_TYPE_STRING, "whose time it is"), "time", GST_TYPE_STRUCTURE,
      field(G_TYPE_UINT64, "ns"), nullptr);
  for (GstTracerRecord* record : {turn_record, part_record})
    GST_OBJECT_FLAG_SET(record, GST_OBJECT_FLAG_MAY_BE_LEAKED);
}

void log_records(const json& report) {
  const std::string pipeline = report["pipeline"], finish = report["finish"];
  const guint64 turn = report["turn"];
  gst_tracer_record_log(turn_record, pipeline.c_str(), turn, finish.c_str(),
                        nanoseconds(report, "total_ms"));
  for (const json& part : report["parts"]) {
    const std::string name = part["part"], element = part["element"];
    gst_tracer_record_log(part_record, pipeline.c_str(), turn, name.c_str(), element.c_str(),
                          nanoseconds(part, "ms"));
  }
}

}  // namespace minicpmo::tracers
