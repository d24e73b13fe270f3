#include "offer.h"

#include <gst/sdp/gstsdpmessage.h>

#include <algorithm>
#include <optional>
#include <set>

namespace minicpmo::call_server {

namespace {

constexpr size_t kMaxLines = 1000;
constexpr size_t kMaxLine = 2048;
constexpr size_t kMaxSections = 16;
constexpr size_t kMaxCandidates = 200;  // each is an address that ICE sends to
constexpr size_t kMaxMid = 64;

Error bad(std::string what) {
  return {ErrorCode::kFormat, "the offer " + std::move(what)};
}

// A part of the offer for a message.
std::string shown(std::string_view text) {
  constexpr size_t kLongest = 60;
  std::string result(text.substr(0, kLongest));
  std::replace_if(
      result.begin(), result.end(), [](char c) { return !g_ascii_isprint(c); }, '?');
  return "\"" + result + (text.size() > kLongest ? "...\"" : "\"");
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == text.npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// A number of the digits alone, at most `most`.
std::optional<int> number(std::string_view digits, int most) {
  if (digits.empty() || digits.size() > 5) return std::nullopt;
  int value = 0;
  for (char c : digits) {
    if (!g_ascii_isdigit(c)) return std::nullopt;
    value = 10 * value + (c - '0');
  }
  if (value > most) return std::nullopt;
  return value;
}

bool equal(std::string_view a, std::string_view b) {
  return a.size() == b.size() && g_ascii_strncasecmp(a.data(), b.data(), a.size()) == 0;
}

// GStreamer's parser skips what it does not understand, so the lines are looked at here.

Result<std::vector<std::string_view>> read_lines(std::string_view sdp) {
  if (sdp.size() > kMaxOfferBytes) {
    return bad("has " + std::to_string(sdp.size()) + " bytes, at most " +
               std::to_string(kMaxOfferBytes) + " are read; offer audio and a data channel only");
  }
  if (!g_utf8_validate(sdp.data(), static_cast<gssize>(sdp.size()), nullptr))
    return bad("is no UTF-8 text; send the SDP itself as application/sdp");
  while (sdp.ends_with('\n') || sdp.ends_with('\r')) sdp.remove_suffix(1);
  if (sdp.empty()) return bad("is empty; send an SDP offer as application/sdp");
  std::vector<std::string_view> lines = split(sdp, '\n');
  if (lines.size() > kMaxLines) {
    return bad("has " + std::to_string(lines.size()) + " lines, at most " +
               std::to_string(kMaxLines) + " are read; offer audio and a data channel only");
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    std::string_view& line = lines[i];
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool control = std::any_of(line.begin(), line.end(),
                                     [](char c) { return g_ascii_iscntrl(c) && c != '\t'; });
    if (line.size() < 2 || line.size() > kMaxLine || !g_ascii_islower(line[0]) || line[1] != '=' ||
        control) {
      return bad("is no SDP: line " + std::to_string(i + 1) + ", " + shown(line) +
                 ", is not a letter, = and at most " + std::to_string(kMaxLine) + " characters");
    }
  }
  return lines;
}

Result<void> check_section_line(std::string_view line) {
  const std::vector<std::string_view> fields = split(line.substr(2), ' ');
  const bool whole = fields.size() >= 4 && !fields[0].empty() && number(fields[1], 65535) &&
                     !fields[2].empty() && !fields[3].empty();
  if (!whole)
    return bad("has the line " + shown(line) + ", which is not m=MEDIA PORT PROTOCOL ...");
  return {};
}

// RFC 8866: what comes first, and that sections are what they should be. Returns their number.
Result<size_t> check_lines(const std::vector<std::string_view>& lines) {
  const bool begins = lines.size() >= 4 && lines[0] == "v=0" && lines[1].starts_with("o=") &&
                      split(lines[1], ' ').size() == 6 && lines[2].starts_with("s=");
  if (!begins) return bad("is no SDP: it must begin with v=0, o= with six fields, and s=");
  size_t sections = 0, candidates = 0;
  bool has_time = false;
  for (std::string_view line : lines) {
    if (line.starts_with("m=")) {
      RETURN_IF_ERROR(check_section_line(line));
      ++sections;
    }
    has_time = has_time || (sections == 0 && line.starts_with("t="));
    candidates += line.starts_with("a=candidate:");
    if (line.starts_with("a=crypto:"))
      return bad("has SDES keys (a=crypto); use DTLS-SRTP, without a=crypto");
  }
  if (!has_time) return bad("is no SDP: it has no t= line before its sections");
  if (sections > kMaxSections) {
    return bad("has " + std::to_string(sections) + " sections, at most " +
               std::to_string(kMaxSections) + " are read; offer audio and a data channel only");
  }
  if (candidates > kMaxCandidates) {
    return bad("has " + std::to_string(candidates) + " candidates, at most " +
               std::to_string(kMaxCandidates) + " are read; use fewer network interfaces");
  }
  return sections;
}

struct Message {
  Message() { gst_sdp_message_new(&sdp); }
  ~Message() { gst_sdp_message_free(sdp); }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;
  GstSDPMessage* sdp = nullptr;
};

// A section that is offered: its attributes, or the session's where it has none.
struct Section {
  const GstSDPMessage* sdp;
  const GstSDPMedia* media;
  std::string name;  // for messages

  const char* attribute(const char* key) const {
    const char* value = gst_sdp_media_get_attribute_val(media, key);
    return value ? value : gst_sdp_message_get_attribute_val(sdp, key);
  }
  bool has(const char* key) const { return gst_sdp_media_get_attribute_val(media, key) != nullptr; }
  std::vector<std::string> all(const char* key) const {
    std::vector<std::string> values;
    for (guint n = 0; const char* v = gst_sdp_media_get_attribute_val_n(media, key, n); ++n)
      values.emplace_back(v);
    if (!values.empty()) return values;
    for (guint n = 0; const char* v = gst_sdp_message_get_attribute_val_n(sdp, key, n); ++n)
      values.emplace_back(v);
    return values;
  }
  bool protocol_is(std::initializer_list<const char*> names) const {
    return std::any_of(names.begin(), names.end(),
                       [this](const char* n) { return equal(gst_sdp_media_get_proto(media), n); });
  }
};

// RFC 8839: 4 (22) to 256 letters, digits, + and /.
bool is_ice(const char* text, size_t least) {
  const std::string_view value = text ? text : "";
  return value.size() >= least && value.size() <= 256 &&
         std::all_of(value.begin(), value.end(),
                     [](char c) { return g_ascii_isalnum(c) || c == '+' || c == '/'; });
}

// RFC 8122: the hash's name, and bytes in hexadecimal with colons between. How many bytes of a
// strong hash it has; 0: another hash; none: broken.
std::optional<size_t> strong_bytes(std::string_view fingerprint) {
  const std::vector<std::string_view> fields = split(fingerprint, ' ');
  if (fields.size() != 2) return std::nullopt;
  const size_t bytes = equal(fields[0], "sha-256")   ? 32
                       : equal(fields[0], "sha-384") ? 48
                       : equal(fields[0], "sha-512") ? 64
                                                     : 0;
  if (bytes == 0) return bytes;
  const std::vector<std::string_view> pairs = split(fields[1], ':');
  const bool whole = pairs.size() == bytes && std::all_of(pairs.begin(), pairs.end(), [](auto p) {
                       return p.size() == 2 && g_ascii_isxdigit(p[0]) && g_ascii_isxdigit(p[1]);
                     });
  if (!whole) return std::nullopt;
  return bytes;
}

Result<std::vector<std::string>> read_fingerprints(const Section& section) {
  std::vector<std::string> strong;
  for (const std::string& fingerprint : section.all("fingerprint")) {
    const std::optional<size_t> bytes = strong_bytes(fingerprint);
    if (!bytes)
      return bad("has a broken a=fingerprint in " + section.name + ": " + shown(fingerprint));
    if (*bytes > 0) strong.push_back(fingerprint);
  }
  if (strong.empty()) {
    return bad("has no a=fingerprint of SHA-256, SHA-384 or SHA-512 in " + section.name +
               "; calls are encrypted with DTLS-SRTP only");
  }
  return strong;
}

Result<std::vector<std::string>> check_transport(const Section& section) {
  if (!is_ice(section.attribute("ice-ufrag"), 4)) {
    return bad("has no a=ice-ufrag of 4 to 256 letters, digits, + and / in " + section.name +
               "; send a WebRTC offer");
  }
  if (!is_ice(section.attribute("ice-pwd"), 22)) {
    return bad("has no a=ice-pwd of 22 to 256 letters, digits, + and / in " + section.name +
               "; send a WebRTC offer");
  }
  const char* setup = section.attribute("setup");
  if (!setup || (!equal(setup, "actpass") && !equal(setup, "active") && !equal(setup, "passive"))) {
    return bad("has " + (setup ? "a=setup:" + shown(setup) : std::string("no a=setup")) + " in " +
               section.name + "; it must be actpass, active or passive");
  }
  return read_fingerprints(section);
}

// The payload type of opus/48000/2, or -1.
int opus_payload(const GstSDPMedia* media) {
  for (guint n = 0; const char* v = gst_sdp_media_get_attribute_val_n(media, "rtpmap", n); ++n) {
    const std::vector<std::string_view> fields = split(v, ' ');
    if (fields.size() != 2 || !equal(fields[1], "opus/48000/2")) continue;
    const std::optional<int> payload = number(fields[0], 127);
    for (guint f = 0; payload && f < gst_sdp_media_formats_len(media); ++f) {
      if (number(gst_sdp_media_get_format(media, f), 127) == payload) return *payload;
    }
  }
  return -1;
}

// The direction; RFC 8866: sendrecv if nothing is said.
std::string direction(const Section& section) {
  for (const char* one : {"sendrecv", "sendonly", "recvonly", "inactive"}) {
    if (section.has(one)) return one;
  }
  for (const char* one : {"sendrecv", "sendonly", "recvonly", "inactive"}) {
    if (gst_sdp_message_get_attribute_val(section.sdp, one)) return one;
  }
  return "sendrecv";
}

// The section whose sound the call hears.
Result<void> read_audio(const Section& section, Offer* offer) {
  if (!section.protocol_is({"UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/SAVPF", "TCP/DTLS/RTP/SAVPF"})) {
    return bad("has the protocol " + shown(gst_sdp_media_get_proto(section.media)) + " in " +
               section.name + "; it must be UDP/TLS/RTP/SAVPF (encrypted with DTLS-SRTP)");
  }
  const std::string way = direction(section);
  if (way == "recvonly" || way == "inactive") {
    return bad("has a=" + way + " in " + section.name +
               ": nobody would be heard; offer the microphone's track (a=sendrecv)");
  }
  offer->opus_payload = opus_payload(section.media);
  if (offer->opus_payload < 0) {
    return bad("has no Opus (a=rtpmap:N opus/48000/2, N in the m= line) in " + section.name +
               "; offer Opus");
  }
  if (!section.has("rtcp-mux"))
    return bad("has no a=rtcp-mux in " + section.name + "; RTCP has no port of its own in WebRTC");
  offer->audio_mid = gst_sdp_media_get_attribute_val(section.media, "mid");
  return {};
}

bool is_data_channel(const Section& section) {
  if (!equal(gst_sdp_media_get_media(section.media), "application")) return false;
  return section.protocol_is({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP"}) &&
         equal(gst_sdp_media_get_format(section.media, 0), "webrtc-datachannel");
}

Result<void> read_data_channel(const Section& section, Offer* offer) {
  if (offer->data_channel)
    return bad("has two sections of data channels; offer one, it carries any number of channels");
  const char* port = gst_sdp_media_get_attribute_val(section.media, "sctp-port");
  if (!port || number(port, 65535).value_or(0) == 0)
    return bad("has no a=sctp-port of 1 to 65535 in " + section.name);
  offer->data_channel = true;
  return {};
}

Result<void> check_mid(const Section& section, std::set<std::string>* mids) {
  const char* mid = gst_sdp_media_get_attribute_val(section.media, "mid");
  const std::string_view value = mid ? mid : "";
  const bool token =
      !value.empty() && value.size() <= kMaxMid &&
      std::all_of(value.begin(), value.end(), [](char c) { return g_ascii_isgraph(c); });
  if (!token || !mids->emplace(value).second) {
    return bad("has " + (mid ? "a=mid:" + shown(value) : std::string("no a=mid")) + " in " +
               section.name + "; each section needs a short one of its own");
  }
  return {};
}

Result<Offer> read_sections(const GstSDPMessage* sdp) {
  Offer offer;
  std::set<std::string> mids;
  for (guint i = 0; i < gst_sdp_message_medias_len(sdp); ++i) {
    const GstSDPMedia* media = gst_sdp_message_get_media(sdp, i);
    const Section section{sdp, media, "section " + std::to_string(i + 1)};
    const bool bundle_only = section.has("bundle-only");
    if (gst_sdp_media_get_port(media) == 0 && !bundle_only) continue;  // refused by the offer
    RETURN_IF_ERROR(check_mid(section, &mids));
    const bool audio = equal(gst_sdp_media_get_media(media), "audio");
    const bool data = is_data_channel(section);
    if (!audio && !data) continue;
    // What is sent with another section's transport (RFC 9143) need not describe one.
    if (!bundle_only || offer.fingerprints.empty()) {
      ASSIGN_OR_RETURN(std::vector<std::string> fingerprints, check_transport(section));
      if (offer.fingerprints.empty()) offer.fingerprints = std::move(fingerprints);
    }
    if (data) RETURN_IF_ERROR(read_data_channel(section, &offer));
    if (audio && ++offer.audio_sections == 1) RETURN_IF_ERROR(read_audio(section, &offer));
  }
  if (offer.audio_sections == 0)
    return bad("has no audio; add the microphone's track before the offer is made");
  return offer;
}

}  // namespace

Result<Offer> check_offer(std::string_view sdp) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, read_lines(sdp));
  ASSIGN_OR_RETURN(const size_t sections, check_lines(lines));
  const Message message;
  const auto* bytes = reinterpret_cast<const guint8*>(sdp.data());
  const GstSDPResult result =
      gst_sdp_message_parse_buffer(bytes, static_cast<guint>(sdp.size()), message.sdp);
  if (result != GST_SDP_OK || gst_sdp_message_medias_len(message.sdp) != sections)
    return bad("is no SDP that GStreamer can read; send a WebRTC offer");
  return read_sections(message.sdp);
}

}  // namespace minicpmo::call_server
