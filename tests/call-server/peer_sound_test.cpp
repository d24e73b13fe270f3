// A WebRTC call has its own sound to send, whether that comes before the answer is made or after:
// which of them does depends on how busy the machine is.
#include <gst/gst.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "main_thread.h"
#include "peer.h"

namespace minicpmo::call_server {
namespace {

constexpr gint64 kPatienceUs = 60 * G_USEC_PER_SEC;

// Runs the main loop, or stands still, until the condition holds or the time is over.
template <class Condition>
bool wait_for(const Condition& holds, bool main_loop = true) {
  const gint64 end = g_get_monotonic_time() + kPatienceUs;
  while (!holds() && g_get_monotonic_time() < end) {
    if (main_loop) g_main_context_iteration(nullptr, FALSE);
    g_usleep(1000);
  }
  return holds();
}

class PeerSound : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ifstream file(OFFERS "/chromium.sdp");
    sdp_.assign(std::istreambuf_iterator<char>(file), {});
    // A caller that sends stereo of 16 kHz.
    const std::string own = "minptime=10;";
    const size_t at = sdp_.find(own);
    ASSERT_NE(at, sdp_.npos);
    sdp_.insert(at, "sprop-stereo=1;sprop-maxcapturerate=16000;");
    const auto offer = check_offer(sdp_);
    ASSERT_TRUE(offer.ok()) << offer.error().message;
    CallCallbacks callbacks;
    callbacks.answered = [this](Result<std::string> text) {
      (text.ok() ? answer_ : failure_) = text.ok() ? *text : text.error().message;
    };
    callbacks.failed = [this](const std::string& message) { failure_ = message; };
    callbacks.gone = [this] { failure_ = "gone"; };
    callbacks.told = [](const GstStructure*) {};
    Settings settings;
    settings.device = "cpu";
    auto peer = Peer::make(settings, *offer, std::move(callbacks));
    ASSERT_TRUE(peer.ok()) << peer.error().message;
    peer_ = *peer;
    pipeline_.reset(GST_ELEMENT(gst_element_get_parent(peer_->model())));
  }

  void TearDown() override {
    if (!peer_) return;
    peer_->close("client");
    EXPECT_TRUE(wait_for([] { return CallPipeline::stopping() == 0; }));
  }

  PadPtr pad(const char* element, const char* name) {
    const ElementPtr found(gst_bin_get_by_name(GST_BIN(pipeline_.get()), element));
    return PadPtr(gst_element_get_static_pad(found.get(), name));
  }

  bool has_answered() const { return !answer_.empty() || !failure_.empty(); }

  void expect_that_it_sends() {
    EXPECT_EQ(failure_, "");
    EXPECT_NE(answer_.find("m=audio 9"), answer_.npos) << answer_;
    EXPECT_NE(answer_.find("a=sendrecv"), answer_.npos) << answer_;
    // webrtcbin blocks its pad until it knows what to do with what comes.
    const PadPtr sent = pad("rtc", "sink_0");
    EXPECT_TRUE(wait_for([&] { return !gst_pad_is_blocked(sent.get()); }));
  }

  std::string sdp_, answer_, failure_;
  std::shared_ptr<Peer> peer_;
  ElementPtr pipeline_;
};

TEST_F(PeerSound, ThatComesBeforeTheAnswerIsMade) {
  const PadPtr sent = pad("rtc", "sink_0");
  peer_->start(sdp_);
  ASSERT_TRUE(wait_for([&] { return gst_pad_has_current_caps(sent.get()); }, false));
  ASSERT_TRUE(wait_for([this] { return has_answered(); }));
  expect_that_it_sends();
}

TEST_F(PeerSound, ThatComesAfterTheAnswer) {
  const PadPtr mixed = pad("mixer", "src");
  const gulong late = gst_pad_add_probe(
      mixed.get(), GST_PAD_PROBE_TYPE_BLOCK_DOWNSTREAM,
      [](GstPad*, GstPadProbeInfo*, gpointer) { return GST_PAD_PROBE_OK; }, nullptr, nullptr);
  peer_->start(sdp_);
  ASSERT_TRUE(wait_for([this] { return has_answered(); }));
  EXPECT_TRUE(gst_pad_is_blocked(pad("rtc", "sink_0").get()));
  gst_pad_remove_probe(mixed.get(), late);
  expect_that_it_sends();
}

}  // namespace
}  // namespace minicpmo::call_server

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  gst_init(&argc, &argv);
  return RUN_ALL_TESTS();
}
