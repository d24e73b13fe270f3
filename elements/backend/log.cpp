#include "backend/log.h"

#include <atomic>

namespace minicpmo {
namespace {

std::atomic<LogFunction> g_log{nullptr};

}  // namespace

void set_log_function(LogFunction log) {
  g_log.store(log);
}

void log_line(LogLevel level, const std::string& line) {
  if (const LogFunction log = g_log.load()) log(level, line.c_str());
}

}  // namespace minicpmo
