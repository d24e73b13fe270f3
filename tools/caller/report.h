// The figures of a call.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "call.h"
#include "recording.h"

namespace minicpmo::caller {

// One entry per turn. Times of day ("at", "from", "to") are seconds in the recording; durations are
// in ms, except those of sounds:
//   file, question (false: was not to be answered), said {from, to}: the voice in what was sent
//   answered; answer {from, to}, seconds
//   first_packet_ms, first_sound_ms: from the end of what was said to the arrival of the first
//     packet with sound (-72 dBFS), and to the first sound that can be heard (-40 dBFS)
//   cut_in: how often sound had come and ended before the user was done
//   gaps: [{at, ms}] of the answer: more than 60 ms of digital silence
//   longest_packet_gap_ms: between two packets of the answer
//   interrupted {at, after_ms, old_sound_ms}: at: the first voice of the next turn, after_ms: of
//     the answer, old_sound_ms: how long the answer went on
nlohmann::json report_turns(const std::vector<Turn>& turns, const Recording& recording);

// RTP of the whole call: packets, lost, late (behind a later one), duplicates, sources (SSRC),
// timestamp_jumps (a packet's timestamp does not follow from its number), longest_gap_ms,
// drift_ms (how much later the packets arrive at the end than their timestamps say, if
// nothing else delays them).
nlohmann::json report_stream(const std::vector<Packet>& packets, int clock_rate);

// What the JSON of minicpmo-caller holds beside: sent {packets, lost, junk; begin: of the first
// item, in the recording; clock: what the system's monotonic clock showed at position 0, in s;
// latest_ms: how late this program was}.
void print_table(const nlohmann::json& report);

}  // namespace minicpmo::caller
