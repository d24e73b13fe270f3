#include "engine/speech_gate.h"

#include <map>

namespace minicpmo {

SpeechGate& SpeechGate::of_device(int index) {
  static std::mutex mutex;
  static auto* const gates = new std::map<int, SpeechGate>;
  const std::lock_guard lock(mutex);
  return (*gates)[index];
}

int64_t SpeechGate::asked() const {
  const std::lock_guard lock(mutex_);
  return asked_;
}

void SpeechGate::wait(int64_t asked_before) {
  std::unique_lock lock(mutex_);
  if (awaited_ == 0) return;
  changed_.wait_for(lock, kToRead,
                    [&] { return awaited_ == 0 || making_ > 0 || asked_ != asked_before; });
  changed_.wait_for(lock, kToSpeak, [&] { return making_ == 0; });
}

void SpeechGate::wait_for_first_words() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kToBegin, [&] { return first_words_ == 0; });
}

void SpeechGate::add(int64_t SpeechGate::*counter, int64_t n) {
  {
    const std::lock_guard lock(mutex_);
    this->*counter += n;
  }
  changed_.notify_all();
}

}  // namespace minicpmo
