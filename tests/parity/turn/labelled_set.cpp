#include "labelled_set.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <span>
#include <string_view>
#include <utility>

namespace minicpmo {
namespace {

constexpr int kRate = 16000;
constexpr size_t kMillisecond = kRate / 1000;
constexpr size_t kFrame = 10 * kMillisecond;
constexpr double kFloor = 1.6e-4;  // of the recordings: -76 dB

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u) {}
  double uniform(double low, double high) { return low + (high - low) * unit(); }
  int integer(int low, int high) {  // both included
    return std::min(high, low + static_cast<int>(unit() * (high - low + 1)));
  }
  double normal() {
    return std::sqrt(-2 * std::log(1 - unit())) * std::cos(2 * std::numbers::pi * unit());
  }

 private:
  double unit() {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
  }
  uint64_t state_;
};

double power(std::span<const float> pcm) {
  double sum = 0;
  for (const float x : pcm) sum += static_cast<double>(x) * x;
  return pcm.empty() ? 0 : sum / static_cast<double>(pcm.size());
}

std::span<const float> part(const Pcm& pcm, size_t begin, size_t end) {
  return std::span(pcm).subspan(begin, end - begin);
}

// Whether each 10 ms is within `decibels` of the loudest.
std::vector<bool> loud_frames(const Pcm& pcm, double decibels) {
  std::vector<double> powers;
  for (size_t i = 0; i + kFrame <= pcm.size(); i += kFrame)
    powers.push_back(power(part(pcm, i, i + kFrame)));
  const double limit =
      *std::max_element(powers.begin(), powers.end()) * std::pow(10.0, -decibels / 10);
  std::vector<bool> loud;
  for (const double p : powers) loud.push_back(p > limit);
  return loud;
}

Pcm white(size_t count, double level, Random& random) {
  Pcm out(count);
  for (float& x : out) x = static_cast<float>(level * random.normal());
  return out;
}

// White noise through a sum of one-pole filters an octave or two apart, which together fall by
// about 3 dB per octave.
Pcm pink(size_t count, Random& random) {
  constexpr std::array<std::pair<double, double>, 4> kPoles = {
      {{0.9984, 0.06}, {0.985, 0.18}, {0.90, 0.45}, {0.40, 0.9}}};
  std::array<double, kPoles.size()> state{};
  Pcm out(count);
  for (float& x : out) {
    const double w = random.normal();
    double sum = 0.3 * w;
    for (size_t i = 0; i < kPoles.size(); ++i)
      sum += state[i] = kPoles[i].first * state[i] + kPoles[i].second * w;
    x = static_cast<float>(sum);
  }
  return out;
}

Pcm floor_noise(size_t count, Random& random) {
  return white(count, kFloor, random);
}

void append(Pcm& to, std::span<const float> more) {
  to.insert(to.end(), more.begin(), more.end());
}

void mix(Pcm& to, std::span<const float> from, size_t at, double gain = 1) {
  for (size_t i = 0; i < from.size() && at + i < to.size(); ++i)
    to[at + i] += static_cast<float>(gain * from[i]);
}

// Twelve voices at once, each going through the recordings from a place of its own.
Pcm babble(const std::vector<Pcm>& sources, size_t count, Random& random) {
  Pcm out(count);
  for (int voice = 0; voice < 12; ++voice) {
    Pcm line;
    while (line.size() < count + kRate)
      append(line,
             sources[static_cast<size_t>(random.integer(0, static_cast<int>(sources.size()) - 1))]);
    mix(out, std::span(line).subspan(static_cast<size_t>(random.integer(0, kRate - 1))), 0);
  }
  return out;
}

// A burst of low-passed noise: 5 ms up, then falling to a tenth in 80 to 160 ms.
Pcm cough(Random& random) {
  const double decay = std::log(10.0) / (random.uniform(0.08, 0.16) * kRate);
  const double level = random.uniform(0.1, 0.3), pole = random.uniform(0.5, 0.8);
  Pcm out(300 * kMillisecond);
  double state = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    state = pole * state + (1 - pole) * random.normal();
    const double t = static_cast<double>(i);
    out[i] = static_cast<float>(3 * level * state * std::min(1.0, t / (5.0 * kMillisecond)) *
                                std::exp(-decay * t));
  }
  return out;
}

// Chords of three notes with overtones, a new one every 200 to 400 ms.
Pcm music(size_t count, Random& random) {
  Pcm out(count);
  for (size_t at = 0; at < count;) {
    const size_t length = static_cast<size_t>(random.integer(200, 400)) * kMillisecond;
    for (int note = 0; note < 3; ++note) {
      const double pitch = 110 * std::pow(2.0, random.integer(0, 36) / 12.0);
      for (size_t i = 0; i < length && at + i < count; ++i) {
        const double t = static_cast<double>(i) / kRate, w = 2 * std::numbers::pi * pitch * t;
        const double shape = std::min(1.0, t / 0.01) * std::exp(-4 * t);
        out[at + i] += static_cast<float>(
            shape * (std::sin(w) + 0.5 * std::sin(2 * w) + 0.25 * std::sin(3 * w)));
      }
    }
    at += length;
  }
  return out;
}

// The sentence without the silence around it (but for 50 ms), and its label.
struct Sentence {
  Pcm pcm;
  size_t begin = 0, end = 0;
  int longest_pause = 0;
};

Sentence cut_out(const Pcm& source) {
  const std::vector<bool> loud = loud_frames(source, 40);
  const auto first = std::find(loud.begin(), loud.end(), true);
  const auto last = std::find(loud.rbegin(), loud.rend(), true).base();
  const size_t begin = static_cast<size_t>(first - loud.begin()) * kFrame;
  const size_t end = static_cast<size_t>(last - loud.begin()) * kFrame;
  const size_t margin = 50 * kMillisecond;
  const size_t from = begin > margin ? begin - margin : 0;
  const size_t to = std::min(source.size(), end + margin);
  Sentence out;
  append(out.pcm, part(source, from, to));
  out.begin = begin - from;
  out.end = end - from;
  return out;
}

// The silent places inside a sentence (30 ms and more of frames 35 dB below the loudest) where
// somebody could pause: half a second from its ends and from each other. The others lie within
// words, before a stop.
std::vector<std::pair<size_t, size_t>> gaps(const Sentence& sentence) {
  const std::vector<bool> loud = loud_frames(sentence.pcm, 35);
  constexpr size_t kApart = 500 * kMillisecond;
  std::vector<std::pair<size_t, size_t>> out;
  size_t quiet = 0, from = sentence.begin + kApart;
  for (size_t i = sentence.begin / kFrame; i < sentence.end / kFrame; ++i) {
    const size_t begin = (i - quiet) * kFrame, end = i * kFrame;
    if (loud[i] && quiet >= 3 && begin >= from && end + kApart <= sentence.end) {
      out.emplace_back(begin, end);
      from = end + kApart;
    }
    quiet = loud[i] ? 0 : quiet + 1;
  }
  return out;
}

// Makes up to `count` of the silent places 100 to 400 ms longer.
void put_pauses(Sentence& sentence, int count, Random& random) {
  auto places = gaps(sentence);
  while (static_cast<int>(places.size()) > count)
    places.erase(places.begin() + random.integer(0, static_cast<int>(places.size()) - 1));
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    const int length = random.integer(100, 400);
    const Pcm silence = floor_noise(static_cast<size_t>(length) * kMillisecond, random);
    const size_t middle = (place->first + place->second) / 2;
    sentence.pcm.insert(sentence.pcm.begin() + static_cast<std::ptrdiff_t>(middle), silence.begin(),
                        silence.end());
    sentence.end += silence.size();
    const auto before = static_cast<int>((place->second - place->first) / kMillisecond);
    sentence.longest_pause = std::max(sentence.longest_pause, before + length);
  }
}

// 100 to 400 ms between the two.
void join(Sentence& sentence, const Sentence& next, Random& random) {
  const int pause = random.integer(100, 400);
  sentence.pcm.resize(sentence.end);
  append(sentence.pcm, floor_noise(static_cast<size_t>(pause) * kMillisecond, random));
  const size_t at = sentence.pcm.size();
  append(sentence.pcm, std::span(next.pcm).subspan(next.begin));
  sentence.end = at + next.end - next.begin;
  sentence.longest_pause = std::max({sentence.longest_pause, next.longest_pause, pause});
}

constexpr std::string_view kMonologue = "monologue";

enum class Sound { kNone, kWhite, kPink, kBabble, kCough, kMusic, kOffset };
struct Condition {
  const char* name;
  Sound sound;
  double snr;  // dB, of noise
};
constexpr std::array<Condition, 12> kConditions = {{{"clean", Sound::kNone, 0},
                                                    {"white 20 dB", Sound::kWhite, 20},
                                                    {"white 10 dB", Sound::kWhite, 10},
                                                    {"pink 20 dB", Sound::kPink, 20},
                                                    {"pink 10 dB", Sound::kPink, 10},
                                                    {"babble 20 dB", Sound::kBabble, 20},
                                                    {"babble 10 dB", Sound::kBabble, 10},
                                                    {"monologue", Sound::kNone, 0},
                                                    {"quiet", Sound::kNone, 0},
                                                    {"coughs around", Sound::kCough, 0},
                                                    {"music before", Sound::kMusic, 0},
                                                    {"DC offset", Sound::kOffset, 0}}};

Pcm noise(Sound sound, const std::vector<Pcm>& sources, size_t count, Random& random) {
  if (sound == Sound::kWhite) return white(count, 1, random);
  if (sound == Sound::kPink) return pink(count, random);
  return babble(sources, count, random);
}

// Over the whole item; speech of `speech_power` is `snr` dB above it.
void add_noise(Pcm& pcm, Pcm noise, double speech_power, double snr) {
  mix(pcm, noise, 0, std::sqrt(speech_power / power(noise) * std::pow(10.0, -snr / 10)));
}

void add_offset(Pcm& pcm, double offset) {
  for (float& x : pcm) x += static_cast<float>(offset);
}

void scale_to(Pcm& pcm, double level) {
  const double gain = level / std::sqrt(power(pcm));
  for (float& x : pcm) x = static_cast<float>(gain * x);
}

}  // namespace

LabelledItem LabelledSet::speech(int index) const {
  Random random(static_cast<uint64_t>(index) + 1);
  const Condition& condition = kConditions[static_cast<size_t>(index) % kConditions.size()];
  // 72 recordings and 12 conditions: each round shifts them by one against each other.
  const auto source = static_cast<size_t>(index + index / 72) % sources_.size();
  Sentence sentence = cut_out(sources_[source]);
  const double speech_power = power(part(sentence.pcm, sentence.begin, sentence.end));
  put_pauses(sentence, random.integer(0, 3), random);
  if (condition.name == kMonologue) {
    for (int i = 1; i < 6; ++i) {
      Sentence next = cut_out(sources_[(source + static_cast<size_t>(i)) % sources_.size()]);
      put_pauses(next, random.integer(0, 3), random);
      join(sentence, next, random);
    }
  }

  LabelledItem item;
  item.sound = condition.name;
  item.has_speech = true;
  item.longest_pause = sentence.longest_pause;
  item.pcm = floor_noise(static_cast<size_t>(random.integer(1200, 2400)) * kMillisecond, random);
  const size_t lead = item.pcm.size();
  item.speech_begin = lead + sentence.begin;
  item.speech_end = lead + sentence.end;
  append(item.pcm, sentence.pcm);
  append(item.pcm, floor_noise(2500 * kMillisecond, random));

  switch (condition.sound) {
    case Sound::kNone:
      break;
    case Sound::kCough:
      mix(item.pcm, cough(random), lead - 1100 * kMillisecond);
      mix(item.pcm, cough(random), item.speech_end + 1400 * kMillisecond);
      break;
    case Sound::kMusic: {
      Pcm before = music(lead - 1000 * kMillisecond, random);
      scale_to(before, random.uniform(0.02, 0.1));
      mix(item.pcm, before, 0);
      break;
    }
    case Sound::kOffset:
      add_offset(item.pcm, random.uniform(-0.2, 0.2));
      break;
    default:
      add_noise(item.pcm, noise(condition.sound, sources_, item.pcm.size(), random), speech_power,
                condition.snr);
  }
  if (item.sound == "quiet")
    for (float& x : item.pcm) x *= 0.1f;
  return item;
}

LabelledItem LabelledSet::other(int index) const {
  Random random(static_cast<uint64_t>(index) + 100001);
  constexpr std::array<const char*, 8> kNames = {
      "silence", "DC offset", "white noise", "pink noise", "babble", "cough", "coughs", "music"};
  const size_t kind = static_cast<size_t>(index) % kNames.size();
  LabelledItem item;
  item.sound = kNames[kind];
  item.pcm = floor_noise(5 * kRate, random);
  const double level = std::pow(10.0, random.uniform(-50, -20) / 20);
  const auto add = [&](Pcm sound) {
    scale_to(sound, level);
    mix(item.pcm, sound, kRate / 2);
  };
  const size_t count = 4 * kRate;
  if (item.sound == "silence") {
    if (index % 16 == 0) item.pcm.assign(5 * kRate, 0.0f);
  } else if (item.sound == "DC offset") {
    add_offset(item.pcm, random.uniform(-0.2, 0.2));
  } else if (item.sound == "white noise") {
    add(white(count, 1, random));
  } else if (item.sound == "pink noise") {
    add(pink(count, random));
  } else if (item.sound == "babble") {
    add(babble(sources_, count, random));
  } else if (item.sound == "cough") {
    mix(item.pcm, cough(random), 2 * kRate);
  } else if (item.sound == "coughs") {
    for (size_t at = kRate; at < 3 * kRate;
         at += static_cast<size_t>(random.integer(350, 700)) * kMillisecond)
      mix(item.pcm, cough(random), at);
  } else {
    add(music(count, random));
  }
  return item;
}

}  // namespace minicpmo
