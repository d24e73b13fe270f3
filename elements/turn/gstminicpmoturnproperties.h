// The properties of minicpmoturn: milliseconds and names, and what they stand for.
#pragma once

#include <gst/gst.h>

#include <mutex>
#include <optional>
#include <string>

#include "turn/gstminicpmoturngate.h"

namespace minicpmo {

class TurnProperties {
 public:
  static void install(GObjectClass* object_class);

  // From any thread. False if `id` is none of ours, or not writable.
  bool set(guint id, const GValue* value, TurnGate& gate);
  bool get(guint id, GValue* value, const TurnGate& gate) const;
  // Where the network's weights are: the property, or where they are by default.
  std::string model() const;

 private:
  mutable std::mutex mutex_;  // guards model_, and the change of one setting of many
  std::optional<std::string> model_;
};

}  // namespace minicpmo
