#include "metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <sstream>
#include <vector>

namespace minicpmo::call_server {

namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;

const std::vector<std::string> kEnds = {"client", "idle",    "unconnected", "too-long",
                                        "failed", "drained", "slow",        "fingerprint"};
const std::vector<std::string> kReasons = {"token",    "origin",   "rate", "full",
                                           "overload", "draining", "offer"};

// Counters that differ in a label. All values are there from the start, so that rates can be made
// of their first events; what is not among them is counted as "other": a label made of what a
// client sends would grow without bound.
class Counters {
 public:
  Counters(Registry& registry, const std::string& name, const std::string& help,
           const std::string& label, std::vector<std::string> values)
      : values_(std::move(values)) {
    values_.push_back("other");
    Family<Counter>& family = prometheus::BuildCounter().Name(name).Help(help).Register(registry);
    for (const std::string& value : values_) counters_.push_back(&family.Add({{label, value}}));
  }
  void increment(const std::string& value) {
    const auto found = std::find(values_.begin(), values_.end() - 1, value);
    counters_[found - values_.begin()]->Increment();
  }

 private:
  std::vector<std::string> values_;
  std::vector<Counter*> counters_;  // the registry owns them
};

Counter& counter(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

Gauge& gauge(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

Histogram& histogram(Registry& registry, const char* name, const char* help,
                     const Histogram::BucketBoundaries& boundaries) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, boundaries);
}

}  // namespace

struct Metrics::State {
  Registry registry;
  Gauge& calls = gauge(registry, "minicpmo_calls", "Calls now");
  Counters calls_total{registry, "minicpmo_calls_total", "Calls that have ended", "end", kEnds};
  Histogram& call_seconds = histogram(registry, "minicpmo_call_seconds", "How long calls lasted",
                                      {1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600});
  Counters offers_refused{registry, "minicpmo_offers_refused_total", "Offers that got no answer",
                          "reason", kReasons};
  Counter& turns = counter(registry, "minicpmo_turns_total", "Turns of users");
  Counter& turns_interrupted =
      counter(registry, "minicpmo_turns_interrupted_total", "Turns whose answer was interrupted");
  Counter& late = counter(registry, "minicpmo_sound_late_total",
                          "Chunks of answers that came too late to be heard without a gap");
  Histogram& response_seconds =
      histogram(registry, "minicpmo_response_seconds",
                "From the end of a turn, as minicpmoturn decides it, to the answer's first sound",
                {0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60});
};

Metrics::Metrics() : state_(std::make_unique<State>()) {}
Metrics::~Metrics() = default;

void Metrics::call_began() {
  state_->calls.Increment();
}

void Metrics::call_ended(const std::string& end, double seconds) {
  state_->calls.Decrement();
  state_->calls_total.increment(end);
  state_->call_seconds.Observe(seconds);
}

void Metrics::offer_refused(const std::string& reason) {
  state_->offers_refused.increment(reason);
}

void Metrics::turn(bool interrupted) {
  state_->turns.Increment();
  if (interrupted) state_->turns_interrupted.Increment();
}

void Metrics::response(double seconds) {
  state_->response_seconds.Observe(seconds);
}

void Metrics::sound_late() {
  state_->late.Increment();
}

std::string Metrics::text() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, state_->registry.Collect());
  return out.str();
}

}  // namespace minicpmo::call_server
