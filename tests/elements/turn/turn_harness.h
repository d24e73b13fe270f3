// minicpmoturn in a harness, and what leaves it told in a few words.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "support/element_harness.h"
#include "support/fake_backend.h"

namespace minicpmo::testing {

using Names = std::vector<std::string>;

constexpr size_t kWindow = VoiceActivity::kWindow;
constexpr GstClockTime kWindowTime = 32 * GST_MSECOND;
constexpr float kVoice = 0.5f;  // of what amplitude speech is, for the fake network

// What passed a source pad of minicpmoturn. Times are milliseconds. What follows on without a hole
// is one word: "gap 0-352", "audio 352-960" (with " discont" where a buffer has that flag). The
// others are "interrupt 1", "turn-start 1", "turn-end 1 speech 800", "turn-end 1 speech 800
// speculative", "turn-cancel 1", "turn-confirm 1", "turn-resume 1", "segment", "eos", ...
class TurnLog {
 public:
  explicit TurnLog(GstElement* element);
  ~TurnLog();
  TurnLog(const TurnLog&) = delete;
  TurnLog& operator=(const TurnLog&) = delete;

  Names story() const;
  // All samples in a row.
  std::vector<float> samples() const;
  size_t buffers() const;
  void clear();
  // Called with each word, on the streaming thread.
  void set_hook(std::function<void(const std::string&)> hook);
  // Of the metas of all buffers: turn and number.
  std::vector<std::pair<guint64, guint>> chunks() const;

 private:
  static GstPadProbeReturn probe(GstPad* pad, GstPadProbeInfo* info, gpointer self);
  void add(GstBuffer* buffer);
  void add(GstEvent* event);
  void add(const char* what, GstClockTime begin, GstClockTime duration, bool discont);

  PadPtr pad_;
  gulong id_ = 0;
  mutable std::mutex mutex_;  // guards what follows
  Names story_;
  std::function<void(const std::string&)> hook_;
  GstClockTime begin_ = 0, end_ = 0;  // of the last word, if it is a stretch of time
  std::vector<float> samples_;
  std::vector<std::pair<guint64, guint>> chunks_;
};

class TurnStream : public ::testing::Test {
 protected:
  // Times in whole windows: 3 of padding, 2 of speech start a turn, 5 of silence end it.
  static void set_windows(GstElement* element);
  void start(const ElementHarness::Setup& setup = set_windows);
  // So many windows of one value from time_ on.
  GstFlowReturn push(size_t windows, float value);
  GstFlowReturn push_samples(const std::vector<float>& samples, GstClockTime pts);
  // '#' a window of speech, '.' one of silence.
  void play(const std::string& script);
  void push_segment(GstFormat format, guint64 start, guint64 time = 0);
  void flush();
  guint64 stat(const char* name);
  // Element messages of this name: a field of each.
  std::vector<guint64> told(const char* name, const char* field);
  // The story since the last call.
  Names story();

  FakeBackend backend_;
  std::unique_ptr<ElementHarness> h_;
  std::unique_ptr<TurnLog> log_;
  GstClockTime time_ = 0;
};

}  // namespace minicpmo::testing
