// minicpmotts: bursts in, chunks of codes out.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <thread>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {
namespace {

using std::chrono::milliseconds;
using Names = std::vector<std::string>;

constexpr GstClockTime kRow = 512 * GST_SECOND / 24000;

struct LogHolder {
  std::optional<StreamLog> log_;
};

class TtsHarness : private LogHolder, public ElementHarness {
 public:
  explicit TtsHarness(const Setup& setup = {})
      : ElementHarness("minicpmotts", [this, &setup](GstElement* element) {
          log_.emplace(element, "src");
          if (setup) setup(element);
        }) {}
  StreamLog& log() { return *log_; }

  void say_hello(guint64 turn = 1, size_t values = 8) {
    const std::vector<float> vector(values, 0.5f);
    push_event(gst_minicpmo_event_new_speaker(turn, vector.data(), vector.size()));
  }
  GstFlowReturn push_text(const std::string& text, GstClockTime pts = GST_CLOCK_TIME_NONE,
                          guint64 turn = 1) {
    BufferPtr buffer = text_buffer(text, pts);
    gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn, 0, 0, GST_SECOND);
    return push(std::move(buffer));
  }
  bool end_answer(guint64 turn = 1) {
    return push_event(gst_minicpmo_event_new_answer_end(turn, "stop"));
  }
  std::vector<size_t> rows() const {
    std::vector<size_t> rows;
    for (const Passed& buffer : log_->all("buffer")) rows.push_back(buffer.bytes.size() / 8);
    return rows;
  }
  void begin_bytes() {
    push_event(gst_event_new_stream_start("file"));
    push_event(gst_event_new_caps(CapsPtr(gst_caps_from_string(kTextCaps)).get()));
    push_event(bytes_segment());
  }

 private:
  using LogHolder::log_;
};

Names bursts(FakeBackend& backend) {
  const std::string prefix = "tts.push_text ";
  Names found;
  for (const std::string& call : backend.log().calls())
    if (call.compare(0, prefix.size(), prefix) == 0) found.push_back(call.substr(prefix.size()));
  return found;
}

std::string speaker_bytes(size_t count, float value = 0.25f) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i)
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  return bytes;
}

TEST(MiniCpmoTts, ABurstIsABufferAndChunksComeAsTheyCan) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  EXPECT_EQ(h.push_text("1234567"), GST_FLOW_OK);  // 14 rows: not a chunk yet
  EXPECT_EQ(h.log().count("buffer"), 0u);
  EXPECT_EQ(h.push_text("89abcdef"), GST_FLOW_OK);  // 30
  EXPECT_EQ(h.rows(), (std::vector<size_t>{25}));
  h.end_answer();
  EXPECT_EQ(h.rows(), (std::vector<size_t>{25, 5}));
  h.push_eos();
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "minicpmo/speaker", "buffer",
                                    "buffer", "minicpmo/answer-end", "eos"}));
  EXPECT_EQ(bursts(backend), (Names{"1234567", "89abcdef"}));
}

TEST(MiniCpmoTts, ChunksAreMarkedAndContiguous) {
  FakeBackend backend;
  backend.settings().segment_rows = 40;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello(6);
  h.push_text(std::string(40, 'x'), 7 * GST_SECOND, 6);  // 80 rows: 25 15 | 25 15
  h.end_answer(6);
  const auto buffers = h.log().all("buffer");
  ASSERT_EQ(buffers.size(), 4u);
  guint64 rows = 0;
  for (size_t i = 0; i < buffers.size(); ++i) {
    const guint flags = (i == 0 ? guint{GST_MINICPMO_TURN_FIRST} : 0) |
                        (i == 2 ? guint{GST_MINICPMO_TURN_SEGMENT_START} : 0) |
                        guint{GST_MINICPMO_TURN_CHUNK};
    EXPECT_EQ(buffers[i].flags, flags) << i;
    EXPECT_EQ(buffers[i].turn_id, 6u);
    EXPECT_EQ(buffers[i].chunk, i);
    EXPECT_EQ(buffers[i].capture_time, GST_SECOND);
    EXPECT_EQ(buffers[i].discont, i == 0);
    EXPECT_EQ(buffers[i].pts,
              7 * GST_SECOND + gst_util_uint64_scale(rows * 512, GST_SECOND, 24000));
    rows += buffers[i].bytes.size() / 8;
    EXPECT_EQ(buffers[i].pts + buffers[i].duration,
              7 * GST_SECOND + gst_util_uint64_scale(rows * 512, GST_SECOND, 24000));
  }
}

TEST(MiniCpmoTts, TheNextAnswerStartsAtItsTextButNotBeforeTheLastEnds) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.push_event(gst_event_new_gap(0, GST_SECOND));  // of no answer: passes
  EXPECT_EQ(h.log().count("gap"), 1u);
  for (const GstClockTime pts : {GST_SECOND, GST_SECOND + GST_MSECOND, 60 * GST_SECOND}) {
    h.say_hello();
    h.push_text(std::string(12, 'x'), pts);  // 24 rows
    h.end_answer();
  }
  const auto buffers = h.log().all("buffer");
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(buffers[0].pts, GST_SECOND);
  EXPECT_NEAR(static_cast<double>(buffers[1].pts), GST_SECOND + 24.0 * kRow, 24);
  EXPECT_EQ(buffers[2].pts, 60 * GST_SECOND);
  for (const Passed& buffer : buffers) EXPECT_TRUE(buffer.discont);
}

TEST(MiniCpmoTts, AGapWithinAnAnswerIsABurst) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_event(gst_event_new_gap(0, GST_CLOCK_TIME_NONE));  // the first burst may be empty
  h.push_text("Hello");
  h.push_event(gst_event_new_gap(0, GST_CLOCK_TIME_NONE));
  h.end_answer();
  EXPECT_EQ(bursts(backend), (Names{"", "Hello", ""}));
  EXPECT_EQ(h.log().count("gap"), 0u);
}

TEST(MiniCpmoTts, ANewSegmentEndsTheAnswer) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text("Hello");
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  h.push_event(gst_event_new_segment(&segment));
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "minicpmo/speaker", "buffer",
                                    "caps", "segment"}));
}

TEST(MiniCpmoTts, EosEndsTheAnswer) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text("Hello");
  EXPECT_EQ(h.log().count("buffer"), 0u);
  h.push_eos();
  EXPECT_EQ(h.rows(), (std::vector<size_t>{10}));
  EXPECT_EQ(h.log().names().back(), "eos");
}

TEST(MiniCpmoTts, EosWithoutTextIsAWholeStream) {
  FakeBackend backend;
  TtsHarness h;
  h.push_event(gst_event_new_stream_start("x"));
  h.push_eos();
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "eos"}));
  EXPECT_EQ(backend.log().count("tts.start"), 0);
}

TEST(MiniCpmoTts, TextInBytesIsReadWordByWordWhereverItIsCut) {
  const TemporaryFile voice(speaker_bytes(8));
  const std::string text = "Caf\xC3\xA9 is open.\nGood.";
  for (const size_t size : {100, 1, 4}) {
    FakeBackend backend;
    backend.settings().info.default_speaker = voice.path();
    TtsHarness h;
    h.begin_bytes();
    for (size_t at = 0; at < text.size(); at += size)
      ASSERT_EQ(h.push(text_buffer(text.substr(at, size))), GST_FLOW_OK);
    h.push_eos();
    EXPECT_EQ(bursts(backend), (Names{"Caf\xC3\xA9", " is", " open.", "\nGood."}));
    EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 0u);
    EXPECT_EQ(backend.log().count("tts.start"), 1);
  }
}

TEST(MiniCpmoTts, InvalidUtf8IsReplacedWithOneWarning) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text("a\xFF");
  h.push_text("b\xC3");
  h.end_answer();
  EXPECT_EQ(bursts(backend), (Names{"a\xEF\xBF\xBD", "b\xEF\xBF\xBD"}));
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
}

TEST(MiniCpmoTts, AHundredKilobytesAreSpoken) {
  FakeBackend backend;
  backend.settings().rows_per_byte = 1;
  TtsHarness h;
  h.begin_bytes();
  h.say_hello();
  std::string text;
  while (text.size() < 100000) text += "many words ";
  for (size_t at = 0; at < text.size(); at += 4096) h.push(text_buffer(text.substr(at, 4096)));
  h.push_eos();
  size_t rows = 0;
  for (const size_t n : h.rows()) rows += n;
  EXPECT_EQ(rows, text.size());
}

TEST(MiniCpmoTts, TheSpeakerFileIsUsedWhenUpstreamHasNone) {
  FakeBackend backend;
  const TemporaryFile voice(speaker_bytes(8));
  TtsHarness h([&](GstElement* e) { g_object_set(e, "speaker", voice.path().c_str(), nullptr); });
  h.set_caps(kTextCaps);
  h.push_text("Hello");
  h.push_eos();
  EXPECT_EQ(h.rows(), (std::vector<size_t>{10}));
  EXPECT_TRUE(h.messages(GST_MESSAGE_ERROR).empty());
}

struct BadSpeaker {
  const char* name;
  std::string content;
  bool directory;
  bool missing;
  GQuark (*domain)();
  int code;
};

void expect_speaker_error(const BadSpeaker& bad) {
  FakeBackend backend;
  const TemporaryFile voice(bad.content);
  std::string path = voice.path();
  if (bad.directory) path = path.substr(0, path.rfind('/'));
  if (bad.missing) path += ".not";
  TtsHarness h([&](GstElement* e) { g_object_set(e, "speaker", path.c_str(), nullptr); });
  h.set_caps(kTextCaps);
  EXPECT_EQ(h.push_text("Hello"), GST_FLOW_ERROR) << bad.name;
  EXPECT_EQ(h.push_text("again"), GST_FLOW_ERROR) << bad.name;
  h.push_eos();
  EXPECT_EQ(h.log().names().back(), "eos");
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u) << bad.name;
  const GErrorPtr error = error_of(errors[0].get());
  EXPECT_EQ(error->domain, bad.domain()) << error->message;
  EXPECT_EQ(error->code, bad.code) << error->message;
  EXPECT_NE(std::string(error->message).find(path), std::string::npos) << error->message;
}

TEST(MiniCpmoTts, BadSpeakerFilesAreOneErrorThatNamesThem) {
  expect_speaker_error(
      {"missing", "", false, true, gst_resource_error_quark, GST_RESOURCE_ERROR_NOT_FOUND});
  expect_speaker_error(
      {"directory", "", true, false, gst_resource_error_quark, GST_RESOURCE_ERROR_OPEN_READ});
  expect_speaker_error({"short", speaker_bytes(7), false, false, gst_stream_error_quark,
                        GST_STREAM_ERROR_WRONG_TYPE});
  expect_speaker_error({"long", speaker_bytes(9), false, false, gst_stream_error_quark,
                        GST_STREAM_ERROR_WRONG_TYPE});
  expect_speaker_error({"nan", speaker_bytes(8, std::numeric_limits<float>::quiet_NaN()), false,
                        false, gst_stream_error_quark, GST_STREAM_ERROR_WRONG_TYPE});
}

TEST(MiniCpmoTts, WithoutAnyVoiceThereIsASettingsError) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  EXPECT_EQ(h.push_text("Hello"), GST_FLOW_ERROR);
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  const GErrorPtr error = error_of(errors[0].get());
  EXPECT_EQ(error->domain, GST_LIBRARY_ERROR);
  EXPECT_EQ(error->code, GST_LIBRARY_ERROR_SETTINGS);
  EXPECT_NE(std::string(error->message).find("speaker"), std::string::npos);
}

TEST(MiniCpmoTts, ASpeakerOfAnotherModelIsAnError) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello(1, 16);
  EXPECT_EQ(h.push_text("Hello"), GST_FLOW_ERROR);
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_NE(std::string(error_of(errors[0].get())->message).find("16 values"), std::string::npos);
}

TEST(MiniCpmoTts, PropertiesAreWhatWasSetAndReachTheModel) {
  FakeBackend backend;
  TtsHarness h([](GstElement* e) {
    g_object_set(e, "temperature", 0.5, "seed", guint64{77}, "max-codes", 100, "compatibility", 1,
                 "speaker", "/nowhere", nullptr);
  });
  double temperature;
  guint64 seed;
  int codes, compatibility;
  gchar* speaker;
  g_object_get(h.element(), "temperature", &temperature, "seed", &seed, "max-codes", &codes,
               "compatibility", &compatibility, "speaker", &speaker, nullptr);
  const GCharPtr owned(speaker);
  EXPECT_EQ(temperature, 0.5);
  EXPECT_EQ(seed, 77u);
  EXPECT_EQ(codes, 100);
  EXPECT_EQ(compatibility, 1);
  EXPECT_STREQ(speaker, "/nowhere");
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text("Hello");
  const SpeechModelOptions options = backend.speech_model_options();
  EXPECT_EQ(options.temperature, 0.5);
  EXPECT_EQ(options.seed, 77u);
  EXPECT_EQ(options.max_codes, 100);
  EXPECT_EQ(options.compatibility, Compatibility::kUpstream);
}

TEST(MiniCpmoTts, FlushStopsAtTheNextCodeAndDropsTheAnswer) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(30000);
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  GstFlowReturn flow = GST_FLOW_OK;
  std::thread thread([&] { flow = h.push_text(std::string(100, 'x')); });
  while (backend.counters().steps == 0) std::this_thread::sleep_for(milliseconds(1));
  const auto start = std::chrono::steady_clock::now();
  h.push_event(gst_event_new_flush_start());
  thread.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(1000));
  EXPECT_EQ(flow, GST_FLOW_FLUSHING);
  h.push_event(gst_event_new_flush_stop(TRUE));
  backend.settings().step_delay = milliseconds(0);
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  h.push_event(gst_event_new_segment(&segment));
  h.push_text("Hi");
  h.push_eos();
  EXPECT_EQ(h.rows(), (std::vector<size_t>{4}));
  EXPECT_TRUE(h.messages(GST_MESSAGE_ERROR).empty());
}

TEST(MiniCpmoTts, StateChangesAtRandomMomentsAreQuickAndClean) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(2);
  std::mt19937 random(5);
  for (int i = 0; i < 50; ++i) {
    TtsHarness h;
    h.set_caps(kTextCaps);
    h.say_hello();
    std::thread thread([&] {
      h.push_text(std::string(200, 'x'));
      h.push_eos();
    });
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    const auto start = std::chrono::steady_clock::now();
    gst_element_set_state(h.element(), i % 2 != 0 ? GST_STATE_NULL : GST_STATE_READY);
    ASSERT_LT(std::chrono::steady_clock::now() - start, milliseconds(2000)) << i;
    thread.join();
  }
}

TEST(MiniCpmoTts, AFailingStepIsOneErrorAndEosGetsThrough) {
  for (const bool throws : {false, true}) {
    FakeBackend backend;
    if (!throws) backend.settings().step_error = Error{ErrorCode::kNoSpace, "Out of memory.", ""};
    backend.settings().throw_in_step = throws;
    TtsHarness h;
    h.set_caps(kTextCaps);
    h.say_hello();
    EXPECT_EQ(h.push_text(std::string(100, 'x')), GST_FLOW_ERROR);
    EXPECT_EQ(h.push_text("more"), GST_FLOW_ERROR);
    h.end_answer();
    h.push_eos();
    EXPECT_EQ(h.log().names().back(), "eos");
    EXPECT_EQ(h.messages(GST_MESSAGE_ERROR).size(), 1u);
  }
}

TEST(MiniCpmoTts, AFailureAtTheEndIsOneErrorAndEosGetsThrough) {
  FakeBackend backend;
  backend.settings().step_error = Error{ErrorCode::kFailed, "It broke.", ""};
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  EXPECT_EQ(h.push_text("Hello"), GST_FLOW_OK);
  h.push_eos();
  EXPECT_EQ(h.log().names().back(), "eos");
  EXPECT_EQ(h.messages(GST_MESSAGE_ERROR).size(), 1u);
}

TEST(MiniCpmoTts, StatsCount) {
  FakeBackend backend;
  backend.settings().gpu_time = std::chrono::nanoseconds(3);
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text(std::string(20, 'x'));
  h.push_text("y");
  h.push_eos();
  GstStructure* fields = nullptr;
  g_object_get(h.element(), "stats", &fields, nullptr);
  const StructurePtr stats(fields);
  for (const auto& [name, expected] : {std::pair{"answers", 1u},
                                       {"bursts", 2u},
                                       {"chunks", 2u},
                                       {"codes", 42u},
                                       {"gpu-time", 6u}}) {
    guint64 value = 0;
    EXPECT_TRUE(gst_structure_get_uint64(fields, name, &value));
    EXPECT_EQ(value, expected) << name;
  }
}

TEST(MiniCpmoTts, OtherEventsKeepTheirPlace) {
  FakeBackend backend;
  TtsHarness h;
  h.set_caps(kTextCaps);
  h.say_hello();
  h.push_text(std::string(13, 'x'));
  h.push_event(gst_event_new_tag(gst_tag_list_new_empty()));
  h.push_text("y");
  h.push_eos();
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "minicpmo/speaker", "buffer",
                                    "tag", "buffer", "eos"}));
}

}  // namespace
}  // namespace minicpmo::testing
