// A WebRTC call: webrtcbin at both ends of the pipeline, and the data channel.
#pragma once

#include <gst/gst.h>
#define GST_USE_UNSTABLE_API
#include <gst/webrtc/webrtc.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "call_pipeline.h"
#include "offer.h"

namespace minicpmo::call_server {

class Peer final : public CallPipeline {
 public:
  // kLibrary if an element is missing.
  static Result<std::shared_ptr<Peer>> make(const Settings& settings, const Offer& offer,
                                            CallCallbacks callbacks);
  ~Peer() override;
  void start(const std::string& offer) override;
  void send(const std::string& message) override;

 private:
  using CallPipeline::CallPipeline;
  Result<void> build_with(const Settings& settings, const Offer& offer);
  void connect_signals();
  void add_probes();
  void connection_changed(GstWebRTCPeerConnectionState state);
  void offered(const std::string& sdp);
  void create_answer();
  void transport_added(GstElement* dtls);
  void certificate_shown(const std::string& pem, bool first);
  bool trusted() const;
  void pad_added(GstPad* pad);
  void channel_added(GstWebRTCDataChannel* channel);
  void channel_open();
  void post(std::function<void(Peer&)> work);
  void gathered();
  void fail(const std::string& message) override;
  bool is_transport(GstObject* source) const override;
  std::function<void()> say_goodbye(const std::string& why) override;

  ElementPtr rtc_;
  std::shared_ptr<GstWebRTCDataChannel> channel_;
  std::atomic<bool> has_channel_{false};
  std::vector<std::string> fingerprints_;  // of the offer
  std::atomic<int> transports_{0}, verified_{0};
  std::atomic<bool> wrong_certificate_{false};
  bool answered_ = false, channel_open_ = false;
};

}  // namespace minicpmo::call_server
