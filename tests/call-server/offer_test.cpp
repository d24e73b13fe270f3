// What check_offer makes of offers of real clients, and of such with one thing broken.
#include "offer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace {

using minicpmo::ErrorCode;
using minicpmo::call_server::check_offer;
using minicpmo::call_server::kMaxOfferBytes;

std::string offer_of(const std::string& client) {
  std::ifstream file(OFFERS "/" + client + ".sdp", std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << client;
  return text.str();
}

// All places of `from` become `to`; there must be one.
std::string with(std::string text, const std::string& from, const std::string& to) {
  size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  for (; at != text.npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
  return text;
}

void expect_refused(const std::string& sdp, const std::string& why) {
  const auto offer = check_offer(sdp);
  ASSERT_FALSE(offer.ok()) << "expected: " << why;
  EXPECT_EQ(offer.error().code, ErrorCode::kFormat);
  EXPECT_NE(offer.error().message.find(why), std::string::npos) << offer.error().message;
  EXPECT_LT(offer.error().message.size(), 400u);
}

struct Client {
  const char *name, *mid;
  int payload;
  size_t fingerprints;
};

class Clients : public testing::TestWithParam<Client> {};

TEST_P(Clients, OfferIsUnderstood) {
  for (const bool carriage_returns : {true, false}) {
    std::string sdp = offer_of(GetParam().name);
    if (!carriage_returns) sdp = with(sdp, "\r\n", "\n");
    const auto offer = check_offer(sdp);
    ASSERT_TRUE(offer.ok()) << offer.error().message;
    EXPECT_TRUE(offer->data_channel);
    EXPECT_EQ(offer->audio_sections, 1);
    EXPECT_EQ(offer->opus_payload, GetParam().payload);
    EXPECT_EQ(offer->audio_mid, GetParam().mid);
    ASSERT_EQ(offer->fingerprints.size(), GetParam().fingerprints);
    EXPECT_EQ(offer->fingerprints[0].substr(0, 8), "sha-256 ");
  }
}

INSTANTIATE_TEST_SUITE_P(Offer, Clients,
                         testing::Values(Client{"chromium", "0", 111, 1},
                                         Client{"chromium_video", "0", 111, 1},
                                         Client{"aiortc", "0", 96, 3},
                                         Client{"webrtcbin", "audio0", 96, 1},
                                         Client{"session_level", "0", 109, 1}),
                         [](const auto& info) { return info.param.name; });

struct Change {
  const char *from, *to, *why;
};

// Changes to Chromium's offer that make it one that is refused.
const Change kRefused[] = {
    {"v=0", "v=1", "must begin with v=0"},
    {"v=0\r\n", "", "must begin with v=0"},
    {"o=- ", "o=", "six fields"},
    {"s=-\r\n", "", "and s="},
    {"t=0 0\r\n", "", "no t= line"},
    {"t=0 0", "t 0 0", "line 4, \"t 0 0\""},
    {"t=0 0", "T=0 0", "line 4"},
    {"a=mid:0", "a=mid:\x01", "is no SDP: line"},
    {"a=mid:0", "a=mid:\xff", "no UTF-8"},
    {"\r\nm=audio", "\r\n\r\nm=audio", "is no SDP: line"},
    {"m=audio 9 ", "m=audio ", "not m=MEDIA"},
    {"m=audio 9 ", "m=audio x ", "not m=MEDIA"},
    {"m=audio 9 ", "m=audio 65536 ", "not m=MEDIA"},
    {"m=audio 9 ", "m=audio -1 ", "not m=MEDIA"},
    {"m=audio 9 ", "m= 9 ", "not m=MEDIA"},
    {"m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126", "m=audio 9 UDP/TLS/RTP/SAVPF",
     "not m=MEDIA"},
    {"m=audio 9 ", "m=audio 0 ", "no audio"},
    {"m=audio 9 ", "m=video 9 ", "no audio"},
    {"UDP/TLS/RTP/SAVPF", "RTP/SAVPF", "must be UDP/TLS/RTP/SAVPF"},
    {"UDP/TLS/RTP/SAVPF", "RTP/AVP", "must be UDP/TLS/RTP/SAVPF"},
    {"a=sendrecv", "a=recvonly", "a=recvonly in section 1"},
    {"a=sendrecv", "a=inactive", "a=inactive in section 1"},
    {"opus/48000/2", "opus/48000", "no Opus"},
    {"opus/48000/2", "opus/48000/1", "no Opus"},
    {"opus/48000/2", "opus/16000/2", "no Opus"},
    {"opus/48000/2", "vorbis/48000/2", "no Opus"},
    {"rtpmap:111 ", "rtpmap:112 ", "no Opus"},  // not in the m= line
    {"a=rtcp-mux\r\n", "", "no a=rtcp-mux"},
    {"a=mid:0\r\n", "", "no a=mid in section 1"},
    {"a=mid:1\r\n", "a=mid:0\r\n", "a=mid:\"0\" in section 2"},
    {"a=mid:0", "a=mid:a b", "a=mid:\"a b\""},
    {"a=ice-ufrag:y4yi\r\n", "", "no a=ice-ufrag"},
    {"a=ice-ufrag:y4yi", "a=ice-ufrag:y4y", "no a=ice-ufrag"},
    {"a=ice-ufrag:y4yi", "a=ice-ufrag:y4 i", "no a=ice-ufrag"},
    {"a=ice-pwd:bJ1t9yv3rDlDAcpxKPACf3Ti\r\n", "", "no a=ice-pwd"},
    {"a=ice-pwd:bJ1t9yv3rDlDAcpxKPACf3Ti", "a=ice-pwd:bJ1t9yv3rDlDAcpxKPACf", "no a=ice-pwd"},
    {"a=setup:actpass\r\n", "", "no a=setup"},
    {"a=setup:actpass", "a=setup:holdconn", "a=setup:\"holdconn\""},
    {"a=fingerprint:sha-256 ", "a=fingerprint:sha-1 ", "no a=fingerprint of SHA-256"},
    {"a=fingerprint:sha-256 ", "a=fingerprint:md5 ", "no a=fingerprint of SHA-256"},
    {"a=fingerprint:sha-256 ", "a=fingerprint:sha-512 ", "broken a=fingerprint"},
    {"a=fingerprint:sha-256 ", "a=fingerprint:", "broken a=fingerprint"},
    {"a=fingerprint:sha-256 57:", "a=fingerprint:sha-256 5G:", "broken a=fingerprint"},
    {"a=fingerprint:sha-256 57:", "a=fingerprint:sha-256 ", "broken a=fingerprint"},
    {"a=fingerprint:sha-256 57:", "a=fingerprint:sha-256 57", "broken a=fingerprint"},
    {"a=rtcp-mux\r\n", "a=rtcp-mux\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n",
     "SDES keys"},
    {"t=0 0\r\n", "t=0 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n", "SDES keys"},
    {"a=sctp-port:5000\r\n", "", "no a=sctp-port"},
    {"a=sctp-port:5000", "a=sctp-port:0", "no a=sctp-port"},
    {"a=sctp-port:5000", "a=sctp-port:65536", "no a=sctp-port"},
};

TEST(Offer, WithOneThingBrokenIsRefused) {
  const std::string sdp = offer_of("chromium");
  for (const Change& change : kRefused) {
    SCOPED_TRACE(std::string(change.from) + " -> " + change.to);
    expect_refused(with(sdp, change.from, change.to), change.why);
  }
}

TEST(Offer, WithoutWhatIsNotNeededIsAccepted) {
  const std::string sdp = offer_of("chromium");
  const Change accepted[] = {
      {"opus/48000/2", "OPUS/48000/2", ""},
      {"UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/SAVPF", ""},
      {"UDP/TLS/RTP/SAVPF", "TCP/DTLS/RTP/SAVPF", ""},
      {"a=sendrecv", "a=sendonly", ""},
      {"a=sendrecv\r\n", "", ""},
      {"a=setup:actpass", "a=setup:active", ""},
      {"a=setup:actpass", "a=setup:passive", ""},
      {"a=fingerprint:sha-256", "a=fingerprint:SHA-256", ""},
      {"a=fingerprint:sha-256", "a=fingerprint:sha-1 00:11\r\na=fingerprint:sha-256", ""},
      {"57:F4:5C", "57:f4:5c", ""},
  };
  for (const Change& change : accepted) {
    SCOPED_TRACE(std::string(change.from) + " -> " + change.to);
    const auto offer = check_offer(with(sdp, change.from, change.to));
    EXPECT_TRUE(offer.ok()) << offer.error().message;
  }
}

TEST(Offer, DirectionOfTheSessionCounts) {
  const std::string sdp = with(offer_of("chromium"), "a=sendrecv\r\n", "");
  expect_refused(with(sdp, "t=0 0\r\n", "t=0 0\r\na=recvonly\r\n"), "a=recvonly");
}

TEST(Offer, TransportOfTheSessionCounts) {
  std::string sdp = offer_of("chromium");
  std::string session;
  for (const char* name : {"a=ice-ufrag:", "a=ice-pwd:", "a=setup:", "a=fingerprint:"}) {
    const size_t at = sdp.find(name);
    const std::string line = sdp.substr(at, sdp.find('\n', at) + 1 - at);
    sdp = with(sdp, line, "");
    session += line;
  }
  expect_refused(sdp, "no a=ice-ufrag");
  const auto offer = check_offer(with(sdp, "t=0 0\r\n", "t=0 0\r\n" + session));
  EXPECT_TRUE(offer.ok()) << offer.error().message;
}

TEST(Offer, NoDataChannelIsNoError) {
  const std::string sdp = offer_of("chromium");
  const auto none = check_offer(sdp.substr(0, sdp.find("m=application")));
  ASSERT_TRUE(none.ok()) << none.error().message;
  EXPECT_FALSE(none->data_channel);
  const auto refused = check_offer(with(sdp, "m=application 9 ", "m=application 0 "));
  ASSERT_TRUE(refused.ok()) << refused.error().message;
  EXPECT_FALSE(refused->data_channel);
}

TEST(Offer, DataChannelAloneIsRefused) {
  const std::string sdp = offer_of("chromium");
  const size_t audio = sdp.find("m=audio"), data = sdp.find("m=application");
  expect_refused(sdp.substr(0, audio) + sdp.substr(data), "no audio");
  expect_refused(sdp.substr(0, audio), "no audio");
}

TEST(Offer, SecondDataChannelIsRefused) {
  const std::string sdp = offer_of("chromium");
  const std::string second = sdp.substr(sdp.find("m=application"));
  expect_refused(sdp + with(second, "a=mid:1", "a=mid:2"), "two sections of data channels");
}

TEST(Offer, MoreAudioIsCounted) {
  const std::string sdp = offer_of("chromium");
  const size_t audio = sdp.find("m=audio"), data = sdp.find("m=application");
  const auto offer = check_offer(sdp + with(sdp.substr(audio, data - audio), "a=mid:0", "a=mid:2"));
  ASSERT_TRUE(offer.ok()) << offer.error().message;
  EXPECT_EQ(offer->audio_sections, 2);
  EXPECT_EQ(offer->audio_mid, "0");
}

TEST(Offer, TooMuchIsRefused) {
  const std::string sdp = offer_of("chromium");
  const auto longer = [&sdp](const std::string& line, size_t times) {
    std::string text = sdp;
    for (size_t i = 0; i < times; ++i) text += line;
    return text;
  };
  expect_refused(std::string(kMaxOfferBytes + 1, 'a'), "at most 65536");
  expect_refused(std::string(1 << 20, 'a'), "at most 65536");
  expect_refused(longer("a=x\r\n", 1000), "at most 1000 are read");
  expect_refused(longer("a=" + std::string(2047, 'x') + "\r\n", 1), "is no SDP: line");
  EXPECT_TRUE(check_offer(longer("a=" + std::string(2046, 'x') + "\r\n", 1)).ok());
  const std::string video = "m=video 0 UDP/TLS/RTP/SAVPF 96\r\n";
  EXPECT_TRUE(check_offer(longer(video, 14)).ok());
  expect_refused(longer(video, 15), "17 sections");
  const std::string candidate = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n";
  EXPECT_TRUE(check_offer(longer(candidate, 196)).ok());  // and Chromium's four
  expect_refused(longer(candidate, 197), "201 candidates");
}

TEST(Offer, WhatIsNoSdpIsRefused) {
  expect_refused("", "is empty");
  expect_refused("\r\n\r\n", "is empty");
  expect_refused("{\"sdp\": \"v=0\"}", "is no SDP");
  expect_refused("v=0", "is no SDP");
  expect_refused("<html></html>", "is no SDP");
  std::string zero = offer_of("chromium");
  zero[zero.size() / 2] = '\0';
  expect_refused(zero, "is no UTF-8");
}

// Whatever is missing, there is an answer; what is accepted has all that a call needs.
TEST(Offer, EveryLineLeftOut) {
  const std::string sdp = offer_of("aiortc");
  int refused = 0;
  for (size_t begin = 0, end; begin < sdp.size(); begin = end) {
    end = sdp.find('\n', begin) + 1;
    const auto offer = check_offer(sdp.substr(0, begin) + sdp.substr(end));
    if (offer.ok()) {
      EXPECT_EQ(offer->opus_payload, 96);
      EXPECT_GE(offer->fingerprints.size(), 1u);
    } else {
      EXPECT_FALSE(offer.error().message.empty());
      ++refused;
    }
  }
  EXPECT_GE(refused, 12);
}

TEST(Offer, CutShort) {
  const std::string sdp = offer_of("chromium_video");
  for (size_t length = 0; length < sdp.size(); ++length) {
    const auto offer = check_offer(std::string_view(sdp).substr(0, length));
    if (offer.ok()) {
      EXPECT_EQ(offer->opus_payload, 111);
      EXPECT_GT(length, sdp.find("rtpmap:111 opus/48000/2"));
    }
  }
}

}  // namespace
