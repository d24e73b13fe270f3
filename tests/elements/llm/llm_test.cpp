// minicpmollm: embeddings in, bursts out, the order of events, turns, time.
#include <gst/check/gsttestclock.h>
#include <gtest/gtest.h>

#include "common/gstminicpmoturn.h"
#include "elements/chain/stream_log.h"
#include "elements/llm/llm_harness.h"

namespace minicpmo::testing {
namespace {

using Names = std::vector<std::string>;

TEST(MiniCpmoLlm, AnswersAtEos) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  ASSERT_EQ(h.push(embedding_chunk(25, 0)), GST_FLOW_OK);
  ASSERT_EQ(h.push(embedding_chunk(10, GST_SECOND)), GST_FLOW_OK);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 35 rows.");
}

TEST(MiniCpmoLlm, EverythingComesInOrder) {
  FakeBackend backend;
  backend.settings().bursts = {"Hello", "", " world."};
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "minicpmo/speaker", "buffer",
                                    "gap", "buffer", "minicpmo/answer-end", "eos"}));
}

TEST(MiniCpmoLlm, BurstsBecomeBuffers) {
  FakeBackend backend;
  backend.settings().bursts = {"One", " two", "", " three"};
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0, 5));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const auto buffers = h.log().all("buffer");
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(buffers[1].bytes, " two");
  EXPECT_TRUE(buffers[0].discont);
  EXPECT_FALSE(buffers[1].discont);
  EXPECT_EQ(buffers[0].flags, unsigned{GST_MINICPMO_TURN_FIRST});
  EXPECT_EQ(buffers[2].flags, 0u);
  EXPECT_EQ(buffers[2].chunk, 3u);  // the empty burst counts
  for (const Passed& buffer : buffers) EXPECT_EQ(buffer.turn_id, 5u);
}

TEST(MiniCpmoLlm, SpeakerEventHoldsTheVector) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0, 3));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const PadPtr pad(gst_element_get_static_pad(h.element(), "src"));
  const EventPtr event(gst_pad_get_sticky_event(pad.get(), GST_EVENT_CUSTOM_DOWNSTREAM_STICKY, 0));
  ASSERT_NE(event, nullptr);
  ASSERT_TRUE(gst_minicpmo_event_is(event.get(), GST_MINICPMO_EVENT_SPEAKER));
  EXPECT_EQ(gst_minicpmo_event_turn_id(event.get()), 3u);
  GstBuffer* vector = gst_value_get_buffer(
      gst_structure_get_value(gst_event_get_structure(event.get()), "speaker"));
  EXPECT_EQ(floats_of(vector), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(MiniCpmoLlm, UnmarkedEmbeddingsAreCutIntoChunks) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  // 60 rows in buffers that end within rows.
  const BufferPtr all = embedding_buffer(60);
  for (gsize at = 0; at < 60 * 32; at += 700) {
    const gsize size = std::min<gsize>(700, 60 * 32 - at);
    h.push(BufferPtr(gst_buffer_copy_region(all.get(), GST_BUFFER_COPY_ALL, at, size)));
  }
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.prefills(backend), (Names{"25", "25", "10"}));
}

TEST(MiniCpmoLlm, MarkedChunksStayAsTheyAre) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(7, 0));
  h.push(embedding_chunk(25, GST_SECOND));
  h.push(embedding_chunk(13, 2 * GST_SECOND));
  h.push(embedding_chunk(0, 3 * GST_SECOND));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.prefills(backend), (Names{"7", "25", "13"}));
}

TEST(MiniCpmoLlm, AChunkThatIsTooLongIsCut) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(30, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.prefills(backend), (Names{"25", "5"}));
}

TEST(MiniCpmoLlm, APartOfARowIsAnError) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  const BufferPtr rows = embedding_buffer(3);
  h.push(BufferPtr(gst_buffer_copy_region(rows.get(), GST_BUFFER_COPY_ALL, 0, 80)));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_NE(std::string(error_of(errors[0].get())->message).find("16 bytes are left"),
            std::string::npos);
}

TEST(MiniCpmoLlm, TurnEventsMakeTurns) {
  FakeBackend backend;
  backend.settings().burst_bytes = 100;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  for (guint64 id : {7, 9}) {
    h.push_event(gst_minicpmo_event_new_turn_start(id));
    h.push(embedding_chunk(id, 0, id));
    h.push_event(gst_minicpmo_event_new_turn_end(id));
  }
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const Names turn{"minicpmo/turn-start", "minicpmo/turn-end", "minicpmo/speaker", "buffer",
                   "minicpmo/answer-end"};
  Names expected{"stream-start", "caps", "segment"};
  for (int i = 0; i < 2; ++i) expected.insert(expected.end(), turn.begin(), turn.end());
  expected.push_back("eos");
  EXPECT_EQ(h.log().names(), expected);
  const auto ends = h.log().all("minicpmo/answer-end");
  EXPECT_EQ(ends[0].turn_id, 7u);
  EXPECT_EQ(ends[1].turn_id, 9u);
  EXPECT_EQ(ends[0].finish, "stop");
  EXPECT_EQ(h.log().bytes(), "You said 7 rows.You said 9 rows.");
  EXPECT_EQ(h.log().all("buffer")[1].turn_id, 9u);
}

TEST(MiniCpmoLlm, AnUnmarkedRestEndsWithItsTurn) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_buffer(30, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  h.push(embedding_buffer(4, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.prefills(backend), (Names{"25", "5", "4"}));
}

TEST(MiniCpmoLlm, AnEmptyTurnIsAnsweredWithNothing) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push_event(gst_minicpmo_event_new_turn_start(4));
  h.push_event(gst_minicpmo_event_new_turn_end(4));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  const auto end = h.log().all("minicpmo/answer-end")[0];
  EXPECT_EQ(end.finish, "empty");
  EXPECT_EQ(end.turn_id, 4u);
  EXPECT_EQ(h.log().count("minicpmo/speaker"), 0u);
  EXPECT_EQ(backend.log().count("lm.start_answer"), 0);
}

TEST(MiniCpmoLlm, FinishReasonsHaveNames) {
  for (const auto& [finish, name] : {std::pair{FinishReason::kStop, "stop"},
                                     {FinishReason::kLength, "length"},
                                     {FinishReason::kContext, "context"}}) {
    FakeBackend backend;
    backend.settings().finish = finish;
    LlmHarness h;
    h.set_caps(kEmbeddingCaps);
    h.push(embedding_chunk(25, 0));
    h.push_eos();
    ASSERT_TRUE(h.log().wait_for("eos"));
    EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].finish, name);
  }
}

TEST(MiniCpmoLlm, ASilentAnswerIsEmpty) {
  FakeBackend backend;
  backend.settings().bursts = {"", ""};
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().all("minicpmo/answer-end")[0].finish, "empty");
  EXPECT_EQ(h.log().count("gap"), 2u);
}

TEST(MiniCpmoLlm, EosWithoutAQuestionWarnsOnce) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "eos"}));
  const auto warnings = h.messages(GST_MESSAGE_WARNING);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(std::string(error_of(warnings[0].get())->message).find("nothing to answer"),
            std::string::npos);
}

TEST(MiniCpmoLlm, EosBeforeCapsStillMakesAWholeStream) {
  FakeBackend backend;
  LlmHarness h;
  h.push_event(gst_event_new_stream_start("x"));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "eos"}));
}

TEST(MiniCpmoLlm, AnswersStartAtTheEndOfTheirQuestion) {
  FakeBackend backend;
  backend.settings().bursts = {"a", "", "b"};
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 3 * GST_SECOND));
  h.push(embedding_chunk(10, 4 * GST_SECOND));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  h.push(embedding_chunk(25, 9 * GST_SECOND));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const auto buffers = h.log().all("buffer");
  ASSERT_EQ(buffers.size(), 4u);
  const GstClockTime first = 4 * GST_SECOND + 400 * GST_MSECOND;
  EXPECT_EQ(buffers[0].pts, first);
  EXPECT_EQ(buffers[1].pts, first);
  EXPECT_EQ(h.log().all("gap")[0].pts, first);
  EXPECT_EQ(buffers[2].pts, 10 * GST_SECOND);
  EXPECT_FALSE(GST_CLOCK_TIME_IS_VALID(buffers[0].duration));
  EXPECT_EQ(buffers[0].capture_time, first);
}

// A file's segment ends where its data does; the answer comes after that.
TEST(MiniCpmoLlm, TheOutputSegmentHasNoEnd) {
  FakeBackend backend;
  LlmHarness h;
  h.push_event(gst_event_new_stream_start("x"));
  h.push_event(gst_event_new_caps(CapsPtr(gst_caps_from_string(kEmbeddingCaps)).get()));
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  segment.start = segment.position = 10 * GST_SECOND;
  segment.stop = 11 * GST_SECOND;
  segment.base = 100 * GST_SECOND;
  h.push_event(gst_event_new_segment(&segment));
  h.push(embedding_chunk(25, 10 * GST_SECOND));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().all("buffer")[0].pts, 101 * GST_SECOND);  // running time
  const PadPtr pad(gst_element_get_static_pad(h.element(), "src"));
  const EventPtr event(gst_pad_get_sticky_event(pad.get(), GST_EVENT_SEGMENT, 0));
  const GstSegment* out = nullptr;
  gst_event_parse_segment(event.get(), &out);
  EXPECT_EQ(out->format, GST_FORMAT_TIME);
  EXPECT_FALSE(GST_CLOCK_TIME_IS_VALID(out->stop));
  EXPECT_EQ(gst_segment_to_running_time(out, GST_FORMAT_TIME, 101 * GST_SECOND), 101 * GST_SECOND);
}

TEST(MiniCpmoLlm, AGapMovesTheEndOfTheQuestion) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_event_new_gap(GST_SECOND, GST_SECOND / 2));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().all("buffer")[0].pts, GST_SECOND * 3 / 2);
  EXPECT_EQ(h.log().count("gap"), 0u);  // it is none of the output's
}

TEST(MiniCpmoLlm, ArrivalModeTellsTheTimeNow) {
  FakeBackend backend;
  LlmHarness h([](GstElement* element) {
    gst_util_set_object_arg(G_OBJECT(element), "timestamp-mode", "arrival");
  });
  gst_harness_use_testclock(h.get());
  gst_harness_set_time(h.get(), 42 * GST_SECOND);
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  for (const Passed& buffer : h.log().all("buffer")) EXPECT_EQ(buffer.pts, 42 * GST_SECOND);
}

TEST(MiniCpmoLlm, LatencyLeavesThinkingOut) {
  for (const bool arrival : {false, true}) {
    FakeBackend backend;
    LlmHarness h([arrival](GstElement* element) {
      gst_util_set_object_arg(G_OBJECT(element), "timestamp-mode", arrival ? "arrival" : "input");
    });
    gst_harness_set_live(h.get(), TRUE);
    gst_harness_set_upstream_latency(h.get(), 30 * GST_MSECOND);
    const PadPtr pad(gst_element_get_static_pad(h.element(), "src"));
    const QueryPtr query(gst_query_new_latency());
    ASSERT_TRUE(gst_pad_query(pad.get(), query.get()));
    gboolean live;
    GstClockTime min, max;
    gst_query_parse_latency(query.get(), &live, &min, &max);
    EXPECT_TRUE(live);
    EXPECT_EQ(min, arrival ? 0 : 30 * GST_MSECOND);
  }
}

TEST(MiniCpmoLlm, EventsDuringAnAnswerWaitBehindIt) {
  FakeBackend backend;
  backend.settings().step_delay = std::chrono::milliseconds(10);
  backend.settings().answer = "A rather long answer that takes a while to be said.";
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  ASSERT_TRUE(h.log().wait_for("buffer"));
  h.push_event(
      gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty("test/marker")));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const Names names = h.log().names();
  ASSERT_GE(names.size(), 3u);
  EXPECT_EQ(Names(names.end() - 3, names.end()),
            (Names{"minicpmo/answer-end", "test/marker", "eos"}));
}

// The title and the chapters of the question are not those of the answer.
TEST(MiniCpmoLlm, TagsOfTheQuestionEndHere) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push_event(gst_event_new_tag(gst_tag_list_new(GST_TAG_TITLE, "question.wav", nullptr)));
  GstToc* toc = gst_toc_new(GST_TOC_SCOPE_GLOBAL);
  h.push_event(gst_event_new_toc(toc, FALSE));
  gst_toc_unref(toc);
  h.push(embedding_chunk(25, 0));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().names(), (Names{"stream-start", "caps", "segment", "minicpmo/speaker", "buffer",
                                    "buffer", "buffer", "minicpmo/answer-end", "eos"}));
}

TEST(MiniCpmoLlm, OnlyAFlushingSeekAtNormalSpeedPasses) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  const auto seek = [&](gdouble rate, GstSeekFlags flags) {
    gst_harness_push_upstream_event(
        h.get(), gst_event_new_seek(rate, GST_FORMAT_TIME, flags, GST_SEEK_TYPE_SET, 0,
                                    GST_SEEK_TYPE_NONE, 0));
    guint seeks = 0;
    while (GstEvent* event = gst_harness_try_pull_upstream_event(h.get())) {
      if (GST_EVENT_TYPE(event) == GST_EVENT_SEEK) ++seeks;
      gst_event_unref(event);
    }
    return seeks;
  };
  EXPECT_EQ(seek(1, GST_SEEK_FLAG_FLUSH), 1u);
  EXPECT_EQ(seek(1, GST_SEEK_FLAG_NONE), 0u);
  EXPECT_EQ(seek(2, GST_SEEK_FLAG_FLUSH), 0u);
  EXPECT_EQ(seek(-1, GST_SEEK_FLAG_FLUSH), 0u);
}

TEST(MiniCpmoLlm, TheNextQuestionWaitsForTheAnswer) {
  FakeBackend backend;
  backend.settings().step_delay = std::chrono::milliseconds(5);
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  h.push(embedding_chunk(3, GST_SECOND));
  h.push_event(gst_minicpmo_event_new_turn_end(2));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.log().bytes(), "You said 25 rows.You said 3 rows.");
}

TEST(MiniCpmoLlm, EachAnswerIsAMessage) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0, 6));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const auto messages = h.messages(GST_MESSAGE_ELEMENT);
  ASSERT_EQ(messages.size(), 1u);
  const GstStructure* fields = gst_message_get_structure(messages[0].get());
  EXPECT_STREQ(gst_structure_get_name(fields), "minicpmo/answer");
  EXPECT_STREQ(gst_structure_get_string(fields, "text"), "You said 25 rows.");
  EXPECT_STREQ(gst_structure_get_string(fields, "finish"), "stop");
  guint64 turn = 0, tokens = 0, context = 0;
  gst_structure_get_uint64(fields, "turn-id", &turn);
  gst_structure_get_uint64(fields, "tokens", &tokens);
  gst_structure_get_uint64(fields, "context-used", &context);
  EXPECT_EQ(turn, 6u);
  EXPECT_EQ(tokens, 3u);  // 17 bytes in bursts of 8, one id each
  EXPECT_EQ(context, 25u);  // of the fake: rows
}

TEST(MiniCpmoLlm, CapsOfAnotherWidthAreRefused) {
  FakeBackend backend;
  LlmHarness h;
  ASSERT_TRUE(h.wait_loaded());
  const PadPtr pad(gst_element_get_static_pad(h.element(), "sink"));
  const CapsPtr caps(gst_pad_query_caps(pad.get(), nullptr));
  const CapsPtr good(gst_caps_from_string(kEmbeddingCaps));
  const CapsPtr bad(gst_caps_from_string(
      "tensor/strided,tensor-id=minicpmo-audio-embedding,type=float32,dims=(int)<0,16>,"
      "dims-order=row-major"));
  const CapsPtr half(gst_caps_from_string(
      "tensor/strided,tensor-id=minicpmo-audio-embedding,type=bfloat16,dims=(int)<0,8>,"
      "dims-order=row-major"));
  EXPECT_TRUE(gst_caps_can_intersect(caps.get(), good.get()));
  EXPECT_TRUE(gst_caps_can_intersect(caps.get(), half.get()));
  EXPECT_FALSE(gst_caps_can_intersect(caps.get(), bad.get()));
}

// Before the model is there nobody knows its width: the CAPS event waits, and then fails by name.
TEST(MiniCpmoLlm, CapsThatCameBeforeTheModelAreCheckedThen) {
  FakeBackend backend;
  backend.settings().load_delay = std::chrono::milliseconds(100);
  LlmHarness h;
  h.push_event(gst_event_new_stream_start("x"));
  const CapsPtr bad(gst_caps_from_string(
      "tensor/strided,tensor-id=minicpmo-audio-embedding,type=float32,dims=(int)<0,16>,"
      "dims-order=row-major"));
  h.push_event(gst_event_new_caps(bad.get()));
  const auto error = h.wait_message(GST_MESSAGE_ERROR);
  ASSERT_NE(error, nullptr);
  EXPECT_NE(std::string(error_of(error.get())->message).find("16 columns"), std::string::npos);
}

TEST(MiniCpmoLlm, BFloat16IsTwoBytesAValue) {
  FakeBackend backend;
  LlmHarness h;
  h.set_caps(
      "tensor/strided,tensor-id=minicpmo-audio-embedding,type=bfloat16,dims=(int)<0,8>,"
      "dims-order=row-major");
  h.push(BufferPtr(gst_buffer_new_allocate(nullptr, 30 * 16, nullptr)));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  EXPECT_EQ(h.prefills(backend), (Names{"25", "5"}));
}

TEST(MiniCpmoLlm, PropertiesAreWhatWasSet) {
  FakeBackend backend;
  const ElementPtr element(
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("minicpmollm", nullptr))));
  g_object_set(element.get(), "temperature", 0.25, "top-p", 0.5, "top-k", 7, "repetition-penalty",
               1.5, "seed", guint64{1} << 40, "max-new-tokens", 33, "context-length", 4096,
               "system-prompt", "Be brief.", "compatibility", 1, "timestamp-mode", 1,
               "max-message-bytes", 1000u, nullptr);
  double temperature, top_p, penalty;
  int top_k, tokens, context, compatibility, mode;
  guint64 seed;
  guint bytes;
  gchar* prompt;
  g_object_get(element.get(), "temperature", &temperature, "top-p", &top_p, "top-k", &top_k,
               "repetition-penalty", &penalty, "seed", &seed, "max-new-tokens", &tokens,
               "context-length", &context, "system-prompt", &prompt, "compatibility",
               &compatibility, "timestamp-mode", &mode, "max-message-bytes", &bytes, nullptr);
  EXPECT_EQ(temperature, 0.25);
  EXPECT_EQ(top_p, 0.5);
  EXPECT_EQ(top_k, 7);
  EXPECT_EQ(penalty, 1.5);
  EXPECT_EQ(seed, guint64{1} << 40);
  EXPECT_EQ(tokens, 33);
  EXPECT_EQ(context, 4096);
  EXPECT_STREQ(prompt, "Be brief.");
  EXPECT_EQ(compatibility, 1);
  EXPECT_EQ(mode, 1);
  EXPECT_EQ(bytes, 1000u);
  g_free(prompt);
}

TEST(MiniCpmoLlm, PropertiesReachTheModel) {
  FakeBackend backend;
  LlmHarness h([](GstElement* element) {
    g_object_set(element, "temperature", 0.5, "top-k", 11, "seed", guint64{99}, "max-new-tokens",
                 20, "context-length", 2048, "system-prompt", nullptr, "compatibility", 1, nullptr);
  });
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push_event(gst_minicpmo_event_new_turn_end(1));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end"));
  const LanguageModelOptions options = backend.language_model_options();
  EXPECT_EQ(options.temperature, 0.5);
  EXPECT_EQ(options.top_k, 11);
  EXPECT_EQ(options.seed, 99u);
  EXPECT_EQ(options.max_new_tokens, 20);
  EXPECT_EQ(options.context_length, 2048);
  EXPECT_EQ(options.system_prompt, "");
  EXPECT_EQ(options.compatibility, Compatibility::kUpstream);

  g_object_set(h.element(), "temperature", 0.0, nullptr);
  h.push(embedding_chunk(25, GST_SECOND));
  h.push_event(gst_minicpmo_event_new_turn_end(2));
  ASSERT_TRUE(h.log().wait_for("minicpmo/answer-end", 2));
  EXPECT_EQ(backend.language_model_options().temperature, 0.0);
}

TEST(MiniCpmoLlm, StatsCount) {
  FakeBackend backend;
  backend.settings().step_delay = std::chrono::milliseconds(2);
  backend.settings().gpu_time = std::chrono::milliseconds(3);
  LlmHarness h;
  h.set_caps(kEmbeddingCaps);
  h.push(embedding_chunk(25, 0));
  h.push(embedding_chunk(5, GST_SECOND));
  h.push_eos();
  ASSERT_TRUE(h.log().wait_for("eos"));
  const StructurePtr stats = h.stats();
  EXPECT_EQ(h.stat(stats, "gpu-prefill-time"), 3 * 3 * GST_MSECOND);
  // The start of the answer and three bursts as well.
  EXPECT_EQ(h.stat(stats, "gpu-time"), 6 * 3 * GST_MSECOND);
  EXPECT_EQ(h.stat(stats, "turns"), 1u);
  EXPECT_EQ(h.stat(stats, "rows"), 30u);
  EXPECT_EQ(h.stat(stats, "tokens"), 3u);
  EXPECT_GE(h.stat(stats, "prefill-time"), 4 * GST_MSECOND);
  EXPECT_GE(h.stat(stats, "decode-time"), 8 * GST_MSECOND);
  EXPECT_GE(h.stat(stats, "first-text-latency"), 4 * GST_MSECOND);
}

}  // namespace
}  // namespace minicpmo::testing
