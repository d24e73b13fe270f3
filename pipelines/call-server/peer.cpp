#include "peer.h"

#include <gst/sdp/sdp.h>

#include "certificate.h"
#include "main_thread.h"

namespace minicpmo::call_server {
namespace {

// The queues bound what waits: an answer is made a second ahead of its time at most. The answer is
// mixed into silence, so that packets never stop: an interruption flushes the mixer's pad and goes
// no further.
constexpr const char* kPipeline = R"(
  webrtcbin name=rtc bundle-policy=max-bundle latency=60
  rtpopusdepay name=depay ! opusdec plc=true use-inband-fec=true ! audioconvert ! audioresample
    ! minicpmoturn name=turn
    ! queue max-size-time=5000000000 max-size-buffers=0 max-size-bytes=0
    ! minicpmobin name=model timestamp-mode=arrival
    ! queue name=answer max-size-time=1000000000 max-size-buffers=0 max-size-bytes=0 ! mixer.
  model.text ! queue ! fakesink name=words sync=false async=false
  audiotestsrc is-live=true wave=silence samplesperbuffer=240
    ! audio/x-raw,format=F32LE,rate=24000,channels=1 ! audiomixer name=mixer
    ! audioconvert ! audioresample
    ! opusenc audio-type=voice frame-size=20 bitrate=32000 inband-fec=true packet-loss-percentage=5
    ! rtpopuspay name=pay pt=%d ! application/x-rtp,media=audio,encoding-name=OPUS,payload=%d ! rtc.
)";

constexpr gulong kGoodbyeUs = 50000;  // for a packet to be made and sent

void forget_closure(gpointer data, GClosure*) {
  forget_pipeline(data);
}

template <typename Callback>
void connect(gpointer object, const char* signal, Callback callback, const WeakPipeline& peer) {
  g_signal_connect_data(object, signal, G_CALLBACK(callback), new WeakPipeline(peer),
                        forget_closure, static_cast<GConnectFlags>(0));
}

std::shared_ptr<Peer> lock(gpointer data) {
  return std::static_pointer_cast<Peer>(static_cast<WeakPipeline*>(data)->lock());
}

struct SdpFree {
  void operator()(GstWebRTCSessionDescription* d) const { gst_webrtc_session_description_free(d); }
};
using Description = std::unique_ptr<GstWebRTCSessionDescription, SdpFree>;

// libnice would ask routers to open ports, and wait for their answers.
void forbid_upnp(GstElement* rtc) {
  GObject *ice = nullptr, *agent = nullptr;
  g_object_get(rtc, "ice-agent", &ice, nullptr);
  if (ice == nullptr) return;
  g_object_get(ice, "agent", &agent, nullptr);
  if (agent != nullptr) g_object_set(agent, "upnp", FALSE, nullptr);
  g_clear_object(&agent);
  g_object_unref(ice);
}

// Sends close_notify: dtlsenc does at the end of the data channels' stream.
void close_dtls(GstBin* pipeline) {
  const IteratorPtr elements(gst_bin_iterate_all_by_element_factory_name(pipeline, "dtlsenc"));
  GValue item = G_VALUE_INIT;
  while (gst_iterator_next(elements.get(), &item) == GST_ITERATOR_OK) {
    const IteratorPtr pads(gst_element_iterate_sink_pads(GST_ELEMENT(g_value_get_object(&item))));
    GValue pad = G_VALUE_INIT;
    while (gst_iterator_next(pads.get(), &pad) == GST_ITERATOR_OK) {
      gst_pad_send_event(GST_PAD(g_value_get_object(&pad)), gst_event_new_eos());
      g_value_reset(&pad);
    }
    g_value_unset(&pad);
    g_value_reset(&item);
  }
  g_value_unset(&item);
}

// What a side says of the sound that it sends itself (RFC 7587, 6.1). webrtcbin compares ours with
// the offer's as if both had to be the same, if our sound comes before its answer is made, and then
// answers that it sends nothing. Ours are the defaults: without them the answer says the same.
GstPadProbeReturn forget_declarations(GstPad*, GstPadProbeInfo* info, gpointer) {
  GstEvent* const event = GST_PAD_PROBE_INFO_EVENT(info);
  if (GST_EVENT_TYPE(event) != GST_EVENT_CAPS) return GST_PAD_PROBE_OK;
  GstCaps* caps = nullptr;
  gst_event_parse_caps(event, &caps);
  caps = gst_caps_copy(caps);
  gst_structure_remove_fields(gst_caps_get_structure(caps, 0), "sprop-stereo",
                              "sprop-maxcapturerate", nullptr);
  GST_PAD_PROBE_INFO_DATA(info) = gst_event_new_caps(caps);
  gst_caps_unref(caps);
  gst_event_unref(event);
  return GST_PAD_PROBE_OK;
}

}  // namespace

Result<std::shared_ptr<Peer>> Peer::make(const Settings& settings, const Offer& offer,
                                         CallCallbacks callbacks) {
  std::shared_ptr<Peer> peer(new Peer(std::move(callbacks)));
  peer->fingerprints_ = offer.fingerprints;
  const auto built = peer->build_with(settings, offer);
  if (!built.ok()) return built.error();
  return peer;
}

Peer::~Peer() {
  close("client");
}

Result<void> Peer::build_with(const Settings& settings, const Offer& offer) {
  const GCharPtr text(g_strdup_printf(kPipeline, offer.opus_payload, offer.opus_payload));
  RETURN_IF_ERROR(build(settings, text.get()));
  rtc_ = element("rtc");
  forbid_upnp(rtc_.get());
  if (!settings.stun_server.empty())
    g_object_set(rtc_.get(), "stun-server", settings.stun_server.c_str(), nullptr);
  for (const std::string& server : settings.turn_servers) {
    gboolean added = FALSE;
    g_signal_emit_by_name(rtc_.get(), "add-turn-server", server.c_str(), &added);
  }
  return {};
}

void Peer::start(const std::string& offer) {
  connect_signals();
  add_probes();
  if (play()) offered(offer);
}

void Peer::connect_signals() {
  const WeakPipeline self = weak_from_this();
  connect(
      rtc_.get(), "pad-added",
      +[](GstElement*, GstPad* pad, gpointer data) {
        if (const auto peer = lock(data)) peer->pad_added(pad);
      },
      self);
  connect(
      rtc_.get(), "deep-element-added",
      +[](GstBin*, GstBin*, GstElement* element, gpointer data) {
        const GstElementFactory* const factory = gst_element_get_factory(element);
        if (factory == nullptr || g_strcmp0(GST_OBJECT_NAME(factory), "dtlsdec") != 0) return;
        if (const auto peer = lock(data)) peer->transport_added(element);
      },
      self);
  connect(
      rtc_.get(), "on-data-channel",
      +[](GstElement*, GstWebRTCDataChannel* channel, gpointer data) {
        const auto peer = lock(data);
        if (!peer) return;
        peer->channel_added(channel);
      },
      self);
  connect(
      rtc_.get(), "notify::connection-state",
      +[](GstElement* rtc, GParamSpec*, gpointer data) {
        const auto peer = lock(data);
        if (!peer) return;
        GstWebRTCPeerConnectionState state;
        g_object_get(rtc, "connection-state", &state, nullptr);
        peer->post([state](Peer& p) { p.connection_changed(state); });
      },
      self);
  connect(
      rtc_.get(), "notify::ice-gathering-state",
      +[](GstElement*, GParamSpec*, gpointer data) {
        if (const auto peer = lock(data)) peer->post([](Peer& p) { p.gathered(); });
      },
      self);
}

void Peer::add_probes() {
  add_probe("pay", "src", GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM, forget_declarations);
  const auto sound =
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_BUFFER_LIST);
  add_probe("depay", "sink", sound,
            [](GstPad*, GstPadProbeInfo*, gpointer data) -> GstPadProbeReturn {
              const auto peer = lock(data);
              if (!peer || !peer->trusted()) return GST_PAD_PROBE_DROP;
              peer->heard_something();
              return GST_PAD_PROBE_OK;
            });
  add_probe("pay", "src", sound, [](GstPad*, GstPadProbeInfo*, gpointer data) -> GstPadProbeReturn {
    const auto peer = lock(data);
    return peer && peer->trusted() ? GST_PAD_PROBE_OK : GST_PAD_PROBE_DROP;
  });
}

void Peer::connection_changed(GstWebRTCPeerConnectionState state) {
  if (state == GST_WEBRTC_PEER_CONNECTION_STATE_CONNECTED) callbacks_.connected();
  if (state == GST_WEBRTC_PEER_CONNECTION_STATE_FAILED ||
      state == GST_WEBRTC_PEER_CONNECTION_STATE_CLOSED)
    callbacks_.gone();
}

void Peer::post(std::function<void(Peer&)> work) {
  CallPipeline::post(
      [work = std::move(work)](CallPipeline& call) { work(static_cast<Peer&>(call)); });
}

// Remote description, answer, local description: each when the one before is done.
void Peer::offered(const std::string& sdp) {
  GstSDPMessage* message = nullptr;
  gst_sdp_message_new(&message);
  gst_sdp_message_parse_buffer(reinterpret_cast<const guint8*>(sdp.data()),
                               static_cast<guint>(sdp.size()), message);
  const Description offer(gst_webrtc_session_description_new(GST_WEBRTC_SDP_TYPE_OFFER, message));
  GstPromise* const promise = gst_promise_new_with_change_func(
      [](GstPromise* promise, gpointer data) {
        const auto peer = lock(data);
        const GstStructure* const reply = gst_promise_get_reply(promise);
        const bool refused = reply != nullptr && gst_structure_has_field(reply, "error");
        if (peer) {
          peer->post([refused](Peer& p) {
            if (refused)
              p.fail("webrtcbin does not take the offer");
            else
              p.create_answer();
          });
        }
        gst_promise_unref(promise);
      },
      new WeakPipeline(weak_from_this()), forget_pipeline);
  g_signal_emit_by_name(rtc_.get(), "set-remote-description", offer.get(), promise);
}

void Peer::create_answer() {
  GstPromise* const promise = gst_promise_new_with_change_func(
      [](GstPromise* promise, gpointer data) {
        const auto peer = lock(data);
        const GstStructure* const reply = gst_promise_get_reply(promise);
        GstWebRTCSessionDescription* answer = nullptr;
        if (reply != nullptr)
          gst_structure_get(reply, "answer", GST_TYPE_WEBRTC_SESSION_DESCRIPTION, &answer, nullptr);
        if (peer) {
          const std::shared_ptr<GstWebRTCSessionDescription> shared(answer, [](auto* d) {
            if (d != nullptr) gst_webrtc_session_description_free(d);
          });
          peer->post([shared](Peer& p) {
            if (!shared) return p.fail("webrtcbin could not answer the offer");
            g_signal_emit_by_name(p.rtc_.get(), "set-local-description", shared.get(), nullptr);
          });
        } else if (answer != nullptr) {
          gst_webrtc_session_description_free(answer);
        }
        gst_promise_unref(promise);
      },
      new WeakPipeline(weak_from_this()), forget_pipeline);
  g_signal_emit_by_name(rtc_.get(), "create-answer", nullptr, promise);
}

// webrtcbin 1.22 takes any certificate, so it is compared with the offer's fingerprints here.
// dtlsdec shows it in the middle of the handshake: before there are keys, it is known whose they
// will be.
void Peer::transport_added(GstElement* dtls) {
  struct Transport {
    WeakPipeline peer;
    bool shown = false;
  };
  ++transports_;
  g_signal_connect_data(
      dtls, "notify::peer-pem", G_CALLBACK(+[](GstElement* element, GParamSpec*, gpointer data) {
        auto* const transport = static_cast<Transport*>(data);
        const auto peer = std::static_pointer_cast<Peer>(transport->peer.lock());
        gchar* raw = nullptr;
        g_object_get(element, "peer-pem", &raw, nullptr);
        const GCharPtr pem(raw);
        const bool first = !std::exchange(transport->shown, true);
        if (peer) peer->certificate_shown(raw != nullptr ? raw : "", first);
      }),
      new Transport{weak_from_this()},
      [](gpointer data, GClosure*) { delete static_cast<Transport*>(data); },
      static_cast<GConnectFlags>(0));
}

// On the thread of the network.
void Peer::certificate_shown(const std::string& pem, bool first) {
  if (!certificate_matches(pem, fingerprints_)) {
    wrong_certificate_ = true;
    post([](Peer& p) { p.callbacks_.wrong_certificate(); });
  } else if (first) {
    ++verified_;
  }
}

// Until then nothing passes, in or out.
bool Peer::trusted() const {
  return !wrong_certificate_ && verified_ > 0 && verified_ == transports_;
}

// No trickle: the answer goes out when it holds all candidates.
void Peer::gathered() {
  GstWebRTCICEGatheringState state;
  GstWebRTCSessionDescription* description = nullptr;
  g_object_get(rtc_.get(), "ice-gathering-state", &state, nullptr);
  if (answered_ || state != GST_WEBRTC_ICE_GATHERING_STATE_COMPLETE) return;
  g_object_get(rtc_.get(), "local-description", &description, nullptr);
  if (description == nullptr) return;
  const Description local(description);
  const GCharPtr text(gst_sdp_message_as_text(local->sdp));
  answered_ = true;
  callbacks_.answered(std::string(text.get()));
}

void Peer::pad_added(GstPad* pad) {
  if (GST_PAD_DIRECTION(pad) != GST_PAD_SRC) return;
  const PadPtr sink(gst_element_get_static_pad(element("depay").get(), "sink"));
  if (!gst_pad_is_linked(sink.get()) && gst_pad_link(pad, sink.get()) == GST_PAD_LINK_OK) return;
  // A stream more than the offer's one: heard by nobody, but an unlinked pad would be an error.
  GstElement* const sink_for_it = gst_element_factory_make("fakesink", nullptr);
  g_object_set(sink_for_it, "async", FALSE, "sync", FALSE, nullptr);
  gst_bin_add(GST_BIN(pipeline_.get()), sink_for_it);
  const PadPtr other(gst_element_get_static_pad(sink_for_it, "sink"));
  gst_pad_link(pad, other.get());
  gst_element_sync_state_with_parent(sink_for_it);
}

// On webrtcbin's thread, so that nothing of the channel is missed. The first one counts.
void Peer::channel_added(GstWebRTCDataChannel* channel) {
  if (has_channel_.exchange(true)) return;
  const WeakPipeline self = weak_from_this();
  connect(
      channel, "on-message-string",
      +[](GstWebRTCDataChannel*, gchar* text, gpointer data) {
        const auto peer = lock(data);
        if (!peer || !peer->trusted()) return;
        peer->post([message = std::string(text != nullptr ? text : "")](Peer& p) {
          p.callbacks_.message(message);
        });
      },
      self);
  connect(
      channel, "on-open",
      +[](GstWebRTCDataChannel*, gpointer data) {
        if (const auto peer = lock(data)) peer->post([](Peer& p) { p.channel_open(); });
      },
      self);
  const std::shared_ptr<GstWebRTCDataChannel> shared(
      static_cast<GstWebRTCDataChannel*>(g_object_ref(channel)), g_object_unref);
  post([shared](Peer& p) {
    p.channel_ = shared;
    GstWebRTCDataChannelState state;
    g_object_get(shared.get(), "ready-state", &state, nullptr);
    if (state == GST_WEBRTC_DATA_CHANNEL_STATE_OPEN) p.channel_open();
  });
}

// Told twice if the channel was open already.
void Peer::channel_open() {
  if (trusted() && !std::exchange(channel_open_, true)) callbacks_.channel_open();
}

void Peer::send(const std::string& message) {
  if (!channel_ || closed()) return;
  GError* raw = nullptr;
  gst_webrtc_data_channel_send_string_full(channel_.get(), message.c_str(), &raw);
  const GErrorPtr error(raw);
  if (error) g_info("a message was not sent: %s", error->message);  // the channel is closing
}

// The transport's own errors are those of a client that has gone.
bool Peer::is_transport(GstObject* source) const {
  return answered_ && gst_object_has_as_ancestor(source, GST_OBJECT(rtc_.get()));
}

void Peer::fail(const std::string& message) {
  if (closed()) return;
  if (answered_) return callbacks_.failed(message);
  answered_ = true;
  callbacks_.answered(Error{ErrorCode::kFailed, message, ""});
}

std::function<void()> Peer::say_goodbye(const std::string&) {
  if (!pipeline_) return {};
  // Through webrtcbin the pipeline is a loop, which GStreamer warns of when its state changes.
  const PadPtr sink(gst_element_get_static_pad(element("depay").get(), "sink"));
  if (const PadPtr source(gst_pad_get_peer(sink.get())); source)
    gst_pad_unlink(source.get(), sink.get());
  const auto channel = std::exchange(channel_, {});
  if (!channel_open_) return [channel] {};
  // The client notices at once; without it, after some 15 s (ICE consent).
  gst_webrtc_data_channel_close(channel.get());
  const std::shared_ptr<GstElement> pipeline(GST_ELEMENT(gst_object_ref(pipeline_.get())),
                                             gst_object_unref);
  return [channel, pipeline] {
    g_usleep(kGoodbyeUs);
    close_dtls(GST_BIN(pipeline.get()));
    g_usleep(kGoodbyeUs);
  };
}

}  // namespace minicpmo::call_server
