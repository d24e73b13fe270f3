#include "settings.h"

#include <gio/gio.h>
#include <gst/gst.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <regex>

#include "admission.h"

namespace minicpmo::call_server {

namespace {

// As GOption fills it in. Texts that go on as they are, and may be in any script, are "file names":
// GOption would convert others from the locale's character set, and refuse them in the C locale.
struct Words {
  ~Words() {
    for (gchar* word : {address, token, stun_server, transport, model, device, system_prompt})
      g_free(word);
    for (gchar** words : {origins, turn_servers, voices, rest}) g_strfreev(words);
  }
  gchar *address = nullptr, *token = nullptr, *stun_server = nullptr, *transport = nullptr;
  gchar* model = nullptr;
  gchar *device = nullptr, *system_prompt = nullptr;
  gchar **origins = nullptr, **turn_servers = nullptr, **voices = nullptr, **rest = nullptr;
  gboolean log_text = FALSE, version = FALSE;
};

const char* const kSummary =
    "Answers calls from browsers with MiniCPM-o: speak, and hear the answer. Serves a page to "
    "call\n"
    "from at /, takes WebRTC offers at /whip and /v1/realtime/calls, and\n"
    "WebSockets at /v1/realtime.";

const char* const kDescription =
    "Examples:\n"
    "  minicpmo-call-server\n"
    "      then open http://127.0.0.1:8080/ in a browser\n"
    "  MINICPMO_CALL_TOKEN=$(openssl rand -hex 32) minicpmo-call-server --address 0.0.0.0 \\\n"
    "      --stun-server stun://stun.example.org:3478 \\\n"
    "      --turn-server 'turn://user:password@turn.example.org:3478?transport=udp'\n"
    "\n"
    "Environment:\n"
    "  MINICPMO_CALL_TOKEN  The token, if there is no --token: other users of the computer can "
    "read\n"
    "                       command lines.\n"
    "\n"
    "Browsers give pages from elsewhere than this computer the microphone over HTTPS only, and "
    "the\n"
    "token must not travel in clear text: put a proxy that speaks TLS in front.\n";

std::vector<GOptionEntry> main_entries(Settings* s, Words* w) {
  return {
      {"address", 'a', 0, G_OPTION_ARG_STRING, &w->address,
       "Where to listen (default 127.0.0.1); elsewhere than on loopback a token is needed",
       "ADDRESS"},
      {"port", 'p', 0, G_OPTION_ARG_INT, &s->port, "Port (default 8080); 0: a free one, printed",
       "PORT"},
      {"token", 0, 0, G_OPTION_ARG_FILENAME, &w->token,
       "What clients must send as a bearer token; better in $MINICPMO_CALL_TOKEN", "TOKEN"},
      {"origin", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &w->origins,
       "Pages of this origin may call too, '*': of any; may be repeated", "https://HOST[:PORT]"},
      {"model", 'm', 0, G_OPTION_ARG_FILENAME, &w->model,
       "Directory of the checkpoint (default $MINICPMO_MODEL, or the small one)", "DIR"},
      {"device", 'd', 0, G_OPTION_ARG_FILENAME, &w->device,
       "Where to compute: auto (default), cpu or cuda:N", "DEVICE"},
      {"system-prompt", 0, 0, G_OPTION_ARG_FILENAME, &w->system_prompt,
       "Of calls that bring none of their own", "TEXT"},
      {"max-codes", 0, 0, G_OPTION_ARG_INT, &s->max_codes,
       "Longest segment of an answer's speech, in codes of 21.3 ms (default 0: the model's own)",
       "N"},
      {"voice", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &w->voices,
       "A voice that calls may ask for: a sound file with it; may be repeated", "NAME=FILE.wav"},
      {"log-text", 0, 0, G_OPTION_ARG_NONE, &w->log_text,
       "Write what users and answers say into the log", nullptr},
      {"version", 0, 0, G_OPTION_ARG_NONE, &w->version, "Print the version", nullptr},
      {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &w->rest, nullptr, nullptr},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
}

std::vector<GOptionEntry> network_entries(Words* w) {
  return {{"stun-server", 0, 0, G_OPTION_ARG_FILENAME, &w->stun_server,
           "Tells our address as others see it", "stun://HOST:PORT"},
          {"turn-server", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &w->turn_servers,
           "Relays calls that find no direct way; may be repeated",
           "turn[s]://USER:PASSWORD@HOST:PORT[?transport=udp|tcp]"},
          {"transport", 0, 0, G_OPTION_ARG_STRING, &w->transport,
           "What the page calls over: webrtc (default; a WebSocket if that does not connect), or "
           "websocket, where no UDP comes in",
           "TRANSPORT"},
          {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
}

std::vector<GOptionEntry> limit_entries(Settings* s) {
  return {{"max-calls", 0, 0, G_OPTION_ARG_INT, &s->max_calls,
           "Calls at once; more are refused (default 8)", "N"},
          {"offers-per-minute", 0, 0, G_OPTION_ARG_INT, &s->offers_per_minute,
           "Calls that one address may begin (default 10)", "N"},
          {"connect-timeout", 0, 0, G_OPTION_ARG_INT, &s->connect_timeout_s,
           "A call must connect within (default 15)", "SECONDS"},
          {"idle-timeout", 0, 0, G_OPTION_ARG_INT, &s->idle_timeout_s,
           "A call ends without a packet for (default 60)", "SECONDS"},
          {"max-call", 0, 0, G_OPTION_ARG_INT, &s->max_call_s,
           "A call ends at the latest after (default 1800)", "SECONDS"},
          {"late-pause", 0, 0, G_OPTION_ARG_INT, &s->late_pause_s,
           "After an answer had a gap, because the computer is too slow for its calls, no more are "
           "taken for (default 10; 0: never mind)",
           "SECONDS"},
          {"drain-timeout", 0, 0, G_OPTION_ARG_INT, &s->drain_timeout_s,
           "After SIGTERM, answers under way may go on for (default 30)", "SECONDS"},
          {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
}

void add_group(GOptionContext* context, const char* name, const char* title, const char* help,
               const std::vector<GOptionEntry>& entries) {
  GOptionGroup* group = g_option_group_new(name, title, help, nullptr, nullptr);
  g_option_group_add_entries(group, entries.data());
  g_option_context_add_group(context, group);
}

// "" or why the command line could not be read.
std::string read_command_line(char** argv, Settings* settings, Words* words) {
  GOptionContext* context = g_option_context_new("- calls from browsers");
  g_option_context_set_summary(context, kSummary);
  g_option_context_set_description(context, kDescription);
  g_option_context_add_main_entries(context, main_entries(settings, words).data(), nullptr);
  add_group(context, "network", "Ways through firewalls:", "Show options for STUN and TURN",
            network_entries(words));
  add_group(context, "limits", "Limits:", "Show options for limits", limit_entries(settings));
  g_option_context_add_group(context, gst_init_get_option_group());
  gchar** copy = g_strdupv(argv);
  GError* error = nullptr;
  std::string problem;
  if (!g_option_context_parse_strv(context, &copy, &error))
    problem = std::string(error->message) + "; --help-all shows all options";
  g_clear_error(&error);
  g_strfreev(copy);
  g_option_context_free(context);
  return problem;
}

void print_version() {
  gchar* gstreamer = gst_version_string();
  printf("minicpmo-call-server %s\n%s\n", VERSION, gstreamer);
  g_free(gstreamer);
}

Error bad(const std::string& option, const std::string& value, const std::string& what) {
  constexpr size_t kLongest = 200;
  const std::string shown = value.size() > kLongest ? value.substr(0, kLongest) + "..." : value;
  return {ErrorCode::kSettings, option + " " + (shown.empty() ? "\"\"" : shown) + ": " + what};
}

std::string text(const gchar* word) {
  return word ? word : "";
}

std::vector<std::string> list(gchar** words) {
  std::vector<std::string> result;
  for (; words && *words; ++words) result.emplace_back(*words);
  return result;
}

Result<void> check_numbers(const Settings& s) {
  const struct {
    const char* option;
    int value, least, most;
  } numbers[] = {{"--port", s.port, 0, 65535},
                 {"--max-calls", s.max_calls, 1, 1000},
                 {"--offers-per-minute", s.offers_per_minute, 1, 1000000},
                 {"--connect-timeout", s.connect_timeout_s, 1, 600},
                 {"--idle-timeout", s.idle_timeout_s, 1, 86400},
                 {"--max-call", s.max_call_s, 1, 86400},
                 {"--late-pause", s.late_pause_s, 0, 3600},
                 {"--drain-timeout", s.drain_timeout_s, 0, 3600},
                 {"--max-codes", s.max_codes, 0, 1 << 20}};
  for (const auto& n : numbers) {
    if (n.value < n.least || n.value > n.most) {
      return bad(n.option, std::to_string(n.value),
                 "give a number from " + std::to_string(n.least) + " to " + std::to_string(n.most));
    }
  }
  return {};
}

// The message never shows the token.
Result<std::string> read_token(const gchar* word) {
  const gchar* variable = g_getenv("MINICPMO_CALL_TOKEN");
  const std::string token = text(word ? word : variable);
  if (word && token.empty())
    return bad("--token", "", "is empty; give a token, or leave the option out");
  // RFC 6750: what a bearer token may be made of.
  static const char allowed[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=";
  if (token.find_first_not_of(allowed) != token.npos) {
    return bad(word ? "--token" : "MINICPMO_CALL_TOKEN", "(not shown)",
               "has characters that a bearer token cannot have; use letters, digits and "
               "- . _ ~ + /, such as `openssl rand -hex 32` prints");
  }
  return token;
}

Result<std::string> read_address(const gchar* word, bool with_token) {
  std::string address = word ? word : "127.0.0.1";
  if (address == "localhost") address = "127.0.0.1";
  GInetAddress* parsed = g_inet_address_new_from_string(address.c_str());
  if (!parsed) {
    return bad("--address", address,
               "is no address; give an IPv4 or IPv6 address of this computer, such as 127.0.0.1, "
               "or 0.0.0.0 for all");
  }
  const bool loopback = g_inet_address_get_is_loopback(parsed);
  g_object_unref(parsed);
  if (!loopback && !with_token) {
    return bad("--address", address,
               "others than this computer could call; set MINICPMO_CALL_TOKEN (or --token) to what "
               "they must know, or listen on 127.0.0.1");
  }
  return address;
}

Result<std::vector<std::string>> read_origins(gchar** words) {
  std::vector<std::string> origins = list(words);
  for (const std::string& origin : origins) {
    if (origin != "*" && !is_origin(origin)) {
      return bad("--origin", origin,
                 "is no origin; give https://HOST or https://HOST:PORT without a path, or '*' for "
                 "all");
    }
  }
  return origins;
}

constexpr size_t kMaxUri = 1024;
constexpr char kPlace[] = R"((?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5}))";

bool is_port(const std::string& digits) {
  const int port = std::stoi(digits);
  return port >= 1 && port <= 65535;
}

Result<std::string> read_stun_server(const gchar* word) {
  if (!word) return std::string();
  const std::string uri = word;
  static const std::regex form(std::string("stun://") + kPlace);
  std::smatch parts;
  if (uri.size() > kMaxUri || !std::regex_match(uri, parts, form) || !is_port(parts[1])) {
    return bad("--stun-server", uri,
               "give stun://HOST:PORT, such as stun://stun.example.org:3478 (IPv6 addresses in "
               "brackets)");
  }
  return uri;
}

// For messages: without user and password.
std::string without_secret(const std::string& uri) {
  const size_t at = uri.rfind('@');
  const size_t scheme = uri.find("://");
  if (at == uri.npos) return uri;
  return (scheme < at ? uri.substr(0, scheme + 3) : "") + "..." + uri.substr(at);
}

Result<std::vector<std::string>> read_turn_servers(gchar** words) {
  std::vector<std::string> uris = list(words);
  // RFC 3986's userinfo, split as webrtcbin does.
  const std::string credential = R"((?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)";
  static const std::regex form("turns?://" + credential + ":" + credential + "@" + kPlace +
                               R"((?:\?transport=(?:udp|tcp))?)");
  for (const std::string& uri : uris) {
    std::smatch parts;
    if (uri.size() > kMaxUri || !std::regex_match(uri, parts, form) || !is_port(parts[1])) {
      return bad("--turn-server", without_secret(uri),
                 "give turn://USER:PASSWORD@HOST:PORT or turns://..., and maybe ?transport=udp or "
                 "?transport=tcp behind it; write other characters than letters and digits in USER "
                 "and PASSWORD as %XX (a colon as %3A)");
    }
  }
  return uris;
}

Result<std::map<std::string, std::string>> read_voices(gchar** words) {
  std::map<std::string, std::string> voices;
  static const std::regex form("[A-Za-z0-9._-]{1,64}");
  for (const std::string& word : list(words)) {
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    if (equals == word.npos || !std::regex_match(name, form)) {
      return bad("--voice", word,
                 "give NAME=FILE, the name of at most 64 letters, digits and . _ -");
    }
    const std::string file = word.substr(equals + 1);
    if (!g_file_test(file.c_str(), G_FILE_TEST_IS_REGULAR) || access(file.c_str(), R_OK) != 0) {
      return bad("--voice", word,
                 "there is no file " + file + " that can be read; give a sound file of a voice");
    }
    if (!voices.emplace(name, file).second) {
      return bad("--voice", word,
                 "the name " + name + " has the file " + voices[name] +
                     " already; give each voice a name of its own");
    }
  }
  return voices;
}

Result<void> read_elements(const Words& words, Settings* s) {
  s->model = text(words.model);
  if (words.model && !g_file_test(words.model, G_FILE_TEST_IS_DIR)) {
    return bad("--model", s->model,
               "there is no such directory; give the directory of a checkpoint (with config.json)");
  }
  if (words.device) s->device = words.device;
  static const std::regex device("auto|cpu|cuda:[0-9]{1,3}");
  if (!std::regex_match(s->device, device))
    return bad("--device", s->device, "give auto, cpu or cuda:N");
  s->system_prompt = text(words.system_prompt);
  if (!g_utf8_validate(s->system_prompt.data(), static_cast<gssize>(s->system_prompt.size()),
                       nullptr))
    return bad("--system-prompt", "(not shown)", "is not UTF-8; use a UTF-8 terminal or locale");
  ASSIGN_OR_RETURN(s->voices, read_voices(words.voices));
  return {};
}

}  // namespace

Result<Settings> parse_settings(int, char** argv) {
  Settings settings;
  Words words;
  const std::string problem = read_command_line(argv, &settings, &words);
  if (!problem.empty()) return Error{ErrorCode::kSettings, problem};
  if (words.version) {
    print_version();
    exit(0);
  }
  if (words.rest)
    return Error{ErrorCode::kSettings,
                 text(words.rest[0]) + ": is no option; --help-all shows all"};
  settings.log_text = words.log_text;
  RETURN_IF_ERROR(check_numbers(settings));
  ASSIGN_OR_RETURN(settings.token, read_token(words.token));
  ASSIGN_OR_RETURN(settings.address, read_address(words.address, !settings.token.empty()));
  ASSIGN_OR_RETURN(settings.origins, read_origins(words.origins));
  ASSIGN_OR_RETURN(settings.stun_server, read_stun_server(words.stun_server));
  if (words.transport) settings.transport = words.transport;
  if (settings.transport != "webrtc" && settings.transport != "websocket")
    return bad("--transport", settings.transport, "give webrtc or websocket");
  ASSIGN_OR_RETURN(settings.turn_servers, read_turn_servers(words.turn_servers));
  RETURN_IF_ERROR(read_elements(words, &settings));
  return settings;
}

}  // namespace minicpmo::call_server
