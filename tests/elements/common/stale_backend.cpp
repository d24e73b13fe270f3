// A backend library of another version of the interface.
#include "common/stage.h"

extern "C" __attribute__((visibility("default"))) const minicpmo::Backend* minicpmo_backend() {
  static const minicpmo::Backend backend{4711, nullptr, nullptr};
  return &backend;
}
