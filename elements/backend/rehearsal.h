// What a session does in a turn, done once before the first one: CUDA loads a kernel and a library
// sets itself up at their first use, and the first launch of a graph takes longer. Without it the
// first turn of a process took 40 to 120 ms more (PERF.md). Nothing of it stays in the session.
#pragma once

#include "common/stage.h"

namespace minicpmo {

Result<void> rehearse(AudioEncoder& encoder, const EngineInfo& info);
// In a context too short for a turn it does nothing.
Result<void> rehearse(LanguageModel& model, const EngineInfo& info);
Result<void> rehearse(SpeechModel& model, const EngineInfo& info);
Result<void> rehearse(Vocoder& vocoder);

}  // namespace minicpmo
