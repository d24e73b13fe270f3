// Samples (16 kHz) that have come and not yet gone, and the time of each. Positions count samples
// from the start; times are in nanoseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace minicpmo {

class TimedSamples {
 public:
  static constexpr uint64_t kSampleTime = 62500;  // 1 s / 16000, exactly
  // Stamps that are off by less follow the count of samples: jitter buffers and decoders round.
  static constexpr uint64_t kTolerance = 1000000;

  // Samples that follow in time what is there.
  void append(std::span<const float> samples);
  // The time of the next sample to come. jump: it does not follow the one before it.
  void set_time(uint64_t time, bool jump);
  void drop_until(uint64_t position);
  void clear();  // times too; positions go on

  uint64_t begin() const { return begin_; }
  uint64_t end() const { return begin_ + samples_.size() - dropped_; }
  // count samples from `position` on, all of them held. Valid until the next change.
  std::span<const float> view(uint64_t position, size_t count) const;
  // Of the sample at `position`, from begin() to end().
  uint64_t time_of(uint64_t position) const;
  // When the sample before `position` ends, for a position from begin() + 1 to end(); that of an
  // earlier position counts back from the first that is held.
  uint64_t end_time_of(uint64_t position) const;
  // Whether the sample at `position` does not follow the one before it, and where the next such
  // sample after `position` is; end() if there is none.
  bool jump_at(uint64_t position) const;
  uint64_t next_jump(uint64_t position) const;

 private:
  struct Mark {
    uint64_t position;
    uint64_t time;
    bool jump;
  };

  std::vector<float> samples_;
  size_t dropped_ = 0;  // at the front of samples_
  uint64_t begin_ = 0;
  std::deque<Mark> marks_;  // one at begin_ or before it, if there is any; ascending
};

}  // namespace minicpmo
