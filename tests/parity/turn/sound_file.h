// Sound files of the repository, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace minicpmo {

// 16-bit mono PCM with a plain 44-byte header, as those of tools/tiny/samples; in [-1, 1). Throws.
inline std::vector<float> read_wav(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (bytes.size() < 44 || bytes.compare(36, 4, "data") != 0)
    throw std::runtime_error(path + " is no plain WAV file");
  std::vector<float> pcm((bytes.size() - 44) / 2);
  for (size_t i = 0; i < pcm.size(); ++i) {
    int16_t sample;
    std::memcpy(&sample, &bytes[44 + 2 * i], sizeof sample);
    pcm[i] = static_cast<float>(sample) / 32768;
  }
  return pcm;
}

}  // namespace minicpmo
