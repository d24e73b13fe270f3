// The way of a turn through a pipeline: the source pads from where the user's sound comes in to
// where the answer's goes out.
#pragma once

#include <gst/gst.h>

#include <functional>
#include <vector>

#include "pad_info.h"

namespace minicpmo::tracers {

struct TurnPath {
  std::vector<PadInfoPtr> pads;
  // Indices of the pads of these elements; -1: there is none.
  int turn = -1, encoder = -1, llm = -1, speech = -1, vocoder = -1;
  // Of turn, encoder or llm: the first on the way.
  int first = -1;
  std::shared_ptr<const ElementInfo> sink;  // takes what leaves the last pad; may be null
  bool live = false;  // what comes in has been captured at the time of its timestamps
};

using FindPadInfo = std::function<PadInfoPtr(GstPad*)>;

// Of the pipeline that holds `element`, which is on the way. Where the way forks, it goes on to the
// vocoder, otherwise to a payloader, otherwise to a sink. Locks pads and elements, and asks
// upstream whether it is live: not to be called with anything locked.
TurnPath find_path(GstElement* element, const FindPadInfo& info);

}  // namespace minicpmo::tracers
