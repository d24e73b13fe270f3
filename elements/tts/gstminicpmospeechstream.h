// The working half of minicpmotts: text bursts in, chunks of codes out, all on the thread that
// brings them.
#pragma once

#include <gst/gst.h>

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/gst_ptr.h"
#include "common/gstminicpmoelement.h"
#include "common/gstminicpmotextinput.h"
#include "common/stage.h"
#include "tts/heard_text.h"

namespace minicpmo {

struct SpeechStats {
  guint64 answers = 0;
  guint64 bursts = 0;
  guint64 chunks = 0;
  guint64 codes = 0;            // rows; one is 512 samples at 24 kHz
  GstClockTime model_time = 0;  // in the model
  GstClockTime gpu_time = 0;    // of it, on a GPU
};

class SpeechStream {
 public:
  // Neither is owned; both outlive the stream.
  SpeechStream(GstMiniCpmoElement* element, GstPad* src);

  // On the loader's thread; used after wait_ready() only.
  void open(std::unique_ptr<SpeechModel> session);
  // Without streaming threads.
  void close();

  // From any thread; take effect with the next answer.
  template <class Change>
  void change_options(Change&& change) {
    std::lock_guard lock(mutex_);
    change(options_);
  }
  SpeechModelOptions options() const;
  void set_speaker_file(const char* path);  // nullptr: none
  std::string speaker_file() const;
  SpeechStats stats() const;
  // Answers minicpmo/heard: what the vocoder counts in samples, in bytes of text.
  bool heard(GstQuery* query) const;

  // Under the sink pad's stream lock. Each returns false when the event could not be sent on.
  GstFlowReturn chain(GstBuffer* buffer);
  bool stream_start(EventPtr event);
  bool segment(EventPtr event);
  bool gap(EventPtr event);
  bool speaker(EventPtr event);
  // Says what is left of the answer, then sends the event on: answer-end and EOS.
  bool answer_end(EventPtr event);
  bool other(EventPtr event);
  // After a flush: what was being said is dropped. `stopped`: the element went down, the stream is
  // over.
  void reset(bool stopped);

 private:
  GstFlowReturn take_text(GstBuffer* buffer);
  GstFlowReturn take_words(std::string_view text, bool last);
  GstFlowReturn burst(std::string_view text, GstBuffer* from);
  GstFlowReturn begin_answer(GstBuffer* from);
  GstFlowReturn step();
  GstFlowReturn end_answer();
  GstFlowReturn finish_answer();
  GstFlowReturn push_chunk(const CodeChunk& chunk);
  GstFlowReturn remember(GstFlowReturn flow);
  Result<TensorPtr> find_speaker() const;
  Result<TensorPtr> read_speaker(const std::string& path, gint64 size) const;
  void report_repaired();
  void ensure_started();

  GstMiniCpmoElement* const element_;
  GstPad* const src_;
  std::unique_ptr<SpeechModel> session_;  // changed under mutex_

  mutable std::mutex mutex_;  // guards the next five
  SpeechModelOptions options_;
  std::string speaker_file_;
  SpeechStats stats_;
  HeardText heard_;         // of the last answer
  guint64 heard_turn_ = 0;  // its turn

  // Under the stream lock:
  GstSegment input_;   // as it came
  GstSegment output_;  // in time
  bool stream_started_ = false;
  bool segment_sent_ = false;
  guint32 segment_seqnum_ = GST_SEQNUM_INVALID;
  GstFlowReturn flow_ = GST_FLOW_OK;
  Utf8Repair utf8_;
  WordPieces pieces_;
  bool warned_repaired_ = false;
  std::vector<float> speaker_;  // of the last speaker event
  bool speaker_fresh_ = false;  // no answer has begun since
  bool session_used_ = false;
  bool active_ = false;    // an answer is being said
  bool said_all_ = false;  // ... and its last chunk has come
  bool first_chunk_ = true;
  bool segment_start_ = false;  // to be marked on the next chunk that has rows
  guint64 turn_id_ = 0;
  guint chunk_ = 0;
  GstClockTime capture_time_ = GST_CLOCK_TIME_NONE;
  GstClockTime answer_pts_ = 0;
  guint64 answer_rows_ = 0;
  GstClockTime next_pts_ = 0;
};

}  // namespace minicpmo
