// minicpmollm: the reference voice.
#include <gtest/gtest.h>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "elements/llm/llm_harness.h"

namespace minicpmo::testing {
namespace {

constexpr const char* kVoice = SAMPLES "/q01_cap.wav";

ElementHarness::Setup with_voice(const std::string& path) {
  return [path](GstElement* element) { g_object_set(element, "voice", path.c_str(), nullptr); };
}

// A turn is answered, and the sound went through the encoder in one piece before the first turn.
TEST(MiniCpmoLlmVoice, IsEncodedOnceBeforeTheFirstTurn) {
  FakeBackend backend;
  LlmHarness h(with_voice(kVoice));
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(backend.log().count("audio.step"), 1);
  const TensorPtr voice = backend.language_model_options().voice;
  ASSERT_NE(voice, nullptr);
  // 2.3 s at 16 kHz, 40 ms a row.
  EXPECT_GT(voice->rows(), 40);
  EXPECT_LT(voice->rows(), 80);
  EXPECT_EQ(voice->dims()[1], backend.settings().info.hidden_size);
}

TEST(MiniCpmoLlmVoice, IsCutToWhatTheEncoderTakes) {
  FakeBackend backend;
  backend.settings().info.max_chunk_samples = 16000;
  LlmHarness h(with_voice(kVoice));
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(backend.log().count("audio.step 16000"), 1);
  ASSERT_NE(backend.language_model_options().voice, nullptr);
  EXPECT_EQ(backend.language_model_options().voice->rows(), 25);
}

TEST(MiniCpmoLlmVoice, IsKeptWhenOtherPropertiesChange) {
  FakeBackend backend;
  LlmHarness h(with_voice(kVoice));
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0, 1));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  const TensorPtr before = backend.language_model_options().voice;
  g_object_set(h.element(), "max-new-tokens", 7, nullptr);
  h.push(embedding_chunk(25, 0, 2));
  h.push_event(gst_minicpmo_event_new_turn_end(2));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  EXPECT_EQ(backend.language_model_options().max_new_tokens, 7);
  EXPECT_EQ(backend.language_model_options().voice, before);
  EXPECT_EQ(backend.log().count("audio.step"), 1);
}

TEST(MiniCpmoLlmVoice, SetWhilePlayingIsHeardFromTheNextSessionOn) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  const auto ask = [&](guint64 turn) {
    h.push(embedding_chunk(25, 0, turn));
    h.push_event(gst_minicpmo_event_new_turn_end(turn));
    ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", turn));
  };
  ask(1);
  g_object_set(h.element(), "voice", kVoice, nullptr);
  ask(2);
  EXPECT_EQ(backend.language_model_options().voice, nullptr);
  g_signal_emit_by_name(h.element(), "reset-session");
  ask(3);
  ASSERT_NE(backend.language_model_options().voice, nullptr);
  EXPECT_GT(backend.language_model_options().voice->rows(), 40);
  EXPECT_EQ(backend.log().count("audio.step"), 1);
  // One that cannot be read is a warning, and the old one stays.
  g_object_set(h.element(), "voice", "/nowhere/voice.wav", nullptr);
  g_signal_emit_by_name(h.element(), "reset-session");
  ask(4);
  EXPECT_NE(backend.language_model_options().voice, nullptr);
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
  g_object_set(h.element(), "voice", nullptr, nullptr);
  g_signal_emit_by_name(h.element(), "reset-session");
  ask(5);
  EXPECT_EQ(backend.language_model_options().voice, nullptr);
}

TEST(MiniCpmoLlmVoice, NoneByDefault) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(backend.log().count("audio.step"), 0);
  EXPECT_EQ(backend.language_model_options().voice, nullptr);
  gchar* path = nullptr;
  g_object_get(h.element(), "voice", &path, nullptr);
  EXPECT_EQ(path, nullptr);
}

struct BadVoice {
  const char* name;
  std::string path;
  std::string content;  // of a file made for it, if the path is empty
  std::string says;
};

class MiniCpmoLlmBadVoice : public ::testing::TestWithParam<BadVoice> {};

TEST_P(MiniCpmoLlmBadVoice, IsOneErrorThatNamesIt) {
  FakeBackend backend;
  const TemporaryFile file(GetParam().content);
  const std::string path = GetParam().path.empty() ? file.path() : GetParam().path;
  LlmHarness h(with_voice(path));
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  const MessagePtr error = h.wait_message(GST_MESSAGE_ERROR);
  ASSERT_NE(error, nullptr);
  const std::string said = error_of(error.get())->message;
  EXPECT_NE(said.find(path), std::string::npos) << said;
  EXPECT_NE(said.find(GetParam().says), std::string::npos) << said;
}

// A WAV header and three samples.
std::string short_wav() {
  const unsigned char bytes[] = {'R', 'I', 'F', 'F',  42, 0, 0, 0, 'W', 'A', 'V', 'E',  'f',
                                 'm', 't', ' ', 16,   0,  0, 0, 1, 0,   1,   0,   0x80, 0x3e,
                                 0,   0,   0,   0x7d, 0,  0, 2, 0, 16,  0,   'd', 'a',  't',
                                 'a', 6,   0,   0,    0,  1, 0, 2, 0,   3,   0};
  return {reinterpret_cast<const char*>(bytes), sizeof bytes};
}

INSTANTIATE_TEST_SUITE_P(
    Voices, MiniCpmoLlmBadVoice,
    ::testing::Values(BadVoice{"Missing", "/nowhere/voice.wav", "", "does not exist"},
                      BadVoice{"Directory", "/tmp", "", "no regular file"},
                      BadVoice{"Text", "", "This is not a sound.", "no sound file"},
                      BadVoice{"Empty", "", "", "no sound file"},
                      BadVoice{"TooShort", "", short_wav(), "too few"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace minicpmo::testing
