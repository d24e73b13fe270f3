#include "certificate.h"

#include <gtest/gtest.h>

namespace minicpmo::call_server {
namespace {

// Made by openssl req, as are the fingerprints by openssl x509.
const std::string kPem = R"(-----BEGIN CERTIFICATE-----
MIIBeDCCAR2gAwIBAgIUJXBjywPv8CUjWp+cg26suFmp4dIwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGY2FsbGVyMB4XDTI2MTEyNDAwMjA0MloXDTM2MTEyMTAwMjA0
MlowETEPMA0GA1UEAwwGY2FsbGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
UR/gU2+uy9rqTBIA1mzvbTErD5ueUpz4EFhJUrx2+WZvbqAHib7fRqaFux+8Bctl
h6P6qMVCNrC3q70MY2mkXaNTMFEwHQYDVR0OBBYEFHxGAlMAaDKaZtf0YgOz+BKV
qIPcMB8GA1UdIwQYMBaAFHxGAlMAaDKaZtf0YgOz+BKVqIPcMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAOay5eJQPZYEH05RX8/lRp7WkHCiICLh
qHBURp7sjSaiAiEA2KCIuZFvikf0Tq+rAzstwIuht6mMyc9FzrHrfoXeKGo=
-----END CERTIFICATE-----
)";
const std::string kSha1 = "sha-1 1C:CA:A0:FB:6A:58:96:97:56:10:DF:35:9B:94:F0:29:30:7C:78:C3";
const std::string kSha256 =
    "sha-256 "
    "9F:4F:D2:C0:72:63:B9:DF:D4:D2:0B:25:27:3B:0C:CA:4A:B9:D6:DA:D4:8C:DA:D8:16:B9:77:24:A9:39:"
    "E2:84";
const std::string kSha384 =
    "sha-384 "
    "97:80:BC:68:86:97:02:CC:E1:FD:16:CC:F7:98:BE:EB:F6:13:0F:D1:0D:BB:43:4D:7B:92:09:8F:71:8D:"
    "A1:F1:E7:A7:CF:2F:F1:58:89:61:3B:68:C7:23:55:C1:95:66";
const std::string kSha512 =
    "sha-512 "
    "D4:DE:DC:90:2B:80:CF:B7:19:29:1E:C5:BA:57:EE:E8:A6:D2:ED:87:28:DB:28:3C:09:9E:DC:8F:F2:3C:"
    "17:B7:F1:23:2E:01:76:D3:F6:7D:1B:22:6D:60:E6:EE:FA:03:3F:41:32:63:AA:45:9B:84:8B:BD:23:BC:"
    "C2:7E:1C:27";

std::string other(std::string fingerprint) {
  fingerprint.back() = fingerprint.back() == '0' ? '1' : '0';
  return fingerprint;
}

std::string lower(std::string fingerprint) {
  for (char& c : fingerprint)
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
  return fingerprint;
}

TEST(Certificate, EachStrongHash) {
  for (const std::string& fingerprint : {kSha256, kSha384, kSha512}) {
    EXPECT_TRUE(certificate_matches(kPem, {fingerprint})) << fingerprint;
    EXPECT_TRUE(certificate_matches(kPem, {lower(fingerprint)})) << fingerprint;
    EXPECT_FALSE(certificate_matches(kPem, {other(fingerprint)})) << fingerprint;
  }
  EXPECT_TRUE(certificate_matches(kPem, {"SHA" + kSha256.substr(3)}));
}

TEST(Certificate, AWeakHashSaysNothing) {
  EXPECT_FALSE(certificate_matches(kPem, {kSha1}));
  EXPECT_TRUE(certificate_matches(kPem, {other(kSha1), kSha256}));
}

TEST(Certificate, AnyOfTheStrongestHash) {
  EXPECT_TRUE(certificate_matches(kPem, {other(kSha256), kSha256}));
  EXPECT_TRUE(certificate_matches(kPem, {kSha256, other(kSha256)}));
  EXPECT_FALSE(certificate_matches(kPem, {kSha256, other(kSha512)}));
  EXPECT_FALSE(certificate_matches(kPem, {other(kSha512), kSha256}));
  EXPECT_TRUE(certificate_matches(kPem, {other(kSha256), kSha512}));
  EXPECT_TRUE(certificate_matches(kPem, {kSha512, other(kSha256)}));
}

TEST(Certificate, NothingToCompare) {
  EXPECT_FALSE(certificate_matches(kPem, {}));
  EXPECT_FALSE(certificate_matches("", {kSha256}));
  EXPECT_FALSE(certificate_matches("-----BEGIN CERTIFICATE-----", {kSha256}));
  EXPECT_FALSE(certificate_matches(kPem, {"", "sha-256", "sha-256 ", kSha256.substr(8)}));
}

}  // namespace
}  // namespace minicpmo::call_server
