// Tensors in buffers. A GstMemory that holds a Tensor: mapping it for reading gives the tensor's
// bytes in host memory (copied from the device if need be), so filesink, tee and appsink work on
// every seam; the next element takes the tensor itself.
#pragma once

#include <gst/gst.h>

#include "common/tensor.h"

// A read-only memory that keeps `tensor` alive.
GstMemory* gst_minicpmo_tensor_memory_new(minicpmo::TensorPtr tensor);
// The tensor of a memory made here, or nullptr.
minicpmo::TensorPtr gst_minicpmo_tensor_memory_peek(GstMemory* memory);

// A buffer with one tensor memory.
GstBuffer* gst_minicpmo_tensor_buffer_new(minicpmo::TensorPtr tensor);
// The buffer's tensor: the one it holds if it is a single tensor memory of this type and column
// count, otherwise its bytes as a HostTensor (rows, columns). kFormat if the size is no whole
// number of rows.
minicpmo::Result<minicpmo::TensorPtr> gst_minicpmo_buffer_get_tensor(GstBuffer* buffer,
                                                                     minicpmo::DataType type,
                                                                     gint64 columns);

// Caps of a seam: tensor/strided with tensor-id, type, dims=<0,columns>, dims-order=row-major.
GstCaps* gst_minicpmo_tensor_caps_new(const gchar* tensor_id, minicpmo::DataType type,
                                      gint64 columns);
// Reads type and columns of fixed tensor caps; FALSE if they are not ours.
gboolean gst_minicpmo_tensor_caps_parse(const GstCaps* caps, const gchar* tensor_id,
                                        minicpmo::DataType* type, gint64* columns);

#define GST_MINICPMO_TENSOR_ID_EMBEDDING "minicpmo-audio-embedding"
#define GST_MINICPMO_TENSOR_ID_CODE "minicpmo-audio-code"
