#include "engine/safetensors.h"

#include <ATen/Parallel.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string_view>

#include "engine/safetensors_header.h"
#include "engine/stage_scope.h"

namespace minicpmo {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;

// Empty, or what went wrong.
std::string read_all(int fd, uint64_t offset, void* to, uint64_t bytes) {
  auto* out = static_cast<char*>(to);
  while (bytes > 0) {
    // Linux transfers at most 2 GiB at a time.
    const size_t part = std::min<uint64_t>(bytes, 1u << 30);
    const ssize_t n = ::pread(fd, out, part, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::strerror(errno);
    if (n == 0) return "the file has become shorter";
    out += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return "";
}

Error corrupt(const std::string& path, const std::string& what) {
  return Error{ErrorCode::kCorrupt, path + ": " + what};
}

// A pickle runs code when it is read by the library that made it; we read none.
constexpr const char* kPickle =
    "a pickle (.pt, .bin), which can run code when it is read; convert it to safetensors first";

bool named_as_pickle(const std::string& path) {
  for (const char* end : {".pt", ".pth", ".bin", ".ckpt", ".pkl"}) {
    if (path.ends_with(end)) return true;
  }
  return false;
}

// A zip archive (torch.save) or a bare pickle of protocol 2 to 5. Only asked when the bytes make no
// sense as a size.
bool looks_like_pickle(const unsigned char* bytes) {
  return std::memcmp(bytes, "PK\x03\x04", 4) == 0 ||
         (bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5);
}

template <class Bits, Bits kExponent>
bool all_finite_bits(const void* data, int64_t n) {
  const auto* bits = static_cast<const Bits*>(data);
  bool bad = false;
  for (int64_t i = 0; i < n; ++i) bad |= (bits[i] & kExponent) == kExponent;
  return !bad;
}

}  // namespace

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::shared_ptr<SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  ASSIGN_OR_RETURN(const std::string text, file->read_header());
  ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors_header(text, path));
  file->entries_ = std::move(header.entries);
  file->metadata_ = std::move(header.metadata);
  RETURN_IF_ERROR(file->check_layout());
  return file;
}

Result<std::string> SafetensorsFile::read_header() {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    const int e = errno;
    if (e == ENOENT || e == ENOTDIR) return Error{ErrorCode::kNotFound, path_ + " does not exist"};
    return Error{ErrorCode::kOpenRead, path_ + " cannot be opened: " + std::strerror(e)};
  }
  struct stat status;
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kOpenRead, path_ + " is not a regular file"};
  }
  size_ = static_cast<uint64_t>(status.st_size);
  if (named_as_pickle(path_)) return corrupt(path_, kPickle);
  unsigned char head[8] = {};
  const size_t have = std::min<uint64_t>(size_, sizeof head);
  if (const auto e = read_all(fd_, 0, head, have); !e.empty()) {
    return Error{ErrorCode::kOpenRead, path_ + " cannot be read: " + e};
  }
  if (have < sizeof head) {
    return corrupt(path_, std::to_string(size_) + " bytes, too short for a safetensors file");
  }
  // What a clone without Git LFS leaves in place of a large file.
  if (std::memcmp(head, "version ", sizeof head) == 0) {
    return corrupt(path_, "a Git LFS pointer, not the file itself; run \"git lfs pull\" there");
  }
  uint64_t n = 0;
  for (int i = 7; i >= 0; --i) n = n << 8 | head[i];
  if (n > size_ - 8 && looks_like_pickle(head)) return corrupt(path_, kPickle);
  if (n > kMaxHeader) {
    return corrupt(path_, "header size " + std::to_string(n) + " is more than 100,000,000");
  }
  if (n > size_ - 8) {
    return corrupt(path_, "header size " + std::to_string(n) + " is more than the file holds (" +
                              std::to_string(size_) + " bytes); is it cut short?");
  }
  data_ = 8 + n;
  std::string text;
  try {
    text.resize(n);
  } catch (const std::exception& e) {
    return Error{ErrorCode::kNoSpace, path_ + ": not enough memory for its header", e.what()};
  }
  if (const auto e = read_all(fd_, 8, text.data(), n); !e.empty()) {
    return Error{ErrorCode::kOpenRead, path_ + " cannot be read: " + e};
  }
  return text;
}

Result<void> SafetensorsFile::check_layout() const {
  using Item = std::pair<const std::string, TensorEntry>;
  std::vector<const Item*> order;
  order.reserve(entries_.size());
  for (const Item& item : entries_) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const Item* a, const Item* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  const uint64_t bytes = size_ - data_;
  uint64_t at = 0;
  for (const Item* item : order) {
    const TensorEntry& entry = item->second;
    const std::string tensor = "tensor \"" + printable(item->first) + "\"";
    if (entry.begin != at) {
      return corrupt(path_, tensor + " begins at byte " + std::to_string(entry.begin) +
                                " of the data, " +
                                (entry.begin < at ? "inside another tensor" : "after a hole"));
    }
    if (entry.end > bytes) {
      return corrupt(path_, tensor + " ends at byte " + std::to_string(entry.end) +
                                " of the data, which holds " + std::to_string(bytes) +
                                "; is the file cut short?");
    }
    at = entry.end;
  }
  if (at != bytes) {
    return corrupt(path_, std::to_string(bytes - at) + " bytes follow the last tensor");
  }
  return {};
}

Result<at::Tensor> SafetensorsFile::read(const std::string& name, at::Device device) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) return corrupt(path_, "holds no tensor \"" + printable(name) + "\"");
  const TensorEntry& entry = found->second;
  struct stat status;
  if (::fstat(fd_, &status) != 0 || static_cast<uint64_t>(status.st_size) != size_) {
    return corrupt(path_, "changed its size since it was opened; load the model again");
  }
  try {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.type).device(device));
    if (entry.end > entry.begin) {
      const auto e = device.is_cpu() ? read_all(fd_, data_ + entry.begin, tensor.mutable_data_ptr(),
                                                entry.end - entry.begin)
                                     : read_to_device(entry, tensor);
      if (!e.empty()) {
        return Error{ErrorCode::kOpenRead,
                     path_ + ": tensor \"" + printable(name) + "\" cannot be read: " + e};
      }
    }
    return tensor;
  } catch (const c10::Error& e) {
    return torch_error((path_ + ": tensor \"" + printable(name) + "\"").c_str(), e);
  } catch (const std::exception& e) {
    return Error{ErrorCode::kNoSpace,
                 path_ + ": not enough memory for tensor \"" + printable(name) + "\" (" +
                     std::to_string(entry.end - entry.begin) + " bytes)",
                 e.what()};
  }
}

// One thread reads its part of the file while another's is on the bus; each waits for its own copy,
// which keeps the bus busy with a few threads.
std::string SafetensorsFile::read_to_device(const TensorEntry& entry,
                                            const at::Tensor& tensor) const {
  constexpr int64_t kPart = 8 << 20;
  const auto bytes = static_cast<int64_t>(entry.end - entry.begin);
  const at::Tensor to = tensor.view({-1}).view(at::kByte);
  const c10::Stream stream =
      c10::impl::VirtualGuardImpl(tensor.device().type()).getStream(tensor.device());
  std::mutex mutex;
  std::string failed;
  at::parallel_for(0, (bytes + kPart - 1) / kPart, 1, [&](int64_t first, int64_t last) {
    const c10::InferenceMode inference;
    const c10::StreamGuard guard(stream);
    const at::Tensor pinned =
        at::empty({std::min(bytes, kPart)}, at::TensorOptions(at::kByte).pinned_memory(true));
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * kPart, n = std::min(kPart, bytes - begin);
      const auto e = read_all(fd_, data_ + entry.begin + static_cast<uint64_t>(begin),
                              pinned.mutable_data_ptr(), static_cast<uint64_t>(n));
      if (!e.empty()) {
        const std::lock_guard lock(mutex);
        failed = e;
        return;
      }
      to.narrow(0, begin, n).copy_(pinned.narrow(0, 0, n));
    }
  });
  return failed;
}

bool all_finite(const at::Tensor& tensor) {
  if (!tensor.device().is_cpu()) {
    if (tensor.numel() == 0 || !tensor.is_floating_point()) return true;
    // Not a number wins either way, and infinity one of them; no temporary of the tensor's size.
    const auto [low, high] = at::aminmax(tensor);
    return std::isfinite(low.item<double>()) && std::isfinite(high.item<double>());
  }
  const void* data = tensor.const_data_ptr();
  const int64_t n = tensor.numel();
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return all_finite_bits<uint32_t, 0x7f800000u>(data, n);
    case at::kBFloat16:
      return all_finite_bits<uint16_t, 0x7f80u>(data, n);
    case at::kHalf:
      return all_finite_bits<uint16_t, 0x7c00u>(data, n);
    case at::kDouble:
      return all_finite_bits<uint64_t, 0x7ff0000000000000u>(data, n);
    default:
      return true;
  }
}

}  // namespace minicpmo
