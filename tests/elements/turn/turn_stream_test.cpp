// minicpmoturn: buffers of any size, segments, ends of streams, flushes, latency.
#include <gtest/gtest.h>

#include <utility>

#include "elements/turn/turn_harness.h"

namespace minicpmo::testing {
namespace {

class TurnInput : public TurnStream {};

// Some turns, with lengths that are no whole windows.
std::vector<float> conversation() {
  std::vector<float> samples;
  for (const auto& [silence, speech] : {std::pair{9000, 7000},
                                        {2000, 3000},
                                        {5000, 100},
                                        {9000, 20011},
                                        {12345, 2345},
                                        {4000, 1}}) {
    samples.insert(samples.end(), static_cast<size_t>(silence), 0.0f);
    for (int i = 0; i < speech; ++i) samples.push_back(kVoice + static_cast<float>(i) * 1e-5f);
  }
  return samples;
}

TEST_F(TurnInput, BuffersMayBeOfAnySize) {
  const auto samples = conversation();
  Names expected;
  std::vector<float> expected_samples;
  for (const size_t size : {samples.size(), size_t{1}, size_t{37}, size_t{512}, size_t{16000}}) {
    start([](GstElement* e) {
      set_windows(e);
      g_object_set(e, "speculative-after", 64, nullptr);
    });
    for (size_t at = 0; at < samples.size(); at += size) {
      const size_t part = std::min(size, samples.size() - at);
      ASSERT_EQ(push_samples({samples.begin() + static_cast<ptrdiff_t>(at),
                              samples.begin() + static_cast<ptrdiff_t>(at + part)},
                             at * 62500),
                GST_FLOW_OK);
    }
    h_->push_eos();
    const auto sent = log_->samples();
    const Names told = story();
    if (expected.empty()) {
      expected = told;
      expected_samples = sent;
      EXPECT_EQ(stat("turns"), 3u);
    }
    EXPECT_EQ(told, expected) << size;
    EXPECT_EQ(sent, expected_samples) << size;
    h_.reset();
  }
}

TEST_F(TurnInput, BytesAreCountedAndMayBeCutAnywhere) {
  const auto samples = conversation();
  start();
  push_samples(samples, 0);
  h_->push_eos();
  const Names expected = story();
  start();
  push_segment(GST_FORMAT_BYTES, 0);
  log_->clear();
  const auto* bytes = reinterpret_cast<const guint8*>(samples.data());
  for (size_t at = 0; at < samples.size() * 4; at += 4097) {
    const size_t part = std::min<size_t>(4097, samples.size() * 4 - at);
    BufferPtr buffer(gst_buffer_new_memdup(bytes + at, part));
    GST_BUFFER_PTS(buffer.get()) = at * GST_SECOND;  // of no account
    EXPECT_EQ(h_->push(std::move(buffer)), GST_FLOW_OK);
  }
  h_->push_eos();
  EXPECT_EQ(story(), expected);
}

TEST_F(TurnInput, GapsOfCountedStreamsPassInOrder) {
  start();
  push_segment(GST_FORMAT_BYTES, 0);
  log_->clear();
  play("....");
  h_->push_event(gst_event_new_gap(GST_SECOND, GST_SECOND));
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-128", "gap 1000-2000", "eos"}));
  EXPECT_EQ(stat("filled-samples"), 0u);
}

TEST_F(TurnInput, AMinuteInOneBuffer) {
  start([](GstElement* e) {
    set_windows(e);
    g_object_set(e, "max-turn", 0, nullptr);
  });
  EXPECT_EQ(push(1875, kVoice), GST_FLOW_OK);
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-60000 discont"}));
}

TEST_F(TurnInput, EmptyBuffersAndNoTimestampsAreNoTrouble) {
  start();
  EXPECT_EQ(h_->push(BufferPtr(gst_buffer_new())), GST_FLOW_OK);
  for (const float value : {0.0f, kVoice, 0.0f})
    EXPECT_EQ(h_->push(pcm_buffer(5 * kWindow, value)), GST_FLOW_OK);
  EXPECT_EQ(h_->push(BufferPtr(gst_buffer_new())), GST_FLOW_OK);
  EXPECT_EQ(story(), (Names{"interrupt 1", "gap 0-64", "turn-start 1", "audio 64-480 discont",
                            "turn-end 1 speech 320"}));
}

TEST_F(TurnInput, WithoutTimestampsTimeStartsWithTheSegment) {
  start();
  push_segment(GST_FORMAT_TIME, 100 * GST_SECOND);
  log_->clear();
  h_->push(pcm_buffer(5 * kWindow, kVoice));
  EXPECT_EQ(story().back(), "audio 100000-100160 discont");
}

TEST_F(TurnInput, TimestampsBeyondReasonAreIgnored) {
  start();
  play("..");
  EXPECT_EQ(h_->push(pcm_buffer(kWindow, 0.0f, G_MAXUINT64 - 2)), GST_FLOW_OK);
  time_ += kWindowTime;
  play("..");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-160", "eos"}));
}

TEST_F(TurnInput, DataOutsideTheSegmentIsClipped) {
  start();
  push_segment(GST_FORMAT_TIME, 10 * GST_SECOND);
  log_->clear();
  time_ = 10 * GST_SECOND - 4 * kWindowTime;
  push(10, kVoice);
  EXPECT_EQ(log_->samples().size(), 6 * kWindow);
  EXPECT_EQ(story().back(), "audio 10000-10192 discont");
}

TEST_F(TurnInput, EventsKeepTheirPlaceAmongTheData) {
  start();
  const auto custom = [&](const char* name) {
    h_->push_event(
        gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty(name)));
  };
  play("......");
  custom("first");  // after the sixth window; the padding is still held
  play("....##");
  custom("second");
  play("##.....");
  custom("third");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-192", "first", "interrupt 1", "gap 192-224", "turn-start 1",
                            "audio 224-384 discont", "second", "audio 384-608",
                            "turn-end 1 speech 448", "third", "eos"}));
}

TEST_F(TurnInput, OutOfBandEventsDoNotWait) {
  start();
  play("..");
  h_->push_event(
      gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM_OOB, gst_structure_new_empty("urgent")));
  EXPECT_EQ(story().back(), "urgent");
}

// ---- Ends of the stream ----------------------------------------------------

TEST_F(TurnInput, EosEndsTheTurnFirst) {
  start();
  play("....");
  push_samples(std::vector<float>(2 * kWindow + 77, kVoice), time_);
  log_->clear();
  h_->push_eos();
  EXPECT_EQ(log_->samples(), std::vector<float>(77, kVoice));
  EXPECT_EQ(story(), (Names{"audio 192-196.812500", "turn-end 1 speech 192", "eos"}));
}

TEST_F(TurnInput, EosBeforeDataIsOrderly) {
  start();
  EXPECT_TRUE(h_->push_eos());
  EXPECT_EQ(story(), Names{"eos"});
}

TEST_F(TurnInput, NewSegmentEndsTheTurn) {
  start();
  play("####");
  push_segment(GST_FORMAT_TIME, 100 * GST_SECOND);
  time_ = 100 * GST_SECOND;
  play("##");
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont", "turn-end 1 speech 128",
                   "segment", "interrupt 2", "turn-start 2", "audio 100000-100064 discont"}));
  EXPECT_EQ(told("minicpmo/turn-end", "speech-end"), std::vector<guint64>{4 * kWindowTime});
}

TEST_F(TurnInput, TheSameSegmentAgainChangesNothing) {
  start();
  play("####");
  push_segment(GST_FORMAT_TIME, 0);
  play("#");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont", "segment",
                            "audio 128-160"}));
}

TEST_F(TurnInput, NewStreamEndsTheTurnAndIdsGoOn) {
  start();
  play("####");
  h_->push_event(gst_event_new_stream_start("second"));
  push_segment(GST_FORMAT_TIME, 0, 1);
  time_ = 0;
  play("##");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont",
                            "turn-end 1 speech 128", "stream-start", "segment", "interrupt 2",
                            "turn-start 2", "audio 0-64 discont"}));
}

TEST_F(TurnInput, FlushDropsTheTurnAndIdsGoOn) {
  start();
  play("####");
  h_->messages(GST_MESSAGE_ANY);
  h_->push_event(gst_event_new_flush_start());
  EXPECT_EQ(push(1, kVoice), GST_FLOW_FLUSHING);
  h_->push_event(gst_event_new_flush_stop(TRUE));
  EXPECT_EQ(told("minicpmo/turn-cancel", "turn-id"), std::vector<guint64>{1});
  push_segment(GST_FORMAT_TIME, 0);
  time_ = 0;
  play(".##");
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont", "flush-start",
                   "flush-stop", "segment", "interrupt 2", "turn-start 2", "audio 0-96 discont"}));
  EXPECT_EQ(backend_.log().count("vad.reset"), 3);  // of two segments and the flush
}

TEST_F(TurnInput, NothingFromBeforeAFlushComesAfterIt) {
  start();
  play("....");  // one window of the GAP is out of the padding
  h_->push_event(gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty("old")));
  g_signal_emit_by_name(h_->element(), "start-turn");
  log_->clear();
  flush();
  time_ = GST_SECOND;
  play("..........");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"flush-start", "flush-stop", "segment", "gap 1000-1320", "eos"}));
}

TEST_F(TurnInput, FlushEndsTheWorkOnALongBuffer) {
  start();
  bool flushed = false;
  log_->set_hook([&](const std::string& what) {
    if (what.compare(0, 3, "gap") == 0 && !std::exchange(flushed, true))
      h_->push_event(gst_event_new_flush_start());
  });
  EXPECT_EQ(push(1000, 0.0f), GST_FLOW_FLUSHING);
  EXPECT_LT(backend_.counters().windows, 10);
  h_->push_event(gst_event_new_flush_stop(TRUE));
}

TEST_F(TurnInput, IdsStartAgainWithTheElement) {
  start();
  play("####");
  h_->messages(GST_MESSAGE_ANY);
  log_->clear();
  gst_element_set_state(h_->element(), GST_STATE_READY);
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ELEMENT).empty());
  gst_element_set_state(h_->element(), GST_STATE_PLAYING);
  h_->set_caps(kPcmCaps);
  time_ = 0;
  play("##");
  EXPECT_EQ(story(), (Names{"stream-start", "caps", "segment", "interrupt 1", "turn-start 1",
                            "audio 0-64 discont"}));
}

TEST_F(TurnInput, SourceWithoutCapsIsUnderstood) {
  log_.reset();
  h_ = std::make_unique<ElementHarness>("minicpmoturn", set_windows);
  log_ = std::make_unique<TurnLog>(h_->element());
  h_->push_event(gst_event_new_stream_start("s"));
  push_segment(GST_FORMAT_BYTES, 0);
  h_->push(pcm_buffer(4 * kWindow, kVoice));
  EXPECT_EQ(story(), (Names{"stream-start", "caps", "segment", "interrupt 1", "turn-start 1",
                            "audio 0-128 discont"}));
  CapsPtr caps(gst_pad_get_current_caps(h_->get()->sinkpad));
  CapsPtr expected(gst_caps_from_string(kPcmCaps));
  EXPECT_TRUE(gst_caps_is_equal(caps.get(), expected.get()));
}

// ---- Latency ---------------------------------------------------------------

TEST_F(TurnInput, LatencyIsWhatItHoldsBack) {
  start({});
  gst_harness_set_live(h_->get(), TRUE);
  gst_harness_set_upstream_latency(h_->get(), 20 * GST_MSECOND);
  EXPECT_EQ(gst_harness_query_latency(h_->get()), (20 + 300 + 64) * GST_MSECOND);
  gst_util_set_object_arg(G_OBJECT(h_->element()), "mode", "manual");
  EXPECT_EQ(gst_harness_query_latency(h_->get()), (20 + 300 + 32) * GST_MSECOND);
  gst_harness_set_live(h_->get(), FALSE);
  EXPECT_EQ(gst_harness_query_latency(h_->get()), 20 * GST_MSECOND);
}

// The promise kept: what is sent has come not longer ago.
TEST_F(TurnInput, NoSampleComesLaterThanTheLatencySays) {
  for (const guint speculative : {0u, 64u}) {
    start([speculative](GstElement* e) {
      set_windows(e);
      g_object_set(e, "silence-duration", 20 * 32, "speculative-after", speculative, nullptr);
    });
    gst_harness_set_live(h_->get(), TRUE);
    gst_harness_set_upstream_latency(h_->get(), 0);
    const GstClockTime promised = gst_harness_query_latency(h_->get());
    GstClockTime longest = 0;
    for (const char c : std::string("..........###..###...................###.........########")) {
      play(std::string(1, c));
      for (const BufferPtr& buffer : h_->pull_all())
        longest = std::max(longest, time_ - GST_BUFFER_PTS(buffer.get()));
    }
    EXPECT_EQ(longest, promised) << speculative;
  }
}

TEST_F(TurnInput, ChangedLatencyIsAnnounced) {
  start();
  h_->messages(GST_MESSAGE_ANY);
  g_object_set(h_->element(), "threshold", 0.6, "silence-duration", 900, nullptr);
  EXPECT_EQ(h_->messages(GST_MESSAGE_LATENCY).size(), 0u);
  g_object_set(h_->element(), "prefix-padding", 500, nullptr);
  EXPECT_EQ(h_->messages(GST_MESSAGE_LATENCY).size(), 1u);
}

}  // namespace
}  // namespace minicpmo::testing
