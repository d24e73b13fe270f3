// An Error as a message on the bus.
#pragma once

#include <gst/gst.h>

#include "common/result.h"

// Posts `error` as a message of `type` (GST_MESSAGE_ERROR or GST_MESSAGE_WARNING) with the domain
// and code that ErrorCode names. Call without locks.
void gst_minicpmo_post(GstElement* element, GstMessageType type, const minicpmo::Error& error);
