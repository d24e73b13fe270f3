#include "turn_clock.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace minicpmo {
namespace {

constexpr double kSampleRate = 24000;
constexpr int kTokensPerBurst = 3;

double milliseconds(Moment from, Moment to) {
  return static_cast<double>(to - from) / 1000;
}

double seconds_of(gsize samples) {
  return static_cast<double>(samples) / kSampleRate;
}

// Time of one token of the language model while nothing else runs: between bursts before the speech
// model's first text. 0 if there are no two.
double token_ms(const Turn& turn) {
  double best = 0;
  for (size_t i = 1; i < turn.bursts.size() && turn.bursts[i] <= turn.text_in; ++i) {
    const double time = milliseconds(turn.bursts[i - 1], turn.bursts[i]) / kTokensPerBurst;
    if (best == 0 || time < best) best = time;
  }
  return best;
}

// Where the time to the first sound went; the parts add up to it. What is prefill and what decoding
// within the first burst is estimated from the tokens behind it.
nlohmann::json parts(const Turn& turn) {
  const Moment asked = std::max(turn.question_end, turn.decided);
  const Moment heard = std::max(asked, turn.encoded);
  const double first_burst = milliseconds(heard, turn.answer_begun);
  const double decode = std::min(first_burst, (kTokensPerBurst - 1) * token_ms(turn));
  nlohmann::json parts = {{"encode", milliseconds(asked, heard)},
                          {"prefill", first_burst - decode},
                          {"decode", decode + milliseconds(turn.answer_begun, turn.text_in)},
                          {"speech", milliseconds(turn.text_in, turn.codes)},
                          {"vocoder", milliseconds(turn.codes, turn.chunks[0].ready)}};
  if (turn.decided != 0) parts["hang_over"] = milliseconds(turn.question_end, turn.decided);
  return parts;
}

nlohmann::json gpu_ms(const GpuTimes& from, const GpuTimes& to) {
  constexpr std::array<const char*, 5> kNames{"encode", "prefill", "decode", "speech", "vocoder"};
  nlohmann::json times;
  for (size_t i = 0; i < kNames.size(); ++i)
    times[kNames[i]] = static_cast<double>(to[i] - from[i]) / 1e6;
  return times;
}

struct GpuTime {
  guint64 all = 0, prefill = 0;
};

GpuTime gpu_time(GstElement* element) {
  GpuTime time;
  if (element == nullptr) return time;
  GstStructure* stats = nullptr;
  g_object_get(element, "stats", &stats, nullptr);
  gst_structure_get_uint64(stats, "gpu-time", &time.all);
  gst_structure_get_uint64(stats, "gpu-prefill-time", &time.prefill);
  gst_structure_free(stats);
  return time;
}

GstElement* find(GstElement* pipeline, const char* name) {
  GstElement* element = gst_bin_get_by_name(GST_BIN(pipeline), name);
  if (element != nullptr) gst_object_unref(element);
  return element;
}

// The longest wait for a chunk after the first, in its own durations: above 1, sound that is played
// as it comes may stop.
double worst_chunk(const std::vector<Chunk>& chunks) {
  double worst = 0;
  for (size_t i = 1; i < chunks.size(); ++i) {
    const double wait = milliseconds(chunks[i - 1].ready, chunks[i].ready) / 1000;
    worst = std::max(worst, wait / seconds_of(chunks[i].samples));
  }
  return worst;
}

// How long sound that is played from its first sample on stops for lack of more.
double underrun_ms(const std::vector<Chunk>& chunks) {
  double stopped = 0;
  gsize before = 0;
  for (const Chunk& chunk : chunks) {
    const double played_out = seconds_of(before) * 1000 + stopped;
    stopped += std::max(0.0, milliseconds(chunks[0].ready, chunk.ready) - played_out);
    before += chunk.samples;
  }
  return stopped;
}

}  // namespace

nlohmann::json measure(const Turn& turn) {
  nlohmann::json r = {{"text", turn.text}, {"first_word_ms", -1}, {"ttfb_ms", -1}, {"rtf", -1}};
  gsize samples = 0;
  for (const Chunk& chunk : turn.chunks) samples += chunk.samples;
  const double seconds = seconds_of(samples);
  r["audio_seconds"] = seconds;
  r["chunks"] = turn.chunks.size();
  if (!turn.bursts.empty()) r["first_word_ms"] = milliseconds(turn.question_end, turn.bursts[0]);
  if (turn.packet != 0) r["first_packet_ms"] = milliseconds(turn.question_end, turn.packet);
  if (turn.chunks.empty()) return r;
  const Moment first = turn.chunks.front().ready, last = turn.chunks.back().ready;
  r["ttfb_ms"] = milliseconds(turn.question_end, first);
  r["rtf"] = milliseconds(turn.question_end, last) / 1000 / seconds;
  r["steady_rtf"] = milliseconds(first, last) / 1000 / seconds;
  r["worst_chunk"] = worst_chunk(turn.chunks);
  r["underrun_ms"] = underrun_ms(turn.chunks);
  if (turn.answer_begun != 0 && turn.text_in != 0 && turn.codes != 0) {
    r["parts_ms"] = parts(turn);
    r["token_ms"] = token_ms(turn);
  }
  if (turn.gpu_answered != turn.gpu_asked) {
    r["gpu_ms"] = gpu_ms(turn.gpu_asked, turn.gpu_sound);
    r["gpu_turn_ms"] = gpu_ms(turn.gpu_asked, turn.gpu_answered);
  }
  return r;
}

void TurnClock::begin_turn() {
  const GpuTimes gpu = gpu_times();
  std::lock_guard lock(mutex_);
  turn_ = {};
  turn_.gpu_asked = gpu;
  ended_ = false;
  turn_.question_end = g_get_monotonic_time();
}

bool TurnClock::turn_ended() const {
  std::lock_guard lock(mutex_);
  return ended_;
}

Turn TurnClock::take_turn() {
  const GpuTimes gpu = gpu_times();
  std::lock_guard lock(mutex_);
  turn_.gpu_answered = gpu;
  return std::exchange(turn_, {});
}

GstPadProbeReturn TurnClock::on_probe(GstPad*, GstPadProbeInfo* info, gpointer data) {
  const auto* probe = static_cast<Probe*>(data);
  (probe->clock->*probe->note)(info);
  return GST_PAD_PROBE_OK;
}

void TurnClock::add_probe(GstElement* pipeline, const char* element, const char* pad_name,
                          GstPadProbeType type, Note note) {
  GstElement* e = gst_bin_get_by_name(GST_BIN(pipeline), element);
  if (e == nullptr) return;
  GstPad* pad = gst_element_get_static_pad(e, pad_name);
  gst_pad_add_probe(pad, type, on_probe, new Probe{this, note},
                    [](gpointer probe) { delete static_cast<Probe*>(probe); });
  gst_object_unref(pad);
  gst_object_unref(e);
}

void TurnClock::watch(GstElement* pipeline) {
  const auto both =
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM);
  const auto packets =
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_BUFFER_LIST);
  encoder_ = find(pipeline, "first");
  llm_ = find(pipeline, "llm");
  tts_ = find(pipeline, "tts");
  vocoder_ = find(pipeline, "vocoder");
  add_probe(pipeline, "first", "sink", both, &TurnClock::note_question);
  add_probe(pipeline, "first", "src", GST_PAD_PROBE_TYPE_BUFFER, &TurnClock::note_embeddings);
  add_probe(pipeline, "llm", "src", both, &TurnClock::note_words);
  add_probe(pipeline, "tts", "sink", GST_PAD_PROBE_TYPE_BUFFER, &TurnClock::note_text_in);
  add_probe(pipeline, "tts", "src", GST_PAD_PROBE_TYPE_BUFFER, &TurnClock::note_codes);
  add_probe(pipeline, "vocoder", "src", both, &TurnClock::note_sound);
  add_probe(pipeline, "rtp", "src", packets, &TurnClock::note_packet);
}

// Of calls that have returned.
GpuTimes TurnClock::gpu_times() const {
  const GpuTime llm = gpu_time(llm_);
  return {gpu_time(encoder_).all, llm.prefill, llm.all - llm.prefill, gpu_time(tts_).all,
          gpu_time(vocoder_).all};
}

void TurnClock::note_question(GstPadProbeInfo* info) {
  const bool buffer = (GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) != 0;
  const Moment now = g_get_monotonic_time();
  GstClockTime speech_end = GST_CLOCK_TIME_NONE;
  if (!buffer) {
    GstEvent* event = GST_PAD_PROBE_INFO_EVENT(info);
    const GstStructure* fields = gst_event_get_structure(event);
    const bool turn_end = fields != nullptr && gst_structure_has_name(fields, "minicpmo/turn-end");
    if (!turn_end && GST_EVENT_TYPE(event) != GST_EVENT_EOS) return;
    if (turn_end) gst_structure_get_uint64(fields, "speech-end", &speech_end);
  }
  const GpuTimes gpu = buffer ? GpuTimes{} : gpu_times();
  std::lock_guard lock(mutex_);
  if (turn_.decided != 0) return;  // the silence behind it
  if (!buffer) turn_.gpu_asked = gpu;
  turn_.question_end = now;
  if (!GST_CLOCK_TIME_IS_VALID(speech_end)) return;
  turn_.decided = now;
  const GstClockTime running = gst_element_get_current_running_time(encoder_);
  turn_.question_end -= static_cast<Moment>((running - speech_end) / GST_USECOND);
}

void TurnClock::note_embeddings(GstPadProbeInfo*) {
  std::lock_guard lock(mutex_);
  turn_.encoded = g_get_monotonic_time();
}

void TurnClock::note_words(GstPadProbeInfo* info) {
  const Moment now = g_get_monotonic_time();
  std::lock_guard lock(mutex_);
  if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) == 0) {
    const GstStructure* fields = gst_event_get_structure(GST_PAD_PROBE_INFO_EVENT(info));
    if (fields != nullptr && gst_structure_has_name(fields, "minicpmo/speaker"))
      turn_.answer_begun = now;
    return;
  }
  GstMapInfo map;
  if (!gst_buffer_map(GST_PAD_PROBE_INFO_BUFFER(info), &map, GST_MAP_READ)) return;
  if (map.size > 0) {
    turn_.bursts.push_back(now);
    turn_.text.append(reinterpret_cast<const char*>(map.data), map.size);
    if (print_words_) {
      fwrite(map.data, 1, map.size, stdout);
      fflush(stdout);
    }
  }
  gst_buffer_unmap(GST_PAD_PROBE_INFO_BUFFER(info), &map);
}

void TurnClock::note_text_in(GstPadProbeInfo*) {
  std::lock_guard lock(mutex_);
  if (turn_.codes == 0) turn_.text_in = g_get_monotonic_time();
}

void TurnClock::note_codes(GstPadProbeInfo*) {
  std::lock_guard lock(mutex_);
  if (turn_.codes == 0) turn_.codes = g_get_monotonic_time();
}

void TurnClock::note_sound(GstPadProbeInfo* info) {
  if ((GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) == 0) {
    const GstStructure* fields = gst_event_get_structure(GST_PAD_PROBE_INFO_EVENT(info));
    std::lock_guard lock(mutex_);
    if (fields != nullptr && gst_structure_has_name(fields, "minicpmo/answer-end")) ended_ = true;
    return;
  }
  GstMapInfo map;  // waits for the device
  if (!gst_buffer_map(GST_PAD_PROBE_INFO_BUFFER(info), &map, GST_MAP_READ)) return;
  const gsize samples = map.size / sizeof(float);
  gst_buffer_unmap(GST_PAD_PROBE_INFO_BUFFER(info), &map);
  if (samples == 0) return;
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    first = turn_.chunks.empty();
    turn_.chunks.push_back({g_get_monotonic_time(), samples});
  }
  if (!first) return;
  const GpuTimes gpu = gpu_times();
  std::lock_guard lock(mutex_);
  turn_.gpu_sound = gpu;
}

// A late packet of the answer before comes ahead of this one's sound.
void TurnClock::note_packet(GstPadProbeInfo*) {
  std::lock_guard lock(mutex_);
  if (turn_.packet == 0 && !turn_.chunks.empty()) turn_.packet = g_get_monotonic_time();
}

}  // namespace minicpmo
