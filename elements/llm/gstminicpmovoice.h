// The reference voice of minicpmollm: a sound file, decoded by GStreamer and encoded by the
// checkpoint's audio encoder.
#pragma once

#include <memory>
#include <string>

#include "common/stage.h"
#include "llm/gstminicpmollmsettings.h"

namespace minicpmo {

// Embeddings of the file at `path` (any format GStreamer has a decoder for), as far as the audio
// encoder reads in one piece (EngineInfo::max_chunk_samples: 30 s of the published model). Blocks:
// for the loader thread. Errors: kNotFound, kOpenRead, kFormat (no sound in it, or none long enough
// to hear), kLibrary (a decoder is missing), those of the audio encoder, kCancelled.
Result<TensorPtr> encode_voice(Engine& engine, const std::string& path, const CancelFlag& cancel);

// The voice that the property names becomes part of the options, if it is not yet. Errors: as
// above.
Result<void> adopt_voice(LlmSettings& settings, Engine& engine, const CancelFlag& cancel);

}  // namespace minicpmo
