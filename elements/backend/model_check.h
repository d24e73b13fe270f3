// Whether the files of a model directory belong together.
#pragma once

#include "common/result.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/tokenizer.h"

namespace minicpmo {

// config.json against the shapes in the headers of the weights. Tensors that are missing altogether
// are left to the stage that needs them. kCorrupt names the file, the tensor and both sizes.
Result<void> check_shapes(const Checkpoint& checkpoint, const ModelConfig& config);

// tokenizer.json of the language model: no id beyond the vocabulary, the tokens of the dialogue.
Result<void> check_language_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config,
                                      const std::string& file);

// tokenizer.json of the speech model: no id beyond its text tokens, and the ids that config.json
// states.
Result<void> check_speech_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config,
                                    const std::string& file);

}  // namespace minicpmo
