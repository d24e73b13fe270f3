#include "tts/heard_text.h"

#include <algorithm>

namespace minicpmo {

namespace {

constexpr double kRowsPerByte = 3.5;

}  // namespace

void HeardText::begin() {
  text_.clear();
  rows_ = 0;
  ended_ = false;
}

void HeardText::add_text(std::string_view burst) {
  text_ += burst;
}

void HeardText::add_rows(int64_t rows) {
  rows_ += std::max<int64_t>(rows, 0);
}

void HeardText::end() {
  ended_ = true;
}

int64_t HeardText::bytes_at(int64_t rows) const {
  const auto size = static_cast<int64_t>(text_.size());
  if (rows <= 0) return 0;
  if (ended_ && rows >= rows_) return size;
  const double per_byte =
      ended_ ? static_cast<double>(rows_) / static_cast<double>(size) : kRowsPerByte;
  auto at = std::min<int64_t>(size, static_cast<int64_t>(static_cast<double>(rows) / per_byte));
  while (at < size && (static_cast<unsigned char>(text_[static_cast<size_t>(at)]) & 0xC0) == 0x80)
    ++at;
  return at;
}

}  // namespace minicpmo
