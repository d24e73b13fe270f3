// minicpmollm: interruptions, flushes, state changes, failures.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "elements/llm/llm_harness.h"

namespace minicpmo::testing {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

std::string long_answer(int bursts) {
  std::string text;
  for (int i = 0; i < bursts; ++i) text += "a burst ";  // 8 bytes each
  return text;
}

void ask(LlmHarness& h, guint64 turn = 1) {
  h.push(embedding_chunk(25, 0, turn));
  h.push_event(gst_minicpmo_event_new_turn_end(turn));
}

void begin(FakeBackend& backend, LlmHarness& h, milliseconds delay) {
  backend.settings().answer = long_answer(1000);
  backend.settings().step_delay = delay;
  h.set_caps(kEmbeddingCaps);
  ask(h);
  ASSERT_TRUE(h.log().wait_for("buffer"));
}

TEST(MiniCpmoLlmControl, InterruptEndsTheAnswerAtTheNextToken) {
  FakeBackend backend;
  LlmHarness h;
  begin(backend, h, milliseconds(20));
  const auto start = Clock::now();
  g_signal_emit_by_name(h.element(), "interrupt");
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_LT(Clock::now() - start, milliseconds(1000));
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].finish, "interrupted");
  EXPECT_EQ(backend.counters().interrupts, 1);
  EXPECT_EQ(backend.counters().heard_bytes, -1);

  backend.settings().answer = "Yes.";
  ask(h, 2);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  EXPECT_EQ(h.log().all("buffer").back().bytes, "Yes.");
  EXPECT_EQ(h.stat(h.stats(), "interrupted"), 1u);
}

TEST(MiniCpmoLlmControl, InterruptEventTellsWhatWasHeard) {
  FakeBackend backend;
  LlmHarness h;
  begin(backend, h, milliseconds(10));
  gst_harness_push_upstream_event(h.get(), gst_minicpmo_event_new_interrupt(12));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  EXPECT_EQ(backend.counters().heard_bytes, 12);
}

// Generation is faster than speech: most interruptions come when the answer's text is complete.
TEST(MiniCpmoLlmControl, AnAnswerThatStillSoundsIsCutBackToWhatWasHeard) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  ask(h);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  gst_harness_push_upstream_event(h.get(), gst_minicpmo_event_new_interrupt(5));
  for (int i = 0; i < 10000 && backend.counters().interrupts == 0; ++i)
    std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(backend.counters().heard_bytes, 5);
  ask(h, 2);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  for (const Passed& end : h.log().all("minicpmo/answer-end")) EXPECT_EQ(end.finish, "stop");
  EXPECT_EQ(backend.counters().interrupts, 1);
  const auto calls = backend.log().calls();
  const auto cut = std::find(calls.begin(), calls.end(), "lm.interrupt 5");
  EXPECT_EQ(std::count(calls.begin(), cut, "lm.start_answer"), 1);
}

TEST(MiniCpmoLlmControl, InterruptWithoutAnAnswerDoesNothing) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  g_signal_emit_by_name(h.element(), "interrupt");
  ask(h);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 25 rows.");
  EXPECT_EQ(backend.counters().interrupts, 0);
}

TEST(MiniCpmoLlmControl, ResetSessionForgetsAndDropsWhatWaits) {
  FakeBackend backend;
  LlmHarness h;
  begin(backend, h, milliseconds(10));
  h.push(embedding_chunk(3, GST_SECOND));  // waits behind the answer
  const int before = backend.counters().resets;
  g_signal_emit_by_name(h.element(), "reset-session");
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  backend.settings().answer = "";
  ask(h, 2);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  EXPECT_EQ(backend.counters().resets, before + 1);
  EXPECT_EQ(h.prefills(backend), (std::vector<std::string>{"25", "25"}));
}

TEST(MiniCpmoLlmControl, FlushStopsAtTheNextTokenAndStartsAnew) {
  FakeBackend backend;
  LlmHarness h;
  begin(backend, h, milliseconds(20));
  const auto start = Clock::now();
  EXPECT_TRUE(h.push_event(gst_event_new_flush_start()));
  EXPECT_LT(Clock::now() - start, milliseconds(1000));
  EXPECT_TRUE(h.push_event(gst_event_new_flush_stop(TRUE)));
  EXPECT_EQ(h.log().count("flush-start"), 1u);
  EXPECT_EQ(h.log().count("flush-stop"), 1u);
  h.log().clear();
  backend.settings().answer = "";
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  h.push_event(gst_event_new_segment(&segment));
  h.push(embedding_chunk(4, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 4 rows.");
  EXPECT_GE(backend.log().count("lm.reset"), 1);
  EXPECT_EQ(h.log().count("segment"), 1u);
}

TEST(MiniCpmoLlmControl, FlushDropsTheOpenTurn) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_buffer(40, 0));  // 25 are read, 15 wait for more
  h.push_event(gst_event_new_flush_start());
  h.push_event(gst_event_new_flush_stop(TRUE));
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  h.push_event(gst_event_new_segment(&segment));
  h.push(embedding_buffer(2, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 2 rows.");
}

// The queue is bounded: a push waits, and a flush lets it go.
TEST(MiniCpmoLlmControl, AFullQueueWaitsAndAFlushFreesIt) {
  FakeBackend backend;
  LlmHarness h;
  begin(backend, h, milliseconds(50));
  std::atomic<int> pushed{0};
  std::atomic<GstFlowReturn> flow{GST_FLOW_OK};
  std::thread thread([&] {
    for (int i = 0; i < 200 && flow == GST_FLOW_OK; ++i, ++pushed)
      flow = h.push(embedding_chunk(1, GST_SECOND));
  });
  while (pushed < 16) std::this_thread::sleep_for(milliseconds(1));
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_LT(pushed, 100);
  h.push_event(gst_event_new_flush_start());
  thread.join();
  EXPECT_EQ(flow, GST_FLOW_FLUSHING);
  h.push_event(gst_event_new_flush_stop(TRUE));
}

TEST(MiniCpmoLlmControl, FlushesAtRandomMomentsAreQuickAndClean) {
  FakeBackend backend;
  backend.settings().answer = long_answer(30);
  backend.settings().step_delay = milliseconds(1);
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  std::mt19937 random(3);
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  for (int i = 0; i < 50; ++i) {
    ask(h, static_cast<guint64>(i + 1));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    const auto start = Clock::now();
    h.push_event(gst_event_new_flush_start());
    h.push_event(gst_event_new_flush_stop(FALSE));
    ASSERT_LT(Clock::now() - start, milliseconds(2000)) << i;
    h.push_event(gst_event_new_segment(&segment));
  }
  backend.settings().step_delay = milliseconds(0);
  h.log().clear();
  ask(h, 100);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), long_answer(30));
}

TEST(MiniCpmoLlmControl, StateChangesAtRandomMomentsAreQuickAndClean) {
  FakeBackend backend;
  backend.settings().answer = long_answer(30);
  backend.settings().step_delay = milliseconds(1);
  std::mt19937 random(4);
  for (int i = 0; i < 50; ++i) {
    LlmHarness h;
    h.set_caps(kEmbeddingCaps);
    ask(h);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    const auto start = Clock::now();
    ASSERT_EQ(gst_element_set_state(h.element(), i % 2 != 0 ? GST_STATE_NULL : GST_STATE_READY),
              GST_STATE_CHANGE_SUCCESS);
    ASSERT_LT(Clock::now() - start, milliseconds(2000)) << i;
  }
}

// Queries come from any thread at any time, also while the engine goes.
TEST(MiniCpmoLlmControl, CapsQueriesDuringStateChangesAreSafe) {
  FakeBackend backend;
  LlmHarness h;
  const PadPtr pad(gst_element_get_static_pad(h.element(), "sink"));
  std::atomic<bool> done{false};
  std::atomic<int> narrowed{0};
  std::thread thread([&] {
    const CapsPtr other(gst_caps_from_string(
        "tensor/strided,tensor-id=minicpmo-audio-embedding,type=float32,dims=(int)<0,9>,"
        "dims-order=row-major"));
    while (!done) {
      const CapsPtr caps(gst_pad_query_caps(pad.get(), nullptr));
      if (!gst_caps_can_intersect(caps.get(), other.get())) ++narrowed;
    }
  });
  for (int i = 0; i < 100; ++i) {
    gst_element_set_state(h.element(), GST_STATE_NULL);
    gst_element_set_state(h.element(), GST_STATE_READY);
  }
  for (int i = 0; i < 10000 && narrowed == 0; ++i) std::this_thread::sleep_for(milliseconds(1));
  done = true;
  thread.join();
  EXPECT_GT(narrowed, 0);  // the engine was seen
}

TEST(MiniCpmoLlmControl, StopAndStartIsANewConversation) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  ask(h);
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  gst_element_set_state(h.element(), GST_STATE_READY);
  h.log().clear();
  backend.log().take();
  gst_element_set_state(h.element(), GST_STATE_PLAYING);
  h.push_event(gst_event_new_stream_start("again"));
  h.set_caps(kEmbeddingCaps);
  ask(h);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(backend.log().calls()[0], "lm.reset");
  EXPECT_EQ(h.log().bytes(), "You said 25 rows.");
}

TEST(MiniCpmoLlmControl, AFlushEndsTheWaitForTheModel) {
  FakeBackend backend;
  backend.settings().load_delay = milliseconds(60000);
  LlmHarness h;
  h.push_event(gst_event_new_stream_start("x"));
  std::thread thread([&] {
    const CapsPtr caps(gst_caps_from_string(kEmbeddingCaps));
    h.push_event(gst_event_new_caps(caps.get()));
  });
  std::this_thread::sleep_for(milliseconds(30));
  const auto start = Clock::now();
  h.push_event(gst_event_new_flush_start());
  thread.join();
  EXPECT_LT(Clock::now() - start, milliseconds(2000));
  h.push_event(gst_event_new_flush_stop(TRUE));
}

void expect_one_error(LlmHarness& h, GQuark domain, int code) {
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  const GErrorPtr error = error_of(errors[0].get());
  EXPECT_EQ(error->domain, domain) << error->message;
  EXPECT_EQ(error->code, code) << error->message;
}

TEST(MiniCpmoLlmControl, AFailingPrefillIsOneErrorAndEosGetsThrough) {
  FakeBackend backend;
  backend.settings().step_error = Error{ErrorCode::kFailed, "It broke.", ""};
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  GstFlowReturn flow = GST_FLOW_OK;
  for (int i = 0; i < 2000 && flow == GST_FLOW_OK; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    flow = h.push(embedding_chunk(25, GST_SECOND));
  }
  EXPECT_EQ(flow, GST_FLOW_ERROR);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  expect_one_error(h, GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED);
}

TEST(MiniCpmoLlmControl, RunningOutOfMemoryInAnAnswerIsOneError) {
  FakeBackend backend;
  backend.settings().answer = long_answer(10);
  backend.settings().step_error = Error{ErrorCode::kNoSpace, "Out of memory.", ""};
  backend.settings().steps_before_error = 4;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  expect_one_error(h, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NO_SPACE_LEFT);
  EXPECT_EQ(h.log().count("buffer"), 2u);
  EXPECT_EQ(h.log().count("minicpmo/answer-end"), 0u);
}

TEST(MiniCpmoLlmControl, AThrowingStageIsOneErrorAndEosGetsThrough) {
  FakeBackend backend;
  backend.settings().throw_in_step = true;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.messages(GST_MESSAGE_ERROR).size(), 1u);
}

TEST(MiniCpmoLlmControl, AModelThatDoesNotLoadIsOneErrorAndEosGetsThrough) {
  FakeBackend backend;
  backend.settings().load_error = Error{ErrorCode::kCorrupt, "model.safetensors is damaged.", ""};
  LlmHarness h;
  h.set_caps(kTextCaps);
  h.push(text_buffer("Hello"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  expect_one_error(h, GST_STREAM_ERROR, GST_STREAM_ERROR_WRONG_TYPE);
}

TEST(MiniCpmoLlmControl, AudioThatDoesNotFitIsNotHeard) {
  FakeBackend backend;
  backend.settings().context_rows = 60;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  for (int i = 0; i < 5; ++i) h.push(embedding_chunk(25, 0, 1));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  h.push(embedding_chunk(25, 0, 2));  // the next turn is heard again
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 50 rows.You said 25 rows.");
  EXPECT_EQ(h.messages(GST_MESSAGE_WARNING).size(), 1u);
  EXPECT_EQ(h.stat(h.stats(), "refused"), 1u);
}

TEST(MiniCpmoLlmControl, DownstreamsFlowReachesUpstream) {
  FakeBackend backend;
  LlmHarness h;
  const PadPtr pad(gst_element_get_static_pad(h.element(), "src"));
  gst_pad_add_probe(
      pad.get(), GST_PAD_PROBE_TYPE_BUFFER,
      [](GstPad*, GstPadProbeInfo* info, gpointer) {
        gst_buffer_unref(GST_PAD_PROBE_INFO_BUFFER(info));
        GST_PAD_PROBE_INFO_DATA(info) = nullptr;
        GST_PAD_PROBE_INFO_FLOW_RETURN(info) = GST_FLOW_EOS;
        return GST_PAD_PROBE_HANDLED;
      },
      nullptr, nullptr);
  h.set_caps(kEmbeddingCaps);
  ask(h);
  GstFlowReturn flow = GST_FLOW_OK;
  for (int i = 0; i < 2000 && flow == GST_FLOW_OK; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    flow = h.push(embedding_chunk(1, GST_SECOND));
  }
  EXPECT_EQ(flow, GST_FLOW_EOS);
  EXPECT_EQ(h.messages(GST_MESSAGE_ERROR).size(), 0u);
  EXPECT_EQ(backend.counters().interrupts, 1);  // what was not taken is not part of the answer
}

// After EOS nobody asks for the flow any more: the element itself reports that it is not linked.
TEST(MiniCpmoLlmControl, NotLinkedAfterEosIsAnError) {
  FakeBackend backend;
  const TemporaryFile question("Hello?\n");
  PipelineRun run("filesrc location=" + question.path() +
                  " ! text/x-raw,format=utf8 ! minicpmollm fakesink");
  EXPECT_FALSE(run.run());
  EXPECT_EQ(run.errors.size(), 1u);
}

}  // namespace
}  // namespace minicpmo::testing
