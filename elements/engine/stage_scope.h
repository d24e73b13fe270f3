// What every call of a stage needs around it: torch's thread-local modes, and no exception beyond
// it.
#pragma once

#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "common/result.h"
#include "engine/stage_device.h"

namespace minicpmo {

// Number of threads of one torch operation, for stages run from now on in this process (the engine
// sets it by the size of the model; 1 until then). Has no effect if OMP_NUM_THREADS or
// MKL_NUM_THREADS is in the environment.
void set_stage_threads(int threads);

// Inference mode and thread count are per thread in torch, and a streaming thread starts with
// neither.
class StageScope {
 public:
  StageScope();

 private:
  c10::InferenceMode inference_;
};

// kNoSpace if memory ran out (which the CPU allocator reports as a plain c10::Error), with the
// device, what was asked for and what to do; otherwise kFailed.
Error torch_error(const char* what, const c10::Error& e);

// Runs `body` (which returns a Result) inside a StageScope; an exception becomes an Error that
// names `what`.
template <class Body>
auto run_stage(const char* what, Body&& body) noexcept -> decltype(body()) {
  try {
    StageScope scope;
    return std::forward<Body>(body)();
  } catch (const c10::Error& e) {
    return torch_error(what, e);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoSpace, std::string(what) + ": out of memory", "std::bad_alloc"};
  } catch (const std::exception& e) {
    return Error{ErrorCode::kFailed, std::string(what) + " failed", e.what()};
  } catch (...) {
    return Error{ErrorCode::kFailed, std::string(what) + " failed", "unknown exception"};
  }
}

// The same on a session's stream.
template <class Body>
auto run_stage(const char* what, const StageStream& stream, Body&& body) noexcept
    -> decltype(body()) {
  return run_stage(what, [&] {
    const StreamScope scope(stream);
    return std::forward<Body>(body)();
  });
}

}  // namespace minicpmo
