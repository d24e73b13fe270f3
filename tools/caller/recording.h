// What comes back: RTP packets as they arrive, and their sound on one clock, silence included.
// Times are running times of the call's pipeline in ns.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace minicpmo::caller {

using Time = int64_t;
constexpr Time kNever = -1;
constexpr Time kMs = 1000000;

struct Packet {
  Time arrival;
  uint32_t timestamp;
  uint32_t ssrc;
  uint16_t sequence;
  uint16_t size;  // bytes
};

constexpr Time kBlock = 5 * kMs;

// Loudness of what came back: one entry per block, the largest sample of it (0 to 32768). A block
// for which nothing came is 0.
struct Loudness {
  // Louder: somebody speaks (-40 dBFS).
  static constexpr int kAudible = 328;
  // Not louder: nobody sends sound (-72 dBFS; a voice's pauses are louder).
  static constexpr int kSilent = 8;

  std::vector<uint16_t> peaks;
  Time end() const { return static_cast<Time>(peaks.size()) * kBlock; }
  // Begin of the first audible block at or after `from`.
  Time first_audible(Time from) const;
  // End of the last audible block that begins before `to`.
  Time last_audible(Time to) const;
  // Begin of the first run of silence at or after `from` that lasts at least `length`; what has not
  // come yet is silence.
  Time first_silence(Time from, Time length) const;
};

// Where the sound at a time came from.
struct Played {
  Time position, arrival;
};

class Recording {
 public:
  // Writes to `path` (WAV, 16 bit, mono) unless that is empty.
  Recording(std::string path, int rate) : path_(std::move(path)), rate_(rate) {}
  Recording(const Recording&) = delete;
  ~Recording();
  // False if the file cannot be written.
  bool open();
  // Completes the file. False if it could not be written.
  bool close();

  void add_packet(const Packet& packet);
  // The packet `sequence` is played at `position`.
  void add_played(Time position, uint16_t sequence);
  // Sound that begins at `position`. Sound for a time that is already written is dropped.
  void add_sound(Time position, const int16_t* samples, size_t count);

  size_t packet_count() const;
  Time last_arrival() const;  // kNever: no packet yet
  std::vector<Packet> packets() const;
  Loudness loudness() const;
  // Arrival of the packet that is heard at `position`.
  Time arrival_of(Time position) const;
  int rate() const { return rate_; }

  // Live questions, without a copy.
  Time first_audible(Time from) const;
  Time last_audible() const;

 private:
  void append(const int16_t* samples, size_t count);
  void write_header();

  const std::string path_;
  const int rate_;
  mutable std::mutex mutex_;  // guards what follows
  FILE* file_ = nullptr;
  bool failed_ = false;
  int64_t written_ = 0;  // samples
  Loudness loudness_;
  std::vector<Packet> packets_;
  std::map<uint16_t, Time> arrivals_;
  std::vector<Played> played_;
};

}  // namespace minicpmo::caller
