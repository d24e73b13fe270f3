// Tells ThreadSanitizer of GLib's mutexes and conditions, which GStreamer's queues, pads and tasks
// are made of: GLib comes uninstrumented and builds them on futexes, so the sanitizer would see no
// order between two threads that pass a buffer on. These functions stand before GLib's own.
//
// Linked into element tests built with b_sanitize=thread, and nothing else.
#include <dlfcn.h>
#include <glib.h>

#define EXPORT __attribute__((visibility("default")))

extern "C" {

void __tsan_acquire(void* address);
void __tsan_release(void* address);

}  // extern "C"

namespace {

template <class Function>
Function* next(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

EXPORT void g_mutex_lock(GMutex* mutex) {
  static auto* const real = next(&g_mutex_lock, "g_mutex_lock");
  real(mutex);
  __tsan_acquire(mutex);
}

EXPORT gboolean g_mutex_trylock(GMutex* mutex) {
  static auto* const real = next(&g_mutex_trylock, "g_mutex_trylock");
  const gboolean locked = real(mutex);
  if (locked) __tsan_acquire(mutex);
  return locked;
}

EXPORT void g_mutex_unlock(GMutex* mutex) {
  static auto* const real = next(&g_mutex_unlock, "g_mutex_unlock");
  __tsan_release(mutex);
  real(mutex);
}

EXPORT void g_cond_wait(GCond* condition, GMutex* mutex) {
  static auto* const real = next(&g_cond_wait, "g_cond_wait");
  __tsan_release(mutex);
  real(condition, mutex);
  __tsan_acquire(mutex);
}

EXPORT gboolean g_cond_wait_until(GCond* condition, GMutex* mutex, gint64 end_time) {
  static auto* const real = next(&g_cond_wait_until, "g_cond_wait_until");
  __tsan_release(mutex);
  const gboolean signalled = real(condition, mutex, end_time);
  __tsan_acquire(mutex);
  return signalled;
}

}  // extern "C"
