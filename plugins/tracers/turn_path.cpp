#include "turn_path.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

namespace minicpmo::tracers {

namespace {

constexpr size_t kLongest = 256;

struct Unref {
  void operator()(GstPad* pad) const { gst_object_unref(pad); }
};
using PadPtr = std::unique_ptr<GstPad, Unref>;

// The other end of a link, seen through the borders of bins.
PadPtr far_end(GstPad* pad) {
  PadPtr peer(gst_pad_get_peer(pad));
  while (peer) {
    if (GST_IS_GHOST_PAD(peer.get())) {
      peer.reset(gst_ghost_pad_get_target(GST_GHOST_PAD(peer.get())));
    } else if (GST_IS_PROXY_PAD(peer.get())) {
      const PadPtr border(GST_PAD(gst_proxy_pad_get_internal(GST_PROXY_PAD(peer.get()))));
      if (!border) return nullptr;
      peer.reset(gst_pad_get_peer(border.get()));
    } else {
      return peer;
    }
  }
  return nullptr;
}

// The pads on the other side of the element that belong to `pad`.
std::vector<PadPtr> through(GstPad* pad) {
  std::vector<PadPtr> found;
  GstIterator* links = gst_pad_iterate_internal_links(pad);
  if (links == nullptr) return found;
  GValue item = G_VALUE_INIT;
  for (;;) {
    const GstIteratorResult result = gst_iterator_next(links, &item);
    if (result == GST_ITERATOR_RESYNC) {
      found.clear();
      gst_iterator_resync(links);
      continue;
    }
    if (result != GST_ITERATOR_OK) break;
    found.emplace_back(GST_PAD(g_value_dup_object(&item)));
    g_value_reset(&item);
  }
  g_value_unset(&item);
  gst_iterator_free(links);
  return found;
}

PadPtr first_pad(GstElement* element, GstPadDirection direction) {
  PadPtr found;
  GST_OBJECT_LOCK(element);
  for (GList* item = element->pads; item != nullptr && !found; item = item->next) {
    auto* pad = GST_PAD(item->data);
    if (GST_PAD_DIRECTION(pad) == direction) found.reset(GST_PAD(gst_object_ref(pad)));
  }
  GST_OBJECT_UNLOCK(element);
  return found;
}

using Way = std::vector<PadInfoPtr>;

int score(const Way& way, bool ends_in_sink) {
  int points = ends_in_sink ? 1 : 0;
  for (const PadInfoPtr& pad : way) {
    if (pad->element.role == Role::kVocoder) points |= 4;
    if (pad->element.is_kind("Payloader")) points |= 2;
  }
  return points;
}

class Search {
 public:
  explicit Search(const FindPadInfo& info) : info_(info) {}

  // From the source pad `pad` on, and how good that is.
  std::pair<Way, int> downstream(GstPad* pad, size_t depth) {
    Way way;
    if (const PadInfoPtr info = info_(pad)) way.push_back(info);
    PadPtr sink = far_end(pad);
    if (!sink || depth > kLongest || !seen_.insert(sink.get()).second)
      return {way, score(way, false)};
    Way best;
    int best_score = -1;
    for (const PadPtr& next : through(sink.get())) {
      auto [rest, points] = downstream(next.get(), depth + 1);
      if (points <= best_score) continue;
      best = std::move(rest);
      best_score = points;
    }
    const bool is_sink = best_score < 0;
    if (is_sink) sinks_[way.empty() ? nullptr : way.back().get()] = std::move(sink);
    way.insert(way.end(), best.begin(), best.end());
    return {way, std::max(best_score, 0) | score(way, is_sink)};
  }

  // Up to the source pad `pad`, which is part of it.
  Way upstream(PadPtr pad) {
    Way way;
    while (pad && way.size() < kLongest) {
      if (const PadInfoPtr info = info_(pad.get())) way.push_back(info);
      std::vector<PadPtr> sinks = through(pad.get());
      PadPtr before;
      for (const PadPtr& sink : sinks)
        if (!before) before = far_end(sink.get());
      pad = std::move(before);
    }
    std::reverse(way.begin(), way.end());
    return way;
  }

  // The element that takes what leaves the last pad of a way.
  std::shared_ptr<const ElementInfo> sink_after(const PadInfoPtr& last) const {
    const auto found = sinks_.find(last.get());
    if (found == sinks_.end()) return nullptr;
    GstElement* element = gst_pad_get_parent_element(found->second.get());
    auto info = std::make_shared<const ElementInfo>(element);
    if (element != nullptr) gst_object_unref(element);
    return info;
  }

 private:
  const FindPadInfo& info_;
  std::map<const PadInfo*, PadPtr> sinks_;
  std::set<GstPad*> seen_;
};

bool is_live(GstPad* sink) {
  GstQuery* query = gst_query_new_latency();
  gboolean live = FALSE;
  if (gst_pad_peer_query(sink, query)) gst_query_parse_latency(query, &live, nullptr, nullptr);
  gst_query_unref(query);
  return live != FALSE;
}

bool is_live_before(const ElementInfo& info) {
  auto* element = static_cast<GstElement*>(g_weak_ref_get(&info.element));
  if (element == nullptr) return false;
  const PadPtr sink = first_pad(element, GST_PAD_SINK);
  const bool live = sink && is_live(sink.get());
  gst_object_unref(element);
  return live;
}

int* index_of(TurnPath& path, Role role) {
  switch (role) {
    case Role::kTurn:
      return &path.turn;
    case Role::kEncoder:
      return &path.encoder;
    case Role::kLanguageModel:
      return &path.llm;
    case Role::kSpeech:
      return &path.speech;
    case Role::kVocoder:
      return &path.vocoder;
    default:
      return nullptr;
  }
}

}  // namespace

TurnPath find_path(GstElement* element, const FindPadInfo& info) {
  TurnPath path;
  PadPtr src = first_pad(element, GST_PAD_SRC);
  if (!src) return path;
  Search search(info);
  Way rest = search.downstream(src.get(), 0).first;
  path.pads = search.upstream(std::move(src));
  if (!rest.empty()) path.pads.insert(path.pads.end(), rest.begin() + 1, rest.end());
  if (!path.pads.empty()) path.sink = search.sink_after(path.pads.back());
  for (int i = 0; i < static_cast<int>(path.pads.size()); ++i) {
    int* index = index_of(path, path.pads[static_cast<size_t>(i)]->element.role);
    if (index == nullptr || *index >= 0) continue;
    *index = i;
    if (path.first < 0) path.first = i;
  }
  if (path.first >= 0)
    path.live = is_live_before(path.pads[static_cast<size_t>(path.first)]->element);
  return path;
}

}  // namespace minicpmo::tracers
