#include "metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <thread>
#include <vector>

namespace {

using minicpmo::call_server::Metrics;

std::vector<std::string> lines(const Metrics& metrics) {
  std::vector<std::string> result;
  std::istringstream text(metrics.text());
  for (std::string line; std::getline(text, line);) result.push_back(line);
  return result;
}

void expect_line(const Metrics& metrics, const std::string& line) {
  const auto all = lines(metrics);
  EXPECT_EQ(std::count(all.begin(), all.end(), line), 1) << line << "\n" << metrics.text();
}

TEST(Metrics, AreAllThereFromTheStart) {
  const Metrics metrics;
  for (const char* end : {"client", "idle", "unconnected", "too-long", "failed", "drained"})
    expect_line(metrics, std::string("minicpmo_calls_total{end=\"") + end + "\"} 0");
  for (const char* reason : {"token", "origin", "rate", "full", "overload", "draining", "offer"})
    expect_line(metrics, std::string("minicpmo_offers_refused_total{reason=\"") + reason + "\"} 0");
  for (const char* name : {"minicpmo_calls", "minicpmo_turns_total",
                           "minicpmo_turns_interrupted_total", "minicpmo_response_seconds_count"})
    expect_line(metrics, std::string(name) + " 0");
  for (const char* type : {"minicpmo_calls gauge", "minicpmo_calls_total counter",
                           "minicpmo_turns_total counter", "minicpmo_response_seconds histogram"})
    expect_line(metrics, std::string("# TYPE ") + type);
}

TEST(Metrics, CountCalls) {
  Metrics metrics;
  metrics.call_began();
  metrics.call_began();
  metrics.call_began();
  expect_line(metrics, "minicpmo_calls 3");
  metrics.call_ended("client", 12);
  metrics.call_ended("idle", 70);
  expect_line(metrics, "minicpmo_calls 1");
  expect_line(metrics, "minicpmo_calls_total{end=\"client\"} 1");
  expect_line(metrics, "minicpmo_calls_total{end=\"idle\"} 1");
  expect_line(metrics, "minicpmo_calls_total{end=\"failed\"} 0");
  expect_line(metrics, "minicpmo_call_seconds_count 2");
  expect_line(metrics, "minicpmo_call_seconds_sum 82");
  expect_line(metrics, "minicpmo_call_seconds_bucket{le=\"15\"} 1");
}

TEST(Metrics, CountTurns) {
  Metrics metrics;
  metrics.turn(false);
  metrics.turn(true);
  metrics.response(0.75);
  metrics.response(1.25);
  metrics.response(1000);
  expect_line(metrics, "minicpmo_turns_total 2");
  expect_line(metrics, "minicpmo_turns_interrupted_total 1");
  expect_line(metrics, "minicpmo_response_seconds_bucket{le=\"0.5\"} 0");
  expect_line(metrics, "minicpmo_response_seconds_bucket{le=\"1\"} 1");
  expect_line(metrics, "minicpmo_response_seconds_bucket{le=\"60\"} 2");
  expect_line(metrics, "minicpmo_response_seconds_bucket{le=\"+Inf\"} 3");
  expect_line(metrics, "minicpmo_response_seconds_sum 1002");
}

TEST(Metrics, UnknownWordsMakeNoNewSeries) {
  Metrics metrics;
  const size_t before = lines(metrics).size();
  for (int i = 0; i < 100; ++i) {
    metrics.offer_refused("reason " + std::to_string(i) + "\"\n");
    metrics.call_began();
    metrics.call_ended(std::to_string(i), 1);
  }
  metrics.offer_refused("other");
  EXPECT_EQ(lines(metrics).size(), before);
  expect_line(metrics, "minicpmo_offers_refused_total{reason=\"other\"} 101");
  expect_line(metrics, "minicpmo_calls_total{end=\"other\"} 100");
}

TEST(Metrics, FromManyThreads) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics] {
      for (int i = 0; i < 1000; ++i) {
        metrics.turn(true);
        metrics.response(0.1);
        metrics.offer_refused("rate");
        metrics.call_began();
        if (i % 100 == 0) {
          EXPECT_FALSE(metrics.text().empty());
        }
        metrics.call_ended("client", 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect_line(metrics, "minicpmo_turns_interrupted_total 4000");
  expect_line(metrics, "minicpmo_response_seconds_count 4000");
  expect_line(metrics, "minicpmo_offers_refused_total{reason=\"rate\"} 4000");
  expect_line(metrics, "minicpmo_calls_total{end=\"client\"} 4000");
  expect_line(metrics, "minicpmo_calls 0");
}

}  // namespace
