// The one symbol that libminicpmo-torch.so exports (stage.h, Backend).
#include <c10/util/Exception.h>

#include <string>

#include "backend/engine.h"
#include "backend/log.h"
#include "common/stage.h"
#include "turn/voice_activity.h"

namespace minicpmo {
namespace {

// torch prints its warnings to stderr unless told otherwise.
class WarningsToLog final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    log_line(LogLevel::kWarning, warning.msg());
  }
};

void set_log(LogFunction log) {
  static WarningsToLog* const handler = new WarningsToLog;  // torch may warn until the process ends
  set_log_function(log);
  c10::WarningUtils::set_warning_handler(log ? handler : nullptr);
}

Result<std::shared_ptr<Engine>> open_and_log(const EngineOptions& options) {
  auto engine = open_engine(options);
  if (engine.ok()) {
    const EngineInfo& info = (*engine)->info();
    log_line(LogLevel::kInfo, info.model_dir + ": " + info.notes);
  }
  return engine;
}

const Backend kBackend = {Backend::kVersion, open_and_log, set_log, new_voice_activity};

}  // namespace
}  // namespace minicpmo

extern "C" __attribute__((visibility("default"))) const minicpmo::Backend* minicpmo_backend() {
  return &minicpmo::kBackend;
}
