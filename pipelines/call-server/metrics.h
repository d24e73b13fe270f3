// Counters for Prometheus. Thread-safe.
#pragma once

#include <memory>
#include <string>

namespace minicpmo::call_server {

class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // minicpmo_calls (gauge), minicpmo_calls_total{end="..."}: why a call ended, a word: "client",
  // "idle", "unconnected", "too-long", "failed", "drained", "slow" (it does not read),
  // "fingerprint" (see certificate.h); others count as "other". minicpmo_call_seconds (histogram):
  // how long it lasted.
  void call_began();
  void call_ended(const std::string& end, double seconds);
  // minicpmo_offers_refused_total{reason="..."}: "token", "origin", "rate", "full", "overload",
  // "draining", "offer"; others count as "other".
  void offer_refused(const std::string& reason);
  // minicpmo_turns_total, minicpmo_turns_interrupted_total, minicpmo_response_seconds (histogram:
  // from the end of a turn as minicpmoturn decides it to the answer's first sound).
  void turn(bool interrupted);
  void response(double seconds);
  // minicpmo_sound_late_total: chunks of answers that came too late to be heard without a gap.
  void sound_late();
  // The exposition format, text/plain; version=0.0.4.
  std::string text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace minicpmo::call_server
