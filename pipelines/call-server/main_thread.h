// Work for the main loop from any thread.
#pragma once

#include <glib.h>

#include <functional>
#include <utility>

namespace minicpmo::call_server {

// Runs `work` in the main loop, in the order of the calls.
inline void on_main_thread(std::function<void()> work) {
  g_idle_add_full(
      G_PRIORITY_DEFAULT,
      [](gpointer data) -> gboolean {
        (*static_cast<std::function<void()>*>(data))();
        return G_SOURCE_REMOVE;
      },
      new std::function<void()>(std::move(work)),
      [](gpointer data) { delete static_cast<std::function<void()>*>(data); });
}

// A timer of the main loop; stops with the object. Main thread only.
class Timer {
 public:
  Timer() = default;
  ~Timer() { stop(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Once, after `milliseconds`; replaces what was set before.
  void start(unsigned milliseconds, std::function<void()> work) {
    stop();
    work_ = std::move(work);
    id_ = g_timeout_add(
        milliseconds,
        [](gpointer data) -> gboolean {
          auto* const self = static_cast<Timer*>(data);
          self->id_ = 0;
          const auto due = std::exchange(self->work_, nullptr);  // may destroy the timer
          due();
          return G_SOURCE_REMOVE;
        },
        this);
  }
  void stop() {
    if (id_ != 0) g_source_remove(id_);
    id_ = 0;
  }
  bool running() const { return id_ != 0; }

 private:
  guint id_ = 0;
  std::function<void()> work_;
};

}  // namespace minicpmo::call_server
