// The sessions of the fake backend. See fake_backend.h for what they do.
#pragma once

#include <memory>

#include "support/fake_backend.h"

namespace minicpmo::testing {

std::unique_ptr<AudioEncoder> new_fake_audio_encoder(FakeBackend& owner, const EngineInfo& info);
std::unique_ptr<LanguageModel> new_fake_language_model(FakeBackend& owner, const EngineInfo& info);
std::unique_ptr<SpeechModel> new_fake_speech_model(FakeBackend& owner);
std::unique_ptr<Vocoder> new_fake_vocoder(FakeBackend& owner);
std::unique_ptr<VoiceActivity> new_fake_voice_activity(FakeBackend& owner);

// Sleeps; false if `cancel` was set before the end.
bool sleep_unless_cancelled(std::chrono::milliseconds time, const CancelFlag& cancel);

}  // namespace minicpmo::testing
