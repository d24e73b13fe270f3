#include "pipeline_trace.h"

#include <algorithm>

#include "common/gst_ptr.h"
#include "common/gstminicpmoturn.h"
#include "outputs.h"

namespace minicpmo::tracers {

namespace {

// Turns that are remembered after they have been told: they may be taken up again.
constexpr size_t kMostTurns = 16;
constexpr size_t kMostBursts = 4096;
constexpr gsize kBytesPerCodeRow = 4 * sizeof(guint16);

// The meta belongs to the plugin of the elements, which may not be loaded yet.
guint64 turn_id_of(GstBuffer* buffer) {
  static std::atomic<GType> type{0};
  if (type == 0) type = g_type_from_name("GstMiniCpmoTurnMetaAPI");
  if (type == 0) return 0;
  const GstMeta* meta = gst_buffer_get_meta(buffer, type);
  return meta != nullptr ? reinterpret_cast<const GstMiniCpmoTurnMeta*>(meta)->turn_id : 0;
}

guint64 uint64_of(GstEvent* event, const char* field, guint64 otherwise) {
  guint64 value = otherwise;
  gst_structure_get_uint64(gst_event_get_structure(event), field, &value);
  return value;
}

int index_of(const TurnPath& path, const PadInfo& info) {
  for (size_t i = 0; i < path.pads.size(); ++i)
    if (path.pads[i].get() == &info) return static_cast<int>(i);
  return -1;
}

bool is_valid(GstClockTime time) {
  return GST_CLOCK_TIME_IS_VALID(time);
}

// The whole, and what of it was prefill, ns.
std::pair<GstClockTime, GstClockTime> gpu_times_of(GstElement* element) {
  GstStructure* stats = nullptr;
  g_object_get(element, "stats", &stats, nullptr);
  guint64 total = 0, prefill = 0;
  if (stats == nullptr) return {};
  gst_structure_get_uint64(stats, "gpu-time", &total);
  gst_structure_get_uint64(stats, "gpu-prefill-time", &prefill);
  gst_structure_free(stats);
  return {total, std::min(total, prefill)};
}

// Applications hear of the turn, too: minicpmo/turn-trace on the pipeline's bus, with what `file`
// has as a line of JSON.
std::pair<ElementPtr, GstMessage*> message_of(const Turn& turn, const nlohmann::json& told) {
  if (turn.path->first < 0) return {};
  const ElementInfo& first = turn.path->pads[static_cast<size_t>(turn.path->first)]->element;
  ElementPtr element(static_cast<GstElement*>(g_weak_ref_get(&first.element)));
  if (!element) return {};
  GstMessage* const message = gst_message_new_element(
      GST_OBJECT(element.get()),
      gst_structure_new("minicpmo/turn-trace", "turn-id", G_TYPE_UINT64, turn.id, "report",
                        G_TYPE_STRING, line(told).c_str(), nullptr));
  return {std::move(element), message};
}

}  // namespace

// ---------------------------------------------------------------- turns

Turn* PipelineTrace::known(guint64 id) {
  const auto found = turns_.find(id);
  return found == turns_.end() ? nullptr : &found->second;
}

Turn& PipelineTrace::turn_of(guint64 id) {
  Turn& turn = turns_[id];
  if (turn.id != 0) return turn;
  turn.id = id;
  turn.begun = gst_util_get_timestamp();
  for (auto old = turns_.begin(); turns_.size() > kMostTurns && old != turns_.end();)
    old = old->second.told ? turns_.erase(old) : std::next(old);
  return turn;
}

// The way of a turn is looked up when it begins: pipelines change while they play.
void PipelineTrace::begin_turn(GstElement* element, guint64 turn_id) {
  auto path = std::make_shared<TurnPath>(find_path(element, pad_info));
  std::lock_guard lock(mutex_);
  turn_of(turn_id).path = path;
  for (int i = 0; i < static_cast<int>(path->pads.size()); ++i) {
    PadInfo& pad = *path->pads[static_cast<size_t>(i)];
    pad.last = i + 1 == static_cast<int>(path->pads.size());
    if (i < path->first)
      pad.side = Side::kInput;
    else
      pad.side = path->vocoder >= 0 && i > path->vocoder ? Side::kOutput : Side::kInner;
  }
}

bool PipelineTrace::is_ready(const Turn& turn) const {
  if (turn.told || !turn.ended) return false;
  const TurnPath& path = *turn.path;
  if (path.llm < 0 || turn.flushed) return true;
  const auto text = turn.passed.find(path.pads[static_cast<size_t>(path.llm)].get());
  const bool said = text != turn.passed.end() && is_valid(text->second.first);
  if (path.vocoder < 0 ? !said : turn.sound.chunks.empty()) return true;
  const auto last = turn.passed.find(path.pads.back().get());
  return last != turn.passed.end() && is_valid(last->second.done);
}

// `all`: also those that have not ended. They are chosen once: what becomes ready meanwhile is told
// by who made it so.
void PipelineTrace::tell(bool all) {
  std::unique_lock telling(tell_mutex_);
  std::vector<Turn> ready;
  {
    std::lock_guard lock(mutex_);
    guint64 newest = 0;  // what is older than an answered turn gets no further
    for (const auto& [id, turn] : turns_)
      if (turn.ended && turn.finish != "cancelled") newest = std::max(newest, id);
    for (auto& [id, turn] : turns_) {
      if (turn.told || (!is_ready(turn) && !all && id >= newest)) continue;
      ready.push_back(turn);
      turn.told = turn.again = true;
    }
  }
  for (const Turn& turn : ready) note_late_gpu(*turn.path);
  {
    std::lock_guard lock(mutex_);
    for (Turn& turn : ready)
      if (const Turn* now = known(turn.id)) turn.stages = now->stages;
    if (all) std::erase_if(turns_, [](const auto& item) { return item.second.told; });
  }
  std::vector<std::pair<ElementPtr, GstMessage*>> messages;
  for (Turn& turn : ready) {
    if (turn.finish.empty()) turn.finish = "unfinished";
    const Parts parts = parts_of(turn);
    const nlohmann::json told = report(turn, parts, name_);
    outputs_.turn(number_, turn, parts, told);
    messages.push_back(message_of(turn, told));
  }
  telling.unlock();  // who listens may do anything
  for (auto& [element, message] : messages)
    if (element) gst_element_post_message(element.get(), message);
}

void PipelineTrace::finish() {
  tell(true);
  std::lock_guard lock(mutex_);
  stages_.clear();
  gpu_clocks_.clear();
  sounding_ = 0;
}

// ---------------------------------------------------------------- what passes the pads

void PipelineTrace::buffer(GstPad* pad, PadInfo& info, GstBuffer* buffer) {
  if (info.side == Side::kNone) return;
  Passing at{info, gst_util_get_timestamp()};
  {
    std::lock_guard lock(mutex_);
    note_data(at, buffer);
  }
  note_queue(pad, info, at.entered);
}

// How full the queue behind the pad was when a mark passed. The queue is asked without our lock.
void PipelineTrace::note_queue(GstPad* pad, const PadInfo& info, guint64 turn_id) {
  if (turn_id == 0) return;
  GstPad* peer = gst_pad_get_peer(pad);
  if (peer == nullptr) return;
  GstElement* next = gst_pad_get_parent_element(peer);
  gst_object_unref(peer);
  if (next == nullptr) return;
  GParamSpec* level =
      g_object_class_find_property(G_OBJECT_GET_CLASS(next), "current-level-buffers");
  if (level != nullptr) {
    guint buffers = 0;
    guint64 time = 0;
    g_object_get(next, "current-level-buffers", &buffers, "current-level-time", &time, nullptr);
    std::lock_guard lock(mutex_);
    if (Turn* turn = known(turn_id)) {
      Passed& passed = turn->passed[&info];
      passed.queue_buffers = static_cast<int>(buffers);
      passed.queue_time = time;
    }
  }
  gst_object_unref(next);
}

void PipelineTrace::note_data(Passing& at, GstBuffer* buffer) {
  PadInfo& info = at.info;
  if (info.side == Side::kInput) return info.remember(info.running_end(buffer), at.now);
  const guint64 id = turn_id_of(buffer);
  if (info.side == Side::kOutput) return note_output(at, buffer, id);
  Turn* turn = known(id);
  if (turn == nullptr) return;
  const int index = index_of(*turn->path, info);
  const TurnPath& path = *turn->path;
  if (index < path.llm) return;  // the question, whose end is an event
  if (path.speech < 0 || index < path.speech) {
    info.answering = id;
    note_burst(at, *turn);
  } else if (index == path.speech) {
    note_codes(info, *turn, buffer);
  }
  note_answer(at, *turn);
  if (index == path.vocoder) note_sound(at, *turn, buffer);
}

void PipelineTrace::note_answer(Passing& at, Turn& turn) {
  Passed& passed = turn.passed[&at.info];
  if (is_valid(passed.first)) return;
  passed.first = at.now;
  at.entered = turn.id;
  if (at.info.last) at.info.leaving = turn.id;
}

void PipelineTrace::note_burst(Passing& at, Turn& turn) {
  Passed& passed = turn.passed[&at.info];
  if (passed.bursts.size() < kMostBursts) passed.bursts.push_back(at.now);
}

void PipelineTrace::note_codes(const PadInfo& info, Turn& turn, GstBuffer* buffer) {
  turn.codes += gst_buffer_get_size(buffer) / kBytesPerCodeRow;
  if (is_valid(turn.passed[&info].first)) return;
  const PadInfoPtr& before = turn.path->pads[static_cast<size_t>(turn.path->speech - 1)];
  turn.trigger = turn.passed[before.get()].bursts.size();
}

void PipelineTrace::note_sound(Passing& at, Turn& turn, GstBuffer* buffer) {
  const GstClockTime duration =
      GST_BUFFER_DURATION_IS_VALID(buffer) ? GST_BUFFER_DURATION(buffer) : 0;
  const GstClockTime end = at.info.running_end(buffer);
  Sound& sound = turn.sound;
  if (sound.chunks.empty()) {
    sound.running_time = is_valid(end) ? end - std::min(end, duration) : kNever;
    sounding_ = turn.id;
  } else if (GST_BUFFER_FLAG_IS_SET(buffer, GST_BUFFER_FLAG_DISCONT)) {
    ++sound.put_off;
  }
  sound.chunks.push_back({at.now, duration});
}

// Behind a mixer or an encoder the sound is known by its time only.
void PipelineTrace::note_output(Passing& at, GstBuffer* buffer, guint64 turn_id) {
  const GstClockTime end = at.info.running_end(buffer);
  Turn* turn = known(turn_id != 0 ? turn_id : sounding_);
  if (turn == nullptr || turn->sound.chunks.empty()) return;
  const bool late =
      is_valid(end) && is_valid(turn->sound.running_time) && end > turn->sound.running_time;
  if (turn_id != 0 || late) note_answer(at, *turn);
}

void PipelineTrace::taken(PadInfo& info) {
  if (info.side == Side::kNone) return;
  {
    std::lock_guard lock(mutex_);
    if (info.leaving == 0) return;
    Turn* turn = known(std::exchange(info.leaving, 0));
    if (turn == nullptr) return;
    turn->passed[&info].done = gst_util_get_timestamp();
    if (!is_ready(*turn)) return;
  }
  tell(false);
}

// ---------------------------------------------------------------- events

void PipelineTrace::event(GstPad* pad, PadInfo& info, GstEvent* event) {
  const GstEventType type = GST_EVENT_TYPE(event);
  if (type == GST_EVENT_SEGMENT) {
    std::lock_guard lock(mutex_);
    gst_event_copy_segment(event, &info.segment);
    return;
  }
  const bool custom = type == GST_EVENT_CUSTOM_DOWNSTREAM ||
                      type == GST_EVENT_CUSTOM_DOWNSTREAM_OOB ||
                      type == GST_EVENT_CUSTOM_DOWNSTREAM_STICKY;
  if (!custom && type != GST_EVENT_GAP && type != GST_EVENT_EOS && type != GST_EVENT_FLUSH_START)
    return;
  Passing at{info, gst_util_get_timestamp()};
  if (custom) note_before(at, pad, event);
  if (info.side == Side::kNone) return;
  {
    std::lock_guard lock(mutex_);
    if (custom) {
      note_custom(at, event);
    } else if (type == GST_EVENT_EOS) {
      info.eos = at.now;
    } else if (type == GST_EVENT_FLUSH_START) {
      note_flush(at);
    } else if (Turn* turn = known(info.answering)) {
      note_burst(at, *turn);  // without text
    }
  }
  note_queue(pad, info, at.entered);
  if (at.ends_turn) tell(false);
}

// What needs other elements, and so must not wait for our lock.
void PipelineTrace::note_before(Passing& at, GstPad* pad, GstEvent* event) {
  const bool starts = gst_event_has_name(event, GST_MINICPMO_EVENT_TURN_START);
  const bool ends =
      at.info.element.role == Role::kTurn && gst_event_has_name(event, GST_MINICPMO_EVENT_TURN_END);
  if (!starts && !ends) return;
  GstElement* element = gst_pad_get_parent_element(pad);
  if (element == nullptr) return;
  if (ends) at.running_now = gst_element_get_current_running_time(element);
  if (starts) {
    const guint64 id = uint64_of(event, "turn-id", 0);
    bool unknown;
    {
      std::lock_guard lock(mutex_);
      // Numbers start anew with a new stream.
      if (at.info.element.role == Role::kTurn) turns_.erase(id);
      unknown = known(id) == nullptr;
    }
    if (unknown && id != 0) begin_turn(element, id);
  }
  gst_object_unref(element);
}

void PipelineTrace::note_custom(Passing& at, GstEvent* event) {
  Turn* turn = known(uint64_of(event, "turn-id", 0));
  if (turn == nullptr) return;
  if (gst_event_has_name(event, GST_MINICPMO_EVENT_TURN_END)) {
    note_question(at, event, *turn);
  } else if (gst_event_has_name(event, GST_MINICPMO_EVENT_ANSWER_END)) {
    note_answer_end(at, event, *turn);
  } else if (gst_event_has_name(event, GST_MINICPMO_EVENT_SPEAKER)) {
    at.info.answering = turn->id;
  } else if (at.info.element.role == Role::kTurn &&
             gst_event_has_name(event, GST_MINICPMO_EVENT_TURN_RESUME)) {
    turn->forget_answer();
    ++turn->discarded;
  } else if (gst_event_has_name(event, GST_MINICPMO_EVENT_TURN_CANCEL) &&
             index_of(*turn->path, at.info) == turn->path->first) {
    turn->finish = "cancelled";
    turn->ended = at.ends_turn = true;
  }
}

void PipelineTrace::note_question(Passing& at, GstEvent* event, Turn& turn) {
  const int index = index_of(*turn.path, at.info);
  if (index < 0 || index >= std::max(turn.path->llm, 0)) return;
  turn.marked = true;
  if (index == turn.path->turn) {
    gboolean speculative = FALSE;
    gst_structure_get_boolean(gst_event_get_structure(event), "speculative", &speculative);
    turn.speculative = speculative != FALSE;
    note_hearing(at, uint64_of(event, "speech-end", kNever), turn);
  }
  Passed& passed = turn.passed[&at.info];
  if (is_valid(passed.question)) return;
  passed.question = at.now;
  at.entered = turn.id;
}

// When the user's last voiced sample was captured, and when it passed what is before minicpmoturn.
void PipelineTrace::note_hearing(const Passing& at, GstClockTime speech_end, Turn& turn) {
  const TurnPath& path = *turn.path;
  const bool known_time = is_valid(speech_end) && is_valid(at.running_now);
  if (path.live && known_time && at.running_now >= speech_end)
    turn.captured = at.now - (at.running_now - speech_end);
  for (int i = 0; i < path.turn; ++i) {
    const PadInfo& pad = *path.pads[static_cast<size_t>(i)];
    const GstClockTime time = is_valid(speech_end) ? pad.time_of(speech_end) : kNever;
    turn.passed[&pad].question = is_valid(time) || i + 1 < path.turn ? time : pad.last_buffer;
  }
}

void PipelineTrace::note_answer_end(Passing& at, GstEvent* event, Turn& turn) {
  const TurnPath& path = *turn.path;
  const int index = index_of(path, at.info);
  const gchar* finish = gst_structure_get_string(gst_event_get_structure(event), "finish");
  if (index < path.llm || finish == nullptr || g_str_equal(finish, "discarded")) return;
  if (path.speech >= 0 && index < path.speech) {
    note_burst(at, turn);
    at.info.answering = 0;
  }
  if (index == path.llm) turn.finish = finish;
  if (index != std::max(path.llm, path.vocoder)) return;
  turn.ended = at.ends_turn = true;
  turn.told = false;  // an answer may have gone on
}

// An interruption silences what is on its way.
void PipelineTrace::note_flush(Passing& at) {
  Turn* turn = known(sounding_);
  if (turn == nullptr || at.info.element.role != Role::kLanguageModel) return;
  turn->flushed = true;
  if (!turn->ended) return;
  turn->finish = "interrupted";  // made to its end, but not heard to its end
  turn->told = false;
  at.ends_turn = true;
}

// ---------------------------------------------------------------- stages

void PipelineTrace::stage_begin(GstElement* element, const std::string& stage, guint64 turn_id,
                                GstClockTime handed_in) {
  if (turn_id == 0) return;
  bool begins;
  {
    std::lock_guard lock(mutex_);
    const Turn* turn = known(turn_id);
    begins =
        (turn == nullptr || turn->path->pads.empty()) && (stage == "encode" || stage == "prefill");
  }
  if (begins) begin_turn(element, turn_id);
  bool other_turn;
  {
    std::lock_guard lock(mutex_);
    const auto clock = gpu_clocks_.find(element);
    other_turn = clock == gpu_clocks_.end() || clock->second.turn_id != turn_id;
  }
  if (other_turn) note_gpu(element, turn_id);
  std::lock_guard lock(mutex_);
  const GstClockTime now = gst_util_get_timestamp();
  stages_[{stage, turn_id}] = {now, handed_in};
  GpuClock& clock = gpu_clocks_[element];
  if (stage != "prefill") clock.stage = stage;
  clock.began[stage] = now;
  Turn* turn = known(turn_id);
  if (turn != nullptr && stage == "decode" && !is_valid(turn->decode_begin))
    turn->decode_begin = now;
}

void PipelineTrace::stage_end(GstElement* element, const std::string& stage, guint64 turn_id) {
  const GstClockTime now = gst_util_get_timestamp();
  Stage call;
  {
    std::lock_guard lock(mutex_);
    const auto found = stages_.find({stage, turn_id});
    if (found == stages_.end()) return;
    call = found->second;
    stages_.erase(found);
    if (Turn* turn = known(turn_id)) {
      StageWork& work = turn->stages[stage];
      ++work.calls;
      work.busy += now - call.begin;
      if (stage == "encode") {
        turn->encoded = true;
        turn->encode_end = now;
      }
      if (stage == "prefill") note_prefill(*turn, call, now);
      if (stage == "vocoder" && !is_valid(turn->vocoded)) turn->vocoded = now;
    }
  }
  if (!outputs_.tracing()) return;  // then once a turn is enough
  outputs_.work(number_, name_, stage, turn_id, call.begin, now);
  note_gpu(element);
}

void PipelineTrace::note_gpu(GstElement* element, guint64 next_turn) {
  const auto [total, prefill] = gpu_times_of(element);
  struct Work {
    std::string stage;
    GstClockTime began, duration;
  };
  std::vector<Work> done;
  guint64 turn_id;
  {
    std::lock_guard lock(mutex_);
    const auto [found, made] = gpu_clocks_.try_emplace(element);
    GpuClock& clock = found->second;
    turn_id = clock.turn_id;
    const auto add = [&](const std::string& stage, GstClockTime so_far, GstClockTime before) {
      if (made || so_far <= before) return;
      if (Turn* turn = known(turn_id)) turn->stages[stage].gpu += so_far - before;
      done.push_back({stage, clock.began[stage], so_far - before});
    };
    add("prefill", prefill, clock.prefill);
    add(clock.stage, total - prefill, clock.total - clock.prefill);
    clock.total = std::max(clock.total, total);
    clock.prefill = std::max(clock.prefill, prefill);
    if (next_turn != 0) clock.turn_id = next_turn;
  }
  for (const Work& work : done)
    outputs_.gpu_work(number_, name_, work.stage, turn_id, work.began, work.duration);
}

// What calls that had returned before the GPU was done have cost, for a turn that is told.
void PipelineTrace::note_late_gpu(const TurnPath& path) {
  for (const int i : {path.encoder, path.llm, path.speech, path.vocoder}) {
    if (i < 0) continue;
    auto* element = static_cast<GstElement*>(
        g_weak_ref_get(&path.pads[static_cast<size_t>(i)]->element.element));
    if (element == nullptr) continue;
    note_gpu(element);
    gst_object_unref(element);
  }
}

// What was read before the question had ended cost no time.
void PipelineTrace::note_prefill(Turn& turn, const Stage& call, GstClockTime now) {
  if (is_valid(turn.decode_begin)) return;
  GstClockTime asked = kNever;
  if (!turn.marked && !turn.encoded) {
    if (is_valid(call.handed_in)) turn.handed_in = call.handed_in;
    asked = turn.handed_in;
  } else if (turn.path->llm > 0) {
    const PadInfo& before = *turn.path->pads[static_cast<size_t>(turn.path->llm - 1)];
    asked = turn.marked ? turn.passed[&before].question : before.eos;
  }
  if (!is_valid(asked) || now < asked) return;
  if (!is_valid(turn.prefill_begin)) turn.prefill_begin = call.begin;
  turn.prefill_end = now;
}

void PipelineTrace::answer(guint64 turn_id, guint64 tokens) {
  std::lock_guard lock(mutex_);
  if (Turn* turn = known(turn_id)) turn->tokens = tokens;
}

}  // namespace minicpmo::tracers
