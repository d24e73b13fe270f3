#include "engine/stage_device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace minicpmo {
namespace {

using Kind = std::pair<int, bool>;  // device, high priority

// Streams that no session has at the moment. torch's pool has 32 of each priority and hands them
// out in turn, to several sessions each: one of them would wait for the other, and what it
// launches would become part of a graph that the other captures. They are never destroyed: torch
// keeps memory for each of them.
struct FreeStreams {
  std::mutex mutex;
  std::map<Kind, std::vector<cuda::Stream>> streams;
};

FreeStreams& free_streams() {
  static auto* const all = new FreeStreams;
  return *all;
}

cuda::Stream take_stream(const StageDevice& device, const Kind& kind) {
  {
    FreeStreams& all = free_streams();
    const std::lock_guard lock(all.mutex);
    if (auto& ours = all.streams[kind]; !ours.empty()) {
      const cuda::Stream stream = ours.back();
      ours.pop_back();
      return stream;
    }
  }
  const auto made = device.runners->new_stream(kind.first, kind.second);
  TORCH_CHECK(made.ok(), made.error().message, ": ", made.error().detail);
  return *made;
}

}  // namespace

cuda::bfloat16_bits* bfloat16_data(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 && tensor.is_contiguous(),
              "a runner takes contiguous bfloat16 tensors");
  return static_cast<cuda::bfloat16_bits*>(tensor.data_ptr());
}

StageStream::StageStream(const StageDevice& device, bool high_priority) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.device.type());
  if (device.runners == nullptr) {  // no graphs: sharing costs time only
    stream_ = guard.getStreamFromGlobalPool(device.device, high_priority);
  } else {
    const Kind kind(device.device.index(), high_priority);
    const cuda::Stream own = take_stream(device, kind);
    lease_ = std::shared_ptr<void>(own, [kind](cuda::Stream stream) {
      FreeStreams& all = free_streams();
      const std::lock_guard lock(all.mutex);
      all.streams[kind].push_back(stream);
    });
    // As torch names streams that are not of its pool.
    stream_ = c10::Stream(c10::Stream::UNSAFE, device.device, reinterpret_cast<int64_t>(own));
    TORCH_CHECK(stream_->native_handle() == own, "this version of torch names streams otherwise");
  }
  // The weights were loaded on the default stream, which ours does not wait for by itself.
  guard.getDefaultStream(device.device).synchronize();
}

cuda::RunnerOptions StageStream::runner_options(const StageDevice& device) const {
  return {device.device.index(), handle(), device.graphs};
}

}  // namespace minicpmo
