// The level of what is heard all the time: voices in the background are speech, too, and only their
// level tells them from the one that is meant.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace minicpmo {

// Of the levels of the windows of the last four seconds, the background is the one that a fifth lie
// below, and the foreground the one that a twentieth lie above. A window stands out if its level is
// in the upper half between the two, or `margin_db` above the background. Before the first window
// was silence.
class Background {
 public:
  static constexpr size_t kWindows = 125;  // of 32 ms

  // Hears one window (mono, finite samples; its DC does not count). Whether it stands out.
  bool stands_out(std::span<const float> pcm, float margin_db);
  void reset() { *this = Background(); }

 private:
  std::array<double, kWindows> powers_{};  // the last windows', in no order
  size_t next_ = 0;                        // the oldest
};

}  // namespace minicpmo
