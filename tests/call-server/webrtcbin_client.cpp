// A caller of minicpmo-call-server made of webrtcbin. Offers Opus and a data channel.
//
//   webrtcbin_client URL RECORDING [SETUP]
//     says and does what standard input asks, a line each: "say FILE.wav" (16 kHz, mono), "send
//     JSON", "hang-up"; writes to standard output what happens, a JSON object each: {"at": bytes of
//     the recording so far, "event": what came over the data channel}, at last {"hung_up": status}.
//     RECORDING is raw S16LE at 16 kHz, mono. SETUP stands in the offer instead of
//     a=setup:actpass.
//   webrtcbin_client --calls N URL
//     N calls, one after the other, each until its data channel is open and sound has come.
#include <gio/gio.h>
#include <gst/gst.h>
#define GST_USE_UNSTABLE_API
#include <gst/sdp/sdp.h>
#include <gst/webrtc/webrtc.h>
#include <libsoup/soup.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "common/gst_ptr.h"
#include "main_thread.h"

namespace {

using namespace minicpmo;
using call_server::on_main_thread;
using call_server::Timer;

constexpr guint kLimitSeconds = 60;
constexpr size_t kWavHeader = 44;

// The microphone is a source of silence whose buffers are filled with what there is to say.
constexpr const char* kPipeline = R"(
  webrtcbin name=rtc bundle-policy=max-bundle
  audiotestsrc name=microphone is-live=true wave=silence samplesperbuffer=320
    ! audio/x-raw,format=S16LE,rate=16000,channels=1 ! audioconvert ! audioresample
    ! opusenc audio-type=voice ! rtpopuspay pt=97
    ! application/x-rtp,media=audio,encoding-name=OPUS,payload=97,clock-rate=48000,encoding-params=(string)2
    ! rtc.
  rtpopusdepay name=depay ! opusdec plc=true ! audioconvert ! audioresample
    ! audio/x-raw,format=S16LE,rate=16000,channels=1
    ! filesink name=recording buffer-mode=unbuffered sync=false async=false
)";

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "webrtcbin_client: %s\n", what.c_str());
  std::fflush(stdout);
  _exit(1);
}

void tell(const nlohmann::json& what) {
  std::printf("%s\n", what.dump().c_str());
  std::fflush(stdout);
}

// status, body; `location` is given the header, if there is one.
guint request(const char* method, const std::string& url, const std::string& body,
              std::string* reply, std::string* location) {
  SoupSession* const session = soup_session_new_with_options("timeout", kLimitSeconds, nullptr);
  SoupMessage* const message = soup_message_new(method, url.c_str());
  if (message == nullptr) fail("no address: " + url);
  if (!body.empty()) {
    GBytes* const bytes = g_bytes_new(body.data(), body.size());
    soup_message_set_request_body_from_bytes(message, "application/sdp", bytes);
    g_bytes_unref(bytes);
  }
  GError* error = nullptr;
  GBytes* const bytes = soup_session_send_and_read(session, message, nullptr, &error);
  if (bytes == nullptr) fail(url + ": " + error->message);
  gsize size = 0;
  const auto* const data = static_cast<const char*>(g_bytes_get_data(bytes, &size));
  if (reply != nullptr) reply->assign(data != nullptr ? data : "", size);
  const char* const place =
      soup_message_headers_get_one(soup_message_get_response_headers(message), "Location");
  if (location != nullptr) *location = place != nullptr ? place : "";
  const guint status = soup_message_get_status(message);
  g_bytes_unref(bytes);
  g_object_unref(message);
  g_object_unref(session);
  return status;
}

// One call. Its callbacks run on webrtcbin's and streaming threads; what they find is told on the
// main thread.
class Caller {
 public:
  Caller(std::string url, const std::string& recording) : url_(std::move(url)) {
    GError* error = nullptr;
    pipeline_.reset(GST_ELEMENT(gst_object_ref_sink(gst_parse_launch(kPipeline, &error))));
    if (error != nullptr) fail(error->message);
    rtc_.reset(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "rtc"));
    const ElementPtr file(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "recording"));
    g_object_set(file.get(), "location", recording.c_str(), nullptr);
    add_probe("recording", "sink", &Caller::heard);
    add_probe("microphone", "src", &Caller::spoken);
    g_signal_connect(rtc_.get(), "pad-added",
                     G_CALLBACK(+[](GstElement*, GstPad* pad, gpointer self) {
                       static_cast<Caller*>(self)->pad_added(pad);
                     }),
                     this);
    g_signal_connect(rtc_.get(), "notify::ice-gathering-state",
                     G_CALLBACK(+[](GstElement*, GParamSpec*, gpointer self) {
                       static_cast<Caller*>(self)->gathered();
                     }),
                     this);
  }

  ~Caller() {
    gst_element_set_state(pipeline_.get(), GST_STATE_NULL);
    if (channel_ != nullptr) g_object_unref(channel_);
  }

  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  std::string setup;  // instead of a=setup:actpass
  std::function<void(const nlohmann::json& event)> on_event;
  std::function<void()> on_sound;  // once

  void call() {
    // The data channel can be made in READY, and must be there before the offer is.
    gst_element_set_state(pipeline_.get(), GST_STATE_READY);
    g_signal_emit_by_name(rtc_.get(), "create-data-channel", "oai-events", nullptr, &channel_);
    if (channel_ == nullptr) fail("webrtcbin makes no data channel");
    g_signal_connect(
        channel_, "on-message-string",
        G_CALLBACK(+[](GstWebRTCDataChannel*, gchar* text, gpointer self) {
          auto* const caller = static_cast<Caller*>(self);
          caller->post([caller, event = nlohmann::json::parse(text != nullptr ? text : "")] {
            caller->on_event(event);
          });
        }),
        this);
    gst_element_set_state(pipeline_.get(), GST_STATE_PLAYING);
    GstPromise* const promise = gst_promise_new_with_change_func(
        [](GstPromise* done, gpointer self) { static_cast<Caller*>(self)->offer_made(done); }, this,
        nullptr);
    g_signal_emit_by_name(rtc_.get(), "create-offer", nullptr, promise);
  }

  void say(const std::string& wav) {
    gchar* data = nullptr;
    gsize size = 0;
    if (!g_file_get_contents(wav.c_str(), &data, &size, nullptr) || size < kWavHeader)
      fail("there is no WAV file " + wav);
    const std::lock_guard lock(mutex_);
    speech_.append(data + kWavHeader, size - kWavHeader);
    g_free(data);
  }

  void send(const std::string& text) {
    gst_webrtc_data_channel_send_string_full(channel_, text.c_str(), nullptr);
  }

  guint hang_up() {
    return location_.empty() ? 0 : request("DELETE", url_ + location_, "", nullptr, nullptr);
  }

  size_t heard_bytes() const { return heard_; }

 private:
  // On the main thread, unless the call is over by then.
  void post(std::function<void()> work) {
    on_main_thread([alive = std::weak_ptr<bool>(alive_), work = std::move(work)] {
      if (!alive.expired()) work();
    });
  }

  void add_probe(const char* element, const char* pad, void (Caller::*found)(GstPadProbeInfo*)) {
    struct Target {
      Caller* self;
      void (Caller::*found)(GstPadProbeInfo*);
    };
    const ElementPtr of(gst_bin_get_by_name(GST_BIN(pipeline_.get()), element));
    const PadPtr at(gst_element_get_static_pad(of.get(), pad));
    gst_pad_add_probe(
        at.get(), GST_PAD_PROBE_TYPE_BUFFER,
        [](GstPad*, GstPadProbeInfo* info, gpointer data) {
          const auto* const target = static_cast<Target*>(data);
          (target->self->*target->found)(info);
          return GST_PAD_PROBE_OK;
        },
        new Target{this, found}, [](gpointer data) { delete static_cast<Target*>(data); });
  }

  void heard(GstPadProbeInfo* info) {
    const size_t before = heard_.fetch_add(gst_buffer_get_size(GST_PAD_PROBE_INFO_BUFFER(info)));
    if (before == 0) {
      post([this] {
        if (on_sound) on_sound();
      });
    }
  }

  void spoken(GstPadProbeInfo* info) {
    const std::lock_guard lock(mutex_);
    if (speech_.empty()) return;
    GstBuffer* const buffer = gst_buffer_make_writable(GST_PAD_PROBE_INFO_BUFFER(info));
    info->data = buffer;
    const size_t size = std::min(speech_.size(), gst_buffer_get_size(buffer));
    gst_buffer_fill(buffer, 0, speech_.data(), size);
    GST_BUFFER_FLAG_UNSET(buffer, GST_BUFFER_FLAG_GAP);  // silence is one
    speech_.erase(0, size);
  }

  void offer_made(GstPromise* promise) {
    GstWebRTCSessionDescription* offer = nullptr;
    const GstStructure* const reply = gst_promise_get_reply(promise);
    if (reply != nullptr)
      gst_structure_get(reply, "offer", GST_TYPE_WEBRTC_SESSION_DESCRIPTION, &offer, nullptr);
    gst_promise_unref(promise);
    if (offer == nullptr) fail("webrtcbin makes no offer");
    g_signal_emit_by_name(rtc_.get(), "set-local-description", offer, nullptr);
    gst_webrtc_session_description_free(offer);
  }

  // The offer goes out with all its candidates.
  void gathered() {
    GstWebRTCICEGatheringState state;
    g_object_get(rtc_.get(), "ice-gathering-state", &state, nullptr);
    if (state == GST_WEBRTC_ICE_GATHERING_STATE_COMPLETE) post([this] { post_offer(); });
  }

  void post_offer() {
    GstWebRTCSessionDescription* offer = nullptr;
    g_object_get(rtc_.get(), "local-description", &offer, nullptr);
    const GCharPtr text(gst_sdp_message_as_text(offer->sdp));
    gst_webrtc_session_description_free(offer);
    std::string sdp_text = text.get(), body;
    static const std::string actpass = "a=setup:actpass";
    for (size_t at = 0; !setup.empty() && (at = sdp_text.find(actpass, at)) != std::string::npos;)
      sdp_text.replace(at, actpass.size(), setup);
    const guint status = request("POST", url_ + "/whip", sdp_text, &body, &location_);
    if (status != SOUP_STATUS_CREATED)
      fail("the offer was refused: " + std::to_string(status) + " " + body);
    GstSDPMessage* sdp = nullptr;
    gst_sdp_message_new_from_text(body.c_str(), &sdp);
    GstWebRTCSessionDescription* const answer =
        gst_webrtc_session_description_new(GST_WEBRTC_SDP_TYPE_ANSWER, sdp);
    g_signal_emit_by_name(rtc_.get(), "set-remote-description", answer, nullptr);
    gst_webrtc_session_description_free(answer);
  }

  void pad_added(GstPad* pad) {
    if (GST_PAD_DIRECTION(pad) != GST_PAD_SRC) return;
    const ElementPtr depay(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "depay"));
    const PadPtr sink(gst_element_get_static_pad(depay.get(), "sink"));
    if (gst_pad_link(pad, sink.get()) != GST_PAD_LINK_OK) fail("the sound cannot be played");
  }

  std::string url_, location_;
  ElementPtr pipeline_, rtc_;
  GstWebRTCDataChannel* channel_ = nullptr;
  std::atomic<size_t> heard_{0};
  std::mutex mutex_;
  std::string speech_;  // S16LE
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

void one_call(GMainLoop* loop, const std::string& url, const std::string& recording,
              const std::string& setup) {
  Caller caller(url, recording);
  caller.setup = setup;
  caller.on_event = [&](const nlohmann::json& event) {
    tell({{"at", caller.heard_bytes()}, {"event", event}});
  };
  caller.call();
  GIOChannel* const input = g_io_channel_unix_new(0);
  std::function<void(const std::string&)> obey = [&](const std::string& line) {
    if (line.starts_with("say ")) return caller.say(line.substr(4));
    if (line.starts_with("send ")) return caller.send(line.substr(5));
    if (line != "hang-up") fail("no command: " + line);
    tell({{"hung_up", caller.hang_up()}});
    g_main_loop_quit(loop);
  };
  g_io_add_watch(
      input, static_cast<GIOCondition>(G_IO_IN | G_IO_HUP),
      [](GIOChannel* from, GIOCondition, gpointer data) -> gboolean {
        gchar* line = nullptr;
        gsize end = 0;
        if (g_io_channel_read_line(from, &line, nullptr, &end, nullptr) != G_IO_STATUS_NORMAL)
          fail("nobody tells what to do any more");
        const std::string command(line, end);
        g_free(line);
        (*static_cast<std::function<void(const std::string&)>*>(data))(command);
        return G_SOURCE_CONTINUE;
      },
      &obey);
  g_main_loop_run(loop);
  g_io_channel_unref(input);
}

void many_calls(GMainLoop* loop, int calls, const std::string& url) {
  for (int i = 0; i < calls; ++i) {
    Caller caller(url, "/dev/null");
    bool sound = false, channel = false;
    const auto stop_if_done = [&] {
      if (sound && channel) g_main_loop_quit(loop);
    };
    caller.on_sound = [&] {
      sound = true;
      stop_if_done();
    };
    caller.on_event = [&](const nlohmann::json& event) {
      channel = channel || event["type"] == "session.created";
      stop_if_done();
    };
    Timer limit;
    limit.start(kLimitSeconds * 1000, [&] {
      fail("call " + std::to_string(i + 1) + (sound ? " has" : " has no") + " sound and" +
           (channel ? " a" : " no") + " channel");
    });
    caller.call();
    g_main_loop_run(loop);
    if (const guint status = caller.hang_up(); status != SOUP_STATUS_OK)
      fail("hanging up: status " + std::to_string(status));
    tell({{"calls", i + 1}});
  }
}

}  // namespace

int main(int argc, char** argv) {
  gst_init(&argc, &argv);
  GMainLoop* const loop = g_main_loop_new(nullptr, FALSE);
  if (argc == 4 && std::strcmp(argv[1], "--calls") == 0)
    many_calls(loop, std::atoi(argv[2]), argv[3]);
  else if (argc == 3 || argc == 4)
    one_call(loop, argv[1], argv[2], argc == 4 ? argv[3] : "");
  else
    fail("URL RECORDING [SETUP], or --calls N URL");
  g_main_loop_unref(loop);
  return 0;
}
