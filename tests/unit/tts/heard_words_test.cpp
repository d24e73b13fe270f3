// Words heard by HeardText against the words that had been said by then, at random moments of
// spoken answers (tools/tiny/evaluate/heard_words.py made the table). HEARD_ANSWERS: another table.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tts/heard_text.h"

namespace minicpmo {
namespace {

struct Chunk {
  int64_t rows = 0;
  size_t text = 0;  // bytes known when it was made
};

struct Answer {
  std::string voice;
  std::string text;
  std::vector<Chunk> chunks;
  std::vector<int64_t> bytes;  // after each word
  std::vector<double> ends;    // of each word, in rows
  int64_t rows = 0;
};

std::vector<Answer> read_answers() {
  const char* other = std::getenv("HEARD_ANSWERS");
  std::ifstream file(other != nullptr ? other : FIXTURES "/heard/held_out.json");
  std::vector<Answer> out;
  for (const auto& entry : nlohmann::json::parse(file)) {
    Answer answer{.voice = entry["voice"], .text = entry["text"], .rows = entry["rows"]};
    for (const auto& chunk : entry["chunks"])
      answer.chunks.push_back({.rows = chunk[0], .text = chunk[1]});
    // Sound without chunks: as if all text came first.
    for (int64_t made = 0; entry["chunks"].empty() && made < answer.rows; made += 25) {
      answer.chunks.push_back(
          {.rows = std::min<int64_t>(25, answer.rows - made), .text = answer.text.size()});
    }
    for (const auto& word : entry["words"]) {
      answer.bytes.push_back(word[0]);
      answer.ends.push_back(word[1]);
    }
    out.push_back(std::move(answer));
  }
  return out;
}

class Errors {
 public:
  void compare(const Answer& answer, int64_t rows, int64_t bytes) {
    const auto words = [](const auto& ends, auto at) {
      return std::upper_bound(ends.begin(), ends.end(), at) - ends.begin();
    };
    const auto error = static_cast<double>(words(answer.bytes, bytes) -
                                           words(answer.ends, static_cast<double>(rows)));
    ++count_;
    exact_ += error == 0 ? 1 : 0;
    within_one_ += std::abs(error) <= 1 ? 1 : 0;
    sum_ += std::abs(error);
    bias_ += error;
    largest_ = std::max(largest_, std::abs(error));
  }
  double within_one() const { return within_one_ / count_; }
  double mean() const { return sum_ / count_; }
  void print(const char* name) const {
    std::printf(
        "%-22s %5.0f moments: exact %.3f, within one word %.3f, mean %.2f words, "
        "bias %+.2f, largest %.0f\n",
        name, count_, exact_ / count_, within_one(), mean(), bias_ / count_, largest_);
  }

 private:
  double count_ = 0, exact_ = 0, within_one_ = 0, sum_ = 0, bias_ = 0, largest_ = 0;
};

constexpr int kMoments = 50;

Errors finished(const std::vector<Answer>& answers, bool model) {
  Errors errors;
  std::mt19937 random(1);
  for (const Answer& answer : answers) {
    if ((answer.voice == "model") != model) continue;
    HeardText heard;
    heard.begin();
    heard.add_text(answer.text);
    heard.add_rows(answer.rows);
    heard.end();
    for (int i = 0; i < kMoments; ++i) {
      const auto rows = static_cast<int64_t>(random() % static_cast<uint64_t>(answer.rows));
      errors.compare(answer, rows, heard.bytes_at(rows));
    }
  }
  return errors;
}

// At moments when only the chunk that is being played and those before it have been made. One
// HeardText per voice, as in a session; `fresh`: one per answer.
Errors unfinished(const std::vector<Answer>& answers, bool model, bool fresh) {
  Errors errors;
  std::mt19937 random(1);
  std::string voice;
  HeardText heard;
  for (const Answer& answer : answers) {
    if ((answer.voice == "model") != model) continue;
    if (fresh || answer.voice != voice) heard = HeardText();
    voice = answer.voice;
    heard.begin();
    size_t known = 0;
    int64_t made = 0;
    for (const Chunk& chunk : answer.chunks) {
      heard.add_text(std::string_view(answer.text).substr(known, chunk.text - known));
      known = chunk.text;
      heard.add_rows(chunk.rows);
      const bool last = &chunk == &answer.chunks.back();
      for (int i = 0; i < kMoments / 4 && !last; ++i) {
        const auto rows = made + static_cast<int64_t>(random() % static_cast<uint64_t>(chunk.rows));
        errors.compare(answer, rows, heard.bytes_at(rows));
      }
      made += chunk.rows;
    }
    heard.end();
  }
  return errors;
}

TEST(HeardWords, OfTheModel) {
  const std::vector<Answer> answers = read_answers();
  ASSERT_GE(answers.size(), 40U);
  const Errors whole = finished(answers, true);
  const Errors part = unfinished(answers, true, false);
  const Errors first = unfinished(answers, true, true);
  whole.print("model, finished");
  part.print("model, unfinished");
  first.print("model, first answer");
  for (const Errors* errors : {&whole, &part, &first}) {
    EXPECT_GE(errors->within_one(), 0.95);
    EXPECT_LE(errors->mean(), 0.5);
  }
}

// Long sentences, other voices and speeds. Unfinished is the worst case: all text known, and no
// row made that is not played at once.
TEST(HeardWords, OfLongSentencesInFourVoices) {
  std::vector<Answer> answers = read_answers();
  std::stable_sort(answers.begin(), answers.end(),
                   [](const Answer& a, const Answer& b) { return a.voice < b.voice; });
  const Errors whole = finished(answers, false);
  const Errors part = unfinished(answers, false, false);
  const Errors first = unfinished(answers, false, true);
  whole.print("long, finished");
  part.print("long, unfinished");
  first.print("long, first answer");
  EXPECT_GE(whole.within_one(), 0.95);
  EXPECT_GE(part.within_one(), 0.8);
  EXPECT_GE(first.within_one(), 0.75);
}

}  // namespace
}  // namespace minicpmo
