#include "network.h"

#include <algorithm>

namespace minicpmo::caller {

namespace {

bool chance(std::mt19937* random, double probability) {
  return std::uniform_real_distribution<double>(0, 1)(*random) < probability;
}

}  // namespace

std::string netsim_line(const Impairment& impairment) {
  std::string line;
  if (impairment.jitter_ms > 0) {
    line += " ! netsim allow-reordering=false delay-probability=1 min-delay=0 max-delay=" +
            std::to_string(2 * impairment.jitter_ms);
  }
  if (impairment.reorder > 0) {
    line += " ! netsim min-delay=30 max-delay=60 delay-probability=" +
            std::to_string(impairment.reorder);
  }
  if (impairment.duplicate > 0)
    line += " ! netsim duplicate-probability=" + std::to_string(impairment.duplicate);
  return line;
}

GstBuffer* SourceChange::apply(GstBuffer* packet, double now) {
  if (!times_.empty() && now >= times_.front()) {
    times_.erase(times_.begin());
    ssrc_ = static_cast<uint32_t>(random_()) | 1;
    timestamp_ = static_cast<uint32_t>(random_());
    sequence_ = static_cast<uint16_t>(random_());
  }
  if (ssrc_ == 0) return packet;
  packet = gst_buffer_make_writable(packet);
  GstMapInfo map;
  if (!gst_buffer_map(packet, &map, GST_MAP_READWRITE)) return packet;
  GST_WRITE_UINT16_BE(map.data + 2,
                      static_cast<uint16_t>(GST_READ_UINT16_BE(map.data + 2) + sequence_));
  GST_WRITE_UINT32_BE(map.data + 4, GST_READ_UINT32_BE(map.data + 4) + timestamp_);
  GST_WRITE_UINT32_BE(map.data + 8, ssrc_);
  gst_buffer_unmap(packet, &map);
  return packet;
}

bool Loss::lost(double now) {
  for (const Blackout& b : impairment_.blackouts)
    if (now >= b.begin && now < b.begin + b.seconds) return true;
  if (impairment_.burst > 0 && now >= next_burst_) {
    // The first burst does not come with the first packet.
    if (next_burst_ > 0) burst_left_ = impairment_.burst;
    next_burst_ = now + impairment_.burst_every;
  }
  if (burst_left_ > 0) {
    --burst_left_;
    return true;
  }
  return chance(&random_, impairment_.loss);
}

Junk::~Junk() {
  if (socket_) g_object_unref(socket_);
  if (address_) g_object_unref(address_);
}

bool Junk::open(const std::string& host, int port, std::string* problem) {
  GError* error = nullptr;
  address_ = g_inet_socket_address_new_from_string(host.c_str(), static_cast<guint>(port));
  if (!address_) {
    *problem = host + ": junk needs an address in numbers";
    return false;
  }
  socket_ = g_socket_new(g_socket_address_get_family(address_), G_SOCKET_TYPE_DATAGRAM,
                         G_SOCKET_PROTOCOL_UDP, &error);
  if (!socket_) {
    *problem = error->message;
    g_error_free(error);
    return false;
  }
  g_socket_set_blocking(socket_, FALSE);
  return true;
}

void Junk::send(double seconds) {
  for (due_ += per_second_ * seconds; due_ >= 1; due_ -= 1) {
    const std::vector<uint8_t> bytes = packet();
    // A full send buffer is no error: the network loses packets.
    if (g_socket_send_to(socket_, address_, reinterpret_cast<const gchar*>(bytes.data()),
                         bytes.size(), nullptr, nullptr) > 0)
      ++sent_;
  }
}

std::vector<uint8_t> Junk::rtp(int version, int payload_type, size_t size) {
  std::vector<uint8_t> bytes(std::max<size_t>(size, 12));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random_());
  bytes[0] = static_cast<uint8_t>(version << 6);
  bytes[1] = static_cast<uint8_t>(payload_type);
  return bytes;
}

std::vector<uint8_t> Junk::packet() {
  constexpr int kLargest = 1500, kStrangers = 8;
  std::vector<uint8_t> bytes(1 + random_() % kLargest);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random_());
  switch (random_() % 10) {
    case 0:
      return bytes;
    case 1:
      return {static_cast<uint8_t>(random_())};
    case 2:
      bytes.resize(kLargest);
      return bytes;
    case 3:
      return rtp(0, payload_type_, 80);
    case 4:
      return rtp(3, payload_type_, 80);
    case 5:
      return rtp(2, 13, 40);  // comfort noise, from somebody else
    case 6:
      bytes = rtp(2, payload_type_, 60);
      bytes[0] |= 0x20;  // padding: more than there is
      bytes.back() = 255;
      return bytes;
    case 7:
      bytes = rtp(2, payload_type_, 20);
      bytes[0] |= 0x0f;  // 15 contributing sources, which are not there
      return bytes;
    case 8:  // nothing wrong with it, but from somebody else
      bytes = rtp(2, payload_type_, 60);
      GST_WRITE_UINT32_BE(bytes.data() + 8, static_cast<uint32_t>(random_() % kStrangers));
      return bytes;
    default:
      bytes = rtp(2, payload_type_, 40);
      bytes[0] |= 0x10;  // an extension, longer than the packet
      bytes[14] = bytes[15] = 255;
      return bytes;
  }
}

}  // namespace minicpmo::caller
