// The pipeline of one call: the elements between what is heard and what is said. What brings the
// sound and carries the events is up to Peer (WebRTC) and SocketPeer (WebSocket). To be used from
// the main thread, on which its callbacks run, too.
#pragma once

#include <gst/gst.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "common/gst_ptr.h"
#include "common/result.h"
#include "settings.h"

namespace minicpmo::call_server {

struct CallCallbacks {
  std::function<void(Result<std::string> sdp)> answered;  // once, with all candidates
  std::function<void()> connected;
  std::function<void()> gone;          // the client has left, or its network has
  std::function<void()> channel_open;  // for messages
  std::function<void(const std::string&)> message;
  std::function<void(const GstStructure*)> told;  // an element's message minicpmo/...
  std::function<void(uint64_t turn, const std::string& text)> words;
  // An answer's first sound is sent; its last one is over in `milliseconds` (0 also if it has
  // none); what is left of it was dropped.
  std::function<void(uint64_t turn)> sound_begins;
  std::function<void(uint64_t turn, unsigned milliseconds)> sound_ends;
  std::function<void()> sound_dropped;
  std::function<void()> sound_late;  // it goes on, but came too late to be heard without a gap
  // Of a WebSocket only: sound of an answer, 16-bit samples at 24 kHz.
  std::function<void(uint64_t turn, const std::string& pcm)> sound;
  // Somebody else than the offer's client: nothing was heard from it, and nothing told to it.
  std::function<void()> wrong_certificate;
  std::function<void()> too_slow;                  // the client does not read what it is sent
  std::function<void(const std::string&)> failed;  // the pipeline cannot go on
};

class CallPipeline : public std::enable_shared_from_this<CallPipeline> {
 public:
  virtual ~CallPipeline() = default;
  // Takes nothing of the network before. `offer`: the SDP, of a WebRTC call.
  virtual void start(const std::string& offer) = 0;
  // No callback runs after it. The pipeline is stopped in another thread. `why`: a word of
  // Metrics::call_ended, for the client.
  void close(const std::string& why);
  virtual void send(const std::string& message) = 0;
  // Since the last of the user's sound, or other sign of life, in seconds; since the start if there
  // was none.
  double silent_seconds() const;

  // minicpmoturn's signals. What was sent before belongs to the turn that ends.
  virtual void start_turn();
  virtual void end_turn();
  virtual void cancel_turn();
  // 16-bit samples at 24 kHz. False if too much of it waits. Of a WebSocket only.
  virtual bool append_audio(std::string_view) { return false; }

  GstElement* model() const { return model_.get(); }  // minicpmobin
  GstElement* turn() const { return turn_.get(); }    // minicpmoturn

  // Closed ones whose pipelines have not stopped yet.
  static int stopping() { return stopping_; }

 protected:
  using Weak = std::weak_ptr<CallPipeline>;
  explicit CallPipeline(CallCallbacks callbacks) : callbacks_(std::move(callbacks)) {}
  // kLibrary if an element is missing. The description has elements named model, turn, words (after
  // the model's text), and answer, the queue of its sound.
  Result<void> build(const Settings& settings, const char* description);
  // False if it did not start; the callback `failed` or `answered` tells.
  bool play();
  void heard_something() { last_sound_ = g_get_monotonic_time(); }
  ElementPtr element(const char* name) const;
  void add_probe(const char* element, const char* pad, GstPadProbeType type,
                 GstPadProbeCallback callback);
  // Runs on the main thread, unless the call is closed by then.
  void post(std::function<void(CallPipeline&)> work);
  virtual void fail(const std::string& message);
  // An error of this element is that of a client that has gone.
  virtual bool is_transport(GstObject*) const { return false; }
  // The client is told, before the pipeline stops. What is returned runs in the thread that stops
  // it.
  virtual std::function<void()> say_goodbye(const std::string& why) = 0;
  bool closed() const { return closed_; }

  CallCallbacks callbacks_;
  ElementPtr pipeline_, model_, turn_;

 private:
  static inline std::atomic<int> stopping_{0};
  void add_probes();
  void note_sound(uint64_t turn, GstBuffer* buffer);
  GstPadProbeReturn sound_probe(GstPadProbeInfo* info);
  gboolean on_message(GstMessage* message);

  guint bus_watch_ = 0;
  bool closed_ = false;
  std::atomic<gint64> last_sound_{0};  // g_get_monotonic_time()
  // Of the thread that sends the answers' sound.
  uint64_t sounding_ = 0;
  bool sound_ = false;
  GstClockTime sound_end_ = GST_CLOCK_TIME_NONE;
};

// The turn that `buffer` belongs to; false if it has none.
bool turn_of(GstBuffer* buffer, uint64_t* turn);

// For a callback that may come after the call: g_signal_connect_data's data and destroy.
using WeakPipeline = std::weak_ptr<CallPipeline>;
void forget_pipeline(gpointer data);

}  // namespace minicpmo::call_server
