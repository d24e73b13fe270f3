// The one symbol that libminicpmo-torch.so exports (stage.h, Backend).
#include <c10/util/Exception.h>

#include <atomic>
#include <string>

#include "backend/engine.h"
#include "common/stage.h"

namespace minicpmo {
namespace {

std::atomic<LogFunction> g_log{nullptr};

// torch prints its warnings to stderr unless told otherwise.
class WarningsToLog final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    if (const LogFunction log = g_log.load()) log(LogLevel::kWarning, warning.msg().c_str());
  }
};

void set_log(LogFunction log) {
  static WarningsToLog* const handler = new WarningsToLog;  // torch may warn until the process ends
  g_log.store(log);
  c10::WarningUtils::set_warning_handler(log ? handler : nullptr);
}

Result<std::shared_ptr<Engine>> open_and_log(const EngineOptions& options) {
  auto engine = open_engine(options);
  if (const LogFunction log = g_log.load(); log && engine.ok()) {
    const EngineInfo& info = (*engine)->info();
    log(LogLevel::kInfo, (info.model_dir + ": " + info.notes).c_str());
  }
  return engine;
}

const Backend kBackend = {Backend::kVersion, open_and_log, set_log};

}  // namespace
}  // namespace minicpmo

extern "C" __attribute__((visibility("default"))) const minicpmo::Backend* minicpmo_backend() {
  return &minicpmo::kBackend;
}
