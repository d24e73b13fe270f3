#include "call.h"

#include <gst/app/gstappsrc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace minicpmo::caller {

namespace {

constexpr Time kSecond = 1000 * kMs;
constexpr Time kFrame = 20 * kMs;
constexpr unsigned kWatchdogSeconds = 15;

const uint8_t* header_of(GstBuffer* packet, GstMapInfo* map) {
  if (!gst_buffer_map(packet, map, GST_MAP_READ)) return nullptr;
  if (map->size >= 12) return map->data;
  gst_buffer_unmap(packet, map);
  return nullptr;
}

std::string number(int64_t value) {
  return std::to_string(value);
}

}  // namespace

Call::Call(const CallOptions& options, Recording* recording)
    : options_(options),
      rate_(options.pcmu ? 8000 : 48000),
      recording_(recording),
      random_(options.seed),
      source_change_(options.impairment, options.seed + 1),
      loss_(options.impairment, options.seed + 2),
      loss_back_(Impairment{.loss = options.impairment.loss_back}, options.seed + 4),
      junk_(options.impairment.junk_per_second, options.pcmu ? 0 : 96, options.seed + 3) {}

Call::~Call() {
  if (pipeline_) gst_element_set_state(pipeline_, GST_STATE_NULL);
  if (source_) gst_object_unref(source_);
  if (pipeline_) gst_object_unref(pipeline_);
  if (clock_) gst_object_unref(clock_);
}

std::string Call::launch_line() const {
  const bool srtp = !options_.key.empty();
  const std::string format = "audio/x-raw,format=S16LE,channels=1,layout=interleaved,rate=";
  std::string line = "appsrc name=voice is-live=true format=time caps=" + format + number(rate_);
  // The hint of loss makes the encoder spend bits on repairing it.
  const int hint = std::clamp(static_cast<int>(options_.impairment.loss * 100), 5, 30);
  line += options_.pcmu ? " ! mulawenc ! rtppcmupay name=pay"
                        : " ! opusenc audio-type=voice frame-size=20 bitrate=32000 inband-fec=true "
                          "packet-loss-percentage=" +
                              number(hint) + " ! rtpopuspay pt=96 name=pay";
  // Both sides of SRTP have to know it.
  const uint32_t ssrc = srtp && options_.ssrc == 0 ? 1111 : options_.ssrc;
  if (ssrc != 0) line += " ssrc=" + number(ssrc);
  if (options_.impairment.wrap) line += " seqnum-offset=65500 timestamp-offset=4294950000";
  line += " ! identity name=outgoing silent=true";
  if (srtp) line += " ! srtpenc key=" + options_.key;
  line += " ! identity name=sent silent=true" + netsim_line(options_.impairment);
  line +=
      " ! udpsink sync=false async=false host=" + options_.host + " port=" + number(options_.port);

  std::string caps = srtp ? "application/x-srtp,ssrc=(uint)" + number(options_.peer_ssrc) +
                                ",srtp-key=(buffer)" + options_.key +
                                ",srtp-cipher=aes-128-icm,srtp-auth=hmac-sha1-80,"
                                "srtcp-cipher=aes-128-icm,srtcp-auth=hmac-sha1-80"
                          : std::string("application/x-rtp");
  caps += options_.pcmu ? ",media=audio,encoding-name=PCMU,clock-rate=8000,payload=0"
                        : ",media=audio,encoding-name=OPUS,clock-rate=48000,payload=96";
  line += "  udpsrc name=ear buffer-size=1000000 port=" + number(options_.listen) + " caps=\"" +
          caps + "\"";
  if (srtp) line += " ! srtpdec";
  line += " ! rtpjitterbuffer name=jitterbuffer do-lost=true latency=" +
          number(options_.jitter_buffer_ms);
  line += options_.pcmu ? " ! rtppcmudepay ! mulawdec"
                        : " ! rtpopusdepay ! opusdec plc=true use-inband-fec=true";
  line += " ! audioconvert dithering=none ! audioresample ! " + format +
          number(recording_->rate()) + " ! fakesink name=heard sync=false async=false";
  return line;
}

void Call::add_probes() {
  const struct {
    const char *element, *pad;
    GstPadProbeCallback callback;
  } probes[] = {{"outgoing", "src", on_outgoing},
                {"sent", "src", on_sent},
                {"ear", "src", on_arrival},
                {"jitterbuffer", "src", on_played},
                {"heard", "sink", on_sound}};
  for (const auto& p : probes) {
    GstElement* element = gst_bin_get_by_name(GST_BIN(pipeline_), p.element);
    GstPad* pad = gst_element_get_static_pad(element, p.pad);
    gst_pad_add_probe(pad, GST_PAD_PROBE_TYPE_BUFFER, p.callback, this, nullptr);
    gst_object_unref(pad);
    gst_object_unref(element);
  }
}

bool Call::start() {
  GError* error = nullptr;
  pipeline_ = gst_parse_launch(launch_line().c_str(), &error);
  if (error) {
    fprintf(stderr, "error: %s\n  in: %s\n", error->message, launch_line().c_str());
    g_error_free(error);
    return false;
  }
  std::string problem;
  if (options_.impairment.junk_per_second > 0 &&
      !junk_.open(options_.host, options_.port, &problem)) {
    fprintf(stderr, "error: %s\n", problem.c_str());
    return false;
  }
  source_ = gst_bin_get_by_name(GST_BIN(pipeline_), "voice");
  clock_ = gst_system_clock_obtain();
  gst_pipeline_use_clock(GST_PIPELINE(pipeline_), clock_);
  add_probes();
  gst_element_set_state(pipeline_, GST_STATE_PLAYING);
  if (gst_element_get_state(pipeline_, nullptr, nullptr, 5 * GST_SECOND) ==
      GST_STATE_CHANGE_FAILURE)
    return bus_is_fine();
  clock_begin_ = static_cast<Time>(gst_element_get_base_time(pipeline_));
  sent_samples_ = now() * rate_ / kSecond;
  return true;
}

Time Call::position() const {
  return sent_samples_ * kSecond / rate_;
}

Time Call::now() const {
  return static_cast<Time>(gst_clock_get_time(clock_) - gst_element_get_base_time(pipeline_));
}

double Call::call_seconds() const {
  const Time begin = script_begin_;
  return begin == kNever ? -1 : static_cast<double>(now() - begin) / kSecond;
}

bool Call::bus_is_fine() {
  GstBus* bus = gst_element_get_bus(pipeline_);
  GstMessage* message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
  gst_object_unref(bus);
  if (!message) return true;
  GError* error = nullptr;
  gchar* debug = nullptr;
  gst_message_parse_error(message, &error, &debug);
  fprintf(stderr, "error: %s\n  %s\n", error->message, debug ? debug : "");
  g_error_free(error);
  g_free(debug);
  gst_message_unref(message);
  return false;
}

bool Call::run(const std::vector<Item>& items) {
  items_ = &items;
  alarm(kWatchdogSeconds);
  bool ok = start();
  const Time patience = static_cast<Time>(options_.connect_timeout * kSecond);
  while (ok && options_.connect_timeout > 0 && recording_->packet_count() == 0) {
    ok = tick();
    if (ok && now() > patience) {
      fprintf(stderr, "error: no RTP packet came to port %d within %g s\n", options_.listen,
              options_.connect_timeout);
      ok = false;
    }
  }
  if (ok) {
    script_begin_ = position();
    begin_item();
  }
  while (ok && item_ < items.size()) ok = tick() && advance();
  alarm(kWatchdogSeconds);
  if (pipeline_) gst_element_set_state(pipeline_, GST_STATE_NULL);
  alarm(0);
  return ok;
}

bool Call::tick() {
  alarm(kWatchdogSeconds);
  // A microphone has the frame when its last sample was spoken.
  const Time due = position() + kFrame;
  const Time early = due - now();
  if (early > 0) {
    g_usleep(static_cast<gulong>(early / 1000));
  } else {
    latest_tick_ms_ = std::max(latest_tick_ms_, static_cast<double>(-early) / kMs);
  }
  const size_t count = static_cast<size_t>(rate_) / 50;
  GstBuffer* buffer = gst_buffer_new_allocate(nullptr, count * 2, nullptr);
  GST_BUFFER_PTS(buffer) = static_cast<GstClockTime>(position());
  GST_BUFFER_DURATION(buffer) = kFrame;
  GstMapInfo map;
  gst_buffer_map(buffer, &map, GST_MAP_WRITE);
  make_frame(reinterpret_cast<int16_t*>(map.data));
  gst_buffer_unmap(buffer, &map);
  sent_samples_ += static_cast<int64_t>(count);
  if (options_.impairment.junk_per_second > 0) junk_.send(double(kFrame) / kSecond);
  const GstFlowReturn flow = gst_app_src_push_buffer(GST_APP_SRC(source_), buffer);
  return bus_is_fine() && flow == GST_FLOW_OK;
}

void Call::make_frame(int16_t* frame) {
  const std::vector<int16_t>* sound = nullptr;
  if (script_begin_ != kNever && item_ < items_->size()) sound = &(*items_)[item_].sound.samples;
  const std::vector<int16_t>& below = options_.background.samples;
  std::normal_distribution<double> noise(0, options_.noise * 32768);
  for (int i = 0; i < rate_ / 50; ++i) {
    double value = 0;
    if (sound && item_position_ < sound->size()) value = (*sound)[item_position_++];
    if (options_.noise > 0) value += noise(random_);
    if (!below.empty())
      value += options_.background_gain * below[background_position_++ % below.size()];
    frame[i] = static_cast<int16_t>(std::lround(std::clamp(value, -32768.0, 32767.0)));
  }
}

void Call::begin_item() {
  turn_ = -1;
  item_position_ = 0;
  if (item_ >= items_->size()) return;
  const Item& item = (*items_)[item_];
  if (item.kind == Item::Kind::kWait) {
    wait_until_ = position() + static_cast<Time>(item.wait * kSecond);
    return;
  }
  auto at = [&](size_t sample) { return position() + static_cast<Time>(sample) * kSecond / rate_; };
  Turn turn;
  turn.file = item.sound.file;
  turn.question = item.kind == Item::Kind::kQuestion;
  turn.begin = position();
  turn.voice_begin = at(item.sound.voice_begin);
  turn.voice_end = at(item.sound.voice_end);
  turn_ = static_cast<int>(turns_.size());
  turns_.push_back(std::move(turn));
  plan_interruption();
}

void Call::plan_interruption() {
  planned_interruption_ = kNever;
  const Turn& turn = turns_.back();
  if (!turn.question || item_ + 1 >= items_->size()) return;
  if (options_.interrupt_most > 0) {
    std::uniform_real_distribution<double> when(options_.interrupt_least, options_.interrupt_most);
    planned_interruption_ = static_cast<Time>(when(random_) * kSecond);
  } else if (!options_.interrupt_after.empty()) {
    const auto index = std::min(turns_.size(), options_.interrupt_after.size()) - 1;
    const double after = options_.interrupt_after[index];
    if (after >= 0) planned_interruption_ = static_cast<Time>(after * kSecond);
  }
}

bool Call::advance() {
  Wish wish = Wish::kStay;
  const Item& item = (*items_)[item_];
  if (item.kind == Item::Kind::kWait) {
    if (position() >= wait_until_) wish = Wish::kNext;
  } else if (item_position_ >= item.sound.samples.size()) {
    wish = after_sound();
  }
  if (wish != Wish::kNext) return wish == Wish::kStay;
  if (turn_ >= 0) turns_[turn_].end = position();
  ++item_;
  begin_item();
  return true;
}

Call::Wish Call::after_sound() {
  Turn& turn = turns_[turn_];
  return turn.question ? after_question(turn) : Wish::kNext;
}

Call::Wish Call::after_question(Turn& turn) {
  // What sounded when the user began is the answer to the turn before: it counts only if it goes on
  // beyond the question.
  const Time audible = recording_->first_audible(turn.voice_end);
  if (audible == kNever) {
    if (now() < turn.voice_end + static_cast<Time>(options_.timeout * kSecond)) return Wish::kStay;
    fprintf(stderr, "error: no answer to %s within %g s\n", turn.file.c_str(), options_.timeout);
    return Wish::kFail;
  }
  turn.answered = true;
  if (planned_interruption_ != kNever && position() >= audible + planned_interruption_) {
    turn.interrupt_at = position();
    return Wish::kNext;
  }
  if (now() > audible + static_cast<Time>(options_.longest * kSecond)) {
    fprintf(stderr, "error: the answer to %s does not end within %g s\n", turn.file.c_str(),
            options_.longest);
    return Wish::kFail;
  }
  const Time quiet = now() - recording_->last_audible();
  return quiet > static_cast<Time>(options_.end_silence * kSecond) ? Wish::kNext : Wish::kStay;
}

GstPadProbeReturn Call::on_outgoing(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<Call*>(data);
  info->data = self->source_change_.apply(GST_PAD_PROBE_INFO_BUFFER(info), self->call_seconds());
  return GST_PAD_PROBE_OK;
}

GstPadProbeReturn Call::on_sent(GstPad*, GstPadProbeInfo*, gpointer data) {
  auto* self = static_cast<Call*>(data);
  ++self->packets_sent_;
  // The network turns bad when the call begins.
  if (self->script_begin_ == kNever || !self->loss_.lost(self->call_seconds()))
    return GST_PAD_PROBE_OK;
  ++self->packets_lost_;
  return GST_PAD_PROBE_DROP;
}

GstPadProbeReturn Call::on_arrival(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<Call*>(data);
  if (self->loss_back_.lost(self->call_seconds())) return GST_PAD_PROBE_DROP;
  GstMapInfo map;
  GstBuffer* buffer = GST_PAD_PROBE_INFO_BUFFER(info);
  const uint8_t* header = header_of(buffer, &map);
  if (!header) return GST_PAD_PROBE_DROP;
  self->recording_->add_packet({self->now(), GST_READ_UINT32_BE(header + 4),
                                GST_READ_UINT32_BE(header + 8), GST_READ_UINT16_BE(header + 2),
                                static_cast<uint16_t>(map.size)});
  gst_buffer_unmap(buffer, &map);
  return GST_PAD_PROBE_OK;
}

GstPadProbeReturn Call::on_played(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<Call*>(data);
  GstMapInfo map;
  GstBuffer* buffer = GST_PAD_PROBE_INFO_BUFFER(info);
  const uint8_t* header = header_of(buffer, &map);
  if (!header) return GST_PAD_PROBE_OK;
  const uint16_t sequence = GST_READ_UINT16_BE(header + 2);
  gst_buffer_unmap(buffer, &map);
  self->recording_->add_played(static_cast<Time>(GST_BUFFER_PTS(buffer)), sequence);
  return GST_PAD_PROBE_OK;
}

GstPadProbeReturn Call::on_sound(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* self = static_cast<Call*>(data);
  GstMapInfo map;
  GstBuffer* buffer = GST_PAD_PROBE_INFO_BUFFER(info);
  if (!GST_BUFFER_PTS_IS_VALID(buffer) || !gst_buffer_map(buffer, &map, GST_MAP_READ))
    return GST_PAD_PROBE_OK;
  self->recording_->add_sound(static_cast<Time>(GST_BUFFER_PTS(buffer)),
                              reinterpret_cast<const int16_t*>(map.data), map.size / 2);
  gst_buffer_unmap(buffer, &map);
  return GST_PAD_PROBE_OK;
}

}  // namespace minicpmo::caller
