#include "llm/gstminicpmollm.h"
#include "support/gst_test_main.h"

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmollm, nullptr);
}

}  // namespace minicpmo::testing
