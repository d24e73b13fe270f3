// The elements on a GPU, as pipelines: right words, sound, threads, weights shared by pipelines, no
// memory left, stops and interruptions.
//
// Skipped without a GPU. MINICPMO_MODEL and MINICPMO_SAMPLES: the small checkpoint and its
// questions, by default in the checkout that this was built from; MINICPMO_FULL_MODEL: a full-size
// checkpoint for those tests that need large weights (skipped without); MINICPMO_DEVICE: cuda:0,
// another one, or cpu, which leaves out what is about memory. GST_TEST_PLUGINS: see
// support/gst_test_main.h.
#include <dlfcn.h>
#include <gst/app/gstappsrc.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "common/gstminicpmomodel.h"
#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "support/sample_file.h"

namespace minicpmo::testing {
namespace {

using std::chrono::milliseconds;

constexpr const char* kPcm = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";
constexpr size_t kMegabyte = size_t{1} << 20;
constexpr std::chrono::seconds kAnswerPatience{90};  // loading a full-size checkpoint included

std::string environment(const char* name, const std::string& otherwise) {
  const char* const set = std::getenv(name);
  return set != nullptr && *set != '\0' ? set : otherwise;
}
const std::string& device() {
  static const std::string name = environment("MINICPMO_DEVICE", "cuda:0");
  return name;
}
bool on_gpu() {
  return device() != "cpu";
}
std::string small_model() {
  return environment("MINICPMO_MODEL", MODEL_DIR);
}
std::string sample(const std::string& name) {
  return environment("MINICPMO_SAMPLES", SAMPLES) + "/" + name;
}

// The CUDA runtime that the elements' own library uses, of which a test only knows the name.
class CudaRuntime {
 public:
  static CudaRuntime& get() {
    static CudaRuntime runtime;
    return runtime;
  }
  int devices() const {
    int count = 0;
    return get_device_count_ != nullptr && get_device_count_(&count) == 0 ? count : 0;
  }
  size_t free_memory() const {
    size_t free = 0, total = 0;
    EXPECT_EQ(get_memory_(&free, &total), 0);
    return free;
  }
  void* allocate(size_t bytes) const {
    void* memory = nullptr;
    return malloc_(&memory, bytes) == 0 ? memory : nullptr;
  }
  void release(void* memory) const { EXPECT_EQ(free_(memory), 0); }

 private:
  CudaRuntime() {
    void* library = nullptr;
    for (const char* name : {"libcudart.so.13", "libcudart.so.12", "libcudart.so"})
      if (library == nullptr) library = dlopen(name, RTLD_NOW);
    if (library == nullptr) return;
    find(library, "cudaGetDeviceCount", get_device_count_);
    find(library, "cudaMemGetInfo", get_memory_);
    find(library, "cudaMalloc", malloc_);
    find(library, "cudaFree", free_);
  }
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
  int (*get_device_count_)(int*) = nullptr;
  int (*get_memory_)(size_t*, size_t*) = nullptr;
  int (*malloc_)(void**, size_t) = nullptr;
  int (*free_)(void*) = nullptr;
};

// Takes memory of the device until less than `left` bytes are free, and gives it back at the end.
class Filler {
 public:
  explicit Filler(size_t left) {
    const CudaRuntime& cuda = CudaRuntime::get();
    for (const size_t part : {1024 * kMegabyte, 64 * kMegabyte, 8 * kMegabyte}) {
      while (cuda.free_memory() >= left + part) {
        void* const memory = cuda.allocate(part);
        if (memory == nullptr) break;
        taken_.push_back(memory);
      }
    }
  }
  ~Filler() { release(); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;
  void release() {
    for (void* const memory : taken_) CudaRuntime::get().release(memory);
    taken_.clear();
  }

 private:
  std::vector<void*> taken_;
};

struct Place {
  std::string model, precision;
};

std::string element(const char* factory, const Place& place, const std::string& more = "") {
  return std::string(factory) + " device=" + device() + " precision=" + place.precision +
         " model=" + place.model + " " + more;
}

std::string chain(const Place& place, const std::string& of_llm = "") {
  return element("minicpmoaudioenc", place, "name=audioenc") + " ! queue ! " +
         element("minicpmollm", place, "name=llm " + of_llm) + " ! queue ! " +
         element("minicpmotts", place, "name=tts max-codes=375") + " ! queue ! " +
         element("minicpmovocoder", place, "name=vocoder");
}

// Keeps the weights between pipelines.
class Held {
 public:
  explicit Held(const Place& place)
      : bin_(GST_ELEMENT(gst_object_ref_sink(gst_parse_launch(
            element("minicpmobin", place, "async-load=false").c_str(), nullptr)))) {
    EXPECT_EQ(gst_element_set_state(bin_.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  }
  ~Held() { gst_element_set_state(bin_.get(), GST_STATE_NULL); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  ElementPtr bin_;
};

std::string pcm_of(const std::string& name) {
  return bytes_of(wav_samples(sample(name)));
}

struct Question {
  std::string file, reply;
};
std::vector<Question> questions() {
  std::vector<Question> found;
  for (const auto& entry : nlohmann::json::parse(file_bytes(sample("list.json")))) {
    const std::string file = entry.at("file");
    if (file >= "q01" && file < "q06") found.push_back({file, entry.at("expected_reply")});
  }
  return found;
}
constexpr const char* kCapital = "The capital of Norway is Oslo.";

// Of any loudness: a full-size checkpoint of random weights makes noise. Returns the samples.
std::vector<float> expect_samples(const StreamLog& log) {
  const std::string bytes = log.bytes();
  std::vector<float> sound(bytes.size() / sizeof(float));
  std::memcpy(sound.data(), bytes.data(), sound.size() * sizeof(float));
  EXPECT_GT(sound.size(), 12000u);
  float peak = 0;
  for (const float value : sound) {
    if (!std::isfinite(value)) {
      ADD_FAILURE() << "a sample is no number";
      break;
    }
    peak = std::max(peak, std::abs(value));
  }
  EXPECT_GT(peak, 0.0f);
  return sound;
}

void expect_sound(const StreamLog& log) {
  float peak = 0;
  double energy = 0;
  const std::vector<float> sound = expect_samples(log);
  for (const float value : sound) {
    peak = std::max(peak, std::abs(value));
    energy += static_cast<double>(value) * value;
  }
  EXPECT_GT(peak, 0.1f);
  EXPECT_LE(peak, 1.0f);
  EXPECT_GT(std::sqrt(energy / static_cast<double>(sound.size())), 0.01);
}

// The threads that buffers leave an element in.
class Threads {
 public:
  explicit Threads(const PipelineRun& run) {
    for (const char* name : {"audioenc", "llm", "tts", "vocoder"}) {
      const ElementPtr element = run.element(name);
      const PadPtr pad(gst_element_get_static_pad(element.get(), "src"));
      gst_pad_add_probe(pad.get(), GST_PAD_PROBE_TYPE_BUFFER, probe, &of_[of_count_++], nullptr);
    }
  }
  // Each element has one, and no two have the same.
  void expect_four() {
    std::set<pid_t> all;
    for (Seen& seen : of_) {
      const std::lock_guard lock(seen.mutex);
      EXPECT_EQ(seen.threads.size(), 1u);
      all.insert(seen.threads.begin(), seen.threads.end());
    }
    EXPECT_EQ(all.size(), 4u);
  }

 private:
  struct Seen {
    std::mutex mutex;
    std::set<pid_t> threads;
  };
  static GstPadProbeReturn probe(GstPad*, GstPadProbeInfo*, gpointer data) {
    auto* const seen = static_cast<Seen*>(data);
    const std::lock_guard lock(seen->mutex);
    seen->threads.insert(gettid());
    return GST_PAD_PROBE_OK;
  }
  Seen of_[4];
  size_t of_count_ = 0;
};

// The four elements behind a source to which turns are pushed: between two of them it stays loaded.
class Conversation {
 public:
  explicit Conversation(const Place& place, const std::string& of_llm = "")
      : run_("appsrc name=source format=time max-bytes=0 caps=" + std::string(kPcm) + " ! " +
             chain(place, of_llm) + " ! fakesink async=false"),
        source_(run_.element("source")),
        llm_(run_.element("llm")),
        vocoder_(run_.element("vocoder")),
        words_(llm_.get(), "src"),
        sound_(vocoder_.get(), "src") {}

  PipelineRun& run() { return run_; }
  GstElement* llm() { return llm_.get(); }
  StreamLog& words() { return words_; }
  StreamLog& sound() { return sound_; }
  void play() { gst_element_set_state(run_.pipeline(), GST_STATE_PLAYING); }

  void ask(const std::string& file) {
    words_.clear();
    sound_.clear();
    ++turn_;
    gst_element_send_event(source_.get(), gst_minicpmo_event_new_turn_start(turn_));
    BufferPtr buffer = text_buffer(pcm_of(file), turn_ * 10 * GST_SECOND);
    gst_app_src_push_buffer(GST_APP_SRC(source_.get()), buffer.release());
    gst_element_send_event(source_.get(), gst_minicpmo_event_new_turn_end(turn_));
  }
  void end() { gst_app_src_end_of_stream(GST_APP_SRC(source_.get())); }
  // Waits until the last sound of the answer has left; its words, or why there are none.
  std::string answer() {
    const auto deadline = std::chrono::steady_clock::now() + kAnswerPatience;
    while (sound_.count(GST_MINICPMO_EVENT_ANSWER_END) == 0) {
      run_.listen(milliseconds(5));
      if (!run_.errors.empty()) return "error: " + run_.errors[0];
      if (std::chrono::steady_clock::now() > deadline) return "no answer in time";
    }
    return words_.bytes();
  }
  void reset() { g_signal_emit_by_name(llm_.get(), "reset-session"); }

 private:
  PipelineRun run_;
  ElementPtr source_, llm_, vocoder_;
  StreamLog words_, sound_;
  guint64 turn_ = 0;
};

class Elements : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (on_gpu() && CudaRuntime::get().devices() == 0) GTEST_SKIP() << "no CUDA device";
  }
  static Place place() { return {small_model(), GetParam()}; }
};

class MemoryOfElements : public Elements {
 protected:
  void SetUp() override {
    if (CudaRuntime::get().devices() == 0 || !on_gpu()) GTEST_SKIP() << "no CUDA device";
  }
  static std::string full_model() { return environment("MINICPMO_FULL_MODEL", ""); }
};

TEST_P(Elements, LaunchLineAnswersInFourThreads) {
  const Held held(place());
  ASSERT_EQ(questions().size(), 5u);
  for (const Question& question : questions()) {
    PipelineRun run("filesrc location=" + sample(question.file) +
                    " ! wavparse ! audioconvert ! audioresample ! " + chain(place()) +
                    " ! audioconvert ! fakesink async=false sync=false");
    const ElementPtr vocoder = run.element("vocoder");
    const StreamLog sound(vocoder.get(), "src");
    Threads threads(run);
    ASSERT_TRUE(run.run()) << run.first_error();
    EXPECT_EQ(run.answers, std::vector<std::string>{question.reply});
    EXPECT_EQ(run.finishes, std::vector<std::string>{"stop"});
    EXPECT_TRUE(run.warnings.empty()) << run.warnings[0];
    threads.expect_four();
    expect_sound(sound);
  }
}

TEST_P(Elements, TwoPipelinesAtOnceAreBothRightOnOneEngine) {
  Conversation one(place()), two(place());
  for (Conversation* c : {&one, &two}) c->play();
  for (const Question& question : questions()) {
    for (Conversation* c : {&one, &two}) c->reset();
    for (Conversation* c : {&one, &two}) c->ask(question.file);
    for (Conversation* c : {&one, &two}) {
      ASSERT_EQ(c->answer(), question.reply);
      expect_sound(c->sound());
    }
  }
  EngineOptions options;
  options.model_dir = small_model();
  options.device = device();
  options.precision = GetParam();
  std::set<std::shared_ptr<Engine>> engines;
  for (Conversation* c : {&one, &two}) {
    for (const char* name : {"audioenc", "llm", "tts", "vocoder"}) {
      const ElementPtr element = c->run().element(name);
      const ContextPtr context(gst_element_get_context(element.get(), GST_MINICPMO_CONTEXT_TYPE));
      ASSERT_TRUE(context) << name;
      engines.insert(gst_minicpmo_context_get_engine(context.get(), options));
    }
  }
  EXPECT_EQ(engines.size(), 1u);
  EXPECT_NE(*engines.begin(), nullptr);
}

TEST_P(Elements, ReferenceVoiceIsTaken) {
  const Held held(place());
  Conversation conversation(place(), "voice=" + sample("q02_gk.wav"));
  conversation.play();
  conversation.ask("q01_cap.wav");
  const std::string answer = conversation.answer();
  EXPECT_TRUE(conversation.run().errors.empty()) << answer;
  EXPECT_FALSE(conversation.words().bytes().empty());
  expect_sound(conversation.sound());
  printf("with a voice: %s\n", answer.c_str());
}

TEST_P(Elements, StopAtTwentyRandomMomentsThenARightAnswer) {
  const Held held(place());
  std::mt19937 random(20);
  Conversation conversation(place());
  for (int i = 0; i < 20; ++i) {
    conversation.play();
    conversation.ask("q05_count.wav");
    // Half of them while words are made, the others anywhere.
    if (i % 2 != 0) {
      ASSERT_TRUE(conversation.words().wait_for("buffer")) << i;
    }
    std::this_thread::sleep_for(
        std::chrono::microseconds(random() % (i % 2 != 0 ? 20000u : 300000u)));
    const auto begin = std::chrono::steady_clock::now();
    conversation.run().stop();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5)) << i;
  }
  conversation.run().listen(milliseconds(10));
  EXPECT_TRUE(conversation.run().errors.empty()) << conversation.run().errors[0];
  conversation.play();
  conversation.ask("q01_cap.wav");
  EXPECT_EQ(conversation.answer(), kCapital);
  expect_sound(conversation.sound());
}

TEST_P(Elements, InterruptEndsTheAnswer) {
  const Held held(place());
  Conversation conversation(place());
  bool asked = false;
  conversation.words().set_hook([&](const Passed& passed) {
    if (passed.name != "buffer" || asked) return;
    asked = true;
    g_signal_emit_by_name(conversation.llm(), "interrupt");
  });
  conversation.play();
  conversation.ask("q05_count.wav");
  ASSERT_TRUE(conversation.words().wait_for(GST_MINICPMO_EVENT_ANSWER_END));
  const Passed end = conversation.words().all(GST_MINICPMO_EVENT_ANSWER_END)[0];
  EXPECT_EQ(end.finish, "interrupted");
  EXPECT_LT(conversation.words().bytes().size(), questions()[4].reply.size());
  conversation.answer();
  EXPECT_TRUE(conversation.run().errors.empty());
  conversation.reset();
  conversation.ask("q01_cap.wav");
  EXPECT_EQ(conversation.answer(), kCapital);
}

INSTANTIATE_TEST_SUITE_P(Precision, Elements, ::testing::Values("float32", "bfloat16"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(MemoryOfElements, ADeviceThatIsNotThereIsOneError) {
  PipelineRun run("appsrc ! minicpmollm device=cuda:9 model=" + small_model() + " ! fakesink");
  EXPECT_FALSE(run.run());
  run.listen(milliseconds(100));
  ASSERT_EQ(run.errors.size(), 1u);
  printf("cuda:9: %s\n", run.errors[0].c_str());
  EXPECT_NE(run.errors[0].find(std::to_string(CudaRuntime::get().devices())), std::string::npos);
  EXPECT_NE(run.errors[0].find("cuda:9"), std::string::npos);
}

// Before the other test of this size: torch would still have its memory. What the second of two
// pipelines takes is not another copy of the weights (16 GB).
TEST_F(MemoryOfElements, FullSizeWeightsAreShared) {
  if (full_model().empty()) GTEST_SKIP() << "MINICPMO_FULL_MODEL is not set";
  const Place place{full_model(), "bfloat16"};
  const CudaRuntime& cuda = CudaRuntime::get();
  const size_t empty = cuda.free_memory();
  Conversation one(place), two(place);
  one.play();
  one.ask("q01_cap.wav");
  const std::string alone = one.answer();
  ASSERT_TRUE(one.run().errors.empty()) << alone;
  EXPECT_FALSE(alone.empty());
  const size_t before = cuda.free_memory();
  two.play();
  one.reset();
  for (Conversation* c : {&one, &two}) c->ask("q01_cap.wav");
  for (Conversation* c : {&one, &two}) {
    EXPECT_EQ(c->answer(), alone);
    expect_samples(c->sound());
  }
  const size_t after = cuda.free_memory();
  printf("MB of device memory: %zu for the first pipeline, %.0f more for the second\n",
         (empty - before) / kMegabyte,
         (static_cast<double>(before) - static_cast<double>(after)) / kMegabyte);
  EXPECT_GT(empty - before, 8000 * kMegabyte);
  EXPECT_LT(static_cast<double>(before) - static_cast<double>(after), 2000.0 * kMegabyte);
}

// Says so, and what to do: once for each stage that found no memory, and nothing else.
void expect_out_of_memory(PipelineRun& run) {
  EXPECT_FALSE(run.run());
  run.listen(milliseconds(500));
  const std::set<std::string> stages(run.errors.begin(), run.errors.end());
  for (const std::string& error : stages) printf("no memory left: %s\n", error.c_str());
  EXPECT_EQ(stages.size(), run.errors.size());
  for (size_t i = 0; i < run.errors.size(); ++i) {
    EXPECT_EQ(run.error_codes[i].first, GST_RESOURCE_ERROR) << run.errors[i];
    EXPECT_EQ(run.error_codes[i].second, GST_RESOURCE_ERROR_NO_SPACE_LEFT) << run.errors[i];
    for (const char* words : {" is out of memory", "run fewer pipelines"})
      EXPECT_NE(run.errors[i].find(words), std::string::npos) << run.errors[i];
  }
}

// `second` does not fit beside `first`, which does not mind.
void expect_first_survives(const Place& first, const Place& second, const std::string& expected) {
  Conversation one(first);
  one.play();
  one.ask("q01_cap.wav");
  const std::string before = one.answer();
  if (!expected.empty()) {
    ASSERT_EQ(before, expected);
  }
  ASSERT_TRUE(one.run().errors.empty()) << before;
  one.reset();
  Filler filler(24 * kMegabyte);
  printf("%zu MB free\n", CudaRuntime::get().free_memory() / kMegabyte);
  ASSERT_LT(CudaRuntime::get().free_memory(), 64 * kMegabyte);
  {
    Conversation two(second);
    expect_out_of_memory(two.run());
  }
  if (first.model == second.model && first.precision == second.precision) {
    // Its cache alone is 1.9 GB.
    PipelineRun alone("appsrc ! " + std::string(kTextCaps) + " ! " +
                      element("minicpmollm", second, "context-length=32768") + " ! fakesink");
    expect_out_of_memory(alone);
    EXPECT_EQ(alone.errors.size(), 1u);
  }
  one.ask("q01_cap.wav");
  EXPECT_EQ(one.answer(), before);
  filler.release();
  Conversation again(second);
  again.play();
  again.ask("q01_cap.wav");
  const std::string answer = again.answer();
  EXPECT_TRUE(again.run().errors.empty()) << answer;
  expect_samples(again.sound());
  if (!expected.empty()) {
    EXPECT_EQ(answer, expected);
    expect_sound(again.sound());
  }
}

// The second one's float32 weights are its own: 58 MB.
TEST_F(MemoryOfElements, OutOfMemoryIsOneErrorAndTheOtherPipelineGoesOn) {
  expect_first_survives({small_model(), "bfloat16"}, {small_model(), "float32"}, kCapital);
}

TEST_F(MemoryOfElements, OutOfMemoryInFullSize) {
  if (full_model().empty()) GTEST_SKIP() << "MINICPMO_FULL_MODEL is not set";
  const Place place{full_model(), "bfloat16"};
  expect_first_survives(place, place, "");
}

}  // namespace
}  // namespace minicpmo::testing
