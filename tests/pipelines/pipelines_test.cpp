// Runs each script of pipelines/ as a user would, and looks at what it prints and writes.
#include <glib.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct Output {
  int status = -1;
  std::string out, err;
};

Output run(std::vector<std::string> arguments, const std::string& input = "") {
  std::vector<gchar*> argv;
  for (auto& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  Output result;
  gint in_fd = -1, out_fd = -1, err_fd = -1;
  GPid pid = 0;
  GError* error = nullptr;
  if (!g_spawn_async_with_pipes(
          nullptr, argv.data(), nullptr,
          static_cast<GSpawnFlags>(G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD), nullptr,
          nullptr, &pid, &in_fd, &out_fd, &err_fd, &error)) {
    result.err = error->message;
    g_error_free(error);
    return result;
  }
  EXPECT_EQ(write(in_fd, input.data(), input.size()), static_cast<ssize_t>(input.size()));
  close(in_fd);
  // Neither stream of these scripts comes near a pipe's 64 kB: one after the other cannot block.
  for (auto [fd, text] : {std::pair{out_fd, &result.out}, {err_fd, &result.err}}) {
    char block[4096];
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;) text->append(block, n);
    close(fd);
  }
  int wait_status = 0;
  waitpid(pid, &wait_status, 0);
  result.status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128;
  return result;
}

struct Wav {
  int rate = 0, channels = 0, bits = 0;
  std::vector<float> samples;
  double seconds() const {
    return rate ? samples.size() / static_cast<double>(rate) / channels : 0;
  }
};

Wav read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string b((std::istreambuf_iterator<char>(file)), {});
  auto u32 = [&](size_t i) {
    uint32_t v;
    std::memcpy(&v, &b[i], 4);
    return v;
  };
  auto u16 = [&](size_t i) {
    uint16_t v;
    std::memcpy(&v, &b[i], 2);
    return v;
  };
  Wav wav;
  if (b.size() < 12 || b.compare(0, 4, "RIFF") != 0) return wav;
  for (size_t i = 12; i + 8 <= b.size(); i += 8 + u32(i + 4) + (u32(i + 4) & 1)) {
    if (b.compare(i, 4, "fmt ") == 0) {
      wav.channels = u16(i + 10), wav.rate = static_cast<int>(u32(i + 12)), wav.bits = u16(i + 22);
    } else if (b.compare(i, 4, "data") == 0) {
      // A header that was never completed says 0 or -1 here: then there is no sample to read.
      const size_t n = u32(i + 4);
      if (i + 8 + n > b.size()) return wav;
      for (size_t s = i + 8; s + 1 < i + 8 + n; s += 2) {
        wav.samples.push_back(static_cast<int16_t>(u16(s)) / 32768.0f);
      }
    }
  }
  return wav;
}

// Loudness in steps of 10 ms: enough to tell that a received answer is the sent one.
std::vector<double> envelope(const Wav& wav) {
  const size_t step = static_cast<size_t>(wav.rate / 100 * wav.channels);
  std::vector<double> e;
  for (size_t i = 0; i + step <= wav.samples.size(); i += step) {
    double sum = 0;
    for (size_t k = i; k < i + step; ++k) sum += wav.samples[k] * wav.samples[k];
    e.push_back(std::sqrt(sum / step));
  }
  return e;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b, int shift) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const int64_t k = static_cast<int64_t>(i) + shift;
    const double y = k >= 0 && k < static_cast<int64_t>(b.size()) ? b[k] : 0;
    ab += a[i] * y, aa += a[i] * a[i], bb += y * y;
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

class Pipelines : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("minicpmo-pipelines-" + std::to_string(getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string file(const std::string& name) const { return directory_ / name; }
  static std::string script(const std::string& name) { return std::string(PIPELINES) + "/" + name; }
  static std::string sample(const std::string& name) { return std::string(SAMPLES) + "/" + name; }

  fs::path directory_;
};

TEST_F(Pipelines, QuestionToWavSpeaksTheAnswer) {
  const Output o = run({script("question-to-wav"), sample("q01_cap.wav"), file("a.wav")});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "The capital of Norway is Oslo.\n");
  const Wav wav = read_wav(file("a.wav"));
  EXPECT_EQ(wav.rate, 24000);
  EXPECT_EQ(wav.channels, 1);
  EXPECT_NEAR(wav.seconds(), 2.347, 0.001);
  EXPECT_GT(*std::max_element(wav.samples.begin(), wav.samples.end()), 0.1f);
}

TEST_F(Pipelines, QuestionToWavGivesTheSameSamplesTwice) {
  ASSERT_EQ(run({script("question-to-wav"), sample("q07_seq.wav"), file("a.wav")}).status, 0);
  ASSERT_EQ(run({script("question-to-wav"), sample("q07_seq.wav"), file("b.wav")}).status, 0);
  const Wav a = read_wav(file("a.wav")), b = read_wav(file("b.wav"));
  ASSERT_GT(a.samples.size(), 24000u);
  ASSERT_EQ(a.samples.size(), b.samples.size());
  float worst = 0;
  for (size_t i = 0; i < a.samples.size(); ++i)
    worst = std::max(worst, std::abs(a.samples[i] - b.samples[i]));
  EXPECT_LE(worst, 2.1f / 32768) << "more than audioconvert's dither of one step each";
}

TEST_F(Pipelines, QuestionToWavNamesAMissingFile) {
  const Output o = run({script("question-to-wav"), file("absent.wav"), file("a.wav")});
  EXPECT_NE(o.status, 0);
  EXPECT_NE(o.err.find("absent.wav"), std::string::npos) << o.err;
}

TEST_F(Pipelines, CaptionsPrintsTheWords) {
  const Output o = run({script("captions"), sample("q04_spell.wav")});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "Queen is spelled Q, U, E, E, N.\n");
}

TEST_F(Pipelines, TextQuestionRemembersTheConversation) {
  const Output o =
      run({script("text-question"), file("a.wav")}, "my name is Laura\nwhat is my name\n");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("Nice to meet you, Laura."), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("Your name is Laura."), std::string::npos) << o.out;
  EXPECT_GT(read_wav(file("a.wav")).seconds(), 2.0);
}

TEST_F(Pipelines, TextToSpeechSpeaksASentence) {
  const Output o = run({script("text-to-speech"), "The capital of Norway is Oslo.", file("a.wav")});
  ASSERT_EQ(o.status, 0) << o.err;
  const Wav wav = read_wav(file("a.wav"));
  EXPECT_EQ(wav.rate, 24000);
  EXPECT_GT(wav.seconds(), 1.5);
  EXPECT_LT(wav.seconds(), 4.0);
  EXPECT_GT(*std::max_element(wav.samples.begin(), wav.samples.end()), 0.1f);
}

TEST_F(Pipelines, RtpReceiverHearsTheWholeAnswer) {
  ASSERT_EQ(run({script("question-to-wav"), sample("q01_cap.wav"), file("sent.wav")}).status, 0);
  // A port of this process's own, so that two test runs do not meet.
  const std::string port = std::to_string(20000 + getpid() % 20000);
  const Output o =
      run({script("question-to-rtp"), sample("q01_cap.wav"), file("received.wav"), port});
  ASSERT_EQ(o.status, 0) << o.err;
  const Wav sent = read_wav(file("sent.wav")), received = read_wav(file("received.wav"));
  ASSERT_EQ(received.rate, 48000);
  EXPECT_NEAR(received.seconds(), sent.seconds(), 0.06);
  double best = 0;
  const auto a = envelope(sent), b = envelope(received);
  for (int shift = -10; shift <= 10; ++shift) best = std::max(best, correlation(a, b, shift));
  EXPECT_GT(best, 0.95);
}

TEST_F(Pipelines, AskPrintsFiguresAsJson) {
  const Output o = run({ASK, "--json", "--runs", "2", sample("q01_cap.wav")});
  ASSERT_EQ(o.status, 0) << o.err;
  const auto j = nlohmann::json::parse(o.out);
  ASSERT_EQ(j.size(), 2u);
  for (const auto& turn : j) {
    EXPECT_EQ(turn["text"], "The capital of Norway is Oslo.");
    EXPECT_GT(turn["ttfb_ms"].get<double>(), 0);
    EXPECT_GT(turn["rtf"].get<double>(), 0);
    EXPECT_NEAR(turn["audio_seconds"].get<double>(), 56320 / 24000.0, 1e-9);
    EXPECT_LE(turn["first_word_ms"].get<double>(), turn["ttfb_ms"].get<double>());
  }
}

TEST_F(Pipelines, AskTakesATypedQuestion) {
  const Output o = run({ASK, "--text", "what is the capital of Norway", "-o", file("a.wav")});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out.substr(0, o.out.find('\n')), "The capital of Norway is Oslo.");
  EXPECT_GT(read_wav(file("a.wav")).seconds(), 1.5);
}

TEST_F(Pipelines, AskLeavesNoHalfFileBehind) {
  const Output o =
      run({ASK, "--model", file("no-model"), "-o", file("a.wav"), sample("q01_cap.wav")});
  EXPECT_EQ(o.status, 1);
  EXPECT_NE(o.err.find("no-model"), std::string::npos) << o.err;
  EXPECT_TRUE(fs::is_empty(directory_));
}

}  // namespace
