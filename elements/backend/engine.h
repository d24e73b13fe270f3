// The Engine of this backend: the weights of one model directory, loaded stage by stage, shared by
// all sessions.
#pragma once

#include <memory>

#include "common/result.h"
#include "common/stage.h"

namespace minicpmo {

// Backend::open_engine. Keeps no reference: an engine and its weights live as long as somebody
// holds the engine (the weights of a stage also as long as one of its sessions). Errors: kSettings
// and kNotFound for the options; kNotFound, kOpenRead, kCorrupt for the model's files.
Result<std::shared_ptr<Engine>> open_engine(const EngineOptions& options);

}  // namespace minicpmo
