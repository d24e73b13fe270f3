// Voice activity: silero's network for 16 kHz, from the safetensors file that it is published as.
//
// For each window of 512 samples: the 64 samples before it, the window, and 64 samples mirrored at
// its end; magnitudes of 4 short-time Fourier transforms (256 samples, 128 apart); four
// convolutions over time with ReLU, which leave one frame of 128; an LSTM cell, whose state goes on
// from window to window; ReLU, one linear unit, sigmoid. float32 on a CPU.
// Source: silero-vad 6.2.3 on PyPI (MIT), silero_vad_16k.safetensors.
#pragma once

#include <memory>
#include <string>

#include "common/result.h"
#include "common/stage.h"

namespace minicpmo {

// Backend::new_voice_activity. Errors: kNotFound, kOpenRead, kCorrupt, each naming the file, and
// the tensor if one is at fault.
Result<std::unique_ptr<VoiceActivity>> new_voice_activity(const std::string& path);

}  // namespace minicpmo
