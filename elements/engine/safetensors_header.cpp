#include "engine/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <optional>

namespace minicpmo {
namespace {

using nlohmann::json;

constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxRank = 16;
constexpr size_t kMaxString = 1u << 20;
constexpr size_t kMaxStrings = 16u << 20;

std::optional<at::ScalarType> parse_type(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types = {
      {"BOOL", at::kBool},  {"U8", at::kByte},  {"I8", at::kChar},       {"I16", at::kShort},
      {"U16", at::kUInt16}, {"I32", at::kInt},  {"U32", at::kUInt32},    {"I64", at::kLong},
      {"U64", at::kUInt64}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"F32", at::kFloat},
      {"F64", at::kDouble}};
  const auto found = types.find(name);
  return found == types.end() ? std::nullopt : std::optional(found->second);
}

// The grammar {"name": {"dtype": s, "shape": [n...], "data_offsets": [n, n]}..., "__metadata__":
// {s: s...}} as a state machine; anything else stops the parser at once.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  bool null() override { return fail_value("null"); }
  bool boolean(bool) override { return fail_value("a boolean"); }
  bool number_integer(number_integer_t) override { return fail_value("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return fail_value("a fraction"); }
  bool binary(binary_t&) override { return fail_value("binary data"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(size_t) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    problem_ = "header is not valid JSON at byte " + std::to_string(position);
    detail_ = e.what();
    return false;
  }

  SafetensorsHeader& header() { return header_; }
  const std::string& problem() const { return problem_; }
  const std::string& detail() const { return detail_; }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kDone };
  enum Field { kDtypeSeen = 1, kShapeSeen = 2, kOffsetsSeen = 4 };

  bool fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
    return false;
  }
  bool fail_value(const char* what);
  std::string tensor() const { return "tensor \"" + printable(name_) + "\""; }
  bool count_string(size_t size);
  bool tensor_key(const string_t& name);
  bool finish_tensor();

  SafetensorsHeader header_;
  State state_ = State::kStart;
  std::string name_, field_;  // of the tensor being read; the key last read
  TensorEntry* entry_ = nullptr;
  std::string* text_ = nullptr;  // metadata value to come
  bool metadata_next_ = false, metadata_seen_ = false;
  std::vector<uint64_t> offsets_;
  int seen_ = 0;
  size_t strings_ = 0;
  std::string problem_, detail_;
};

bool HeaderHandler::fail_value(const char* what) {
  switch (state_) {
    case State::kStart:
    case State::kDone:
      return fail(std::string("header is ") + what + ", not an object");
    case State::kTop:
      return fail("entry \"" + printable(name_) + "\" is " + what + ", not an object");
    case State::kMetadata:
      return fail("__metadata__ \"" + printable(field_) + "\" is " + what + ", not a string");
    case State::kTensor:
      return fail(tensor() + ": " + field_ + " is " + what);
    case State::kShape:
      return fail(tensor() + ": shape holds " + what);
    case State::kOffsets:
      return fail(tensor() + ": data_offsets holds " + what);
  }
  return false;
}

bool HeaderHandler::count_string(size_t size) {
  strings_ += size;
  if (strings_ > kMaxStrings) return fail("header holds more than 16 MiB of names and metadata");
  return true;
}

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  if (state_ == State::kShape) {
    if (value > static_cast<uint64_t>(INT64_MAX)) return fail(tensor() + ": shape is out of range");
    if (entry_->shape.size() >= kMaxRank) {
      return fail(tensor() + ": more than " + std::to_string(kMaxRank) + " dimensions");
    }
    entry_->shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  if (state_ == State::kOffsets) {
    if (offsets_.size() >= 2) return fail(tensor() + ": data_offsets holds more than two numbers");
    offsets_.push_back(value);
    return true;
  }
  return fail_value("a number");
}

bool HeaderHandler::string(string_t& value) {
  if (!count_string(value.size())) return false;
  if (state_ == State::kMetadata) {
    *text_ = std::move(value);
    return true;
  }
  if (state_ != State::kTensor || field_ != "dtype") return fail_value("a string");
  const auto type = parse_type(value);
  if (!type) return fail(tensor() + ": dtype \"" + printable(value) + "\" is not supported");
  entry_->type = *type;
  return true;
}

bool HeaderHandler::start_object(size_t) {
  if (state_ == State::kStart) {
    state_ = State::kTop;
    return true;
  }
  if (state_ != State::kTop) return fail_value("an object");
  state_ = metadata_next_ ? State::kMetadata : State::kTensor;
  return true;
}

bool HeaderHandler::tensor_key(const string_t& name) {
  const int bit = name == "dtype"          ? kDtypeSeen
                  : name == "shape"        ? kShapeSeen
                  : name == "data_offsets" ? kOffsetsSeen
                                           : 0;
  if (bit == 0) return fail(tensor() + ": unknown key \"" + printable(name) + "\"");
  if (seen_ & bit) return fail(tensor() + ": key \"" + name + "\" appears twice");
  seen_ |= bit;
  return true;
}

bool HeaderHandler::key(string_t& name) {
  if (!count_string(name.size())) return false;
  field_ = name;
  if (state_ == State::kTensor) return tensor_key(name);
  if (state_ == State::kMetadata) {
    if (header_.metadata.size() >= kMaxTensors) return fail("__metadata__ has too many entries");
    auto [place, fresh] = header_.metadata.emplace(name, "");
    text_ = &place->second;
    return fresh || fail("__metadata__ key \"" + printable(name) + "\" appears twice");
  }
  name_ = name;
  metadata_next_ = name == "__metadata__";
  if (metadata_next_) {
    if (metadata_seen_) return fail("key \"__metadata__\" appears twice");
    metadata_seen_ = true;
    return true;
  }
  if (header_.entries.size() >= kMaxTensors) {
    return fail("more than " + std::to_string(kMaxTensors) + " tensors");
  }
  auto [place, fresh] = header_.entries.emplace(name, TensorEntry{});
  if (!fresh) return fail(tensor() + " appears twice");
  entry_ = &place->second;
  seen_ = 0;
  offsets_.clear();
  return true;
}

bool HeaderHandler::end_object() {
  if (state_ == State::kTensor) {
    if (!finish_tensor()) return false;
    state_ = State::kTop;
  } else if (state_ == State::kMetadata) {
    state_ = State::kTop;
  } else {
    state_ = State::kDone;
  }
  return true;
}

bool HeaderHandler::start_array(size_t) {
  if (state_ == State::kTensor && field_ == "shape") {
    state_ = State::kShape;
  } else if (state_ == State::kTensor && field_ == "data_offsets") {
    state_ = State::kOffsets;
  } else {
    return fail_value("an array");
  }
  return true;
}

bool HeaderHandler::end_array() {
  state_ = State::kTensor;
  return true;
}

bool HeaderHandler::finish_tensor() {
  if (seen_ != (kDtypeSeen | kShapeSeen | kOffsetsSeen)) {
    return fail(tensor() + " lacks " +
                (!(seen_ & kDtypeSeen)   ? "dtype"
                 : !(seen_ & kShapeSeen) ? "shape"
                                         : "data_offsets"));
  }
  if (offsets_.size() != 2) return fail(tensor() + ": data_offsets does not hold two numbers");
  if (offsets_[1] < offsets_[0]) return fail(tensor() + ": data_offsets are reversed");
  uint64_t bytes = c10::elementSize(entry_->type);
  for (int64_t n : entry_->shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(n), &bytes) ||
        bytes > static_cast<uint64_t>(INT64_MAX)) {
      return fail(tensor() + ": shape is too large");
    }
  }
  if (bytes != offsets_[1] - offsets_[0]) {
    return fail(tensor() + ": shape and dtype need " + std::to_string(bytes) +
                " bytes, data_offsets give " + std::to_string(offsets_[1] - offsets_[0]));
  }
  entry_->begin = offsets_[0];
  entry_->end = offsets_[1];
  return true;
}

// The parser keeps a whole string before the handler sees it: bound that first.
bool has_long_string(std::string_view text) {
  size_t at = 0;
  while ((at = text.find('"', at)) != std::string_view::npos) {
    const size_t begin = ++at;
    while (at < text.size() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
    if (at >= text.size()) return text.size() - begin > kMaxString;
    if (at - begin > kMaxString) return true;
    ++at;
  }
  return false;
}

}  // namespace

std::string printable(std::string_view name) {
  std::string out;
  for (char c : name.substr(0, 120)) out += c >= 0x20 && c < 0x7f ? c : '?';
  if (name.size() > 120) out += "...";
  return out;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, const std::string& file) {
  if (text.empty() || text[0] != '{') {
    return Error{ErrorCode::kCorrupt, file + ": header does not start with \"{\""};
  }
  // The parser takes a zero byte for the end and would not look at what follows.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return Error{ErrorCode::kCorrupt,
                 file + ": header is not valid JSON at byte " + std::to_string(at)};
  }
  if (has_long_string(text)) {
    return Error{ErrorCode::kCorrupt, file + ": header holds a string of more than 1 MiB"};
  }
  try {
    HeaderHandler handler;
    if (!json::sax_parse(text.begin(), text.end(), &handler)) {
      return Error{ErrorCode::kCorrupt, file + ": " + handler.problem(), handler.detail()};
    }
    return std::move(handler.header());
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoSpace, file + ": not enough memory for its header",
                 "std::bad_alloc"};
  } catch (const std::exception& e) {
    return Error{ErrorCode::kCorrupt, file + ": header cannot be read", e.what()};
  }
}

}  // namespace minicpmo
