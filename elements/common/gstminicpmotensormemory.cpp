#include "common/gstminicpmotensormemory.h"

#include <climits>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "common/gst_ptr.h"

using minicpmo::DataType;
using minicpmo::TensorPtr;

namespace {

constexpr const gchar* kMemoryType = "MiniCpmoTensorMemory";

struct TensorMemory {
  GstMemory memory;
  TensorPtr* tensor;
};

TensorMemory* tensor_memory(GstMemory* memory) {
  return reinterpret_cast<TensorMemory*>(memory);
}

gpointer map_memory(GstMemory* memory, gsize, GstMapFlags) noexcept {
  // Never NULL for a map that succeeds, not even of no bytes.
  static std::byte nothing[16];
  try {
    const auto bytes = (*tensor_memory(memory)->tensor)->host_bytes();
    if (!bytes.ok()) {
      GST_WARNING("cannot map a tensor: %s (%s)", bytes.error().message.c_str(),
                  bytes.error().detail.c_str());
      return nullptr;
    }
    if (bytes.value().empty()) return nothing;
    return const_cast<std::byte*>(bytes.value().data());
  } catch (const std::exception& e) {
    GST_WARNING("cannot map a tensor: %s", e.what());
    return nullptr;
  }
}

void unmap_memory(GstMemory*) {}

GstMemory* new_memory(const TensorPtr& tensor, GstMemory* parent, gsize offset, gsize size);

GstMemory* share_memory(GstMemory* memory, gssize offset, gssize size) {
  GstMemory* parent = memory->parent != nullptr ? memory->parent : memory;
  const gsize rest = memory->size - static_cast<gsize>(offset);
  return new_memory(*tensor_memory(memory)->tensor, parent, memory->offset + offset,
                    size < 0 ? rest : static_cast<gsize>(size));
}

}  // namespace

struct GstMiniCpmoTensorAllocator {
  GstAllocator parent;
};
struct GstMiniCpmoTensorAllocatorClass {
  GstAllocatorClass parent_class;
};
GType gst_minicpmo_tensor_allocator_get_type(void);
G_DEFINE_TYPE(GstMiniCpmoTensorAllocator, gst_minicpmo_tensor_allocator, GST_TYPE_ALLOCATOR)

static void gst_minicpmo_tensor_allocator_free(GstAllocator*, GstMemory* memory) {
  TensorMemory* self = tensor_memory(memory);
  delete self->tensor;
  delete self;
}

static void gst_minicpmo_tensor_allocator_class_init(GstMiniCpmoTensorAllocatorClass* klass) {
  klass->parent_class.alloc = nullptr;
  klass->parent_class.free = gst_minicpmo_tensor_allocator_free;
}

static void gst_minicpmo_tensor_allocator_init(GstMiniCpmoTensorAllocator* self) {
  GstAllocator* allocator = &self->parent;
  allocator->mem_type = kMemoryType;
  allocator->mem_map = map_memory;
  allocator->mem_unmap = unmap_memory;
  allocator->mem_share = share_memory;
  GST_OBJECT_FLAG_SET(allocator, GST_ALLOCATOR_FLAG_CUSTOM_ALLOC);
}

namespace {

GstAllocator* tensor_allocator() {
  // Lives as long as the process: memories may outlast every element.
  static GstAllocator* const allocator = [] {
    auto* made =
        static_cast<GstAllocator*>(g_object_new(gst_minicpmo_tensor_allocator_get_type(), nullptr));
    gst_object_ref_sink(made);
    GST_OBJECT_FLAG_SET(made, GST_OBJECT_FLAG_MAY_BE_LEAKED);
    return made;
  }();
  return allocator;
}

GstMemory* new_memory(const TensorPtr& tensor, GstMemory* parent, gsize offset, gsize size) {
  auto* self = new TensorMemory;
  self->tensor = new TensorPtr(tensor);
  gst_memory_init(&self->memory, GST_MEMORY_FLAG_READONLY, tensor_allocator(), parent,
                  tensor->byte_size(), 0, offset, size);
  return &self->memory;
}

const gchar* type_name(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return "float32";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kUInt16:
      return "uint16";
    case DataType::kInt32:
      return "int32";
  }
  return "unknown";
}

bool parse_type(const gchar* name, DataType* type) {
  for (DataType t :
       {DataType::kFloat32, DataType::kBFloat16, DataType::kUInt16, DataType::kInt32}) {
    if (g_strcmp0(name, type_name(t)) == 0) {
      *type = t;
      return true;
    }
  }
  return false;
}

// The tensor that `buffer` carries whole, if it has the form that the caps promise.
TensorPtr whole_tensor(GstBuffer* buffer, DataType type, gint64 columns) {
  if (gst_buffer_n_memory(buffer) != 1) return nullptr;
  TensorPtr tensor = gst_minicpmo_tensor_memory_peek(gst_buffer_peek_memory(buffer, 0));
  if (tensor == nullptr || tensor->type() != type) return nullptr;
  if (tensor->dims().size() != 2 || tensor->dims()[1] != columns) return nullptr;
  return tensor;
}

}  // namespace

GstMemory* gst_minicpmo_tensor_memory_new(TensorPtr tensor) {
  g_return_val_if_fail(tensor != nullptr, nullptr);
  return new_memory(tensor, nullptr, 0, tensor->byte_size());
}

TensorPtr gst_minicpmo_tensor_memory_peek(GstMemory* memory) {
  if (memory == nullptr || !gst_memory_is_type(memory, kMemoryType)) return nullptr;
  const TensorPtr& tensor = *tensor_memory(memory)->tensor;
  if (memory->offset != 0 || memory->size != tensor->byte_size()) return nullptr;
  return tensor;
}

GstBuffer* gst_minicpmo_tensor_buffer_new(TensorPtr tensor) {
  g_return_val_if_fail(tensor != nullptr, nullptr);
  GstBuffer* buffer = gst_buffer_new();
  gst_buffer_append_memory(buffer, gst_minicpmo_tensor_memory_new(std::move(tensor)));
  return buffer;
}

minicpmo::Result<TensorPtr> gst_minicpmo_buffer_get_tensor(GstBuffer* buffer, DataType type,
                                                           gint64 columns) {
  using minicpmo::Error;
  using minicpmo::ErrorCode;
  if (TensorPtr whole = whole_tensor(buffer, type, columns)) return whole;
  if (columns <= 0) return Error{ErrorCode::kFormat, "A tensor needs at least one column.", ""};
  const gsize row_bytes = minicpmo::size_of(type) * static_cast<gsize>(columns);
  const gsize size = gst_buffer_get_size(buffer);
  if (size % row_bytes != 0) {
    return Error{ErrorCode::kFormat,
                 "A buffer of " + std::to_string(size) + " bytes is no whole number of rows of " +
                     std::to_string(columns) + " " + type_name(type) + " (" +
                     std::to_string(row_bytes) + " bytes each).",
                 "check that the caps fit the data"};
  }
  minicpmo::BufferMap map(buffer);
  if (!map.ok()) return Error{ErrorCode::kFailed, "Cannot read a buffer.", "gst_buffer_map failed"};
  std::vector<std::byte> bytes(map.bytes().begin(), map.bytes().end());
  return TensorPtr(std::make_shared<minicpmo::HostTensor>(
      type, std::vector<int64_t>{static_cast<int64_t>(size / row_bytes), columns},
      std::move(bytes)));
}

GstCaps* gst_minicpmo_tensor_caps_new(const gchar* tensor_id, DataType type, gint64 columns) {
  g_return_val_if_fail(columns > 0 && columns <= INT_MAX, nullptr);
  GValue dims = G_VALUE_INIT;
  GValue dim = G_VALUE_INIT;
  gst_value_array_init(&dims, 2);
  g_value_init(&dim, G_TYPE_INT);
  g_value_set_int(&dim, 0);
  gst_value_array_append_value(&dims, &dim);
  g_value_set_int(&dim, static_cast<gint>(columns));
  gst_value_array_append_value(&dims, &dim);
  GstCaps* caps = gst_caps_new_simple("tensor/strided", "tensor-id", G_TYPE_STRING, tensor_id,
                                      "type", G_TYPE_STRING, type_name(type), "dims-order",
                                      G_TYPE_STRING, "row-major", nullptr);
  gst_caps_set_value(caps, "dims", &dims);
  g_value_unset(&dim);
  g_value_unset(&dims);
  return caps;
}

gboolean gst_minicpmo_tensor_caps_parse(const GstCaps* caps, const gchar* tensor_id, DataType* type,
                                        gint64* columns) {
  if (caps == nullptr || gst_caps_get_size(caps) != 1) return FALSE;
  const GstStructure* s = gst_caps_get_structure(caps, 0);
  if (!gst_structure_has_name(s, "tensor/strided")) return FALSE;
  if (g_strcmp0(gst_structure_get_string(s, "tensor-id"), tensor_id) != 0) return FALSE;
  const gchar* order = gst_structure_get_string(s, "dims-order");
  if (order != nullptr && g_strcmp0(order, "row-major") != 0) return FALSE;
  if (!parse_type(gst_structure_get_string(s, "type"), type)) return FALSE;
  const GValue* dims = gst_structure_get_value(s, "dims");
  if (dims == nullptr || !GST_VALUE_HOLDS_ARRAY(dims)) return FALSE;
  if (gst_value_array_get_size(dims) != 2) return FALSE;
  const GValue* last = gst_value_array_get_value(dims, 1);
  if (!G_VALUE_HOLDS_INT(last) || g_value_get_int(last) <= 0) return FALSE;
  *columns = g_value_get_int(last);
  return TRUE;
}
