// minicpmoturn: buffers of any size, holes, segments, flushes, failures, life cycle.
#include <gtest/gtest.h>

#include <glib/gstdio.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "elements/turn/turn_harness.h"

using namespace std::chrono_literals;

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

// ---- Holes -----------------------------------------------------------------

TEST_F(TurnInput, AShortHoleInATurnIsSilence) {
  start();
  play("####");
  time_ += 3 * kWindowTime;
  play("##");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-288 discont"}));
  EXPECT_EQ(stat("filled-samples"), 3 * kWindow);
  const auto samples = log_->samples();
  EXPECT_EQ(samples.size(), 0u);  // taken with the story
}

TEST_F(TurnInput, AHoleEndsTheTurnAsSilenceDoes) {
  for (const bool event : {false, true}) {
    start();
    play("####");
    if (event) h_->push_event(gst_event_new_gap(time_, 10 * GST_SECOND));
    time_ += 10 * GST_SECOND;
    play("......##");
    EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-288 discont",
                              "turn-end 1 speech 128", "gap 288-10128", "interrupt 2",
                              "gap 10128-10224", "turn-start 2", "audio 10224-10384 discont"}))
        << event;
    EXPECT_EQ(stat("filled-samples"), 5 * kWindow);
  }
}

TEST_F(TurnInput, AGapInATurnIsSilenceOfItsLength) {
  start();
  play("####");
  h_->push_event(gst_event_new_gap(time_, 40 * GST_MSECOND));
  time_ += 40 * GST_MSECOND;
  play("####.....");
  h_->push_eos();
  EXPECT_EQ(stat("filled-samples"), 640u);
  // From there on windows begin 8 ms earlier than the pieces of the script.
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-456 discont",
                            "turn-end 1 speech 320", "eos"}));
}

TEST_F(TurnInput, JitterIsNoHole) {
  start();
  play("####");
  time_ += 30 * GST_MSECOND;
  play("#");
  time_ -= 60 * GST_MSECOND;
  play("#");
  EXPECT_EQ(stat("filled-samples"), 0u);
  EXPECT_EQ(log_->samples().size(), 6 * kWindow);
}

TEST_F(TurnInput, RoundedTimestampsDoNotTearTheAudio) {
  start();
  for (int i = 0; i < 20; ++i)
    h_->push(pcm_buffer(kWindow, kVoice, static_cast<guint64>(i) * kWindowTime + (i % 3) * 400000));
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-640 discont"}));
}

TEST_F(TurnInput, AJumpBackInATurnLosesNothing) {
  start();
  time_ = 10 * GST_SECOND;
  play("####");
  time_ = 5 * GST_SECOND;
  play("##.....");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10128 discont",
                            "audio 5000-5224 discont", "turn-end 1 speech 5064"}));
}

TEST_F(TurnInput, ABufferThatSpansAJumpIsTwo) {
  start();
  push_samples(std::vector<float>(4 * kWindow + 100, kVoice), 10 * GST_SECOND);
  push_samples(std::vector<float>(2 * kWindow - 100, kVoice), 5 * GST_SECOND);
  EXPECT_EQ(log_->samples().size(), 6 * kWindow);
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10134.250000 discont",
                            "audio 5000-5057.750000 discont"}));
}

TEST_F(TurnInput, PreRollDoesNotReachAcrossAJump) {
  for (const GstClockTime jump : {20 * GST_SECOND, 5 * GST_SECOND}) {
    start();
    time_ = 10 * GST_SECOND;
    play("........");
    push_samples(std::vector<float>(100, 0.0f), time_);
    time_ = jump;
    log_->clear();
    play(".##");
    EXPECT_EQ(story().back(),
              jump > 10 * GST_SECOND ? "audio 20000-20096 discont" : "audio 5000-5096 discont");
  }
}

TEST_F(TurnInput, PreRollReachesAcrossAShortHole) {
  start();
  play("........");
  time_ += 2 * kWindowTime;
  play("##");
  EXPECT_EQ(story().back(), "audio 224-384 discont");
  EXPECT_EQ(stat("filled-samples"), 2 * kWindow);
}

TEST_F(TurnInput, SpeechThatBeginsAcrossAJumpIsNotLost) {
  start();
  time_ = 10 * GST_SECOND;
  play(".#");
  time_ = 5 * GST_SECOND;
  play("#");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10064 discont",
                            "audio 5000-5032 discont"}));
}

TEST_F(TurnInput, JitterBetweenTurnsIsTold) {
  start();
  play(".....");
  time_ += 30 * GST_MSECOND;
  play(".....");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-160", "gap 190-350", "eos"}));
}

TEST_F(TurnInput, AnEndlessGapIsADay) {
  start();
  play("..");
  h_->push_event(gst_event_new_gap(time_, G_MAXINT64));
  EXPECT_EQ(story(), Names{"gap 0-86400064"});
}

TEST_F(TurnInput, GapsOfAnyLengthAreBounded) {
  start([](GstElement* e) {
    set_windows(e);
    gst_util_set_object_arg(G_OBJECT(e), "mode", "manual");
    g_object_set(e, "max-turn", 0, nullptr);
  });
  g_signal_emit_by_name(h_->element(), "start-turn");
  play("..");
  for (const GstClockTime duration : {G_MAXUINT64 - 1, G_MAXUINT64 / 2, GST_CLOCK_TIME_NONE})
    h_->push_event(gst_event_new_gap(time_, duration));
  EXPECT_LE(stat("filled-samples"), 3u * 60 * 16000);
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(TurnInput, LostPacketsBetweenTurnsAreTimeThatPasses) {
  start();
  play("....");
  time_ += 10 * kWindowTime;
  play("....");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-576", "eos"}));
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

// ---- Failures --------------------------------------------------------------

TEST_F(TurnInput, FailedNetworkIsOneErrorAndEosStillPasses) {
  backend_.settings().voice_activity_error = Error{ErrorCode::kFailed, "the run failed", "why"};
  backend_.settings().windows_before_error = 4;
  start();
  play("####");
  EXPECT_EQ(push(1, kVoice), GST_FLOW_ERROR);
  EXPECT_EQ(push(1, kVoice), GST_FLOW_ERROR);
  h_->push_event(gst_event_new_gap(time_, GST_SECOND));
  h_->push_eos();
  EXPECT_EQ(h_->messages(GST_MESSAGE_ERROR).size(), 1u);
  const Names last = story();
  EXPECT_EQ(last.at(last.size() - 2), "turn-end 1 speech 128");
  EXPECT_EQ(last.back(), "eos");
}

TEST_F(TurnInput, FlushRecoversFromAFailedNetwork) {
  backend_.settings().voice_activity_error = Error{ErrorCode::kNoSpace, "out of memory", ""};
  start();
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  backend_.settings().voice_activity_error.reset();
  flush();
  time_ = 0;
  EXPECT_EQ(push(1, 0), GST_FLOW_OK);
}

TEST_F(TurnInput, ExceptionStopsAtTheElement) {
  backend_.settings().throw_in_step = true;
  start();
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  h_->push_eos();
  const auto errors = h_->messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_TRUE(
      g_error_matches(error_of(errors[0].get()).get(), GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED));
}

TEST_F(TurnInput, MissingFileFailsTheStateChangeWithOneErrorThatSaysWhatToDo) {
  backend_.settings().session_error =
      Error{ErrorCode::kNotFound, "/nowhere.safetensors does not exist", ""};
  ElementPtr element(
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("minicpmoturn", nullptr))));
  BusPtr bus(gst_bus_new());
  gst_element_set_bus(element.get(), bus.get());
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_FAILURE);
  MessagePtr message(gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR));
  ASSERT_NE(message, nullptr);
  const GErrorPtr error = error_of(message.get());
  EXPECT_TRUE(g_error_matches(error.get(), GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NOT_FOUND));
  const std::string text = error->message;
  for (const char* part : {"/nowhere.safetensors does not exist", "tools/setup", "property model"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  EXPECT_EQ(gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR), nullptr);
  // And it can be tried again, or done without.
  gst_util_set_object_arg(G_OBJECT(element.get()), "mode", "manual");
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  gst_element_set_state(element.get(), GST_STATE_NULL);
  gst_element_set_bus(element.get(), nullptr);
}

TEST_F(TurnInput, ModelIsThePropertyTheEnvironmentOrTheDefault) {
  start();
  ASSERT_EQ(backend_.voice_activity_paths().size(), 1u);
  EXPECT_NE(backend_.voice_activity_paths()[0].find("silero_vad_16k.safetensors"),
            std::string::npos);
  g_setenv("MINICPMO_VAD", "/from/environment", TRUE);
  start();
  start([](GstElement* e) { g_object_set(e, "model", "/from/property", nullptr); });
  g_unsetenv("MINICPMO_VAD");
  EXPECT_EQ(backend_.voice_activity_paths().at(1), "/from/environment");
  EXPECT_EQ(backend_.voice_activity_paths().at(2), "/from/property");
}

TEST_F(TurnInput, DownstreamFlowComesBack) {
  start();
  play("##");
  GST_PAD_SET_FLUSHING(h_->get()->sinkpad);
  EXPECT_EQ(push(1, kVoice), GST_FLOW_FLUSHING);
  GST_PAD_UNSET_FLUSHING(h_->get()->sinkpad);
}

// ---- Properties ------------------------------------------------------------

TEST_F(TurnInput, EachPropertyReadsBackWhatWasSetAndChangesNoOther) {
  start({});
  const std::vector<std::pair<const char*, const char*>> values = {
      {"model", "/some/file"},       {"mode", "manual"},         {"threshold", "0.75"},
      {"release-threshold", "0.25"}, {"min-speech", "1"},        {"silence-duration", "2"},
      {"prefix-padding", "3"},       {"max-turn", "4"},          {"min-turn-speech", "5"},
      {"interrupt-after", "6"},      {"speculative-after", "7"}, {"barge-in", "false"}};
  for (const auto& [name, text] : values)
    gst_util_set_object_arg(G_OBJECT(h_->element()), name, text);
  for (const auto& [name, text] : values) {
    GValue value = G_VALUE_INIT;
    g_object_get_property(G_OBJECT(h_->element()), name, &value);
    GCharPtr read(gst_value_serialize(&value));
    EXPECT_STRCASEEQ(read.get(), text) << name;
    g_value_unset(&value);
  }
}

TEST_F(TurnInput, PropertiesExplainThemselves) {
  start();
  guint count = 0;
  GParamSpec** specs = g_object_class_list_properties(G_OBJECT_GET_CLASS(h_->element()), &count);
  for (guint i = 0; i < count; ++i) {
    const std::string name = g_param_spec_get_name(specs[i]);
    const std::string blurb = g_param_spec_get_blurb(specs[i]);
    if (name == "name" || name == "parent") continue;
    EXPECT_GE(blurb.size(), 20u) << name;
    EXPECT_TRUE(g_ascii_isupper(g_param_spec_get_nick(specs[i])[0])) << name;
    if (G_IS_PARAM_SPEC_UINT(specs[i])) {
      EXPECT_NE(blurb.find("milliseconds"), std::string::npos) << name << " names no unit";
    }
    const bool writable = (specs[i]->flags & G_PARAM_WRITABLE) != 0;
    const auto when = specs[i]->flags & (GST_PARAM_MUTABLE_READY | GST_PARAM_MUTABLE_PLAYING);
    EXPECT_EQ(when, static_cast<guint>(!writable         ? 0
                                       : name == "model" ? GST_PARAM_MUTABLE_READY
                                                         : GST_PARAM_MUTABLE_PLAYING))
        << name;
  }
  g_free(specs);
}

// ---- Life cycle ------------------------------------------------------------

TEST_F(TurnInput, StateCycling) {
  start();
  for (int i = 0; i < 20; ++i) {
    play(i % 2 == 0 ? "####" : "....####....");
    gst_element_set_state(h_->element(), i % 3 == 0 ? GST_STATE_READY : GST_STATE_NULL);
    EXPECT_EQ(backend_.counters().sessions_alive, i % 3 == 0 ? 1 : 0);
    gst_element_set_state(h_->element(), GST_STATE_PLAYING);
    h_->set_caps(kPcmCaps);
    time_ = 0;
  }
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(TurnInput, FlushAndChangesAtAnyMoment) {
  start();
  std::atomic<bool> stop{false};
  std::mutex order;  // data does not come between a flush and its segment
  std::thread flusher([&] {
    std::mt19937 random(1);
    for (int i = 0; i < 200; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      h_->push_event(gst_event_new_flush_start());
      std::lock_guard lock(order);
      h_->push_event(gst_event_new_flush_stop(TRUE));
      push_segment(GST_FORMAT_TIME, 0);
    }
    stop = true;
  });
  std::thread changer([&] {
    std::mt19937 random(2);
    const char* times[] = {"prefix-padding",  "silence-duration", "speculative-after",
                           "min-turn-speech", "max-turn",         "min-speech"};
    while (!stop) {
      g_object_set(h_->element(), times[random() % 6], random() % 300, nullptr);
      g_signal_emit_by_name(h_->element(), random() % 2 == 0 ? "start-turn" : "end-turn");
      stat("turns");
      gst_harness_query_latency(h_->get());
    }
  });
  std::mt19937 random(3);
  while (!stop) {
    {
      std::lock_guard lock(order);
      const GstFlowReturn flow =
          h_->push(pcm_buffer(random() % 9000, random() % 2 == 0 ? kVoice : 0.0f));
      EXPECT_TRUE(flow == GST_FLOW_OK || flow == GST_FLOW_FLUSHING) << gst_flow_get_name(flow);
    }
    h_->pull_all();
    std::this_thread::yield();
  }
  flusher.join();
  changer.join();
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(TurnInput, StoppedAtAnyMoment) {
  for (int i = 0; i < 40; ++i) {
    start();
    std::atomic<bool> started{false};
    std::thread pusher([&] {
      GstFlowReturn flow = GST_FLOW_OK;
      while (flow == GST_FLOW_OK) {
        flow = h_->push(pcm_buffer(16000, kVoice));
        started = true;
      }
      EXPECT_EQ(flow, GST_FLOW_FLUSHING);
    });
    while (!started) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(37 * i));
    gst_element_set_state(h_->element(), GST_STATE_NULL);
    pusher.join();
    log_.reset();
    h_.reset();
  }
}

// ---- Pipelines -------------------------------------------------------------

GstMessageType run_to_end(GstElement* pipeline) {
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  BusPtr bus(gst_element_get_bus(pipeline));
  MessagePtr message(
      gst_bus_timed_pop_filtered(bus.get(), 20 * GST_SECOND,
                                 static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR)));
  gst_element_set_state(pipeline, GST_STATE_NULL);
  return message != nullptr ? GST_MESSAGE_TYPE(message.get()) : GST_MESSAGE_UNKNOWN;
}

std::string raw_file(const std::string& name, const std::vector<float>& samples) {
  GCharPtr path(g_build_filename(g_get_tmp_dir(), name.c_str(), nullptr));
  EXPECT_TRUE(g_file_set_contents(path.get(), reinterpret_cast<const gchar*>(samples.data()),
                                  static_cast<gssize>(samples.size() * 4), nullptr));
  return path.get();
}

TEST_F(TurnInput, TwoAtOnceBeforeTheirEncoders) {
  std::vector<float> samples;
  for (const size_t speech : {20, 40}) {
    samples.insert(samples.end(), 20 * kWindow, 0.0f);
    samples.insert(samples.end(), speech * kWindow, kVoice);
  }
  const std::string path =
      raw_file("minicpmo-turn-test-" + std::to_string(getpid()) + ".f32", samples);
  std::string line;
  for (int i = 0; i < 2; ++i) {
    line += "filesrc blocksize=1001 location=" + path +
            " ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! minicpmoturn prefix-padding=96 "
            "silence-duration=160 ! queue ! minicpmoaudioenc ! fakesink async=false ";
  }
  ElementPtr pipeline(GST_ELEMENT(gst_object_ref_sink(gst_parse_launch(line.c_str(), nullptr))));
  EXPECT_EQ(run_to_end(pipeline.get()), GST_MESSAGE_EOS);
  pipeline.reset();
  // Two turns each: 3 + 20 + 5 windows, and 3 + 40 more.
  EXPECT_EQ(backend_.log().count("audio.step 14336"), 2);
  EXPECT_EQ(backend_.log().count("audio.step 16000"), 2);
  EXPECT_EQ(backend_.log().count("audio.step 6016"), 2);
  EXPECT_EQ(backend_.log().count("audio.step"), 6);
  g_remove(path.c_str());
}

}  // namespace
}  // namespace minicpmo::testing
