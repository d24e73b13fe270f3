#include "support/gst_test_main.h"
#include "tts/gstminicpmotts.h"

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmotts, nullptr);
}

}  // namespace minicpmo::testing
