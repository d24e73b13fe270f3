#include "engine/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace minicpmo {
namespace {

using nlohmann::json;

// Builds the tree as nlohmann's own handler does, but refuses duplicate keys and deep nesting,
// which that one accepts.
class JsonBuilder : public nlohmann::json_sax<json> {
 public:
  JsonBuilder(size_t max_depth) : max_depth_(max_depth) {}

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override {
    return add(value) != nullptr;
  }
  bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto [place, fresh] = stack_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    if (!fresh) {
      problem_ = "key \"" + name.substr(0, 80) + "\" appears twice in one object";
      return false;
    }
    slot_ = &place->second;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    problem_ = "not valid JSON at byte " + std::to_string(position);
    detail_ = e.what();
    return false;
  }

  json& root() { return root_; }
  const std::string& problem() const { return problem_; }
  const std::string& detail() const { return detail_; }

 private:
  json* add(json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_object()) {
      *slot_ = std::move(value);
      return slot_;
    }
    auto& items = parent.get_ref<json::array_t&>();
    items.push_back(std::move(value));
    return &items.back();
  }
  bool open(json value) {
    if (stack_.size() >= max_depth_) {
      problem_ = "nested deeper than " + std::to_string(max_depth_) + " levels";
      return false;
    }
    // The address stays good: a parent does not grow before this child is closed.
    stack_.push_back(add(std::move(value)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  size_t max_depth_;
  json root_;
  std::vector<json*> stack_;
  json* slot_ = nullptr;
  std::string problem_, detail_;
};

}  // namespace

Result<json> parse_json(std::string_view text, const std::string& name, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Error{ErrorCode::kCorrupt, name + ": " + std::to_string(text.size()) +
                                          " bytes of JSON, more than the limit of " +
                                          std::to_string(limits.max_bytes)};
  }
  // The parser takes a zero byte for the end and would not look at what follows.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return Error{ErrorCode::kCorrupt, name + ": not valid JSON at byte " + std::to_string(at + 1)};
  }
  try {
    JsonBuilder builder(limits.max_depth);
    if (!json::sax_parse(text.begin(), text.end(), &builder)) {
      return Error{ErrorCode::kCorrupt, name + ": " + builder.problem(), builder.detail()};
    }
    return std::move(builder.root());
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoSpace, name + ": not enough memory to read it", "std::bad_alloc"};
  } catch (const std::exception& e) {
    return Error{ErrorCode::kCorrupt, name + ": not valid JSON", e.what()};
  }
}

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int e = errno;
    if (e == ENOENT || e == ENOTDIR) {
      return Error{ErrorCode::kNotFound, path + " does not exist", std::strerror(e)};
    }
    return Error{ErrorCode::kOpenRead, path + " cannot be opened: " + std::strerror(e), "open"};
  }
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat status;
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kOpenRead, path + " is not a regular file", "fstat"};
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    return Error{ErrorCode::kCorrupt, path + ": " + std::to_string(size) +
                                          " bytes, more than the limit of " +
                                          std::to_string(max_bytes)};
  }
  std::string text;
  try {
    text.resize(size);
  } catch (const std::exception& e) {
    return Error{ErrorCode::kNoSpace, path + ": not enough memory to read it", e.what()};
  }
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return Error{ErrorCode::kOpenRead, path + " cannot be read: " + std::strerror(errno), "read"};
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

Result<json> read_json_file(const std::string& path, const JsonLimits& limits) {
  ASSIGN_OR_RETURN(std::string text, read_file(path, limits.max_bytes));
  return parse_json(text, path, limits);
}

}  // namespace minicpmo
