// The small checkpoint's speech model and what tests do with it.
#pragma once

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../parity/golden.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/tokenizer.h"
#include "tts/speech_model.h"

namespace minicpmo {

template <class T>
T must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message + " " + result.error().detail);
  return std::move(result).value();
}

inline std::shared_ptr<const Tokenizer> speech_tokenizer() {
  static const auto tokenizer = must(load_wordpiece_tokenizer(
      std::string(MODEL_DIR) + "/assets/chattts_tokenizer/tokenizer.json"));
  return tokenizer;
}

// Loaded once per type and process.
inline std::shared_ptr<const SpeechModelWeights> speech_weights(at::ScalarType type = at::kFloat) {
  static std::map<at::ScalarType, std::shared_ptr<const SpeechModelWeights>> loaded;
  auto& weights = loaded[type];
  if (!weights) {
    const auto checkpoint = must(Checkpoint::open(MODEL_DIR));
    weights = must(load_speech_model(*checkpoint, must(read_config(MODEL_DIR)), speech_tokenizer(),
                                     type, {}, CancelFlag()));
  }
  return weights;
}

inline HostTensor speaker_tensor(const std::vector<float>& values) {
  const auto* data = reinterpret_cast<const std::byte*>(values.data());
  std::vector<std::byte> bytes(data, data + values.size() * sizeof(float));
  return HostTensor(DataType::kFloat32, {1, static_cast<int64_t>(values.size())}, std::move(bytes));
}

// The checkpoint's default speaker vector.
inline std::vector<float> default_speaker() {
  std::ifstream file(std::string(MODEL_DIR) + "/assets/default_speaker.f32", std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

inline std::vector<CodeRow> to_code_rows(const std::vector<int64_t>& flat) {
  std::vector<CodeRow> rows(flat.size() / kBooks);
  for (size_t i = 0; i < rows.size() * kBooks; ++i) {
    rows[i / kBooks][i % kBooks] = static_cast<uint16_t>(flat[i]);
  }
  return rows;
}

inline std::vector<CodeRow> code_rows(const CodeChunk& chunk) {
  const auto bytes = must(chunk.codes->host_bytes());
  std::vector<CodeRow> rows(static_cast<size_t>(chunk.codes->rows()));
  if (!rows.empty()) std::memcpy(rows.data(), bytes.data(), bytes.size());
  return rows;
}

// What a whole answer came to.
struct Speech {
  std::vector<CodeRow> codes;
  std::vector<int64_t> rows;         // per chunk
  std::vector<bool> segment_starts;  // per chunk
  bool last = false;
};

inline bool take(Speech& speech, SpeechSession& session) {
  const CancelFlag cancel;
  const auto chunk = must(session.step(cancel));
  if (!chunk) return false;
  if (speech.last) throw std::runtime_error("a chunk after the last one");
  const auto rows = code_rows(*chunk);
  speech.codes.insert(speech.codes.end(), rows.begin(), rows.end());
  speech.rows.push_back(std::ssize(rows));
  speech.segment_starts.push_back(chunk->segment_start);
  speech.last = chunk->last;
  return true;
}

// Speaks bursts as an element does: steps after each until it asks for more.
inline Speech speak(SpeechSession& session, const HostTensor& speaker,
                    const std::vector<std::string>& bursts, const SpeechModelOptions& options) {
  Speech speech;
  if (const auto started = session.start(speaker, options); !started.ok()) {
    throw std::runtime_error(started.error().message);
  }
  for (const std::string& burst : bursts) {
    session.push_text(burst);
    while (take(speech, session)) {
    }
  }
  session.end_text();
  while (take(speech, session)) {
  }
  return speech;
}

}  // namespace minicpmo
