// minicpmobin: the chain as one element.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "elements/chain/stream_log.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {
namespace {

using std::chrono::milliseconds;

constexpr const char* kPcm = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved";

std::string pcm_bytes(size_t samples) {
  return std::string(samples * sizeof(float), '\0');
}
size_t answer_bytes(const std::string& answer) {
  return answer.size() * 2 * 512 * sizeof(float);
}

TEST(MiniCpmoBin, AnswersSpeechWithSpeechAndCaptions) {
  FakeBackend backend;
  const TemporaryFile question(pcm_bytes(32000)), answer, words;
  PipelineRun run("filesrc location=" + question.path() + " ! " + kPcm +
                  " ! minicpmobin name=omni ! filesink sync=false location=" + answer.path() +
                  " omni.text ! filesink sync=false location=" + words.path());
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(words.read(), "You said 50 rows.");
  EXPECT_EQ(answer.read().size(), answer_bytes("You said 50 rows."));
  EXPECT_EQ(run.answers, std::vector<std::string>{"You said 50 rows."});
}

TEST(MiniCpmoBin, AnswersTextAloneWithoutTheAudioEncoder) {
  FakeBackend backend;
  const TemporaryFile question("Hello\n"), answer;
  PipelineRun run("minicpmobin name=omni ! filesink sync=false location=" + answer.path() +
                  " filesrc location=" + question.path() + " ! " + kTextCaps + " ! omni.text_sink");
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(answer.read().size(), answer_bytes("You wrote Hello."));
  EXPECT_EQ(backend.counters().loads, 3);
  run.stop();
  // In NULL the encoder is back in its place.
  const ElementPtr omni = run.element("omni");
  const ElementPtr encoder(gst_bin_get_by_name(GST_BIN(omni.get()), "audioenc"));
  const PadPtr source(gst_element_get_static_pad(encoder.get(), "src"));
  EXPECT_TRUE(gst_pad_is_linked(source.get()));
}

TEST(MiniCpmoBin, SpeechAndTextTogether) {
  FakeBackend backend;
  const TemporaryFile question(pcm_bytes(32000)), typed("Hello\n"), answer;
  PipelineRun run("filesrc location=" + question.path() + " ! " + kPcm +
                  " ! minicpmobin name=omni ! filesink sync=false location=" + answer.path() +
                  " filesrc location=" + typed.path() + " ! " + kTextCaps + " ! omni.text_sink");
  ASSERT_TRUE(run.run()) << run.first_error();
  // The message comes before, between or after the chunks of speech, and is answered in any case.
  ASSERT_GE(run.answers.size(), 1u);
  bool wrote = false;
  for (const std::string& text : run.answers) wrote |= text.find("Hello") != std::string::npos;
  EXPECT_TRUE(wrote);
}

TEST(MiniCpmoBin, PropertiesStandForTheChildrens) {
  FakeBackend backend;
  const ElementPtr bin(
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("minicpmobin", nullptr))));
  g_object_set(bin.get(), "model", "/some/where", "device", "cpu", "precision", 1, "async-load",
               FALSE, "system-prompt", "Be brief.", "temperature", 0.5, "top-p", 0.25, "top-k", 3,
               "repetition-penalty", 1.25, "max-new-tokens", 9, "context-length", 512,
               "timestamp-mode", 1, "seed", guint64{5}, "compatibility", 1, "speaker", "/v.f32",
               "speech-temperature", 0.75, "max-codes", 88, "resume-false-interruption", FALSE,
               "headroom", guint64{7}, nullptr);
  const auto expect_child = [&](const char* child, const char* property, const char* expected) {
    const ElementPtr element(gst_bin_get_by_name(GST_BIN(bin.get()), child));
    for (GObject* object : {G_OBJECT(element.get())}) {
      GValue value = G_VALUE_INIT;
      g_object_get_property(object, property, &value);
      const GCharPtr text(gst_value_serialize(&value));
      EXPECT_STREQ(text.get(), expected) << child << "::" << property;
      g_value_unset(&value);
    }
  };
  for (const char* child : {"audioenc", "llm", "tts", "vocoder"}) {
    expect_child(child, "model", "/some/where");
    expect_child(child, "device", "cpu");
    expect_child(child, "precision", "float32");
    expect_child(child, "async-load", "false");
  }
  expect_child("llm", "system-prompt", "\"Be\\ brief.\"");
  expect_child("llm", "temperature", "0.5");
  expect_child("llm", "top-p", "0.25");
  expect_child("llm", "top-k", "3");
  expect_child("llm", "repetition-penalty", "1.25");
  expect_child("llm", "max-new-tokens", "9");
  expect_child("llm", "context-length", "512");
  expect_child("llm", "timestamp-mode", "arrival");
  expect_child("llm", "seed", "5");
  expect_child("tts", "seed", "5");
  for (const char* child : {"llm", "tts", "vocoder"})
    expect_child(child, "compatibility", "upstream");
  expect_child("tts", "speaker", "/v.f32");
  expect_child("tts", "temperature", "0.75");
  expect_child("tts", "max-codes", "88");
  expect_child("llm", "resume-false-interruption", "false");
  expect_child("vocoder", "headroom", "7");

  double temperature = 0, speech = 0;
  guint64 seed = 0;
  g_object_get(bin.get(), "temperature", &temperature, "speech-temperature", &speech, "seed", &seed,
               nullptr);
  EXPECT_EQ(temperature, 0.5);
  EXPECT_EQ(speech, 0.75);
  EXPECT_EQ(seed, 5u);
}

TEST(MiniCpmoBin, ChildrenAreReachedThroughChildProxy) {
  FakeBackend backend;
  PipelineRun run("minicpmobin name=omni ! fakesink");
  const ElementPtr omni = run.element("omni");
  guint bytes = 77;
  gst_child_proxy_set(GST_CHILD_PROXY(omni.get()), "llm::max-message-bytes", bytes, nullptr);
  bytes = 0;
  gst_child_proxy_get(GST_CHILD_PROXY(omni.get()), "llm::max-message-bytes", &bytes, nullptr);
  EXPECT_EQ(bytes, 77u);
}

TEST(MiniCpmoBin, StatsAreThoseOfTheChildren) {
  FakeBackend backend;
  const TemporaryFile question(pcm_bytes(32000));
  PipelineRun run("filesrc location=" + question.path() + " ! " + kPcm +
                  " ! minicpmobin name=omni ! fakesink");
  ASSERT_TRUE(run.run());
  GstStructure* fields = nullptr;
  g_object_get(run.element("omni").get(), "stats", &fields, nullptr);
  const StructurePtr stats(fields);
  GstStructure* llm = nullptr;
  ASSERT_TRUE(gst_structure_get(fields, "llm", GST_TYPE_STRUCTURE, &llm, nullptr));
  const StructurePtr owned(llm);
  guint64 rows = 0;
  gst_structure_get_uint64(llm, "rows", &rows);
  EXPECT_EQ(rows, 50u);
  for (const char* name : {"audioenc", "tts", "vocoder"})
    EXPECT_TRUE(gst_structure_has_field(fields, name)) << name;
}

TEST(MiniCpmoBin, ActionsReachTheLanguageModel) {
  FakeBackend backend;
  backend.settings().answer = std::string(8000, 'x');
  backend.settings().step_delay = milliseconds(5);
  PipelineRun run("minicpmobin name=omni ! fakesink async=false");
  const ElementPtr omni = run.element("omni");
  const ElementPtr llm(gst_bin_get_by_name(GST_BIN(omni.get()), "llm"));
  StreamLog log(llm.get(), "src");
  gst_element_set_state(run.pipeline(), GST_STATE_PLAYING);
  gboolean taken = FALSE;
  g_signal_emit_by_name(omni.get(), "push-text", "Hello", &taken);
  EXPECT_TRUE(taken);
  ASSERT_TRUE(log.wait_for("buffer"));
  g_signal_emit_by_name(omni.get(), "interrupt");
  ASSERT_TRUE(log.wait_for("minicpmo/answer-end"));
  EXPECT_EQ(log.all("minicpmo/answer-end")[0].finish, "interrupted");
  g_signal_emit_by_name(omni.get(), "reset-session");
  g_signal_emit_by_name(omni.get(), "push-text", "Again", &taken);
  ASSERT_TRUE(log.wait_for("minicpmo/speaker", 2));
  EXPECT_GE(backend.log().count("lm.reset"), 1);
}

TEST(MiniCpmoBin, TextPadComesAndGoesWhilePlaying) {
  FakeBackend backend;
  PipelineRun run("minicpmobin name=omni ! fakesink async=false");
  const ElementPtr omni = run.element("omni");
  gst_element_set_state(run.pipeline(), GST_STATE_PLAYING);
  for (int i = 0; i < 5; ++i) {
    const PadPtr pad(gst_element_request_pad_simple(omni.get(), "text"));
    ASSERT_NE(pad, nullptr);
    GstPadTemplate* pad_template =
        gst_element_class_get_pad_template(GST_ELEMENT_GET_CLASS(omni.get()), "text");
    EXPECT_EQ(gst_element_request_pad(omni.get(), pad_template, nullptr, nullptr), nullptr);
    gboolean taken = FALSE;
    g_signal_emit_by_name(omni.get(), "push-text", "Hello", &taken);
    EXPECT_TRUE(taken);
    gst_element_release_request_pad(omni.get(), pad.get());
  }
}

TEST(MiniCpmoBin, SixteenInOneProcessShareAnEngine) {
  FakeBackend backend;
  const int threads = running_threads(), descriptors = open_descriptors();
  {
    const TemporaryFile question(pcm_bytes(32000));
    std::string description;
    for (int i = 0; i < 16; ++i)
      description += "filesrc location=" + question.path() + " ! " + kPcm +
                     " ! minicpmobin ! fakesink sync=false ";
    PipelineRun run(description);
    ASSERT_TRUE(run.run()) << run.first_error();
    EXPECT_EQ(run.answers.size(), 16u);
    EXPECT_EQ(backend.counters().engines_opened, 1);
  }
  // GLib keeps idle threads of GStreamer's pools for a while.
  for (int i = 0; i < 200 && running_threads() > threads + 8; ++i)
    std::this_thread::sleep_for(milliseconds(100));
  EXPECT_LE(running_threads(), threads + 8);
  EXPECT_LE(open_descriptors(), descriptors + 2);
}

TEST(MiniCpmoBin, StateChangesAtRandomMomentsAreQuickAndClean) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(1);
  backend.settings().load_delay = milliseconds(5);
  const TemporaryFile question(pcm_bytes(64000));
  PipelineRun run("filesrc location=" + question.path() + " ! " + kPcm +
                  " ! minicpmobin ! fakesink sync=false");
  std::mt19937 random(6);
  for (int i = 0; i < 50; ++i) {
    gst_element_set_state(run.pipeline(), GST_STATE_PLAYING);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60000));
    const auto start = std::chrono::steady_clock::now();
    gst_element_set_state(run.pipeline(), i % 2 != 0 ? GST_STATE_NULL : GST_STATE_READY);
    ASSERT_LT(std::chrono::steady_clock::now() - start, milliseconds(3000)) << i;
  }
}

TEST(MiniCpmoBin, SeeksAtRandomMomentsEndInAWholeAnswer) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(1);
  const TemporaryFile question(pcm_bytes(64000)), answer;
  PipelineRun run("filesrc location=" + question.path() + " ! " + kPcm +
                  " ! minicpmobin name=omni ! filesink sync=false location=" + answer.path());
  gst_element_set_state(run.pipeline(), GST_STATE_PAUSED);
  const ElementPtr omni = run.element("omni");
  const PadPtr sink(gst_element_get_static_pad(omni.get(), "sink"));
  std::mt19937 random(8);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    // filesrc seeks in bytes.
    gst_pad_push_event(sink.get(), gst_event_new_seek(1, GST_FORMAT_BYTES, GST_SEEK_FLAG_FLUSH,
                                                      GST_SEEK_TYPE_SET, 0, GST_SEEK_TYPE_NONE, 0));
  }
  ASSERT_TRUE(run.run()) << run.first_error();
  EXPECT_EQ(run.answers.back(), "You said 100 rows.");
}

}  // namespace
}  // namespace minicpmo::testing
