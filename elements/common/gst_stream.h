// What the elements that count samples share: keeping events in order with data, and segments in
// time.
#pragma once

#include <gst/gst.h>

#include <cstdint>
#include <deque>
#include <utility>

#include "common/gst_ptr.h"

namespace minicpmo {

inline bool is_serialized(GstEvent* event) {
  return (static_cast<int>(GST_EVENT_TYPE(event)) & GST_EVENT_TYPE_SERIALIZED) != 0;
}

// A seek that an answer can follow: the question can be asked again from elsewhere, but an answer
// cannot be spooled.
inline bool is_flushing_seek(GstEvent* event) {
  gdouble rate = 1;
  GstSeekFlags flags = GST_SEEK_FLAG_NONE;
  gst_event_parse_seek(event, &rate, nullptr, &flags, nullptr, nullptr, nullptr, nullptr);
  return rate == 1 && (flags & GST_SEEK_FLAG_FLUSH) != 0;
}

// Serialized events that came while their element still held data that came before them. Positions
// count whatever the element counts (samples, rows) from its start.
class HeldEvents {
 public:
  void hold(EventPtr event, uint64_t position) { events_.emplace_back(std::move(event), position); }
  bool due(uint64_t position) const {
    return !events_.empty() && events_.front().second <= position;
  }
  // Pushes those whose data has gone out.
  void push_until(GstPad* pad, uint64_t position) {
    while (!events_.empty() && events_.front().second <= position) {
      EventPtr event = std::move(events_.front().first);
      events_.pop_front();
      gst_pad_push_event(pad, event.release());
    }
  }
  void clear() { events_.clear(); }

 private:
  std::deque<std::pair<EventPtr, uint64_t>> events_;
};

// The segment of a SEGMENT event, and the event to send on. A segment in bytes (filesrc ! CAPS !
// element) becomes one in time that starts at 0: positions are then counted, not read from the
// buffers.
struct TimeSegment {
  GstSegment segment;
  EventPtr event;
  bool counted = false;
};

inline TimeSegment to_time_segment(GstEvent* event) {
  TimeSegment result;
  gst_event_copy_segment(event, &result.segment);
  if (result.segment.format == GST_FORMAT_TIME) {
    result.event.reset(gst_event_ref(event));
    return result;
  }
  gst_segment_init(&result.segment, GST_FORMAT_TIME);
  result.event.reset(gst_event_new_segment(&result.segment));
  gst_event_set_seqnum(result.event.get(), gst_event_get_seqnum(event));
  result.counted = true;
  return result;
}

}  // namespace minicpmo
