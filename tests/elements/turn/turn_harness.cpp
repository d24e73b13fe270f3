#include "elements/turn/turn_harness.h"

#include "audioenc/gstminicpmoaudioenc.h"
#include "common/gstminicpmoturn.h"
#include "support/gst_test_main.h"
#include "turn/gstminicpmoturn.h"

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoturn, nullptr);
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
}

namespace {

std::string ms(GstClockTime time) {
  if (!GST_CLOCK_TIME_IS_VALID(time)) return "none";
  const GstClockTime rest = time % GST_MSECOND;
  return std::to_string(time / GST_MSECOND) + (rest != 0 ? "." + std::to_string(rest) : "");
}

std::string name_of(GstEvent* event) {
  const GstStructure* fields = gst_event_get_structure(event);
  std::string name = GST_EVENT_TYPE_NAME(event);
  if (name.compare(0, 6, "custom") != 0 || fields == nullptr) return name;
  name = gst_structure_get_name(fields);
  if (name.compare(0, 9, "minicpmo/") != 0) return name;
  name = name.substr(9) + " " + std::to_string(gst_minicpmo_event_turn_id(event));
  if (gst_structure_has_field(fields, "speech-end"))
    name += " speech " + ms(gst_minicpmo_event_speech_end(event));
  if (gst_minicpmo_event_is_speculative(event)) name += " speculative";
  return name;
}

}  // namespace

TurnLog::TurnLog(GstElement* element) : pad_(gst_element_get_static_pad(element, "src")) {
  constexpr auto kTypes =
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM |
                                   GST_PAD_PROBE_TYPE_EVENT_FLUSH);
  id_ = gst_pad_add_probe(pad_.get(), kTypes, probe, this, nullptr);
}

TurnLog::~TurnLog() {
  gst_pad_remove_probe(pad_.get(), id_);
}

void TurnLog::add(const char* what, GstClockTime begin, GstClockTime duration, bool discont) {
  const bool goes_on = !story_.empty() && !discont && begin == end_ &&
                       story_.back().compare(0, std::string(what).size(), what) == 0;
  if (!goes_on) {
    story_.emplace_back();
    begin_ = begin;
  }
  end_ = begin + duration;
  const bool was_discont = discont || story_.back().find("discont") != std::string::npos;
  story_.back() =
      std::string(what) + " " + ms(begin_) + "-" + ms(end_) + (was_discont ? " discont" : "");
}

void TurnLog::add(GstBuffer* buffer) {
  add("audio", GST_BUFFER_PTS(buffer), GST_BUFFER_DURATION(buffer),
      GST_BUFFER_FLAG_IS_SET(buffer, GST_BUFFER_FLAG_DISCONT));
  const auto samples = floats_of(buffer);
  samples_.insert(samples_.end(), samples.begin(), samples.end());
  const auto* meta = gst_buffer_get_minicpmo_turn_meta(buffer);
  chunks_.emplace_back(meta != nullptr ? meta->turn_id : 0, meta != nullptr ? meta->chunk : 0);
}

void TurnLog::add(GstEvent* event) {
  if (GST_EVENT_TYPE(event) != GST_EVENT_GAP) {
    story_.push_back(name_of(event));
    return;
  }
  GstClockTime begin, duration;
  gst_event_parse_gap(event, &begin, &duration);
  add("gap", begin, duration, false);
}

GstPadProbeReturn TurnLog::probe(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<TurnLog*>(data);
  std::function<void(const std::string&)> hook;
  std::string word;
  {
    std::lock_guard lock(self->mutex_);
    if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) != 0) {
      self->add(GST_PAD_PROBE_INFO_BUFFER(info));
    } else {
      self->add(GST_PAD_PROBE_INFO_EVENT(info));
    }
    hook = self->hook_;
    word = self->story_.back();
  }
  if (hook) hook(word);
  return GST_PAD_PROBE_OK;
}

void TurnLog::set_hook(std::function<void(const std::string&)> hook) {
  std::lock_guard lock(mutex_);
  hook_ = std::move(hook);
}

Names TurnLog::story() const {
  std::lock_guard lock(mutex_);
  return story_;
}

std::vector<float> TurnLog::samples() const {
  std::lock_guard lock(mutex_);
  return samples_;
}

size_t TurnLog::buffers() const {
  std::lock_guard lock(mutex_);
  return chunks_.size();
}

std::vector<std::pair<guint64, guint>> TurnLog::chunks() const {
  std::lock_guard lock(mutex_);
  return chunks_;
}

void TurnLog::clear() {
  std::lock_guard lock(mutex_);
  story_.clear();
  samples_.clear();
  chunks_.clear();
}

void TurnStream::set_windows(GstElement* element) {
  g_object_set(element, "prefix-padding", 3 * 32, "min-speech", 2 * 32, "silence-duration", 5 * 32,
               "min-turn-speech", 0, nullptr);
}

void TurnStream::start(const ElementHarness::Setup& setup) {
  log_.reset();
  h_ = std::make_unique<ElementHarness>("minicpmoturn", setup);
  log_ = std::make_unique<TurnLog>(h_->element());
  h_->set_caps(kPcmCaps);
  time_ = 0;
  log_->clear();
}

GstFlowReturn TurnStream::push(size_t windows, float value) {
  const GstClockTime pts = time_;
  time_ += windows * kWindowTime;
  return h_->push(pcm_buffer(windows * kWindow, value, pts));
}

GstFlowReturn TurnStream::push_samples(const std::vector<float>& samples, GstClockTime pts) {
  BufferPtr buffer(gst_buffer_new_memdup(samples.data(), samples.size() * sizeof(float)));
  GST_BUFFER_PTS(buffer.get()) = pts;
  return h_->push(std::move(buffer));
}

void TurnStream::play(const std::string& script) {
  for (const char c : script) EXPECT_EQ(push(1, c == '#' ? kVoice : 0.0f), GST_FLOW_OK);
}

void TurnStream::push_segment(GstFormat format, guint64 start, guint64 time) {
  GstSegment segment;
  gst_segment_init(&segment, format);
  segment.start = start;
  segment.time = time;
  h_->push_event(gst_event_new_segment(&segment));
}

void TurnStream::flush() {
  h_->push_event(gst_event_new_flush_start());
  h_->push_event(gst_event_new_flush_stop(TRUE));
  push_segment(GST_FORMAT_TIME, 0);
}

guint64 TurnStream::stat(const char* name) {
  GstStructure* stats = nullptr;
  g_object_get(h_->element(), "stats", &stats, nullptr);
  StructurePtr owned(stats);
  guint64 value = G_MAXUINT64;
  EXPECT_TRUE(gst_structure_get_uint64(stats, name, &value)) << name;
  return value;
}

std::vector<guint64> TurnStream::told(const char* name, const char* field) {
  std::vector<guint64> values;
  for (const MessagePtr& message : h_->messages(GST_MESSAGE_ELEMENT)) {
    const GstStructure* fields = gst_message_get_structure(message.get());
    if (!gst_structure_has_name(fields, name)) continue;
    guint64 value = G_MAXUINT64;
    EXPECT_TRUE(gst_structure_get_uint64(fields, field, &value)) << name << "." << field;
    values.push_back(value);
  }
  return values;
}

Names TurnStream::story() {
  Names story = log_->story();
  log_->clear();
  return story;
}

}  // namespace minicpmo::testing
