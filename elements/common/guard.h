// Every function of ours that C code calls runs its body in guard(): no C++ exception may cross a C
// frame.
#pragma once

#include <gst/gst.h>

#include <exception>
#include <new>
#include <utility>

namespace minicpmo {

// Runs `body`; when it throws, posts a STREAM/FAILED error on `element` and returns `fallback`.
template <class T, class Body>
T guard(GstElement* element, T fallback, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& e) {
    GST_ELEMENT_ERROR(element, STREAM, FAILED, ("Internal error in %s.", GST_ELEMENT_NAME(element)),
                      ("%s", e.what()));
  } catch (...) {
    GST_ELEMENT_ERROR(element, STREAM, FAILED, ("Internal error in %s.", GST_ELEMENT_NAME(element)),
                      ("unknown exception"));
  }
  return fallback;
}

}  // namespace minicpmo
