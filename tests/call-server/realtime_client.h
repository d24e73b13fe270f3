// A client of a RealtimeSession, and the call behind it, for tests: what was sent and asked for is
// recorded, and every event is checked against those before it.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "realtime.h"

namespace minicpmo::call_server {

using nlohmann::json;

class RealtimeClient : public CallControl {
 public:
  explicit RealtimeClient(bool beta = false, bool audio_events = false)
      : session(*this, {.session_id = "7",
                        .model = "minicpm-o-2.6",
                        .instructions = "Be brief.",
                        .voices = {"anna", "bert"},
                        .audio_events = audio_events,
                        .beta = beta,
                        .seconds = [this] { return now; }}) {
    session.opened();
  }

  // CallControl.
  void send(const std::string& text) override { check(events.emplace_back(json::parse(text))); }
  bool push_text(const std::string& text) override {
    asked.push_back("text:" + text);
    return takes_text;
  }
  void interrupt() override { asked.push_back("interrupt"); }
  void set_instructions(const std::string& text) override { asked.push_back("say:" + text); }
  void set_voice(const std::string& name) override { asked.push_back("voice:" + name); }
  void set_turn_detection(const TurnDetection& detection) override {
    turns = detection;
    asked.push_back("turns");
  }
  void start_turn() override { asked.push_back("start"); }
  void end_turn() override { asked.push_back("end"); }
  void discard_turn() override { asked.push_back("discard"); }
  void reset_conversation() override { asked.push_back("reset"); }
  bool append_audio(std::string_view pcm) override {
    asked.push_back("audio:" + std::to_string(pcm.size()));
    return takes_audio;
  }

  // What a client does.
  void say(const std::string& message) {
    now += 1;  // no test but that of the rate is about the rate
    session.receive(message);
  }
  void type_text(const std::string& text) {
    say(json{{"type", "conversation.item.create"},
             {"item",
              {{"type", "message"},
               {"role", "user"},
               {"content", {{{"type", "input_text"}, {"text", text}}}}}}}
            .dump());
  }
  void push_to_talk() {
    say(R"({"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}})");
  }

  // What happens in a call.
  void speak(uint64_t turn) {
    session.speech_started(turn, 1000);
    session.speech_stopped(turn, 2000);
  }
  void answer(uint64_t turn, const std::string& text = "Four.") {
    session.answer_started(turn);
    session.answer_words(turn, text);
    session.audio_started(turn);
  }
  void end(uint64_t turn, const std::string& text = "Four.") {
    session.answer_ended(turn, AnswerEnd::kComplete, text, text);
    session.audio_stopped(turn);
  }

  int count(const std::string& type) const {
    int found = 0;
    for (const json& event : events) found += event["type"] == type;
    return found;
  }
  // The newest of this type; null if there is none.
  json last(const std::string& type) const {
    for (auto event = events.rbegin(); event != events.rend(); ++event)
      if ((*event)["type"] == type) return *event;
    return {};
  }
  std::string error() const {
    const json event = last("error");
    return event.is_null() ? "" : event["error"]["code"].get<std::string>();
  }
  // The types since the last call of this.
  std::vector<std::string> types() {
    std::vector<std::string> all;
    for (; told < events.size(); ++told) all.push_back(events[told]["type"]);
    return all;
  }
  bool responding() const { return !open_response.empty(); }

  std::vector<json> events;
  std::vector<std::string> asked;
  TurnDetection turns;
  bool takes_text = true, takes_audio = true;
  double now = 100;

 private:
  // What holds of every stream of events.
  void check(const json& event) {
    const std::string type = event["type"];
    EXPECT_TRUE(ids.insert(event["event_id"]).second) << event;
    if (type == "response.created") {
      EXPECT_EQ(open_response, "") << "two responses at once: " << event;
      open_response = event["response"]["id"];
      EXPECT_TRUE(ids.insert(open_response).second) << event;
      said.clear();
      open_item.clear();
    } else if (type == "response.output_item.added") {
      EXPECT_EQ(event["response_id"], open_response);
      open_item = event["item"]["id"];
      EXPECT_TRUE(ids.insert(open_item).second) << event;
    } else if (type == "response.content_part.added") {
      EXPECT_TRUE(in_place(event)) << event;
      parts.insert(open_response);
    } else if (type.ends_with("transcript.delta")) {
      EXPECT_TRUE(in_place(event) && parts.contains(open_response)) << event;
      said += event["delta"].get<std::string>();
    } else if (type.ends_with("transcript.done")) {
      EXPECT_TRUE(in_place(event)) << event;
      EXPECT_EQ(event["transcript"], said);
    } else if (type == "response.done") {
      EXPECT_EQ(event["response"]["id"], open_response) << event;
      EXPECT_EQ(event["response"]["output"].size(), parts.contains(open_response) ? 1u : 0u);
      open_response.clear();
    } else if (type == "output_audio_buffer.started") {
      EXPECT_EQ(sounding, "") << "two answers are heard at once: " << event;
      sounding = event["response_id"];
      // Those that were complete without a word have no part.
      EXPECT_TRUE(parts.contains(sounding) || sounding != open_response) << event;
    } else if (type == "output_audio_buffer.stopped") {
      EXPECT_EQ(event["response_id"], sounding) << event;
      sounding.clear();
    } else if (type == "output_audio_buffer.cleared") {
      EXPECT_TRUE(event["response_id"] == sounding || sounding.empty()) << event;
      sounding.clear();
    }
  }
  bool in_place(const json& event) const {
    return event["response_id"] == open_response && event["item_id"] == open_item &&
           event["output_index"] == 0 && event["content_index"] == 0;
  }

  std::set<std::string> ids, parts;
  std::string open_response, open_item, said, sounding;
  size_t told = 0;

 public:
  RealtimeSession session;  // last: it uses the others
};

}  // namespace minicpmo::call_server
