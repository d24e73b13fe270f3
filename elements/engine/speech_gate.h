// Lets the first sound of an answer pass: while a speech model on a GPU makes the first codes of an
// answer, language models on that GPU do not begin their next burst, and while a language model
// makes the first words of an answer, those of other calls do not begin a burst of later words.
// Both at once would share the memory's bandwidth, and the first sound is waited for, the words
// after it are not (PERF.md, both decoders at once, calls at once). Bounded waits only: who does
// not come holds nobody up for long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace minicpmo {

class SpeechGate {
 public:
  // One for each GPU, never destroyed.
  static SpeechGate& of_device(int index);

  // One more in a counter of the gate, as long as this is there.
  class Counted {
   public:
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;

   protected:
    Counted(SpeechGate& gate, int64_t SpeechGate::*counter) : gate_(gate), counter_(counter) {
      gate_.add(counter_, 1);
    }
    ~Counted() { gate_.add(counter_, -1); }

    SpeechGate& gate_;

   private:
    int64_t SpeechGate::*const counter_;
  };

  // A speech model's answer that has made no sound yet.
  class FirstSound : Counted {
   public:
    explicit FirstSound(SpeechGate& gate) : Counted(gate, &SpeechGate::awaited_) {}

    // It makes its first codes.
    class Making : Counted {
     public:
      explicit Making(FirstSound& sound) : Counted(sound.gate_, &SpeechGate::making_) {}
    };
    // It has read all the text there is, and needs more.
    void needs_text() { gate_.add(&SpeechGate::asked_, 1); }
  };

  // The first words of an answer, up to those that speech begins with.
  class FirstWords : Counted {
   public:
    explicit FirstWords(SpeechGate& gate) : Counted(gate, &SpeechGate::first_words_) {}
  };

  // To be kept by a language model with each burst that it hands out, and given to wait() before
  // the next one: by then a speech model should have read the burst.
  int64_t asked() const;
  void wait(int64_t asked_before);
  // Before each burst of later words.
  void wait_for_first_words();

 private:
  static constexpr std::chrono::microseconds kToRead{500};
  static constexpr std::chrono::milliseconds kToSpeak{50};
  // Three tokens, a second of speech, are still made in each 62 ms then, on an H100.
  static constexpr std::chrono::milliseconds kToBegin{50};

  void add(int64_t SpeechGate::*counter, int64_t n);

  mutable std::mutex mutex_;  // guards the counters
  std::condition_variable changed_;
  int64_t awaited_ = 0;  // answers without a sound
  int64_t making_ = 0;   // of these, making it
  int64_t asked_ = 0;    // times that one needed more text
  int64_t first_words_ = 0;
};

}  // namespace minicpmo
