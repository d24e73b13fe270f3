#include "turn/endpointing.h"

#include <algorithm>

namespace minicpmo {

std::vector<Decision> Endpointing::step(std::span<const float> probabilities) {
  Decisions out;
  for (const float probability : probabilities) window(probability, out);
  return out;
}

std::vector<Decision> Endpointing::start_now() {
  Decisions out;
  if (!in_turn_) {
    blocked_ = false;
    start(position_ - run_, 0, out);
  }
  return out;
}

std::vector<Decision> Endpointing::end_now() {
  Decisions out;
  if (in_turn_) end(EndReason::kRequest, 0, out);
  return out;
}

std::vector<Decision> Endpointing::cancel_now() {
  Decisions out;
  if (in_turn_) close(Decision::Kind::kCancel, EndReason::kRequest, 0, out);
  return out;
}

std::vector<Decision> Endpointing::finish() {
  Decisions out;
  if (in_turn_) end(EndReason::kStream, 0, out);
  voiced_ = false;
  blocked_ = false;
  run_ = 0;
  floor_ = position_;
  return out;
}

uint64_t Endpointing::padded(uint64_t position) const {
  return std::max(floor_, position - std::min(position, settings_.padding));
}

uint64_t Endpointing::keep_from() const {
  return padded(position_ - run_);
}

void Endpointing::hear(float probability) {
  position_ += kWindow;
  const float release = std::min(settings_.threshold, settings_.release_threshold);
  voiced_ = probability >= (voiced_ ? release : settings_.threshold);
  if (!voiced_) blocked_ = false;
  if (voiced_ && !blocked_) {
    run_ += kWindow;
    last_voiced_end_ = position_;
  } else {
    run_ = 0;
  }
}

void Endpointing::window(float probability, Decisions& out) {
  hear(probability);
  if (!in_turn_) {
    if (run_ > 0 && run_ >= settings_.min_speech) start(position_ - run_, probability, out);
    return;
  }
  if (run_ > 0) {
    voiced_in_turn_ += kWindow;
    if (speculative_) {
      speculative_ = false;
      out.push_back({Decision::Kind::kResume, position_, 0, last_voiced_end_, probability});
    }
    if (voiced_in_turn_ >= settings_.interrupt_after) interrupt(out, probability);
  }
  const uint64_t silence = position_ - last_voiced_end_;
  if (run_ == 0 && silence >= settings_.silence) {
    end(EndReason::kSilence, probability, out);
  } else if (settings_.max_turn > 0 && position_ - turn_begin_ >= settings_.max_turn) {
    end(EndReason::kMaxTurn, probability, out);
  } else if (run_ == 0 && !speculative_ && settings_.speculative_after > 0 &&
             silence >= settings_.speculative_after &&
             voiced_in_turn_ >= settings_.min_turn_speech) {
    interrupt(out, probability);
    speculative_ = true;
    speculative_at_ = position_;
    out.push_back({Decision::Kind::kSpeculativeEnd, position_, 0, last_voiced_end_, probability});
  }
}

void Endpointing::start(uint64_t speech, float probability, Decisions& out) {
  in_turn_ = true;
  speculative_ = false;
  interrupted_ = false;
  turn_begin_ = padded(speech);
  voiced_in_turn_ = run_;
  last_voiced_end_ = position_;
  if (voiced_in_turn_ >= settings_.interrupt_after) interrupt(out, probability);
  out.push_back({Decision::Kind::kStart, position_, turn_begin_, speech, probability});
}

void Endpointing::interrupt(Decisions& out, float probability) {
  if (interrupted_) return;
  interrupted_ = true;
  out.push_back({Decision::Kind::kInterrupt, position_, 0, last_voiced_end_, probability});
}

void Endpointing::end(EndReason reason, float probability, Decisions& out) {
  Decision::Kind kind = Decision::Kind::kEnd;
  if (reason != EndReason::kRequest && voiced_in_turn_ < settings_.min_turn_speech) {
    kind = Decision::Kind::kCancel;
  } else {
    interrupt(out, probability);
  }
  close(kind, reason, probability, out);
}

void Endpointing::close(Decision::Kind kind, EndReason reason, float probability, Decisions& out) {
  out.push_back({kind, position_, 0, last_voiced_end_, probability, reason});
  in_turn_ = false;
  floor_ = speculative_ ? speculative_at_ : position_;
  speculative_ = false;
  blocked_ = voiced_;
  run_ = 0;
}

}  // namespace minicpmo
