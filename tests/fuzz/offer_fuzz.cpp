// libFuzzer target: any bytes as an SDP offer. Build with clang:
//   CXX=clang++ meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/offer_fuzz
//   cd tests/fuzz && ../../build-fuzz/tests/fuzz/offer_fuzz -dict=sdp.dict CORPUS offer
// New inputs go into CORPUS; tests/fuzz/offer are those that were kept.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "offer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view sdp(reinterpret_cast<const char*>(data), size);
  const auto offer = minicpmo::call_server::check_offer(sdp);
  if (!offer.ok()) {
    // The message goes to the client and into the log: short, and of one line.
    const std::string& message = offer.error().message;
    if (message.empty() || message.size() > 1024 || message.find('\n') != message.npos)
      std::abort();
    return 0;
  }
  // What is accepted has all that a call needs.
  if (size > minicpmo::call_server::kMaxOfferBytes || offer->audio_sections < 1 ||
      offer->audio_sections > 16 || offer->opus_payload < 0 || offer->opus_payload > 127 ||
      offer->audio_mid.empty() || offer->fingerprints.empty())
    std::abort();
  return 0;
}
