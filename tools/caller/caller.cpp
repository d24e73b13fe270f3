// minicpmo-caller: a synthetic caller. Says sound files over RTP in real time, as a telephone
// would, records what comes back, and reports for each turn how soon the answer came, how whole it
// was, and how soon it stopped when it was interrupted.
//
// The exit status is 0 when every question was answered in time, 1 when one was not or something
// else failed, 2 when the command line is wrong.

#include <gst/gst.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "call.h"
#include "recording.h"
#include "report.h"
#include "sound.h"

namespace {

using namespace minicpmo::caller;  // NOLINT: the program is this library's face

struct Arguments {
  ~Arguments() {
    for (gchar* s : {to, key, record, interrupt_after, interrupt_random, background, burst})
      g_free(s);
    g_strfreev(blackout);
    g_strfreev(new_source);
    g_strfreev(items);
  }
  gchar *to = nullptr, *key = nullptr, *record = nullptr;
  gint listen = 5006, repeat = 1, seed = 1, jitter_buffer = 60, ssrc = 0;
  gboolean pcmu = FALSE, json = FALSE, wrap = FALSE;
  gdouble end_silence = 1000, timeout = 15, connect_timeout = 60, noise = 0, background_db = 0;
  gchar *interrupt_after = nullptr, *interrupt_random = nullptr, *background = nullptr;
  gchar* burst = nullptr;
  gdouble loss = 0, loss_back = 0, reorder = 0, duplicate = 0, junk = 0;
  gint jitter = 0;
  gchar **blackout = nullptr, **new_source = nullptr, **items = nullptr;
};

const char* const kSummary =
    "Each ITEM is one of\n"
    "  FILE         a question: said, then its answer is waited for\n"
    "  sound:FILE   said, and not to be answered (a cough, the rest of a sentence)\n"
    "  wait:MS      silence\n"
    "Between and after items the caller sends silence. Any sound file that GStreamer decodes will "
    "do.";

GOptionContext* command_line(Arguments* a) {
  const GOptionEntry entries[] = {
      {"to", 't', 0, G_OPTION_ARG_STRING, &a->to, "Where to send (default 127.0.0.1:5004)",
       "HOST:PORT"},
      {"listen", 'l', 0, G_OPTION_ARG_INT, &a->listen, "Where the answers come (default 5006)",
       "PORT"},
      {"pcmu", 0, 0, G_OPTION_ARG_NONE, &a->pcmu, "G.711 mu-law at 8 kHz, not Opus", nullptr},
      {"srtp-key", 0, 0, G_OPTION_ARG_STRING, &a->key,
       "SRTP both ways, AES-128 with HMAC-SHA1-80: master key and salt, 60 hexadecimal digits; the "
       "answers must come from SSRC 2222",
       "HEX"},
      {"ssrc", 0, 0, G_OPTION_ARG_INT, &a->ssrc,
       "Of what is sent (default: random, with SRTP 1111)", "N"},
      {"record", 'o', 0, G_OPTION_ARG_FILENAME, &a->record,
       "Write what comes back, with its silence (24 kHz)", "WAV"},
      {"json", 0, 0, G_OPTION_ARG_NONE, &a->json, "Print JSON, not a table", nullptr},
      {"interrupt-after", 0, 0, G_OPTION_ARG_STRING, &a->interrupt_after,
       "Begin the next item so long into an answer, by turns; '-': at its end; the last one goes "
       "on",
       "MS,MS,..."},
      {"interrupt-random", 0, 0, G_OPTION_ARG_STRING, &a->interrupt_random,
       "The same, each at a random moment", "MS-MS"},
      {"repeat", 'n', 0, G_OPTION_ARG_INT, &a->repeat, "Say the items N times (default 1)", "N"},
      {"seed", 's', 0, G_OPTION_ARG_INT, &a->seed, "Of all that is random (default 1)", "N"},
      {"end-silence", 0, 0, G_OPTION_ARG_DOUBLE, &a->end_silence,
       "So much of it ends an answer (default 1000)", "MS"},
      {"timeout", 0, 0, G_OPTION_ARG_DOUBLE, &a->timeout,
       "An answer must begin within (default 15)", "SECONDS"},
      {"connect-timeout", 0, 0, G_OPTION_ARG_DOUBLE, &a->connect_timeout,
       "The first packet must come within (default 60); 0: begin before it comes", "SECONDS"},
      {"jitter-buffer", 0, 0, G_OPTION_ARG_INT, &a->jitter_buffer,
       "Of the caller's own ear (default 60)", "MS"},
      {"noise", 0, 0, G_OPTION_ARG_DOUBLE, &a->noise, "White noise below all, in dBFS, such as -60",
       "DB"},
      {"background", 0, 0, G_OPTION_ARG_FILENAME, &a->background,
       "Sound that goes on and on below all", "FILE"},
      {"background-gain", 0, 0, G_OPTION_ARG_DOUBLE, &a->background_db, "Its gain", "DB"},
      {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &a->items, nullptr, nullptr},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
  const GOptionEntry network[] = {
      {"loss", 0, 0, G_OPTION_ARG_DOUBLE, &a->loss, "Packets lost", "PERCENT"},
      {"loss-back", 0, 0, G_OPTION_ARG_DOUBLE, &a->loss_back, "Of what comes back", "PERCENT"},
      {"burst", 0, 0, G_OPTION_ARG_STRING, &a->burst, "N packets lost at once, every so often",
       "N/SECONDS"},
      {"jitter", 0, 0, G_OPTION_ARG_INT, &a->jitter, "Each packet is 0 to 2 MS late, in order",
       "MS"},
      {"reorder", 0, 0, G_OPTION_ARG_DOUBLE, &a->reorder, "Packets overtaken by others", "PERCENT"},
      {"duplicate", 0, 0, G_OPTION_ARG_DOUBLE, &a->duplicate, "Packets sent twice", "PERCENT"},
      {"blackout", 0, 0, G_OPTION_ARG_STRING_ARRAY, &a->blackout,
       "Nothing gets through: from (seconds of the call), how long; may be repeated", "AT:SECONDS"},
      {"new-source", 0, 0, G_OPTION_ARG_STRING_ARRAY, &a->new_source,
       "Another SSRC, sequence number and timestamp; may be repeated", "AT"},
      {"wrap", 0, 0, G_OPTION_ARG_NONE, &a->wrap,
       "Sequence numbers and timestamps begin just below their end", nullptr},
      {"junk", 0, 0, G_OPTION_ARG_DOUBLE, &a->junk,
       "Packets of random bytes, and broken ones, in a second", "N"},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
  GOptionContext* context = g_option_context_new("ITEM... - call MiniCPM-o over RTP");
  g_option_context_set_summary(context, kSummary);
  g_option_context_add_main_entries(context, entries, nullptr);
  GOptionGroup* group =
      g_option_group_new("network", "A bad network, on the way out if not said otherwise:",
                         "Options for a bad network", nullptr, nullptr);
  g_option_group_add_entries(group, network);
  g_option_context_add_group(context, group);
  g_option_context_add_group(context, gst_init_get_option_group());
  return context;
}

// Parsers of option values: false if the text is not what it should be.

bool numbers(const char* text, char separator, size_t count, std::vector<double>* values) {
  values->clear();
  for (const char* at = text;;) {
    char* end = nullptr;
    values->push_back(strtod(at, &end));
    if (end == at || !std::isfinite(values->back()) || values->back() < 0) return false;
    if (*end == '\0') return values->size() == count;
    if (*end != separator) return false;
    at = end + 1;
  }
}

bool interruptions(const std::string& text, std::vector<double>* after) {
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    std::vector<double> value;
    if (part == "-") {
      after->push_back(-1);
    } else if (numbers(part.c_str(), ',', 1, &value)) {
      after->push_back(value[0] / 1000);
    } else {
      return false;
    }
    begin = end + 1;
  }
  return true;
}

bool host_and_port(const std::string& text, CallOptions* options) {
  const size_t colon = text.rfind(':');
  std::vector<double> port;
  if (colon == std::string::npos || !numbers(text.c_str() + colon + 1, ':', 1, &port)) return false;
  options->host = text.substr(0, colon);
  options->port = static_cast<int>(port[0]);
  return !options->host.empty() && options->port > 0 && options->port < 65536;
}

bool is_key(const std::string& key) {
  return key.size() == 60 && key.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
}

// "" or what is wrong.
std::string read_network(const Arguments& a, Impairment* network) {
  std::vector<double> v;
  for (const double percent : {a.loss, a.loss_back, a.reorder, a.duplicate})
    if (percent < 0 || percent > 100) return "a percentage is from 0 to 100";
  network->loss_back = a.loss_back / 100;
  network->loss = a.loss / 100, network->reorder = a.reorder / 100;
  network->duplicate = a.duplicate / 100;
  network->jitter_ms = a.jitter;
  network->wrap = a.wrap;
  network->junk_per_second = a.junk;
  if (a.burst) {
    if (!numbers(a.burst, '/', 2, &v) || v[1] <= 0) return "--burst takes N/SECONDS";
    network->burst = static_cast<int>(v[0]), network->burst_every = v[1];
  }
  for (gchar** text = a.blackout; text && *text; ++text) {
    if (!numbers(*text, ':', 2, &v)) return "--blackout takes AT:SECONDS";
    network->blackouts.push_back({v[0], v[1]});
  }
  for (gchar** text = a.new_source; text && *text; ++text) {
    if (!numbers(*text, ':', 1, &v)) return "--new-source takes seconds";
    network->new_sources.push_back(v[0]);
  }
  std::sort(network->new_sources.begin(), network->new_sources.end());
  return "";
}

std::string read_options(const Arguments& a, CallOptions* o) {
  if (a.to && !host_and_port(a.to, o)) return "--to takes HOST:PORT";
  if (a.listen <= 0 || a.listen > 65535) return "--listen takes a port";
  o->listen = a.listen, o->pcmu = a.pcmu;
  if (a.key) o->key = a.key;
  if (a.key && !is_key(o->key)) return "--srtp-key takes 60 hexadecimal digits";
  o->ssrc = static_cast<uint32_t>(a.ssrc);
  o->jitter_buffer_ms = a.jitter_buffer;
  o->end_silence = a.end_silence / 1000, o->timeout = a.timeout;
  o->connect_timeout = a.connect_timeout;
  o->seed = static_cast<uint32_t>(a.seed);
  if (a.interrupt_after && !interruptions(a.interrupt_after, &o->interrupt_after))
    return "--interrupt-after takes MS,MS,...; one may be '-'";
  std::vector<double> v;
  if (a.interrupt_random) {
    if (!numbers(a.interrupt_random, '-', 2, &v) || v[1] < v[0] || v[1] <= 0)
      return "--interrupt-random takes MS-MS";
    o->interrupt_least = v[0] / 1000, o->interrupt_most = v[1] / 1000;
  }
  if (a.noise < 0) o->noise = std::pow(10, a.noise / 20);
  o->background_gain = std::pow(10, a.background_db / 20);
  if (!a.items) return "name what to say (see --help)";
  return read_network(a, &o->impairment);
}

std::string read_items(const Arguments& a, int rate, std::vector<Item>* items) {
  std::vector<double> v;
  for (gchar** text = a.items; *text; ++text) {
    Item item;
    std::string file = *text, problem;
    if (g_str_has_prefix(*text, "wait:")) {
      if (!numbers(*text + strlen("wait:"), ':', 1, &v)) return file + ": wait:MS";
      item.kind = Item::Kind::kWait;
      item.wait = v[0] / 1000;
    } else {
      const bool sound = g_str_has_prefix(*text, "sound:");
      item.kind = sound ? Item::Kind::kSound : Item::Kind::kQuestion;
      if (sound) file = file.substr(strlen("sound:"));
      if (!load_sound(file, rate, &item.sound, &problem)) return problem;
    }
    items->push_back(std::move(item));
  }
  const size_t once = items->size();
  for (int i = 1; i < a.repeat; ++i)
    for (size_t k = 0; k < once; ++k) items->push_back((*items)[k]);
  return "";
}

// Nothing may make the program hang: the call winds this up again and again.
void too_late(int) {
  const char text[] = "error: the call hangs: given up\n";
  (void)!write(STDERR_FILENO, text, sizeof text - 1);
  _exit(1);
}

nlohmann::json report(const Call& call, const Recording& recording, int clock_rate) {
  return {{"turns", report_turns(call.turns(), recording)},
          {"stream", report_stream(recording.packets(), clock_rate)},
          {"sent",
           {{"packets", call.packets_sent()},
            {"lost", call.packets_lost()},
            {"junk", call.junk_sent()},
            {"clock", static_cast<double>(call.clock_begin()) / 1e9},
            {"begin", static_cast<double>(call.begin()) / 1e9},
            {"latest_ms", call.latest_tick_ms()}}}};
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  GOptionContext* context = command_line(&arguments);
  GError* error = nullptr;
  const bool parsed = g_option_context_parse(context, &argc, &argv, &error);
  g_option_context_free(context);
  CallOptions options;
  std::string problem = parsed ? read_options(arguments, &options) : error->message;
  g_clear_error(&error);
  if (!problem.empty()) {
    fprintf(stderr, "minicpmo-caller: %s\n", problem.c_str());
    return 2;
  }
  signal(SIGALRM, too_late);
  constexpr int kRate = 24000;
  const int rate = options.pcmu ? 8000 : 48000;
  std::vector<Item> items;
  problem = read_items(arguments, rate, &items);
  if (problem.empty() && arguments.background)
    load_sound(arguments.background, rate, &options.background, &problem);
  Recording recording(arguments.record ? arguments.record : "", kRate);
  if (problem.empty() && !recording.open())
    problem = std::string(arguments.record) + ": " + strerror(errno);
  if (!problem.empty()) {
    fprintf(stderr, "error: %s\n", problem.c_str());
    return 1;
  }
  Call call(options, &recording);
  bool ok = call.run(items);
  if (!recording.close()) {
    fprintf(stderr, "error: %s could not be written\n", arguments.record);
    ok = false;
  }
  const nlohmann::json result = report(call, recording, rate);
  if (arguments.json) {
    printf("%s\n", result.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    print_table(result);
  }
  return ok ? 0 : 1;
}
