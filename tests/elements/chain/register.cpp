#include "audioenc/gstminicpmoaudioenc.h"
#include "bin/gstminicpmobin.h"
#include "llm/gstminicpmollm.h"
#include "support/gst_test_main.h"
#include "tts/gstminicpmotts.h"
#include "vocoder/gstminicpmovocoder.h"

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
  GST_ELEMENT_REGISTER(minicpmollm, nullptr);
  GST_ELEMENT_REGISTER(minicpmotts, nullptr);
  GST_ELEMENT_REGISTER(minicpmovocoder, nullptr);
  GST_ELEMENT_REGISTER(minicpmobin, nullptr);
}

}  // namespace minicpmo::testing
