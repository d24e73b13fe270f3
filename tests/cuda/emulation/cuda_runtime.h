// Just enough of CUDA to run the decode kernels on the CPU, so that their index arithmetic, their
// barriers and their numbers are tested where there is no GPU. Blocks run one after another; the
// threads of a block are coroutines that switch at barriers and warp collectives. Says nothing
// about memory order between blocks, overlap of kernels, or speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline constexpr int kShared = 256 * 1024;
extern void* dynamic_shared;
// Threads within a block, and blocks, run in the order that EMULATION_ORDER (forward, backward,
// mixed) names; results must not depend on it.
enum class Order { kForward, kBackward, kMixed };
extern const Order order;

void run(dim3 grid, int threads, const std::function<void()>& kernel);
void barrier();
// Every lane of the warp gives a word and gets the 32 words.
const uint64_t* exchange(uint64_t word);
void warp_barrier();

// For race_check.cpp: whether a kernel runs; and, of the thread that does, a number for the time
// between two barriers of its block, or of its warp.
bool in_kernel();
uint32_t barrier_interval();
uint16_t warp_interval();
void touch_atomically(const void* at, size_t size);

// change(old) in place of the old value, which is returned.
template <typename T, typename Change>
__attribute__((no_sanitize_thread)) T atomically(T* p, Change change) {
  touch_atomically(p, sizeof *p);
  const T old = *p;
  *p = change(old);
  return old;
}

template <typename T>
T shuffle(T value, int lane) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const uint64_t got = exchange(word)[lane];
  std::memcpy(&value, &got, sizeof value);
  return value;
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::barrier();
}
inline void __syncwarp() {
  emulation::warp_barrier();
}
inline void __threadfence() {}
template <typename T>
T __shfl_sync(unsigned, T v, int lane) {
  return emulation::shuffle(v, lane % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  return emulation::shuffle(v, static_cast<int>(threadIdx.x % 32) ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T v, int by) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::shuffle(v, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const uint64_t* const words = emulation::exchange(vote);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(words[i]) << i;
  return bits;
}
inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline float __uint_as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return u;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline uint32_t atomicAdd(uint32_t* p, uint32_t v) {
  return emulation::atomically(p, [v](auto old) { return old + v; });
}
inline int atomicAdd(int* p, int v) {
  return emulation::atomically(p, [v](auto old) { return old + v; });
}
inline uint32_t atomicOr(uint32_t* p, uint32_t v) {
  return emulation::atomically(p, [v](auto old) { return old | v; });
}
inline float rsqrtf(float x) {
  return 1.0F / std::sqrt(x);
}
using std::max;
using std::min;

// --- host side

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorUnknown = 999
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMultiProcessorCount };
enum {
  cudaStreamNonBlocking = 1,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct EmulatedStream {
  std::vector<std::function<void()>>* capture = nullptr;
};
using cudaStream_t = EmulatedStream*;
inline constexpr cudaStream_t cudaStreamPerThread = nullptr;
using cudaGraph_t = std::vector<std::function<void()>>*;
using cudaGraphExec_t = std::vector<std::function<void()>>*;
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : "invalid value";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidValue";
}
inline cudaError_t cudaPeekAtLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* n) {
  return *n = 1, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* d) {
  return *d = 0, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int which, int) {
  return *value = which == cudaDevAttrComputeCapabilityMajor ? 9 : 40, cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = 0, cudaSuccess;
}
template <typename T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  *p = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  if (*p != nullptr) std::memset(static_cast<void*>(*p), 0xff, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  return std::free(p), cudaSuccess;
}
constexpr unsigned cudaHostAllocDefault = 0;
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  return cudaMalloc(p, bytes);
}
inline cudaError_t cudaFreeHost(void* p) {
  return cudaFree(p);
}
inline cudaError_t cudaMemset(void* p, int v, size_t n) {
  return std::memset(p, v, n), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) {
  return std::memset(p, v, n), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
  return std::memcpy(to, from, n), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind,
                                   cudaStream_t) {
  return std::memcpy(to, from, n), cudaSuccess;
}
using cudaEvent_t = int*;
enum { cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, int) {
  return *e = new int(0), cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
  return delete e, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
template <typename K>
cudaError_t cudaFuncSetAttribute(K, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::kShared ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, int) {
  return *s = new EmulatedStream, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
  return delete s, cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, int) {
  return s->capture = new std::vector<std::function<void()>>, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  return *g = std::exchange(s->capture, nullptr), cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, int) {
  return *e = new std::vector<std::function<void()>>(*g), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  return delete g, cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
  return delete e, cudaSuccess;
}
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t) {
  for (const auto& launch : *e) launch();
  return cudaSuccess;
}
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 grid = c->gridDim;
  const int threads = static_cast<int>(c->blockDim.x);
  if (grid.x == 0 || grid.y == 0 || threads == 0 || threads > 1024) return cudaErrorInvalidValue;
  auto launch = [=] { emulation::run(grid, threads, [=] { kernel(arguments...); }); };
  if (c->stream != nullptr && c->stream->capture != nullptr) {
    c->stream->capture->push_back(launch);
  } else {
    launch();
  }
  return cudaSuccess;
}
