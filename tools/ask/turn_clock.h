// What minicpmo-ask measures of a turn: when the question, words, codes, sound and RTP packets pass
// the pads between the elements. All clock times are of this host; a buffer of sound counts when
// the host can read it.
#pragma once

#include <gst/gst.h>

#include <array>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace minicpmo {

// Microseconds of g_get_monotonic_time(); 0: has not happened.
using Moment = gint64;

struct Chunk {
  Moment ready;
  gsize samples;
};

// What went into each part of a turn on a GPU since the elements were made, in nanoseconds: encode,
// prefill, decode, speech, vocoder. 0 on a CPU.
using GpuTimes = std::array<guint64, 5>;

struct Turn {
  Moment question_end = 0;     // of its last voiced sample, if minicpmoturn told it
  Moment decided = 0;          // that it has ended
  Moment encoded = 0;          // last embeddings, for a spoken question
  Moment answer_begun = 0;     // first burst: the prompt was read, and three tokens drawn
  std::vector<Moment> bursts;  // text leaving the language model
  Moment text_in = 0;          // last text that reached the speech model before its first codes
  Moment codes = 0;            // first codes
  Moment packet = 0;           // first RTP packet
  std::vector<Chunk> chunks;   // sound
  GpuTimes gpu_asked{};        // at the end of the question
  GpuTimes gpu_sound{};        // at the first sound
  GpuTimes gpu_answered{};     // at the end of the turn
  std::string text;
};

// The figures of one turn (tools/bench --help says what each one is).
nlohmann::json measure(const Turn& turn);

// Watches a pipeline with the elements "first" (if it encodes speech), "llm", "tts", "vocoder" and
// "rtp" (if there is one). Turns follow each other; a turn ends with the event minicpmo/answer-end
// behind its last sound.
class TurnClock {
 public:
  // Prints the words as they come.
  explicit TurnClock(bool print_words) : print_words_(print_words) {}
  // The pipeline must go before the clock.
  void watch(GstElement* pipeline);

  // The question has been handed in: what comes now belongs to it.
  void begin_turn();
  // Whether the turn's last sound has left the vocoder.
  bool turn_ended() const;
  // Afterwards.
  Turn take_turn();

 private:
  using Note = void (TurnClock::*)(GstPadProbeInfo*);
  struct Probe {
    TurnClock* clock;
    Note note;
  };
  static GstPadProbeReturn on_probe(GstPad*, GstPadProbeInfo* info, gpointer probe);
  void add_probe(GstElement* pipeline, const char* element, const char* pad, GstPadProbeType type,
                 Note note);

  GpuTimes gpu_times() const;
  void note_question(GstPadProbeInfo* info);
  void note_embeddings(GstPadProbeInfo* info);
  void note_words(GstPadProbeInfo* info);
  void note_text_in(GstPadProbeInfo* info);
  void note_codes(GstPadProbeInfo* info);
  void note_sound(GstPadProbeInfo* info);
  void note_packet(GstPadProbeInfo* info);

  const bool print_words_;
  GstElement *encoder_ = nullptr, *llm_ = nullptr, *tts_ = nullptr,
             *vocoder_ = nullptr;  // not ours
  mutable std::mutex mutex_;       // guards what follows
  Turn turn_;
  bool ended_ = false;
};

}  // namespace minicpmo
