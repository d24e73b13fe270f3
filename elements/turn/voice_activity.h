// Voice activity: silero's network for 16 kHz, from the safetensors file that it is published as.
//
// For each window of 512 samples: the 64 samples before it, the window, and 64 samples mirrored at
// its end; magnitudes of 4 short-time Fourier transforms (256 samples, 128 apart); four
// convolutions over time with ReLU, which leave one frame of 128; an LSTM cell, whose state goes on
// from window to window; ReLU, one linear unit, sigmoid. float32 on a CPU.
// Source: silero-vad 6.2.3 on PyPI (MIT), silero_vad_16k.safetensors.
// A window that does not stand out of the background (background.h) has the probability 0.
#pragma once

#include <memory>
#include <string>

#include "common/result.h"
#include "common/stage.h"

namespace minicpmo {

// dB above the background, at most. Of 288 labelled sounds (tests/parity/turn) 14 with voices in
// the background have no end without it, none with it.
constexpr float kBackgroundMargin = 7;

// Errors: kNotFound, kOpenRead, kCorrupt, each naming the file, and the tensor if one is at fault.
// margin_db 0: what the network says.
Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path, float margin_db);
// Backend::new_voice_activity.
inline Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path) {
  return new_voice_activity(path, kBackgroundMargin);
}

}  // namespace minicpmo
