// The pipeline of one call: webrtcbin, the elements between what is heard and what is said, and the
// data channel. To be used from the main thread, on which its callbacks run, too.
#pragma once

#include <gst/gst.h>
#define GST_USE_UNSTABLE_API
#include <gst/webrtc/webrtc.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/gst_ptr.h"
#include "common/result.h"
#include "offer.h"
#include "settings.h"

namespace minicpmo::call_server {

struct PeerCallbacks {
  std::function<void(Result<std::string> sdp)> answered;  // once, with all candidates
  std::function<void(GstWebRTCPeerConnectionState)> connection;
  std::function<void()> channel_open;
  std::function<void(const std::string&)> message;  // of the data channel
  std::function<void(const GstStructure*)> told;    // an element's message minicpmo/...
  std::function<void(uint64_t turn, const std::string& text)> words;
  // An answer's first sound goes to the mixer; its last one is over in `milliseconds` (0 also if it
  // has none); what is left of it was dropped.
  std::function<void(uint64_t turn)> sound_begins;
  std::function<void(uint64_t turn, unsigned milliseconds)> sound_ends;
  std::function<void()> sound_dropped;
  // Somebody else than the offer's client: nothing was heard from it, and nothing told to it.
  std::function<void()> wrong_certificate;
  std::function<void(const std::string&)> failed;  // the pipeline cannot go on
};

class Peer : public std::enable_shared_from_this<Peer> {
 public:
  // kLibrary if an element is missing. Takes nothing of the network before start().
  static Result<std::shared_ptr<Peer>> make(const Settings& settings, const Offer& offer,
                                            PeerCallbacks callbacks);
  ~Peer();
  void start(const std::string& sdp);
  // No callback runs after it. The pipeline is stopped in another thread.
  void close();

  // Closed ones whose pipelines have not stopped yet.
  static int stopping() { return stopping_; }

  void send(const std::string& message);
  GstElement* model() const { return model_.get(); }  // minicpmobin
  GstElement* turn() const { return turn_.get(); }    // minicpmoturn
  // Since the last packet of the user's sound, in seconds; since the start if there was none.
  double silent_seconds() const;

 private:
  static inline std::atomic<int> stopping_{0};
  Peer() = default;
  Result<void> build(const Settings& settings, const Offer& offer);
  void connect_signals();
  void add_probes();
  void offered(const std::string& sdp);
  void create_answer();
  void transport_added(GstElement* dtls);
  void certificate_shown(const std::string& pem, bool first);
  bool trusted() const;
  void pad_added(GstPad* pad);
  void channel_added(GstWebRTCDataChannel* channel);
  void channel_open();
  GstPadProbeReturn sound_probe(GstPadProbeInfo* info);
  void post(std::function<void(Peer&)> work);
  void gathered();
  gboolean on_message(GstMessage* message);
  void fail(const std::string& message);

  PeerCallbacks callbacks_;
  ElementPtr pipeline_, rtc_, model_, turn_;
  std::shared_ptr<GstWebRTCDataChannel> channel_;
  std::atomic<bool> has_channel_{false};
  guint bus_watch_ = 0;
  std::vector<std::string> fingerprints_;  // of the offer
  std::atomic<int> transports_{0}, verified_{0};
  std::atomic<bool> wrong_certificate_{false};
  bool closed_ = false, answered_ = false, channel_open_ = false;
  std::atomic<gint64> last_packet_{0};  // g_get_monotonic_time()
  // Of the thread that sends the answers' sound.
  uint64_t sounding_ = 0;
  bool sound_ = false;
  GstClockTime sound_end_ = GST_CLOCK_TIME_NONE;
};

}  // namespace minicpmo::call_server
