// Looks at a WebRTC offer before anything is made for it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace minicpmo::call_server {

struct Offer {
  bool data_channel = false;  // an m=application section with webrtc-datachannel
  int audio_sections = 0;
  int opus_payload = -1;  // of the first audio section
  std::string audio_mid;
  // Of the certificate that the client will show, "sha-256 AB:...": SHA-256 or longer, at least
  // one.
  std::vector<std::string> fingerprints;
};

constexpr size_t kMaxOfferBytes = 64 * 1024;

// Reads an SDP offer (RFC 8866, RFC 8829). kFormat with what is wrong with it and what to do: not
// SDP, too long, too many sections, no audio, audio that only receives, no Opus at 48 kHz with two
// channels, no ICE credentials, no DTLS fingerprint or one that is no SHA-256 (or longer), SDES
// keys, no DTLS/SRTP profile. Sections that are not used (video) are no error: the answer refuses
// them. Never crashes on any input.
Result<Offer> check_offer(std::string_view sdp);

}  // namespace minicpmo::call_server
