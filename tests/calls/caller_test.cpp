// The synthetic caller itself: what it makes of recordings and packets, a call with an echo, and
// what it says when something is wrong.
#include <arpa/inet.h>
#include <glib.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "recording.h"
#include "report.h"
#include "sound.h"

namespace {

using namespace minicpmo::caller;  // NOLINT: what is tested
using nlohmann::json;

constexpr int kRate = 24000;
constexpr Time kSecond = 1000 * kMs;

// Sound of `amplitude` from `from` to `to`, in ms.
void add(Recording* recording, int from, int to, int amplitude) {
  const std::vector<int16_t> samples(static_cast<size_t>(to - from) * kRate / 1000,
                                     static_cast<int16_t>(amplitude));
  recording->add_sound(from * kMs, samples.data(), samples.size());
}

Turn turn(int begin, int voice_end) {
  Turn t;
  t.file = "q.wav";
  t.begin = t.voice_begin = begin * kMs;
  t.voice_end = voice_end * kMs;
  return t;
}

constexpr int kVoice = 8000, kPause = 50;  // a voice's pause is not digital silence

TEST(Report, AnswerWithItsPausesAndGaps) {
  Recording recording("", kRate);
  add(&recording, 1500, 2000, kVoice);
  add(&recording, 2000, 2300, kPause);
  add(&recording, 2300, 2500, kVoice);
  add(&recording, 2600, 3000, kVoice);  // 100 ms are missing before
  add(&recording, 3050, 3500, kVoice);  // 50 ms: not worth a word
  const json j = report_turns({turn(0, 1000)}, recording)[0];
  EXPECT_EQ(j["answered"], true);
  EXPECT_EQ(j["cut_in"], 0);
  EXPECT_EQ(j["first_sound_ms"], 500);
  EXPECT_EQ(j["seconds"], 2.0);
  ASSERT_EQ(j["gaps"].size(), 1u) << j;
  EXPECT_EQ(j["gaps"][0]["at"], 2.5);
  EXPECT_EQ(j["gaps"][0]["ms"], 100);
}

TEST(Report, InterruptedAnswerAndTheNextOne) {
  Recording recording("", kRate);
  add(&recording, 1500, 3180, kVoice);
  add(&recording, 3180, 4500, 0);
  add(&recording, 4500, 5000, kVoice);
  Turn first = turn(0, 1000), second = turn(2900, 4000);
  first.interrupt_at = second.begin;
  second.voice_begin = 3000 * kMs;
  const json j = report_turns({first, second}, recording);
  EXPECT_EQ(j[0]["interrupted"]["after_ms"], 1500);
  EXPECT_EQ(j[0]["interrupted"]["old_sound_ms"], 180);
  EXPECT_EQ(j[0]["seconds"], 1.5);
  EXPECT_EQ(j[1]["cut_in"], 0) << "the old answer's rest is none of the new one";
  EXPECT_EQ(j[1]["first_sound_ms"], 500);
  EXPECT_FALSE(j[1].contains("interrupted"));
}

TEST(Report, AnswerThatCameTooEarlyAndWasStopped) {
  Recording recording("", kRate);
  add(&recording, 400, 700, kVoice);
  add(&recording, 700, 1600, 0);
  add(&recording, 1600, 2000, kVoice);
  const json j = report_turns({turn(0, 1000)}, recording)[0];
  EXPECT_EQ(j["cut_in"], 1);
  EXPECT_EQ(j["first_sound_ms"], 600);
}

TEST(Report, NoAnswer) {
  Recording recording("", kRate);
  add(&recording, 0, 3000, kPause);
  EXPECT_EQ(report_turns({turn(0, 1000)}, recording)[0]["answered"], false);
}

TEST(Report, FirstPacketIsTheOneThatIsHeardFirst) {
  Recording recording("", kRate);
  for (int i = 0; i < 100; ++i) {
    const auto sequence = static_cast<uint16_t>(65500 + i);
    recording.add_packet({i * 20 * kMs + 3 * kMs, 0, 1, sequence, 50});
    recording.add_played(i * 20 * kMs, sequence);
  }
  add(&recording, 0, 1210, 0);
  add(&recording, 1210, 1300, kPause);
  add(&recording, 1300, 1900, kVoice);
  const json j = report_turns({turn(0, 1000)}, recording)[0];
  EXPECT_EQ(j["first_packet_ms"], 203);
  EXPECT_EQ(j["first_sound_ms"], 300);
}

// `count` packets, 20 ms each, with wrap-around, through `change`.
template <class Change>
json stream_with(int count, Change change) {
  std::vector<Packet> packets;
  for (int i = 0; i < count; ++i)
    packets.push_back({i * 20 * kMs, static_cast<uint32_t>(-4800 + i * 960), 1,
                       static_cast<uint16_t>(65530 + i), 50});
  change(&packets);
  return report_stream(packets, 48000);
}

TEST(Stream, WholeOneThatWraps) {
  const json j = stream_with(100, [](auto*) {});
  EXPECT_EQ(j["lost"], 0);
  EXPECT_EQ(j["late"], 0);
  EXPECT_EQ(j["timestamp_jumps"], 0);
  EXPECT_EQ(j["sources"], 1);
  EXPECT_EQ(j["longest_gap_ms"], 20);
  EXPECT_NEAR(j["drift_ms"], 0, 1e-6);
}

TEST(Stream, LostLateAndDoubledPackets) {
  const json j = stream_with(100, [](auto* p) {
    p->erase(p->begin() + 50, p->begin() + 53);
    std::swap((*p)[10].sequence, (*p)[11].sequence);
    std::swap((*p)[10].timestamp, (*p)[11].timestamp);
    p->insert(p->begin() + 30, (*p)[29]);
  });
  EXPECT_EQ(j["lost"], 3);
  EXPECT_EQ(j["late"], 1);
  EXPECT_EQ(j["duplicates"], 1);
  EXPECT_EQ(j["timestamp_jumps"], 0);
  EXPECT_EQ(j["longest_gap_ms"], 80);
}

TEST(Stream, JumpAndDriftAndNewSource) {
  EXPECT_EQ(stream_with(100,
                        [](auto* p) {
                          for (size_t i = 60; i < p->size(); ++i) (*p)[i].timestamp += 4800;
                        })["timestamp_jumps"],
            1);
  const json slow = stream_with(1000, [](auto* p) {
    for (auto& packet : *p) packet.arrival += packet.arrival / 1000;
  });
  EXPECT_NEAR(slow["drift_ms"], 16, 0.5);  // from the first fifth of 20 s to the last one
  const json two = stream_with(100, [](auto* p) {
    for (size_t i = 60; i < p->size(); ++i) (*p)[i].ssrc = 2, (*p)[i].sequence += 777;
  });
  EXPECT_EQ(two["sources"], 2);
  EXPECT_EQ(two["lost"], 0);
}

TEST(Sound, KnowsWhereTheVoiceIs) {
  gst_init(nullptr, nullptr);
  Sound sound;
  std::string problem;
  ASSERT_TRUE(load_sound(SAMPLES "/q01_cap.wav", 48000, &sound, &problem)) << problem;
  EXPECT_GT(sound.voice_end, sound.voice_begin + 48000);
  EXPECT_LT(sound.voice_end, sound.samples.size());
  sound.samples.assign(48000, 20);
  find_voice(48000, &sound);
  EXPECT_EQ(sound.voice_end, 0u) << "-64 dBFS is no voice";
}

// ---- The program

struct Output {
  int status = -1;
  std::string out, err;
};

Output run(const std::string& arguments) {
  const std::string line = "timeout 60 " CALLER " " + arguments;
  gchar *out = nullptr, *err = nullptr;
  gint status = 0;
  EXPECT_TRUE(g_spawn_command_line_sync(line.c_str(), &out, &err, &status, nullptr));
  Output result{WIFEXITED(status) ? WEXITSTATUS(status) : 128, out ? out : "", err ? err : ""};
  g_free(out);
  g_free(err);
  return result;
}

// Sends back what it gets, to one port higher than it is asked for, or keeps it.
class Echo {
 public:
  explicit Echo(int silent_after = -1) : silent_after_(silent_after) {
    in_ = bound(&port), back_ = bound(&back);
    close(back_);
    timeval patience{0, 100000};
    setsockopt(in_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    thread_ = std::thread([this] { work(); });
  }
  ~Echo() {
    stop_ = true;
    thread_.join();
    close(in_);
  }
  std::string arguments() const {
    return "--to 127.0.0.1:" + std::to_string(port) + " --listen " + std::to_string(back) + " ";
  }
  int port = 0, back = 0;

 private:
  static int bound(int* port) {
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
    *port = ntohs(address.sin_port);
    return fd;
  }
  void work() {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(back));
    char packet[2000];
    for (int count = 0; !stop_;) {
      const ssize_t size = recv(in_, packet, sizeof packet, 0);
      if (size <= 0 || (silent_after_ >= 0 && count++ >= silent_after_)) continue;
      sendto(in_, packet, static_cast<size_t>(size), 0, reinterpret_cast<sockaddr*>(&to),
             sizeof to);
    }
  }

  const int silent_after_;
  int in_ = -1, back_ = -1;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

constexpr const char* kQuestion = SAMPLES "/q01_cap.wav ";

TEST(Caller, HearsItsOwnEcho) {
  for (const char* format : {"", "--pcmu ", "--loss 5 --seed 3 "}) {
    Echo echo;
    const Output o = run(echo.arguments() + "--json " + format + kQuestion);
    ASSERT_EQ(o.status, 0) << o.err;
    const json j = json::parse(o.out);
    const json& t = j["turns"][0];
    const double length = t["said"]["to"].get<double>() - t["said"]["from"].get<double>();
    EXPECT_NEAR(t["seconds"].get<double>(), length, 0.1) << format;
    const double delay = t["answer"]["from"].get<double>() - t["said"]["from"].get<double>();
    EXPECT_GT(delay, 0) << format;
    EXPECT_EQ(j["stream"]["sources"], 1);
    EXPECT_EQ(j["stream"]["lost"] == 0, j["sent"]["lost"] == 0) << j;
  }
}

TEST(Caller, SameSeedLosesTheSamePackets) {
  std::vector<json> rows;
  for (int seed : {7, 7, 8}) {
    Echo echo;
    const Output o = run(echo.arguments() + "--json --loss 20 --seed " + std::to_string(seed) +
                         " --connect-timeout 0 wait:2000");
    ASSERT_EQ(o.status, 0) << o.err;
    rows.push_back(json::parse(o.out)["sent"]["lost"]);
  }
  // The last packet may or may not be on its way when the call ends.
  EXPECT_NEAR(rows[0].get<int>(), rows[1].get<int>(), 1);
  EXPECT_GT(rows[0].get<int>(), 5);
  EXPECT_LT(rows[0].get<int>(), 40);
}

TEST(Caller, WritesARecordingThatIsAsLongAsTheCall) {
  Echo echo;
  const auto file = std::filesystem::temp_directory_path() / ("caller-" + std::to_string(getpid()));
  const Output o = run(echo.arguments() + "--json -o " + file.string() + " wait:1000");
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_NEAR(static_cast<double>(std::filesystem::file_size(file)) / 48000, 1.05, 0.3);
  std::filesystem::remove(file);
}

TEST(Caller, NobodyAnswers) {
  const Output nobody = run("--listen 1 --connect-timeout 0.5 " + std::string(kQuestion));
  EXPECT_EQ(nobody.status, 1);
  Echo silent(20);
  const Output o = run(silent.arguments() + "--timeout 1 " + kQuestion);
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("no answer to " SAMPLES "/q01_cap.wav within 1 s"), std::string::npos)
      << o.err;
  Echo mute(0);
  const Output m = run(mute.arguments() + "--connect-timeout 1 " + kQuestion);
  EXPECT_EQ(m.status, 1);
  EXPECT_NE(m.err.find("no RTP packet came to port " + std::to_string(mute.back)),
            std::string::npos)
      << m.err;
}

TEST(Caller, WrongArguments) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "name what to say"},
      {"--to nowhere x.wav", "--to takes"},
      {"--to 127.0.0.1:70000 x.wav", "--to takes"},
      {"--listen 0 x.wav", "--listen takes"},
      {"--srtp-key abc x.wav", "60 hexadecimal"},
      {"--interrupt-after 5,x x.wav", "--interrupt-after takes"},
      {"--interrupt-random 500 x.wav", "--interrupt-random takes"},
      {"--loss 101 x.wav", "percentage"},
      {"--burst 5 x.wav", "--burst takes"},
      {"--blackout 5 x.wav", "--blackout takes"},
      {"--sing x.wav", "--sing"}};
  for (const auto& [arguments, says] : cases) {
    const Output o = run(arguments);
    EXPECT_EQ(o.status, 2) << arguments;
    EXPECT_NE(o.err.find(says), std::string::npos) << o.err;
  }
  const Output missing = run("/no/such/question.wav");
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.err.find("/no/such/question.wav"), std::string::npos) << missing.err;
  EXPECT_EQ(run("--help").status, 0);
}

}  // namespace
