// What the language model reads, and when: prompt texts and the state machine of a streaming
// session. Source: MiniCPM-o 2.6, modeling_minicpmo.py: streaming_prefill, streaming_generate.
// Knows token ids, not tensors.
//
// A session is  [system message] (user turn, answer)*.  The model's KV cache holds one row per id
// of fed(); the last sampled token of a burst is not among them until the next burst feeds it, and
// a stop token never is.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/stage.h"
#include "engine/tokenizer.h"

namespace minicpmo {

// A prompt text and its ids (the whole text tokenised at once, as upstream does).
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;
};

// Every token and text of the dialogue format, looked up by name.
struct Prompts {
  int32_t turn_end = -1;     // <|im_end|>
  int32_t text_end = -1;     // <|endoftext|>
  int32_t audio_start = -1;  // <|audio_start|>
  int32_t audio_end = -1;    // <|audio_end|>
  int32_t audio_slot = -1;   // <unk>: stands for one audio embedding
  int32_t speaker = -1;      // <|spk|>
  int32_t speech_end = -1;   // <|tts_eos|>
  Prompt user;               // <|im_start|>user\n
  Prompt user_after_stop;    // <|im_end|>\n<|im_start|>user\n
  Prompt user_after_cut;     // <|tts_eos|><|im_end|>\n<|im_start|>user\n
  Prompt answer;  // <|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>
  size_t speaker_at = 0;    // index of <|spk|> in answer.ids
  int64_t group_rows = 25;  // most embeddings between <|audio_start|> and <|audio_end|>

  // kCorrupt naming `source` and the token if one is missing, or if an id is outside [0,
  // vocab_size).
  static Result<Prompts> load(const Tokenizer& tokenizer, int64_t vocab_size, int64_t group_rows,
                              const std::string& source);
};

// `rows` audio embeddings, from row `row` on, take the place of the ids [at, at + rows) of a feed.
struct AudioSlots {
  size_t at = 0;
  int64_t row = 0;
  int64_t rows = 0;
  bool voice = false;  // of the reference voice; otherwise of what the user says
};

struct Feed {
  std::vector<int32_t> ids;
  std::vector<AudioSlots> audio;
  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
};

// Copyable: whoever feeds the model tries a step on a copy, and keeps the copy when the model has
// read it.
class Conversation {
 public:
  Conversation(std::shared_ptr<const Tokenizer> tokenizer, std::shared_ptr<const Prompts> prompts);

  // Forgets everything. voice_rows: embeddings of a reference voice, which the system message then
  // presents (model-spec 3.2, audio_assistant); 0: none.
  void begin_session(std::string system_prompt, int64_t voice_rows, Compatibility compatibility);
  // Forgets everything but the system message, if it was read.
  void restart();

  // What to feed next; nothing changes until accept_*.
  // The system message, if there is one and it was not read yet.
  Feed system_message() const;
  // The system message if due, the start of the turn if due, and `rows` audio embeddings in groups.
  Feed user_audio(int64_t rows) const;
  // The same with text. Names of special tokens in the text are spelled out (upstream: become those
  // tokens).
  Feed user_text(std::string_view text) const;
  Feed answer_prompt() const;

  void accept_system(const Feed& feed);
  void accept_user(const Feed& feed);
  void accept_answer(const Feed& feed, int max_new_tokens);
  // The ids sampled in one burst; all but the last were fed to the model in it, after the token
  // carried over from the burst before. `finish` is kStop if the last id is a stop token, kContext
  // if there was no room to go on; kLength is found out here. Returns the burst's text (whole
  // characters, no special tokens) and how it ended.
  Burst accept_burst(std::vector<int32_t> ids, FinishReason finish);
  // Ends the last answer where `heard_bytes` of its text end (stage.h, LanguageModel::interrupt).
  // Without effect once the next user turn has begun. fed() gets shorter, never longer.
  void interrupt(int64_t heard_bytes);

  const std::vector<int32_t>& fed() const { return fed_; }
  int64_t length() const { return static_cast<int64_t>(fed_.size()); }
  // Whether nothing but the system message was read.
  bool fresh() const { return !turn_open_ && !generated_; }
  bool turn_open() const { return turn_open_; }
  bool answering() const { return answering_; }
  bool system_read() const { return system_read_; }
  bool is_stop(int32_t id) const { return id == prompts_->turn_end || id == prompts_->text_end; }
  std::vector<int32_t> stop_tokens() const { return {prompts_->turn_end, prompts_->text_end}; }
  // How many tokens the next burst may sample: 3, or fewer if max_new_tokens says so (upstream:
  // always 3).
  int burst_limit() const;
  // What the repetition penalty covers in the next burst, besides its own tokens: upstream calls
  // `generate` once per burst, so first the ids of the answer prompt, later only the token carried
  // over.
  std::vector<int32_t> penalty_scope() const;
  // The sampled token that is still to be fed.
  std::optional<int32_t> carried() const { return carried_; }
  // Rows the token carried over and the start of the next user turn take.
  int64_t turn_start_rows() const;

 private:
  struct Said {
    int32_t id;
    int64_t text_end;  // bytes of reported text when this token was complete
  };
  bool upstream() const { return compatibility_ == Compatibility::kUpstream; }
  // The last sampled token, if the next user turn is to feed it. Upstream loses it whenever an
  // answer ends without a stop token; here it is lost only if max_new_tokens or the context's size
  // ended the answer.
  std::optional<int32_t> unread() const;
  bool has_system_message() const { return !system_prompt_.empty() || voice_rows_ > 0; }
  bool wraps_first_message() const;
  void append_audio(int64_t rows, bool voice, Feed* feed) const;
  const Prompt& turn_start() const;
  void begin_turn(Feed* feed) const;
  void append_text(std::string_view text, const Prompt* start, Feed* feed) const;
  void say(int32_t id);
  std::string take_text(FinishReason finish);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const Prompts> prompts_;
  std::string system_prompt_;
  int64_t voice_rows_ = 0;
  Compatibility compatibility_ = Compatibility::kNone;

  std::vector<int32_t> fed_;
  int64_t system_rows_ = 0;
  bool system_read_ = false;  // or there is none, and the first message was read
  bool new_user_ = true;      // the next user message gets the start of a turn
  bool turn_open_ = false;
  bool generated_ = false;
  bool completed_ = false;  // the last answer ended with a stop token, and all of it was heard
  bool answering_ = false;
  bool interrupted_ = false;  // interrupt() was called for the last answer

  // The last answer.
  int max_new_tokens_ = 0;
  int64_t sampled_ = 0;
  int64_t answer_at_ = 0;   // fed_ index of its first token
  std::vector<Said> said_;  // without the stop token
  std::optional<int32_t> carried_;
  std::vector<int32_t>
      held_;  // ids whose text was not reported yet: the last ones are not whole characters
  int64_t text_bytes_ = 0;     // reported
  bool speech_ended_ = false;  // <|tts_eos|> was said: what follows is no text
};

}  // namespace minicpmo
