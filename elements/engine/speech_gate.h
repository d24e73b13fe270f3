// Lets the first sound of an answer pass: while a speech model on a GPU makes the first codes of an
// answer, language models on that GPU do not begin their next burst. Both at once would share the
// memory's bandwidth, and the first sound is waited for, the words after it are not (PERF.md, both
// decoders at once). Bounded waits only: a speech model that does not come holds nobody up for
// long.
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

  // A speech model's answer that has made no sound yet.
  class FirstSound {
   public:
    explicit FirstSound(SpeechGate& gate) : gate_(gate) { gate_.add(&gate_.awaited_, 1); }
    ~FirstSound() { gate_.add(&gate_.awaited_, -1); }
    FirstSound(const FirstSound&) = delete;
    FirstSound& operator=(const FirstSound&) = delete;

    // It makes its first codes.
    class Making {
     public:
      explicit Making(FirstSound& sound) : gate_(sound.gate_) { gate_.add(&gate_.making_, 1); }
      ~Making() { gate_.add(&gate_.making_, -1); }
      Making(const Making&) = delete;
      Making& operator=(const Making&) = delete;

     private:
      SpeechGate& gate_;
    };
    // It has read all the text there is, and needs more.
    void needs_text() { gate_.add(&gate_.asked_, 1); }

   private:
    SpeechGate& gate_;
  };

  // To be kept by a language model with each burst that it hands out, and given to wait() before
  // the next one: by then a speech model should have read the burst.
  int64_t asked() const;
  void wait(int64_t asked_before);

 private:
  static constexpr std::chrono::microseconds kToRead{500};
  static constexpr std::chrono::milliseconds kToSpeak{50};

  void add(int64_t* counter, int64_t n);

  mutable std::mutex mutex_;  // guards the counters
  std::condition_variable changed_;
  int64_t awaited_ = 0;  // answers without a sound
  int64_t making_ = 0;   // of these, making it
  int64_t asked_ = 0;    // times that one needed more text
};

}  // namespace minicpmo
