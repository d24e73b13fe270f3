#include "llm/conversation.h"

#include <algorithm>
#include <utility>

namespace minicpmo {
namespace {

constexpr int kBurst = 3;
constexpr const char* kUseVoice = "Use the voice in the audio prompt to synthesize new content.\n";
constexpr const char* kVoiceStyle = "You are a helpful assistant with the above voice style.";
constexpr std::string_view kReplacement =
    "\xEF\xBF\xBD";  // U+FFFD, what a tokenizer makes of half a character
constexpr size_t kMaxPartial =
    3;  // a character cut short is at most three bytes, so at most three tokens

void append(std::vector<int32_t>* to, const std::vector<int32_t>& ids) {
  to->insert(to->end(), ids.begin(), ids.end());
}

Prompt make_prompt(const Tokenizer& tokenizer, std::string text) {
  auto ids = tokenizer.encode(text);
  return {std::move(text), std::move(ids)};
}

struct Whole {
  std::string text;
  size_t tokens;
};

// The text of the longest run of ids from the front that ends with a whole character. A replacement
// character that no three tokens explain was meant, or is damage that no later token mends: it
// counts as whole.
Whole whole_text(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string all = tokenizer.decode(ids);
  if (!all.ends_with(kReplacement)) return {std::move(all), ids.size()};
  for (size_t dropped = 1; dropped <= std::min(kMaxPartial, ids.size()); ++dropped) {
    std::string text = tokenizer.decode(ids.first(ids.size() - dropped));
    if (!text.ends_with(kReplacement)) return {std::move(text), ids.size() - dropped};
  }
  return {std::move(all), ids.size()};
}

}  // namespace

Result<Prompts> Prompts::load(const Tokenizer& tokenizer, int64_t vocab_size, int64_t group_rows,
                              const std::string& source) {
  Prompts p;
  p.group_rows = group_rows;
  int32_t turn_start = -1, speaker_start = -1, speaker_end = -1, speech_start = -1;
  const std::pair<const char*, int32_t*> tokens[] = {
      {"<|im_start|>", &turn_start},   {"<|im_end|>", &p.turn_end},
      {"<|endoftext|>", &p.text_end},  {"<|audio_start|>", &p.audio_start},
      {"<|audio_end|>", &p.audio_end}, {"<unk>", &p.audio_slot},
      {"<|spk_bos|>", &speaker_start}, {"<|spk|>", &p.speaker},
      {"<|spk_eos|>", &speaker_end},   {"<|tts_bos|>", &speech_start},
      {"<|tts_eos|>", &p.speech_end},
  };
  for (const auto& [name, id] : tokens) {
    *id = tokenizer.token_to_id(name);
    if (*id < 0) {
      return Error{ErrorCode::kCorrupt,
                   source + ": the tokenizer has no token " + name +
                       "; it does not belong to a MiniCPM-o 2.6 checkpoint",
                   "Prompts::load"};
    }
  }
  if (tokenizer.size() > vocab_size) {
    return Error{ErrorCode::kCorrupt,
                 source + ": the tokenizer has ids up to " + std::to_string(tokenizer.size() - 1) +
                     ", but config.json says vocab_size " + std::to_string(vocab_size),
                 "Prompts::load"};
  }
  const std::string user = "<|im_start|>user\n";
  p.user = make_prompt(tokenizer, user);
  p.user_after_stop = make_prompt(tokenizer, "<|im_end|>\n" + user);
  p.user_after_cut = make_prompt(tokenizer, "<|tts_eos|><|im_end|>\n" + user);
  p.answer = make_prompt(
      tokenizer, "<|im_end|>\n<|im_start|>assistant\n<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>");
  const auto at = std::find(p.answer.ids.begin(), p.answer.ids.end(), p.speaker);
  if (at == p.answer.ids.end()) {
    return Error{ErrorCode::kCorrupt,
                 source + ": <|spk|> is in the vocabulary, but not among the added tokens",
                 "Prompts::load"};
  }
  p.speaker_at = static_cast<size_t>(at - p.answer.ids.begin());
  return p;
}

Conversation::Conversation(std::shared_ptr<const Tokenizer> tokenizer,
                           std::shared_ptr<const Prompts> prompts)
    : tokenizer_(std::move(tokenizer)), prompts_(std::move(prompts)) {}

void Conversation::begin_session(std::string system_prompt, int64_t voice_rows,
                                 Compatibility compatibility) {
  // The published prompt for a voice is not the one without.
  const bool published = system_prompt == LanguageModelOptions().system_prompt;
  system_prompt_ = voice_rows > 0 && published ? kVoiceStyle : std::move(system_prompt);
  voice_rows_ = voice_rows;
  compatibility_ = compatibility;
  system_rows_ = 0;
  system_read_ = false;
  restart();
}

void Conversation::restart() {
  fed_.resize(static_cast<size_t>(system_rows_));
  system_read_ = system_rows_ > 0;
  new_user_ = true;
  turn_open_ = generated_ = completed_ = answering_ = interrupted_ = speech_ended_ = false;
  sampled_ = text_bytes_ = answer_at_ = 0;
  said_.clear();
  held_.clear();
  carried_.reset();
}

Feed Conversation::system_message() const {
  Feed feed;
  if (system_read_ || !has_system_message()) return feed;
  // Upstream's system message has the role of a user.
  if (voice_rows_ == 0) {
    feed.ids = tokenizer_->encode(prompts_->user.text + system_prompt_ + "<|im_end|>\n");
    return feed;
  }
  feed.ids = tokenizer_->encode(prompts_->user.text + kUseVoice);
  append_audio(voice_rows_, true, &feed);
  append(&feed.ids, tokenizer_->encode("\n" + system_prompt_ + "<|im_end|>\n"));
  return feed;
}

void Conversation::append_audio(int64_t rows, bool voice, Feed* feed) const {
  for (int64_t row = 0; row < rows; row += prompts_->group_rows) {
    const int64_t n = std::min(prompts_->group_rows, rows - row);
    feed->ids.push_back(prompts_->audio_start);
    feed->audio.push_back({feed->ids.size(), row, n, voice});
    feed->ids.insert(feed->ids.end(), static_cast<size_t>(n), prompts_->audio_slot);
    feed->ids.push_back(prompts_->audio_end);
  }
}

// Upstream wraps the first message of a session as a whole message, whatever it is; without a
// system prompt that is the first second of the question.
bool Conversation::wraps_first_message() const {
  return upstream() && !system_read_ && !has_system_message();
}

std::optional<int32_t> Conversation::unread() const {
  if (upstream() || !new_user_ || !(answering_ || interrupted_)) return std::nullopt;
  return carried_;
}

const Prompt& Conversation::turn_start() const {
  if (!generated_) return prompts_->user;
  if (completed_) return prompts_->user_after_stop;
  if (!upstream()) {
    // The answer was cut right behind its <|tts_eos|>: one is enough.
    const bool fed_any = length() > answer_at_;
    const int32_t last = unread() ? *unread() : fed_any ? fed_.back() : -1;
    if (last == prompts_->speech_end) return prompts_->user_after_stop;
  }
  return prompts_->user_after_cut;
}

int64_t Conversation::turn_start_rows() const {
  if (!new_user_) return 0;
  return static_cast<int64_t>(turn_start().ids.size()) + (unread() ? 1 : 0);
}

// What comes before the start of the turn.
void Conversation::begin_turn(Feed* feed) const {
  *feed = system_message();
  if (unread()) feed->ids.push_back(*unread());
}

Feed Conversation::user_audio(int64_t rows) const {
  Feed feed;
  begin_turn(&feed);
  if (new_user_) append(&feed.ids, turn_start().ids);
  append_audio(rows, false, &feed);
  if (wraps_first_message()) append(&feed.ids, tokenizer_->encode("<|im_end|>\n"));
  return feed;
}

void Conversation::append_text(std::string_view text, const Prompt* start, Feed* feed) const {
  const std::string head = start ? start->text : std::string();
  const auto own = tokenizer_->encode(text);
  const auto special = [this](int32_t id) { return tokenizer_->is_added_token(id); };
  if (upstream() || std::none_of(own.begin(), own.end(), special)) {
    append(&feed->ids, tokenizer_->encode(head + std::string(text)));
    return;
  }
  // Someone typed the name of a special token: it must not act as one (end the turn, say).
  if (start) append(&feed->ids, start->ids);
  for (int32_t id : own) {
    const std::string name = special(id) ? tokenizer_->id_to_token(id) : std::string();
    if (name.size() < 2) {
      if (!special(id)) feed->ids.push_back(id);
      continue;
    }
    for (const auto& half : {name.substr(0, 1), name.substr(1)})
      for (int32_t piece : tokenizer_->encode(half))
        if (!special(piece)) feed->ids.push_back(piece);
  }
}

Feed Conversation::user_text(std::string_view text) const {
  Feed feed;
  begin_turn(&feed);
  if (wraps_first_message()) {
    append_text(std::string(text) + "<|im_end|>\n", &prompts_->user, &feed);
  } else {
    append_text(text, new_user_ ? &turn_start() : nullptr, &feed);
  }
  return feed;
}

Feed Conversation::answer_prompt() const {
  return {prompts_->answer.ids, {}};
}

void Conversation::accept_system(const Feed& feed) {
  append(&fed_, feed.ids);
  system_rows_ = length();
  system_read_ = system_rows_ > 0;
}

void Conversation::accept_user(const Feed& feed) {
  const bool wrapped = wraps_first_message();
  if (!system_read_ && has_system_message()) system_rows_ = system_message().rows();
  append(&fed_, feed.ids);
  system_read_ = true;
  new_user_ = wrapped;  // a message of its own: the next one starts the turn
  turn_open_ = true;
  answering_ = false;
  carried_.reset();
  said_.clear();
  held_.clear();
}

void Conversation::accept_answer(const Feed& feed, int max_new_tokens) {
  append(&fed_, feed.ids);
  new_user_ = generated_ = answering_ = true;
  completed_ = turn_open_ = speech_ended_ = interrupted_ = false;
  max_new_tokens_ = std::max(1, max_new_tokens);
  sampled_ = text_bytes_ = 0;
  answer_at_ = length();
  said_.clear();
  held_.clear();
  carried_.reset();
}

int Conversation::burst_limit() const {
  if (upstream()) return kBurst;
  return static_cast<int>(std::min<int64_t>(kBurst, max_new_tokens_ - sampled_));
}

std::vector<int32_t> Conversation::penalty_scope() const {
  if (carried_) return {*carried_};
  return prompts_->answer.ids;
}

void Conversation::say(int32_t id) {
  if (id == prompts_->speech_end) speech_ended_ = true;
  const bool silent =
      speech_ended_ || tokenizer_->is_added_token(id) ||
      (upstream() && id == 0);  // upstream takes id 0, "!" in this vocabulary, for padding
  if (!silent) held_.push_back(id);
  const auto text = whole_text(*tokenizer_, held_).text;
  said_.push_back({id, text_bytes_ + static_cast<int64_t>(text.size())});
}

std::string Conversation::take_text(FinishReason finish) {
  Whole whole = whole_text(*tokenizer_, held_);
  if (finish != FinishReason::kNone && !upstream()) {
    // Nothing will complete the rest: report what is whole in it, too. Upstream loses it.
    whole = {tokenizer_->decode(held_), held_.size()};
    while (whole.text.ends_with(kReplacement))
      whole.text.resize(whole.text.size() - kReplacement.size());
  }
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(whole.tokens));
  text_bytes_ += static_cast<int64_t>(whole.text.size());
  if (finish != FinishReason::kNone && !said_.empty()) said_.back().text_end = text_bytes_;
  return std::move(whole.text);
}

Burst Conversation::accept_burst(std::vector<int32_t> ids, FinishReason finish) {
  Burst burst;
  if (!ids.empty()) {
    if (carried_) fed_.push_back(*carried_);
    fed_.insert(fed_.end(), ids.begin(), ids.end() - 1);
    carried_.reset();
    if (finish != FinishReason::kStop) carried_ = ids.back();
  }
  // Upstream looks for <|tts_eos|> in each burst on its own.
  if (upstream()) speech_ended_ = false;
  for (int32_t id : ids)
    if (!is_stop(id)) say(id);
  sampled_ += static_cast<int64_t>(ids.size());
  if (finish == FinishReason::kNone && sampled_ >= max_new_tokens_) finish = FinishReason::kLength;
  burst.text = take_text(finish);
  burst.ids = std::move(ids);
  burst.finish = finish;
  if (finish != FinishReason::kNone) answering_ = false;
  completed_ = finish == FinishReason::kStop;
  return burst;
}

void Conversation::interrupt(int64_t heard_bytes) {
  if (turn_open_ || !generated_) return;
  answering_ = false;
  interrupted_ = true;
  if (upstream() || heard_bytes < 0) return;
  if (completed_ && heard_bytes >= text_bytes_) return;
  size_t keep = 0;
  if (heard_bytes > 0) {
    while (keep < said_.size() && said_[keep].text_end < heard_bytes) ++keep;
    keep = std::min(keep + 1, said_.size());
  }
  const size_t in_cache = fed_.size() - static_cast<size_t>(answer_at_);
  if (keep <= in_cache) {
    fed_.resize(static_cast<size_t>(answer_at_) + keep);
    carried_.reset();
  }
  said_.resize(keep);
  if (keep > 0)
    text_bytes_ = std::min(text_bytes_, said_.back().text_end);
  else
    text_bytes_ = 0;
  held_.clear();
  completed_ = false;
}

}  // namespace minicpmo
