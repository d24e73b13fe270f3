#include "tts/speech_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tiny_speech.h"

namespace minicpmo {
namespace {

constexpr CodeRow kEndRow = {1, 2, 3, 625};
const std::vector<std::string> kBursts = {"the", " sun", " is", " red", "."};  // under ten tokens

class Session : public testing::Test {
 protected:
  SpeechSession session{speech_weights()};
  HostTensor speaker = speaker_tensor(Golden("q01_cap").floats("llm.spk_hidden"));
  CancelFlag cancel;
  int steps = 0;

  // Rows that never end; the logits' barred ends are noted.
  void never_end() {
    session.set_code_hook([this](std::span<const float>, const CodeRow&) {
      const auto n = static_cast<uint16_t>(++steps % 600);
      return CodeRow{n, n, n, n};
    });
  }
  void end_at(int step) {
    session.set_code_hook([this, step](std::span<const float>, const CodeRow&) {
      return ++steps == step ? kEndRow : CodeRow{1, 2, 3, 4};
    });
  }
  Speech say(const std::vector<std::string>& bursts,
             SpeechModelOptions options = {.temperature = 0}) {
    return speak(session, speaker, bursts, options);
  }
};

TEST_F(Session, EndsWithTheRowThatAnyBookEnds) {
  end_at(18);
  const Speech speech = say(kBursts);
  EXPECT_EQ(speech.rows, std::vector<int64_t>{17});
  EXPECT_TRUE(speech.last);
  EXPECT_EQ(steps, 18);
}

TEST_F(Session, EachBookMayEnd) {
  for (size_t book = 0; book < 4; ++book) {
    steps = 0;
    session.set_code_hook([&](std::span<const float>, const CodeRow&) {
      CodeRow row = {1, 2, 3, 4};
      if (++steps == 12) row[book] = 625;
      return row;
    });
    EXPECT_EQ(say(kBursts).rows, std::vector<int64_t>{11});
  }
}

TEST_F(Session, EndIsBarredInTheFirstTenStepsOfEveryCall) {
  std::vector<bool> barred;
  session.set_code_hook([&](std::span<const float> logits, const CodeRow&) {
    const bool all = std::isinf(logits[625]) && std::isinf(logits[626 + 625]) &&
                     std::isinf(logits[2 * 626 + 625]) && std::isinf(logits[3 * 626 + 625]);
    const bool none = std::isfinite(logits[625]) && std::isfinite(logits[3 * 626 + 625]);
    EXPECT_NE(all, none);
    barred.push_back(all);
    return CodeRow{1, 2, 3, 4};
  });
  say(kBursts, {.temperature = 0, .max_codes = 60});
  ASSERT_EQ(barred.size(), 60U);
  for (size_t i = 0; i < barred.size(); ++i) EXPECT_EQ(barred[i], i % 25 < 10) << i;
}

TEST_F(Session, ChunksAreUint16RowsOfFour) {
  ASSERT_TRUE(session.start(speaker, {.temperature = 0}).ok());
  for (const auto& burst : kBursts) session.push_text(burst);
  session.end_text();
  const auto chunk = must(session.step(cancel));
  ASSERT_TRUE(chunk);
  EXPECT_EQ(chunk->codes->type(), DataType::kUInt16);
  EXPECT_EQ(chunk->codes->dims(), (std::vector<int64_t>{25, 4}));
  for (const CodeRow& row : code_rows(*chunk)) {
    for (uint16_t code : row) EXPECT_LE(code, 624);
  }
}

TEST_F(Session, MaxCodesIsExactAndUpstreamOverruns) {
  never_end();
  EXPECT_EQ(say(kBursts, {.temperature = 0, .max_codes = 30}).rows, (std::vector<int64_t>{25, 5}));
  EXPECT_EQ(say(kBursts, {.temperature = 0, .max_codes = 1}).rows, (std::vector<int64_t>{1}));
  const Speech upstream =
      say(kBursts, {.temperature = 0, .max_codes = 50, .compatibility = Compatibility::kUpstream});
  EXPECT_EQ(upstream.rows, (std::vector<int64_t>{25, 25, 25}));
  EXPECT_TRUE(upstream.last);
}

TEST_F(Session, ContinuationSegmentIsMarked) {
  session.set_code_hook([](std::span<const float> logits, const CodeRow&) {
    return std::isfinite(logits[625]) ? kEndRow : CodeRow{1, 2, 3, 4};  // ends as soon as it may
  });
  const Speech speech = say({"one two three", " four five six seven eight nine ten. Eleven"});
  // Call 1 ends early with ten tokens read; the rest is a continuation.
  ASSERT_EQ(speech.rows.size(), 2U);
  EXPECT_FALSE(speech.segment_starts[0]);
  EXPECT_TRUE(speech.segment_starts[1]);
  EXPECT_TRUE(speech.last);
}

TEST_F(Session, LongTextMakesSegmentsAndCodesStayInRange) {
  end_at(-1);
  session.set_code_hook([](std::span<const float> logits, const CodeRow& row) {
    return std::isfinite(logits[625]) ? kEndRow : row;
  });
  std::string text;
  for (int i = 0; i < 60; ++i) text += "The friendly queen takes the train. ";
  const Speech speech = say({text});
  EXPECT_TRUE(speech.last);
  EXPECT_GT(std::count(speech.segment_starts.begin(), speech.segment_starts.end(), true), 2);
  for (const CodeRow& row : speech.codes) {
    for (uint16_t code : row) ASSERT_LE(code, 624);
  }
}

TEST_F(Session, GreedyDoesNotDependOnTheSeed) {
  const auto a = say(kBursts, {.temperature = 0, .seed = 1, .max_codes = 50});
  const auto b = say(kBursts, {.temperature = 0, .seed = 2, .max_codes = 50});
  EXPECT_EQ(a.codes, b.codes);
  ASSERT_FALSE(a.codes.empty());
}

TEST_F(Session, TheCheckpointAsksForGreedy) {
  const auto a = say(kBursts, {.max_codes = 50});
  const auto b = say(kBursts, {.temperature = 0, .max_codes = 50});
  EXPECT_EQ(a.codes, b.codes);
}

TEST_F(Session, ASeedRepeatsItself) {
  const SpeechModelOptions options{.temperature = 1, .seed = 7, .max_codes = 50};
  const auto first = say(kBursts, options), second = say(kBursts, options);
  EXPECT_NE(first.codes, second.codes);  // another answer, other random numbers
  session.reset();
  EXPECT_EQ(say(kBursts, options).codes, first.codes);
  EXPECT_EQ(say(kBursts, options).codes, second.codes);
  SpeechSession other(speech_weights());
  EXPECT_EQ(speak(other, speaker, kBursts, options).codes, first.codes);
  session.reset();
  EXPECT_NE(say(kBursts, {.temperature = 1, .seed = 8, .max_codes = 50}).codes, first.codes);
}

TEST_F(Session, SteppingLateGivesTheSameCodes) {
  const auto stepped = say(kBursts, {.temperature = 0, .max_codes = 75});
  ASSERT_TRUE(session.start(speaker, {.temperature = 0, .max_codes = 75}).ok());
  for (const auto& burst : kBursts) session.push_text(burst);
  session.end_text();
  Speech queued;
  while (take(queued, session)) {
  }
  EXPECT_EQ(queued.codes, stepped.codes);
  EXPECT_EQ(queued.rows, stepped.rows);
}

// Steps ahead of the text against the same calls without (a hook that changes nothing).
class RunAhead : public Session {
 protected:
  Speech in_order(const std::vector<std::string>& bursts, const SpeechModelOptions& options) {
    SpeechSession other(speech_weights());
    other.set_code_hook([](std::span<const float>, const CodeRow& row) { return row; });
    const Speech speech = speak(other, speaker, bursts, options);
    EXPECT_EQ(other.codes_ahead(), 0);
    return speech;
  }
  void expect_same(const std::vector<std::string>& bursts, const SpeechModelOptions& options) {
    session.reset();
    const Speech ahead = say(bursts, options), expected = in_order(bursts, options);
    EXPECT_EQ(ahead.codes, expected.codes);
    EXPECT_EQ(ahead.rows, expected.rows);
    EXPECT_EQ(ahead.segment_starts, expected.segment_starts);
    EXPECT_TRUE(ahead.last);
  }
  static std::vector<std::string> words(int count) {
    std::vector<std::string> bursts = {""};
    const char* const some[] = {" the sun", " is red", " and the", " sky is", " blue,"};
    for (int i = 0; i < count; ++i) bursts.emplace_back(some[i % 5]);
    return bursts;
  }
};

TEST_F(RunAhead, TwentyFourStepsOfTheSecondCallNeedOnlyTheFirstTenTokens) {
  ASSERT_TRUE(session.start(speaker, {.temperature = 1, .seed = 5}).ok());
  session.push_text("");
  session.push_text("the sun is red and the sky is blue");
  const auto first = must(session.step(cancel));
  ASSERT_TRUE(first);
  ASSERT_EQ(session.codes_ahead(), 0);
  ASSERT_EQ(session.decoder()->position(), 302 + 25);
  ASSERT_FALSE(must(session.step(cancel)));
  const int64_t steps = session.decoder()->position() - (302 + 25);
  EXPECT_GE(steps, 11);  // fewer than 24 if the speech ended
  EXPECT_LE(steps, 24);
  EXPECT_TRUE(steps == 24 || session.codes_ahead() == steps - 1);
  ASSERT_FALSE(must(session.step(cancel)));  // only once
  EXPECT_EQ(session.decoder()->position(), 302 + 25 + steps);
}

TEST_F(RunAhead, GivesTheSameCodes) {
  int64_t ahead = 0;
  for (const Compatibility compatibility : {Compatibility::kNone, Compatibility::kUpstream}) {
    for (const double temperature : {0.0, 1.0}) {
      for (const int count : {7, 8, 15}) {
        expect_same(words(count), {.temperature = temperature,
                                   .seed = 2,
                                   .max_codes = 110,
                                   .compatibility = compatibility});
        ahead += session.codes_ahead();
      }
    }
  }
  EXPECT_GT(ahead, 150);
}

TEST_F(RunAhead, ALimitWithinTheNextCall) {
  for (const int limit : {26, 49, 50, 51}) {
    expect_same(words(12), {.temperature = 1, .seed = 3, .max_codes = limit});
  }
}

// A word of many tokens that grows into an unknown one: the text is shorter than what was read.
TEST_F(RunAhead, ATextThatShrinksIsDoneAgain) {
  std::string word;
  for (int i = 0; i < 10; ++i) word += "xqzj";
  const std::vector<std::string> bursts = {"", "the " + word, word + word.substr(0, 22)};
  ASSERT_GE(speech_tokenizer()->encode(bursts[1]).size(), 10U);
  ASSERT_EQ(speech_tokenizer()->encode(bursts[1] + bursts[2]).size(), 2U);
  ASSERT_TRUE(session.start(speaker, {.temperature = 1, .seed = 1}).ok());
  session.push_text(bursts[0]);
  session.push_text(bursts[1]);
  ASSERT_TRUE(must(session.step(cancel)));
  ASSERT_FALSE(must(session.step(cancel)));
  ASSERT_GT(session.codes_ahead(), 0);
  session.push_text(bursts[2]);
  session.end_text();
  ASSERT_TRUE(must(session.step(cancel)));
  EXPECT_EQ(session.codes_ahead(), 0);
  expect_same(bursts, {.temperature = 1, .seed = 1, .max_codes = 60});
}

TEST_F(Session, CancelledAtTheNextCode) {
  session.set_code_hook([&](std::span<const float>, const CodeRow& row) {
    if (++steps == 5) cancel.set();
    return row;
  });
  ASSERT_TRUE(session.start(speaker, {.temperature = 0}).ok());
  session.push_text("Oslo is the capital");
  session.end_text();
  const auto result = session.step(cancel);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(steps, 5);
}

TEST_F(Session, ResetAfterCancelLeavesNoTrace) {
  const auto clean = say(kBursts, {.temperature = 0, .max_codes = 50});
  session.set_code_hook([&](std::span<const float>, const CodeRow& row) {
    if (++steps == 30) cancel.set();
    return row;
  });
  ASSERT_TRUE(session.start(speaker, {.temperature = 0}).ok());
  session.push_text("something else entirely.");
  session.end_text();
  while (session.step(cancel).ok()) {
  }
  session.set_code_hook({});
  cancel.clear();
  session.reset();
  EXPECT_EQ(must(session.step(cancel)).has_value(), false);
  EXPECT_EQ(say(kBursts, {.temperature = 0, .max_codes = 50}).codes, clean.codes);
}

TEST_F(Session, StartAloneAlsoRecovers) {
  const auto clean = say(kBursts, {.temperature = 0, .max_codes = 50});
  ASSERT_TRUE(session.start(speaker, {.temperature = 0}).ok());
  session.push_text("something else");
  cancel.set();
  session.end_text();
  EXPECT_FALSE(session.step(cancel).ok());
  EXPECT_EQ(say(kBursts, {.temperature = 0, .max_codes = 50}).codes, clean.codes);
}

TEST_F(Session, NothingToSayIsOneEmptyLastChunk) {
  for (const char* text : {"", "   ", "... ! ?", "🙂🙂🙂", "***", "世界", "\xFF\xFE"}) {
    const Speech speech = say({text, "", ""});
    EXPECT_EQ(speech.rows, std::vector<int64_t>{0}) << text;
    EXPECT_TRUE(speech.last);
  }
}

TEST_F(Session, UpstreamSpeaksAnEmptyReply) {
  const Speech speech =
      say({""}, {.temperature = 0, .max_codes = 100, .compatibility = Compatibility::kUpstream});
  EXPECT_GT(speech.codes.size(), 9U);
  EXPECT_TRUE(speech.last);
}

TEST_F(Session, NoStepBeforeStartOrAfterTheLastChunk) {
  EXPECT_FALSE(must(session.step(cancel)).has_value());
  session.push_text("ignored");
  end_at(12);
  say(kBursts);
  EXPECT_FALSE(must(session.step(cancel)).has_value());
  session.push_text("ignored");
  EXPECT_FALSE(must(session.step(cancel)).has_value());
}

TEST_F(Session, RefusesSpeakersOfAnotherForm) {
  const auto code = [&](const Tensor& tensor) {
    const auto result = session.start(tensor, {});
    return result.ok() ? ErrorCode::kFailed : result.error().code;
  };
  EXPECT_EQ(code(speaker_tensor(std::vector<float>(255, 0.1F))), ErrorCode::kFormat);
  EXPECT_EQ(code(speaker_tensor({})), ErrorCode::kFormat);
  EXPECT_EQ(code(HostTensor(DataType::kFloat32, {256}, std::vector<std::byte>(1024))),
            ErrorCode::kFormat);
  EXPECT_EQ(code(HostTensor(DataType::kFloat32, {2, 256}, std::vector<std::byte>(2048))),
            ErrorCode::kFormat);
  EXPECT_EQ(code(HostTensor(DataType::kBFloat16, {1, 256}, std::vector<std::byte>(512))),
            ErrorCode::kFormat);
  std::vector<float> bad(256, 0.1F);
  bad[100] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(code(speaker_tensor(bad)), ErrorCode::kFormat);
  bad[100] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(code(speaker_tensor(bad)), ErrorCode::kFormat);
  EXPECT_FALSE(must(session.step(cancel)).has_value());  // none of them started an answer
}

TEST_F(Session, RefusesSettingsThatMakeNoSense) {
  for (const SpeechModelOptions& options :
       {SpeechModelOptions{.max_codes = 0}, SpeechModelOptions{.max_codes = -5},
        SpeechModelOptions{.temperature = std::numeric_limits<double>::quiet_NaN()},
        SpeechModelOptions{.temperature = std::numeric_limits<double>::infinity()}}) {
    const auto result = session.start(speaker, options);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kSettings);
  }
}

TEST_F(Session, MoreCodesThanPositionsAreCapped) {
  ASSERT_TRUE(
      session.start(speaker, {.temperature = 0, .max_codes = std::numeric_limits<int>::max()})
          .ok());
  EXPECT_EQ(session.decoder()->max_codes(), 4096 - 303);
}

TEST_F(Session, AZeroSpeakerStillSpeaks) {
  const auto speech = speak(session, speaker_tensor(std::vector<float>(256, 0)), kBursts,
                            {.temperature = 0, .max_codes = 25});
  EXPECT_EQ(speech.codes.size(), 25U);
}

TEST(ChooseCodes, TheFirstStepIsNotFiltered) {
  std::vector<float> logits(4 * 626, 0);
  filter_codes(logits, {}, true, true);
  EXPECT_EQ(std::count(logits.begin(), logits.end(), 0.0F), 4 * 626);
  logits.assign(4 * 626, 0);
  for (size_t i = 0; i < 626; ++i) logits[i] = 0.0001F * static_cast<float>(i);
  filter_codes(logits, {}, false, true);
  EXPECT_EQ(
      std::count_if(logits.begin(), logits.begin() + 626, [](float x) { return std::isfinite(x); }),
      20);
}

TEST(ChooseCodes, AtLeastThreeStayPerBook) {
  std::vector<float> logits(4 * 626, 0);
  for (size_t book = 0; book < 4; ++book) {
    for (size_t i = 0; i < 626; ++i) logits[book * 626 + i] = -static_cast<float>(i) * 50;
  }
  filter_codes(logits, {}, false, true);
  for (size_t book = 0; book < 4; ++book) {
    const auto* begin = &logits[book * 626];
    EXPECT_EQ(std::count_if(begin, begin + 626, [](float x) { return std::isfinite(x); }), 3);
  }
}

TEST(ChooseCodes, TemperaturesAlternate) {
  std::vector<float> logits(4 * 626, 3);
  filter_codes(logits, {.temperature = 2}, true, true);
  EXPECT_FLOAT_EQ(logits[0], 15);
  EXPECT_FLOAT_EQ(logits[626], 5);
  EXPECT_FLOAT_EQ(logits[2 * 626], 15);
  EXPECT_FLOAT_EQ(logits[3 * 626], 5);
}

TEST(ChooseCodes, TheEndIsBarredAfterTheFilters) {
  // The end takes one of the three places that stay, and is then barred: upstream's order.
  std::vector<float> logits(4 * 626, -1000);
  for (size_t book = 0; book < 4; ++book) {
    logits[book * 626 + 625] = 100;
    logits[book * 626 + 7] = 50;
    logits[book * 626 + 8] = 40;
    logits[book * 626 + 9] = 30;
  }
  std::set<uint16_t> seen;
  Philox random(3, 0);
  for (int i = 0; i < 200; ++i) {
    auto copy = logits;
    for (uint16_t code : choose_codes(copy, {}, false, false, random)) seen.insert(code);
  }
  EXPECT_EQ(seen.count(625), 0U);
  EXPECT_EQ(seen.count(9), 0U);
  EXPECT_EQ(seen.count(7), 1U);
}

TEST(ChooseCodes, DrawsFollowTheDistribution) {
  std::vector<float> logits(4 * 626, -1e6F);
  for (size_t book = 0; book < 4; ++book) {
    logits[book * 626 + 3] = 0;
    logits[book * 626 + 4] = std::log(3.0F) * (book % 2 == 0 ? 0.1F : 0.3F);
  }
  Philox random(11, 0);
  int fours = 0;
  constexpr int kDraws = 2000;
  for (int i = 0; i < kDraws; ++i) {
    auto copy = logits;
    for (uint16_t code : choose_codes(copy, {}, true, false, random)) {
      ASSERT_TRUE(code == 3 || code == 4);
      fours += code == 4;
    }
  }
  EXPECT_NEAR(fours / (4.0 * kDraws), 0.75, 0.02);
}

class Loading : public testing::Test {
 protected:
  std::shared_ptr<Checkpoint> checkpoint = must(Checkpoint::open(MODEL_DIR));
  ModelConfig config = must(read_config(MODEL_DIR));

  Error failure(std::shared_ptr<const Tokenizer> tokenizer = speech_tokenizer(),
                const CancelFlag& cancel = {}) {
    const auto result =
        load_speech_model(*checkpoint, config, std::move(tokenizer), at::kFloat, {}, cancel);
    return result.ok() ? Error{ErrorCode::kFailed, "it was loaded"} : result.error();
  }
};

TEST_F(Loading, NamesTheTensorThatDoesNotFit) {
  config.speech.audio_tokens = 627;
  EXPECT_EQ(failure().code, ErrorCode::kCorrupt);
  EXPECT_NE(failure().message.find("tts.emb_code.0.weight"), std::string::npos)
      << failure().message;
}

TEST_F(Loading, RefusesATokenizerLargerThanTheEmbedding) {
  config.speech.text_tokens = 700;
  EXPECT_EQ(failure().code, ErrorCode::kCorrupt);
  EXPECT_NE(failure().message.find("num_text_tokens"), std::string::npos) << failure().message;
}

TEST_F(Loading, RefusesOtherNumbersOfBooks) {
  config.speech.books = 8;
  EXPECT_EQ(failure().code, ErrorCode::kCorrupt);
  EXPECT_NE(failure().message.find("num_vq"), std::string::npos);
}

TEST_F(Loading, CanBeStopped) {
  CancelFlag cancel;
  cancel.set();
  EXPECT_EQ(failure(speech_tokenizer(), cancel).code, ErrorCode::kCancelled);
}

TEST_F(Loading, ReportsProgress) {
  std::vector<int> percents;
  const auto progress = [&](int percent, const std::string&) { percents.push_back(percent); };
  ASSERT_TRUE(
      load_speech_model(*checkpoint, config, speech_tokenizer(), at::kFloat, progress, {}).ok());
  ASSERT_FALSE(percents.empty());
  EXPECT_TRUE(std::is_sorted(percents.begin(), percents.end()));
  EXPECT_EQ(percents.back(), 100);
}

}  // namespace
}  // namespace minicpmo
