#include "pad_info.h"

#include <algorithm>
#include <array>

namespace minicpmo::tracers {

namespace {

// Longer than any endpoint decision, at 20 ms a buffer.
constexpr size_t kMostHeard = 1024;
// Packets without a duration last until the next one, but no longer.
constexpr GstClockTime kLongestPacket = 120 * GST_MSECOND;
// Timestamps are rounded on the way.
constexpr GstClockTime kRounding = 100 * GST_USECOND;

Role role_of(const std::string& factory) {
  struct Known {
    const char* factory;
    Role role;
  };
  static constexpr std::array kKnown{Known{"minicpmoturn", Role::kTurn},
                                     Known{"minicpmoaudioenc", Role::kEncoder},
                                     Known{"minicpmollm", Role::kLanguageModel},
                                     Known{"minicpmotts", Role::kSpeech},
                                     Known{"minicpmovocoder", Role::kVocoder},
                                     Known{"queue", Role::kQueue},
                                     Known{"queue2", Role::kQueue},
                                     Known{"rtpjitterbuffer", Role::kJitter}};
  for (const Known& known : kKnown)
    if (factory == known.factory) return known.role;
  return Role::kOther;
}

}  // namespace

ElementInfo::ElementInfo(GstElement* owner) {
  g_weak_ref_init(&element, owner);
  if (owner == nullptr) return;
  gchar* own_name = gst_object_get_name(GST_OBJECT(owner));
  name = own_name;
  g_free(own_name);
  if (GstElementFactory* made_by = gst_element_get_factory(owner))
    factory = GST_OBJECT_NAME(made_by);
  if (const gchar* words = gst_element_get_metadata(owner, GST_ELEMENT_METADATA_KLASS))
    klass = words;
  role = role_of(factory);
}

GstClockTime PadInfo::running_end(const GstBuffer* buffer) {
  const GstClockTime pts = GST_BUFFER_PTS(buffer);
  if (segment.format != GST_FORMAT_TIME || !GST_CLOCK_TIME_IS_VALID(pts))
    return GST_CLOCK_TIME_NONE;
  if (GST_CLOCK_TIME_IS_VALID(last_pts_) && pts > last_pts_)
    distance_ = std::min(pts - last_pts_, kLongestPacket);
  last_pts_ = pts;
  const GstClockTime duration =
      GST_BUFFER_DURATION_IS_VALID(buffer) ? GST_BUFFER_DURATION(buffer) : distance_;
  guint64 running = GST_CLOCK_TIME_NONE;
  // A little beyond the end of the segment counts, too.
  if (gst_segment_to_running_time_full(&segment, GST_FORMAT_TIME, pts + duration, &running) <= 0)
    return GST_CLOCK_TIME_NONE;
  return running;
}

void PadInfo::remember(GstClockTime end, GstClockTime now) {
  last_buffer = now;
  if (!GST_CLOCK_TIME_IS_VALID(end)) return;
  // Time that goes back is another stream.
  if (!heard_.empty() && end + GST_SECOND < heard_.back().end) heard_.clear();
  heard_.push_back({end, now});
  if (heard_.size() > kMostHeard) heard_.pop_front();
}

GstClockTime PadInfo::time_of(GstClockTime running_time) const {
  if (heard_.empty() || heard_.back().end + GST_SECOND < running_time) return GST_CLOCK_TIME_NONE;
  for (const Heard& heard : heard_)
    if (heard.end + kRounding >= running_time) return heard.time;
  return heard_.back().time;
}

}  // namespace minicpmo::tracers
