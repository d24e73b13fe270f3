#include "report.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

namespace minicpmo::caller {

using nlohmann::json;

namespace {

constexpr Time kGap = 60 * kMs;
// An answer that was stopped is silent for this long at least; nothing else of it is, for a voice's
// pauses are not digital silence.
constexpr Time kStopped = 200 * kMs;

double seconds(Time t) {
  return static_cast<double>(t) / 1e9;
}
double ms(Time t) {
  return static_cast<double>(t) / kMs;
}

json gaps_of(const Loudness& loudness, Time from, Time to) {
  json gaps = json::array();
  Time run = 0;
  for (Time t = from; t < to; t += kBlock) {
    const auto i = static_cast<size_t>(t / kBlock);
    const bool silent = i >= loudness.peaks.size() || loudness.peaks[i] <= Loudness::kSilent;
    if (silent) run += kBlock;
    if (silent && t + kBlock < to) continue;
    if (run > kGap) gaps.push_back({{"at", seconds(t - run)}, {"ms", ms(run)}});
    run = 0;
  }
  return gaps;
}

double longest_packet_gap(const std::vector<Packet>& packets, Time from, Time to) {
  Time longest = 0, last = kNever;
  for (const Packet& p : packets) {
    if (p.arrival < from || p.arrival > to) continue;
    if (last != kNever) longest = std::max(longest, p.arrival - last);
    last = p.arrival;
  }
  return ms(longest);
}

// Begin of sound that is no digital silence, up to `until`, where it can be heard.
Time first_sound_of(const Loudness& loudness, Time from, Time until) {
  Time begin = until;
  while (begin - kBlock >= from) {
    if (loudness.peaks[static_cast<size_t>(begin / kBlock) - 1] <= Loudness::kSilent) break;
    begin -= kBlock;
  }
  return begin;
}

class TurnReport {
 public:
  TurnReport(const Recording& recording)
      : recording_(recording), loudness_(recording.loudness()), packets_(recording.packets()) {}

  // `next`: null for the last one.
  json report(const Turn& turn, const Turn* next) {
    json j = {{"file", turn.file},
              {"question", turn.question},
              {"said", {{"from", seconds(turn.voice_begin)}, {"to", seconds(turn.voice_end)}}},
              {"answered", false},
              {"cut_in", 0}};
    const bool interrupted = turn.interrupt_at != kNever && next;
    const Time end = interrupted ? next->voice_begin : next ? next->begin : loudness_.end();
    const Time from = skip_early_sound(turn, std::max(turn.begin, silent_from_), &j);
    silent_from_ = 0;
    const Time first = loudness_.first_audible(from);
    if (first != kNever && first < end) describe_answer(turn, from, first, end, &j);
    if (interrupted) describe_interruption(first, next->voice_begin, &j);
    return j;
  }

 private:
  // Sound that came and was stopped before the user was done.
  Time skip_early_sound(const Turn& turn, Time from, json* j) const {
    int count = 0;
    for (;;) {
      const Time begin = loudness_.first_audible(from);
      if (begin == kNever || begin >= turn.voice_end) break;
      const Time stop = loudness_.first_silence(begin, kStopped);
      if (stop > turn.voice_end) break;
      from = stop;
      ++count;
    }
    (*j)["cut_in"] = count;
    return from;
  }

  void describe_answer(const Turn& turn, Time from, Time first, Time end, json* j) const {
    const Time last = std::max(first, loudness_.last_audible(end));
    const Time sound = first_sound_of(loudness_, from, first);
    const Time arrival = recording_.arrival_of(sound);
    (*j)["answered"] = true;
    (*j)["answer"] = {{"from", seconds(first)}, {"to", seconds(last)}};
    (*j)["seconds"] = seconds(last - first);
    (*j)["first_sound_ms"] = ms(first - turn.voice_end);
    if (arrival != kNever) (*j)["first_packet_ms"] = ms(arrival - turn.voice_end);
    (*j)["gaps"] = gaps_of(loudness_, first, last);
    (*j)["longest_packet_gap_ms"] = longest_packet_gap(packets_, first, last);
  }

  void describe_interruption(Time first, Time onset, json* j) {
    silent_from_ = loudness_.first_silence(onset, kStopped);
    const Time last = loudness_.last_audible(silent_from_);
    (*j)["interrupted"] = {{"at", seconds(onset)},
                           {"after_ms", ms(onset - first)},
                           {"old_sound_ms", ms(std::max<Time>(0, last - onset))}};
  }

  const Recording& recording_;
  const Loudness loudness_;
  const std::vector<Packet> packets_;
  Time silent_from_ = 0;  // where the interrupted answer before has stopped
};

// The same number may come again after 65536 packets: only the near ones are compared.
struct Continuity {
  uint64_t lost = 0, late = 0, duplicates = 0, jumps = 0;
  std::set<uint32_t> sources;
};

Continuity continuity_of(const std::vector<Packet>& packets, int clock_rate) {
  Continuity c;
  const int64_t per_packet = clock_rate / 50;
  const Packet* last = nullptr;
  std::map<uint16_t, uint32_t> recent;  // number, timestamp
  for (const Packet& p : packets) {
    if (c.sources.insert(p.ssrc).second) last = nullptr, recent.clear();
    if (last) {
      const auto step = static_cast<int16_t>(p.sequence - last->sequence);
      const auto time = static_cast<int32_t>(p.timestamp - last->timestamp);
      if (time != step * per_packet) ++c.jumps;
      const auto seen = recent.find(p.sequence);
      if (seen != recent.end() && seen->second == p.timestamp) {
        ++c.duplicates;
      } else if (step < 0) {
        ++c.late;
        if (c.lost > 0) --c.lost;
      } else {
        c.lost += static_cast<uint64_t>(step - 1);
      }
      if (step <= 0) continue;
    }
    recent[p.sequence] = p.timestamp;
    last = &p;
  }
  return c;
}

// The packets that come quickest are those that nothing delayed: they show the clock.
double drift_of(const std::vector<Packet>& packets, int clock_rate) {
  if (packets.size() < 2) return 0;
  int64_t timestamp = 0;
  std::vector<double> delays;
  for (size_t i = 0; i < packets.size(); ++i) {
    if (packets[i].ssrc != packets[0].ssrc) break;
    if (i > 0) timestamp += static_cast<int32_t>(packets[i].timestamp - packets[i - 1].timestamp);
    delays.push_back(ms(packets[i].arrival - packets[0].arrival) - 1000.0 * timestamp / clock_rate);
  }
  const auto part = static_cast<std::ptrdiff_t>(std::max<size_t>(1, delays.size() / 5));
  return *std::min_element(delays.end() - part, delays.end()) -
         *std::min_element(delays.begin(), delays.begin() + part);
}

std::string figure(const json& turn, const char* name) {
  if (!turn.contains(name)) return "-";
  char text[32];
  snprintf(text, sizeof text, "%.0f", turn[name].get<double>());
  return text;
}

}  // namespace

json report_turns(const std::vector<Turn>& turns, const Recording& recording) {
  TurnReport report(recording);
  json list = json::array();
  for (size_t i = 0; i < turns.size(); ++i)
    list.push_back(report.report(turns[i], i + 1 < turns.size() ? &turns[i + 1] : nullptr));
  return list;
}

json report_stream(const std::vector<Packet>& packets, int clock_rate) {
  const Continuity c = continuity_of(packets, clock_rate);
  const double longest = packets.empty() ? 0
                                         : longest_packet_gap(packets, packets.front().arrival,
                                                              packets.back().arrival);
  return {{"packets", packets.size()},
          {"lost", c.lost},
          {"late", c.late},
          {"duplicates", c.duplicates},
          {"sources", c.sources.size()},
          {"timestamp_jumps", c.jumps},
          {"longest_gap_ms", longest},
          {"drift_ms", drift_of(packets, clock_rate)}};
}

void print_table(const json& report) {
  printf("%4s  %-24s %8s %8s %8s %5s %8s %8s\n", "turn", "said", "packet", "sound", "length",
         "gaps", "stopped", "old");
  printf("%4s  %-24s %8s %8s %8s %5s %8s %8s\n", "", "", "ms", "ms", "s", "", "after ms", "ms");
  int number = 0;
  for (const json& turn : report["turns"]) {
    const std::string file = turn["file"];
    const std::string name = file.substr(file.rfind('/') + 1).substr(0, 24);
    char length[32] = "-";
    if (turn["answered"]) snprintf(length, sizeof length, "%.2f", turn["seconds"].get<double>());
    const json interrupted = turn.value("interrupted", json::object());
    printf("%4d  %-24s %8s %8s %8s %5zu %8s %8s\n", ++number, name.c_str(),
           figure(turn, "first_packet_ms").c_str(), figure(turn, "first_sound_ms").c_str(), length,
           turn.value("gaps", json::array()).size(), figure(interrupted, "after_ms").c_str(),
           figure(interrupted, "old_sound_ms").c_str());
  }
  const json& stream = report["stream"];
  printf(
      "stream: %d packets, %d lost, %d late, %d timestamp jumps, longest gap %.0f ms, drift %.1f "
      "ms\n",
      stream["packets"].get<int>(), stream["lost"].get<int>(), stream["late"].get<int>(),
      stream["timestamp_jumps"].get<int>(), stream["longest_gap_ms"].get<double>(),
      stream["drift_ms"].get<double>());
}

}  // namespace minicpmo::caller
