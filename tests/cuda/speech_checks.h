// What the speech model's runner has to do, on a GPU (speech_runner_test.cpp) and on the CPU
// (emulation/speech_runner_test.cpp). The oracle is the ATen code of the same model, and for the
// draw of codes the host's own.
#pragma once

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../parity/golden.h"
#include "engine/stage_scope.h"
#include "tts/speech_model.h"
#include "value_of.h"

namespace minicpmo::speech_checks {

using WeightsPtr = std::shared_ptr<const SpeechModelWeights>;
using Outcome = cuda::SpeechRunner::Outcome;

inline std::string small_model() {
  const char* const path = std::getenv("MINICPMO_TEST_MODEL");
  return path ? path : MODEL_DIR;
}

inline WeightsPtr load_small(const StageDevice& device) {
  const std::string directory = small_model();
  return value_of(load_speech_model(
      *value_of(Checkpoint::open(directory)), value_of(read_config(directory)),
      value_of(load_wordpiece_tokenizer(directory + "/assets/chattts_tokenizer/tokenizer.json")),
      device, {}, CancelFlag()));
}

// The same model three times: float32 and bfloat16 by ATen, and with the runner.
struct Models {
  explicit Models(const StageDevice& device)
      : exact(load_small({device.device, at::kFloat})),
        coarse(load_small({device.device, at::kBFloat16})),
        runner(load_small(device)) {}
  WeightsPtr exact, coarse, runner;
};

inline HostTensor default_speaker() {
  std::ifstream file(small_model() + "/assets/default_speaker.f32", std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
  return HostTensor(DataType::kFloat32, {1, static_cast<int64_t>(bytes.size() / sizeof(float))},
                    std::vector<std::byte>(data, data + bytes.size()));
}

// A decoder on a stream of its own.
struct Voice {
  explicit Voice(const WeightsPtr& weights, int64_t max_codes = 400)
      : stream(weights->device, true), scope(stream), decoder(weights, max_codes, stream) {
    const HostTensor tensor = default_speaker();
    const auto bytes = value_of(tensor.host_bytes());
    at::Tensor speaker = at::zeros({1, tensor.dims()[1]});
    std::memcpy(speaker.mutable_data_ptr<float>(), bytes.data(), bytes.size());
    decoder.set_speaker(speaker);
    decoder.begin_segment();
  }
  // Logits of the runner's last step.
  std::vector<float> logits() const {
    const SpeechConfig& config = weights()->config;
    const auto options = at::TensorOptions(at::kFloat).device(weights()->device.device);
    const at::Tensor tensor = at::from_blob(const_cast<float*>(decoder.runner()->logits()),
                                            {kBooks * config.audio_tokens}, options)
                                  .to(at::kCPU)
                                  .contiguous();
    const float* const data = tensor.const_data_ptr<float>();
    return {data, data + tensor.numel()};
  }
  const WeightsPtr& weights() const { return decoder.weights(); }

  StageStream stream;
  StreamScope scope;
  SpeechDecoder decoder;
};

// [Stts], the speaker, and text tokens.
inline std::vector<int32_t> text_ids(const SpeechModelWeights& weights, size_t tokens,
                                     int32_t first = 300) {
  std::vector<int32_t> ids = {weights.start_token,
                              static_cast<int32_t>(weights.config.speaker_token)};
  for (size_t i = 0; i < tokens; ++i) ids.push_back(first + static_cast<int32_t>(i * 7 % 200));
  return ids;
}

inline CodeRow some_row(size_t i) {
  const auto code = [&](size_t factor) { return static_cast<uint16_t>(i * factor % 625); };
  return {code(37), code(101), code(11), code(263)};
}

inline cuda::SpeechCallSpec call_of(int steps, const CodeRow& last, double temperature,
                                    uint64_t seed = 1, uint64_t counter = 0) {
  cuda::SpeechCallSpec call;
  call.text_tokens = 25;
  call.steps = steps;
  call.last = last;
  const float t = static_cast<float>(temperature);
  call.sampling.temperature = {0.1F * t, 0.3F * t, 0.1F * t, 0.3F * t};
  call.sampling.seed = seed;
  call.sampling.stream = 3;
  call.sampling.counter = counter;
  return call;
}

struct Errors {
  double coarse = 0, runner = 0;  // relative, against float32
};

// The same forced codes through all three; `prepare` fills the segment.
template <class Prepare>
Errors compare(const Models& models, int steps, Prepare&& prepare) {
  Voice exact(models.exact), coarse(models.coarse), runner(models.runner);
  for (Voice* voice : {&exact, &coarse, &runner}) prepare(voice->decoder);
  EXPECT_NE(runner.decoder.runner(), nullptr);
  Errors worst;
  std::array<CodeRow, 1> row;
  for (int i = 0; i < steps; ++i) {
    const CodeRow last = some_row(static_cast<size_t>(i));
    const auto expected = exact.decoder.step(last, 25);
    worst.coarse = std::max(worst.coarse, relative_error(coarse.decoder.step(last, 25), expected));
    const Outcome outcome = value_of(runner.decoder.speak(call_of(1, last, 0), CancelFlag(), row));
    const auto logits = runner.logits();
    worst.runner = std::max(worst.runner, relative_error(logits, expected));
    EXPECT_EQ(runner.decoder.position(), exact.decoder.position());
    EXPECT_EQ(outcome.count, 1);
    // The best code, unless others are as good within the precision.
    for (size_t book = 0; book < kBooks; ++book) {
      const auto scores = expected.subspan(book * 626, 625);
      const float best = scores[static_cast<size_t>(argmax(scores))];
      EXPECT_GE(scores[row[0][book]], best - 0.1F * std::abs(best)) << "step " << i;
    }
  }
  return worst;
}

inline Errors first_segment(const Models& models, int steps) {
  return compare(models, steps, [&](SpeechDecoder& d) {
    d.prefill_text(text_ids(*models.exact, 10), 0);
    const auto ids = text_ids(*models.exact, 10, 400);
    d.prefill_text(std::span(ids).subspan(2), 12);
  });
}

// Steps around the position from which ten more slots, zeros among them, are seen.
inline Errors continuation(const Models& models, int steps) {
  return compare(models, steps, [&](SpeechDecoder& d) {
    d.prefill_text(text_ids(*models.exact, 5), 0);
    std::vector<CodeRow> codes;
    for (size_t i = 0; i < 46; ++i) codes.push_back(some_row(i + 7));
    d.prefill_codes(codes, 5);
    EXPECT_EQ(d.position(), 349);
    d.prefill_text(text_ids(*models.exact, 10, 400), 0);
  });
}

// More text at once than the graph of a slice takes.
inline Errors long_text(const Models& models, int steps) {
  return compare(models, steps, [&](SpeechDecoder& d) {
    d.prefill_text(text_ids(*models.exact, 40), 0);
    const auto ids = text_ids(*models.exact, 15, 400);
    d.prefill_text(std::span(ids).subspan(1), 42);
  });
}

inline std::vector<CodeRow> run(Voice& voice, const cuda::SpeechCallSpec& call, Outcome& outcome) {
  std::vector<CodeRow> rows(static_cast<size_t>(call.steps));
  outcome = value_of(voice.decoder.speak(call, CancelFlag(), rows));
  rows.resize(static_cast<size_t>(outcome.count));
  return rows;
}

// The same steps in calls of the given lengths: the same codes, bit for bit the same logits.
inline void expect_chain(const WeightsPtr& weights, const std::vector<int>& lengths,
                         double temperature) {
  Voice whole(weights), parts(weights);
  int all = 0;
  for (int n : lengths) all += n;
  for (Voice* voice : {&whole, &parts}) voice->decoder.prefill_text(text_ids(*weights, 10), 0);
  auto call = call_of(all, {}, temperature, 5);
  call.min_steps = all;
  Outcome outcome;
  const auto expected = run(whole, call, outcome);
  EXPECT_EQ(outcome.counter, temperature > 0 ? 4U * static_cast<unsigned>(all) : 0U);
  std::vector<CodeRow> rows;
  uint64_t counter = 0;
  for (int n : lengths) {
    auto part = call_of(n, rows.empty() ? CodeRow{} : rows.back(), temperature, 5, counter);
    part.min_steps = n;
    const auto more = run(parts, part, outcome);
    rows.insert(rows.end(), more.begin(), more.end());
    counter = outcome.counter;
  }
  EXPECT_EQ(rows, expected);
  EXPECT_EQ(rows.size(), static_cast<size_t>(all));
  EXPECT_EQ(parts.logits(), whole.logits());
  EXPECT_EQ(parts.decoder.position(), whole.decoder.position());
}

// Every code is the one that the host draws from the same logits with the same numbers.
inline void expect_host_draws(const WeightsPtr& weights, int steps) {
  Voice voice(weights);
  voice.decoder.prefill_text(text_ids(*weights, 10), 0);
  Philox random(9, 3);
  CodeRow last{};
  std::set<CodeRow> seen;
  for (int i = 0; i < steps; ++i) {
    const bool first = voice.decoder.at_start();
    const uint64_t before = random.counter();
    auto call = call_of(1, last, 1, 9, before);
    call.min_steps = i % 2;
    Outcome outcome;
    const auto rows = run(voice, call, outcome);
    auto logits = voice.logits();
    const CodeRow expected = choose_codes(logits, {}, first, i % 2 == 0, random);
    EXPECT_EQ(outcome.counter, random.counter());
    const bool ends = std::find(expected.begin(), expected.end(), 625) != expected.end();
    ASSERT_EQ(outcome.ended, ends) << "step " << i;
    if (ends) break;
    ASSERT_EQ(rows.at(0), expected) << "step " << i;
    seen.insert(last = rows[0]);
  }
  EXPECT_GT(seen.size(), 2U);
}

// A seed whose numbers, at so high a temperature that all codes are equal, draw the end code first
// in step `step`.
inline uint64_t seed_that_ends_in(int step) {
  for (uint64_t seed = 1;; ++seed) {
    Philox random(seed, 3);
    int i = 0;
    for (bool end = false; !end && i <= step; ++i) {
      for (int64_t book = 0; book < kBooks; ++book) {
        const float u = random.uniform();
        end = end || u > 625.2F / 626;
        if (u > 624.8F / 626 && u < 625.2F / 626) i = step + 1;  // too close to tell
      }
      if (end && i == step) return seed;
    }
  }
}

inline void expect_end(const WeightsPtr& weights, int step, int steps) {
  auto call = call_of(steps, {}, 1e7, seed_that_ends_in(step));
  call.sampling.top_k = 0;
  call.sampling.top_p = 1;
  call.min_steps = step;
  Voice voice(weights);
  voice.decoder.prefill_text(text_ids(*weights, 10), 0);
  Outcome outcome;
  const auto rows = run(voice, call, outcome);
  EXPECT_TRUE(outcome.ended);
  EXPECT_EQ(outcome.count, step);
  EXPECT_EQ(outcome.counter, 4U * static_cast<unsigned>(step + 1));
  EXPECT_EQ(voice.decoder.position(), 302 + step + 1);
  voice.decoder.rewind(302);
  call.min_steps = step + 1;  // barred: the last code of all is taken instead
  const auto barred = run(voice, call, outcome);
  ASSERT_GT(outcome.count, step);
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), barred.begin()));
}

inline void expect_cancelled(const WeightsPtr& weights, int steps) {
  Voice voice(weights);
  const auto speak = [&] {
    voice.decoder.begin_segment();
    voice.decoder.prefill_text(text_ids(*weights, 10), 0);
    Outcome outcome;
    return run(voice, call_of(steps, {}, 1), outcome);
  };
  const auto expected = speak();
  CancelFlag cancel;
  cancel.set();
  std::vector<CodeRow> rows(64);
  const auto result = voice.decoder.speak(call_of(25, expected.back(), 1), cancel, rows);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(speak(), expected);
}

inline void expect_refused(const WeightsPtr& weights) {
  Voice voice(weights, 300);
  cuda::SpeechRunner& runner = *voice.decoder.runner();
  std::vector<CodeRow> rows(64);
  const auto refused = [&](int position, int steps, const CodeRow& last, size_t room) {
    auto call = call_of(steps, last, 1);
    call.position = position;
    const auto result = runner.speak(call, CancelFlag(), std::span(rows).first(room));
    return !result.ok() && result.error().code == ErrorCode::kFailed;
  };
  EXPECT_TRUE(refused(302, 0, {}, 64));
  EXPECT_TRUE(refused(302, 65, {}, 64));
  EXPECT_TRUE(refused(302, 5, {}, 4));
  EXPECT_TRUE(refused(301, 1, {}, 64));
  EXPECT_TRUE(refused(602, 2, {}, 64));
  EXPECT_TRUE(refused(310, 1, {0, 0, 626, 0}, 64));
  const std::vector<int32_t> good(10, 5), bad = {5, 800}, negative = {-1};
  EXPECT_FALSE(runner.prefill_text(good, 293).ok());
  EXPECT_FALSE(runner.prefill_text(good, -1).ok());
  EXPECT_FALSE(runner.prefill_text(bad, 0).ok());
  EXPECT_FALSE(runner.prefill_text(negative, 0).ok());
  EXPECT_TRUE(runner.prefill_text(good, 292).ok());
  Outcome outcome;
  voice.decoder.rewind(601);
  EXPECT_EQ(run(voice, call_of(2, {}, 0), outcome).size(), 2U);  // the last rows of the cache
}

// A whole answer; `early`: all text is there before the first call.
inline std::vector<CodeRow> answer(const WeightsPtr& weights, const SpeechModelOptions& options,
                                   int words, bool early, int64_t* ahead = nullptr) {
  SpeechSession session(weights);
  if (!session.start(default_speaker(), options).ok()) throw std::runtime_error("start");
  std::vector<CodeRow> codes;
  const auto take = [&] {
    while (true) {
      const auto chunk = value_of(session.step(CancelFlag()));
      if (!chunk) return;
      const auto bytes = value_of(chunk->codes->host_bytes());
      const size_t before = codes.size();
      codes.resize(before + static_cast<size_t>(chunk->codes->rows()));
      if (!bytes.empty()) std::memcpy(codes.data() + before, bytes.data(), bytes.size());
    }
  };
  const char* const some[] = {"the sun", " is red", " and the", " sky is", " blue,"};
  session.push_text("");
  for (int i = 0; i < words; ++i) {
    session.push_text(some[i % 5]);
    if (!early) take();
  }
  session.end_text();
  take();
  if (ahead != nullptr) *ahead = session.codes_ahead();
  return codes;
}

// Steps ahead of the text change nothing; returns how many codes were made so.
inline int64_t expect_same_answers(const WeightsPtr& weights, const SpeechModelOptions& options,
                                   int words) {
  int64_t ahead = 0, none = 0;
  const auto late = answer(weights, options, words, false, &ahead);
  const auto early = answer(weights, options, words, true, &none);
  EXPECT_EQ(late, early);
  EXPECT_GT(late.size(), 9U);
  EXPECT_EQ(none, 0);
  return ahead;
}

}  // namespace minicpmo::speech_checks
