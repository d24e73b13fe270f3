// A copy of the small checkpoint, to be damaged one file at a time.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace minicpmo::testing {

class DamagedModel {
 public:
  DamagedModel();
  ~DamagedModel();
  DamagedModel(const DamagedModel&) = delete;
  DamagedModel& operator=(const DamagedModel&) = delete;

  std::string path() const { return (root_ / "model").string(); }
  std::filesystem::path operator/(const std::string& file) const { return root_ / "model" / file; }
  // Outside of the model's directory, removed with it.
  std::filesystem::path outside(const std::string& file) const { return root_ / file; }

  void remove(const std::string& file);
  void write(const std::string& file, const std::string& content);
  std::string read(const std::string& file) const;
  // Cuts to `size` bytes, or fills up with zeros (sparse).
  void resize(const std::string& file, uintmax_t size);
  // Overwrites from byte `offset` on.
  void patch(const std::string& file, size_t offset, const std::string& bytes);
  // config.json["/a/b"] = value, by JSON pointer.
  void set(const std::string& file, const std::string& pointer, const nlohmann::json& value);
  void edit(const std::string& file, const std::function<void(nlohmann::json&)>& change);
  // Changes a safetensors file's header; the data stay as they are.
  void edit_header(const std::string& file, const std::function<void(nlohmann::json&)>& change);
  // A FIFO nobody writes to, in place of the file: a plain open() would never come back.
  void make_fifo(const std::string& file);
  void make_directory(const std::string& file);
  // Moves the file out and leaves a link to it.
  void link_out(const std::string& file);

 private:
  std::filesystem::path root_;
};

}  // namespace minicpmo::testing
