// minicpmoaudioenc: events, segments, latency, flushing, failures.
#include <glib/gstdio.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>

#include "common/gstminicpmoturn.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"

using namespace std::chrono_literals;

namespace minicpmo::testing {
namespace {

using Names = std::vector<std::string>;

GstEvent* custom_event(const char* name) {
  return gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty(name));
}

class AudioEncStream : public ::testing::Test {
 protected:
  void start(const ElementHarness::Setup& setup = {}) {
    h_ = std::make_unique<ElementHarness>("minicpmoaudioenc", setup);
    h_->set_caps(kPcmCaps);
  }
  GstFlowReturn push(size_t samples, GstClockTime pts = GST_CLOCK_TIME_NONE) {
    return h_->push(pcm_buffer(samples, 0.5f, pts));
  }
  void push_segment(GstFormat format, guint64 start, guint64 time = 0) {
    GstSegment segment;
    gst_segment_init(&segment, format);
    segment.start = start;
    segment.time = time;
    h_->push_event(gst_event_new_segment(&segment));
  }
  GstSegment last_segment() {
    GstSegment segment;
    gst_segment_init(&segment, GST_FORMAT_UNDEFINED);
    for (const EventPtr& event : h_->events()) {
      if (GST_EVENT_TYPE(event.get()) == GST_EVENT_SEGMENT)
        gst_event_copy_segment(event.get(), &segment);
    }
    return segment;
  }

  FakeBackend backend_;
  std::unique_ptr<ElementHarness> h_;
};

TEST_F(AudioEncStream, EventsKeepTheirPlaceAmongTheData) {
  start();
  push(16000, 0);
  h_->push_event(custom_event("between"));
  push(8000, GST_SECOND);
  h_->push_event(custom_event("inside"));  // after samples that are still held
  h_->push_event(gst_event_new_tag(gst_tag_list_new(GST_TAG_TITLE, "t", nullptr)));
  push(16000, 1500 * GST_MSECOND);
  h_->push_event(custom_event("last"));
  h_->push_eos();
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "buffer", "between",
                                     "buffer", "inside", "tag", "buffer", "last", "eos"}));
}

TEST_F(AudioEncStream, OutOfBandEventsDoNotWait) {
  start();
  push(8000, 0);
  h_->push_event(
      gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM_OOB, gst_structure_new_empty("urgent")));
  EXPECT_EQ(h_->take_order().back(), "urgent");
}

TEST_F(AudioEncStream, UpstreamEventsPass) {
  start();
  gst_harness_push_upstream_event(h_->get(), gst_minicpmo_event_new_interrupt(12));
  bool seen = false;
  while (GstEvent* event = gst_harness_try_pull_upstream_event(h_->get())) {
    seen = seen || gst_minicpmo_event_is(event, GST_MINICPMO_EVENT_INTERRUPT);
    gst_event_unref(event);
  }
  EXPECT_TRUE(seen);
}

TEST_F(AudioEncStream, NewSegmentDrainsFirst) {
  start();
  push(24000, 0);
  push_segment(GST_FORMAT_TIME, 100 * GST_SECOND);
  push(16000, 100 * GST_SECOND);
  EXPECT_EQ(h_->take_order(),
            (Names{"stream-start", "caps", "segment", "buffer", "buffer", "segment", "buffer"}));
  EXPECT_EQ(last_segment().start, 100 * GST_SECOND);
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(GST_BUFFER_DURATION(buffers[1].get()), 500 * GST_MSECOND);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[2].get()), 100 * GST_SECOND);
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[2].get())->capture_time, GST_SECOND);
}

TEST_F(AudioEncStream, SegmentInBytesBecomesTime) {
  start();
  push_segment(GST_FORMAT_BYTES, 0);
  push(16000);
  push(16000);
  const GstSegment segment = last_segment();
  EXPECT_EQ(segment.format, GST_FORMAT_TIME);
  EXPECT_EQ(segment.start, 0u);
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[0].get()), 0u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), GST_SECOND);
}

TEST_F(AudioEncStream, DataOutsideTheSegmentIsClipped) {
  start();
  push_segment(GST_FORMAT_TIME, 10 * GST_SECOND);
  push(16000, 8 * GST_SECOND);      // before it
  push(16000, 9500 * GST_MSECOND);  // half of it
  h_->push_eos();
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 1u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[0].get()), 10 * GST_SECOND);
  EXPECT_EQ(GST_BUFFER_DURATION(buffers[0].get()), 500 * GST_MSECOND);
}

TEST_F(AudioEncStream, SecondStreamAfterEos) {
  start();
  push(8000, 0);
  h_->push_eos();
  h_->push_event(gst_event_new_stream_start("second"));
  push_segment(GST_FORMAT_TIME, 0, 1);
  push(8000, 0);
  h_->push_eos();
  EXPECT_EQ(backend_.log().count("audio.reset"), 2);
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[1].get())->turn_id, 2u);
}

TEST_F(AudioEncStream, LatencyIsOneChunkOfALiveSource) {
  start();
  gst_harness_set_live(h_->get(), TRUE);
  gst_harness_set_upstream_latency(h_->get(), 20 * GST_MSECOND);
  EXPECT_EQ(gst_harness_query_latency(h_->get()), 1020 * GST_MSECOND);
}

TEST_F(AudioEncStream, NoLatencyOfAFile) {
  start();
  gst_harness_set_live(h_->get(), FALSE);
  EXPECT_EQ(gst_harness_query_latency(h_->get()), 0u);
}

TEST_F(AudioEncStream, LatencyFollowsTheModelsChunk) {
  backend_.settings().info.chunk_samples = 8000;
  start();
  push(8000, 0);
  EXPECT_EQ(h_->messages(GST_MESSAGE_LATENCY).size(), 1u);
  gst_harness_set_live(h_->get(), TRUE);
  EXPECT_EQ(gst_harness_query_latency(h_->get()), 500 * GST_MSECOND);
}

TEST_F(AudioEncStream, FlushForgetsTheTurn) {
  start();
  push(20000, 0);
  h_->push_event(gst_event_new_flush_start());
  EXPECT_EQ(push(16000, 0), GST_FLOW_FLUSHING);
  h_->push_event(gst_event_new_flush_stop(TRUE));
  push_segment(GST_FORMAT_TIME, 0);
  EXPECT_EQ(push(16000, 0), GST_FLOW_OK);
  EXPECT_EQ(backend_.log().take(),
            (Names{"audio.reset", "audio.step 16000", "audio.reset", "audio.step 16000"}));
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "buffer", "flush-start",
                                     "flush-stop", "segment", "buffer"}));
}

TEST_F(AudioEncStream, FlushCancelsARunningStep) {
  backend_.settings().step_delay = 20s;
  start();
  ASSERT_TRUE(h_->wait_loaded());
  GstFlowReturn flow = GST_FLOW_OK;
  std::thread pusher([&] { flow = push(16000, 0); });
  while (backend_.counters().steps == 0) std::this_thread::sleep_for(1ms);
  h_->push_event(gst_event_new_flush_start());
  pusher.join();
  EXPECT_EQ(flow, GST_FLOW_FLUSHING);
  EXPECT_EQ(backend_.counters().cancelled, 1);
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
  backend_.settings().step_delay = 0ms;
  h_->push_event(gst_event_new_flush_stop(TRUE));
  push_segment(GST_FORMAT_TIME, 0);
  EXPECT_EQ(push(16000, 0), GST_FLOW_OK);
}

TEST_F(AudioEncStream, StoppingCancelsARunningStep) {
  backend_.settings().step_delay = 20s;
  start();
  GstFlowReturn flow = GST_FLOW_OK;
  std::thread pusher([&] { flow = push(16000, 0); });
  while (backend_.counters().steps == 0) std::this_thread::sleep_for(1ms);
  gst_element_set_state(h_->element(), GST_STATE_NULL);
  pusher.join();
  EXPECT_EQ(flow, GST_FLOW_FLUSHING);
}

TEST_F(AudioEncStream, FlushAtAnyMoment) {
  backend_.settings().step_delay = 1ms;
  start();
  std::atomic<bool> stop{false};
  std::mutex order;  // data does not come between a flush and its segment
  std::thread flusher([&] {
    for (int i = 0; i < 60; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(300 * (i % 11)));
      h_->push_event(gst_event_new_flush_start());
      std::lock_guard lock(order);
      h_->push_event(gst_event_new_flush_stop(TRUE));
      push_segment(GST_FORMAT_TIME, 0);
    }
    stop = true;
  });
  while (!stop) {
    {
      std::lock_guard lock(order);
      const GstFlowReturn flow = push(5000);
      EXPECT_TRUE(flow == GST_FLOW_OK || flow == GST_FLOW_FLUSHING) << gst_flow_get_name(flow);
    }
    h_->pull_all();
    std::this_thread::yield();
  }
  flusher.join();
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(AudioEncStream, FailedStepIsOneErrorAndEosStillPasses) {
  backend_.settings().step_error = Error{ErrorCode::kFailed, "the model run failed", "why"};
  backend_.settings().steps_before_error = 1;
  start();
  EXPECT_EQ(push(16000, 0), GST_FLOW_OK);
  EXPECT_EQ(push(20000, GST_SECOND), GST_FLOW_ERROR);
  EXPECT_EQ(push(16000, 2 * GST_SECOND), GST_FLOW_ERROR);
  h_->push_eos();  // does not try the rest
  EXPECT_EQ(h_->messages(GST_MESSAGE_ERROR).size(), 1u);
  EXPECT_EQ(h_->take_order().back(), "eos");
}

TEST_F(AudioEncStream, FlushRecoversFromAFailedStep) {
  backend_.settings().step_error = Error{ErrorCode::kNoSpace, "out of memory", ""};
  start();
  EXPECT_EQ(push(16000, 0), GST_FLOW_ERROR);
  backend_.settings().step_error.reset();
  h_->push_event(gst_event_new_flush_start());
  h_->push_event(gst_event_new_flush_stop(TRUE));
  push_segment(GST_FORMAT_TIME, 0);
  EXPECT_EQ(push(16000, 0), GST_FLOW_OK);
}

TEST_F(AudioEncStream, ExceptionOfAStepStopsAtTheElement) {
  backend_.settings().throw_in_step = true;
  start();
  EXPECT_EQ(push(20000, 0), GST_FLOW_ERROR);
  h_->push_eos();
  const auto errors = h_->messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_TRUE(
      g_error_matches(error_of(errors[0].get()).get(), GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED));
}

TEST_F(AudioEncStream, DownstreamFlowComesBack) {
  start();
  gst_harness_push_event(h_->get(), gst_event_new_tag(gst_tag_list_new_empty()));
  GST_PAD_SET_FLUSHING(h_->get()->sinkpad);
  EXPECT_EQ(push(16000, 0), GST_FLOW_FLUSHING);
  GST_PAD_UNSET_FLUSHING(h_->get()->sinkpad);
}

// Of all sessions: going down ends one.
TEST_F(AudioEncStream, StatsSumTheGpuTime) {
  backend_.settings().gpu_time = 3ns;
  const auto gpu_time = [&] {
    GstStructure* stats = nullptr;
    g_object_get(h_->element(), "stats", &stats, nullptr);
    const StructurePtr owned(stats);
    guint64 time = G_MAXUINT64;
    EXPECT_TRUE(gst_structure_get_uint64(stats, "gpu-time", &time));
    return time;
  };
  start();
  EXPECT_EQ(gpu_time(), 0u);
  push(40000, 0);
  EXPECT_EQ(gpu_time(), 2 * 3u);
  gst_element_set_state(h_->element(), GST_STATE_NULL);
  EXPECT_EQ(gpu_time(), 2 * 3u);
  gst_element_set_state(h_->element(), GST_STATE_PLAYING);
  h_->set_caps(kPcmCaps);
  push(16000, 0);
  EXPECT_EQ(gpu_time(), 3 * 3u);
}

TEST_F(AudioEncStream, StatsCountTheStream) {
  start();
  push(40000, 0);
  h_->push_eos();
  GstStructure* stats = nullptr;
  g_object_get(h_->element(), "stats", &stats, nullptr);
  StructurePtr owned(stats);
  guint64 samples = 0, chunks = 0, turns = 0, time = 0;
  EXPECT_TRUE(gst_structure_get(stats, "samples", G_TYPE_UINT64, &samples, "chunks", G_TYPE_UINT64,
                                &chunks, "turns", G_TYPE_UINT64, &turns, "processing-time",
                                G_TYPE_UINT64, &time, nullptr));
  EXPECT_EQ(samples, 40000u);
  EXPECT_EQ(chunks, 3u);
  EXPECT_EQ(turns, 1u);
  EXPECT_GT(time, 0u);
}

TEST_F(AudioEncStream, PipelineFromARawFileOfBytes) {
  gchar* path = g_build_filename(g_get_tmp_dir(), "minicpmo-audioenc-test.f32", nullptr);
  GCharPtr owned(path);
  const std::vector<float> pcm(20001, 0.5f);
  ASSERT_TRUE(g_file_set_contents(path, reinterpret_cast<const gchar*>(pcm.data()),
                                  static_cast<gssize>(pcm.size() * 4), nullptr));
  GCharPtr line(
      g_strdup_printf("filesrc location=%s blocksize=1001 ! "
                      "audio/x-raw,format=F32LE,rate=16000,channels=1 ! "
                      "minicpmoaudioenc ! fakesink async=false",
                      path));
  GError* error = nullptr;
  ElementPtr pipeline(gst_parse_launch(line.get(), &error));
  ASSERT_EQ(error, nullptr) << error->message;
  gst_object_ref_sink(pipeline.get());
  gst_element_set_state(pipeline.get(), GST_STATE_PLAYING);
  BusPtr bus(gst_element_get_bus(pipeline.get()));
  MessagePtr message(
      gst_bus_timed_pop_filtered(bus.get(), 20 * GST_SECOND,
                                 static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR)));
  ASSERT_NE(message, nullptr);
  EXPECT_EQ(GST_MESSAGE_TYPE(message.get()), GST_MESSAGE_EOS);
  gst_element_set_state(pipeline.get(), GST_STATE_NULL);
  EXPECT_EQ(backend_.log().take(), (Names{"audio.reset", "audio.step 16000", "audio.step 4001"}));
  g_remove(path);
}

}  // namespace
}  // namespace minicpmo::testing
