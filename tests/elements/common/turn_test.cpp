#include "common/gstminicpmoturn.h"

#include <gtest/gtest.h>

#include <cstring>

#include "common/gst_ptr.h"
#include "support/element_harness.h"

namespace minicpmo::testing {
namespace {

TEST(TurnEvents, CarryTheirFields) {
  EventPtr start(gst_minicpmo_event_new_turn_start(7));
  EXPECT_TRUE(gst_minicpmo_event_is(start.get(), GST_MINICPMO_EVENT_TURN_START));
  EXPECT_FALSE(gst_minicpmo_event_is(start.get(), GST_MINICPMO_EVENT_TURN_END));
  EXPECT_EQ(gst_minicpmo_event_turn_id(start.get()), 7u);
  EXPECT_EQ(GST_EVENT_TYPE(start.get()), GST_EVENT_CUSTOM_DOWNSTREAM);

  EventPtr end(gst_minicpmo_event_new_turn_end(G_MAXUINT64));
  EXPECT_EQ(gst_minicpmo_event_turn_id(end.get()), G_MAXUINT64);

  EventPtr answer(gst_minicpmo_event_new_answer_end(3, "length"));
  EXPECT_STREQ(gst_structure_get_string(gst_event_get_structure(answer.get()), "finish"), "length");

  EventPtr interrupt(gst_minicpmo_event_new_interrupt(-1));
  EXPECT_EQ(GST_EVENT_TYPE(interrupt.get()), GST_EVENT_CUSTOM_UPSTREAM);
  gint64 heard = 0;
  EXPECT_TRUE(
      gst_structure_get_int64(gst_event_get_structure(interrupt.get()), "heard-bytes", &heard));
  EXPECT_EQ(heard, -1);
}

TEST(TurnEvents, SpeakerIsStickyAndCopied) {
  float vector[3] = {1.0f, -2.0f, 3.5f};
  EventPtr event(gst_minicpmo_event_new_speaker(2, vector, 3));
  vector[0] = 99.0f;
  EXPECT_EQ(GST_EVENT_TYPE(event.get()), GST_EVENT_CUSTOM_DOWNSTREAM_STICKY);
  GstBuffer* buffer = nullptr;
  ASSERT_TRUE(gst_structure_get(gst_event_get_structure(event.get()), "speaker", GST_TYPE_BUFFER,
                                &buffer, nullptr));
  BufferPtr owned(buffer);
  EXPECT_EQ(floats_of(buffer), (std::vector<float>{1.0f, -2.0f, 3.5f}));
}

TEST(TurnEvents, OtherEventsAreNone) {
  EventPtr eos(gst_event_new_eos());
  EXPECT_FALSE(gst_minicpmo_event_is(eos.get(), GST_MINICPMO_EVENT_TURN_START));
  EXPECT_EQ(gst_minicpmo_event_turn_id(eos.get()), 0u);
}

TEST(TurnMeta, KeepsEveryFieldInACopy) {
  BufferPtr buffer(gst_buffer_new_allocate(nullptr, 16, nullptr));
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffer.get()), nullptr);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), 5, 6, GST_MINICPMO_TURN_SEGMENT_START,
                                    7 * GST_SECOND);
  BufferPtr copy(gst_buffer_copy_region(buffer.get(), GST_BUFFER_COPY_ALL, 4, 8));
  const auto* meta = gst_buffer_get_minicpmo_turn_meta(copy.get());
  ASSERT_NE(meta, nullptr);
  EXPECT_EQ(meta->turn_id, 5u);
  EXPECT_EQ(meta->chunk, 6u);
  EXPECT_EQ(meta->flags, static_cast<guint>(GST_MINICPMO_TURN_SEGMENT_START));
  EXPECT_EQ(meta->capture_time, 7 * GST_SECOND);
}

TEST(TurnMeta, APartOfAChunkIsNoChunk) {
  BufferPtr buffer(gst_buffer_new_allocate(nullptr, 16, nullptr));
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), 5, 6,
                                    GST_MINICPMO_TURN_CHUNK | GST_MINICPMO_TURN_FIRST, 0);
  const auto flags_of = [&](gsize offset, gsize size) {
    BufferPtr copy(gst_buffer_copy_region(buffer.get(), GST_BUFFER_COPY_ALL, offset, size));
    return gst_buffer_get_minicpmo_turn_meta(copy.get())->flags;
  };
  EXPECT_EQ(flags_of(0, 16), guint{GST_MINICPMO_TURN_CHUNK | GST_MINICPMO_TURN_FIRST});
  EXPECT_EQ(flags_of(0, 8), guint{GST_MINICPMO_TURN_FIRST});
}

class MetaThrough : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Elements, MetaThrough,
                         ::testing::Values("queue", "identity", "tee", "queue2"));

TEST_P(MetaThrough, Survives) {
  const bool tee = std::strcmp(GetParam(), "tee") == 0;
  GstHarness* h = gst_harness_new_with_padnames(GetParam(), "sink", tee ? "src_%u" : "src");
  gst_harness_set_src_caps_str(h, kPcmCaps);
  BufferPtr buffer = pcm_buffer(10, 0.0f, 0);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), 11, 2, GST_MINICPMO_TURN_CHUNK, 123);
  EXPECT_EQ(gst_harness_push(h, buffer.release()), GST_FLOW_OK);
  BufferPtr out(gst_harness_pull(h));
  ASSERT_NE(out, nullptr);
  const auto* meta = gst_buffer_get_minicpmo_turn_meta(out.get());
  ASSERT_NE(meta, nullptr);
  EXPECT_EQ(meta->turn_id, 11u);
  EXPECT_EQ(meta->capture_time, 123u);
  out.reset();
  gst_harness_teardown(h);
}

}  // namespace
}  // namespace minicpmo::testing
