// The scheduler of the emulated threads: one coroutine for each thread of a block, all on the
// calling thread.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <numeric>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

alignas(256) static char shared_memory[kShared];
void* dynamic_shared = shared_memory;

static Order order_from_environment() {
  const char* const name = std::getenv("EMULATION_ORDER");
  if (name == nullptr || std::strcmp(name, "forward") == 0) return Order::kForward;
  return std::strcmp(name, "backward") == 0 ? Order::kBackward : Order::kMixed;
}
const Order order = order_from_environment();

namespace {

constexpr size_t kStack = 128 * 1024;

struct Coroutine {
  ucontext_t context;
  jmp_buf at;
  bool started = false, done = true;
  const uint64_t* waits_for = nullptr;  // a generation ...
  uint64_t generation = 0;              // ... to go beyond this
  std::vector<char> stack;
};

// Who has arrived at a barrier. Words in two sets: a fast lane may write the next one while a slow
// one reads.
struct Meeting {
  uint64_t generation = 0;
  int arrived = 0, members = 0;
  uint64_t words[2][32];
};

std::vector<Coroutine*> coroutines;
Meeting warps[32], block;
jmp_buf scheduler;
Coroutine* current = nullptr;
int current_index = 0;
uint32_t intervals = 1;        // of all blocks so far
uint16_t warp_barriers[1024];  // that each thread has passed
const std::function<void()>* body = nullptr;

void leave() {
  if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

void wait(Meeting& meeting) {
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  current->waits_for = &meeting.generation;
  current->generation = meeting.generation;
  leave();
}

void trampoline() {
  for (;;) {
    (*body)();
    current->done = true;
    leave();
  }
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated block (%u, %u): %s\n", blockIdx.x, blockIdx.y, what);
  std::abort();
}

void resume(int index) {
  current_index = index;
  current = coroutines[index];
  current->waits_for = nullptr;
  threadIdx = dim3(static_cast<unsigned>(index), 0, 0);
  if (_setjmp(scheduler) != 0) return;
  if (current->started) _longjmp(current->at, 1);
  current->started = true;
  getcontext(&current->context);
  current->stack.resize(kStack);
  current->context.uc_stack.ss_sp = current->stack.data();
  current->context.uc_stack.ss_size = kStack;
  current->context.uc_link = nullptr;
  makecontext(&current->context, trampoline, 0);
  setcontext(&current->context);
}

std::vector<int> permutation(int count) {
  std::vector<int> p(count);
  std::iota(p.begin(), p.end(), 0);
  if (order == Order::kBackward) std::reverse(p.begin(), p.end());
  if (order == Order::kMixed) {
    uint32_t random = 12345;
    for (int i = count - 1; i > 0; --i) {
      random = random * 1664525u + 1013904223u;
      std::swap(p[i], p[(random >> 8) % static_cast<uint32_t>(i + 1)]);
    }
  }
  return p;
}

// A thread that has returned no longer takes part in barriers of the block.
void run_block(const std::vector<int>& threads) {
  ++intervals;
  std::fill(std::begin(warp_barriers), std::end(warp_barriers), 0);
  const int count = static_cast<int>(threads.size());
  for (int w = 0; w < 32; ++w) warps[w] = {0, 0, std::clamp(count - 32 * w, 0, 32), {}};
  block = {0, 0, count, {}};
  for (int t : threads) coroutines[t]->done = false;
  int left = count;
  while (left > 0) {
    bool moved = false;
    for (int t : threads) {
      const Coroutine& c = *coroutines[t];
      if (c.done || (c.waits_for != nullptr && *c.waits_for == c.generation)) continue;
      resume(t);
      moved = true;
      if (!c.done) continue;
      --left;
      --block.members;
      if (block.members > 0 && block.arrived == block.members) {
        block.arrived = 0;
        ++block.generation;
      }
    }
    if (!moved) fail("threads wait for each other at different barriers");
  }
  intervals += static_cast<uint32_t>(block.generation);
  current = nullptr;
}

}  // namespace

void barrier() {
  wait(block);
}

const uint64_t* exchange(uint64_t word) {
  Meeting& warp = warps[current_index / 32];
  const uint64_t set = warp.generation % 2;
  warp.words[set][current_index % 32] = word;
  wait(warp);
  return warp.words[set];
}

void warp_barrier() {
  exchange(0);
  ++warp_barriers[current_index];
}

bool in_kernel() {
  return current != nullptr;
}
uint32_t barrier_interval() {
  return intervals + static_cast<uint32_t>(block.generation);
}
uint16_t warp_interval() {
  return warp_barriers[current_index];
}

void run(dim3 grid, int threads, const std::function<void()>& kernel) {
  while (std::ssize(coroutines) < threads) coroutines.push_back(new Coroutine);
  body = &kernel;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  const auto thread_order = permutation(threads);
  for (int b : permutation(static_cast<int>(grid.x * grid.y))) {
    blockIdx = dim3(static_cast<unsigned>(b) % grid.x, static_cast<unsigned>(b) / grid.x);
    std::memset(shared_memory, 0xff,
                sizeof shared_memory);  // NaN: nothing may be read before it is written
    run_block(thread_order);
  }
}

}  // namespace emulation
