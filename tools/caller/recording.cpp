#include "recording.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace minicpmo::caller {

Time Loudness::first_audible(Time from) const {
  for (auto i = static_cast<size_t>(std::max<Time>(0, from) / kBlock); i < peaks.size(); ++i)
    if (peaks[i] > kAudible) return static_cast<Time>(i) * kBlock;
  return kNever;
}

Time Loudness::last_audible(Time to) const {
  const auto end = static_cast<size_t>(std::max<Time>(0, (to + kBlock - 1) / kBlock));
  for (size_t i = std::min(peaks.size(), end); i-- > 0;)
    if (peaks[i] > kAudible) return static_cast<Time>(i + 1) * kBlock;
  return kNever;
}

Time Loudness::first_silence(Time from, Time length) const {
  const auto need = static_cast<size_t>(length / kBlock);
  const auto begin = static_cast<size_t>(std::max<Time>(0, from) / kBlock);
  size_t run = 0;
  for (size_t i = begin;; ++i) {
    if (run >= need || i >= peaks.size())
      return std::max(from, static_cast<Time>(i - run) * kBlock);
    run = peaks[i] <= kSilent ? run + 1 : 0;
  }
}

Recording::~Recording() {
  close();
}

bool Recording::open() {
  if (path_.empty()) return true;
  file_ = fopen(path_.c_str(), "wb");
  if (file_) write_header();
  return file_ != nullptr;
}

bool Recording::close() {
  std::lock_guard lock(mutex_);
  if (!file_) return !failed_;
  failed_ = failed_ || fseek(file_, 0, SEEK_SET) != 0;
  write_header();
  failed_ = fclose(file_) != 0 || failed_;
  file_ = nullptr;
  return !failed_;
}

void Recording::write_header() {
  const auto bytes = static_cast<uint32_t>(written_ * 2);
  uint8_t header[44];
  auto text = [&](int at, const char* s) { memcpy(header + at, s, 4); };
  auto number = [&](int at, uint32_t value, int size) {
    for (int i = 0; i < size; ++i) header[at + i] = static_cast<uint8_t>(value >> (8 * i));
  };
  text(0, "RIFF"), number(4, 36 + bytes, 4), text(8, "WAVE"), text(12, "fmt ");
  number(16, 16, 4), number(20, 1, 2), number(22, 1, 2);
  number(24, static_cast<uint32_t>(rate_), 4), number(28, static_cast<uint32_t>(rate_) * 2, 4);
  number(32, 2, 2), number(34, 16, 2), text(36, "data"), number(40, bytes, 4);
  failed_ = fwrite(header, sizeof header, 1, file_) != 1 || failed_;
}

void Recording::add_packet(const Packet& packet) {
  std::lock_guard lock(mutex_);
  packets_.push_back(packet);
  arrivals_[packet.sequence] = packet.arrival;
}

void Recording::add_played(Time position, uint16_t sequence) {
  std::lock_guard lock(mutex_);
  const auto found = arrivals_.find(sequence);
  if (found != arrivals_.end()) played_.push_back({position, found->second});
}

void Recording::add_sound(Time position, const int16_t* samples, size_t count) {
  std::lock_guard lock(mutex_);
  int64_t at = position * rate_ / (1000 * kMs);
  // The jitter buffer smoothes the times of packets: steps below one packet are its doing.
  const int64_t tolerance = rate_ / 50;
  if (std::abs(at - written_) <= tolerance) at = written_;
  if (at < written_) {
    const auto late = static_cast<size_t>(std::min<int64_t>(written_ - at, count));
    samples += late, count -= late;
  } else {
    const std::vector<int16_t> silence(static_cast<size_t>(at - written_));
    append(silence.data(), silence.size());
  }
  append(samples, count);
}

void Recording::append(const int16_t* samples, size_t count) {
  const int64_t block = rate_ * kBlock / (1000 * kMs);
  for (size_t i = 0; i < count; ++i) {
    const auto index = static_cast<size_t>((written_ + static_cast<int64_t>(i)) / block);
    if (index >= loudness_.peaks.size()) loudness_.peaks.resize(index + 1);
    uint16_t& peak = loudness_.peaks[index];
    peak = std::max(peak, static_cast<uint16_t>(std::abs(int(samples[i]))));
  }
  if (file_ && count > 0) failed_ = fwrite(samples, 2, count, file_) != count || failed_;
  written_ += static_cast<int64_t>(count);
}

size_t Recording::packet_count() const {
  std::lock_guard lock(mutex_);
  return packets_.size();
}

Time Recording::last_arrival() const {
  std::lock_guard lock(mutex_);
  return packets_.empty() ? kNever : packets_.back().arrival;
}

std::vector<Packet> Recording::packets() const {
  std::lock_guard lock(mutex_);
  return packets_;
}

Loudness Recording::loudness() const {
  std::lock_guard lock(mutex_);
  return loudness_;
}

Time Recording::arrival_of(Time position) const {
  std::lock_guard lock(mutex_);
  const auto after = std::upper_bound(played_.begin(), played_.end(), position,
                                      [](Time t, const Played& p) { return t < p.position; });
  return after == played_.begin() ? kNever : std::prev(after)->arrival;
}

Time Recording::first_audible(Time from) const {
  std::lock_guard lock(mutex_);
  return loudness_.first_audible(from);
}

Time Recording::last_audible() const {
  std::lock_guard lock(mutex_);
  return loudness_.last_audible(loudness_.end());
}

}  // namespace minicpmo::caller
