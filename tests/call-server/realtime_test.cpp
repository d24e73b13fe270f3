// The flow of a client of OpenAI's Realtime API: which events come, in which order.
#include "realtime_client.h"

namespace minicpmo::call_server {
namespace {

using Types = std::vector<std::string>;

const Types kSpoken = {"input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
                       "conversation.item.added", "conversation.item.done"};
const Types kBegun = {"response.created", "rate_limits.updated"};
const Types kOpened = {"response.output_item.added", "conversation.item.added",
                       "response.content_part.added", "response.output_audio_transcript.delta"};
const Types kClosed = {"response.output_audio.done", "response.output_audio_transcript.done",
                       "response.content_part.done", "conversation.item.done",
                       "response.output_item.done",  "response.done"};

Types operator+(Types left, const Types& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

TEST(Realtime, SpokenTurn) {
  RealtimeClient client;
  EXPECT_EQ(client.types(), Types{"session.created"});
  client.session.speech_started(1, 320);
  EXPECT_EQ(client.types(), Types{"input_audio_buffer.speech_started"});
  const std::string item = client.events.back()["item_id"];
  EXPECT_EQ(client.events.back()["audio_start_ms"], 320);
  client.session.speech_stopped(1, 1500);
  EXPECT_EQ(client.types(), kSpoken);
  EXPECT_EQ(client.last("input_audio_buffer.speech_stopped")["item_id"], item);
  EXPECT_EQ(client.last("input_audio_buffer.committed")["item_id"], item);
  EXPECT_TRUE(client.last("input_audio_buffer.committed")["previous_item_id"].is_null());
  EXPECT_EQ(client.last("conversation.item.done")["item"]["content"][0]["type"], "input_audio");

  client.session.answer_started(1);
  client.session.answer_words(1, "Two and two ");
  client.session.audio_started(1);
  client.session.answer_words(1, "is");
  EXPECT_EQ(client.types(),
            (kBegun + kOpened +
             Types{"output_audio_buffer.started", "response.output_audio_transcript.delta"}));
  EXPECT_EQ(client.last("conversation.item.added")["previous_item_id"], item);
  EXPECT_EQ(client.last("conversation.item.added")["item"]["status"], "in_progress");
  client.end(1, "Two and two is four.");  // whose last word has not been told yet
  EXPECT_EQ(client.types(), (Types{"response.output_audio_transcript.delta"} + kClosed +
                             Types{"output_audio_buffer.stopped"}));
  const json response = client.last("response.done")["response"];
  EXPECT_EQ(response["status"], "completed");
  EXPECT_EQ(response["output"][0]["content"][0]["transcript"], "Two and two is four.");
  EXPECT_EQ(response["output"][0]["content"][0]["type"], "output_audio");
  EXPECT_TRUE(client.asked.empty());
}

TEST(Realtime, TypedTurn) {
  RealtimeClient client;
  client.type_text("What is");
  client.type_text("two and two?");
  client.types();
  EXPECT_TRUE(client.asked.empty()) << "the text waits for response.create";
  client.say(R"({"type":"response.create","response":{"metadata":{"a":"b"}}})");
  EXPECT_EQ(client.asked, Types{"text:What is\ntwo and two?"});
  client.answer(1);
  client.end(1);
  EXPECT_EQ(client.types(), (kBegun + kOpened + Types{"output_audio_buffer.started"} + kClosed +
                             Types{"output_audio_buffer.stopped"}));
  EXPECT_EQ(client.last("response.done")["response"]["metadata"]["a"], "b");
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.error(), "nothing_to_answer");
}

TEST(Realtime, OlderNames) {
  RealtimeClient client;
  client.say(R"({"type":"session.update","session":{"modalities":["text","audio"],"voice":"bert",
      "turn_detection":{"type":"server_vad","silence_duration_ms":300}}})");
  EXPECT_EQ(client.asked, (Types{"voice:bert", "turns"}));
  EXPECT_EQ(client.turns.silence_duration_ms, 300);
  EXPECT_EQ(client.last("session.updated")["session"]["voice"], "bert");
  client.types();
  client.speak(1);
  client.answer(1);
  client.end(1);
  EXPECT_EQ(client.types(),
            (Types{"input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
                   "input_audio_buffer.committed", "conversation.item.created", "response.created",
                   "rate_limits.updated", "response.output_item.added", "conversation.item.created",
                   "response.content_part.added", "response.audio_transcript.delta",
                   "output_audio_buffer.started", "response.audio.done",
                   "response.audio_transcript.done", "response.content_part.done",
                   "response.output_item.done", "response.done", "output_audio_buffer.stopped"}));
  EXPECT_EQ(client.last("response.done")["response"]["output"][0]["content"][0]["type"], "audio");
  client.say(R"({"type":"session.update","session":{"type":"realtime"}})");
  client.speak(2);
  EXPECT_EQ(client.count("conversation.item.added"), 1) << "the names of 2025 again";

  RealtimeClient old(true);
  EXPECT_TRUE(old.events[0]["session"].contains("modalities"));
}

TEST(Realtime, Interruption) {
  RealtimeClient client;
  client.speak(1);
  client.answer(1, "Once upon a time");
  client.types();
  client.now += 0.75;
  client.session.speech_started(2, 3000);
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "Once upon a time", "Once upon");
  EXPECT_EQ(client.types(), (Types{"input_audio_buffer.speech_started"} + kClosed +
                             Types{"output_audio_buffer.cleared", "conversation.item.truncated"}));
  const json response = client.last("response.done")["response"];
  EXPECT_EQ(response["status"], "cancelled");
  EXPECT_EQ(response["status_details"]["reason"], "turn_detected");
  EXPECT_EQ(response["output"][0]["status"], "incomplete");
  EXPECT_EQ(client.last("conversation.item.truncated")["audio_end_ms"], 750);
  const std::string item = response["output"][0]["id"];
  client.say(json{{"type", "conversation.item.retrieve"}, {"item_id", item}}.dump());
  EXPECT_EQ(client.last("conversation.item.retrieved")["item"]["content"][0]["transcript"],
            "Once upon");
}

// The words were complete, and so was the response; its sound was not.
TEST(Realtime, InterruptedSoundOfCompleteAnswer) {
  RealtimeClient client;
  client.speak(1);
  client.answer(1, "One two three");
  client.session.answer_ended(1, AnswerEnd::kComplete, "One two three", "");
  client.types();
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "One two three", "One");
  EXPECT_EQ(client.types(), (Types{"output_audio_buffer.cleared", "conversation.item.truncated"}));
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "One two three", "One");
  client.session.audio_stopped(1);
  EXPECT_EQ(client.types(), Types{}) << "it is told once";
}

// The answer goes on as a response of its own, with the words that were not heard.
TEST(Realtime, Cough) {
  RealtimeClient client;
  client.speak(1);
  client.answer(1, "One two three");
  client.session.speech_started(2, 3000);
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "One two three", "One t");
  client.types();
  client.now += 0.25;
  client.session.speech_cancelled(2);
  EXPECT_EQ(client.types(),
            (Types{"input_audio_buffer.speech_stopped", "input_audio_buffer.cleared"}));
  EXPECT_EQ(client.last("input_audio_buffer.speech_stopped")["audio_end_ms"], 3250);
  client.session.answer_words(1, "two ");
  client.session.audio_started(1);
  client.end(1, "One two three four");
  EXPECT_EQ(client.types(),
            (kBegun + kOpened +
             Types{"output_audio_buffer.started", "response.output_audio_transcript.delta"} +
             kClosed + Types{"output_audio_buffer.stopped"}));
  EXPECT_EQ(client.last("response.output_audio_transcript.done")["transcript"], "two three four");
  EXPECT_EQ(client.last("response.done")["response"]["status"], "completed");
}

TEST(Realtime, CoughBeforeAnyAnswerLeavesNothing) {
  RealtimeClient client;
  client.session.speech_started(1, 0);
  client.session.speech_cancelled(1);
  client.session.speech_stopped(1, 10);  // too late: forgotten
  EXPECT_EQ(client.types(),
            (Types{"session.created", "input_audio_buffer.speech_started",
                   "input_audio_buffer.speech_stopped", "input_audio_buffer.cleared"}));
}

TEST(Realtime, InterruptedAnswerDoesNotGoOnByItself) {
  RealtimeClient client;
  client.speak(1);
  client.answer(1, "One two");
  client.session.speech_started(2, 3000);
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "One two", "One");
  client.types();
  client.session.answer_started(1);
  client.session.answer_words(1, "three");
  client.session.audio_started(1);
  EXPECT_EQ(client.types(), Types{});
}

// An answer that is begun before the end of the turn is sure.
TEST(Realtime, AnswerWaitsForTheEndOfItsTurn) {
  RealtimeClient client;
  client.session.speech_started(1, 0);
  client.types();
  client.answer(1, "Wrong.");
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "Wrong.", "");
  client.answer(1, "Four.");
  client.end(1);
  EXPECT_EQ(client.types(), Types{});
  client.session.speech_stopped(1, 900);
  EXPECT_EQ(client.types(), (kSpoken + kBegun + kOpened + Types{"output_audio_buffer.started"} +
                             kClosed + Types{"output_audio_buffer.stopped"}));
  EXPECT_EQ(client.last("response.output_audio_transcript.done")["transcript"], "Four.");
}

TEST(Realtime, CancelByTheClient) {
  RealtimeClient client;
  client.type_text("Hello");
  client.say(R"({"type":"response.create"})");
  client.answer(1, "Hello to");
  client.types();
  client.say(R"({"type":"response.cancel"})");
  client.say(R"({"type":"output_audio_buffer.clear"})");
  EXPECT_EQ(client.asked.back(), "interrupt");
  EXPECT_EQ(client.types(),
            (kClosed + Types{"output_audio_buffer.cleared", "output_audio_buffer.cleared"}));
  EXPECT_EQ(client.last("response.done")["response"]["status_details"]["reason"],
            "client_cancelled");
  client.session.answer_words(1, "late");
  client.session.audio_started(1);
  client.session.answer_ended(1, AnswerEnd::kInterrupted, "Hello to", "Hello");
  EXPECT_EQ(client.types(), Types{"conversation.item.truncated"});
  client.session.speech_started(2, 0);
  client.session.speech_cancelled(2);
  client.types();
  client.session.answer_words(1, "you");
  EXPECT_EQ(client.types(), Types{}) << "a cough does not take a cancellation back";
}

// The elements have not numbered the turn yet when the client no longer wants it.
TEST(Realtime, CancelBeforeTheAnswerStarts) {
  RealtimeClient client;
  client.type_text("Hello");
  client.say(R"({"type":"response.create"})");
  client.say(R"({"type":"response.cancel"})");
  EXPECT_EQ(client.last("response.done")["response"]["output"], json::array());
  client.types();
  client.asked.clear();
  client.answer(4);
  EXPECT_EQ(client.types(), Types{});
  EXPECT_EQ(client.asked, Types{"interrupt"});
  client.type_text("Again");
  client.say(R"({"type":"response.create"})");
  client.answer(5);
  client.end(5);
  EXPECT_EQ(client.last("response.done")["response"]["status"], "completed");
}

TEST(Realtime, PushToTalk) {
  RealtimeClient client;
  client.push_to_talk();
  EXPECT_FALSE(client.turns.enabled);
  EXPECT_TRUE(
      client.last("session.updated")["session"]["audio"]["input"]["turn_detection"].is_null());
  client.types();
  client.asked.clear();
  client.say(R"({"type":"input_audio_buffer.clear"})");
  client.session.speech_started(1, 0);
  EXPECT_EQ(client.asked, Types{"start"});
  client.say(R"({"type":"input_audio_buffer.commit"})");
  EXPECT_EQ(client.asked, Types{"start"}) << "the audio waits for response.create";
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.asked, (Types{"start", "end"}));
  client.session.speech_stopped(1, 1000);
  client.answer(1);
  client.end(1);
  EXPECT_EQ(client.types(), ((Types{"input_audio_buffer.cleared", "input_audio_buffer.committed",
                                    "conversation.item.added", "conversation.item.done"}) +
                             kBegun + kOpened + Types{"output_audio_buffer.started"} + kClosed +
                             Types{"output_audio_buffer.stopped"}));
}

TEST(Realtime, PushToTalkWithoutSpeechFails) {
  RealtimeClient client;
  client.push_to_talk();
  for (const char* type :
       {"input_audio_buffer.clear", "input_audio_buffer.commit", "response.create"})
    client.say(json{{"type", type}}.dump());
  client.session.speech_started(1, 0);
  client.session.speech_cancelled(1);
  const json response = client.last("response.done")["response"];
  EXPECT_EQ(response["status"], "failed");
  EXPECT_EQ(response["status_details"]["error"]["code"], "input_audio_buffer_commit_empty");
}

TEST(Realtime, PushToTalkOverTheLongestTurn) {
  RealtimeClient client;
  client.push_to_talk();
  client.say(R"({"type":"input_audio_buffer.clear"})");
  client.session.speech_started(1, 0);
  client.session.speech_stopped(1, 60000);
  client.answer(1);
  client.end(1);
  EXPECT_EQ(client.count("input_audio_buffer.committed"), 1);
  EXPECT_EQ(client.last("response.done")["response"]["status"], "completed");
  client.say(R"({"type":"input_audio_buffer.commit"})");
  EXPECT_EQ(client.error(), "input_audio_buffer_commit_empty");
}

// A button that is pressed again before the elements have told of its first release.
TEST(Realtime, PushToTalkTwice) {
  RealtimeClient client;
  const auto send = [&client](const char* type) { client.say(json{{"type", type}}.dump()); };
  client.push_to_talk();
  send("input_audio_buffer.clear");
  client.session.speech_started(1, 0);
  send("input_audio_buffer.commit");
  send("response.create");
  send("response.cancel");
  send("input_audio_buffer.clear");
  client.session.speech_stopped(1, 1000);
  client.session.speech_started(2, 2000);
  EXPECT_EQ(client.count("input_audio_buffer.committed"), 1) << "the second is still held";
  send("input_audio_buffer.commit");
  send("response.create");
  client.session.speech_stopped(2, 3000);
  client.answer(2);
  client.end(2);
  EXPECT_EQ(client.count("error"), 0) << client.last("error");
  EXPECT_EQ(client.count("input_audio_buffer.committed"), 2);
  EXPECT_EQ(client.count("response.done"), 2);
  EXPECT_EQ(client.last("response.done")["response"]["status"], "completed");
}

TEST(Realtime, EndsOfAnswers) {
  const struct {
    AnswerEnd end;
    const char *status, *reason;
  } cases[] = {{AnswerEnd::kComplete, "completed", nullptr},
               {AnswerEnd::kInterrupted, "cancelled", "turn_detected"},
               {AnswerEnd::kLength, "incomplete", "max_output_tokens"},
               {AnswerEnd::kContext, "incomplete", "max_output_tokens"},
               {AnswerEnd::kFailed, "failed", nullptr}};
  for (const auto& expected : cases) {
    RealtimeClient client;
    client.speak(1);
    client.session.answer_ended(1, expected.end, "Four", "");
    EXPECT_FALSE(client.responding());
    const json response = client.last("response.done")["response"];
    EXPECT_EQ(response["status"], expected.status);
    if (expected.reason) {
      EXPECT_EQ(response["status_details"]["reason"], expected.reason);
    }
  }
}

TEST(Realtime, FailureEndsTheResponse) {
  RealtimeClient client;
  client.speak(1);
  client.answer(1);
  client.types();
  client.session.failed("out of memory");
  EXPECT_EQ(client.types(), (kClosed + Types{"error"}));
  EXPECT_EQ(client.last("response.done")["response"]["status_details"]["error"]["message"],
            "out of memory");
  EXPECT_EQ(client.last("error")["error"]["type"], "server_error");
}

// Of the tracer minicpmoturns, if the server runs with it.
TEST(Realtime, WhereTheTimeOfATurnWent) {
  RealtimeClient client;
  const std::string report = R"({"total_ms":65.4,"parts":[{"part":"decode","ms":17.9}]})";
  client.session.turn_traced(1, report);  // a turn that nobody knows
  client.speak(1);
  client.answer(1);
  client.session.turn_traced(1, report);
  client.session.turn_traced(1, "no JSON");
  client.session.turn_traced(1, "[1]");
  ASSERT_EQ(client.count("minicpmo.turn_trace"), 1);
  const json event = client.last("minicpmo.turn_trace");
  EXPECT_EQ(event["response_id"], client.last("response.created")["response"]["id"]);
  EXPECT_EQ(event["trace"], json::parse(report));
  EXPECT_TRUE(event.contains("event_id"));
}

TEST(Realtime, SettingsOfTheOffer) {
  RealtimeClient client;
  client.asked.clear();
  EXPECT_EQ(client.session.configure(R"({"type":"realtime","instructions":"Sing."})"), "");
  EXPECT_EQ(client.asked, Types{"say:Sing."});
  EXPECT_NE(client.session.configure("{"), "");
  EXPECT_NE(client.session.configure(R"({"instructions":"Cry.","audio":{"output":{"voice":"x"}}})"),
            "");
  EXPECT_EQ(client.asked.size(), 1u) << "nothing of what is wrong is taken";
}

}  // namespace
}  // namespace minicpmo::call_server
