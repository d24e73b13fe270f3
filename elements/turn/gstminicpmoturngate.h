// What minicpmoturn does on its streaming thread: takes audio in as it comes, listens window by
// window, and has TurnOutput do what was decided.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/gst_ptr.h"
#include "common/stage.h"
#include "turn/endpointing.h"
#include "turn/gstminicpmoturnoutput.h"

namespace minicpmo {

enum class TurnMode { kVad, kManual };

struct TurnSettings {
  EndpointingSettings endpointing;
  TurnMode mode = TurnMode::kVad;
  bool barge_in = true;
};

// Methods are for the streaming thread unless they say otherwise.
class TurnGate {
 public:
  TurnGate(GstElement* element, GstPad* srcpad);

  // Of state changes, while nothing streams. open: reads the network, unless the mode needs none.
  Result<void> open(std::string vad_path);
  void close();

  GstFlowReturn chain(BufferPtr buffer);
  bool stream_start(EventPtr event);
  bool caps();
  bool segment(EventPtr event);
  bool gap(EventPtr event);
  bool eos(EventPtr event);
  // Any other serialized event.
  bool other(EventPtr event);
  // FLUSH_STOP (flushed), and PAUSED to READY: forgets the stream.
  void reset(bool flushed);

  // From any thread.
  void set_flushing(bool flushing) { flushing_ = flushing; }
  // Take effect with the next audio.
  void request_start() { request(Request::kStart); }
  void request_end() { request(Request::kEnd); }
  void request_cancel() { request(Request::kCancel); }
  TurnSettings settings() const;
  void set_settings(const TurnSettings& settings);
  const TurnStats& stats() const { return stats_; }
  guint64 take_number() { return output_.take_number(); }
  // How long a sample may be held back.
  static GstClockTime latency(const TurnSettings& settings);

 private:
  enum class Request { kStart, kEnd, kCancel };

  void request(Request request);
  // Input.
  GstFlowReturn align(GstClockTime pts);
  GstFlowReturn apply_requests();
  GstFlowReturn take(std::span<const std::byte> bytes);
  void sanitize(std::span<float> pcm);
  GstFlowReturn hole(GstClockTime duration);
  void jump_to(GstClockTime time);
  // Listening.
  GstFlowReturn process();
  GstFlowReturn window();
  Result<float> probability(std::span<const float> pcm, TurnMode mode);
  Result<void> ensure_vad();
  GstFlowReturn act(const std::vector<Decision>& decisions);
  GstFlowReturn act(const Decision& decision);
  GstFlowReturn follow();
  GstFlowReturn finish();
  void skip_rest();
  GstFlowReturn fail(const Error& error);

  GstElement* element_;  // owns this
  std::string vad_path_;
  std::unique_ptr<VoiceActivity> vad_;
  std::atomic<bool> flushing_{false};
  TurnStats stats_;

  mutable std::mutex mutex_;  // guards settings_, requests_
  TurnSettings settings_;
  std::vector<Request> requests_;

  // The rest belongs to the streaming thread.
  TurnOutput output_;
  TimedSamples& samples_;    // output_'s
  Endpointing endpointing_;  // positions as samples_
  std::vector<float> scratch_;
  std::vector<std::byte> partial_;  // of a sample that a buffer has cut
  GstSegment segment_;
  bool have_segment_ = false;
  bool counted_ = false;  // the segment is in bytes: time is counted
  bool timed_ = false;    // the time of the next sample is known
  bool warned_non_finite_ = false;
  bool failed_ = false;  // nothing more until the stream is reset
};

}  // namespace minicpmo
