// The gate that lets the first sound of an answer pass.
#include "engine/speech_gate.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace minicpmo {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

template <class Body>
double took_ms(Body&& body) {
  const auto start = Clock::now();
  body();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double waited_ms(SpeechGate& gate, int64_t asked) {
  return took_ms([&] { gate.wait(asked); });
}

TEST(SpeechGate, IsOpenWhileNobodyWaitsForSound) {
  SpeechGate gate;
  EXPECT_LT(waited_ms(gate, gate.asked()), 40);
}

TEST(SpeechGate, WaitsShortlyForTheTextToBeRead) {
  SpeechGate gate;
  SpeechGate::FirstSound sound(gate);
  EXPECT_GE(waited_ms(gate, gate.asked()), 0.4);  // nobody reads it: a bounded wait
  const int64_t before = gate.asked();
  sound.needs_text();
  EXPECT_LT(waited_ms(gate, before), 40);  // it was read, and more is needed
}

TEST(SpeechGate, WaitsUntilTheFirstCodesAreMade) {
  SpeechGate gate;
  std::optional<SpeechGate::FirstSound> sound(std::in_place, gate);
  const int64_t before = gate.asked();
  std::optional<SpeechGate::FirstSound::Making> making(std::in_place, *sound);
  std::thread speech([&] {
    std::this_thread::sleep_for(milliseconds(20));
    making.reset();
    sound.reset();
  });
  const double waited = waited_ms(gate, before);
  speech.join();
  EXPECT_GE(waited, 15);
  EXPECT_LT(waited_ms(gate, before), 40);
}

TEST(SpeechGate, NobodyIsHeldUpForLong) {
  SpeechGate gate;
  SpeechGate::FirstSound sound(gate);
  const SpeechGate::FirstSound::Making making(sound);
  const double waited = waited_ms(gate, gate.asked());
  EXPECT_GE(waited, 40);
  EXPECT_LT(waited, 2000);
}

TEST(SpeechGate, LaterWordsWaitForFirstWords) {
  SpeechGate gate;
  EXPECT_LT(took_ms([&] { gate.wait_for_first_words(); }), 40);
  std::optional<SpeechGate::FirstWords> first(std::in_place, gate), second(std::in_place, gate);
  std::thread others([&] {
    std::this_thread::sleep_for(milliseconds(10));
    first.reset();
    std::this_thread::sleep_for(milliseconds(10));
    second.reset();
  });
  EXPECT_GE(took_ms([&] { gate.wait_for_first_words(); }), 15);
  others.join();
  EXPECT_LT(took_ms([&] { gate.wait_for_first_words(); }), 40);
}

TEST(SpeechGate, LaterWordsAreNotHeldUpForLong) {
  SpeechGate gate;
  const SpeechGate::FirstWords first(gate);
  const double waited = took_ms([&] { gate.wait_for_first_words(); });
  EXPECT_GE(waited, 40);
  EXPECT_LT(waited, 2000);
}

TEST(SpeechGate, EachGpuHasItsOwn) {
  EXPECT_EQ(&SpeechGate::of_device(0), &SpeechGate::of_device(0));
  EXPECT_NE(&SpeechGate::of_device(0), &SpeechGate::of_device(1));
}

}  // namespace
}  // namespace minicpmo
