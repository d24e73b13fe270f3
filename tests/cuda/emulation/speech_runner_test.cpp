// The speech model's runner against ATen, with its kernels emulated on the CPU.
#include "speech_checks.h"

namespace minicpmo {
namespace {

using namespace speech_checks;

const Models& models() {
  static constexpr cuda::Library library = {cuda::Library::kVersion, nullptr,
                                            cuda::new_speech_runner, nullptr, nullptr};
  StageDevice device(at::kCPU, at::kBFloat16);
  device.runners = &library;
  device.graphs = false;
  static const Models models(device);
  return models;
}

class SpeechRunnerEmulated : public testing::Test {
 protected:
  StageScope scope_;
};

void expect_close(const Errors& errors) {
  EXPECT_LE(errors.runner, 0.05);
  EXPECT_LE(errors.runner, 2 * errors.coarse + 1e-3);
  testing::Test::RecordProperty("runner", std::to_string(errors.runner));
  testing::Test::RecordProperty("aten", std::to_string(errors.coarse));
}

TEST_F(SpeechRunnerEmulated, FirstSegment) {
  expect_close(first_segment(models(), 3));
}
TEST_F(SpeechRunnerEmulated, ContinuationSegment) {
  expect_close(continuation(models(), 3));
}
TEST_F(SpeechRunnerEmulated, LongText) {
  expect_close(long_text(models(), 2));
}
TEST_F(SpeechRunnerEmulated, CallsAreChains) {
  expect_chain(models().runner, {2, 1, 3}, 1);
}
TEST_F(SpeechRunnerEmulated, CodesAreDrawnAsTheHostDraws) {
  expect_host_draws(models().runner, 5);
}
TEST_F(SpeechRunnerEmulated, EndsInsideACall) {
  expect_end(models().runner, 1, 3);
}
TEST_F(SpeechRunnerEmulated, Cancel) {
  expect_cancelled(models().runner, 3);
}
TEST_F(SpeechRunnerEmulated, RefusesWhatDoesNotFit) {
  expect_refused(models().runner);
}
TEST_F(SpeechRunnerEmulated, StepsAheadOfTheText) {
  EXPECT_GT(expect_same_answers(models().runner, {.temperature = 1, .seed = 4, .max_codes = 27}, 9),
            0);
}

}  // namespace
}  // namespace minicpmo
