// One call: what the caller says and when, sent in real time, while what comes back is recorded.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "network.h"
#include "recording.h"
#include "sound.h"

namespace minicpmo::caller {

struct Item {
  enum class Kind {
    kQuestion,  // is to be answered
    kSound,     // is not: the call goes on at its end
    kWait
  };
  Kind kind;
  Sound sound;      // of the first two
  double wait = 0;  // seconds, of the last
};

struct CallOptions {
  std::string host = "127.0.0.1";
  int port = 5004;
  int listen = 5006;
  bool pcmu = false;
  std::string key;            // SRTP, 60 hexadecimal digits; "": plain RTP
  uint32_t ssrc = 0;          // of what is sent; 0: random, or 1111 with SRTP
  uint32_t peer_ssrc = 2222;  // of what comes back, for SRTP
  int jitter_buffer_ms = 60;
  double end_silence = 1.0;  // seconds without sound that end an answer: then comes the next item
  double timeout = 15;       // seconds until an answer must begin
  double connect_timeout = 60;  // ... and the first packet come; 0: it is not waited for
  double longest = 60;          // seconds an answer may go on
  // Seconds into an answer at which the next item begins; < 0: at its end. The last one holds for
  // all that follow. Empty: no interruptions.
  std::vector<double> interrupt_after;
  double interrupt_least = 0, interrupt_most = 0;  // at random between, if interrupt_most > 0
  uint32_t seed = 1;
  double noise = 0;  // amplitude of white noise, of 1
  Sound background;  // goes on and on below the rest
  double background_gain = 1;
  Impairment impairment;
};

// What was said, and what the live caller knew of the answer. Times are positions in the recording.
struct Turn {
  std::string file;
  bool question = true;
  Time begin = kNever;        // first sample sent
  Time voice_begin = kNever;  // first and end of the last voiced sample
  Time voice_end = kNever;
  Time interrupt_at = kNever;  // the next item was begun here, in the middle of the answer
  Time end = kNever;           // when the caller went on
  bool answered = false;
};

class Call {
 public:
  Call(const CallOptions& options, Recording* recording);
  ~Call();
  Call(const Call&) = delete;

  // False, after printing an error, if the pipeline failed or an answer did not come in time: what
  // there is until then can be reported all the same.
  bool run(const std::vector<Item>& items);

  const std::vector<Turn>& turns() const { return turns_; }
  Time begin() const { return script_begin_; }  // kNever: nothing ever came
  double latest_tick_ms() const { return latest_tick_ms_; }
  uint64_t packets_sent() const { return packets_sent_; }
  uint64_t packets_lost() const { return packets_lost_; }
  uint64_t junk_sent() const { return junk_.sent(); }
  // What the system's monotonic clock showed at position 0, in ns.
  Time clock_begin() const { return clock_begin_; }

 private:
  enum class Wish { kStay, kNext, kFail };

  std::string launch_line() const;
  bool start();
  void add_probes();
  bool tick();  // 20 ms
  void make_frame(int16_t* frame);
  bool bus_is_fine();
  bool advance();
  void begin_item();
  Wish after_sound();
  Wish after_question(Turn& turn);
  void plan_interruption();
  Time position() const;  // of the next sample to be sent
  Time now() const;
  double call_seconds() const;

  static GstPadProbeReturn on_outgoing(GstPad*, GstPadProbeInfo* info, gpointer self);
  static GstPadProbeReturn on_sent(GstPad*, GstPadProbeInfo* info, gpointer self);
  static GstPadProbeReturn on_arrival(GstPad*, GstPadProbeInfo* info, gpointer self);
  static GstPadProbeReturn on_played(GstPad*, GstPadProbeInfo* info, gpointer self);
  static GstPadProbeReturn on_sound(GstPad*, GstPadProbeInfo* info, gpointer self);

  const CallOptions options_;
  const int rate_;
  Recording* const recording_;
  GstElement* pipeline_ = nullptr;
  GstElement* source_ = nullptr;
  GstClock* clock_ = nullptr;

  int64_t sent_samples_ = 0;
  const std::vector<Item>* items_ = nullptr;
  size_t item_ = 0;
  size_t item_position_ = 0;  // samples of the item that were sent
  std::vector<Turn> turns_;
  int turn_ = -1;  // index of the item's; -1: a wait
  Time wait_until_ = kNever;
  Time planned_interruption_ = kNever;  // after the answer's first sound
  size_t background_position_ = 0;
  std::mt19937 random_;

  // Written by this thread, read by the streaming threads.
  std::atomic<Time> script_begin_ = kNever;
  SourceChange source_change_;  // of the streaming thread that sends
  Loss loss_;                   // of the same
  Loss loss_back_;              // of the one that receives
  Junk junk_;
  std::atomic<uint64_t> packets_sent_ = 0, packets_lost_ = 0;
  double latest_tick_ms_ = 0;
  Time clock_begin_ = 0;
};

}  // namespace minicpmo::caller
