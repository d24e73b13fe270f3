#include "tts/speech_text.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "tiny_speech.h"
#include "word_tokenizer.h"

namespace minicpmo {
namespace {

constexpr auto kNone = Compatibility::kNone;
constexpr auto kUpstream = Compatibility::kUpstream;
using Ids = std::vector<int32_t>;

// One segment as the network would hold it.
struct Segment {
  Ids slots = Ids(303, -1);  // by position, [Stts] and speaker included
  Ids prefix;
  std::vector<int64_t> begins;  // of the prefills
  std::vector<int64_t> texts;   // text_tokens of the calls
  std::vector<bool> complete;   // per call
  Ids text() const {            // what stands between the speaker and [Etts], prefix left out
    const auto end = std::find(slots.begin(), slots.end(), WordTokenizer::kEnd);
    return {slots.begin() + 2 + std::ssize(prefix), end};
  }
};

std::string word(int n) {
  return " " + WordTokenizer::word(n);
}

// "w12" in a script of a test is word 12.
std::string spell(std::string text) {
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] >= '0' && text[i] <= '9') text[i] = static_cast<char>(text[i] - '0' + 'a');
  }
  return text;
}

// Drives a planner; the speech of a segment ends with the first call after its text is complete.
class Planner {
 public:
  explicit Planner(Compatibility compatibility = kNone) { text.start(compatibility); }
  void push(std::string_view burst) {
    text.push(spell(std::string(burst)));
    run();
  }
  void end() {
    text.end();
    run();
  }
  void run() {
    while (auto call = text.next()) {
      ++calls;
      if (call->new_segment) {
        segments.emplace_back();
        EXPECT_EQ(call->continuation, segments.size() > 1);
        segments.back().prefix = call->prefix;
      }
      Segment& segment = segments.back();
      segment.texts.push_back(call->text_tokens);
      segment.complete.push_back(call->text_complete);
      if (!call->ids.empty()) segment.begins.push_back(call->begin);
      for (size_t i = 0; i < call->ids.size(); ++i) {
        int32_t& slot = segment.slots.at(static_cast<size_t>(call->begin) + i);
        EXPECT_EQ(slot, -1) << "position " << call->begin + i << " is prefilled twice";
        slot = call->ids[i];
      }
      const bool early = calls == end_at_call;
      text.generated(early || (call->text_complete && ++final_calls >= calls_to_end),
                     calls == limit_at_call);
      if (call->text_complete) final_calls %= calls_to_end;
    }
  }

  SpeechText text{std::make_shared<WordTokenizer>(),
                  {.start_token = WordTokenizer::kStart,
                   .speaker_token = WordTokenizer::kSpeaker,
                   .end_token = WordTokenizer::kEnd}};
  std::vector<Segment> segments;
  int calls = 0, final_calls = 0;
  int calls_to_end = 1;  // calls until the speech ends, once the text is complete
  int end_at_call = -1, limit_at_call = -1;
};

Ids words(int begin, int end) {
  Ids ids;
  for (int i = begin; i < end; ++i) ids.push_back(WordTokenizer::kWords + i);
  return ids;
}

class PlannerLength : public testing::TestWithParam<int> {};

// One word per burst, no sentence end: everything is prefilled once, without gaps, at its place.
TEST_P(PlannerLength, EverySlotOnceInOrder) {
  const int length = GetParam();
  Planner planner;
  for (int i = 0; i < length; ++i) planner.push(word(i));
  planner.end();
  EXPECT_TRUE(planner.text.done());
  Ids spoken;
  for (const Segment& segment : planner.segments) {
    EXPECT_EQ(segment.slots[0], WordTokenizer::kStart);
    EXPECT_EQ(segment.slots[1], WordTokenizer::kSpeaker);
    const auto end = std::find(segment.slots.begin(), segment.slots.end(), WordTokenizer::kEnd);
    ASSERT_NE(end, segment.slots.end()) << "no [Etts]";
    EXPECT_TRUE(std::all_of(segment.slots.begin(), end, [](int32_t id) { return id >= 0; }));
    EXPECT_TRUE(std::all_of(end + 1, segment.slots.end(), [](int32_t id) { return id == -1; }));
    const Ids text = segment.text();
    spoken.insert(spoken.end(), text.begin(), text.end());
  }
  EXPECT_EQ(spoken, words(0, length));
}

TEST_P(PlannerLength, SliceAfterSliceAsTheTextGrows) {
  const int length = std::min(GetParam(), 299);
  Planner planner;
  for (int i = 0; i < length; ++i) {
    planner.push(word(i));
    EXPECT_EQ(planner.calls, (i + 1) / 10) << "after " << i + 1 << " words";
  }
  planner.end();
  EXPECT_EQ(planner.calls, length / 10 + (length > 0 ? 1 : 0));
  for (const Segment& segment : planner.segments) {
    for (size_t c = 0; c < segment.begins.size(); ++c) {
      EXPECT_EQ(segment.begins[c], c == 0 ? 0 : static_cast<int64_t>(10 * c + 2));
      EXPECT_EQ(segment.texts[c], segment.complete[c] ? length : static_cast<int64_t>(10 * c + 10));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, PlannerLength,
                         testing::Values(0, 1, 9, 10, 11, 20, 119, 120, 121, 298, 299, 300, 301,
                                         310, 600, 1000));

TEST(Planner, TheFirstBurstNeverSpeaks) {
  for (auto compatibility : {kNone, kUpstream}) {
    Planner planner(compatibility);
    planner.push("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12");
    EXPECT_EQ(planner.calls, 0);
    planner.push("");
    EXPECT_EQ(planner.calls, 1);
  }
}

TEST(Planner, OneSlicePerBurst) {
  Planner planner;
  planner.push("w0");
  planner.push(" w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15");
  planner.push(" w16 w17 w18 w19 w20 w21 w22 w23 w24 w25 w26 w27");
  EXPECT_EQ(planner.calls, 2);
  planner.push("");  // an empty burst counts: text for a third slice is not there
  EXPECT_EQ(planner.calls, 2);
  planner.push(" w28 w29");
  EXPECT_EQ(planner.calls, 3);
}

TEST(Planner, QueuedBurstsPlanAsSteppedOnes) {
  Planner stepped, queued;
  for (int i = 0; i < 250; ++i) {
    const std::string burst = word(i) + (i % 9 == 0 ? "." : "");
    stepped.push(burst);
    queued.text.push(burst);
  }
  stepped.end(), queued.end();
  ASSERT_EQ(stepped.segments.size(), queued.segments.size());
  for (size_t i = 0; i < stepped.segments.size(); ++i) {
    EXPECT_EQ(stepped.segments[i].slots, queued.segments[i].slots);
    EXPECT_EQ(stepped.segments[i].texts, queued.segments[i].texts);
  }
}

TEST(Planner, CutsAtTheFirstSentenceEndFrom120Tokens) {
  for (auto compatibility : {kNone, kUpstream}) {
    Planner planner(compatibility);
    for (int i = 0; i < 118; ++i) planner.push(word(i));
    planner.push(".");  // 119
    planner.push(word(118));
    planner.push(". w119 w120");  // cut here: 121 tokens with the stop
    planner.push(word(121));
    planner.end();
    ASSERT_EQ(planner.segments.size(), 2U);
    const Ids first = planner.segments[0].text();
    EXPECT_EQ(first.size(), 121U);
    EXPECT_EQ(first.back(), WordTokenizer::kStop);
    EXPECT_EQ(planner.segments[1].prefix, (Ids{1000 + 116, 1000 + 117, WordTokenizer::kStop,
                                               1000 + 118, WordTokenizer::kStop}));
    EXPECT_EQ(planner.segments[1].text(), words(119, 122));
  }
}

TEST(Planner, ASentenceEndOfAnEarlierBurstDoesNotCut) {
  Planner planner;
  for (int i = 0; i < 119; ++i)
    planner.push(word(i) + (i == 118 ? "." : ""));  // 120th token: the stop
  EXPECT_FALSE(planner.segments.empty());
  planner.push(word(119));
  planner.end();
  EXPECT_EQ(planner.segments.size(), 2U);  // the stop itself came at 120 tokens
  Planner early;
  for (int i = 0; i < 118; ++i) early.push(word(i) + (i == 117 ? "." : ""));  // 119 tokens
  for (int i = 118; i < 150; ++i) early.push(word(i));
  early.end();
  EXPECT_EQ(early.segments.size(), 1U);
}

TEST(Planner, TheRestOfACutIsSpokenAtTheEnd) {
  Planner planner;
  for (int i = 0; i < 125; ++i) planner.push(word(i));
  planner.push(". w125");
  planner.end();
  ASSERT_EQ(planner.segments.size(), 2U);
  EXPECT_EQ(planner.segments[1].text(), words(125, 126));
  EXPECT_TRUE(planner.text.done());
}

TEST(Planner, UpstreamLosesTheRestOfACut) {
  for (bool empty_burst : {false, true}) {
    Planner planner(kUpstream);
    for (int i = 0; i < 125; ++i) planner.push(word(i));
    planner.push(". w125");
    if (empty_burst) planner.push("");
    planner.end();
    EXPECT_EQ(planner.segments.size(), 1U);
    EXPECT_TRUE(planner.text.done());
  }
}

TEST(Planner, AnUnspeakableRestIsLeftOut) {
  Planner planner;
  for (int i = 0; i < 125; ++i) planner.push(word(i));
  planner.push(". ,");
  planner.end();
  EXPECT_EQ(planner.segments.size(), 1U);
  EXPECT_TRUE(planner.text.done());
}

TEST(Planner, UpstreamTruncatesTo300AndNone) {
  Planner planner(kUpstream);
  for (int i = 0; i < 400; ++i) planner.push(word(i));
  planner.end();
  ASSERT_EQ(planner.segments.size(), 1U);
  const Ids& slots = planner.segments[0].slots;
  EXPECT_EQ(Ids(slots.begin() + 2, slots.begin() + 302), words(0, 300));
  EXPECT_EQ(slots[302], -1);
  EXPECT_EQ(std::count(slots.begin(), slots.end(), WordTokenizer::kEnd), 0);
}

TEST(Planner, AnEndlessSentenceIsCutAtAWord) {
  Planner planner;
  for (int i = 0; i < 400; ++i) planner.push(word(i));
  planner.end();
  ASSERT_EQ(planner.segments.size(), 2U);
  EXPECT_EQ(planner.segments[0].text(), words(0, 299));
  EXPECT_EQ(planner.segments[1].prefix, words(294, 299));
  EXPECT_EQ(planner.segments[1].text(), words(299, 400));
}

TEST(Planner, EndOfSpeechWhileTextArrives) {
  Planner planner;
  planner.end_at_call = 2;
  for (int i = 0; i < 40; ++i) planner.push(word(i));
  planner.end();
  ASSERT_EQ(planner.segments.size(), 2U);  // 20 words were prefilled when it came
  EXPECT_EQ(planner.segments[1].prefix, words(15, 20));
  EXPECT_EQ(planner.segments[1].text(), words(20, 40));
}

TEST(Planner, EndOfSpeechKeepsTextThatWasNotPrefilled) {
  Planner planner;
  planner.end_at_call = 1;
  planner.push("w0");
  planner.push(" w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13");
  planner.end();
  ASSERT_EQ(planner.segments.size(), 2U);
  EXPECT_EQ(planner.segments[1].text(), words(10, 14));
}

TEST(Planner, EndOfSpeechWithNothingLeftIsTheEnd) {
  Planner planner;
  planner.end_at_call = 1;
  for (int i = 0; i < 10; ++i) planner.push(word(i));
  planner.push(".");
  planner.end();
  EXPECT_EQ(planner.segments.size(), 1U);
  EXPECT_TRUE(planner.text.done());
}

TEST(Planner, UpstreamEndsTheReplyWithTheSpeech) {
  Planner planner(kUpstream);
  planner.end_at_call = 1;
  for (int i = 0; i < 40; ++i) planner.push(word(i));
  EXPECT_TRUE(planner.text.done());
  EXPECT_EQ(planner.calls, 1);
}

TEST(Planner, ALimitEndsTheSegmentAndForUpstreamTheReply) {
  for (auto compatibility : {kNone, kUpstream}) {
    Planner planner(compatibility);
    planner.calls_to_end = 100;
    planner.limit_at_call = 14;  // the second call after the text is complete
    for (int i = 0; i < 121; ++i) planner.push(word(i));
    planner.push(".");
    EXPECT_EQ(planner.calls, 14);
    planner.calls_to_end = 1, planner.final_calls = 0;
    planner.push(word(121));
    planner.end();
    ASSERT_EQ(planner.segments.size(), compatibility == kNone ? 2U : 1U);
    EXPECT_TRUE(planner.text.done());
    if (compatibility == kUpstream) continue;
    EXPECT_TRUE(planner.segments[1].prefix.empty());  // a clean start
  }
}

TEST(Planner, NothingToSay) {
  for (const char* text : {"", " ", " . , ! ", "🙂🙂 ☃", "\n\n"}) {
    Planner planner;
    planner.push(text);
    planner.push("");
    planner.end();
    EXPECT_EQ(planner.calls, 0) << text;
    EXPECT_TRUE(planner.text.done());
  }
  Planner never;
  never.end();
  EXPECT_TRUE(never.text.done());
}

TEST(Planner, UpstreamSpeaksAnEmptyReply) {
  Planner planner(kUpstream);
  planner.push("");
  planner.end();
  ASSERT_EQ(planner.segments.size(), 1U);
  EXPECT_TRUE(planner.segments[0].text().empty());
}

TEST(Planner, PunctuationWaitsForAWord) {
  Planner planner;
  planner.push(".");
  for (int i = 0; i < 30; ++i) planner.push(" ,");
  EXPECT_EQ(planner.calls, 0);
  planner.push(" w0");
  EXPECT_EQ(planner.calls, 1);
}

TEST(Planner, NothingBehindTheEndMark) {
  Planner planner;
  planner.push("w0 w1<|tts_eos|>w2");
  planner.push("w3");
  planner.end();
  EXPECT_EQ(planner.segments.at(0).text(), words(0, 2));
  Planner upstream(kUpstream);
  upstream.push("w0 w1<|tts_eos|>w2");
  upstream.push(" w3");
  upstream.end();
  EXPECT_EQ(upstream.segments.at(0).text(), (Ids{1000, 1001, 1003}));
}

TEST(Planner, ALongBurstIsReadInPieces) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += word(i) + (i % 13 == 12 ? "." : "");
  Planner planner;
  planner.push(text);
  planner.end();
  Ids spoken;
  for (const Segment& segment : planner.segments) {
    const Ids part = segment.text();
    EXPECT_LE(part.size(), 150U);  // cut at sentence ends, long before the slots are full
    spoken.insert(spoken.end(), part.begin(), part.end());
  }
  std::erase(spoken, WordTokenizer::kStop);
  EXPECT_EQ(spoken, words(0, 1000));
  EXPECT_GT(planner.calls, 90);
}

TEST(Planner, StartForgetsEverything) {
  Planner planner;
  for (int i = 0; i < 130; ++i) planner.push(word(i));
  planner.text.push(word(1) + word(2));
  planner.text.start(kNone);
  planner.segments.clear();
  planner.push("w7");
  planner.end();
  ASSERT_EQ(planner.segments.size(), 1U);
  EXPECT_EQ(planner.segments[0].text(), words(7, 8));
}

TEST(GrowingText, EqualsEncodingItWhole) {
  const auto tokenizer = speech_tokenizer();
  const std::vector<std::string> parts = {
      "the ", "friend",   "ly",  ".",  " ", "\n",    "Osl", "o!",   "é",      "好",       "'s",
      "",     "umbrella", " 12", "\t", "-", "Queen", "zz",  "🙂", "[Etts]", "a\xCC\x81"};
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    GrowingText growing(*tokenizer);
    growing.assign({5, 6}, "");
    std::string whole;
    for (int i = 0; i < 40; ++i) {
      const std::string& part = parts[random() % parts.size()];
      growing.append(part);
      whole += part;
      Ids expected = {5, 6};
      const Ids ids = tokenizer->encode(whole);
      expected.insert(expected.end(), ids.begin(), ids.end());
      ASSERT_EQ(growing.ids(), expected) << whole;
    }
    size_t cut = random() % (whole.size() + 1);
    while (cut > 0 && cut < whole.size() && (whole[cut] & 0xC0) == 0x80) --cut;
    growing.truncate(cut);
    Ids expected = {5, 6};
    const Ids ids = tokenizer->encode(whole.substr(0, cut));
    expected.insert(expected.end(), ids.begin(), ids.end());
    ASSERT_EQ(growing.ids(), expected) << whole.substr(0, cut);
  }
}

// Seconds to plan `text`, pushed at once, with the real tokenizer; every segment ends at once.
double seconds_to_plan(const std::string& text, Compatibility compatibility,
                       int* segments = nullptr) {
  const auto begin = std::chrono::steady_clock::now();
  SpeechText planner(speech_tokenizer(), {.start_token = 8, .speaker_token = 20, .end_token = 10});
  planner.start(compatibility);
  planner.push(text);
  planner.end();
  int n = 0;
  while (const auto call = planner.next()) {
    if (call->new_segment) ++n;
    planner.generated(call->text_complete, false);
  }
  EXPECT_TRUE(planner.done());
  if (segments != nullptr) *segments = n;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::string repeated(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

class HugeText : public testing::TestWithParam<const char*> {};

// The bounds are far above what it takes (tens of milliseconds), and far below quadratic time.
TEST_P(HugeText, PlannedInLinearTime) {
  for (auto compatibility : {kNone, kUpstream}) {
    EXPECT_LT(seconds_to_plan(repeated(GetParam(), 100'000), compatibility), 10);
    EXPECT_LT(seconds_to_plan(repeated(GetParam(), 400'000), compatibility), 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, HugeText,
                         testing::Values("the friendly queen takes the train. ", "word ", " ", "x",
                                         "1", "*", "好", "!", "🙂", "\xFF", "a\n", "e.",
                                         "the\xCC\x81", "Was ist das? "));

TEST(HugePlainText, IsCutIntoSegments) {
  int segments = 0;
  seconds_to_plan(repeated("the friendly queen takes the train. ", 100'000), kNone, &segments);
  EXPECT_GT(segments, 100);
}

}  // namespace
}  // namespace minicpmo
