#include "engine/stage_scope.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdlib>

namespace minicpmo {
namespace {

std::atomic<int> g_threads{1};

// Whoever sets these knows the machine better than we do.
bool threads_set_by_user() {
  static const bool set = std::getenv("OMP_NUM_THREADS") || std::getenv("MKL_NUM_THREADS");
  return set;
}

}  // namespace

void set_stage_threads(int threads) {
  g_threads.store(threads > 0 ? threads : 1, std::memory_order_relaxed);
}

Error torch_error(const char* what, const c10::Error& e) {
  const std::string words = e.what_without_backtrace();
  if (dynamic_cast<const c10::OutOfMemoryError*>(&e) ||
      words.find("allocate memory") != std::string::npos) {
    return Error{ErrorCode::kNoSpace, std::string(what) + ": out of memory", words};
  }
  return Error{ErrorCode::kFailed, std::string(what) + " failed", words};
}

StageScope::StageScope() {
  if (threads_set_by_user()) return;
  thread_local int applied = 0;
  const int threads = g_threads.load(std::memory_order_relaxed);
  if (applied == threads) return;
  at::set_num_threads(threads);
  applied = threads;
}

}  // namespace minicpmo
