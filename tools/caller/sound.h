// Sounds the caller says, and where in them the voice is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace minicpmo::caller {

struct Sound {
  std::string file;
  std::vector<int16_t> samples;  // mono
  // In samples: first and one past the last 10 ms in which somebody speaks. voice_begin ==
  // voice_end
  // == 0: nobody does.
  size_t voice_begin = 0, voice_end = 0;
};

// Any file that GStreamer decodes, resampled to `rate`. False, with what is wrong in `problem`.
bool load_sound(const std::string& file, int rate, Sound* sound, std::string* problem);

// Voice is what is louder than -45 dBFS and than 30 dB below the loudest 10 ms.
void find_voice(int rate, Sound* sound);

}  // namespace minicpmo::caller
