// Where this backend's log lines go (Backend::set_log). From any thread.
#pragma once

#include <string>

#include "common/stage.h"

namespace minicpmo {

void set_log_function(LogFunction log);
// Nothing if no function is set.
void log_line(LogLevel level, const std::string& line);

}  // namespace minicpmo
