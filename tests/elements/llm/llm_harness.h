// minicpmollm in a harness, with a log of what it pushes.
#pragma once

#include <gst/gst.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "elements/chain/stream_log.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {

// Made before the harness, which fills it before the element leaves NULL.
struct LogHolder {
  std::optional<StreamLog> log_;
};

class LlmHarness : private LogHolder, public ElementHarness {
 public:
  explicit LlmHarness(const Setup& setup = {}, const char* sink = "sink")
      : ElementHarness(
            "minicpmollm",
            [this, &setup](GstElement* element) {
              log_.emplace(element, "src");
              if (setup) setup(element);
            },
            sink) {}

  StreamLog& log() { return *log_; }
  // The number of rows of each prefill.
  std::vector<std::string> prefills(FakeBackend& backend) {
    const std::string prefix = "lm.prefill_audio ";
    std::vector<std::string> found;
    for (const std::string& call : backend.log().calls())
      if (call.compare(0, prefix.size(), prefix) == 0) found.push_back(call.substr(prefix.size()));
    return found;
  }
  // The text messages that the model read.
  std::vector<std::string> texts(FakeBackend& backend) {
    const std::string prefix = "lm.prefill_text ";
    std::vector<std::string> found;
    for (const std::string& call : backend.log().calls())
      if (call.compare(0, prefix.size(), prefix) == 0) found.push_back(call.substr(prefix.size()));
    return found;
  }
  StructurePtr stats() {
    GstStructure* stats = nullptr;
    g_object_get(element(), "stats", &stats, nullptr);
    return StructurePtr(stats);
  }
  static guint64 stat(const StructurePtr& stats, const char* name) {
    guint64 value = 0;
    EXPECT_TRUE(gst_structure_get_uint64(stats.get(), name, &value)) << name;
    return value;
  }
};

}  // namespace minicpmo::testing
