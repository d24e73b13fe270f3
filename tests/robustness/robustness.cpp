#include "robustness/robustness.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <set>

#include "audioenc/gstminicpmoaudioenc.h"
#include "bin/gstminicpmobin.h"
#include "llm/gstminicpmollm.h"
#include "support/gst_test_main.h"
#include "tts/gstminicpmotts.h"
#include "turn/gstminicpmoturn.h"
#include "vocoder/gstminicpmovocoder.h"

namespace minicpmo::testing {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr unsigned kMaxSeconds = 240;
#else
constexpr unsigned kMaxSeconds = 120;  // 20 at most on a machine that does nothing else
#endif

void too_late(int) {
  constexpr char kText[] = "\nthe test above has taken too long: it hangs\n";
  if (write(STDERR_FILENO, kText, sizeof kText - 1) < 0) _exit(3);
  std::abort();
}

class Watch : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo&) override { alarm(kMaxSeconds); }
  void OnTestEnd(const ::testing::TestInfo&) override { alarm(0); }
};

class LoadedModel : public ::testing::Environment {
 public:
  void SetUp() override {
    bin_.reset(gst_element_factory_make("minicpmobin", nullptr));
    gst_object_ref_sink(bin_.get());
    g_object_set(bin_.get(), "model", MODEL_DIR, "device", "cpu", "precision", 1, "async-load",
                 FALSE, nullptr);
    ASSERT_EQ(gst_element_set_state(bin_.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  }
  void TearDown() override {
    if (bin_) gst_element_set_state(bin_.get(), GST_STATE_NULL);
    bin_.reset();
  }

 private:
  ElementPtr bin_;
};

}  // namespace

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
  GST_ELEMENT_REGISTER(minicpmollm, nullptr);
  GST_ELEMENT_REGISTER(minicpmotts, nullptr);
  GST_ELEMENT_REGISTER(minicpmovocoder, nullptr);
  GST_ELEMENT_REGISTER(minicpmobin, nullptr);
  GST_ELEMENT_REGISTER(minicpmoturn, nullptr);
  watch_time();
}

void watch_time() {
  std::signal(SIGALRM, too_late);
  ::testing::UnitTest::GetInstance()->listeners().Append(new Watch);
}

void keep_model_loaded() {
  // MKL keeps work memory for each thread, now more and now less: without it, what malloc has given
  // out is what we use.
  g_setenv("MKL_DISABLE_FAST_MM", "1", TRUE);
  ::testing::AddGlobalTestEnvironment(new LoadedModel);
}

std::string element(const char* factory, const std::string& model) {
  return std::string(factory) + " device=cpu precision=float32 model=" + model;
}

std::string source_of(const TemporaryFile& file, const char* caps) {
  return "filesrc location=" + file.path() + " ! " + caps + " ! ";
}

std::string whole_chain() {
  return element("minicpmoaudioenc") + " name=audioenc ! queue ! " + element("minicpmollm") +
         " name=llm ! queue ! " + element("minicpmotts") + " name=tts ! queue ! " +
         element("minicpmovocoder") + " name=vocoder ! fakesink name=sink async=false";
}

std::vector<float> question_samples(const char* name) {
  return wav_samples(std::string(SAMPLES "/") + name);
}

const std::string& good_question() {
  static const std::string bytes = bytes_of(question_samples());
  return bytes;
}

bool play(PipelineRun& run, const std::string& what) {
  const bool ok = run.run();
  if (!ok) run.listen(std::chrono::milliseconds(40));
  // What every thread that pushes says when those behind it have failed: only where nobody said
  // more, it counts, and once.
  constexpr const char* kGeneric = "Internal data stream error.";
  if (std::erase(run.errors, kGeneric) > 0 && run.errors.empty()) run.errors = {kGeneric};
  for (const std::string& text : std::set(run.errors.begin(), run.errors.end()))
    printf("| %s | error | %s |\n", what.c_str(), text.c_str());
  for (const std::string& text : run.warnings)
    printf("| %s | warning | %s |\n", what.c_str(), text.c_str());
  if (ok && run.answers.size() == 1)
    printf("| %s | answer | %.100s |\n", what.c_str(), run.answers[0].c_str());
  return ok;
}

void expect_one_error(const PipelineRun& run, const std::vector<std::string>& says) {
  ASSERT_FALSE(run.errors.empty());
  // Each element that needs what is broken says so once, in the same words.
  EXPECT_EQ(std::set(run.errors.begin(), run.errors.end()).size(), 1u) << run.errors.back();
  EXPECT_LE(run.errors.size(), 4u);
  // Where only an element before it failed, the language model sees a stream without a question.
  for (const std::string& warning : run.warnings)
    EXPECT_EQ(warning, "There is nothing to answer: the input ended without a question.");
  for (const std::string& word : says)
    EXPECT_NE(run.errors[0].find(word), std::string::npos) << word << " in: " << run.errors[0];
}

}  // namespace minicpmo::testing
