// Every event of OpenAI's Realtime API that there is, and when it is not sent.
#include <functional>
#include <set>

#include "realtime_client.h"

namespace minicpmo::call_server {
namespace {

using Types = std::vector<std::string>;
using Script = std::function<void(RealtimeClient&)>;

// `yes` makes the server send the event. `no` is as much like it as can be, and does not; with an
// error of this code, or without any.
struct EventCase {
  const char* type;
  Script yes, no;
  const char* code = "";
};

Script says(const char* message) {
  return [message](RealtimeClient& client) { client.say(message); };
}
Script typed(const char* message) {
  return [message](RealtimeClient& client) {
    client.type_text("Hello");
    client.say(message);
  };
}
void ask(RealtimeClient& client) {
  client.speak(1);
  client.answer(1);
}
void whole(RealtimeClient& client) {
  ask(client);
  client.end(1);
}
void wordless(RealtimeClient& client) {
  client.speak(1);
  client.session.answer_started(1);
  client.session.answer_ended(1, AnswerEnd::kComplete, "", "");
}
void older_names(RealtimeClient& client) {
  client.say(R"({"type":"session.update","session":{"modalities":["text","audio"]}})");
}
// Push-to-talk, up to the release of the button.
void talk(RealtimeClient& client) {
  client.push_to_talk();
  client.say(R"({"type":"input_audio_buffer.clear"})");
  client.session.speech_started(1, 0);
  client.say(R"({"type":"input_audio_buffer.commit"})");
}
void unanswered(RealtimeClient& client) {
  client.speak(1);
}
// `client`'s newest answer or item, in a message of this type.
void about(RealtimeClient& client, const char* type, json more = json::object()) {
  more["type"] = type;
  more["item_id"] = client.last("conversation.item.added")["item"]["id"];
  client.say(more.dump());
}

const EventCase kServerEvents[] = {
    {"error", says("{}"), says(R"({"type":"input_audio_buffer.clear"})")},
    {"session.updated", says(R"({"type":"session.update","session":{"instructions":"x"}})"),
     says(R"({"type":"session.update","session":{"type":"transcription"}})"), "invalid_value"},
    {"input_audio_buffer.speech_started", [](auto& client) { client.session.speech_started(1, 0); },
     [](auto& client) {
       client.push_to_talk();
       client.session.speech_started(1, 0);
     }},
    {"input_audio_buffer.speech_stopped", unanswered,
     [](auto& client) { client.session.speech_stopped(9, 0); }},
    {"input_audio_buffer.committed", unanswered,
     [](auto& client) {
       client.push_to_talk();
       client.say(R"({"type":"input_audio_buffer.commit"})");
     },
     "input_audio_buffer_commit_empty"},
    {"input_audio_buffer.cleared", says(R"({"type":"input_audio_buffer.clear"})"),
     [](auto& client) {
       client.push_to_talk();
       client.say(R"({"type":"input_audio_buffer.clear"})");
       client.say(R"({"type":"input_audio_buffer.commit"})");
       client.events.clear();
       client.say(R"({"type":"input_audio_buffer.clear"})");
     },
     "unsupported_mix"},
    {"conversation.item.added", [](auto& client) { client.type_text("Hello"); },
     [](auto& client) { client.type_text(" \n"); }, "invalid_value"},
    {"conversation.item.done", [](auto& client) { client.type_text("Hello"); },
     says(R"({"type":"conversation.item.create","item":{"type":"function_call_output"}})"),
     "unsupported_parameter"},
    {"conversation.item.retrieved",
     [](auto& client) {
       client.type_text("Hello");
       about(client, "conversation.item.retrieve");
     },
     says(R"({"type":"conversation.item.retrieve","item_id":"x"})"),
     "item_retrieve_invalid_item_id"},
    {"conversation.item.deleted",
     [](auto& client) {
       client.type_text("Hello");
       about(client, "conversation.item.delete");
     },
     [](auto& client) {
       whole(client);
       about(client, "conversation.item.delete");
     },
     "item_delete_unsupported"},
    {"conversation.item.truncated",
     [](auto& client) {
       whole(client);
       about(client, "conversation.item.truncate", {{"content_index", 0}, {"audio_end_ms", 10}});
     },
     [](auto& client) {
       whole(client);
       about(client, "conversation.item.truncate", {{"content_index", 0}, {"audio_end_ms", 5000}});
     },
     "invalid_value"},
    {"response.created", typed(R"({"type":"response.create"})"),
     says(R"({"type":"response.create"})"), "nothing_to_answer"},
    {"rate_limits.updated", ask, unanswered},
    {"response.output_item.added", ask, wordless},
    {"response.content_part.added", ask, wordless},
    {"response.output_audio_transcript.delta", ask, wordless},
    {"response.output_audio.done", whole, ask},
    {"response.output_audio_transcript.done", whole, ask},
    {"response.content_part.done", whole, ask},
    {"response.output_item.done", whole, wordless},
    {"response.done", wordless, ask},
    {"output_audio_buffer.started", ask, wordless},
    {"output_audio_buffer.stopped", whole, ask},
    {"output_audio_buffer.cleared",
     [](auto& client) {
       ask(client);
       client.say(R"({"type":"output_audio_buffer.clear"})");
     },
     says(R"({"type":"output_audio_buffer.clear"})"), "output_audio_buffer_empty"},
    // The older names; the newer ones are sent to whoever does not ask for them.
    {"conversation.item.created",
     [](auto& client) {
       older_names(client);
       client.type_text("Hello");
     },
     [](auto& client) { client.type_text("Hello"); }},
    {"response.audio_transcript.delta",
     [](auto& client) {
       older_names(client);
       ask(client);
     },
     ask},
    {"response.audio_transcript.done",
     [](auto& client) {
       older_names(client);
       whole(client);
     },
     whole},
    {"response.audio.done",
     [](auto& client) {
       older_names(client);
       whole(client);
     },
     whole},
};

// What a client may send: `yes` is answered by `answer`, `no` by an error of this code.
struct ClientEventCase {
  const char* type;
  const char* answer;
  Script yes, no;
  const char* code;
};

const ClientEventCase kClientEvents[] = {
    {"session.update", "session.updated",
     says(R"({"type":"session.update","session":{"instructions":"x"}})"),
     says(R"({"type":"session.update"})"), "missing_required_parameter"},
    {"input_audio_buffer.clear", "input_audio_buffer.cleared",
     says(R"({"type":"input_audio_buffer.clear"})"),
     [](auto& client) {
       talk(client);
       client.say(R"({"type":"input_audio_buffer.clear"})");
     },
     "unsupported_mix"},
    {"input_audio_buffer.commit", "input_audio_buffer.committed", talk,
     says(R"({"type":"input_audio_buffer.commit"})"), "input_audio_buffer_commit_empty"},
    {"conversation.item.create", "conversation.item.added",
     [](auto& client) { client.type_text("Hello"); },
     says(R"({"type":"conversation.item.create","item":{"type":"message","role":"system"}})"),
     "unsupported_parameter"},
    {"conversation.item.retrieve", "conversation.item.retrieved",
     [](auto& client) {
       client.type_text("Hello");
       about(client, "conversation.item.retrieve");
     },
     says(R"({"type":"conversation.item.retrieve","item_id":"x"})"),
     "item_retrieve_invalid_item_id"},
    {"conversation.item.delete", "conversation.item.deleted",
     [](auto& client) {
       client.type_text("Hello");
       about(client, "conversation.item.delete");
     },
     [](auto& client) {
       client.type_text("Hello");
       about(client, "conversation.item.delete");
       about(client, "conversation.item.delete");
     },
     "item_delete_invalid_item_id"},
    {"conversation.item.truncate", "conversation.item.truncated",
     [](auto& client) {
       whole(client);
       about(client, "conversation.item.truncate", {{"content_index", 0}, {"audio_end_ms", 10}});
     },
     [](auto& client) {
       whole(client);
       about(client, "conversation.item.truncate", {{"content_index", 0}});
     },
     "missing_required_parameter"},
    {"response.create", "response.created", typed(R"({"type":"response.create"})"),
     [](auto& client) {
       ask(client);
       client.type_text("Hello");
       client.say(R"({"type":"response.create"})");
     },
     "conversation_already_has_active_response"},
    {"response.cancel", "response.done",
     [](auto& client) {
       ask(client);
       client.say(R"({"type":"response.cancel"})");
     },
     [](auto& client) {
       whole(client);
       client.say(R"({"type":"response.cancel"})");
     },
     "response_cancel_not_active"},
    {"output_audio_buffer.clear", "output_audio_buffer.cleared",
     [](auto& client) {
       ask(client);
       client.say(R"({"type":"output_audio_buffer.clear"})");
     },
     says(R"({"type":"output_audio_buffer.clear"})"), "output_audio_buffer_empty"},
};

// Each with a case in which it comes or is obeyed, and one in which it is not.
TEST(Realtime, TypesOfEventsInTheseTables) {
  std::set<std::string> types = {"session.created"};
  for (const EventCase& event : kServerEvents) EXPECT_TRUE(types.insert(event.type).second);
  EXPECT_EQ(types.size(), 29u);
  for (const ClientEventCase& event : kClientEvents) EXPECT_TRUE(types.insert(event.type).second);
  EXPECT_EQ(types.size(), 39u);
}

TEST(Realtime, ClientEventsInAndOutOfPlace) {
  for (const ClientEventCase& event : kClientEvents) {
    SCOPED_TRACE(event.type);
    RealtimeClient yes, no;
    event.yes(yes);
    EXPECT_EQ(yes.count("error"), 0) << yes.last("error");
    EXPECT_GE(yes.count(event.answer), 1);
    event.no(no);
    EXPECT_EQ(no.count("error"), 1);
    EXPECT_EQ(no.error(), event.code);
    // A broken id, a broken name.
    no.say(json{{"type", event.type}, {"event_id", json::array()}}.dump());
    EXPECT_EQ(no.error(), "invalid_type");
    no.say(json{{"type", std::string(event.type) + "d"}}.dump());
    EXPECT_EQ(no.error(), "invalid_value");
  }
}

TEST(Realtime, EveryServerEvent) {
  for (const EventCase& event : kServerEvents) {
    SCOPED_TRACE(event.type);
    RealtimeClient yes, no;
    event.yes(yes);
    EXPECT_GE(yes.count(event.type), 1);
    EXPECT_EQ(yes.count("error"), std::string(event.type) == "error");
    event.no(no);
    EXPECT_EQ(no.count(event.type), 0);
    EXPECT_EQ(no.error(), event.code);
    if (*event.code && !no.last("error").is_null()) {
      EXPECT_EQ(no.last("error")["error"]["type"], "invalid_request_error");
    }
  }
  // The one that needs no cause, and comes once.
  RealtimeClient client;
  EXPECT_EQ(client.types(), Types{"session.created"});
  client.push_to_talk();
  EXPECT_EQ(client.count("session.created"), 1);
}

// A client's message, and what it is answered with: an event, or an error with code and parameter.
struct MessageCase {
  const char* message;
  const char* answer;
  const char* param = "";
};

const MessageCase kMessages[] = {
    {R"({"type":"session.update","session":{"type":"realtime","model":"gpt-realtime",
        "output_modalities":["audio"],"tools":[],"tool_choice":"auto","audio":{
        "input":{"format":{"type":"audio/pcm","rate":24000},"transcription":{"model":"whisper-1"},
          "noise_reduction":null,"turn_detection":{"type":"server_vad","threshold":0.25,
          "prefix_padding_ms":100,"silence_duration_ms":200,"create_response":true}},
        "output":{"voice":"bert","speed":1.0}}}})",
     "session.updated"},
    {R"({"type":"session.update"})", "missing_required_parameter", "session"},
    {R"({"type":"session.update","session":[]})", "invalid_type", "session"},
    {R"({"type":"session.update","session":{"sound":1}})", "unknown_parameter", "session.sound"},
    {R"({"type":"session.update","session":{"instructions":1}})", "invalid_type",
     "session.instructions"},
    {R"({"type":"session.update","session":{"tools":[{"type":"function"}]}})",
     "unsupported_parameter", "session.tools"},
    {R"({"type":"session.update","session":{"output_modalities":["text"]}})",
     "unsupported_parameter", "session.output_modalities"},
    {R"({"type":"session.update","session":{"max_output_tokens":5}})", "unsupported_parameter",
     "session.max_output_tokens"},
    {R"({"type":"session.update","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}}}}})",
     "unsupported_parameter", "session.audio.input.format"},
    {R"({"type":"session.update","session":{"audio":{"output":{"voice":"marin"}}}})",
     "invalid_value", "session.audio.output.voice"},
    {R"({"type":"session.update","session":{"audio":{"output":{"speed":2}}}})", "invalid_value",
     "session.audio.output.speed"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"type":"manual"}}}}})",
     "invalid_value", "session.audio.input.turn_detection.type"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"type":"semantic_vad","threshold":0.5}}}}})",
     "unknown_parameter", "session.audio.input.turn_detection.threshold"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"threshold":1.5}}}}})",
     "invalid_value", "session.audio.input.turn_detection.threshold"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"threshold":"NaN"}}}}})",
     "invalid_type", "session.audio.input.turn_detection.threshold"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"silence_duration_ms":1e300}}}}})",
     "invalid_value", "session.audio.input.turn_detection.silence_duration_ms"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"prefix_padding_ms":-1}}}}})",
     "invalid_value", "session.audio.input.turn_detection.prefix_padding_ms"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"prefix_padding_ms":0.5}}}}})",
     "invalid_type", "session.audio.input.turn_detection.prefix_padding_ms"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"create_response":false}}}}})",
     "unsupported_parameter", "session.audio.input.turn_detection.create_response"},
    {R"({"type":"session.update","session":{"audio":{"input":{"turn_detection":{"idle_timeout_ms":9}}}}})",
     "unsupported_parameter", "session.audio.input.turn_detection.idle_timeout_ms"},
    {R"({"type":"session.update","session":{"modalities":["text"]}})", "unsupported_parameter",
     "session.modalities"},
    {R"({"type":"session.update","session":{"modalities":["audio"],"input_audio_format":"g711_ulaw"}})",
     "unsupported_parameter", "session.input_audio_format"},
    {R"({"type":"session.update","session":{"voice":"alloy"}})", "invalid_value", "session.voice"},
    {R"({"type":"session.update","session":{"type":"realtime","voice":"bert"}})",
     "unknown_parameter", "session.voice"},
    {R"({"type":"input_audio_buffer.append","audio":"AAAA"})", "unsupported_event"},
    {R"({"type":"input_audio_buffer.commit"})", "input_audio_buffer_commit_empty"},
    {R"({"type":"conversation.item.create"})", "missing_required_parameter", "item"},
    {R"({"type":"conversation.item.create","item":7})", "invalid_type", "item"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"assistant"}})",
     "unsupported_parameter", "item.role"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"user"}})",
     "missing_required_parameter", "item.content"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"user","content":{}}})",
     "invalid_type", "item.content"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"user","content":[
        {"type":"input_text","text":"x"},{"type":"input_image","image_url":"data:"}]}})",
     "unsupported_parameter", "item.content[1].type"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"user","colour":1,
        "content":[{"type":"input_text","text":"x"}]}})",
     "unknown_parameter", "item.colour"},
    {R"({"type":"conversation.item.create","item":{"type":"message","role":"user",
        "id":"123456789012345678901234567890123","content":[{"type":"input_text","text":"x"}]}})",
     "string_above_max_length", "item.id"},
    {R"({"type":"conversation.item.create","previous_item_id":"x","item":{"type":"message",
        "role":"user","content":[{"type":"input_text","text":"x"}]}})",
     "unsupported_parameter", "previous_item_id"},
    {R"({"type":"conversation.item.create","previous_item_id":"root","item":{"type":"message",
        "id":"mine","role":"user","content":[{"type":"input_text","text":"x"}]}})",
     "conversation.item.added"},
    {R"({"type":"conversation.item.retrieve"})", "missing_required_parameter", "item_id"},
    {R"({"type":"conversation.item.delete","item_id":"x"})", "item_delete_invalid_item_id",
     "item_id"},
    {R"({"type":"conversation.item.truncate","item_id":"x","content_index":0,"audio_end_ms":0})",
     "item_truncate_invalid_item_id", "item_id"},
    {R"({"type":"response.create","response":{"instructions":"Sing."}})", "unsupported_parameter",
     "response.instructions"},
    {R"({"type":"response.create","response":{"conversation":"none"}})", "unsupported_parameter",
     "response.conversation"},
    {R"({"type":"response.create","response":{"metadata":1}})", "invalid_type",
     "response.metadata"},
    {R"({"type":"response.create","response":null})", "invalid_type", "response"},
    {R"({"type":"response.cancel"})", "response_cancel_not_active"},
    {R"({"type":"response.cancel","response_id":"x"})", "response_cancel_not_active",
     "response_id"},
    {R"({"type":"output_audio_buffer.clear"})", "output_audio_buffer_empty"},
    {R"({"type":"transcription_session.update"})", "invalid_value", "type"},
    {R"({"type":7})", "invalid_type", "type"},
    {R"({"event_id":"e"})", "missing_required_parameter", "type"},
    {R"({"type":"response.cancel","event_id":7})", "invalid_type", "event_id"},
};

TEST(Realtime, EveryClientEvent) {
  for (const MessageCase& given : kMessages) {
    SCOPED_TRACE(given.message);
    RealtimeClient client;
    client.say(given.message);
    if (client.count(given.answer) == 1) continue;
    ASSERT_EQ(client.count("error"), 1);
    const json error = client.last("error")["error"];
    EXPECT_EQ(error["code"], given.answer) << error;
    EXPECT_EQ(error["param"], *given.param ? json(given.param) : json()) << error;
    EXPECT_FALSE(error["message"].get<std::string>().empty());
    EXPECT_TRUE(client.asked.empty()) << "nothing is done of what is wrong: " << client.asked[0];
  }
}

// What is of a WebSocket: sound as events.
TEST(RealtimeAudio, AppendIsHeard) {
  RealtimeClient client(false, true);
  client.say(R"({"type":"input_audio_buffer.append","audio":"AAAAAA=="})");
  client.say(R"({"type":"input_audio_buffer.append","audio":""})");
  EXPECT_EQ(client.asked, std::vector<std::string>{"audio:4"});
  EXPECT_EQ(client.count("error"), 0);
  client.takes_audio = false;
  client.say(R"({"type":"input_audio_buffer.append","audio":"AAAAAA==","event_id":"mine"})");
  EXPECT_EQ(client.error(), "input_audio_buffer_full");
  EXPECT_EQ(client.last("error")["error"]["event_id"], "mine");
}

TEST(RealtimeAudio, WhatIsNoSound) {
  const std::pair<const char*, const char*> cases[] = {{R"("AAA")", "invalid_value"},
                                                       {R"("AA=A")", "invalid_value"},
                                                       {R"("A===")", "invalid_value"},
                                                       {R"("====")", "invalid_value"},
                                                       {R"("AA A")", "invalid_value"},
                                                       {R"("AA\nA")", "invalid_value"},
                                                       {R"("AA-_AAA=")", "invalid_value"},
                                                       {R"("AAAA")", "invalid_value"},
                                                       {R"("A\u0000AA")", "invalid_value"},
                                                       {"7", "invalid_type"},
                                                       {"null", "invalid_type"},
                                                       {"[]", "invalid_type"}};
  for (const auto& [audio, code] : cases) {
    RealtimeClient client(false, true);
    client.say(std::string(R"({"type":"input_audio_buffer.append","audio":)") + audio + "}");
    EXPECT_EQ(client.error(), code) << audio;
    EXPECT_EQ(client.last("error")["error"]["param"], "audio") << audio;
    EXPECT_TRUE(client.asked.empty()) << audio;
  }
}

TEST(RealtimeAudio, PushToTalkBeginsWithTheFirstSound) {
  const char kSound[] = R"({"type":"input_audio_buffer.append","audio":"AAAAAA=="})";
  RealtimeClient client(false, true);
  client.push_to_talk();
  client.asked.clear();
  client.say(R"({"type":"input_audio_buffer.clear"})");
  EXPECT_TRUE(client.asked.empty()) << "no sound yet";
  client.say(kSound);
  client.say(kSound);
  EXPECT_EQ(client.asked, (std::vector<std::string>{"start", "audio:4", "audio:4"}));
  client.say(R"({"type":"input_audio_buffer.commit"})");
  client.say(kSound);
  EXPECT_EQ(client.error(), "unsupported_mix");
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.asked.back(), "end");
  client.say(kSound);
  EXPECT_EQ(client.asked.back(), "audio:4");
  EXPECT_EQ(client.asked[client.asked.size() - 2], "start") << "the next turn";
  client.say(R"({"type":"input_audio_buffer.clear"})");
  EXPECT_EQ(client.asked.back(), "discard");
}

TEST(RealtimeAudio, AnswersSoundInItsPlace) {
  RealtimeClient client(false, true);
  client.session.speech_started(1, 1000);
  client.session.answer_started(1);
  client.session.answer_audio(1, "abcd");
  EXPECT_EQ(client.count("response.output_audio.delta"), 0) << "the turn may go on";
  client.session.speech_stopped(1, 2000);
  const json delta = client.last("response.output_audio.delta");
  EXPECT_EQ(delta["delta"], "YWJjZA==");
  EXPECT_EQ(delta["response_id"], client.last("response.created")["response"]["id"]);
  EXPECT_EQ(delta["item_id"], client.last("response.output_item.added")["item"]["id"]);
  client.end(1);
  const int before = client.count("response.output_audio.delta");
  client.session.answer_audio(1, "efgh");
  EXPECT_EQ(client.count("response.output_audio.delta"), before) << "it is over";
  RealtimeClient older(true, true);
  older.speak(1);
  older.session.answer_audio(1, "abcd");
  EXPECT_EQ(older.count("response.audio.delta"), 1);
}

// 4 s of sound fit into a message, other messages stay short.
TEST(RealtimeAudio, Limits) {
  RealtimeClient client(false, true);
  const std::string sound(4 * 24000 * 2 / 3 * 4, 'A');
  client.say(R"({"type":"input_audio_buffer.append","audio":")" + sound + "\"}");
  EXPECT_EQ(client.asked, std::vector<std::string>{"audio:192000"});
  client.say(R"({"type":"input_audio_buffer.append","audio":")" + sound + sound + "\"}");
  EXPECT_EQ(client.error(), "message_too_long");
  client.say(R"({"type":"response.cancel","event_id":")" + sound + "\"}");
  EXPECT_EQ(client.error(), "message_too_long");
  // A minute at once, in blocks of 20 ms; what comes faster than 8 times real time is told of once.
  RealtimeClient fast(false, true);
  const std::string block =
      R"({"type":"input_audio_buffer.append","audio":")" + std::string(1280, 'A') + "\"}";
  for (int i = 0; i < 3000; ++i) fast.session.receive(block);
  EXPECT_EQ(fast.asked.size(), 3000u);
  for (int i = 0; i < 3000; ++i) fast.session.receive(block);
  EXPECT_EQ(fast.count("error"), 1);
  EXPECT_EQ(fast.error(), "rate_limit_exceeded");
  EXPECT_LT(fast.asked.size(), 4000u);
  fast.now += 1;
  const size_t before = fast.asked.size();
  for (int i = 0; i < 300; ++i) fast.session.receive(block);
  EXPECT_EQ(fast.asked.size() - before, 300u) << "6 s of sound in a second";
}

// What OpenAI's library for JavaScript sends when the channel opens, if it is told nothing else.
TEST(Realtime, SettingsThatClientsSendByThemselves) {
  RealtimeClient client;
  client.push_to_talk();
  client.say(R"({"type":"session.update","event_id":"update_0","session":{"type":"realtime",
      "instructions":"Sing.","model":"gpt-realtime","output_modalities":["audio"],"audio":{
      "input":{"format":{"type":"audio/pcm","rate":24000},"noise_reduction":null,
        "transcription":{"model":"gpt-4o-mini-transcribe"},"turn_detection":{"type":"semantic_vad",
        "eagerness":"auto","interrupt_response":true}},
      "output":{"format":{"type":"audio/pcm","rate":24000},"speed":1}}}})");
  EXPECT_EQ(client.error(), "");
  EXPECT_EQ(client.last("session.updated")["session"]["instructions"], "Sing.");
  const json turns = client.last("session.updated")["session"]["audio"]["input"]["turn_detection"];
  EXPECT_EQ(turns["type"], "server_vad") << "it is told what holds";
  EXPECT_TRUE(client.turns.enabled);
}

TEST(Realtime, WhatIsEchoed) {
  RealtimeClient client;
  client.say(kMessages[0].message);
  const json audio = client.last("session.updated")["session"]["audio"];
  EXPECT_EQ(audio["output"]["voice"], "bert");
  EXPECT_EQ(audio["input"]["turn_detection"]["threshold"], 0.25);
  EXPECT_TRUE(audio["input"]["transcription"].is_null()) << "there is none";
  EXPECT_EQ(client.turns.prefix_padding_ms, 100);
  EXPECT_EQ(client.turns.silence_duration_ms, 200);
  client.say(R"({"type":"response.cancel","event_id":"twice"})");
  client.say(R"({"type":"response.cancel","event_id":"twice"})");
  EXPECT_EQ(client.count("error"), 2);
  EXPECT_EQ(client.last("error")["error"]["event_id"], "twice");
}

TEST(Realtime, OneResponseAtATime) {
  RealtimeClient client;
  client.type_text("Hello");
  client.takes_text = false;
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.error(), "message_refused");
  EXPECT_FALSE(client.responding());
  client.takes_text = true;
  client.say(R"({"type":"response.create"})");
  EXPECT_TRUE(client.responding()) << "the text still waits";
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.error(), "conversation_already_has_active_response");
  client.say(R"({"type":"response.cancel","response_id":"resp_other"})");
  EXPECT_EQ(client.error(), "response_cancel_not_active");
  EXPECT_TRUE(client.responding());
}

TEST(Realtime, MessagesThatWait) {
  RealtimeClient client;
  client.type_text("Hello");
  about(client, "conversation.item.delete");
  client.say(R"({"type":"response.create"})");
  EXPECT_EQ(client.error(), "nothing_to_answer");
  for (int i = 0; i < 32; ++i) client.type_text("x");
  EXPECT_EQ(client.count("conversation.item.added"), 33);
  client.type_text("x");
  EXPECT_EQ(client.error(), "too_many_items");
  EXPECT_EQ(client.count("conversation.item.added"), 33);
  client.push_to_talk();
  client.say(R"({"type":"input_audio_buffer.clear"})");
  client.say(R"({"type":"input_audio_buffer.commit"})");
  EXPECT_EQ(client.error(), "unsupported_mix");
}

TEST(Realtime, CommitAndClearOfDetectedSpeech) {
  RealtimeClient client;
  client.session.speech_started(1, 0);
  client.say(R"({"type":"input_audio_buffer.commit"})");
  EXPECT_EQ(client.asked, Types{"end"});
  client.session.speech_stopped(1, 500);
  EXPECT_EQ(client.count("input_audio_buffer.committed"), 1);
  client.session.speech_started(2, 1000);
  client.say(R"({"type":"input_audio_buffer.clear"})");
  client.session.speech_cancelled(2);
  EXPECT_EQ(client.asked.back(), "discard");
  EXPECT_EQ(client.count("input_audio_buffer.cleared"), 1);
  EXPECT_EQ(client.count("input_audio_buffer.committed"), 1);
}

}  // namespace
}  // namespace minicpmo::call_server
