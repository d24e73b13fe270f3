// minicpmo-ask with what a user may get wrong: it says what, ends with status 1 or 2, and leaves
// no file that is not a whole answer.
#include <glib.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct Output {
  int status = -1;  // 124: had to be stopped
  std::string out, err;
};

Output run(const std::string& shell) {
  std::string line = "timeout 60 bash -c '" + shell + "'";
  gchar *out = nullptr, *err = nullptr;
  gint status = 0;
  Output result;
  GError* error = nullptr;
  gchar** argv = nullptr;
  EXPECT_TRUE(g_shell_parse_argv(line.c_str(), nullptr, &argv, &error));
  if (g_spawn_sync(nullptr, argv, nullptr, G_SPAWN_SEARCH_PATH, nullptr, nullptr, &out, &err,
                   &status, &error)) {
    result = {WIFEXITED(status) ? WEXITSTATUS(status) : 128, out, err};
  } else {
    ADD_FAILURE() << error->message;
    g_error_free(error);
  }
  g_strfreev(argv);
  g_free(out);
  g_free(err);
  printf("| minicpmo-ask | %d | %s |\n", result.status, result.err.c_str());
  return result;
}

class Ask : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "minicpmo-ask-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string answer() const { return (folder_ / "answer.wav").string(); }
  // minicpmo-ask -o answer.wav ...
  std::string ask(const std::string& arguments) const {
    return std::string(ASK) + " --device=cpu -o " + answer() + " " + arguments;
  }
  size_t files() const {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder_)) ++count;
    return count;
  }
  // Fails with one error that says `says`, and leaves nothing.
  void expect_refused(const Output& output, const std::string& says) const {
    EXPECT_EQ(output.status, 1) << output.err;
    EXPECT_NE(output.err.find(says), std::string::npos) << output.err;
    EXPECT_EQ(("\n" + output.err).find("\nerror: "), ("\n" + output.err).rfind("\nerror: "));
    EXPECT_EQ(files(), 0u);
  }

  fs::path folder_;
};

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

constexpr const char* kQuestion = SAMPLES "/q01_cap.wav";

TEST_F(Ask, AnswersAndLeavesOneFile) {
  const Output output = run(ask(kQuestion));
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_EQ(output.err, "");
  EXPECT_EQ(files(), 1u);
  EXPECT_GT(fs::file_size(answer()), 24000u);
}

TEST_F(Ask, MissingQuestion) {
  expect_refused(run(ask("/no/such/question.wav")), "/no/such/question.wav");
}

TEST_F(Ask, QuestionIsADirectory) {
  expect_refused(run(ask("/usr")), "/usr");
}

TEST_F(Ask, QuestionIsNoSound) {
  expect_refused(run(ask(SAMPLES "/list.json")), "");
}

TEST_F(Ask, MissingModel) {
  expect_refused(run(ask("--model=/no/such/model " + std::string(kQuestion))), "/no/such/model");
}

TEST_F(Ask, UnknownDevice) {
  expect_refused(run(ask("--device=tpu " + std::string(kQuestion))), "auto, cpu, cuda:N");
}

TEST_F(Ask, UnknownPrecision) {
  expect_refused(run(ask("--precision=int3 " + std::string(kQuestion))), "precision");
}

TEST_F(Ask, UnknownOption) {
  const Output output = run(ask("--sing"));
  EXPECT_EQ(output.status, 2);
  EXPECT_NE(output.err.find("--sing"), std::string::npos) << output.err;
}

TEST_F(Ask, NoQuestion) {
  EXPECT_EQ(run(ask("")).status, 2);
}

TEST_F(Ask, TypedQuestionThatIsTooLong) {
  expect_refused(run(ask("--text=\"$(head -c 100000 /dev/zero | tr \"\\0\" x)\"")), "does not fit");
}

TEST_F(Ask, FolderOfTheAnswerIsMissing) {
  const Output output =
      run(std::string(ASK) + " -o /no/such/folder/answer.wav " + std::string(kQuestion));
  expect_refused(output, "/no/such/folder");
}

// The answer has about 100 kB: the file may have 16. Neither sound nor codes are left.
TEST_F(Ask, DiskIsFull) {
  const Output output =
      run("trap \"\" XFSZ; ulimit -f 16; " + ask("--codes " + std::string(kQuestion)));
  EXPECT_EQ(output.status, 1) << output.err;
  EXPECT_NE(output.err.find("error: "), std::string::npos) << output.err;
  EXPECT_EQ(files(), 0u);
}

TEST_F(Ask, AnOlderAnswerStaysWhenTheNewOneFails) {
  std::ofstream(answer()) << "older";
  run(ask("--model=/no/such/model " + std::string(kQuestion)));
  std::ifstream in(answer());
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "older");
  EXPECT_EQ(files(), 1u);
}

TEST_F(Ask, NameThatIsNotUtf8) {
  const fs::path name = folder_ / "q\xff.wav";
  fs::copy_file(kQuestion, name);
  const Output output = run(std::string(ASK) + " --json " + folder_.string() + "/q*.wav");
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_NE(output.out.find("The capital of Norway is Oslo."), std::string::npos) << output.out;
}

TEST_F(Ask, SeveralTypedQuestionsAreOneConversationInOneFile) {
  const Output output =
      run(ask("--text=\"What is the capital of Norway?\" --text=\"And of Spain?\""));
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_NE(output.out.find("The capital of Norway is Oslo."), std::string::npos) << output.out;
  EXPECT_EQ(count(output.out, "answer: "), 2u) << output.out;
  EXPECT_EQ(files(), 1u);
}

// The first question is refused: the second is answered all the same.
TEST_F(Ask, QuestionsAfterOneThatIsTooLong) {
  const Output output =
      run(ask("--text=\"$(head -c 100000 /dev/zero | tr \"\\0\" x)\" --text=Hi. --text=Hello."));
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_NE(output.err.find("does not fit"), std::string::npos) << output.err;
  EXPECT_EQ(count(output.out, "answer: "), 3u) << output.out;
}

TEST_F(Ask, PartsOfTheTimeToFirstSoundAddUp) {
  const Output output = run(std::string(ASK) + " --device=cpu --json --rtp --max-codes=30 " +
                            "--max-new-tokens=40 --separate --text=Hi. --text=Hello. " + kQuestion);
  ASSERT_EQ(output.status, 0) << output.err;
  const auto turns = nlohmann::json::parse(output.out);
  ASSERT_EQ(turns.size(), 3u);
  for (const auto& turn : turns) {
    double sum = 0;
    for (const double part : turn["parts_ms"]) {
      EXPECT_GE(part, 0);
      sum += part;
    }
    EXPECT_NEAR(sum, turn["ttfb_ms"].get<double>(), 0.01);
    EXPECT_LE(turn["first_word_ms"].get<double>(), turn["ttfb_ms"].get<double>());
    EXPECT_GE(turn["first_packet_ms"].get<double>(), turn["ttfb_ms"].get<double>());
    EXPECT_NEAR(turn["rtf"].get<double>() - turn["steady_rtf"].get<double>(),
                turn["ttfb_ms"].get<double>() / 1000 / turn["audio_seconds"].get<double>(), 1e-6);
    EXPECT_LE(turn["audio_seconds"].get<double>(), 30 * 512 / 24000.0);
    EXPECT_GT(turn["chunks"].get<int>(), 0);
    EXPECT_GT(turn["context"].get<int>(), 0);
    EXPECT_FALSE(turn.contains("gpu_ms"));  // on a CPU
  }
}

// The silence after the last word is a part of the time to the first sound, too.
TEST_F(Ask, TurnsEndWithSilence) {
  const Output output =
      run(std::string(ASK) + " --device=cpu --json --rtp --turns --max-codes=30 " + kQuestion);
  ASSERT_EQ(output.status, 0) << output.err;
  const auto turn = nlohmann::json::parse(output.out).at(0);
  double sum = 0;
  for (const double part : turn["parts_ms"]) sum += part;
  EXPECT_NEAR(sum, turn["ttfb_ms"].get<double>(), 0.01);
  EXPECT_GE(turn["parts_ms"]["hang_over"].get<double>(), 480);
  EXPECT_EQ(turn["text"], "The capital of Norway is Oslo.");
}

TEST_F(Ask, EmptySound) {
  const Output output = run("head -c 44 " + std::string(kQuestion) + " > " + folder_.string() +
                            "/empty.wav; " + ask(folder_.string() + "/empty.wav"));
  EXPECT_LE(output.status, 1);
  EXPECT_NE(output.err, "");
}

}  // namespace
