// The command line of minicpmo-call-server.
#include "settings.h"

#include <gst/gst.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace {

using minicpmo::ErrorCode;
using minicpmo::Result;
using minicpmo::call_server::parse_settings;
using minicpmo::call_server::Settings;

class CommandLine : public testing::Test {
 protected:
  void SetUp() override {
    unsetenv("MINICPMO_CALL_TOKEN");
    // GStreamer starts threads.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    char name[] = "/tmp/call-server-test-XXXXXX";
    folder_ = mkdtemp(name);
    voice_ = folder_ + "/voice.wav";
    std::ofstream(voice_) << "RIFF";
  }
  void TearDown() override {
    unlink(voice_.c_str());
    rmdir(folder_.c_str());
    unsetenv("MINICPMO_CALL_TOKEN");
  }
  static Result<Settings> parse(std::vector<std::string> words) {
    words.insert(words.begin(), "minicpmo-call-server");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    return parse_settings(static_cast<int>(words.size()), argv.data());
  }
  static Settings accepted(const std::vector<std::string>& words) {
    const auto settings = parse(words);
    EXPECT_TRUE(settings.ok()) << settings.error().message;
    return settings.ok() ? *settings : Settings();
  }
  // The message names the option and its value, and says what to do.
  static std::string refused(const std::vector<std::string>& words, const std::string& begin,
                             const std::string& advice) {
    const auto settings = parse(words);
    EXPECT_FALSE(settings.ok()) << begin;
    if (settings.ok()) return "";
    const std::string& message = settings.error().message;
    EXPECT_EQ(settings.error().code, ErrorCode::kSettings);
    EXPECT_EQ(message.substr(0, begin.size()), begin);
    EXPECT_NE(message.find(advice), std::string::npos) << message;
    return message;
  }
  std::string folder_, voice_;
};

TEST_F(CommandLine, NothingSaid) {
  const Settings s = accepted({});
  EXPECT_EQ(s.address, "127.0.0.1");
  EXPECT_EQ(s.port, 8080);
  EXPECT_EQ(s.token, "");
  EXPECT_TRUE(s.origins.empty());
  EXPECT_EQ(s.stun_server, "");
  EXPECT_TRUE(s.turn_servers.empty());
  EXPECT_EQ(s.max_calls, 8);
  EXPECT_EQ(s.offers_per_minute, 10);
  EXPECT_EQ(s.connect_timeout_s, 15);
  EXPECT_EQ(s.idle_timeout_s, 60);
  EXPECT_EQ(s.late_pause_s, 10);
  EXPECT_EQ(s.max_call_s, 1800);
  EXPECT_EQ(s.drain_timeout_s, 30);
  EXPECT_EQ(s.model, "");
  EXPECT_EQ(s.device, "auto");
  EXPECT_EQ(s.system_prompt, "");
  EXPECT_EQ(s.max_codes, 0);
  EXPECT_TRUE(s.voices.empty());
  EXPECT_FALSE(s.log_text);
}

TEST_F(CommandLine, EverythingSaid) {
  const std::vector<std::string> turn = {"turn://u:p@turn.example:3478",
                                         "turns://a%3Ab:c%2F=@[2001:db8::1]:5349?transport=tcp"};
  const Settings s = accepted({"--address=0.0.0.0",
                               "-p",
                               "0",
                               "--token",
                               "abc.DEF-123",
                               "--origin",
                               "https://a.example",
                               "--origin",
                               "*",
                               "--stun-server",
                               "stun://stun.example:3478",
                               "--turn-server",
                               turn[0],
                               "--turn-server",
                               turn[1],
                               "--max-calls",
                               "2",
                               "--offers-per-minute",
                               "3",
                               "--connect-timeout",
                               "4",
                               "--idle-timeout",
                               "5",
                               "--max-call",
                               "6",
                               "--late-pause",
                               "0",
                               "--drain-timeout",
                               "0",
                               "--model",
                               folder_,
                               "--device",
                               "cuda:1",
                               "--system-prompt",
                               "Sprich \xe4\xbd\xa0\xe5\xa5\xbd",
                               "--max-codes",
                               "375",
                               "--voice",
                               "anna=" + voice_,
                               "--voice",
                               "b=" + voice_,
                               "--log-text"});
  EXPECT_EQ(s.address, "0.0.0.0");
  EXPECT_EQ(s.port, 0);
  EXPECT_EQ(s.token, "abc.DEF-123");
  EXPECT_EQ(s.origins, (std::vector<std::string>{"https://a.example", "*"}));
  EXPECT_EQ(s.stun_server, "stun://stun.example:3478");
  EXPECT_EQ(s.turn_servers, turn);
  EXPECT_EQ(s.max_calls, 2);
  EXPECT_EQ(s.offers_per_minute, 3);
  EXPECT_EQ(s.connect_timeout_s, 4);
  EXPECT_EQ(s.idle_timeout_s, 5);
  EXPECT_EQ(s.late_pause_s, 0);
  EXPECT_EQ(s.max_call_s, 6);
  EXPECT_EQ(s.drain_timeout_s, 0);
  EXPECT_EQ(s.model, folder_);
  EXPECT_EQ(s.device, "cuda:1");
  EXPECT_EQ(s.system_prompt, "Sprich \xe4\xbd\xa0\xe5\xa5\xbd");
  EXPECT_EQ(s.max_codes, 375);
  EXPECT_EQ(s.voices, (std::map<std::string, std::string>{{"anna", voice_}, {"b", voice_}}));
  EXPECT_TRUE(s.log_text);
}

TEST_F(CommandLine, OptionsOfGstreamer) {
  accepted({"--gst-debug-no-color", "--port", "1"});
  EXPECT_TRUE(gst_is_initialized());
}

TEST_F(CommandLine, AddressElsewhereNeedsAToken) {
  for (const char* address : {"0.0.0.0", "::", "192.0.2.1", "2001:db8::1"}) {
    refused({"--address", address}, std::string("--address ") + address + ": ",
            "set MINICPMO_CALL_TOKEN");
    EXPECT_EQ(accepted({"--address", address, "--token", "t"}).address, address);
  }
  for (const char* address : {"127.0.0.1", "127.0.0.2", "::1"})
    EXPECT_EQ(accepted({"--address", address}).address, address);
  EXPECT_EQ(accepted({"--address", "localhost"}).address, "127.0.0.1");
  for (const char* wrong : {"example.org", "256.0.0.1", "127.0.0.1:80", "[::1]"})
    refused({"--address", wrong, "--token", "t"}, std::string("--address ") + wrong + ": ",
            "such as 127.0.0.1");
  refused({"--address", ""}, "--address \"\": ", "such as 127.0.0.1");
}

TEST_F(CommandLine, TokenOfTheEnvironment) {
  setenv("MINICPMO_CALL_TOKEN", "from-environment", 1);
  EXPECT_EQ(accepted({"--address", "0.0.0.0"}).token, "from-environment");
  EXPECT_EQ(accepted({"--token", "given"}).token, "given");
  setenv("MINICPMO_CALL_TOKEN", "", 1);
  EXPECT_EQ(accepted({}).token, "");
  refused({"--address", "0.0.0.0"}, "--address 0.0.0.0: ", "set MINICPMO_CALL_TOKEN");
  setenv("MINICPMO_CALL_TOKEN", "my secret", 1);
  const std::string message = refused({}, "MINICPMO_CALL_TOKEN ", "openssl rand");
  EXPECT_EQ(message.find("my secret"), message.npos);
}

TEST_F(CommandLine, BadTokens) {
  refused({"--token", ""}, "--token \"\": ", "leave the option out");
  for (const char* bad : {"my secret", "a\nb", "\xc3\xa4", "\""}) {
    const std::string message = refused({"--token", bad}, "--token (not shown): ", "openssl rand");
    EXPECT_EQ(message.find(std::string(bad) + ":"), message.npos) << message;
  }
}

TEST_F(CommandLine, NumbersOutOfRange) {
  const struct {
    const char* option;
    int least, most;
  } numbers[] = {{"--port", 0, 65535},          {"--max-calls", 1, 1000},
                 {"--connect-timeout", 1, 600}, {"--offers-per-minute", 1, 1000000},
                 {"--idle-timeout", 1, 86400},  {"--max-call", 1, 86400},
                 {"--drain-timeout", 0, 3600},  {"--late-pause", 0, 3600},
                 {"--max-codes", 0, 1 << 20}};
  for (const auto& n : numbers) {
    const std::string range = "from " + std::to_string(n.least) + " to " + std::to_string(n.most);
    for (const int wrong : {n.least - 1, n.most + 1, -2000000000}) {
      const std::string value = std::to_string(wrong);
      refused({n.option, value}, std::string(n.option) + " " + value + ": ", range);
    }
    accepted({n.option, std::to_string(n.least)});
    accepted({n.option, std::to_string(n.most)});
    const auto text = parse({n.option, "x1"});
    ASSERT_FALSE(text.ok());
    EXPECT_NE(text.error().message.find("x1"), std::string::npos);
    EXPECT_NE(text.error().message.find(n.option), std::string::npos);
    EXPECT_FALSE(parse({n.option, "99999999999"}).ok());
  }
}

TEST_F(CommandLine, BadOrigins) {
  for (const char* bad : {"example.org", "https://example.org/", "https://example.org/page",
                          "https://", "null", "https://a:99999"})
    refused({"--origin", bad}, std::string("--origin ") + bad + ": ", "https://HOST");
}

TEST_F(CommandLine, BadStunServers) {
  for (const char* bad :
       {"stun:stun.example:3478", "stun.example:3478", "stun://stun.example", "stun://:3478",
        "stun://stun.example:0", "stun://stun.example:65536", "stun://stun.example:3478/",
        "stun://u:p@stun.example:3478", "turn://stun.example:3478", "stun://a b:3478",
        "stun://2001:db8::1:3478", "stun://stun.example:99999999999"})
    refused({"--stun-server", bad}, std::string("--stun-server ") + bad + ": ", "stun://HOST:PORT");
  EXPECT_EQ(accepted({"--stun-server", "stun://[2001:db8::1]:1"}).stun_server,
            "stun://[2001:db8::1]:1");
  const std::string message =
      refused({"--stun-server", "stun://" + std::string(100000, 'a') + ":1"},
              "--stun-server stun://aaa", "stun://HOST:PORT");
  EXPECT_LT(message.size(), 500u);
}

TEST_F(CommandLine, BadTurnServers) {
  for (const char* bad :
       {"turn:u:sesame@t.example:3478", "turn://t.example:3478", "turn://u@t.example:3478",
        "turn://u:@t.example:3478", "turn://:sesame@t.example:3478", "turn://u:sesame@t.example",
        "turn://u:sesame@t.example:0", "turn://u:sesame@t.example:70000",
        "turn://u:ses:ame@t.example:3478", "turn://u:ses@me@t.example:3478",
        "turn://u:sesame%@t.example:3478", "turn://u:sesame@t.example:3478?transport=sctp",
        "turn://u:sesame@t.example:3478?x=y", "turn://u:sesame@t.example:3478/path",
        "http://u:sesame@t.example:3478"}) {
    const std::string message = refused({"--turn-server", bad}, "--turn-server ", "%3A");
    EXPECT_EQ(message.find("sesame"), message.npos) << message;
    EXPECT_NE(message.find("t.example"), message.npos) << message;
  }
  accepted({"--turn-server", "turn://u:p@t.example:3478?transport=udp"});
}

TEST_F(CommandLine, BadVoices) {
  const std::string missing = folder_ + "/missing.wav";
  refused({"--voice", "anna=" + missing}, "--voice anna=" + missing, "give a sound file");
  refused({"--voice", "anna=" + folder_}, "--voice anna=" + folder_, "give a sound file");
  refused({"--voice", "anna="}, "--voice anna=: ", "give a sound file");
  refused({"--voice", "anna"}, "--voice anna: ", "NAME=FILE");
  refused({"--voice", "=" + voice_}, "--voice =" + voice_, "NAME=FILE");
  refused({"--voice", "a b=" + voice_}, "--voice a b=", "NAME=FILE");
  refused({"--voice", std::string(65, 'a') + "=" + voice_}, "--voice aaa", "NAME=FILE");
  refused({"--voice", "anna=" + voice_, "--voice", "anna=" + voice_}, "--voice anna=" + voice_,
          "a name of its own");
}

TEST_F(CommandLine, BadElements) {
  refused({"--model", voice_}, "--model " + voice_ + ": ", "give the directory");
  refused({"--device", "gpu"}, "--device gpu: ", "auto, cpu or cuda:N");
  refused({"--device", "cuda:-1"}, "--device cuda:-1: ", "auto, cpu or cuda:N");
  refused({"--system-prompt", "\xff"}, "--system-prompt ", "UTF-8");
}

TEST_F(CommandLine, WhatIsNoOption) {
  refused({"--max-cals", "3"}, "Unknown option --max-cals", "--help-all");
  refused({"please"}, "please: is no option", "--help-all");
}

// Prints on stderr, where EXPECT_EXIT looks.
void print_and_end(const std::string& option) {
  dup2(STDERR_FILENO, STDOUT_FILENO);
  std::string program = "minicpmo-call-server", word = option;
  char* argv[] = {program.data(), word.data(), nullptr};
  (void)parse_settings(2, argv);
  _exit(99);  // it came back
}

TEST_F(CommandLine, HelpAndVersion) {
  const auto ended_well = testing::ExitedWithCode(0);
  EXPECT_EXIT(print_and_end("--help"), ended_well, "--voice=NAME=FILE.wav(.|\n)*Examples:");
  EXPECT_EXIT(print_and_end("--help-limits"), ended_well, "--max-calls=N");
  EXPECT_EXIT(print_and_end("--help-network"), ended_well, "--stun-server=stun://HOST:PORT");
  EXPECT_EXIT(print_and_end("--help-all"), ended_well, "--drain-timeout(.|\n)*--gst-debug");
  EXPECT_EXIT(print_and_end("--version"), ended_well, "minicpmo-call-server [0-9](.|\n)*GStreamer");
}

}  // namespace
