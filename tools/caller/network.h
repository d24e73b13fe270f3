// A bad network between the caller and the other side: what it does to the packets on their way
// out.
#pragma once

#include <gio/gio.h>
#include <gst/gst.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "recording.h"

namespace minicpmo::caller {

struct Blackout {
  double begin, seconds;  // of the call's time
};

struct Impairment {
  double loss = 0;         // probability of each packet
  double loss_back = 0;    // the same, of what comes back
  int burst = 0;           // packets lost at once ...
  double burst_every = 0;  // ... every so many seconds
  int jitter_ms = 0;       // each packet is late by 0 to twice this, order kept
  double reorder = 0;      // probability of a packet to come 30 to 60 ms late, behind others
  double duplicate = 0;    // probability
  std::vector<Blackout> blackouts;
  std::vector<double> new_sources;  // seconds: a new SSRC, sequence number and timestamp
  bool wrap = false;                // sequence number and timestamp begin just below their end
  double junk_per_second = 0;       // packets that are not of this stream, or not RTP at all
};

// netsim elements for what they can do; "" if nothing.
std::string netsim_line(const Impairment& impairment);

// Changes the header of outgoing packets so that they seem to come from a new source. Before SRTP.
class SourceChange {
 public:
  SourceChange(const Impairment& impairment, uint32_t seed)
      : times_(impairment.new_sources), random_(seed) {}
  // now: since the call began, in s.
  GstBuffer* apply(GstBuffer* packet, double now);

 private:
  std::vector<double> times_;
  std::mt19937 random_;
  uint32_t ssrc_ = 0,
           timestamp_ = 0;  // ssrc_: 0 as long as there was no change; the others: offset
  uint16_t sequence_ = 0;
};

// Which packets are lost. netsim could, but not the same ones twice. After SRTP.
class Loss {
 public:
  Loss(const Impairment& impairment, uint32_t seed) : impairment_(impairment), random_(seed) {}
  bool lost(double now);

 private:
  const Impairment impairment_;
  std::mt19937 random_;
  int burst_left_ = 0;
  double next_burst_ = 0;
};

// Sends packets that nobody should listen to.
class Junk {
 public:
  Junk(double per_second, int payload_type, uint32_t seed)
      : per_second_(per_second), payload_type_(payload_type), random_(seed) {}
  ~Junk();
  bool open(const std::string& host, int port, std::string* problem);
  // Sends what is due since the last call.
  void send(double seconds);
  uint64_t sent() const { return sent_; }

 private:
  std::vector<uint8_t> packet();
  std::vector<uint8_t> rtp(int version, int payload_type, size_t size);

  const double per_second_;
  const int payload_type_;
  std::mt19937 random_;
  double due_ = 0;
  uint64_t sent_ = 0;
  GSocket* socket_ = nullptr;
  GSocketAddress* address_ = nullptr;
};

}  // namespace minicpmo::caller
