// What the tests of bad input share: a guard on time, the sounds, and checks of what a user is
// told.
#pragma once

#include <string>
#include <vector>

#include "elements/chain/stream_log.h"
#include "support/sample_file.h"

namespace minicpmo::testing {

constexpr const char* kAudioCaps =
    "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
constexpr const char* kCodesCaps =
    "tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,4>,dims-order=row-major";
constexpr const char* kCapital = "The capital of Norway is Oslo.";

// The whole program ends with an error when one test takes far longer than it should. Called
// once.
void watch_time();
// Holds the small checkpoint from the first test to the last, so that pipelines start at once.
void keep_model_loaded();

std::string element(const char* factory, const std::string& model = MODEL_DIR);
std::string source_of(const TemporaryFile& file, const char* caps);
// The four elements, answer to fakesink.
std::string whole_chain();

std::vector<float> question_samples(const char* name = "q01_cap.wav");
// "what is the capital of Norway", as raw PCM.
const std::string& good_question();

// Runs to the end, listens on after an error, and prints what the user was told.
bool play(PipelineRun& run, const std::string& what);
// One error, however many elements say it, and it names all of `says`.
void expect_one_error(const PipelineRun& run, const std::vector<std::string>& says);

}  // namespace minicpmo::testing
