// The level of what is heard all the time: voices in the background are speech, too, and only their
// level tells them from the one that is meant.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace minicpmo {

// The background is the level that a fifth of the windows of the last four seconds lie below.
// Before the first of them was silence. In speech it is what is between the syllables.
class Background {
 public:
  static constexpr size_t kWindows = 125;  // of 32 ms
  static constexpr double kShare = 0.2;

  // Hears one window (mono, finite samples). Whether its level, without its DC, is `margin_db` or
  // more above the background, itself included.
  bool stands_out(std::span<const float> pcm, float margin_db);
  void reset() { *this = Background(); }

 private:
  std::array<double, kWindows> powers_{};  // the last windows', in no order
  size_t next_ = 0;                        // the oldest
};

}  // namespace minicpmo
