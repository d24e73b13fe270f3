// minicpmoturn: timestamps that jump, GAP events, lost packets.
#include <gtest/gtest.h>

#include "elements/turn/turn_harness.h"

namespace minicpmo::testing {
namespace {

class TurnHoles : public TurnStream {};

TEST_F(TurnHoles, AShortHoleInATurnIsSilence) {
  start();
  play("####");
  time_ += 3 * kWindowTime;
  play("##");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-288 discont"}));
  EXPECT_EQ(stat("filled-samples"), 3 * kWindow);
  const auto samples = log_->samples();
  EXPECT_EQ(samples.size(), 0u);  // taken with the story
}

TEST_F(TurnHoles, AHoleEndsTheTurnAsSilenceDoes) {
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

TEST_F(TurnHoles, AGapInATurnIsSilenceOfItsLength) {
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

TEST_F(TurnHoles, JitterIsNoHole) {
  start();
  play("####");
  time_ += 30 * GST_MSECOND;
  play("#");
  time_ -= 60 * GST_MSECOND;
  play("#");
  EXPECT_EQ(stat("filled-samples"), 0u);
  EXPECT_EQ(log_->samples().size(), 6 * kWindow);
}

TEST_F(TurnHoles, RoundedTimestampsDoNotTearTheAudio) {
  start();
  for (int i = 0; i < 20; ++i)
    h_->push(pcm_buffer(kWindow, kVoice, static_cast<guint64>(i) * kWindowTime + (i % 3) * 400000));
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-640 discont"}));
}

TEST_F(TurnHoles, AJumpBackInATurnLosesNothing) {
  start();
  time_ = 10 * GST_SECOND;
  play("####");
  time_ = 5 * GST_SECOND;
  play("##.....");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10128 discont",
                            "audio 5000-5224 discont", "turn-end 1 speech 5064"}));
}

TEST_F(TurnHoles, ABufferThatSpansAJumpIsTwo) {
  start();
  push_samples(std::vector<float>(4 * kWindow + 100, kVoice), 10 * GST_SECOND);
  push_samples(std::vector<float>(2 * kWindow - 100, kVoice), 5 * GST_SECOND);
  EXPECT_EQ(log_->samples().size(), 6 * kWindow);
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10134.250000 discont",
                            "audio 5000-5057.750000 discont"}));
}

TEST_F(TurnHoles, PreRollDoesNotReachAcrossAJump) {
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

TEST_F(TurnHoles, PreRollReachesAcrossAShortHole) {
  start();
  play("........");
  time_ += 2 * kWindowTime;
  play("##");
  EXPECT_EQ(story().back(), "audio 224-384 discont");
  EXPECT_EQ(stat("filled-samples"), 2 * kWindow);
}

TEST_F(TurnHoles, SpeechThatBeginsAcrossAJumpIsNotLost) {
  start();
  time_ = 10 * GST_SECOND;
  play(".#");
  time_ = 5 * GST_SECOND;
  play("#");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 10000-10064 discont",
                            "audio 5000-5032 discont"}));
}

TEST_F(TurnHoles, JitterBetweenTurnsIsTold) {
  start();
  play(".....");
  time_ += 30 * GST_MSECOND;
  play(".....");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-160", "gap 190-350", "eos"}));
}

TEST_F(TurnHoles, AnEndlessGapIsADay) {
  start();
  play("..");
  h_->push_event(gst_event_new_gap(time_, G_MAXINT64));
  EXPECT_EQ(story(), Names{"gap 0-86400064"});
}

TEST_F(TurnHoles, GapsOfAnyLengthAreBounded) {
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

TEST_F(TurnHoles, LostPacketsBetweenTurnsAreTimeThatPasses) {
  start();
  play("....");
  time_ += 10 * kWindowTime;
  play("....");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-576", "eos"}));
}

}  // namespace
}  // namespace minicpmo::testing
