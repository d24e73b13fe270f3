// The interrupting half of minicpmollm's worker: an answer stops in the middle, what is on its way
// to the listener is flushed, and the conversation is cut back to what was heard.
//
// Whoever interrupts (the thread of the user's speech, an application) asks what was heard and
// starts the flush, so that silence does not wait for the model; the task, which alone pushes data,
// ends the flush and sends a new segment.
#include <algorithm>
#include <string>
#include <utility>

#include "common/gstminicpmoturn.h"
#include "llm/gstminicpmollmworker.h"

GST_DEBUG_CATEGORY_EXTERN(gst_minicpmo_llm_debug);
#define GST_CAT_DEFAULT gst_minicpmo_llm_debug

namespace minicpmo {

bool LlmWorker::is_live() const {
  if (mode_ != TimestampMode::kAuto) return mode_ == TimestampMode::kArrival;
  if (upstream_ == Upstream::kUnknown)
    upstream_ = gst_minicpmo_pad_is_live(sink_) ? Upstream::kLive : Upstream::kNotLive;
  return upstream_ == Upstream::kLive;
}

void LlmWorker::interrupt(int64_t heard_bytes) {
  stop_answers(G_MAXUINT64, heard_bytes);
}

void LlmWorker::barge_in(guint64 turn_id) {
  if (!is_live()) return;
  {
    std::lock_guard lock(mutex_);
    superseded_ = std::max(superseded_, turn_id);
  }
  stop_answers(turn_id, -1);
}

void LlmWorker::resume_turn(guint64 turn_id) {
  bool begun;
  {
    std::lock_guard lock(mutex_);
    begun = (answering_ && answering_turn_ == turn_id) || sounding_.turn_id == turn_id;
    if (!begun) resumed_turn_ = turn_id;  // its end still waits to be read
  }
  if (begun) stop_answers(turn_id + 1, 0, true);
}

bool LlmWorker::take_discard() {
  std::lock_guard lock(mutex_);
  return std::exchange(discard_, false);
}

// The user's turn is open again: what comes next belongs to the same question.
void LlmWorker::reopen() {
  if (!session_used_ || session_ == nullptr || failed()) return;
  session_->reopen_turn();
  {
    std::lock_guard lock(mutex_);
    ++stats_.discarded;
  }
  if (last_answer_) finish_answer(*last_answer_, "discarded");
  last_answer_.reset();
  last_heard_.reset();
}

bool LlmWorker::is_interrupted() const {
  std::lock_guard lock(mutex_);
  return interrupted_ && active_ && !flushing_;
}

void LlmWorker::stop_answers(guint64 before_turn, int64_t heard_bytes, bool discard) {
  const bool live = is_live();
  Sounding sounding;
  bool answering, flush;
  {
    std::lock_guard lock(mutex_);
    if (!active_ || flushing_ || interrupting_) return;
    sounding = sounding_;
    answering = answering_;
    const guint64 turn = answering ? answering_turn_ : sounding.turn_id;
    if (turn >= before_turn || (turn == 0 && heard_bytes < 0)) return;
    flush = sounding.turn_id != 0 && live;
    interrupting_ = true;
    discard_ = discard && answering;
    if (answering) {
      interrupted_ = true;
      cancel_.set();
    }
  }
  // The one that runs has not made a sound yet, if the last to sound was another.
  const bool silent = answering && sounding.turn_id != answering_turn_;
  Heard heard{heard_bytes, false};
  if (flush && heard_bytes < 0) heard = silent ? Heard{0, false} : ask_heard(sounding);
  if (heard.complete && !answering) flush = false;
  if (flush) gst_pad_push_event(src_, gst_event_new_flush_start());
  {
    std::lock_guard lock(mutex_);
    interrupting_ = false;
    flush_started_ = flush_started_ || flush;
    sounding_ = {};
    heard_bytes_ = heard.bytes;
    interrupter_ = before_turn;
    if (!answering && discard) {
      reopen_ = true;
    } else if (!answering && heard.bytes >= 0 && !heard.complete) {
      cut_back_ = heard.bytes;
    }
  }
  GST_DEBUG_OBJECT(element_,
                   "interrupted turn %" G_GUINT64_FORMAT ": %" G_GINT64_FORMAT " bytes heard%s",
                   sounding.turn_id, heard.bytes, flush ? ", flushed" : "");
  changed_.notify_all();
}

LlmWorker::Heard LlmWorker::ask_heard(const Sounding& sounding) const {
  QueryPtr query(gst_minicpmo_query_new_heard(sounding.turn_id));
  Heard heard;
  if (!gst_pad_peer_query(src_, query.get())) return heard;
  guint64 samples = 0;
  gboolean complete = FALSE;
  gst_minicpmo_query_get_heard_samples(query.get(), &samples, &complete);
  const gint64 bytes = gst_minicpmo_query_get_heard_bytes(query.get());
  if (complete) return {sounding.text_bytes, true};
  if (bytes >= 0) heard.bytes = std::min(sounding.said_from + bytes, sounding.text_bytes);
  return heard;
}

// Of the task, which pushes nothing else meanwhile.
void LlmWorker::finish_flush() {
  {
    std::lock_guard lock(mutex_);
    if (!std::exchange(flush_started_, false) || flushing_ || !active_) return;
  }
  gst_pad_push_event(src_, gst_event_new_flush_stop(FALSE));
  segment_sent_ = false;
  ensure_started();
}

// Tells applications what the listener did not hear any more.
void LlmWorker::report_cut(const Answer& answer, int64_t heard_bytes) {
  std::string heard = answer.text;
  if (heard_bytes >= 0) heard.resize(std::min(heard.size(), static_cast<size_t>(heard_bytes)));
  const gchar* whole = nullptr;  // whoever told the number may have cut a character
  g_utf8_validate(heard.data(), static_cast<gssize>(heard.size()), &whole);
  heard.resize(static_cast<size_t>(whole - heard.data()));
  {
    std::lock_guard lock(mutex_);
    ++stats_.cut_back;
  }
  GstStructure* fields = gst_structure_new("minicpmo/barge-in", "turn-id", G_TYPE_UINT64,
                                           answer.turn_id, "heard-bytes", G_TYPE_INT64, heard_bytes,
                                           "heard", G_TYPE_STRING, heard.c_str(), nullptr);
  gst_element_post_message(GST_ELEMENT(element_),
                           gst_message_new_element(GST_OBJECT(element_), fields));
}

}  // namespace minicpmo
