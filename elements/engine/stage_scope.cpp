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

// What stands between two phrases of torch's message, or nothing.
std::string between(const std::string& words, const std::string& from, const std::string& to) {
  const size_t at = words.find(from);
  if (at == std::string::npos) return "";
  const size_t begin = at + from.size(), end = words.find(to, begin);
  return end == std::string::npos ? "" : words.substr(begin, end - begin);
}

// torch says "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10
// GiB of which 1.20 GiB is free. ...", and of the CPU "you tried to allocate 123 bytes".
Error out_of_memory(const std::string& what, const std::string& words) {
  const std::string gpu = between(words, "GPU ", " has");
  const std::string asked = gpu.empty() ? between(words, "tried to allocate ", " bytes")
                                        : between(words, "Tried to allocate ", ". ");
  const std::string free = between(words, "of which ", " is free");
  const bool cuda = words.find("CU") != std::string::npos;  // CUDA, CUBLAS
  const std::string whose = !gpu.empty() ? "cuda:" + gpu + " is " : cuda ? "the GPU is " : "";
  std::string message = what + ": " + whose + "out of memory";
  if (!asked.empty()) {
    message += ", " + asked + (gpu.empty() ? " bytes" : "") + " asked for";
    if (!free.empty()) message += " and " + free + " free";
  }
  return Error{ErrorCode::kNoSpace,
               message + "; run fewer pipelines at once or set a smaller context-length", words};
}

}  // namespace

void set_stage_threads(int threads) {
  g_threads.store(threads > 0 ? threads : 1, std::memory_order_relaxed);
}

Error torch_error(const char* what, const c10::Error& e) {
  const std::string words = e.what_without_backtrace();
  // Loading a kernel and making a cuBLAS handle take memory, too, which torch has no own class for.
  const auto says = [&](const char* part) { return words.find(part) != std::string::npos; };
  if (dynamic_cast<const c10::OutOfMemoryError*>(&e) || says("allocate memory") ||
      says("CUDA error: out of memory") || says("STATUS_ALLOC_FAILED")) {
    return out_of_memory(what, words);
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
