// Messages that no client of good will sends.
#include <random>

#include "realtime_client.h"

namespace minicpmo::call_server {
namespace {

const std::vector<std::string>& valid_messages() {
  static const std::vector<std::string> messages = {
      R"({"type":"session.update","event_id":"a","session":{"type":"realtime","instructions":"x","audio":{"input":{"turn_detection":{"type":"server_vad","threshold":0.5}},"output":{"voice":"bert"}}}})",
      R"({"type":"session.update","session":{"modalities":["audio"],"turn_detection":null}})",
      R"({"type":"input_audio_buffer.clear"})",
      R"({"type":"input_audio_buffer.commit"})",
      R"({"type":"input_audio_buffer.append","audio":"AAAA"})",
      R"({"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Hällo"}]}})",
      R"({"type":"conversation.item.create","item":{"id":"mine","type":"message","role":"user","content":[{"type":"input_text","text":"x"}]}})",
      R"({"type":"conversation.item.retrieve","item_id":"mine"})",
      R"({"type":"conversation.item.delete","item_id":"mine"})",
      R"({"type":"conversation.item.truncate","item_id":"item_7_2","content_index":0,"audio_end_ms":1})",
      R"({"type":"response.create","response":{"metadata":{"a":"b"}}})",
      R"({"type":"response.cancel"})",
      R"({"type":"output_audio_buffer.clear"})"};
  return messages;
}

TEST(RealtimeHostile, NotAnEvent) {
  const std::string deep(2000, '[');
  const std::vector<std::string> messages = {
      "",
      "hello",
      "null",
      "[]",
      "7",
      "\"x\"",
      "{",
      R"({"type")",
      R"({"type":NaN})",
      R"({"type":"response.cancel","x":1e999})",
      R"({"type":"response.cancel"}x)",
      std::string("{\"type\":\"\xff\xfe\"}"),
      std::string("\0\0\0", 3),
      deep,
      R"({"type":"response.cancel","x":)" + deep + std::string(2000, ']') + "}"};
  for (const std::string& message : messages) {
    RealtimeClient client;
    client.say(message);
    EXPECT_EQ(client.count("error"), 1) << message;
    EXPECT_EQ(client.error(), "invalid_json") << message;
  }
  RealtimeClient client;
  client.say(std::string(16 * 1024, ' ') + "{}");
  EXPECT_EQ(client.error(), "message_too_long");
  client.say(R"({"type":"response.cancel"})");
  EXPECT_EQ(client.error(), "response_cancel_not_active") << "the session goes on";
}

TEST(RealtimeHostile, BracketsWithinStringsAreNotNesting) {
  RealtimeClient client;
  client.type_text(std::string(100, '[') + "\\\"" + std::string(100, '{'));
  EXPECT_EQ(client.count("conversation.item.added"), 1);
}

TEST(RealtimeHostile, LongStrings) {
  const std::string many(15000, 'x');
  RealtimeClient client;
  client.say(R"({"type":")" + many + "\"}");
  EXPECT_EQ(client.error(), "invalid_value");
  EXPECT_LT(client.events.back().dump().size(), 1000u) << "errors do not repeat it";
  client.say(R"({"type":"session.update","session":{")" + many + "\":1}}");
  EXPECT_LT(client.events.back().dump().size(), 1000u);
  client.say(R"({"type":"response.cancel","event_id":")" + many + "\"}");
  EXPECT_EQ(client.error(), "string_above_max_length");
  EXPECT_TRUE(client.last("error")["error"]["event_id"].is_null());
  client.type_text(many);
  client.type_text(many);
  EXPECT_EQ(client.error(), "too_many_items") << "what waits is limited altogether";
}

TEST(RealtimeHostile, SameItemTwice) {
  RealtimeClient client;
  client.say(valid_messages()[6]);
  client.say(valid_messages()[6]);
  EXPECT_EQ(client.count("conversation.item.added"), 1);
  EXPECT_EQ(client.last("error")["error"]["param"], "item.id");
}

// An id like the next one of the server's.
TEST(RealtimeHostile, IdsOfTheServerAreTaken) {
  RealtimeClient client;
  client.say(
      R"({"type":"conversation.item.create","item":{"id":"item_7_1","type":"message","role":"user","content":[{"type":"input_text","text":"x"}]}})");
  client.speak(1);
  EXPECT_NE(client.last("input_audio_buffer.committed")["item_id"], "item_7_1");
}

TEST(RealtimeHostile, Flood) {
  RealtimeClient client;
  for (int i = 0; i < 1000; ++i) client.session.receive(R"({"type":"response.cancel"})");
  EXPECT_EQ(client.count("error"), 51) << "50 answers, and one error for all the rest";
  EXPECT_EQ(client.error(), "rate_limit_exceeded");
  EXPECT_EQ(client.last("error")["error"]["type"], "rate_limit_error");
  client.now += 0.125;
  for (int i = 0; i < 10; ++i) client.session.receive(R"({"type":"response.cancel"})");
  EXPECT_EQ(client.count("error"), 58) << "six in an eighth of a second, and one error again";
}

// Text of the model that ends within a character.
TEST(RealtimeHostile, HalfACharacterFromTheModel) {
  RealtimeClient client;
  client.speak(1);
  client.session.answer_words(1, "\xc3");
  EXPECT_EQ(client.count("response.output_audio_transcript.delta"), 1);
}

TEST(RealtimeHostile, ManyItems) {
  RealtimeClient client;
  for (uint64_t turn = 1; turn < 2000; ++turn) {
    client.speak(turn);
    client.answer(turn);
    client.end(turn);
  }
  const std::string first = client.events[3]["item_id"];
  client.say(R"({"type":"conversation.item.retrieve","item_id":")" + first + "\"}");
  EXPECT_EQ(client.error(), "item_retrieve_invalid_item_id") << "old items are forgotten";
}

// A flow in which anything comes at any time, of the client, its messages broken by a few bytes,
// and of the call. The client checks what holds of all flows.
TEST(RealtimeHostile, AnythingAtAnyTime) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&random](size_t n) { return static_cast<size_t>(random() % n); };
    RealtimeClient client;
    for (int step = 0; step < 300; ++step) {
      client.now += 0.05;
      client.takes_text = below(4) != 0;
      const uint64_t turn = 1 + step / 30 + below(2);
      switch (below(14)) {
        case 0:
          client.session.speech_started(turn, step);
          break;
        case 1:
          client.session.speech_stopped(turn, step);
          break;
        case 2:
          client.session.speech_cancelled(turn);
          break;
        case 3:
          client.session.answer_started(turn);
          break;
        case 4:
          client.session.answer_words(turn, "word ");
          break;
        case 5:
          client.session.audio_started(turn);
          break;
        case 6:
          client.session.audio_stopped(turn);
          break;
        case 7:
          client.session.answer_ended(turn, static_cast<AnswerEnd>(below(5)), "word word word ",
                                      "word ");
          break;
        default: {
          std::string message = valid_messages()[below(valid_messages().size())];
          for (size_t breaks = below(3); breaks > 0; --breaks) {
            const size_t at = below(message.size());
            const size_t kind = below(3);
            if (kind == 0) message[at] = static_cast<char>(random());
            if (kind == 1) message.erase(at, 1 + below(8));
            if (kind == 2) message.insert(at, 1, "{}[]\",:\\0-.e"[below(12)]);
            if (message.empty()) message = " ";
          }
          client.say(message);
        }
      }
    }
    // Whatever there was: the next turn is answered.
    client.say(
        R"({"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":{"type":"server_vad"}}}}})");
    client.speak(1000);
    client.answer(1000);
    client.end(1000);
    EXPECT_FALSE(client.responding());
    EXPECT_EQ(client.last("response.done")["response"]["status"], "completed");
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace minicpmo::call_server
