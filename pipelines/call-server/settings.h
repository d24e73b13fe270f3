// What the command line says.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/result.h"

namespace minicpmo::call_server {

struct Settings {
  // HTTP
  std::string address = "127.0.0.1";  // --address; anything else than loopback needs a token
  int port = 8080;                    // --port; 0: any free one, printed
  std::string token;  // --token, or $MINICPMO_CALL_TOKEN; clients send it as a bearer token
  std::vector<std::string> origins;  // --origin (several): pages elsewhere that may call; "*": all
  // WebRTC
  std::string stun_server;  // --stun-server stun://HOST:PORT
  std::vector<std::string>
      turn_servers;                  // --turn-server turn(s)://USER:PASSWORD@HOST:PORT (several)
  std::string transport = "webrtc";  // --transport: what the page tries first: webrtc, websocket
  // Limits
  int max_calls = 8;           // --max-calls
  int offers_per_minute = 10;  // --offers-per-minute, of an address
  int connect_timeout_s =
      15;                   // --connect-timeout: an answered offer that does not connect is dropped
  int idle_timeout_s = 60;  // --idle-timeout: no packet from the client
  int max_call_s = 1800;    // --max-call
  int late_pause_s = 10;    // --late-pause: no new calls after an answer came late; 0: regardless
  int drain_timeout_s = 30;     // --drain-timeout: what a running answer gets after SIGTERM
  int max_offer_bytes = 65536;  // not on the command line
  // The elements
  std::string model;                          // --model; none: as minicpmollm's
  std::string device = "auto";                // --device
  std::string system_prompt;                  // --system-prompt; none: the elements' own
  int max_codes = 0;                          // --max-codes; 0: the elements' own
  std::map<std::string, std::string> voices;  // --voice NAME=FILE.wav (several)
  bool log_text = false;                      // --log-text: words of users and answers into the log
};

// kSettings with a message that names the option. `argv` as main's; --help and --version print and
// end the program, as in every GStreamer tool.
Result<Settings> parse_settings(int argc, char** argv);

}  // namespace minicpmo::call_server
