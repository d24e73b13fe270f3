// minicpmo-ask: asks questions (sound files or typed text), prints the words as they come, writes
// the spoken answer as a WAV file, and prints time to first audio (TTFB) and realtime factor (RTF).
// Each sound file is a conversation of its own; typed questions follow each other in one.
//
//   TTFB: from the moment the whole question is in (its last sample, or the text, has been handed
//   to the first model element) to the first PCM buffer leaving the vocoder. The file is read as
//   fast as it can be, so encoding the whole question counts, unless --realtime paces it like a
//   microphone.
//   RTF:  (last PCM buffer - end of the question) / seconds of speech made. Below 1 is faster than
//   speech.

#include <gst/app/gstappsrc.h>
#include <gst/gst.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gpu_memory.h"
#include "turn_clock.h"

namespace {

using minicpmo::TurnClock;

struct Options {
  ~Options() {
    for (gchar* s : {model, device, precision, output, output_dir, system_prompt}) g_free(s);
    g_strfreev(text);
    g_strfreev(questions);
  }
  gchar* model = nullptr;
  gchar* device = nullptr;
  gchar* precision = nullptr;
  gchar* output = nullptr;
  gchar* output_dir = nullptr;
  gchar* system_prompt = nullptr;
  gboolean codes = FALSE;
  gboolean upstream = FALSE;
  gboolean realtime = FALSE;
  gboolean turns = FALSE;
  gboolean rtp = FALSE;
  gboolean separate = FALSE;
  gboolean json = FALSE;
  gint max_new_tokens = 0;
  gint max_codes = 0;
  gint runs = 1;
  gchar** text = nullptr;
  gchar** questions = nullptr;
};

struct Unref {
  void operator()(GstElement* e) const { gst_object_unref(e); }
  void operator()(GstContext* c) const { gst_context_unref(c); }
  void operator()(GstMessage* m) const { gst_message_unref(m); }
  void operator()(GstBus* b) const { gst_object_unref(b); }
  void operator()(GError* e) const { g_error_free(e); }
  void operator()(GOptionContext* c) const { g_option_context_free(c); }
  void operator()(gchar* s) const { g_free(s); }
};
template <class T>
using Ref = std::unique_ptr<T, Unref>;

std::string quoted(const char* value) {
  std::string out = "\"";
  for (const char* c = value; *c; ++c) {
    if (*c == '"' || *c == '\\') out += '\\';
    out += *c;
  }
  return out + "\"";
}

std::string common_properties(const Options& options) {
  std::string p = " async-load=false";  // loading is no part of TTFB
  if (options.model) p += " model=" + quoted(options.model);
  if (options.device) p += " device=" + quoted(options.device);
  if (options.precision) p += " precision=" + quoted(options.precision);
  return p;
}

// "" if it was not given: the element's own default.
std::string limit(const char* property, gint value) {
  return value > 0 ? std::string(" ") + property + "=" + std::to_string(value) : "";
}

std::string launch_line(const Options& options, const char* question, const std::string& wav) {
  const std::string common = common_properties(options);
  const std::string compatibility = options.upstream ? " compatibility=upstream" : "";
  std::string line;
  if (question) {
    line =
        "filesrc name=question ! decodebin ! audioconvert ! audioresample ! "
        "audio/x-raw,format=F32LE,rate=16000,channels=1 ! ";
    // The silence of somebody who waits, 12 s of it below and behind the question: it ends the
    // turn.
    if (options.turns) {
      line +=
          "all. audiotestsrc wave=silence num-buffers=96 samplesperbuffer=2000 ! "
          "audio/x-raw,format=F32LE,rate=16000,channels=1 ! all. audiomixer name=all ! "
          "audio/x-raw,format=F32LE,rate=16000,channels=1 ! "
          "identity sync=true ts-offset=10000000 ! minicpmoturn ! queue ! ";
    } else if (options.realtime) {
      line += "identity sync=true ! ";
    }
    line += "minicpmoaudioenc name=first" + common + " ! queue ! ";
  } else {
    line = "appsrc name=typed format=time caps=text/x-raw,format=utf8 ! ";
  }
  line += "minicpmollm name=llm" + common + compatibility;
  line += limit("max-new-tokens", options.max_new_tokens);
  if (options.system_prompt) line += " system-prompt=" + quoted(options.system_prompt);
  line += " ! queue ! minicpmotts name=tts" + common + compatibility;
  line += limit("max-codes", options.max_codes);
  if (options.codes && !wav.empty()) {
    line += " ! tee name=codes ! queue ! filesink async=false location=" +
            quoted((wav + ".codes.part").c_str()) + " codes.";
  }
  line += " ! queue ! minicpmovocoder name=vocoder" + common + compatibility;
  if (options.rtp) {
    line +=
        " ! tee name=sound ! queue ! audioconvert ! audioresample ! opusenc ! "
        "rtpopuspay name=rtp ! fakesink sync=false async=false sound. ! queue";
  }
  if (wav.empty()) return line + " ! fakesink sync=false";
  return line +
         " ! audioconvert dithering=none ! audio/x-raw,format=S16LE ! wavenc ! filesink location=" +
         quoted((wav + ".part").c_str());
}

void print_problem(GstMessage* message) {
  GError* error = nullptr;
  gchar* debug = nullptr;
  const bool fatal = GST_MESSAGE_TYPE(message) == GST_MESSAGE_ERROR;
  if (fatal) {
    gst_message_parse_error(message, &error, &debug);
  } else {
    gst_message_parse_warning(message, &error, &debug);
  }
  Ref<GError> owned(error);
  Ref<gchar> owned_debug(debug);
  fprintf(stderr, "%s: %s\n", fatal ? "error" : "warning", error->message);
  // Behind the place in the source, which is for developers, may be a line that says more.
  const char* more = fatal && debug ? strchr(debug, '\n') : nullptr;
  if (more) fprintf(stderr, "  %s\n", more + 1);
}

// One pipeline, and what is said in it.
class Conversation {
 public:
  // Keeps the model's context in `model`, for the next conversation.
  Conversation(const Options& options, GstElement* pipeline, Ref<GstContext>* model)
      : options_(options), clock_(!options.json), model_(model), pipeline_(pipeline) {
    clock_.watch(pipeline);
    if (*model_) gst_element_set_context(pipeline, model_->get());
  }

  // Loads the model, then asks. False after printing an error.
  bool run(const char* question, const std::vector<const char*>& texts) {
    GstElement* pipeline = pipeline_.get();
    bus_.reset(gst_element_get_bus(pipeline));
    const gint64 start = g_get_monotonic_time();
    // On an error the bus tells what it was.
    gst_element_set_state(pipeline, GST_STATE_READY);
    load_ms_ = static_cast<double>(g_get_monotonic_time() - start) / 1000;
    clock_.begin_turn();
    gst_element_set_state(pipeline, GST_STATE_PLAYING);
    const bool ok = question ? hear(question) : type(texts);
    gst_element_set_state(pipeline, GST_STATE_NULL);
    return ok;
  }

  const nlohmann::json& turns() const { return turns_; }

 private:
  bool hear(const char* question) {
    const bool ok = wait_for_end();
    report(question);
    return ok;
  }

  // Each text when the answer to the one before has left the vocoder.
  bool type(const std::vector<const char*>& texts) {
    Ref<GstElement> source(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "typed"));
    GstClockTime time = 0;
    for (const char* text : texts) {
      GstBuffer* buffer = gst_buffer_new_memdup(text, strlen(text));
      GST_BUFFER_PTS(buffer) = time++;
      const guint64 refused = refused_questions();
      clock_.begin_turn();
      gst_app_src_push_buffer(GST_APP_SRC(source.get()), buffer);
      const bool last = text == texts.back();
      if (last) gst_app_src_end_of_stream(GST_APP_SRC(source.get()));
      const bool ok = last ? wait_for_end() : wait_for_answer(refused);
      report(text);
      if (!ok) return false;
    }
    return true;
  }

  // Until the answer has left the vocoder, or one more question was refused than `refused`.
  bool wait_for_answer(guint64 refused) {
    constexpr GstClockTime kLook = 2 * GST_MSECOND;
    while (!clock_.turn_ended() && refused_questions() == refused) {
      if (const auto ended = look(kLook)) return *ended;
    }
    return true;
  }

  // The language model's statistics.
  template <class Read>
  void look_at_stats(Read&& read) const {
    Ref<GstElement> llm(gst_bin_get_by_name(GST_BIN(pipeline_.get()), "llm"));
    GstStructure* stats = nullptr;
    g_object_get(llm.get(), "stats", &stats, nullptr);
    read(stats);
    gst_structure_free(stats);
  }

  guint64 refused_questions() const {
    guint64 refused = 0;
    look_at_stats([&](GstStructure* s) { gst_structure_get_uint64(s, "refused", &refused); });
    return refused;
  }

  bool wait_for_end() {
    for (;;) {
      if (const auto ended = look(GST_CLOCK_TIME_NONE)) return *ended;
    }
  }

  // The next message, if one comes in time. Whether the pipeline came to a good end, once it has.
  std::optional<bool> look(GstClockTime timeout) {
    Ref<GstMessage> message(gst_bus_timed_pop_filtered(
        bus_.get(), timeout,
        static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR | GST_MESSAGE_WARNING |
                                    GST_MESSAGE_HAVE_CONTEXT)));
    if (!message) return std::nullopt;
    switch (GST_MESSAGE_TYPE(message.get())) {
      case GST_MESSAGE_EOS:
        return true;
      case GST_MESSAGE_HAVE_CONTEXT: {
        GstContext* context = nullptr;
        gst_message_parse_have_context(message.get(), &context);
        Ref<GstContext> owned(context);
        if (gst_context_has_context_type(context, "gst.minicpmo.Model")) *model_ = std::move(owned);
        return std::nullopt;
      }
      case GST_MESSAGE_ERROR:
        print_problem(message.get());
        return false;
      default:
        print_problem(message.get());
        return std::nullopt;
    }
  }

  void report(const char* question) {
    if (!options_.json) printf("\n");
    nlohmann::json turn = minicpmo::measure(clock_.take_turn());
    turn["question"] = question;
    turn["load_ms"] = load_ms_;
    gint64 context = 0;
    look_at_stats([&](GstStructure* s) { gst_structure_get_int64(s, "context-used", &context); });
    turn["context"] = context;
    const int64_t gpu = minicpmo::gpu_memory_used(0);
    if (gpu >= 0) turn["gpu_memory_mib"] = gpu >> 20;
    rusage usage{};
    if (getrusage(RUSAGE_SELF, &usage) == 0) turn["host_memory_mib"] = usage.ru_maxrss >> 10;
    turns_.push_back(std::move(turn));
  }

  const Options& options_;
  TurnClock clock_;
  Ref<GstContext>* const model_;
  const Ref<GstElement> pipeline_;
  Ref<GstBus> bus_;
  double load_ms_ = 0;
  nlohmann::json turns_ = nlohmann::json::array();
};

std::string wav_path(const Options& options, const char* question) {
  if (options.output_dir && question) {
    Ref<gchar> base(g_path_get_basename(question));
    std::string name = base.get();
    name = name.substr(0, name.rfind('.')) + ".wav";
    return std::string(options.output_dir) + "/" + name;
  }
  if (options.output) return options.output;
  return options.json ? "" : "answer.wav";
}

// Written beside its place and moved there when whole: nobody finds half an answer.
bool take_place(const std::string& path, bool whole) {
  const std::string part = path + ".part";
  if (!whole) {
    remove(part.c_str());
    return true;
  }
  if (rename(part.c_str(), path.c_str()) == 0) return true;
  perror(path.c_str());
  remove(part.c_str());
  return false;
}

bool ask(const Options& options, const char* question, const std::vector<const char*>& texts,
         Ref<GstContext>* model, nlohmann::json* results) {
  const std::string wav = wav_path(options, question);
  const std::string line = launch_line(options, question, wav);
  GError* error = nullptr;
  GstElement* parsed = gst_parse_launch(line.c_str(), &error);
  if (!parsed || error) {
    fprintf(stderr, "error: %s\n  in: %s\n", error ? error->message : "no pipeline", line.c_str());
    if (g_error_matches(error, GST_PARSE_ERROR, GST_PARSE_ERROR_NO_SUCH_ELEMENT)) {
      fprintf(stderr,
              "  An element of ours is missing when the plugin is not installed: `source "
              "pipelines/environment` finds one "
              "that is built in the source tree.\n");
    }
    if (g_error_matches(error, GST_PARSE_ERROR, GST_PARSE_ERROR_COULD_NOT_SET_PROPERTY))
      fprintf(stderr, "  `gst-inspect-1.0 ELEMENT` lists what each property takes.\n");
    g_clear_error(&error);
    if (parsed) gst_object_unref(parsed);
    return false;
  }
  if (question) {
    // Not by the line above, which has to be UTF-8: a file may have any name.
    Ref<GstElement> source(gst_bin_get_by_name(GST_BIN(parsed), "question"));
    g_object_set(source.get(), "location", question, nullptr);
  }
  Conversation conversation(options, parsed, model);
  const bool ok = conversation.run(question, texts);
  if (!wav.empty() && !take_place(wav, ok)) return false;
  if (options.codes && !wav.empty() && !take_place(wav + ".codes", ok)) return false;
  for (nlohmann::json turn : conversation.turns()) {
    if (!wav.empty()) turn["wav"] = wav;
    if (!options.json && ok) {
      printf("answer: %s (%.2f s)   TTFB: %.1f ms   RTF: %.3f\n", wav.c_str(),
             turn["audio_seconds"].get<double>(), turn["ttfb_ms"].get<double>(),
             turn["rtf"].get<double>());
    }
    results->push_back(std::move(turn));
  }
  return ok;
}

std::vector<std::vector<const char*>> typed_conversations(const Options& options) {
  std::vector<std::vector<const char*>> conversations;
  for (gchar** text = options.text; text && *text; ++text) {
    if (options.separate || conversations.empty()) conversations.emplace_back();
    conversations.back().push_back(*text);
  }
  return conversations;
}

GOptionContext* command_line(Options* o) {
  const GOptionEntry entries[] = {
      {"model", 'm', 0, G_OPTION_ARG_FILENAME, &o->model,
       "Checkpoint directory (default: the small one)", "DIR"},
      {"device", 'd', 0, G_OPTION_ARG_STRING, &o->device, "auto, cpu or cuda:N", "DEVICE"},
      {"precision", 'p', 0, G_OPTION_ARG_STRING, &o->precision, "auto, float32 or bfloat16",
       "TYPE"},
      {"text", 't', 0, G_OPTION_ARG_STRING_ARRAY, &o->text,
       "Type the question instead of speaking it; several are one conversation", "TEXT"},
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o->output, "WAV to write (default answer.wav)",
       "FILE"},
      {"output-dir", 0, 0, G_OPTION_ARG_FILENAME, &o->output_dir, "Write one WAV per question here",
       "DIR"},
      {"codes", 0, 0, G_OPTION_ARG_NONE, &o->codes,
       "Also write the speech codes, to WAV.codes (uint16, rows of 4)", nullptr},
      {"system-prompt", 0, 0, G_OPTION_ARG_STRING, &o->system_prompt,
       "What the model is told first", "TEXT"},
      {"upstream", 0, 0, G_OPTION_ARG_NONE, &o->upstream, "compatibility=upstream", nullptr},
      {"realtime", 0, 0, G_OPTION_ARG_NONE, &o->realtime,
       "Feed the question at the pace it was spoken", nullptr},
      {"turns", 0, 0, G_OPTION_ARG_NONE, &o->turns,
       "As in a call: at the pace of speech, and minicpmoturn finds where the question (of up to "
       "10 s) ends",
       nullptr},
      {"rtp", 0, 0, G_OPTION_ARG_NONE, &o->rtp, "Also make Opus in RTP packets; time the first one",
       nullptr},
      {"separate", 0, 0, G_OPTION_ARG_NONE, &o->separate,
       "Each typed question is a conversation of its own", nullptr},
      {"max-new-tokens", 0, 0, G_OPTION_ARG_INT, &o->max_new_tokens, "Longest answer, in tokens",
       "N"},
      {"max-codes", 0, 0, G_OPTION_ARG_INT, &o->max_codes,
       "Longest segment of speech, in codes of 21.3 ms", "N"},
      {"runs", 'n', 0, G_OPTION_ARG_INT, &o->runs,
       "Ask everything N times, each in a new session (default 1)", "N"},
      {"json", 0, 0, G_OPTION_ARG_NONE, &o->json, "Print one JSON array, and no WAV unless -o",
       nullptr},
      {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &o->questions, nullptr,
       "[QUESTION...]"},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
  GOptionContext* context = g_option_context_new("- ask MiniCPM-o 2.6 a question");
  g_option_context_add_main_entries(context, entries, nullptr);
  g_option_context_add_group(context, gst_init_get_option_group());
  return context;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  const Ref<GOptionContext> context(command_line(&options));
  GError* error = nullptr;
  if (!g_option_context_parse(context.get(), &argc, &argv, &error)) {
    fprintf(stderr, "minicpmo-ask: %s\n", error->message);
    g_error_free(error);
    return 2;
  }
  if (!options.text && !options.questions) {
    fprintf(stderr, "minicpmo-ask: name a sound file, or use --text (see --help)\n");
    return 2;
  }
  const auto typed = typed_conversations(options);
  nlohmann::json results = nlohmann::json::array();
  Ref<GstContext> model;
  bool ok = true;
  for (int run = 0; run < std::max(1, options.runs); ++run) {
    for (const auto& texts : typed) ok = ask(options, nullptr, texts, &model, &results) && ok;
    for (gchar** q = options.questions; q && *q; ++q)
      ok = ask(options, *q, {}, &model, &results) && ok;
  }
  if (options.json)
    printf("%s\n", results.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return ok ? 0 : 1;
}
