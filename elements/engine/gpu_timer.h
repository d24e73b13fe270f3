// How long a session's calls take on the GPU.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/stage_device.h"

namespace minicpmo {

// A pair of events on the session's stream around each call. Calls never wait for them: a pair is
// read once the GPU has passed both. What lies between them includes the gaps in which the GPU
// waits for the next launch, and what others do on it meanwhile. Counts nothing on a CPU. Never
// throws: what cannot be measured is not counted.
class GpuTimer {
 public:
  explicit GpuTimer(const StageStream& stream) : stream_(stream.stream()) {}
  GpuTimer(const GpuTimer&) = delete;
  GpuTimer& operator=(const GpuTimer&) = delete;

  // One call, on the session's thread and with its stream current. Not nested.
  class Call {
   public:
    explicit Call(GpuTimer& timer) : timer_(timer) { timer_.begin(); }
    ~Call() { timer_.end(); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    GpuTimer& timer_;
  };

  // Of all calls that the GPU has finished. From any thread. If the last call has returned but its
  // end is not told yet, this looks again for 0.2 ms.
  int64_t nanoseconds() const noexcept;

 private:
  struct Pair {
    c10::Event begin, end;
  };

  void begin() noexcept;
  void end() noexcept;
  void collect() const;

  const std::optional<c10::Stream> stream_;
  mutable std::mutex mutex_;  // guards what follows
  std::optional<Pair> running_;
  mutable std::deque<Pair> finished_;  // calls that have returned
  mutable std::vector<Pair> unused_;
  mutable int64_t nanoseconds_ = 0;
};

}  // namespace minicpmo
