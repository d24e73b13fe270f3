#include "common/gstminicpmotensormemory.h"

#include <gtest/gtest.h>

#include <cstring>

#include "common/gst_ptr.h"
#include "support/element_harness.h"

namespace minicpmo::testing {
namespace {

TensorPtr sequence(int64_t rows, int64_t columns, float first = 0.0f) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i);
  std::vector<std::byte> bytes(values.size() * 4);
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return std::make_shared<HostTensor>(DataType::kFloat32, std::vector<int64_t>{rows, columns},
                                      std::move(bytes));
}

// A tensor whose bytes cannot be had, as after a device error.
class LostTensor final : public Tensor {
 public:
  LostTensor() : Tensor(DataType::kFloat32, {1, 2}) {}
  Result<std::span<const std::byte>> host_bytes() const override {
    return Error{ErrorCode::kFailed, "the device is gone", ""};
  }
};

TEST(TensorMemory, MapsToTheBytesAndPeeksTheTensor) {
  TensorPtr tensor = sequence(2, 3);
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(tensor));
  EXPECT_EQ(gst_buffer_get_size(buffer.get()), 24u);
  EXPECT_EQ(floats_of(buffer.get()), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  GstMemory* memory = gst_buffer_peek_memory(buffer.get(), 0);
  EXPECT_EQ(gst_minicpmo_tensor_memory_peek(memory), tensor);
}

TEST(TensorMemory, KeepsTheTensorAliveAndLetsItGo) {
  std::weak_ptr<const Tensor> weak;
  {
    TensorPtr tensor = sequence(1, 4);
    weak = tensor;
    BufferPtr buffer(gst_minicpmo_tensor_buffer_new(std::move(tensor)));
    EXPECT_FALSE(weak.expired());
    BufferPtr copy(gst_buffer_copy(buffer.get()));
    buffer.reset();
    EXPECT_FALSE(weak.expired());
  }
  EXPECT_TRUE(weak.expired());
}

TEST(TensorMemory, PartIsNotTheTensorButHasItsBytes) {
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(sequence(4, 2)));
  BufferPtr part(gst_buffer_copy_region(buffer.get(), GST_BUFFER_COPY_ALL, 8, 16));
  buffer.reset();
  EXPECT_EQ(gst_minicpmo_tensor_memory_peek(gst_buffer_peek_memory(part.get(), 0)), nullptr);
  EXPECT_EQ(floats_of(part.get()), (std::vector<float>{2, 3, 4, 5}));
  BufferPtr part_of_part(gst_buffer_copy_region(part.get(), GST_BUFFER_COPY_ALL, 4, 8));
  EXPECT_EQ(floats_of(part_of_part.get()), (std::vector<float>{3, 4}));
}

TEST(TensorMemory, WritingChangesACopyOnly) {
  TensorPtr tensor = sequence(1, 2);
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(tensor));
  GstMapInfo info;
  ASSERT_TRUE(gst_buffer_map(buffer.get(), &info, GST_MAP_WRITE));
  std::memset(info.data, 0xff, info.size);
  gst_buffer_unmap(buffer.get(), &info);
  float first = -1.0f;
  std::memcpy(&first, tensor->host_bytes().value().data(), 4);
  EXPECT_EQ(first, 0.0f);
}

TEST(TensorMemory, DeepCopyIsOrdinaryMemory) {
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(sequence(2, 2)));
  BufferPtr copy(gst_buffer_copy_deep(buffer.get()));
  EXPECT_EQ(gst_minicpmo_tensor_memory_peek(gst_buffer_peek_memory(copy.get(), 0)), nullptr);
  EXPECT_EQ(floats_of(copy.get()), (std::vector<float>{0, 1, 2, 3}));
}

TEST(TensorMemory, NoRowsCanBeMapped) {
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(sequence(0, 4)));
  GstMapInfo info;
  ASSERT_TRUE(gst_buffer_map(buffer.get(), &info, GST_MAP_READ));
  EXPECT_EQ(info.size, 0u);
  gst_buffer_unmap(buffer.get(), &info);
}

TEST(TensorMemory, LostBytesFailTheMapOnly) {
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(std::make_shared<LostTensor>()));
  GstMapInfo info;
  EXPECT_FALSE(gst_buffer_map(buffer.get(), &info, GST_MAP_READ));
  auto tensor = gst_minicpmo_buffer_get_tensor(buffer.get(), DataType::kBFloat16, 2);
  ASSERT_FALSE(tensor.ok());
  EXPECT_EQ(tensor.error().code, ErrorCode::kFailed);
}

TEST(BufferGetTensor, GivesTheTensorItselfWhenItFits) {
  TensorPtr tensor = sequence(3, 2);
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(tensor));
  EXPECT_EQ(gst_minicpmo_buffer_get_tensor(buffer.get(), DataType::kFloat32, 2).value(), tensor);
  // Read as three columns it is another tensor of the same bytes.
  auto other = gst_minicpmo_buffer_get_tensor(buffer.get(), DataType::kFloat32, 3);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(*other, tensor);
  EXPECT_EQ((*other)->dims(), (std::vector<int64_t>{2, 3}));
}

TEST(BufferGetTensor, JoinsTheMemoriesOfABuffer) {
  GstBuffer* joined = gst_buffer_append(gst_minicpmo_tensor_buffer_new(sequence(1, 2, 0.0f)),
                                        gst_minicpmo_tensor_buffer_new(sequence(2, 2, 10.0f)));
  BufferPtr buffer(joined);
  auto tensor = gst_minicpmo_buffer_get_tensor(joined, DataType::kFloat32, 2);
  ASSERT_TRUE(tensor.ok());
  ASSERT_EQ((*tensor)->rows(), 3);
  float values[6];
  std::memcpy(values, (*tensor)->host_bytes().value().data(), sizeof values);
  EXPECT_EQ(std::vector<float>(values, values + 6), (std::vector<float>{0, 1, 10, 11, 12, 13}));
}

TEST(BufferGetTensor, RefusesBrokenRows) {
  BufferPtr buffer(gst_buffer_new_allocate(nullptr, 10, nullptr));
  auto tensor = gst_minicpmo_buffer_get_tensor(buffer.get(), DataType::kUInt16, 4);
  ASSERT_FALSE(tensor.ok());
  EXPECT_EQ(tensor.error().code, ErrorCode::kFormat);
  EXPECT_NE(tensor.error().message.find("10 bytes"), std::string::npos);
  EXPECT_FALSE(gst_minicpmo_buffer_get_tensor(buffer.get(), DataType::kUInt16, 0).ok());
}

class CapsOfTypes : public ::testing::TestWithParam<DataType> {};
INSTANTIATE_TEST_SUITE_P(Types, CapsOfTypes,
                         ::testing::Values(DataType::kFloat32, DataType::kBFloat16,
                                           DataType::kUInt16, DataType::kInt32));

TEST_P(CapsOfTypes, ReadBack) {
  CapsPtr caps(gst_minicpmo_tensor_caps_new("some-id", GetParam(), 4096));
  EXPECT_TRUE(gst_caps_is_fixed(caps.get()));
  DataType type;
  gint64 columns = 0;
  ASSERT_TRUE(gst_minicpmo_tensor_caps_parse(caps.get(), "some-id", &type, &columns));
  EXPECT_EQ(type, GetParam());
  EXPECT_EQ(columns, 4096);
  EXPECT_FALSE(gst_minicpmo_tensor_caps_parse(caps.get(), "another-id", &type, &columns));
}

TEST(TensorCaps, OthersAreRefused) {
  DataType type;
  gint64 columns;
  for (const char* text :
       {"audio/x-raw", "tensor/strided", "tensor/strided,tensor-id=x,type=float64,dims=(int)<0,4>",
        "tensor/strided,tensor-id=x,type=float32,dims=(int)<0,4,4>",
        "tensor/strided,tensor-id=x,type=float32,dims=(int)<0,0>",
        "tensor/strided,tensor-id=x,type=float32,dims=4",
        "tensor/strided,tensor-id=x,type=float32,dims=(int)<0,4>,dims-order=col-major", "ANY"}) {
    CapsPtr caps(gst_caps_from_string(text));
    ASSERT_NE(caps, nullptr) << text;
    EXPECT_FALSE(gst_minicpmo_tensor_caps_parse(caps.get(), "x", &type, &columns)) << text;
  }
}

}  // namespace
}  // namespace minicpmo::testing
