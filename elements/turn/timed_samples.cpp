#include "turn/timed_samples.h"

#include <algorithm>
#include <cassert>

namespace minicpmo {

void TimedSamples::append(std::span<const float> samples) {
  samples_.insert(samples_.end(), samples.begin(), samples.end());
}

void TimedSamples::set_time(uint64_t time, bool jump) {
  const uint64_t position = end();
  if (!jump && !marks_.empty()) {
    const uint64_t counted = time_of(position);
    if (std::max(counted, time) - std::min(counted, time) < kTolerance) return;
  }
  if (!marks_.empty() && marks_.back().position == position) {
    jump = jump || marks_.back().jump;
    marks_.pop_back();
  }
  marks_.push_back({position, time, jump});
}

void TimedSamples::drop_until(uint64_t position) {
  if (position <= begin_) return;
  assert(position <= end());
  dropped_ += position - begin_;
  begin_ = position;
  while (marks_.size() > 1 && marks_[1].position <= begin_) marks_.pop_front();
  if (dropped_ >= samples_.size() - dropped_) {
    samples_.erase(samples_.begin(), samples_.begin() + static_cast<std::ptrdiff_t>(dropped_));
    dropped_ = 0;
  }
}

void TimedSamples::clear() {
  begin_ = end();
  samples_.clear();
  dropped_ = 0;
  marks_.clear();
}

std::span<const float> TimedSamples::view(uint64_t position, size_t count) const {
  assert(position >= begin_ && position + count <= end());
  return std::span(samples_).subspan(dropped_ + static_cast<size_t>(position - begin_), count);
}

uint64_t TimedSamples::time_of(uint64_t position) const {
  if (marks_.empty()) return 0;
  auto after = std::upper_bound(marks_.begin(), marks_.end(), position,
                                [](uint64_t p, const Mark& mark) { return p < mark.position; });
  const Mark& mark = after == marks_.begin() ? *after : *std::prev(after);
  return mark.time + (position - mark.position) * kSampleTime;  // modulo 2^64: backwards, too
}

uint64_t TimedSamples::end_time_of(uint64_t position) const {
  return position == 0 ? time_of(0) : time_of(position - 1) + kSampleTime;
}

bool TimedSamples::jump_at(uint64_t position) const {
  return std::any_of(marks_.begin(), marks_.end(), [position](const Mark& mark) {
    return mark.jump && mark.position == position;
  });
}

uint64_t TimedSamples::next_jump(uint64_t position) const {
  for (const Mark& mark : marks_) {
    if (mark.jump && mark.position > position) return std::min(mark.position, end());
  }
  return end();
}

}  // namespace minicpmo
