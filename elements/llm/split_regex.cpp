#include "llm/split_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <utility>

namespace minicpmo {
namespace {

constexpr char kSpace[] =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// Unicode 14 to 16. tests/unit/tokenizers compares every code point with the reference.
constexpr char kLetter[] =
    R"(\p{L}\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3})"
    R"(\x{10d4a}-\x{10d65}\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240})"
    R"(\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3})"
    R"(\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f})"
    R"(\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff})"
    R"(\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb})"
    R"(\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
constexpr char kNumber[] =
    R"(\p{N}\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59})"
    R"(\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9}\x{1d2c0}-\x{1d2d3})"
    R"(\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})";

Error refuse(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), ""};
}

// Rewrites the file's regex for PCRE2, see the header.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (at_ < in_.size()) RETURN_IF_ERROR(step());
    if (in_class_) return refuse("has a class without its ]");
    return std::move(out_);
  }

 private:
  Result<void> step() {
    char c = in_[at_];
    if (c == '\\') return escape();
    if (in_class_) {
      if (c == '[') return refuse("has a class inside a class, which is not supported");
      if (c == '&' && next() == '&') return refuse("has && in a class, which is not supported");
      if (c == ']') in_class_ = false;
    } else if (c == '[') {
      in_class_ = true;
      out_ += in_[at_++];
      if (next(0) == '^') out_ += in_[at_++];
      if (next(0) == ']') return refuse("has an empty class");
      return {};
    } else if (c == '^' || c == '$') {
      return refuse(std::string("has the anchor ") + c + ", which is not supported");
    } else if (c == '(' && (next() == '?' || next() == '*')) {
      return group();
    }
    out_ += in_[at_++];
    return {};
  }

  // "(?" is at at_.
  Result<void> group() {
    for (std::string_view known : {"(?:", "(?i:", "(?=", "(?!"}) {
      if (in_.substr(at_).starts_with(known)) {
        out_ += known;
        at_ += known.size();
        return {};
      }
    }
    return refuse("has a group that starts with \"" + std::string(in_.substr(at_, 4)) +
                  "\", which is not supported");
  }

  Result<void> escape() {
    char c = next();
    if (c == 's' || c == 'S') return property(kSpace, c == 'S', 2);
    if (c == 'p' || c == 'P') {
      std::string_view name = in_.substr(at_ + 2, 3);
      if (name == "{L}") return property(kLetter, c == 'P', 5);
      if (name == "{N}") return property(kNumber, c == 'P', 5);
    }
    bool plain = c == 'r' || c == 'n' || c == 't' || std::ispunct(static_cast<unsigned char>(c));
    if (!plain) {
      return refuse("has \"" + std::string(in_.substr(at_, 5)) + "\", which is not supported");
    }
    out_ += in_.substr(at_, 2);
    at_ += 2;
    return {};
  }

  Result<void> property(const char* members, bool negated, size_t length) {
    if (in_class_ && negated)
      return refuse("has a negated property in a class, which is not supported");
    if (in_class_) {
      out_ += members;
    } else {
      out_ += (negated ? "[^" : "[") + std::string(members) + "]";
    }
    at_ += length;
    return {};
  }

  char next(size_t offset = 1) const {
    return at_ + offset < in_.size() ? in_[at_ + offset] : '\0';
  }

  std::string_view in_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

struct MatchState {
  explicit MatchState(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)),
        context(pcre2_match_context_create(nullptr)) {}
  ~MatchState() {
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  pcre2_match_data* data;
  pcre2_match_context* context;
};

}  // namespace

Result<SplitRegex> SplitRegex::compile(const std::string& pattern) {
  constexpr size_t kMaxPattern = 4096;
  if (pattern.size() > kMaxPattern) return refuse("is longer than 4096 bytes");
  ASSIGN_OR_RETURN(std::string translated, Translator(pattern).run());
  int number = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) return Error{ErrorCode::kNoSpace, "out of memory", ""};
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  std::shared_ptr<pcre2_code> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &number, &offset, context),
      [](pcre2_code* code) { pcre2_code_free(code); });
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    PCRE2_UCHAR text[256] = {};
    pcre2_get_error_message(number, text, sizeof text);
    return refuse("is no valid regex: " + std::string(reinterpret_cast<char*>(text)));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) return refuse("can match nothing at all, which is not supported");
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where there is no JIT the interpreter runs
  return SplitRegex(std::shared_ptr<const void>(code));
}

void SplitRegex::split(std::string_view valid_utf8,
                       const std::function<void(std::string_view)>& piece) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  MatchState state(code);
  if (state.data == nullptr || state.context == nullptr) return piece(valid_utf8);
  // A well-meant regex takes a few steps per character at worst, when it runs to the end and back.
  constexpr size_t kSteps = 10'000'000;
  pcre2_set_match_limit(state.context, static_cast<uint32_t>(std::min<size_t>(
                                           kSteps + 8 * valid_utf8.size(), UINT32_MAX)));
  pcre2_set_depth_limit(state.context, 100'000);
  size_t done = 0;
  while (done < valid_utf8.size()) {
    // The text was checked once; checking it again at each match would take quadratic time.
    int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(valid_utf8.data()),
                            valid_utf8.size(), done, PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (found < 0) break;
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(state.data);
    if (span[1] <= span[0] || span[0] < done) break;
    if (span[0] > done) piece(valid_utf8.substr(done, span[0] - done));
    piece(valid_utf8.substr(span[0], span[1] - span[0]));
    done = span[1];
  }
  if (done < valid_utf8.size()) piece(valid_utf8.substr(done));
}

}  // namespace minicpmo
