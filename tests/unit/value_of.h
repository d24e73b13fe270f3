// The value of a Result; an exception, which fails the test, if it is an error.
#pragma once

#include <stdexcept>
#include <utility>

#include "common/result.h"

namespace minicpmo {

inline void value_of(const Result<void>& result) {
  if (!result.ok()) throw std::runtime_error(result.error().message + " " + result.error().detail);
}

template <class T>
T value_of(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message + " " + result.error().detail);
  return std::move(*result);
}

}  // namespace minicpmo
