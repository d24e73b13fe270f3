// What NVTX calls instead of a profiler when NVTX_INJECTION64_PATH names it: writes a line for each
// range that is pushed or popped, with its thread, into the file that NVTX_LOG names.
#include <nvtx3/nvToolsExt.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace {

void write_line(const char* what) {
  static std::FILE* const log = std::fopen(std::getenv("NVTX_LOG"), "we");
  if (log == nullptr) std::abort();
  std::fprintf(log, "%ld %s\n", syscall(SYS_gettid), what);
  std::fflush(log);
}

int push(const char* name) {
  write_line(name);
  return 0;
}

int pop() {
  write_line("pop");
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(
    NvtxGetExportTableFunc_t get_table) {
  const auto* const callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable functions = nullptr;
  unsigned size = 0;
  if (callbacks == nullptr ||
      callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &functions, &size) == 0)
    return 0;
  *functions[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *functions[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}
