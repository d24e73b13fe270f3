// Endpointing: scripted probabilities, and what must hold for any.
#include "turn/endpointing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

namespace minicpmo {
namespace {

using Kind = Decision::Kind;
constexpr uint64_t kWindow = Endpointing::kWindow;

// Times in windows, so that scripts can be counted by eye: one character is one window.
EndpointingSettings windows(uint64_t min_speech = 2, uint64_t silence = 4, uint64_t padding = 3) {
  EndpointingSettings settings;
  settings.min_speech = min_speech * kWindow;
  settings.silence = silence * kWindow;
  settings.padding = padding * kWindow;
  settings.max_turn = 0;
  settings.min_turn_speech = 0;
  return settings;
}

// "#" speech, "+" between the thresholds, "." silence.
std::vector<float> script(const std::string& text) {
  std::vector<float> probabilities;
  for (const char c : text) probabilities.push_back(c == '#' ? 0.9f : c == '+' ? 0.4f : 0.1f);
  return probabilities;
}

std::string name(const Decision& d) {
  const auto at = [](uint64_t position) { return std::to_string(position / kWindow); };
  const char* reasons[] = {"silence", "max", "request", "stream"};
  const std::string reason = reasons[static_cast<int>(d.reason)];
  switch (d.kind) {
    case Kind::kInterrupt:
      return "interrupt@" + at(d.at);
    case Kind::kStart:
      return "start@" + at(d.at) + " begin " + at(d.begin) + " speech " + at(d.speech);
    case Kind::kSpeculativeEnd:
      return "speculative@" + at(d.at) + " speech " + at(d.speech);
    case Kind::kResume:
      return "resume@" + at(d.at);
    case Kind::kEnd:
      return "end@" + at(d.at) + " speech " + at(d.speech) + " " + reason;
    default:
      return "cancel@" + at(d.at) + " speech " + at(d.speech) + " " + reason;
  }
}

using Names = std::vector<std::string>;

Names names(const std::vector<Decision>& decisions) {
  Names out;
  for (const Decision& d : decisions) out.push_back(name(d));
  return out;
}

class EndpointingTest : public ::testing::Test {
 protected:
  Names hear(const std::string& text) { return names(endpointing_.step(script(text))); }
  void set(const EndpointingSettings& settings) { endpointing_.set_settings(settings); }
  Endpointing endpointing_;
};

TEST_F(EndpointingTest, ATurnFromItsFirstWordToTheEndOfTheHangOver) {
  set(windows());
  EXPECT_EQ(hear(".....##.#......"),
            (Names{"interrupt@7", "start@7 begin 2 speech 5", "end@13 speech 9 silence"}));
}

TEST_F(EndpointingTest, NothingOfSilenceOrOfNothing) {
  set(windows());
  EXPECT_EQ(hear(""), Names{});
  EXPECT_EQ(hear("......++++++......"), Names{});
  EXPECT_EQ(names(endpointing_.end_now()), Names{});
  EXPECT_EQ(names(endpointing_.finish()), Names{});
}

TEST_F(EndpointingTest, DefaultsAreWhatTheHeaderSays) {
  const std::vector<float> speech(20, 0.5f);
  const std::vector<float> silence(16, 0.34f);
  auto decisions = endpointing_.step(std::vector<float>(20, 0.49f));
  EXPECT_TRUE(decisions.empty());
  decisions = endpointing_.step(speech);
  ASSERT_EQ(decisions.size(), 2u);
  EXPECT_EQ(decisions[1].at, 22 * kWindow);  // 64 ms: the first whole windows of 50 ms and more
  EXPECT_EQ(decisions[1].speech, 20 * kWindow);
  EXPECT_EQ(decisions[1].begin, 20 * kWindow - 4800);
  decisions = endpointing_.step(silence);  // 512 ms
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].kind, Kind::kEnd);
  EXPECT_EQ(decisions[0].at, 56 * kWindow);
}

TEST_F(EndpointingTest, BetweenTheThresholdsSpeechGoesOnAndDoesNotBegin) {
  set(windows());
  EXPECT_EQ(hear("++++"), Names{});
  EXPECT_EQ(hear("##++++++").size(), 2u);  // interrupt, start
  EXPECT_EQ(hear("...+"), Names{"end@16 speech 12 silence"});
}

TEST_F(EndpointingTest, AReleaseThresholdAboveTheOtherCountsAsThat) {
  EndpointingSettings settings = windows();
  settings.release_threshold = 0.95f;
  set(settings);
  EXPECT_EQ(hear("####....").size(), 3u);
}

TEST_F(EndpointingTest, WhatIsNoNumberIsSilence) {
  set(windows());
  hear("##");
  EXPECT_EQ(names(endpointing_.step(std::vector<float>(4, std::nanf("")))),
            Names{"end@6 speech 2 silence"});
}

TEST_F(EndpointingTest, ClicksAreTooShort) {
  set(windows(3));
  EXPECT_EQ(hear("#.##.#.##.....##.."), Names{});
  EXPECT_EQ(hear("###").size(), 2u);
}

TEST_F(EndpointingTest, PreRollNeverReachesIntoWhatWasSent) {
  set(windows(1, 2, 8));
  EXPECT_EQ(hear("..#..#.."),
            (Names{"interrupt@3", "start@3 begin 0 speech 2", "end@5 speech 3 silence",
                   "interrupt@6", "start@6 begin 5 speech 5", "end@8 speech 6 silence"}));
}

TEST_F(EndpointingTest, KeepsWhatATurnCouldBeginWith) {
  set(windows(3, 4, 2));
  hear("......");
  EXPECT_EQ(endpointing_.keep_from(), 4 * kWindow);
  EXPECT_FALSE(endpointing_.busy());
  hear("##");
  EXPECT_EQ(endpointing_.keep_from(), 4 * kWindow);
  EXPECT_TRUE(endpointing_.busy());
  hear(".");
  EXPECT_EQ(endpointing_.keep_from(), 7 * kWindow);
}

TEST_F(EndpointingTest, ACoughIsCancelled) {
  EndpointingSettings settings = windows();
  settings.min_turn_speech = 4 * kWindow;
  set(settings);
  EXPECT_EQ(hear("##......"),
            (Names{"interrupt@2", "start@2 begin 0 speech 0", "cancel@6 speech 2 silence"}));
  EXPECT_EQ(hear("##.##....").back(), "end@17 speech 13 silence");  // voiced in all
}

TEST_F(EndpointingTest, TheInterruptWaitsForEnoughSpeech) {
  EndpointingSettings settings = windows();
  settings.interrupt_after = 4 * kWindow;
  set(settings);
  EXPECT_EQ(hear("##.#.#.#...."),
            (Names{"start@2 begin 0 speech 0", "interrupt@6", "end@12 speech 8 silence"}));
  // A short turn that is one after all interrupts before it ends.
  EXPECT_EQ(hear("##....").at(1), "interrupt@18");
  // One that is none does not.
  settings.min_turn_speech = 4 * kWindow;
  set(settings);
  EXPECT_EQ(hear("##...."), (Names{"start@20 begin 18 speech 18", "cancel@24 speech 20 silence"}));
}

TEST_F(EndpointingTest, ALongTurnIsCutAndTheRestOfTheWordDropped) {
  EndpointingSettings settings = windows();
  settings.max_turn = 6 * kWindow;
  set(settings);
  EXPECT_EQ(hear("############"),
            (Names{"interrupt@2", "start@2 begin 0 speech 0", "end@6 speech 6 max"}));
  // After a breath it goes on as a new turn.
  EXPECT_EQ(hear(".##"), (Names{"interrupt@15", "start@15 begin 10 speech 13"}));
}

TEST_F(EndpointingTest, ASpeculativeEndIsConfirmed) {
  EndpointingSettings settings = windows();
  settings.speculative_after = 2 * kWindow;
  set(settings);
  hear("##");
  EXPECT_EQ(hear(".."), Names{"speculative@4 speech 2"});
  EXPECT_TRUE(endpointing_.speculative());
  EXPECT_EQ(hear(".."), Names{"end@6 speech 2 silence"});
  EXPECT_FALSE(endpointing_.speculative());
  // What was kept back since the guess was not sent: the next turn may have it.
  EXPECT_EQ(hear("##").at(1), "start@8 begin 4 speech 6");
}

TEST_F(EndpointingTest, ASpeculativeEndIsTakenBackAsOftenAsTheUserGoesOn) {
  EndpointingSettings settings = windows();
  settings.speculative_after = kWindow;
  set(settings);
  EXPECT_EQ(hear("##.#..#...."),
            (Names{"interrupt@2", "start@2 begin 0 speech 0", "speculative@3 speech 2", "resume@4",
                   "speculative@5 speech 4", "resume@7", "speculative@8 speech 7",
                   "end@11 speech 7 silence"}));
}

TEST_F(EndpointingTest, NoSpeculationOnACoughOrAfterTheHangOver) {
  EndpointingSettings settings = windows();
  settings.min_turn_speech = 4 * kWindow;
  settings.speculative_after = kWindow;
  set(settings);
  EXPECT_EQ(hear("##...."),
            (Names{"interrupt@2", "start@2 begin 0 speech 0", "cancel@6 speech 2 silence"}));
  settings.speculative_after = settings.silence;
  set(settings);
  EXPECT_EQ(hear("####....").back(), "end@14 speech 10 silence");
}

TEST_F(EndpointingTest, SpeculationInterruptsFirst) {
  EndpointingSettings settings = windows();
  settings.interrupt_after = 10 * kWindow;
  settings.speculative_after = kWindow;
  set(settings);
  EXPECT_EQ(hear("##."),
            (Names{"start@2 begin 0 speech 0", "interrupt@3", "speculative@3 speech 2"}));
}

TEST_F(EndpointingTest, AButtonStartsAndEnds) {
  set(windows());
  hear(".....");
  EXPECT_EQ(names(endpointing_.start_now()), (Names{"interrupt@5", "start@5 begin 2 speech 5"}));
  EXPECT_EQ(names(endpointing_.start_now()), Names{});
  hear("##");
  endpointing_.skip(100);
  EXPECT_EQ(names(endpointing_.end_now()), Names{"end@7 speech 7 request"});
  EXPECT_EQ(endpointing_.position(), 7 * kWindow + 100);
  EXPECT_EQ(names(endpointing_.end_now()), Names{});
  // The word that was cut is no new turn.
  EXPECT_EQ(hear("####"), Names{});
  EXPECT_EQ(hear(".##").size(), 2u);
}

TEST_F(EndpointingTest, AButtonTakesInWhatIsBeingSaid) {
  set(windows(8, 4, 1));
  hear("......##");
  EXPECT_EQ(names(endpointing_.start_now()), (Names{"interrupt@8", "start@8 begin 5 speech 6"}));
}

TEST_F(EndpointingTest, AButtonPressedInMidWordHearsTheRestOfIt) {
  set(windows());
  hear("###");
  endpointing_.end_now();
  EXPECT_FALSE(endpointing_.busy());
  EXPECT_EQ(endpointing_.keep_from(), 3 * kWindow);
  endpointing_.start_now();
  EXPECT_EQ(hear("##...."), Names{"end@9 speech 5 silence"});
}

TEST_F(EndpointingTest, AButtonEndsEvenAShortTurn) {
  EndpointingSettings settings = windows();
  settings.min_turn_speech = 100 * kWindow;
  set(settings);
  hear("##");
  EXPECT_EQ(names(endpointing_.end_now()), Names{"end@2 speech 2 request"});
}

TEST_F(EndpointingTest, ATurnMayBeThrownAwayWhateverWasHeard) {
  set(windows());
  EXPECT_EQ(names(endpointing_.cancel_now()), Names{});
  hear("####");
  EXPECT_EQ(names(endpointing_.cancel_now()), Names{"cancel@4 speech 4 request"});
  EXPECT_FALSE(endpointing_.in_turn());
  EXPECT_EQ(hear("##"), Names{});  // the rest of the word
}

TEST_F(EndpointingTest, AButtonWithoutSpeechEndsBySilence) {
  EndpointingSettings settings = windows();
  settings.min_turn_speech = kWindow;
  set(settings);
  hear(".....");
  endpointing_.start_now();
  EXPECT_EQ(hear("...."), Names{"cancel@9 speech 5 silence"});
}

TEST_F(EndpointingTest, TheStreamEndsItsTurn) {
  set(windows());
  hear("###");
  EXPECT_EQ(names(endpointing_.finish()), Names{"end@3 speech 3 stream"});
  EXPECT_EQ(hear("#"), Names{});  // a new beginning, not the rest of the old
  EXPECT_EQ(hear("#"), (Names{"interrupt@5", "start@5 begin 3 speech 3"}));
}

TEST_F(EndpointingTest, AStreamKnowsNothingOfTheOneBefore) {
  set(windows(1, 4, 8));
  hear("...#");
  endpointing_.finish();
  EXPECT_EQ(hear("+++"), Names{});
  endpointing_.finish();
  EXPECT_EQ(hear("#").back(), "start@8 begin 7 speech 7");
}

TEST_F(EndpointingTest, TheStreamEndsASpeculativeTurnToo) {
  EndpointingSettings settings = windows();
  settings.speculative_after = kWindow;
  set(settings);
  hear("##.");
  EXPECT_EQ(names(endpointing_.finish()), Names{"end@3 speech 2 stream"});
  EXPECT_FALSE(endpointing_.speculative());
}

TEST_F(EndpointingTest, SettingsChangeInMidTurn) {
  set(windows());
  hear("##..");
  set(windows(2, 8));
  EXPECT_EQ(hear("....."), Names{});
  EXPECT_EQ(hear("."), Names{"end@10 speech 2 silence"});
}

// ---- For any probabilities and settings ------------------------------------

struct Case {
  EndpointingSettings settings;
  std::vector<float> probabilities;
};

Case random_case(uint32_t seed) {
  std::mt19937 random(seed);
  const auto upto = [&](uint64_t n) { return random() % (n + 1); };
  Case c;
  // Half windows: counts need not be whole ones.
  c.settings.min_speech = upto(10) * kWindow / 2;
  c.settings.silence = upto(20) * kWindow / 2;
  c.settings.padding = upto(20) * kWindow / 2;
  c.settings.max_turn = upto(2) == 0 ? upto(60) * kWindow : 0;
  c.settings.min_turn_speech = upto(12) * kWindow / 2;
  c.settings.interrupt_after = upto(12) * kWindow / 2;
  c.settings.speculative_after = upto(12) * kWindow / 2;
  // Stretches of speech and silence, with single windows that differ.
  bool speech = false;
  for (int i = 0; i < 400; ++i) {
    if (upto(9) == 0) speech = !speech;
    const bool odd = upto(9) == 0;
    c.probabilities.push_back(static_cast<float>(upto(100)) / 100.0f * 0.6f +
                              (speech != odd ? 0.4f : 0.0f));
  }
  return c;
}

std::vector<Decision> run(const Case& c) {
  Endpointing endpointing;
  endpointing.set_settings(c.settings);
  auto decisions = endpointing.step(c.probabilities);
  for (Decision& d : endpointing.finish()) decisions.push_back(d);
  return decisions;
}

constexpr uint32_t kCases = 2000;

TEST(AnySpeech, StartsAndEndsAlternateAndGuessesAreResolved) {
  for (uint32_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    bool open = false, guessed = false, interrupted = false;
    uint64_t time = 0;
    for (const Decision& d : run(random_case(seed))) {
      EXPECT_GE(d.at, time);
      time = d.at;
      switch (d.kind) {
        case Kind::kInterrupt:
          EXPECT_FALSE(interrupted);
          interrupted = true;
          break;
        case Kind::kStart:
          EXPECT_FALSE(open);
          open = true;
          break;
        case Kind::kSpeculativeEnd:
          EXPECT_TRUE(open && !guessed && interrupted);
          guessed = true;
          break;
        case Kind::kResume:
          EXPECT_TRUE(guessed);
          guessed = false;
          break;
        case Kind::kEnd:
          EXPECT_TRUE(interrupted);
          [[fallthrough]];
        case Kind::kCancel:
          EXPECT_TRUE(open);
          open = guessed = interrupted = false;
          break;
      }
    }
    EXPECT_FALSE(open || guessed || interrupted);
  }
}

TEST(AnySpeech, BatchesMakeNoDifference) {
  for (uint32_t seed = 0; seed < kCases; ++seed) {
    const Case c = random_case(seed);
    std::mt19937 random(seed);
    Endpointing endpointing;
    endpointing.set_settings(c.settings);
    std::vector<Decision> batched;
    for (size_t at = 0; at < c.probabilities.size();) {
      const size_t part = std::min<size_t>(random() % 40, c.probabilities.size() - at);
      for (const Decision& d : endpointing.step(std::span(c.probabilities).subspan(at, part)))
        batched.push_back(d);
      at += part;
    }
    for (const Decision& d : endpointing.finish()) batched.push_back(d);
    ASSERT_EQ(names(batched), names(run(c))) << seed;
  }
}

// Which windows are voiced, by the definition.
std::vector<bool> voiced_windows(const Case& c) {
  std::vector<bool> voiced;
  for (const float p : c.probabilities)
    voiced.push_back(p >= (!voiced.empty() && voiced.back() ? 0.35f : 0.5f));
  return voiced;
}

// The voiced windows of each stretch of at least min_speech are in some turn, unless a turn before
// was cut while they went on; and a turn has at least one such stretch.
TEST(AnySpeech, LongEnoughSpeechIsInATurnAndNothingElseMakesOne) {
  int turns = 0;
  for (uint32_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    Case c = random_case(seed);
    c.settings.max_turn = 0;
    const auto voiced = voiced_windows(c);
    std::vector<bool> covered(voiced.size()), wanted(voiced.size());
    for (size_t i = 0; i < voiced.size();) {
      size_t end = i;
      while (end < voiced.size() && voiced[end]) ++end;
      for (size_t k = i; k < end; ++k) wanted[k] = (end - i) * kWindow >= c.settings.min_speech;
      i = std::max(end, i + 1);
    }
    uint64_t begin = 0, sent = 0, guess = 0;
    for (const Decision& d : run(c)) {
      if (d.kind == Kind::kStart) {
        EXPECT_GE(d.begin, sent);
        EXPECT_LE(d.speech - d.begin, c.settings.padding);
        EXPECT_TRUE(d.begin == sent || d.speech - d.begin == c.settings.padding || d.begin == 0);
        EXPECT_TRUE(wanted[d.speech / kWindow]);
        begin = d.speech;
        ++turns;
      }
      guess = d.kind == Kind::kSpeculativeEnd ? d.at : d.kind == Kind::kResume ? 0 : guess;
      if (d.kind == Kind::kEnd || d.kind == Kind::kCancel) {
        for (uint64_t k = begin / kWindow; k < d.at / kWindow; ++k) covered[k] = true;
        sent = guess > 0 ? guess : d.at;
        guess = 0;
      }
    }
    for (size_t i = 0; i < voiced.size(); ++i) EXPECT_TRUE(covered[i] || !wanted[i]) << i;
  }
  EXPECT_GT(turns, static_cast<int>(kCases));
}

TEST(AnySpeech, EndsComeWhenTheHangOverIsOverAndNoTurnIsTooLong) {
  int silences = 0, cuts = 0;
  for (uint32_t seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(seed);
    const Case c = random_case(seed);
    const auto voiced = voiced_windows(c);
    Decision started;
    for (const Decision& d : run(c)) {
      if (d.kind == Kind::kStart) started = d;
      if (d.kind != Kind::kEnd && d.kind != Kind::kCancel) continue;
      if (d.reason == EndReason::kSilence) {
        ++silences;
        const uint64_t hang_over = d.at - d.speech;
        EXPECT_GE(hang_over, c.settings.silence);
        EXPECT_LT(hang_over, std::max(c.settings.silence, uint64_t{1}) + kWindow);
        EXPECT_TRUE(voiced[d.speech / kWindow - 1]);
        for (uint64_t k = d.speech / kWindow; k < d.at / kWindow; ++k) EXPECT_FALSE(voiced[k]);
      }
      cuts += d.reason == EndReason::kMaxTurn;
      if (c.settings.max_turn > 0) {
        const uint64_t least = started.at - started.begin + kWindow;
        EXPECT_LT(d.at - started.begin, std::max(c.settings.max_turn + kWindow, least + 1));
      }
    }
  }
  EXPECT_GT(silences, 1000);
  EXPECT_GT(cuts, 1000);
}

}  // namespace
}  // namespace minicpmo
