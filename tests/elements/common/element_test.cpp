// The base class, seen through two of the elements that derive from it.
#include "common/gstminicpmoelement.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "audioenc/gstminicpmoaudioenc.h"
#include "common/gstminicpmomodel.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"
#include "support/gst_test_main.h"
#include "vocoder/gstminicpmovocoder.h"

using namespace std::chrono_literals;

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
  GST_ELEMENT_REGISTER(minicpmovocoder, nullptr);
}

namespace {

ElementPtr make(const char* factory) {
  return ElementPtr(GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make(factory, nullptr))));
}

// ---- Properties ------------------------------------------------------------

class EveryElement : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Elements, EveryElement,
                         ::testing::Values("minicpmoaudioenc", "minicpmovocoder"));

TEST_P(EveryElement, DefaultsOfTheSharedProperties) {
  ElementPtr element = make(GetParam());
  gchar *model, *device;
  gint precision;
  gboolean async_load;
  g_object_get(element.get(), "model", &model, "device", &device, "precision", &precision,
               "async-load", &async_load, nullptr);
  GCharPtr owned_model(model), owned_device(device);
  EXPECT_EQ(model, nullptr);
  EXPECT_STREQ(device, "auto");
  EXPECT_EQ(precision, 0);
  EXPECT_TRUE(async_load);
}

TEST_P(EveryElement, EachSharedPropertyReadsBackWhatWasSet) {
  ElementPtr element = make(GetParam());
  for (const auto& [name, text] : {std::pair("model", "/some/model"),
                                   {"device", "cuda:3"},
                                   {"precision", "bfloat16"},
                                   {"async-load", "false"}}) {
    gst_util_set_object_arg(G_OBJECT(element.get()), name, text);
    GValue value = G_VALUE_INIT;
    g_object_get_property(G_OBJECT(element.get()), name, &value);
    GCharPtr read(gst_value_serialize(&value));
    EXPECT_STRCASEEQ(read.get(), text) << name;
    g_value_unset(&value);
  }
  // None of them has changed another.
  gchar* model = nullptr;
  g_object_set(element.get(), "model", nullptr, nullptr);
  g_object_get(element.get(), "model", &model, nullptr);
  EXPECT_EQ(model, nullptr);
}

TEST_P(EveryElement, PropertiesExplainThemselves) {
  ElementPtr element = make(GetParam());
  guint count = 0;
  GParamSpec** specs = g_object_class_list_properties(G_OBJECT_GET_CLASS(element.get()), &count);
  for (guint i = 0; i < count; ++i) {
    const std::string name = g_param_spec_get_name(specs[i]);
    const std::string nick = g_param_spec_get_nick(specs[i]);
    const std::string blurb = g_param_spec_get_blurb(specs[i]);
    if (name == "name" || name == "parent") continue;
    EXPECT_GE(blurb.size(), 20u) << name;
    EXPECT_NE(nick, name);
    EXPECT_TRUE(g_ascii_isupper(nick[0])) << name;
    if (G_IS_PARAM_SPEC_UINT64(specs[i])) {
      EXPECT_NE(blurb.find("nanoseconds"), std::string::npos) << name << " names no unit";
    }
    const bool writable = (specs[i]->flags & G_PARAM_WRITABLE) != 0;
    const bool says_when =
        (specs[i]->flags & (GST_PARAM_MUTABLE_READY | GST_PARAM_MUTABLE_PLAYING)) != 0;
    EXPECT_EQ(writable, says_when) << name << " does not say when it may be set";
  }
  g_free(specs);
}

TEST_P(EveryElement, MetadataIsComplete) {
  ElementPtr element = make(GetParam());
  GstElementClass* klass = GST_ELEMENT_GET_CLASS(element.get());
  for (const char* key : {GST_ELEMENT_METADATA_LONGNAME, GST_ELEMENT_METADATA_KLASS,
                          GST_ELEMENT_METADATA_DESCRIPTION, GST_ELEMENT_METADATA_AUTHOR}) {
    const gchar* text = gst_element_class_get_metadata(klass, key);
    ASSERT_NE(text, nullptr) << key;
    EXPECT_GT(std::string(text).size(), 5u) << key;
  }
}

// ---- Loading ---------------------------------------------------------------

TEST_P(EveryElement, LoadReportsProgressInOrder) {
  FakeBackend backend;
  ElementHarness h(GetParam());
  std::vector<std::string> reports;
  while (reports.empty() || reports.back() != "load/complete 100") {
    MessagePtr message = h.wait_message(GST_MESSAGE_PROGRESS);
    ASSERT_NE(message, nullptr);
    reports.push_back(progress_text(message.get()));
  }
  ASSERT_EQ(reports.size(), 12u);
  EXPECT_EQ(reports.front(), "load/start 0");
  EXPECT_EQ(reports[1], "load/continue 10");
  EXPECT_EQ(reports[10], "load/continue 100");
  EXPECT_EQ(backend.counters().loads, 1);
}

TEST_P(EveryElement, AsyncLoadDoesNotBlockTheStateChange) {
  FakeBackend backend;
  backend.settings().load_delay = 5s;
  ElementPtr element = make(GetParam());
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
  EXPECT_EQ(backend.counters().loads, 0);
}

TEST_P(EveryElement, SyncLoadIsDoneWhenReady) {
  FakeBackend backend;
  backend.settings().load_delay = 50ms;
  ElementPtr element = make(GetParam());
  g_object_set(element.get(), "async-load", FALSE, nullptr);
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  EXPECT_EQ(backend.counters().loads, 1);
  EXPECT_EQ(backend.counters().sessions_alive, 1);
  EXPECT_NE(gst_minicpmo_element_peek_engine(GST_MINICPMO_ELEMENT(element.get())), nullptr);
  gst_element_set_state(element.get(), GST_STATE_NULL);
  EXPECT_EQ(backend.counters().sessions_alive, 0);
}

TEST_P(EveryElement, SyncLoadThatFailsFailsTheStateChangeWithOneError) {
  FakeBackend backend;
  backend.settings().load_error = Error{ErrorCode::kCorrupt, "weights.bin is damaged", "byte 7"};
  ElementPtr element = make(GetParam());
  BusPtr bus(gst_bus_new());
  gst_element_set_bus(element.get(), bus.get());
  g_object_set(element.get(), "async-load", FALSE, nullptr);
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_FAILURE);
  int errors = 0;
  while (MessagePtr message{gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR)}) {
    ++errors;
    EXPECT_STREQ(error_of(message.get())->message,
                 "Cannot load the model: weights.bin is damaged. The checkpoint is damaged, "
                 "incomplete or of another kind: copy its files again, or name another with the "
                 "property model.");
  }
  EXPECT_EQ(errors, 1);
  // And it can be tried again.
  backend.settings().load_error.reset();
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  gst_element_set_state(element.get(), GST_STATE_NULL);
  gst_element_set_bus(element.get(), nullptr);
}

TEST_P(EveryElement, AsyncLoadThatFailsPostsOneErrorAndEndsTheStream) {
  FakeBackend backend;
  backend.settings().load_delay = 30ms;
  backend.settings().load_error = Error{ErrorCode::kCorrupt, "weights.bin is damaged", "byte 7"};
  ElementHarness h(GetParam());
  const bool audio = std::string(GetParam()) == "minicpmoaudioenc";
  h.set_caps(audio ? kPcmCaps : kCodeCaps);
  EXPECT_EQ(h.push(audio ? pcm_buffer(16000, 0.5f) : code_buffer(25)), GST_FLOW_ERROR);
  EXPECT_EQ(h.push(audio ? pcm_buffer(16000, 0.5f) : code_buffer(25)), GST_FLOW_ERROR);
  EXPECT_TRUE(h.push_eos());  // reaches downstream: nothing hangs
  const auto order = h.take_order();
  ASSERT_FALSE(order.empty());
  EXPECT_EQ(order.back(), "eos");
  const auto errors = h.messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  GErrorPtr error = error_of(errors[0].get());
  EXPECT_TRUE(g_error_matches(error.get(), GST_STREAM_ERROR, GST_STREAM_ERROR_WRONG_TYPE));
}

TEST(Load, FailureIsReportedAsProgressToo) {
  FakeBackend backend;
  backend.settings().load_error = Error{ErrorCode::kNotFound, "/x does not exist", ""};
  ElementHarness h("minicpmovocoder");
  std::string last;
  for (;;) {
    MessagePtr message =
        h.wait_message(static_cast<GstMessageType>(GST_MESSAGE_PROGRESS | GST_MESSAGE_ERROR));
    ASSERT_NE(message, nullptr);
    if (GST_MESSAGE_TYPE(message.get()) == GST_MESSAGE_ERROR) break;
    last = progress_text(message.get());
  }
  EXPECT_EQ(last, "load/error -1");
}

struct CodePair {
  ErrorCode ours;
  GQuark domain;
  int code;
};

TEST(Load, EveryErrorCodeHasItsGStreamerCode) {
  const CodePair pairs[] = {
      {ErrorCode::kNotFound, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NOT_FOUND},
      {ErrorCode::kOpenRead, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_OPEN_READ},
      {ErrorCode::kCorrupt, GST_STREAM_ERROR, GST_STREAM_ERROR_WRONG_TYPE},
      {ErrorCode::kNoSpace, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NO_SPACE_LEFT},
      {ErrorCode::kBusy, GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_BUSY},
      {ErrorCode::kLibrary, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_INIT},
      {ErrorCode::kSettings, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS},
      {ErrorCode::kFormat, GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT},
      {ErrorCode::kContextFull, GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED},
      {ErrorCode::kFailed, GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED}};
  for (const CodePair& pair : pairs) {
    FakeBackend backend;
    backend.settings().open_error = Error{pair.ours, "what and what to do", "where"};
    ElementHarness h("minicpmovocoder");
    MessagePtr message = h.wait_message(GST_MESSAGE_ERROR);
    ASSERT_NE(message, nullptr);
    GError* error = nullptr;
    gchar* debug = nullptr;
    gst_message_parse_error(message.get(), &error, &debug);
    GErrorPtr owned(error);
    GCharPtr owned_debug(debug);
    EXPECT_EQ(error->domain, pair.domain);
    EXPECT_EQ(error->code, pair.code);
    EXPECT_NE(std::string(error->message).find("what and what to do"), std::string::npos);
    EXPECT_NE(std::string(debug).find("where"), std::string::npos);
  }
}

TEST(Load, SessionThatCannotBeMadeIsAnError) {
  FakeBackend backend;
  backend.settings().session_error = Error{ErrorCode::kNoSpace, "no memory for a session", ""};
  ElementHarness h("minicpmoaudioenc");
  MessagePtr message = h.wait_message(GST_MESSAGE_ERROR);
  ASSERT_NE(message, nullptr);
  EXPECT_TRUE(g_error_matches(error_of(message.get()).get(), GST_RESOURCE_ERROR,
                              GST_RESOURCE_ERROR_NO_SPACE_LEFT));
}

TEST(Load, ExceptionBecomesAnError) {
  FakeBackend backend;
  backend.settings().throw_in_load = true;
  ElementHarness h("minicpmoaudioenc");
  MessagePtr message = h.wait_message(GST_MESSAGE_ERROR);
  ASSERT_NE(message, nullptr);
  gchar* debug = nullptr;
  gst_message_parse_error(message.get(), nullptr, &debug);
  GCharPtr owned(debug);
  EXPECT_NE(std::string(debug).find("thrown by the fake load"), std::string::npos);
}

TEST(Load, DataWaitsForTheModel) {
  FakeBackend backend;
  backend.settings().load_delay = 100ms;
  ElementHarness h("minicpmoaudioenc");
  h.set_caps(kPcmCaps);
  EXPECT_EQ(h.push(pcm_buffer(16000, 0.5f)), GST_FLOW_OK);
  EXPECT_EQ(backend.counters().loads, 1);
  EXPECT_EQ(h.pull_all().size(), 1u);
}

TEST(Load, CancelledAtAnyMomentWithoutError) {
  for (int i = 0; i < 30; ++i) {
    FakeBackend backend;
    backend.settings().load_delay = 20ms;
    ElementPtr element = make("minicpmoaudioenc");
    BusPtr bus(gst_bus_new());
    gst_element_set_bus(element.get(), bus.get());
    gst_element_set_state(element.get(), GST_STATE_READY);
    std::this_thread::sleep_for(i * 1ms);
    gst_element_set_state(element.get(), GST_STATE_NULL);
    std::string last;
    while (MessagePtr message{gst_bus_pop(bus.get())}) {
      EXPECT_NE(GST_MESSAGE_TYPE(message.get()), GST_MESSAGE_ERROR);
      if (GST_MESSAGE_TYPE(message.get()) == GST_MESSAGE_PROGRESS)
        last = progress_text(message.get());
    }
    EXPECT_TRUE(last == "load/canceled -1" || last == "load/complete 100") << last;
    gst_element_set_bus(element.get(), nullptr);
  }
}

// A thread that pushes one buffer into a harness whose model is still loading.
class BlockedPush {
 public:
  explicit BlockedPush(ElementHarness& h)
      : thread_([this, &h] { flow_ = h.push(pcm_buffer(16000, 0.5f)); }) {
    std::this_thread::sleep_for(30ms);
  }
  GstFlowReturn join() {
    thread_.join();
    return flow_;
  }

 private:
  GstFlowReturn flow_ = GST_FLOW_CUSTOM_ERROR;
  std::thread thread_;
};

TEST(Load, FlushWakesTheStreamingThread) {
  FakeBackend backend;
  backend.settings().load_delay = 20s;
  ElementHarness h("minicpmoaudioenc");
  h.set_caps(kPcmCaps);
  BlockedPush push(h);
  EXPECT_TRUE(h.push_event(gst_event_new_flush_start()));
  EXPECT_EQ(push.join(), GST_FLOW_FLUSHING);
}

TEST(Load, StoppingWakesTheStreamingThread) {
  FakeBackend backend;
  backend.settings().load_delay = 20s;
  ElementHarness h("minicpmoaudioenc");
  h.set_caps(kPcmCaps);
  BlockedPush push(h);
  EXPECT_EQ(gst_element_set_state(h.element(), GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
  EXPECT_EQ(push.join(), GST_FLOW_FLUSHING);
}

TEST(Load, StateChangeFromTheLoaderIsRefusedNotDeadlocked) {
  FakeBackend backend;
  ElementPtr element = make("minicpmoaudioenc");
  BusPtr bus(gst_bus_new());
  gst_element_set_bus(element.get(), bus.get());
  static std::atomic<int> refused;
  refused = 0;
  gst_bus_set_sync_handler(
      bus.get(),
      [](GstBus*, GstMessage* message, gpointer data) -> GstBusSyncReply {
        if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_PROGRESS &&
            progress_text(message) == "load/continue 50" &&
            gst_element_set_state(GST_ELEMENT(data), GST_STATE_NULL) == GST_STATE_CHANGE_FAILURE)
          ++refused;
        gst_message_unref(message);
        return GST_BUS_DROP;
      },
      element.get(), nullptr);
  gst_element_set_state(element.get(), GST_STATE_READY);
  for (int i = 0; i < 2000 && refused == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(refused, 1);
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
  gst_bus_set_sync_handler(bus.get(), nullptr, nullptr, nullptr);
  gst_element_set_bus(element.get(), nullptr);
}

TEST_P(EveryElement, TwoHundredStateCycles) {
  FakeBackend backend;
  backend.settings().load_delay = 2ms;
  ElementPtr element = make(GetParam());
  for (int i = 0; i < 200; ++i) {
    const GstState top = i % 3 == 0 ? GST_STATE_READY : GST_STATE_PAUSED;
    ASSERT_NE(gst_element_set_state(element.get(), top), GST_STATE_CHANGE_FAILURE);
    if (i % 5 == 0) std::this_thread::sleep_for(1ms);
    ASSERT_EQ(gst_element_set_state(element.get(), GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
  }
  EXPECT_EQ(backend.counters().sessions_alive, 0);
}

// ---- Contexts --------------------------------------------------------------

TEST(Context, TwoElementsShareOneEngine) {
  FakeBackend backend;
  ElementHarness a("minicpmoaudioenc");
  ElementHarness v("minicpmovocoder");
  ASSERT_TRUE(a.wait_loaded());
  ASSERT_TRUE(v.wait_loaded());
  EXPECT_EQ(backend.counters().engines_opened, 1);
  EXPECT_EQ(gst_minicpmo_element_engine(GST_MINICPMO_ELEMENT(a.element())),
            gst_minicpmo_element_engine(GST_MINICPMO_ELEMENT(v.element())));
}

TEST(Context, TwoModelsAreTwoEngines) {
  FakeBackend backend;
  const auto model = [](const char* name) {
    return [name](GstElement* e) { g_object_set(e, "model", name, nullptr); };
  };
  ElementHarness a("minicpmoaudioenc", model("/one"));
  ElementHarness v("minicpmovocoder", model("/two"));
  ASSERT_TRUE(a.wait_loaded());
  ASSERT_TRUE(v.wait_loaded());
  EXPECT_EQ(backend.counters().engines_opened, 2);
}

TEST(Context, SettingsReachTheBackend) {
  FakeBackend backend;
  ElementHarness h("minicpmovocoder", [](GstElement* e) {
    g_object_set(e, "model", "/a model", "device", "cuda:1", nullptr);
    gst_util_set_object_arg(G_OBJECT(e), "precision", "bfloat16");
  });
  ASSERT_TRUE(h.wait_loaded());
  const auto opened = backend.opened();
  ASSERT_EQ(opened.size(), 1u);
  EXPECT_EQ(opened[0].model_dir, "/a model");
  EXPECT_EQ(opened[0].device, "cuda:1");
  EXPECT_EQ(opened[0].precision, "bfloat16");
}

TEST(Context, EngineGoesWithTheLastElement) {
  FakeBackend backend;
  {
    ElementHarness h("minicpmoaudioenc");
    ASSERT_TRUE(h.wait_loaded());
    EXPECT_EQ(backend.counters().engines_alive, 1);
    gst_element_set_state(h.element(), GST_STATE_NULL);
    EXPECT_EQ(backend.counters().engines_alive, 0);
  }
}

// An engine of the application's own, in a context.
ContextPtr application_context(const EngineOptions& options) {
  auto backend = gst_minicpmo_backend_get();
  auto engine = backend.value()->open_engine(options);
  return ContextPtr(gst_minicpmo_context_new(engine.value(), options));
}

TEST(Context, GivenByTheApplicationIsUsed) {
  FakeBackend backend;
  EngineOptions options;
  options.model_dir = "/app";
  ContextPtr context = application_context(options);
  ElementHarness h("minicpmoaudioenc", [&](GstElement* e) {
    g_object_set(e, "model", "/app", nullptr);
    gst_element_set_context(e, context.get());
  });
  ASSERT_TRUE(h.wait_loaded());
  EXPECT_EQ(backend.opened().size(), 1u);  // ours; the element opened none
}

TEST(Context, AskedForOnTheBus) {
  FakeBackend backend;
  EngineOptions options;
  options.model_dir = "/app";
  ContextPtr context = application_context(options);
  ElementPtr element = make("minicpmoaudioenc");
  BusPtr bus(gst_bus_new());
  gst_element_set_bus(element.get(), bus.get());
  gst_bus_set_sync_handler(
      bus.get(),
      [](GstBus*, GstMessage* message, gpointer data) -> GstBusSyncReply {
        const gchar* type = nullptr;
        if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_NEED_CONTEXT &&
            gst_message_parse_context_type(message, &type) &&
            g_strcmp0(type, GST_MINICPMO_CONTEXT_TYPE) == 0)
          gst_element_set_context(GST_ELEMENT(GST_MESSAGE_SRC(message)),
                                  static_cast<GstContext*>(data));
        gst_message_unref(message);
        return GST_BUS_DROP;
      },
      context.get(), nullptr);
  g_object_set(element.get(), "model", "/app", "async-load", FALSE, nullptr);
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  EXPECT_EQ(backend.opened().size(), 1u);
  gst_element_set_state(element.get(), GST_STATE_NULL);
  gst_bus_set_sync_handler(bus.get(), nullptr, nullptr, nullptr);
  gst_element_set_bus(element.get(), nullptr);
}

TEST(Context, TakenFromANeighbour) {
  FakeBackend backend;
  ElementPtr first = make("minicpmoaudioenc");
  ElementPtr queue = make("queue");
  ElementPtr second = make("minicpmovocoder");
  PadPtr a(gst_element_get_static_pad(first.get(), "src"));
  PadPtr q1(gst_element_get_static_pad(queue.get(), "sink"));
  PadPtr q2(gst_element_get_static_pad(queue.get(), "src"));
  PadPtr b(gst_element_get_static_pad(second.get(), "sink"));
  ASSERT_EQ(gst_pad_link_full(a.get(), q1.get(), GST_PAD_LINK_CHECK_NOTHING), GST_PAD_LINK_OK);
  ASSERT_EQ(gst_pad_link_full(q2.get(), b.get(), GST_PAD_LINK_CHECK_NOTHING), GST_PAD_LINK_OK);
  for (GstElement* e : {first.get(), second.get()}) {
    g_object_set(e, "async-load", FALSE, nullptr);
    EXPECT_EQ(gst_element_set_state(e, GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  }
  EXPECT_EQ(backend.opened().size(), 1u);
  for (GstElement* e : {first.get(), second.get()}) gst_element_set_state(e, GST_STATE_NULL);
}

TEST(Context, SharedThroughThePipeline) {
  FakeBackend backend;
  ElementPtr pipeline(GST_ELEMENT(gst_object_ref_sink(gst_pipeline_new(nullptr))));
  for (const char* name : {"minicpmoaudioenc", "minicpmovocoder", "minicpmovocoder"}) {
    GstElement* e = gst_element_factory_make(name, nullptr);
    g_object_set(e, "async-load", FALSE, nullptr);
    gst_bin_add(GST_BIN(pipeline.get()), e);
  }
  EXPECT_EQ(gst_element_set_state(pipeline.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  EXPECT_EQ(backend.opened().size(), 1u);
  EXPECT_EQ(backend.counters().loads, 2);  // one per stage
  gst_element_set_state(pipeline.get(), GST_STATE_NULL);
  EXPECT_EQ(backend.counters().engines_alive, 0);
}

}  // namespace
}  // namespace minicpmo::testing
