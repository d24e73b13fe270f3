// What passed a source pad, in order, for tests of elements that work in threads of their own; and
// small helpers that those tests share.
#pragma once

#include <gst/gst.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/gst_ptr.h"

namespace minicpmo::testing {

constexpr const char* kTextCaps = "text/x-raw,format=utf8";
// Of the fake backend's language model: 8 columns.
constexpr const char* kEmbeddingCaps =
    "tensor/strided,tensor-id=minicpmo-audio-embedding,type=float32,dims=(int)<0,8>,"
    "dims-order=row-major";
constexpr std::chrono::seconds kPatience{20};

struct Passed {
  std::string
      name;  // "buffer", an event's type ("caps", "segment", "gap", "eos"), a custom event's name
  std::string bytes;                       // of a buffer
  std::string finish;                      // of minicpmo/answer-end
  GstClockTime pts = GST_CLOCK_TIME_NONE;  // of a buffer or gap
  GstClockTime duration = GST_CLOCK_TIME_NONE;
  bool discont = false;
  bool has_meta = false;
  guint64 turn_id = 0;  // of the meta or the event
  guint chunk = 0;
  guint flags = 0;
  GstClockTime capture_time = GST_CLOCK_TIME_NONE;
};

class StreamLog {
 public:
  StreamLog(GstElement* element, const char* pad);
  ~StreamLog();
  StreamLog(const StreamLog&) = delete;
  StreamLog& operator=(const StreamLog&) = delete;

  std::vector<Passed> all() const;
  std::vector<std::string> names() const;
  // Only those of one name.
  std::vector<Passed> all(const std::string& name) const;
  size_t count(const std::string& name) const;
  // All buffers' bytes in a row.
  std::string bytes() const;
  void clear();
  // Waits until `count` of them have passed; false after kPatience.
  bool wait_for(const std::string& name, size_t count = 1) const;
  // Called for everything that passes, on the streaming thread.
  void set_hook(std::function<void(const Passed&)> hook);

 private:
  static GstPadProbeReturn probe(GstPad* pad, GstPadProbeInfo* info, gpointer self);

  PadPtr pad_;
  gulong id_ = 0;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::condition_variable changed_;
  std::vector<Passed> passed_;
  std::function<void(const Passed&)> hook_;
};

BufferPtr text_buffer(const std::string& text, GstClockTime pts = GST_CLOCK_TIME_NONE,
                      GstClockTime duration = GST_CLOCK_TIME_NONE);
// Rows of 8 float32: column 0 counts from `first`.
BufferPtr embedding_buffer(size_t rows, GstClockTime pts = GST_CLOCK_TIME_NONE, size_t first = 0);
// The same, marked as one chunk of a turn.
BufferPtr embedding_chunk(size_t rows, GstClockTime pts, guint64 turn_id = 0);
GstEvent* bytes_segment();

// A file in a directory of its own, removed at the end.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content = "");
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }
  std::string read() const;

 private:
  std::string path_;
};

// Runs a pipeline to its EOS or error, and keeps its messages.
class PipelineRun {
 public:
  explicit PipelineRun(const std::string& description);
  ~PipelineRun();
  PipelineRun(const PipelineRun&) = delete;
  PipelineRun& operator=(const PipelineRun&) = delete;

  GstElement* pipeline() const { return pipeline_.get(); }
  ElementPtr element(const char* name) const;
  // Plays until EOS (true), an error, or a minute has gone.
  bool run();
  // Notes what comes for a while longer: a second error after the first one, for example.
  void listen(std::chrono::milliseconds duration);
  void stop();
  std::string first_error() const { return errors.empty() ? "no error" : errors[0]; }
  std::vector<std::string> errors;
  std::vector<std::pair<GQuark, gint>> error_codes;  // domain and code of each
  std::vector<std::string> warnings;
  std::vector<std::string> answers;   // texts of minicpmo/answer
  std::vector<std::string> finishes;  // of the same

 private:
  void note(GstMessage* message);
  ElementPtr pipeline_;
  BusPtr bus_;
};

int open_descriptors();
int running_threads();

}  // namespace minicpmo::testing
