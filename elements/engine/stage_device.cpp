#include "engine/stage_device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace minicpmo {

cuda::bfloat16_bits* bfloat16_data(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 && tensor.is_contiguous(),
              "a runner takes contiguous bfloat16 tensors");
  return static_cast<cuda::bfloat16_bits*>(tensor.data_ptr());
}

StageStream::StageStream(const StageDevice& device, bool high_priority) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.device.type());
  stream_ = guard.getStreamFromGlobalPool(device.device, high_priority);
  // The weights were loaded on the default stream, which ours does not wait for by itself.
  guard.getDefaultStream(device.device).synchronize();
}

cuda::RunnerOptions StageStream::runner_options(const StageDevice& device) const {
  return {device.device.index(), handle(), device.graphs};
}

}  // namespace minicpmo
