#include "llm/gstminicpmovoice.h"

#include <gst/gst.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "common/gst_ptr.h"

namespace minicpmo {
namespace {

struct Decoded {
  explicit Decoded(size_t limit) : limit(limit) { pcm.reserve(limit); }  // no callback may throw
  const size_t limit;
  std::mutex mutex;
  std::vector<float> pcm;
};

void on_handoff(GstElement*, GstBuffer* buffer, GstPad*, gpointer data) {
  auto* decoded = static_cast<Decoded*>(data);
  const BufferMap map(buffer);
  if (!map.ok()) return;
  std::lock_guard lock(decoded->mutex);
  const size_t before = decoded->pcm.size();
  const size_t n = std::min(map.bytes().size() / sizeof(float), decoded->limit - before);
  decoded->pcm.resize(before + n);
  std::memcpy(decoded->pcm.data() + before, map.bytes().data(), n * sizeof(float));
}

Error voice_error(const std::string& path, const GError* error) {
  const std::string words = error != nullptr ? error->message : "unknown error";
  const std::string what = "The reference voice " + path;
  if (g_error_matches(error, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NOT_FOUND))
    return Error{ErrorCode::kNotFound, what + " does not exist.", words};
  if (error != nullptr && error->domain == GST_RESOURCE_ERROR)
    return Error{ErrorCode::kOpenRead, what + " cannot be read.", words};
  if (error != nullptr && error->domain == GST_CORE_ERROR)
    return Error{ErrorCode::kLibrary,
                 what +
                     " cannot be decoded: a GStreamer element is missing; install "
                     "gstreamer1.0-plugins-good, or use a WAV file.",
                 words};
  return Error{ErrorCode::kFormat, what + " is no sound file that can be decoded.", words};
}

ElementPtr make_decoder(const std::string& path, GError** error) {
  ElementPtr pipeline(
      gst_parse_launch("filesrc name=file ! decodebin ! audioconvert ! audioresample ! "
                       "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved ! "
                       "fakesink name=sink signal-handoffs=true sync=false",
                       error));
  if (pipeline == nullptr || *error != nullptr) return nullptr;
  const ElementPtr file(gst_bin_get_by_name(GST_BIN(pipeline.get()), "file"));
  g_object_set(file.get(), "location", path.c_str(), nullptr);
  return pipeline;
}

bool enough(Decoded& decoded) {
  std::lock_guard lock(decoded.mutex);
  return decoded.pcm.size() >= decoded.limit;
}

// Until the end of the file, enough of it, or an error.
Result<void> run(GstElement* pipeline, const std::string& path, Decoded& decoded,
                 const CancelFlag& cancel) {
  const BusPtr bus(gst_element_get_bus(pipeline));
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  while (!enough(decoded)) {
    if (cancel.is_set()) return Error{ErrorCode::kCancelled, "cancelled", ""};
    const MessagePtr message(gst_bus_timed_pop_filtered(
        bus.get(), 50 * GST_MSECOND,
        static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR)));
    if (message == nullptr) continue;
    if (GST_MESSAGE_TYPE(message.get()) == GST_MESSAGE_EOS) break;
    GError* error = nullptr;
    gst_message_parse_error(message.get(), &error, nullptr);
    const Error said = voice_error(path, error);
    g_clear_error(&error);
    return said;
  }
  return {};
}

// At most `limit` samples.
Result<std::vector<float>> read_voice(const std::string& path, size_t limit,
                                      const CancelFlag& cancel) {
  if (!g_file_test(path.c_str(), G_FILE_TEST_EXISTS))
    return Error{ErrorCode::kNotFound, "The reference voice " + path + " does not exist.", ""};
  // A pipe or a device could make us wait for ever.
  if (!g_file_test(path.c_str(), G_FILE_TEST_IS_REGULAR))
    return Error{ErrorCode::kOpenRead, "The reference voice " + path + " is no regular file.", ""};
  GError* error = nullptr;
  const ElementPtr pipeline = make_decoder(path, &error);
  if (pipeline == nullptr) {
    const Error said = voice_error(path, error);
    g_clear_error(&error);
    return said;
  }
  g_clear_error(&error);
  Decoded decoded(limit);
  const ElementPtr sink(gst_bin_get_by_name(GST_BIN(pipeline.get()), "sink"));
  g_signal_connect(sink.get(), "handoff", G_CALLBACK(on_handoff), &decoded);
  const auto done = run(pipeline.get(), path, decoded, cancel);
  gst_element_set_state(pipeline.get(), GST_STATE_NULL);
  RETURN_IF_ERROR(done);
  return std::move(decoded.pcm);
}

}  // namespace

Result<TensorPtr> encode_voice(Engine& engine, const std::string& path, const CancelFlag& cancel) {
  const auto limit = static_cast<size_t>(engine.info().max_chunk_samples);
  ASSIGN_OR_RETURN(const std::vector<float> pcm, read_voice(path, limit, cancel));
  RETURN_IF_ERROR(engine.load(
      Stage::kAudioEncoder, [](int, const std::string&) {}, cancel));
  ASSIGN_OR_RETURN(const auto encoder, engine.new_audio_encoder());
  ASSIGN_OR_RETURN(TensorPtr rows, encoder->step(pcm, cancel));
  if (rows == nullptr) {
    return Error{ErrorCode::kFormat,
                 "The reference voice " + path + " holds " + std::to_string(pcm.size()) +
                     " samples at 16 kHz, too few to hear a voice; a few seconds are needed.",
                 ""};
  }
  return rows;
}

Result<void> adopt_voice(LlmSettings& settings, Engine& engine, const CancelFlag& cancel) {
  if (!settings.voice_due()) return {};
  const std::string voice = settings.values().voice;
  TensorPtr embeddings;
  if (!voice.empty()) {
    ASSIGN_OR_RETURN(embeddings, encode_voice(engine, voice, cancel));
  }
  settings.set_voice_embeddings(std::move(embeddings), voice);
  return {};
}

}  // namespace minicpmo
