#include "robustness/damaged_model.h"

#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace minicpmo::testing {

namespace fs = std::filesystem;

DamagedModel::DamagedModel() {
  std::string name = (fs::temp_directory_path() / "minicpmo-model-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
  root_ = fs::canonical(name);
  fs::copy(MODEL_DIR, root_ / "model", fs::copy_options::recursive);
}

DamagedModel::~DamagedModel() {
  std::error_code error;
  fs::remove_all(root_, error);
}

void DamagedModel::remove(const std::string& file) {
  if (fs::remove_all(*this / file) == 0) throw std::runtime_error("no file " + file);
}

void DamagedModel::write(const std::string& file, const std::string& content) {
  std::ofstream(*this / file, std::ios::binary) << content;
}

std::string DamagedModel::read(const std::string& file) const {
  std::ifstream in(*this / file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file);
  return {std::istreambuf_iterator<char>(in), {}};
}

void DamagedModel::resize(const std::string& file, uintmax_t size) {
  fs::resize_file(*this / file, size);
}

void DamagedModel::patch(const std::string& file, size_t offset, const std::string& bytes) {
  std::fstream out(*this / file, std::ios::binary | std::ios::in | std::ios::out);
  out.seekp(static_cast<std::streamoff>(offset));
  out << bytes;
}

void DamagedModel::set(const std::string& file, const std::string& pointer,
                       const nlohmann::json& value) {
  edit(file, [&](nlohmann::json& j) { j[nlohmann::json::json_pointer(pointer)] = value; });
}

void DamagedModel::edit(const std::string& file,
                        const std::function<void(nlohmann::json&)>& change) {
  auto content = nlohmann::json::parse(read(file));
  change(content);
  write(file, content.dump());
}

void DamagedModel::edit_header(const std::string& file,
                               const std::function<void(nlohmann::json&)>& change) {
  const std::string bytes = read(file);
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof size);
  auto header = nlohmann::json::parse(bytes.substr(8, size));
  change(header);
  const std::string text = header.dump();
  const uint64_t new_size = text.size();
  write(file, std::string(reinterpret_cast<const char*>(&new_size), sizeof new_size) + text +
                  bytes.substr(8 + size));
}

void DamagedModel::make_fifo(const std::string& file) {
  remove(file);
  if (mkfifo((*this / file).c_str(), 0600) != 0) throw std::runtime_error("mkfifo " + file);
}

void DamagedModel::make_directory(const std::string& file) {
  remove(file);
  fs::create_directory(*this / file);
}

void DamagedModel::link_out(const std::string& file) {
  fs::rename(*this / file, outside("elsewhere"));
  fs::create_symlink(outside("elsewhere"), *this / file);
}

}  // namespace minicpmo::testing
