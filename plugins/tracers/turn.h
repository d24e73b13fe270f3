// One turn as the tracer saw it, and what becomes of it: marks in their order, and parts between
// them.
#pragma once

#include <gst/gst.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "turn_path.h"

namespace minicpmo::tracers {

constexpr GstClockTime kNever = GST_CLOCK_TIME_NONE;

// What passed one source pad. Times are gst_util_get_timestamp().
struct Passed {
  GstClockTime question = kNever;    // the user's last voiced sample, then the event of its end
  GstClockTime first = kNever;       // the first buffer of the answer
  GstClockTime done = kNever;        // and what took it has returned
  std::vector<GstClockTime> bursts;  // of the language model, in order, the end of the answer last
  int queue_buffers = -1;            // waited in the queue behind the pad at that time
  GstClockTime queue_time = 0;
};

// Calls of one stage for one turn.
struct StageWork {
  guint64 calls = 0;
  GstClockTime busy = 0;
  GstClockTime gpu = 0;
};

struct Sound {
  struct Chunk {
    GstClockTime time;
    GstClockTime duration;
  };
  std::vector<Chunk> chunks;
  GstClockTime running_time = kNever;  // of the first sample
  guint64 put_off = 0;                 // live: chunks that came too late for their time
};

struct Turn {
  guint64 id = 0;
  bool marked = false;  // it had an end of its own, not the stream's
  bool speculative = false;
  guint64 discarded = 0;            // speculative answers
  GstClockTime begun = kNever;      // when it was first seen
  GstClockTime captured = kNever;   // the user's last voiced sample
  GstClockTime handed_in = kNever;  // a typed message, to the language model
  bool encoded = false;
  GstClockTime encode_end = kNever;  // of the last call
  GstClockTime prefill_begin = kNever, prefill_end = kNever;
  GstClockTime decode_begin = kNever;
  size_t trigger = 0;             // bursts that the speech model had when its first codes came
  GstClockTime vocoded = kNever;  // end of the vocoder's first call
  std::map<const PadInfo*, Passed> passed;
  std::map<std::string, StageWork> stages;
  Sound sound;
  guint64 tokens = 0, codes = 0;
  std::string finish;    // of the answer; empty: none yet
  bool ended = false;    // the answer's end has passed the last element that knows it
  bool flushed = false;  // before its first sound was out
  bool told = false;     // as it is now
  bool again = false;    // it has been told before
  std::shared_ptr<const TurnPath> path = std::make_shared<TurnPath>();

  // The answer is thrown away, and the turn goes on.
  void forget_answer();
};

// Between two marks.
struct Part {
  std::string name;
  const ElementInfo* element = nullptr;  // whose time it is
  GstClockTime from = 0, to = 0;
  int queue_buffers = -1;  // waited in a queue already
  GstClockTime queue_time = 0;
};

struct Parts {
  GstClockTime begin = kNever;
  std::vector<Part> list;
  bool complete = false;  // up to the answer's first sound (text, if there is no vocoder)
};

Parts parts_of(const Turn& turn);

// Everything about the turn; `pipeline` is the name of its pipeline. Reads properties of elements.
nlohmann::json report(const Turn& turn, const Parts& parts, const std::string& pipeline);

// "property=value" of what decides how long a part lasts; empty if nothing does.
std::string setting_of(const Part& part, const TurnPath& path);

}  // namespace minicpmo::tracers
