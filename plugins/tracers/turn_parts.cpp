// From what passed the pads to parts that follow each other without a hole: marks are put into the
// order of the way, none may lie before the one before it, and a part is the difference of two.
#include <algorithm>

#include "turn.h"

namespace minicpmo::tracers {

namespace {

const Passed* find(const Turn& turn, const PadInfoPtr& pad) {
  const auto found = turn.passed.find(pad.get());
  return found == turn.passed.end() ? nullptr : &found->second;
}

class Marks {
 public:
  explicit Marks(const Turn& turn) : turn_(turn), path_(*turn.path) {}

  Parts make() {
    begin();
    if (!GST_CLOCK_TIME_IS_VALID(parts_.begin)) return std::move(parts_);
    at_ = parts_.begin;
    if (turn_.marked) input();
    if (path_.llm >= 0) {
      if (turn_.marked || turn_.encoded) question();
      language_model();
      answer();
    }
    return std::move(parts_);
  }

 private:
  const PadInfoPtr& pad(int i) const { return path_.pads[static_cast<size_t>(i)]; }
  int size() const { return static_cast<int>(path_.pads.size()); }
  const Passed* passed(int i) const { return i >= 0 && i < size() ? find(turn_, pad(i)) : nullptr; }

  // Where the question of a turn is at the pad `i`: at its end, or at the end of the stream.
  GstClockTime question_at(int i) const {
    if (!turn_.marked) return i >= 0 ? pad(i)->eos : kNever;
    const Passed* found = passed(i);
    return found != nullptr ? found->question : kNever;
  }

  void begin() {
    if (GST_CLOCK_TIME_IS_VALID(turn_.captured)) {
      parts_.begin = turn_.captured;
    } else if (turn_.marked) {
      parts_.begin = question_at(path_.first - 1);
      if (!GST_CLOCK_TIME_IS_VALID(parts_.begin)) parts_.begin = question_at(path_.first);
    } else if (turn_.encoded) {
      if (path_.first > 0) parts_.begin = pad(path_.first - 1)->last_buffer;
    } else {
      parts_.begin = turn_.handed_in;
    }
  }

  void add(const std::string& name, int element, GstClockTime time) {
    if (!GST_CLOCK_TIME_IS_VALID(time)) return;
    Part part{name, &pad(element)->element, at_, std::max(at_, time)};
    if (const Passed* before = name == "queue" ? passed(element - 1) : nullptr) {
      part.queue_buffers = before->queue_buffers;
      part.queue_time = before->queue_time;
    }
    at_ = part.to;
    parts_.list.push_back(std::move(part));
  }

  std::string name_of(int i) const {
    const ElementInfo& element = pad(i)->element;
    if (element.role == Role::kQueue) return "queue";
    if (element.role == Role::kJitter) return "jitter-buffer";
    if (i > path_.vocoder && path_.vocoder >= 0)
      return element.is_kind("Payloader") ? "packetise" : "media-out";
    if (i > path_.first || path_.first < 0) return "other";
    if (element.factory == "netsim") return "network";
    if (i == 0) return element.is_kind("Network") ? "network" : "capture";
    for (int later = i + 1; later < path_.first; ++later)
      if (pad(later)->element.role == Role::kJitter) return "network";
    return "media-in";
  }

  // Capture to the end of the turn.
  void input() {
    for (int i = 0; i < path_.turn && GST_CLOCK_TIME_IS_VALID(turn_.captured); ++i)
      add(name_of(i), i, question_at(i));
    if (path_.turn >= 0) add("endpoint", path_.turn, question_at(path_.turn));
  }

  // To the language model.
  void question() {
    for (int i = path_.turn >= 0 ? path_.turn + 1 : path_.encoder; i < path_.llm; ++i) {
      if (i != path_.encoder) {
        add(name_of(i), i, question_at(i));
        continue;
      }
      // The end of the turn follows its last embeddings, which what is behind may keep for a while.
      const GstClockTime end = question_at(i), encoded = turn_.encode_end;
      const bool worked = GST_CLOCK_TIME_IS_VALID(encoded) && encoded >= at_ && encoded < end;
      add("encode", i, worked ? encoded : end);
    }
  }

  void language_model() {
    add("wait", path_.llm, turn_.prefill_begin);
    add("prefill", path_.llm, turn_.prefill_end);
    if (const Passed* text = passed(path_.llm)) add("decode", path_.llm, text->first);
  }

  void answer() {
    if (path_.speech < 0) return data(path_.llm + 1);
    for (int i = path_.llm; i < path_.speech; ++i) {
      const Passed* text = passed(i);
      if (text == nullptr || turn_.trigger == 0 || text->bursts.size() < turn_.trigger) continue;
      add(i == path_.llm ? "decode-more" : name_of(i), i, text->bursts[turn_.trigger - 1]);
    }
    if (const Passed* codes = passed(path_.speech)) add("speech", path_.speech, codes->first);
    data(path_.speech + 1);
  }

  // The first buffer of the answer, from the pad `from` on.
  void data(int from) {
    const Passed* last = nullptr;
    for (int i = from; i < size(); ++i) {
      const Passed* found = passed(i);
      if (found == nullptr || !GST_CLOCK_TIME_IS_VALID(found->first)) continue;
      if (i != path_.vocoder) {
        add(name_of(i), i, found->first);
      } else if (turn_.speculative) {
        add("vocoder", i, turn_.vocoded);
        add("confirm", i, found->first);
      } else {
        add("vocoder", i, found->first);
      }
      last = i == size() - 1 ? found : nullptr;
    }
    if (last == nullptr && from == size()) last = passed(size() - 1);
    if (last == nullptr || !GST_CLOCK_TIME_IS_VALID(last->done)) return;
    add("sink", size() - 1, last->done);
    if (path_.sink != nullptr) parts_.list.back().element = path_.sink.get();
    parts_.complete = true;
  }

  const Turn& turn_;
  const TurnPath& path_;
  Parts parts_;
  GstClockTime at_ = 0;
};

}  // namespace

void Turn::forget_answer() {
  Turn fresh;
  fresh.id = id;
  fresh.marked = marked;
  fresh.begun = begun;
  fresh.path = path;
  fresh.discarded = discarded;
  fresh.again = again;
  fresh.stages = std::move(stages);
  fresh.encoded = encoded;
  *this = std::move(fresh);
}

Parts parts_of(const Turn& turn) {
  return Marks(turn).make();
}

}  // namespace minicpmo::tracers
