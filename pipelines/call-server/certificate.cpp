#include "certificate.h"

#include <glib.h>

#include <optional>

namespace minicpmo::call_server {
namespace {

// The certificate itself, DER; empty if it is none.
std::string der_of(const std::string& pem) {
  static const std::string begin = "-----BEGIN CERTIFICATE-----";
  const size_t start = pem.find(begin), end = pem.find("-----END CERTIFICATE-----");
  if (start == pem.npos || end == pem.npos || end < start) return "";
  const std::string text = pem.substr(start + begin.size(), end - start - begin.size());
  gsize size = 0;
  guchar* const bytes = g_base64_decode(text.c_str(), &size);
  std::string der(reinterpret_cast<const char*>(bytes), size);
  g_free(bytes);
  return der;
}

std::optional<GChecksumType> hash_of(const std::string& name) {
  if (g_ascii_strcasecmp(name.c_str(), "sha-256") == 0) return G_CHECKSUM_SHA256;
  if (g_ascii_strcasecmp(name.c_str(), "sha-384") == 0) return G_CHECKSUM_SHA384;
  if (g_ascii_strcasecmp(name.c_str(), "sha-512") == 0) return G_CHECKSUM_SHA512;
  return std::nullopt;
}

// As an offer writes it: upper case, a colon after every two digits.
std::string fingerprint_of(const std::string& der, GChecksumType hash) {
  gchar* const digits =
      g_compute_checksum_for_data(hash, reinterpret_cast<const guchar*>(der.data()), der.size());
  std::string text;
  for (const gchar* c = digits; *c != '\0'; ++c) {
    if (c != digits && (c - digits) % 2 == 0) text += ':';
    text += g_ascii_toupper(*c);
  }
  g_free(digits);
  return text;
}

}  // namespace

bool certificate_matches(const std::string& pem, const std::vector<std::string>& fingerprints) {
  const std::string der = der_of(pem);
  if (der.empty()) return false;
  gssize strongest = 0;
  bool matches = false;
  for (const std::string& fingerprint : fingerprints) {
    const size_t space = fingerprint.find(' ');
    if (space == fingerprint.npos) continue;
    const auto hash = hash_of(fingerprint.substr(0, space));
    if (!hash) continue;
    const gssize length = g_checksum_type_get_length(*hash);
    if (length < strongest) continue;
    const std::string wanted = fingerprint.substr(space + 1);
    const bool equal = g_ascii_strcasecmp(wanted.c_str(), fingerprint_of(der, *hash).c_str()) == 0;
    matches = equal || (length == strongest && matches);
    strongest = length;
  }
  return matches;
}

}  // namespace minicpmo::call_server
