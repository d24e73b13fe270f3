// minicpmoturn: where turns begin and end, what passes, what is said of it. The fake network hears
// speech in a window whose mean amplitude is above 0.01.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/gstminicpmoturn.h"
#include "elements/turn/turn_harness.h"

namespace minicpmo::testing {
namespace {

class Turn : public TurnStream {};

TEST_F(Turn, PadTakesWhatItShould) {
  start();
  PadPtr sink(gst_element_get_static_pad(h_->element(), "sink"));
  const auto accepts = [&](const char* text) {
    CapsPtr caps(gst_caps_from_string(text));
    return gst_pad_query_accept_caps(sink.get(), caps.get()) != FALSE;
  };
  EXPECT_TRUE(accepts(kPcmCaps));
  EXPECT_TRUE(accepts("audio/x-raw,format=F32LE,rate=16000,channels=1"));
  EXPECT_FALSE(accepts("audio/x-raw,format=S16LE,rate=16000,channels=1,layout=interleaved"));
  EXPECT_FALSE(accepts("audio/x-raw,format=F32LE,rate=48000,channels=1,layout=interleaved"));
  EXPECT_FALSE(accepts("audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved"));
}

TEST_F(Turn, SilenceIsTimeThatPasses) {
  start();
  play(std::string(40, '.'));
  EXPECT_EQ(story(), Names{"gap 0-1152"});  // coarse, and behind by the padding
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 1152-1280", "eos"}));
  EXPECT_EQ(log_->buffers(), 0u);
  EXPECT_EQ(stat("dropped-samples"), 40 * kWindow);
  EXPECT_EQ(stat("silence-time"), 40 * kWindowTime);
}

TEST_F(Turn, AudioOfATurnPassesWithItsPreRollAndHangOver) {
  start();
  play("..........######.....");
  EXPECT_EQ(story(), (Names{"gap 0-128", "interrupt 1", "gap 128-224", "turn-start 1",
                            "audio 224-672 discont", "turn-end 1 speech 512"}));
  play("..........");
  EXPECT_EQ(story(), Names{"gap 672-800"});
  play("##");
  EXPECT_EQ(story().back(), "audio 896-1056 discont");
}

TEST_F(Turn, EverySampleIsInItsPlace) {
  start();
  std::vector<float> ramp(40 * kWindow);
  for (size_t i = 10 * kWindow; i < 30 * kWindow; ++i) ramp[i] = 1.0f + static_cast<float>(i);
  push_samples(ramp, 5 * GST_SECOND);
  const auto sent = log_->samples();
  const std::vector<float> expected(ramp.begin() + 7 * kWindow, ramp.begin() + 35 * kWindow);
  EXPECT_EQ(sent, expected);
  EXPECT_EQ(story()[4], "audio 5224-6120 discont");
  EXPECT_EQ(stat("passed-samples"), 28 * kWindow);
}

TEST_F(Turn, BuffersSayTheirTurn) {
  start();
  play("....###.....");
  play("....###.....");
  std::vector<std::pair<guint64, guint>> expected;
  for (guint64 id : {1, 2})
    for (guint i = 0; i < 7; ++i) expected.emplace_back(id, i);
  EXPECT_EQ(log_->chunks(), expected);
}

TEST_F(Turn, TheTailOfASpeakersTurnGoesAtOnce) {
  start();
  play("####....");
  log_->clear();
  play(".");  // the fifth window of silence
  EXPECT_EQ(story(), (Names{"audio 256-288", "turn-end 1 speech 128"}));
}

TEST_F(Turn, DefaultsAreThoseOfTheField) {
  start({});
  const std::vector<float> silence(16000, 0.0f), speech(16000, kVoice);
  push_samples(silence, 0);
  push_samples(speech, GST_SECOND);
  push_samples(silence, 2 * GST_SECOND);
  // Windows of 32 ms: speech is heard from 992 to 2016 ms; 300 ms before and 500 after.
  EXPECT_EQ(story(), (Names{"gap 0-628", "interrupt 1", "gap 628-692", "turn-start 1",
                            "audio 692-2528 discont", "turn-end 1 speech 2016", "gap 2528-2644"}));
}

TEST_F(Turn, ApplicationsAreTold) {
  start();
  play("......###.##");
  EXPECT_EQ(told("minicpmo/turn-start", "turn-id"), std::vector<guint64>{1});
  play(".....");
  const auto messages = h_->messages(GST_MESSAGE_ELEMENT);
  ASSERT_EQ(messages.size(), 1u);
  const GstStructure* fields = gst_message_get_structure(messages[0].get());
  EXPECT_TRUE(gst_structure_has_name(fields, "minicpmo/turn-end"));
  guint64 id, now, end, duration, delay;
  gboolean speculative = TRUE;
  ASSERT_TRUE(gst_structure_get(fields, "turn-id", G_TYPE_UINT64, &id, "running-time",
                                G_TYPE_UINT64, &now, "speech-end", G_TYPE_UINT64, &end, "duration",
                                G_TYPE_UINT64, &duration, "decision-delay", G_TYPE_UINT64, &delay,
                                "speculative", G_TYPE_BOOLEAN, &speculative, nullptr));
  EXPECT_EQ(id, 1u);
  EXPECT_EQ(now, 17 * kWindowTime);
  EXPECT_EQ(end, 12 * kWindowTime);
  EXPECT_EQ(duration, 6 * kWindowTime);
  EXPECT_EQ(delay, 5 * kWindowTime);
  EXPECT_FALSE(speculative);
  EXPECT_STREQ(gst_structure_get_string(fields, "reason"), "silence");
}

TEST_F(Turn, TheStartIsToldWithItsTimeAndProbability) {
  start();
  play("......###");
  const auto messages = h_->messages(GST_MESSAGE_ELEMENT);
  ASSERT_EQ(messages.size(), 1u);
  guint64 time;
  gdouble probability;
  ASSERT_TRUE(gst_structure_get(gst_message_get_structure(messages[0].get()), "running-time",
                                G_TYPE_UINT64, &time, "probability", G_TYPE_DOUBLE, &probability,
                                nullptr));
  EXPECT_EQ(time, 6 * kWindowTime);
  EXPECT_NEAR(probability, 0.95, 1e-6);
}

// Typed messages are turns, too: their numbers are asked for downstream.
TEST_F(Turn, TurnsThatAreNotSpokenHaveNumbersOfTheirOwn) {
  start();
  PadPtr src(gst_element_get_static_pad(h_->element(), "src"));
  const auto typed = [&src] {
    const QueryPtr query(gst_minicpmo_query_new_next_turn());
    EXPECT_TRUE(gst_pad_query(src.get(), query.get()));
    return gst_minicpmo_query_turn_id(query.get());
  };
  EXPECT_EQ(typed(), 1u);
  play("..........######.....");
  EXPECT_EQ(typed(), 3u);
  EXPECT_EQ(typed(), 4u);
  play("..........######.....");
  EXPECT_EQ(told("minicpmo/turn-start", "turn-id"), (std::vector<guint64>{2, 5}));
  const Names all = story();
  EXPECT_EQ(std::count(all.begin(), all.end(), "interrupt 2"), 1);
  EXPECT_EQ(std::count(all.begin(), all.end(), "interrupt 5"), 1);
}

TEST_F(Turn, TimesAreRunningTimes) {
  start();
  push_segment(GST_FORMAT_TIME, 100 * GST_SECOND);
  log_->clear();
  time_ = 100 * GST_SECOND;
  play("....###.....");
  EXPECT_EQ(story(), (Names{"interrupt 1", "gap 100000-100032", "turn-start 1",
                            "audio 100032-100384 discont", "turn-end 1 speech 224"}));
  EXPECT_EQ(told("minicpmo/turn-start", "running-time"), std::vector<guint64>{4 * kWindowTime});
}

TEST_F(Turn, ClicksDoNotPass) {
  start();
  play("...#...#.#....");
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"gap 0-448", "eos"}));
  EXPECT_EQ(stat("turns"), 0u);
}

TEST_F(Turn, ACoughIsCancelled) {
  start([](GstElement* e) {
    set_windows(e);
    g_object_set(e, "min-turn-speech", 4 * 32, nullptr);
  });
  play("....###......");
  EXPECT_EQ(story(), (Names{"interrupt 1", "gap 0-32", "turn-start 1", "audio 32-352 discont",
                            "turn-cancel 1"}));
  EXPECT_EQ(told("minicpmo/turn-cancel", "running-time"), std::vector<guint64>{12 * kWindowTime});
  EXPECT_EQ(stat("cancelled"), 1u);
  play("####.....");
  EXPECT_EQ(story().back(), "turn-end 2 speech 544");
}

TEST_F(Turn, WithoutBargeInNothingIsInterrupted) {
  start([](GstElement* e) {
    set_windows(e);
    g_object_set(e, "barge-in", FALSE, nullptr);
  });
  play("...###.....");
  EXPECT_EQ(story(), (Names{"turn-start 1", "audio 0-352 discont", "turn-end 1 speech 192"}));
  EXPECT_EQ(stat("interrupts"), 0u);
}

TEST_F(Turn, TheInterruptWaitsForEnoughSpeech) {
  start([](GstElement* e) {
    set_windows(e);
    g_object_set(e, "interrupt-after", 4 * 32, nullptr);
  });
  play("...###");
  EXPECT_EQ(story(), (Names{"turn-start 1", "audio 0-192 discont"}));
  play("#");
  EXPECT_EQ(story(), (Names{"interrupt 1", "audio 192-224"}));
  play("##.....");
  play("##.....");  // never so much, but a turn after all
  EXPECT_EQ(story(), (Names{"audio 224-448", "turn-end 1 speech 288", "turn-start 2",
                            "audio 448-640 discont", "interrupt 2", "audio 640-672",
                            "turn-end 2 speech 512"}));
  EXPECT_EQ(stat("interrupts"), 2u);
}

TEST_F(Turn, TooLongATurnEndsAndTheNextOneWaitsForAPause) {
  start([](GstElement* e) {
    set_windows(e);
    g_object_set(e, "max-turn", 6 * 32, nullptr);
  });
  play("########");
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "turn-start 1", "audio 0-192 discont", "turn-end 1 speech 192"}));
  play(".##");
  EXPECT_EQ(story(), (Names{"interrupt 2", "turn-start 2", "audio 192-352 discont"}));
  const auto messages = h_->messages(GST_MESSAGE_ELEMENT);
  EXPECT_STREQ(gst_structure_get_string(gst_message_get_structure(messages.at(1).get()), "reason"),
               "max-turn");
}

TEST_F(Turn, NumbersThatAreNoneAreSilence) {
  start();
  play("####");
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) push(2, bad);
  EXPECT_EQ(story().back(), "turn-end 1 speech 128");
  EXPECT_EQ(stat("non-finite-samples"), 6 * kWindow);
  EXPECT_EQ(h_->messages(GST_MESSAGE_WARNING).size(), 1u);
  start();
  std::vector<float> samples(8 * kWindow, kVoice);
  samples[700] = -INFINITY;
  samples[2000] = std::nanf("");
  push_samples(samples, 0);
  samples[700] = samples[2000] = 0;
  EXPECT_EQ(log_->samples(), samples);
}

// ---- Speculative ends ------------------------------------------------------

class Speculative : public TurnStream {
 protected:
  Speculative() {
    start([](GstElement* e) {
      set_windows(e);
      g_object_set(e, "speculative-after", 2 * 32, nullptr);
    });
  }
};

TEST_F(Speculative, EndIsAnnouncedAndConfirmed) {
  play("...###..");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-256 discont",
                            "turn-end 1 speech 192 speculative"}));
  EXPECT_TRUE(told("minicpmo/turn-end", "turn-id").empty());
  play("..");
  EXPECT_EQ(story(), Names{});
  play(".");
  EXPECT_EQ(story(), Names{"turn-confirm 1"});
  EXPECT_EQ(told("minicpmo/turn-end", "decision-delay"), std::vector<guint64>{5 * kWindowTime});
  play(".....");
  EXPECT_EQ(story(), Names{"gap 256-384"});  // what was kept back did not pass
  EXPECT_EQ(stat("speculative-ends"), 1u);
  EXPECT_EQ(stat("resumed"), 0u);
}

TEST_F(Speculative, WhenTheUserGoesOnNothingIsLost) {
  play("...###....##.....");
  EXPECT_EQ(story(), (Names{"interrupt 1", "turn-start 1", "audio 0-256 discont",
                            "turn-end 1 speech 192 speculative", "turn-resume 1", "audio 256-448",
                            "turn-end 1 speech 384 speculative", "turn-confirm 1"}));
  EXPECT_EQ(stat("resumed"), 1u);
  EXPECT_EQ(stat("turns"), 1u);
}

TEST_F(Speculative, EndOfTheStreamConfirms) {
  play("...###...");
  log_->clear();
  h_->push_eos();
  EXPECT_EQ(story(), (Names{"turn-confirm 1", "gap 256-288", "eos"}));
}

TEST_F(Speculative, KeptBackAudioMayBeThePreRollOfTheNextTurn) {
  play("...###.....##");
  EXPECT_EQ(story().back(), "audio 256-416 discont");
}

// ---- Push to talk ----------------------------------------------------------

class PushToTalk : public TurnStream {
 protected:
  PushToTalk() {
    start([](GstElement* e) {
      set_windows(e);
      gst_util_set_object_arg(G_OBJECT(e), "mode", "manual");
    });
  }
  void press() { g_signal_emit_by_name(h_->element(), "start-turn"); }
  void release() { g_signal_emit_by_name(h_->element(), "end-turn"); }
};

TEST_F(PushToTalk, TheButtonMakesTheTurn) {
  play("##########");
  EXPECT_EQ(story(), Names{"gap 0-128"});
  press();
  play("....");
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "gap 128-224", "turn-start 1", "audio 224-448 discont"}));
  play(std::string(30, '.'));  // no silence ends it
  release();
  play(".");
  EXPECT_EQ(story(), (Names{"audio 448-1408", "turn-end 1 speech 1408"}));
  EXPECT_EQ(told("minicpmo/turn-end", "duration"), std::vector<guint64>{34 * kWindowTime});
}

TEST_F(PushToTalk, ATurnMayBeThrownAway) {
  press();
  play("....");
  g_signal_emit_by_name(h_->element(), "cancel-turn");
  play("..");
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont", "turn-cancel 1"}));
  EXPECT_EQ(stat("cancelled"), 1u);
}

TEST_F(PushToTalk, UsesNoNetwork) {
  press();
  play("####");
  EXPECT_TRUE(backend_.voice_activity_paths().empty());
  EXPECT_EQ(backend_.counters().windows, 0);
}

TEST_F(PushToTalk, TheEndIsExactToTheSample) {
  press();
  push_samples(std::vector<float>(1000, 0.25f), 0);
  release();
  push_samples(std::vector<float>(1000, 0.0f), 1000 * 62500);
  EXPECT_EQ(log_->samples(), std::vector<float>(1000, 0.25f));
  EXPECT_EQ(story().back(), "turn-end 1 speech 62.500000");
}

TEST_F(PushToTalk, TwoPressesOrReleasesAreOne) {
  release();
  play("..");
  press();
  press();
  play("..");
  release();
  release();
  play("..");
  EXPECT_EQ(stat("turns"), 1u);
  EXPECT_EQ(story(),
            (Names{"interrupt 1", "turn-start 1", "audio 0-128 discont", "turn-end 1 speech 128"}));
}

TEST_F(PushToTalk, APressAndAReleaseBetweenTwoBuffersAreATurn) {
  play("....");
  press();
  release();
  press();
  play("..");
  EXPECT_EQ(story(), (Names{"interrupt 1", "gap 0-32", "turn-start 1", "audio 32-128 discont",
                            "turn-end 1 speech 128", "interrupt 2", "turn-start 2",
                            "audio 128-192 discont"}));
}

TEST_F(PushToTalk, HammeringOnTheButtonIsBounded) {
  for (int i = 0; i < 1000; ++i) {
    press();
    release();
  }
  play(".");
  EXPECT_EQ(stat("turns"), 8u);
}

TEST_F(PushToTalk, APressWithoutSpeechEndsWithTheSilence) {
  start();
  play("....");
  press();
  play(".....");
  EXPECT_EQ(story().back(), "turn-end 1 speech 128");
}

TEST_F(PushToTalk, ButtonsWorkWithVoiceActivityToo) {
  start();
  play("........");
  press();
  play("..");
  EXPECT_EQ(story().back(), "audio 160-320 discont");
  play("####");
  release();
  play("##");  // the rest of the word is no new turn
  EXPECT_EQ(story(), (Names{"audio 320-448", "turn-end 1 speech 448"}));
  play(".##");
  EXPECT_EQ(story().at(0), "interrupt 2");
}

TEST_F(PushToTalk, ChangeToVoiceActivityWhilePlaying) {
  play("..");
  gst_util_set_object_arg(G_OBJECT(h_->element()), "mode", "vad");
  play("..##.....");
  EXPECT_EQ(story().back(), "turn-end 1 speech 192");
  EXPECT_EQ(backend_.voice_activity_paths().size(), 1u);
  gst_util_set_object_arg(G_OBJECT(h_->element()), "mode", "manual");
  const int windows = backend_.counters().windows;
  play("######");
  EXPECT_EQ(stat("turns"), 1u);
  EXPECT_EQ(backend_.counters().windows, windows);
}

}  // namespace
}  // namespace minicpmo::testing
