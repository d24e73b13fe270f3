// Random weights of an audio encoder.
#pragma once

#include <string>

#include "engine/config.h"
#include "weights_file.h"

namespace minicpmo {

// projected: columns between the two products of the projector.
inline WeightsFile encoder_weights(const ModelConfig& config, int64_t projected = 16) {
  const AudioConfig& a = config.audio;
  WeightsFile w;
  w.add_linear("apm.conv1", {a.hidden_size, a.mel_bins, 3});
  w.add_linear("apm.conv2", {a.hidden_size, a.hidden_size, 3});
  w.add("apm.embed_positions.weight", {a.max_positions, a.hidden_size}, 1);
  w.add_norm("apm.layer_norm", a.hidden_size);
  for (int64_t i = 0; i < a.layers; ++i) {
    const std::string layer = "apm.layers." + std::to_string(i) + ".";
    w.add_norm(layer + "self_attn_layer_norm", a.hidden_size);
    w.add_norm(layer + "final_layer_norm", a.hidden_size);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      w.add_linear(layer + "self_attn." + name, {a.hidden_size, a.hidden_size},
                   std::string(name) != "k_proj");
    }
    w.add_linear(layer + "fc1", {a.intermediate_size, a.hidden_size});
    w.add_linear(layer + "fc2", {a.hidden_size, a.intermediate_size});
  }
  w.add_linear("audio_projection_layer.linear1", {projected, a.hidden_size});
  w.add_linear("audio_projection_layer.linear2", {config.language.hidden_size, projected});
  return w;
}

}  // namespace minicpmo
