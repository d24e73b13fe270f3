// Finds hazards of shared memory in the emulated kernels: two threads of a block that touch the
// same place, at least one of them writing, with no barrier between. The kernels are compiled with
// -fsanitize=thread, which makes the compiler call the functions below at each access; the library
// that belongs to that option is not used. As in compute-sanitizer's racecheck, __syncthreads()
// and, within a warp, __syncwarp() order accesses, and shuffles do not.
#include <cstdio>

#include "cuda_runtime.h"

// What the linker knows: shared memory is among the program's zeroed variables.
extern "C" char __bss_start[], _end[], __executable_start[];

namespace emulation {
namespace {

enum Kind { kRead, kWrite, kAtomic, kKinds };

struct Access {
  uint32_t interval = 0;  // between two barriers; 0: never
  uint16_t thread = 0, warp_interval = 0;
  uint32_t code = 0;  // from the beginning of the program
};

// The last access of a kind to a place, the last one by another thread and by another warp.
struct History {
  Access last, other_thread, other_warp;
  void add(const Access& a) {
    if (a.interval != last.interval) {  // the others are as old
      last = a;
      return;
    }
    if (a.thread / 32 != last.thread / 32) other_warp = last;
    if (a.thread != last.thread) other_thread = last;
    last = a;
  }
};

// The smallest numbers in arrays have two bytes.
constexpr size_t kPlace = 2;
struct Place {
  History kinds[kKinds];
};

bool ordered(const Access& a, const Access& b) {
  if (a.thread == b.thread || a.interval != b.interval) return true;
  return a.thread / 32 == b.thread / 32 && a.warp_interval != b.warp_interval;
}

[[noreturn]] void report(Kind kind, const Access& now, Kind earlier_kind, const Access& earlier) {
  const char* const names[] = {"read", "write", "atomic"};
  std::fprintf(
      stderr,
      "hazard in shared memory, block (%u, %u): %s by thread %d at %#x, %s by thread %d at %#x "
      "before it, no barrier between (addr2line -Cfie PROGRAM PLACES)\n",
      blockIdx.x, blockIdx.y, names[kind], now.thread, now.code, names[earlier_kind],
      earlier.thread, earlier.code);
  std::abort();
}

void check(Place& place, Kind kind, const Access& now) {
  for (int k = 0; k < kKinds; ++k) {
    const auto earlier_kind = static_cast<Kind>(k);
    if (kind == earlier_kind && kind != kWrite) continue;
    const History& h = place.kinds[k];
    if (h.last.interval != now.interval) continue;  // nor are the others of this one
    for (const Access* earlier : {&h.last, &h.other_thread, &h.other_warp}) {
      if (!ordered(*earlier, now)) report(kind, now, earlier_kind, *earlier);
    }
  }
  place.kinds[kind].add(now);
}

void touch(const void* at, size_t size, Kind kind, const void* code) {
  const auto* const begin = static_cast<const char*>(at);
  if (begin < __bss_start || begin >= _end || !in_kernel()) return;
  static Place* const places = static_cast<Place*>(
      std::calloc(static_cast<size_t>(_end - __bss_start) / kPlace + 1, sizeof(Place)));
  const Access now{barrier_interval(), static_cast<uint16_t>(threadIdx.x), warp_interval(),
                   static_cast<uint32_t>(static_cast<const char*>(code) - __executable_start - 1)};
  const auto first = reinterpret_cast<uintptr_t>(begin) / kPlace;
  const auto last = (reinterpret_cast<uintptr_t>(begin) + size - 1) / kPlace;
  for (auto i = first; i <= last; ++i)
    check(places[i - reinterpret_cast<uintptr_t>(__bss_start) / kPlace], kind, now);
}

}  // namespace

void touch_atomically(const void* at, size_t size) {
  touch(at, size, kAtomic, __builtin_return_address(0));
}

}  // namespace emulation

extern "C" {

#define ACCESS(name, size, kind)                                              \
  void name(void* at) {                                                       \
    emulation::touch(at, size, emulation::kind, __builtin_return_address(0)); \
  }
#define ACCESSES(size)                             \
  ACCESS(__tsan_read##size, size, kRead)           \
  ACCESS(__tsan_write##size, size, kWrite)         \
  ACCESS(__tsan_unaligned_read##size, size, kRead) \
  ACCESS(__tsan_unaligned_write##size, size, kWrite)

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* at, size_t size) {
  emulation::touch(at, size, emulation::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t size) {
  emulation::touch(at, size, emulation::kWrite, __builtin_return_address(0));
}

// Atomic reads of the host's code.
char __tsan_atomic8_load(const volatile char* at, int) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
int __tsan_atomic32_load(const volatile int* at, int) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

// Called too; nothing to do.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
