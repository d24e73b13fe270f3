// minicpmo-ask: asks one question (a sound file or typed text), prints the words as they come,
// writes the spoken answer as a WAV file, and prints time to first audio (TTFB) and realtime factor
// (RTF).
//
//   TTFB: from the moment the whole question is in (its last sample, or the text, has been handed
//   to the first model
//         element) to the first PCM buffer leaving the vocoder. The file is read as fast as it can
//         be, so encoding the whole question counts, unless --realtime paces it like a microphone.
//   RTF:  (last PCM buffer - end of the question) / seconds of speech made. Below 1 is faster than
//   speech.

#include <gst/app/gstappsink.h>
#include <gst/gst.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

constexpr int kSampleRate = 24000;

struct Options {
  ~Options() {
    for (gchar* s : {model, device, precision, text, output, output_dir, system_prompt}) g_free(s);
    g_strfreev(questions);
  }
  gchar* model = nullptr;
  gchar* device = nullptr;
  gchar* precision = nullptr;
  gchar* text = nullptr;
  gchar* output = nullptr;
  gchar* output_dir = nullptr;
  gchar* system_prompt = nullptr;
  gboolean codes = FALSE;
  gboolean upstream = FALSE;
  gboolean realtime = FALSE;
  gboolean json = FALSE;
  gint runs = 1;
  gchar** questions = nullptr;
};

// What one run measures; written by streaming threads, read after EOS.
struct Turn {
  std::atomic<gint64> question_end{0};
  std::atomic<gint64> first_word{0};
  std::atomic<gint64> first_audio{0};
  std::atomic<gint64> last_audio{0};
  std::atomic<gint64> samples{0};
  std::string text;
  bool print_words = true;
};

struct Unref {
  void operator()(GstElement* e) const { gst_object_unref(e); }
  void operator()(GstContext* c) const { gst_context_unref(c); }
  void operator()(GstMessage* m) const { gst_message_unref(m); }
  void operator()(GError* e) const { g_error_free(e); }
  void operator()(GOptionContext* c) const { g_option_context_free(c); }
  void operator()(gchar* s) const { g_free(s); }
};
template <class T>
using Ref = std::unique_ptr<T, Unref>;

GstPadProbeReturn on_question(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* turn = static_cast<Turn*>(data);
  if (GST_PAD_PROBE_INFO_TYPE(info) & GST_PAD_PROBE_TYPE_BUFFER) {
    turn->question_end = g_get_monotonic_time();
  } else if (GST_EVENT_TYPE(GST_PAD_PROBE_INFO_EVENT(info)) == GST_EVENT_EOS) {
    turn->question_end = g_get_monotonic_time();
  }
  return GST_PAD_PROBE_OK;
}

GstPadProbeReturn on_words(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* turn = static_cast<Turn*>(data);
  GstMapInfo map;
  if (!gst_buffer_map(GST_PAD_PROBE_INFO_BUFFER(info), &map, GST_MAP_READ)) return GST_PAD_PROBE_OK;
  if (map.size > 0) {
    gint64 none = 0;
    turn->first_word.compare_exchange_strong(none, g_get_monotonic_time());
    turn->text.append(reinterpret_cast<const char*>(map.data), map.size);
    if (turn->print_words) {
      fwrite(map.data, 1, map.size, stdout);
      fflush(stdout);
    }
  }
  gst_buffer_unmap(GST_PAD_PROBE_INFO_BUFFER(info), &map);
  return GST_PAD_PROBE_OK;
}

GstPadProbeReturn on_audio(GstPad*, GstPadProbeInfo* info, gpointer data) {
  auto* turn = static_cast<Turn*>(data);
  const gsize size = gst_buffer_get_size(GST_PAD_PROBE_INFO_BUFFER(info));
  if (size == 0) return GST_PAD_PROBE_OK;
  const gint64 now = g_get_monotonic_time();
  gint64 none = 0;
  turn->first_audio.compare_exchange_strong(none, now);
  turn->last_audio = now;
  turn->samples += size / sizeof(float);
  return GST_PAD_PROBE_OK;
}

void add_probe(GstElement* pipeline, const char* element, const char* pad_name,
               GstPadProbeType type, GstPadProbeCallback callback, Turn* turn) {
  Ref<GstElement> e(gst_bin_get_by_name(GST_BIN(pipeline), element));
  GstPad* pad = gst_element_get_static_pad(e.get(), pad_name);
  gst_pad_add_probe(pad, type, callback, turn, nullptr);
  gst_object_unref(pad);
}

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

std::string launch_line(const Options& options, const char* question, const std::string& wav) {
  const std::string common = common_properties(options);
  const std::string compatibility = options.upstream ? " compatibility=upstream" : "";
  std::string line;
  if (question) {
    line =
        "filesrc name=question ! decodebin ! audioconvert ! audioresample ! "
        "audio/x-raw,format=F32LE,rate=16000,channels=1 ! ";
    if (options.realtime) line += "identity sync=true ! ";
    line += "minicpmoaudioenc name=first" + common + " ! queue ! ";
  } else {
    line = "appsrc name=typed format=time caps=text/x-raw,format=utf8 ! identity name=first ! ";
  }
  line += "minicpmollm name=llm" + common + compatibility;
  if (options.system_prompt) line += " system-prompt=" + quoted(options.system_prompt);
  line += " ! queue ! minicpmotts" + common + compatibility;
  if (options.codes && !wav.empty()) {
    line += " ! tee name=codes ! queue ! filesink async=false location=" +
            quoted((wav + ".codes.part").c_str()) + " codes.";
  }
  line += " ! queue ! minicpmovocoder name=vocoder" + common + compatibility;
  if (wav.empty()) return line + " ! fakesink sync=false";
  return line +
         " ! audioconvert dithering=none ! audio/x-raw,format=S16LE ! wavenc ! filesink location=" +
         quoted((wav + ".part").c_str());
}

// Runs the pipeline to its end. Returns false after printing the error. Keeps the model's context
// for the next run.
bool run_to_end(GstElement* pipeline, const Options& options, Ref<GstContext>* model) {
  if (*model) gst_element_set_context(pipeline, model->get());
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  if (options.text) {
    Ref<GstElement> source(gst_bin_get_by_name(GST_BIN(pipeline), "typed"));
    GstBuffer* buffer = gst_buffer_new_memdup(options.text, strlen(options.text));
    GST_BUFFER_PTS(buffer) = 0;
    GstFlowReturn flow;
    g_signal_emit_by_name(source.get(), "push-buffer", buffer, &flow);
    gst_buffer_unref(buffer);
    g_signal_emit_by_name(source.get(), "end-of-stream", &flow);
  }
  GstBus* bus = gst_element_get_bus(pipeline);
  bool ok = true, done = false;
  while (!done) {
    Ref<GstMessage> message(gst_bus_timed_pop_filtered(
        bus, GST_CLOCK_TIME_NONE,
        static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR | GST_MESSAGE_WARNING |
                                    GST_MESSAGE_HAVE_CONTEXT)));
    switch (GST_MESSAGE_TYPE(message.get())) {
      case GST_MESSAGE_EOS:
        done = true;
        break;
      case GST_MESSAGE_HAVE_CONTEXT: {
        GstContext* context = nullptr;
        gst_message_parse_have_context(message.get(), &context);
        Ref<GstContext> owned(context);
        if (gst_context_has_context_type(context, "gst.minicpmo.Model")) *model = std::move(owned);
        break;
      }
      default: {
        GError* error = nullptr;
        gchar* debug = nullptr;
        const bool fatal = GST_MESSAGE_TYPE(message.get()) == GST_MESSAGE_ERROR;
        if (fatal) {
          gst_message_parse_error(message.get(), &error, &debug);
        } else {
          gst_message_parse_warning(message.get(), &error, &debug);
        }
        Ref<GError> owned(error);
        Ref<gchar> owned_debug(debug);
        fprintf(stderr, "%s: %s\n", fatal ? "error" : "warning", error->message);
        // Behind the place in the source, which is for developers, may be a line that says more.
        const char* more = fatal && debug ? strchr(debug, '\n') : nullptr;
        if (more) fprintf(stderr, "  %s\n", more + 1);
        if (fatal) ok = false, done = true;
      }
    }
  }
  gst_element_set_state(pipeline, GST_STATE_NULL);
  gst_object_unref(bus);
  return ok;
}

double milliseconds(gint64 from, gint64 to) {
  return to > 0 ? (to - from) / 1000.0 : -1;
}

nlohmann::json report(const Turn& turn, const char* question) {
  const double seconds = turn.samples / static_cast<double>(kSampleRate);
  nlohmann::json r;
  r["question"] = question;
  r["text"] = turn.text;
  r["first_word_ms"] = milliseconds(turn.question_end, turn.first_word);
  r["ttfb_ms"] = milliseconds(turn.question_end, turn.first_audio);
  r["audio_seconds"] = seconds;
  r["rtf"] = seconds > 0 ? milliseconds(turn.question_end, turn.last_audio) / 1000 / seconds : -1;
  return r;
}

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

bool ask(const Options& options, const char* question, Ref<GstContext>* model,
         nlohmann::json* results) {
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
  Ref<GstElement> pipeline(parsed);
  if (question) {
    // Not by the line above, which has to be UTF-8: a file may have any name.
    Ref<GstElement> source(gst_bin_get_by_name(GST_BIN(pipeline.get()), "question"));
    g_object_set(source.get(), "location", question, nullptr);
  }
  Turn turn;
  turn.print_words = !options.json;
  add_probe(
      pipeline.get(), "first", question ? "sink" : "src",
      static_cast<GstPadProbeType>(GST_PAD_PROBE_TYPE_BUFFER | GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM),
      on_question, &turn);
  add_probe(pipeline.get(), "llm", "src", GST_PAD_PROBE_TYPE_BUFFER, on_words, &turn);
  add_probe(pipeline.get(), "vocoder", "src", GST_PAD_PROBE_TYPE_BUFFER, on_audio, &turn);
  const bool ok = run_to_end(pipeline.get(), options, model);
  if (turn.print_words) printf("\n");
  if (!wav.empty() && !take_place(wav, ok)) return false;
  if (options.codes && !wav.empty() && !take_place(wav + ".codes", ok)) return false;
  nlohmann::json r = report(turn, question ? question : options.text);
  if (!wav.empty()) r["wav"] = wav;
  results->push_back(r);
  if (!options.json && ok) {
    printf("answer: %s (%.2f s)   TTFB: %.1f ms   RTF: %.3f\n", wav.c_str(),
           r["audio_seconds"].get<double>(), r["ttfb_ms"].get<double>(), r["rtf"].get<double>());
  }
  return ok;
}

GOptionContext* command_line(Options* o) {
  const GOptionEntry entries[] = {
      {"model", 'm', 0, G_OPTION_ARG_FILENAME, &o->model,
       "Checkpoint directory (default: the small one)", "DIR"},
      {"device", 'd', 0, G_OPTION_ARG_STRING, &o->device, "auto, cpu or cuda:N", "DEVICE"},
      {"precision", 'p', 0, G_OPTION_ARG_STRING, &o->precision, "auto, float32 or bfloat16",
       "TYPE"},
      {"text", 't', 0, G_OPTION_ARG_STRING, &o->text, "Type the question instead of speaking it",
       "TEXT"},
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
      {"runs", 'n', 0, G_OPTION_ARG_INT, &o->runs, "Ask N times, each in a new session (default 1)",
       "N"},
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
  nlohmann::json results = nlohmann::json::array();
  Ref<GstContext> model;
  bool ok = true;
  for (int run = 0; run < std::max(1, options.runs); ++run) {
    if (options.text) ok = ask(options, nullptr, &model, &results) && ok;
    for (gchar** q = options.questions; q && *q; ++q) ok = ask(options, *q, &model, &results) && ok;
  }
  if (options.json)
    printf("%s\n", results.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return ok ? 0 : 1;
}
