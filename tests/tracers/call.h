// A live call with the fake backend, and what the tracer told about its turns.
#pragma once

#include <gst/gst.h>

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "elements/chain/stream_log.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {

// The tracer of this process writes here.
const std::string& turns_path();
// The last record of each turn of a pipeline.
std::map<guint64, nlohmann::json> turns_of(const std::string& pipeline);
// Waits for that many; fails the test after kPatience.
std::map<guint64, nlohmann::json> wait_for_turns(const std::string& pipeline, size_t count);
// Milliseconds of all parts with that name and element (each may be empty: any).
double part_ms(const nlohmann::json& turn, const std::string& part,
               const std::string& element = "");
double sum_ms(const nlohmann::json& turn);

// When something passed a pad, seen by a probe: to compare with.
class PadTimes {
 public:
  PadTimes(GstElement* element, const char* pad);
  ~PadTimes();
  PadTimes(const PadTimes&) = delete;
  PadTimes& operator=(const PadTimes&) = delete;
  struct Item {
    std::string name;  // "buffer" or the name of a custom event
    GstClockTime time;
    GstClockTime pts;
  };
  std::vector<Item> all(const std::string& name) const;

 private:
  static GstPadProbeReturn probe(GstPad* pad, GstPadProbeInfo* info, gpointer self);
  PadPtr pad_;
  gulong id_ = 0;
  mutable std::mutex mutex_;  // guards items_
  std::vector<Item> items_;
};

// Sound into "appsrc name=source": 20 ms a buffer, each at its end in real time.
class Voice {
 public:
  explicit Voice(const PipelineRun& run);
  void say(GstClockTime duration) { sound(duration, 0.25f); }
  void be_silent(GstClockTime duration) { sound(duration, 0.0f); }
  void send(GstEvent* event) { gst_element_send_event(source_.get(), event); }
  void end();

 private:
  void sound(GstClockTime duration, float value);
  GstElement* const pipeline_;  // not ours
  ElementPtr source_;
  GstClockTime time_ = GST_CLOCK_TIME_NONE;
};

// The elements of a call, with names, and with places for further elements.
struct Line {
  std::string source =
      "appsrc name=source format=time is-live=true "
      "caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
  std::string before;  // minicpmoturn
  std::string turn = "silence-duration=200";
  std::string heard = "queue name=heard";
  std::string embedded;  // behind the encoder
  std::string embeddings = "queue name=embeddings";
  std::string words = "queue name=words";
  std::string worded;   // before the speech model
  std::string coded;    // before the vocoder
  std::string sounded;  // before the sink
  std::string sink = "fakesink name=sink sync=true async=false";
  std::string text(const std::string& speaker) const;
};

class Call {
 public:
  explicit Call(const Line& line = {});
  ~Call() { run_.stop(); }
  Voice& voice() { return voice_; }
  GstElement* element(const char* name);
  const std::string& name() const { return name_; }
  // The user speaks.
  void begin_turn();
  // One turn: voice, and silence until the answer has come.
  nlohmann::json turn();
  std::map<guint64, nlohmann::json> wait(size_t turns) { return wait_for_turns(name_, turns); }
  void stop() { run_.stop(); }

 private:
  TemporaryFile speaker_;
  PipelineRun run_;
  const std::string name_;
  Voice voice_;
  std::vector<ElementPtr> found_;
  size_t turns_ = 0;
};

}  // namespace minicpmo::testing
