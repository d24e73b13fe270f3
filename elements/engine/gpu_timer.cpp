#include "engine/gpu_timer.h"

#include <c10/core/DeviceGuard.h>

#include <chrono>
#include <cmath>
#include <exception>
#include <thread>
#include <utility>

namespace minicpmo {
namespace {

// A call that waits for its result returns before the event behind it has passed.
constexpr std::chrono::microseconds kToPass{200};

c10::Event timing_event(const c10::Stream& stream) {
  return {stream.device_type(), c10::EventFlag::BACKEND_DEFAULT};
}

}  // namespace

void GpuTimer::begin() noexcept {
  if (!stream_) return;
  const std::lock_guard lock(mutex_);
  try {
    collect();
    if (unused_.empty()) unused_.push_back({timing_event(*stream_), timing_event(*stream_)});
    running_ = std::move(unused_.back());
    unused_.pop_back();
    running_->begin.record(*stream_);
  } catch (const std::exception&) {
    running_.reset();
  }
}

void GpuTimer::end() noexcept {
  if (!stream_) return;
  const std::lock_guard lock(mutex_);
  if (!running_) return;
  try {
    running_->end.record(*stream_);
    finished_.push_back(std::move(*running_));
  } catch (const std::exception&) {  // a call on a GPU that fails says so itself
  }
  running_.reset();
}

// The calls that the GPU has passed, which it does in order.
void GpuTimer::collect() const {
  while (!finished_.empty() && finished_.front().end.query()) {
    Pair pair = std::move(finished_.front());
    finished_.pop_front();
    nanoseconds_ += std::llround(pair.begin.elapsedTime(pair.end) * 1e6);
    unused_.push_back(std::move(pair));
  }
}

int64_t GpuTimer::nanoseconds() const noexcept {
  if (!stream_) return 0;
  const auto until = std::chrono::steady_clock::now() + kToPass;
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      try {
        const c10::DeviceGuard guard(stream_->device());
        collect();
      } catch (const std::exception&) {
        return nanoseconds_;
      }
      const bool told = finished_.empty() || running_;
      if (told || std::chrono::steady_clock::now() >= until) return nanoseconds_;
    }
    std::this_thread::yield();
  }
}

}  // namespace minicpmo
