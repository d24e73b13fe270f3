// libFuzzer target: any bytes as a session of a Realtime client: its messages, a line each, between
// which turns and answers come and go. Build with clang:
//   CXX=clang++ meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/realtime_fuzz
//   cd tests/fuzz && ../../build-fuzz/tests/fuzz/realtime_fuzz -dict=realtime.dict CORPUS realtime
// New inputs go into CORPUS; tests/fuzz/realtime are those that were kept.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "realtime.h"

using minicpmo::call_server::AnswerEnd;
using minicpmo::call_server::RealtimeSession;

namespace {

struct Call : minicpmo::call_server::CallControl {
  // What goes out is a whole event; a response is over before the next begins.
  void send(const std::string& text) override {
    if (!text.starts_with("{\"type\":\"") || !text.ends_with("}") ||
        text.find("\"event_id\":\"event_1_") == text.npos)
      std::abort();
    if (text.starts_with("{\"type\":\"response.created\"") && std::exchange(responding, true))
      std::abort();
    if (text.starts_with("{\"type\":\"response.done\"") && !std::exchange(responding, false))
      std::abort();
  }
  bool push_text(const std::string& text) override { return !text.empty(); }
  void interrupt() override {}
  void set_instructions(const std::string&) override {}
  void set_voice(const std::string& name) override {
    if (name != "anna" && name != "bert") std::abort();
  }
  void set_turn_detection(const minicpmo::call_server::TurnDetection& turns) override {
    if (!(turns.threshold >= 0 && turns.threshold <= 1) || turns.prefix_padding_ms < 0 ||
        turns.silence_duration_ms < 0)
      std::abort();
  }
  void start_turn() override {}
  void end_turn() override {}
  void discard_turn() override {}
  void reset_conversation() override {}
  bool append_audio(std::string_view pcm) override {
    if (pcm.empty() || pcm.size() % 2 != 0) std::abort();
    return pcm.size() < 64;
  }
  bool responding = false;
};

// A line that begins with a digit is something that happens in the call.
bool happens(RealtimeSession& session, std::string_view line) {
  if (line.empty() || line[0] < '0' || line[0] > '9') return false;
  const uint64_t turn = line.size() > 1 ? line[1] & 3 : 0;
  const std::string_view text = line.substr(std::min<size_t>(2, line.size()));
  switch (line[0] - '0') {
    case 0:
      session.speech_started(turn, 0);
      break;
    case 1:
      session.speech_stopped(turn, 10);
      break;
    case 2:
      session.speech_cancelled(turn);
      break;
    case 3:
      session.answer_started(turn);
      break;
    case 4:
      session.answer_words(turn, text);
      break;
    case 5:
      session.audio_started(turn);
      break;
    case 6:
      session.audio_stopped(turn);
      if (text.size() > 3) session.answer_audio(turn, text);
      break;
    case 7:
      session.answer_ended(turn, static_cast<AnswerEnd>(text.size() % 5), text,
                           text.substr(0, text.size() / 2));
      break;
    case 8:
      session.failed(text);
      break;
    default:
      session.turn_traced(turn, text);
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  double now = 0;
  Call call;
  RealtimeSession session(call, {.session_id = "1",
                                 .voices = {"anna", "bert"},
                                 .max_message_bytes = 2048,
                                 .audio_events = size % 2 == 1,
                                 .beta = size % 4 >= 2,
                                 .seconds = [&now] { return now += 0.015; }});
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto next_line = [&rest] {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    return line;
  };
  // The session that came with the offer.
  if (rest.starts_with('s')) session.configure(next_line().substr(1));
  session.opened();
  while (!rest.empty()) {
    const std::string_view line = next_line();
    if (!happens(session, line)) session.receive(line);
  }
  return 0;
}
