#include "engine/torch_tensor.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

TEST(TorchTensor, WrapsWithoutCopying) {
  const at::Tensor x = at::arange(6, at::kFloat).view({2, 3});
  const TensorPtr wrapped = wrap_tensor(x);
  EXPECT_EQ(wrapped->type(), DataType::kFloat32);
  EXPECT_EQ(wrapped->dims(), (std::vector<int64_t>{2, 3}));
  const auto bytes = wrapped->host_bytes();
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(static_cast<const void*>(bytes->data()), x.const_data_ptr());
  EXPECT_EQ(bytes->size(), 24u);
  const auto back = unwrap_tensor(*wrapped);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->const_data_ptr(), x.const_data_ptr());
}

TEST(TorchTensor, CopiesForeignTensorsOfEveryType) {
  for (const DataType type :
       {DataType::kFloat32, DataType::kBFloat16, DataType::kUInt16, DataType::kInt32}) {
    std::vector<std::byte> bytes(4 * size_of(type));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i + 1);
    const std::vector<std::byte> copy = bytes;
    const HostTensor host(type, {2, 2}, std::move(bytes));
    const auto x = unwrap_tensor(host);
    ASSERT_TRUE(x.ok());
    EXPECT_EQ(x->scalar_type(), to_scalar_type(type));
    EXPECT_EQ(x->sizes(), (std::vector<int64_t>{2, 2}));
    EXPECT_EQ(std::memcmp(x->const_data_ptr(), copy.data(), copy.size()), 0);
    EXPECT_EQ(wrap_tensor(*x)->type(), type);
  }
}

TEST(TorchTensor, EmptyTensorsAreFine) {
  const auto x = unwrap_tensor(HostTensor(DataType::kUInt16, {0, 4}, {}));
  ASSERT_TRUE(x.ok());
  EXPECT_EQ(x->size(0), 0);
  EXPECT_EQ(wrap_tensor(*x)->byte_size(), 0u);
}

// A tensor whose bytes do not match its shape, as a faulty producer could make one.
class ShortTensor final : public Tensor {
 public:
  ShortTensor() : Tensor(DataType::kFloat32, {2}) {}
  Result<std::span<const std::byte>> host_bytes() const override {
    return std::span<const std::byte>(bytes_);
  }

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(4);
};

class BrokenTensor final : public Tensor {
 public:
  BrokenTensor() : Tensor(DataType::kFloat32, {2}) {}
  Result<std::span<const std::byte>> host_bytes() const override {
    return Error{ErrorCode::kBusy, "the device is gone"};
  }
};

TEST(TorchTensor, RefusesTensorsThatLieOrFail) {
  const auto lying = unwrap_tensor(ShortTensor());
  ASSERT_FALSE(lying.ok());
  EXPECT_EQ(lying.error().code, ErrorCode::kFormat);
  const auto broken = unwrap_tensor(BrokenTensor());
  ASSERT_FALSE(broken.ok());
  EXPECT_EQ(broken.error().code, ErrorCode::kBusy);
}

TEST(TorchTensor, WrapsNothingThatASeamCannotCarry) {
  EXPECT_THROW(wrap_tensor(at::arange(4, at::kLong)), c10::Error);
  EXPECT_THROW(wrap_tensor(at::arange(6, at::kFloat).view({2, 3}).t()), c10::Error);
}

TEST(StageScope, SetsInferenceModeInAnyThread) {
  EXPECT_FALSE(c10::InferenceMode::is_enabled());
  bool inside = false;
  std::thread([&] {
    StageScope scope;
    inside = c10::InferenceMode::is_enabled();
  }).join();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(c10::InferenceMode::is_enabled());
}

TEST(StageScope, SetsTheThreadCountUnlessTheUserDid) {
  const auto threads_inside = [] {
    int threads = 0;
    std::thread([&] {
      StageScope scope;
      threads = at::get_num_threads();
    }).join();
    return threads;
  };
  const bool user = std::getenv("OMP_NUM_THREADS") || std::getenv("MKL_NUM_THREADS");
  const int before = at::get_num_threads();
  set_stage_threads(2);
  EXPECT_EQ(threads_inside(), user ? before : 2);
  set_stage_threads(1);
  EXPECT_EQ(threads_inside(), user ? before : 1);
}

TEST(RunStage, PassesResultsAndTurnsExceptionsIntoErrors) {
  EXPECT_EQ(*run_stage("x", []() -> Result<int> { return 7; }), 7);
  const auto torch = run_stage("decoder", []() -> Result<int> {
    at::full({2}, 1.0).view({3});
    return 0;
  });
  ASSERT_FALSE(torch.ok());
  EXPECT_EQ(torch.error().code, ErrorCode::kFailed);
  EXPECT_EQ(torch.error().message, "decoder failed");
  EXPECT_NE(torch.error().detail.find("[3]"), std::string::npos);
  const auto memory = run_stage("decoder", []() -> Result<int> { throw std::bad_alloc(); });
  EXPECT_EQ(memory.error().code, ErrorCode::kNoSpace);
  const auto other = run_stage("decoder", []() -> Result<int> { throw 5; });
  EXPECT_EQ(other.error().code, ErrorCode::kFailed);
}

// torch reports this as a plain Error, not as OutOfMemoryError.
TEST(RunStage, AnAllocationThatCannotSucceedIsNoSpace) {
  const auto result = run_stage("decoder", []() -> Result<int> {
    at::empty({int64_t{1} << 45}, at::kFloat);
    return 0;
  });
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kNoSpace);
  EXPECT_EQ(result.error().message,
            "decoder: out of memory, 140737488355328 bytes asked for; run fewer pipelines at once "
            "or set a smaller context-length");
}

TEST(RunStage, AFullGpuIsNamed) {
  const auto result = run_stage("decoder", []() -> Result<int> {
    TORCH_CHECK_WITH(OutOfMemoryError, false,
                     "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity "
                     "of 79.10 GiB of which 1.20 GiB is free. Including non-PyTorch memory, ...");
    return 0;
  });
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kNoSpace);
  EXPECT_EQ(result.error().message,
            "decoder: cuda:1 is out of memory, 2.00 GiB asked for and 1.20 GiB free; run fewer "
            "pipelines at once or set a smaller context-length");
}

// Of what is not a tensor: a kernel that is loaded, a cuBLAS handle.
TEST(RunStage, AFullGpuIsNamedByTheOtherErrorsToo) {
  for (const char* words : {"CUDA error: out of memory",
                            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"}) {
    const auto result = run_stage("decoder", [&]() -> Result<int> {
      TORCH_CHECK(false, words);
      return 0;
    });
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kNoSpace);
    EXPECT_EQ(result.error().message,
              "decoder: the GPU is out of memory; run fewer pipelines at once or set a smaller "
              "context-length");
  }
}

}  // namespace
}  // namespace minicpmo
