// The certificate of a DTLS handshake against what the offer said of it.
#pragma once

#include <string>
#include <vector>

namespace minicpmo::call_server {

// RFC 8122: whether a certificate (PEM) has one of the fingerprints ("sha-256 AB:..."). Of several
// hashes the longest decides; others than SHA-256, SHA-384 and SHA-512 never match.
bool certificate_matches(const std::string& pem, const std::vector<std::string>& fingerprints);

}  // namespace minicpmo::call_server
