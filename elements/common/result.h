// Result<T>: a value or an Error, for every call of ours that can fail. No exception is part of an
// interface.
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace minicpmo {

// What went wrong, in the terms GStreamer reports it in (see gstminicpmoerror.h).
enum class ErrorCode {
  kNotFound,     // a file or device that was named does not exist        RESOURCE/NOT_FOUND
  kOpenRead,     // a file exists and cannot be read                      RESOURCE/OPEN_READ
  kCorrupt,      // a file is damaged, lies about itself or does not fit  STREAM/WRONG_TYPE
  kNoSpace,      // host or device memory is exhausted                    RESOURCE/NO_SPACE_LEFT
  kBusy,         // a device is there but cannot be used                  RESOURCE/BUSY
  kLibrary,      // a library is missing or does not match                LIBRARY/INIT
  kSettings,     // a property value, or a mix of them, makes no sense    LIBRARY/SETTINGS
  kFormat,       // data that does not have the form its caps promise     STREAM/FORMAT
  kContextFull,  // the model's context has no room for the input         STREAM/FAILED
  kCancelled,    // stopped on request; never posted as an error
  kFailed,       // the model run itself failed                           STREAM/FAILED
};

struct Error {
  ErrorCode code = ErrorCode::kFailed;
  std::string message;  // for people: names the file or value, and what to do
  std::string detail;   // for us: where, and the library's own words
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    assert(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    assert(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    assert(ok());
    return std::get<0>(std::move(state_));
  }
  const Error& error() const {
    assert(!ok());
    return std::get<1>(state_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    assert(error_);
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

}  // namespace minicpmo

#define MINICPMO_CONCAT_(a, b) a##b
#define MINICPMO_CONCAT(a, b) MINICPMO_CONCAT_(a, b)

// Returns the error of `expression` from the calling function, if there is one.
#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (auto result_ = (expression); !result_.ok()) return result_.error(); \
  } while (false)

// ASSIGN_OR_RETURN(auto x, f()): x is the value, or the calling function returns the error.
#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_(MINICPMO_CONCAT(result_, __COUNTER__), declaration, expression)
#define ASSIGN_OR_RETURN_(result, declaration, expression) \
  auto result = (expression);                              \
  if (!result.ok()) return result.error();                 \
  declaration = std::move(result).value()
