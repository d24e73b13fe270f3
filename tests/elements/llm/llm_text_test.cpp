// minicpmollm: text on sink, on text_sink, and by the action push-text.
#include <gtest/gtest.h>

#include <thread>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "elements/llm/llm_harness.h"

namespace minicpmo::testing {
namespace {

using Texts = std::vector<std::string>;
using std::chrono::milliseconds;

// Text in bytes, as filesrc sends it.
void begin_bytes(LlmHarness& h) {
  h.push_event(gst_event_new_stream_start("file"));
  h.push_event(gst_event_new_caps(CapsPtr(gst_caps_from_string(kTextCaps)).get()));
  h.push_event(bytes_segment());
}

TEST(MiniCpmoLlmText, ABufferInTimeIsAMessage) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kTextCaps);
  h.push(text_buffer("First\nof all", GST_SECOND, GST_SECOND));
  h.push(text_buffer("Second", 5 * GST_SECOND));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.texts(backend), (Texts{"First\nof all", "Second"}));
  EXPECT_EQ(h.log().count("minicpmo/answer-end"), 2u);
  EXPECT_EQ(h.log().all("buffer")[0].pts, 2 * GST_SECOND);
  EXPECT_EQ(h.log().all("buffer").back().pts, 5 * GST_SECOND);
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].turn_id, 1u);
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[1].turn_id, 2u);
}

TEST(MiniCpmoLlmText, ALineInBytesIsAMessage) {
  FakeBackend backend;
  LlmHarness h;
  begin_bytes(h);
  for (const char* piece : {"\xEF\xBB\xBFWhat is", " two\r", "\n\n  \nplus \xC3", "\xA9?\nBye"})
    h.push(text_buffer(piece));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.texts(backend), (Texts{"What is two", "plus \xC3\xA9?", "Bye"}));
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 0u);
}

TEST(MiniCpmoLlmText, InvalidUtf8IsReplacedWithOneWarning) {
  FakeBackend backend;
  LlmHarness h;
  begin_bytes(h);
  h.push(text_buffer("a\xFF\n\xC3\n"));
  h.push(text_buffer("b\xFE\n"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.texts(backend), (Texts{"a\xEF\xBF\xBD", "\xEF\xBF\xBD", "b\xEF\xBF\xBD"}));
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
}

TEST(MiniCpmoLlmText, EmptyTextIsNothingToAnswer) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kTextCaps);
  h.push(text_buffer(""));
  h.push(text_buffer(" \n\t"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_TRUE(h.texts(backend).empty());
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
}

TEST(MiniCpmoLlmText, AHundredKilobytesAreOneMessage) {
  FakeBackend backend;
  LlmHarness h;
  begin_bytes(h);
  const std::string text(100000, 'x');
  for (size_t at = 0; at < text.size(); at += 4096) h.push(text_buffer(text.substr(at, 4096)));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.texts(backend), Texts{text});
}

// A stream that has nothing else to say ends in an error, not in silence.
TEST(MiniCpmoLlmText, AMessageThatDoesNotFitIsAWarningAndThenAnError) {
  FakeBackend backend;
  backend.settings().context_rows = 0;
  LlmHarness h;
  h.set_caps(kTextCaps);
  h.push(text_buffer("Hello"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const auto messages =
      h.messages(static_cast<GstMessageType>(GST_MESSAGE_WARNING | GST_MESSAGE_ERROR));
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(GST_MESSAGE_TYPE(messages[0].get()), GST_MESSAGE_WARNING);
  EXPECT_EQ(GST_MESSAGE_TYPE(messages[1].get()), GST_MESSAGE_ERROR);
  EXPECT_NE(std::string(error_of(messages[1].get())->message).find("5 bytes"), std::string::npos);
}

TEST(MiniCpmoLlmText, LongerThanMaxMessageBytesIsRefusedAndTheRestAnswered) {
  FakeBackend backend;
  LlmHarness h([](GstElement* e) { g_object_set(e, "max-message-bytes", 10u, nullptr); });
  begin_bytes(h);
  h.push(text_buffer("this is too long\nshort\n"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.texts(backend), Texts{"short"});
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
  EXPECT_EQ(h.messages(GST_MESSAGE_ERROR).size(), 0u);
}

// A second harness on text_sink.
class TextSink {
 public:
  explicit TextSink(LlmHarness& h)
      : pad_(gst_element_request_pad_simple(h.element(), "text_sink")),
        source_(gst_pad_new("typed", GST_PAD_SRC)) {
    gst_object_ref_sink(source_.get());
    gst_pad_set_active(source_.get(), TRUE);
    EXPECT_EQ(gst_pad_link(source_.get(), pad_.get()), GST_PAD_LINK_OK);
    begin();
  }
  void begin() {
    gst_pad_push_event(source_.get(), gst_event_new_stream_start("typed"));
    gst_pad_push_event(source_.get(),
                       gst_event_new_caps(CapsPtr(gst_caps_from_string(kTextCaps)).get()));
    GstSegment segment;
    gst_segment_init(&segment, GST_FORMAT_TIME);
    gst_pad_push_event(source_.get(), gst_event_new_segment(&segment));
  }
  GstFlowReturn push(const std::string& text) {
    return gst_pad_push(source_.get(), text_buffer(text).release());
  }
  bool push_event(GstEvent* event) { return gst_pad_push_event(source_.get(), event); }
  GstPad* pad() { return pad_.get(); }
  void unlink() { gst_pad_unlink(source_.get(), pad_.get()); }

 private:
  PadPtr pad_, source_;
};

TEST(MiniCpmoLlmText, TextSinkAnswersTheOpenTurn) {
  FakeBackend backend;
  LlmHarness h;
  TextSink typed(h);
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0, 3));
  while (backend.log().count("lm.prefill_audio") == 0) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(typed.push("And this?"), GST_FLOW_OK);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(h.log().bytes(), "You wrote And this?.");
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].turn_id, 3u);
  typed.push_event(gst_event_new_eos());
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
}

TEST(MiniCpmoLlmText, EosComesWhenBothInputsHaveEnded) {
  FakeBackend backend;
  LlmHarness h;
  TextSink typed(h);
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));  // the main input's end is the question's
  typed.push("More");
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  EXPECT_EQ(h.log().count("eos"), 0u);
  typed.push_event(gst_event_new_eos());
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 0u);
}

TEST(MiniCpmoLlmText, ReleasingTextSinkLetsEosThrough) {
  FakeBackend backend;
  LlmHarness h;
  {
    TextSink typed(h);
    h.set_caps(kEmbeddingCaps);
    h.push(embedding_chunk(25, 0));
    h.push_eos();
    ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
    typed.unlink();
    gst_element_release_request_pad(h.element(), typed.pad());
  }
  ASSERT_TRUE(h.log().wait_for("eos"));
}

TEST(MiniCpmoLlmText, ThereIsOneTextSink) {
  FakeBackend backend;
  LlmHarness h;
  GstPadTemplate* pad_template =
      gst_element_class_get_pad_template(GST_ELEMENT_GET_CLASS(h.element()), "text_sink");
  const auto request = [&] {
    return PadPtr(gst_element_request_pad(h.element(), pad_template, nullptr, nullptr));
  };
  const PadPtr first = request();
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(request(), nullptr);
  gst_element_release_request_pad(h.element(), first.get());
  const PadPtr again = request();
  EXPECT_NE(again, nullptr);
}

TEST(MiniCpmoLlmText, TextSinkAloneIsAWholeStream) {
  FakeBackend backend;
  LlmHarness h({}, nullptr);
  {
    TextSink typed(h);
    typed.push("Hello");
    typed.push_event(gst_event_new_eos());
    ASSERT_TRUE(h.log().wait_for("eos"));
  }
  EXPECT_EQ(h.log().bytes(), "You wrote Hello.");
  EXPECT_EQ(h.log().names()[0], "stream-start");
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 0u);
}

TEST(MiniCpmoLlmText, AFlushOfTextSinkDropsItsMessagesOnly) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(10);
  LlmHarness h;
  TextSink typed(h);
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  ASSERT_TRUE(h.log().wait_for("buffer"));
  typed.push("dropped");
  typed.push_event(gst_event_new_flush_start());
  typed.push_event(gst_event_new_flush_stop(TRUE));
  typed.push_event(gst_event_new_eos());
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 25 rows.");
  EXPECT_EQ(h.log().count("flush-start"), 0u);
}

TEST(MiniCpmoLlmText, AFlushOfTextSinkEndsWithTheStream) {
  FakeBackend backend;
  LlmHarness h;
  TextSink typed(h);
  gst_pad_send_event(typed.pad(), gst_event_new_flush_start());
  gst_element_set_state(h.element(), GST_STATE_READY);
  gst_element_set_state(h.element(), GST_STATE_PLAYING);
  typed.begin();
  EXPECT_EQ(typed.push("Hello"), GST_FLOW_OK);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(h.texts(backend), (Texts{"Hello"}));
}

// Its source would stop for good if it saw FLUSHING.
TEST(MiniCpmoLlmText, AFlushOfTheMainInputDoesNotBreakTextSink) {
  FakeBackend backend;
  LlmHarness h;
  TextSink typed(h);
  h.set_caps(kEmbeddingCaps);
  h.push_event(gst_event_new_flush_start());
  std::atomic<GstFlowReturn> flow{GST_FLOW_CUSTOM_ERROR};
  std::thread thread([&] { flow = typed.push("Still here?"); });
  std::this_thread::sleep_for(milliseconds(30));
  h.push_event(gst_event_new_flush_stop(TRUE));
  thread.join();
  EXPECT_EQ(flow, GST_FLOW_OK);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(h.log().bytes(), "You wrote Still here?.");
}

TEST(MiniCpmoLlmText, PushTextIsAMessage) {
  FakeBackend backend;
  LlmHarness h;
  gboolean taken = FALSE;
  g_signal_emit_by_name(h.element(), "push-text", "Hi \xFF", &taken);
  EXPECT_TRUE(taken);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(h.texts(backend), Texts{"Hi \xEF\xBF\xBD"});
  g_signal_emit_by_name(h.element(), "push-text", " ", &taken);
  EXPECT_FALSE(taken);
  g_signal_emit_by_name(h.element(), "push-text", nullptr, &taken);
  EXPECT_FALSE(taken);
}

// minicpmoturn, which numbers the spoken ones, is asked for its number.
TEST(MiniCpmoLlmText, PushTextIsATurnAmongSpokenOnes) {
  FakeBackend backend;
  LlmHarness h;
  PadPtr sink(gst_element_get_static_pad(h.element(), "sink"));
  gst_pad_add_probe(
      sink.get(), GST_PAD_PROBE_TYPE_QUERY_UPSTREAM,
      [](GstPad*, GstPadProbeInfo* info, gpointer) -> GstPadProbeReturn {
        GstQuery* const query = GST_PAD_PROBE_INFO_QUERY(info);
        if (!gst_minicpmo_query_is_next_turn(query)) return GST_PAD_PROBE_OK;
        gst_minicpmo_query_set_turn_id(query, 7);
        return GST_PAD_PROBE_HANDLED;
      },
      nullptr, nullptr);
  gboolean taken = FALSE;
  g_signal_emit_by_name(h.element(), "push-text", "Hi", &taken);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].turn_id, 7u);
}

TEST(MiniCpmoLlmText, PushTextIsRefusedWhenNothingRuns) {
  FakeBackend backend;
  LlmHarness h;
  gst_element_set_state(h.element(), GST_STATE_READY);
  gboolean taken = TRUE;
  g_signal_emit_by_name(h.element(), "push-text", "Hi", &taken);
  EXPECT_FALSE(taken);
}

TEST(MiniCpmoLlmText, PushTextNeverWaits) {
  FakeBackend backend;
  backend.settings().step_delay = milliseconds(50);
  LlmHarness h;
  int taken = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    gboolean ok = FALSE;
    g_signal_emit_by_name(h.element(), "push-text", "Hi", &ok);
    taken += ok;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  EXPECT_GE(taken, 16);
  EXPECT_LT(taken, 50);
}

}  // namespace
}  // namespace minicpmo::testing
