// Where turns are told: records of GStreamer's log, lines of JSON, and a trace for Perfetto or
// chrome://tracing.
#pragma once

#include <gst/gst.h>

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "turn.h"

namespace minicpmo::tracers {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// As a line of text. What is not UTF-8 does not throw.
std::string line(const nlohmann::json& value);

class Outputs {
 public:
  Outputs() = default;
  ~Outputs();
  Outputs(const Outputs&) = delete;
  Outputs& operator=(const Outputs&) = delete;

  // Empty: not wanted. False, with errno, if it cannot be written.
  bool open_lines(const std::string& path);
  bool open_trace(const std::string& path);
  bool tracing() const { return trace_ != nullptr; }

  // A pipeline's turn.
  void turn(int pipeline, const Turn& turn, const Parts& parts, const nlohmann::json& report);
  // What the calling thread did.
  void work(int pipeline, const std::string& pipeline_name, const std::string& what,
            guint64 turn_id, GstClockTime begin, GstClockTime end);
  // For so long a GPU worked for a stage whose last call began then.
  void gpu_work(int pipeline, const std::string& pipeline_name, const std::string& stage,
                guint64 turn_id, GstClockTime call_begin, GstClockTime duration);

 private:
  using File = std::unique_ptr<std::FILE, CloseFile>;
  // With mutex_ held.
  void trace(const nlohmann::json& event);
  void name_process(int pipeline, const std::string& name);
  void name_thread(int pipeline, gint64 thread, const std::string& name);

  std::mutex mutex_;  // guards what follows
  File lines_;
  File trace_;
  bool any_ = false;  // event of the trace
  int told_ = 0;      // turns in the trace
  std::set<int> processes_;
  std::set<std::pair<int, gint64>> threads_;
  std::map<std::string, gint64> gpu_tracks_;  // by stage
  std::map<std::pair<int, gint64>, GstClockTime> gpu_ends_;
};

// The log records; for the class of the tracer.
void init_records();
void log_records(const nlohmann::json& report);

}  // namespace minicpmo::tracers
