// minicpmoturn: failures, properties, life cycle, pipelines.
#include <glib/gstdio.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "elements/turn/turn_harness.h"

namespace minicpmo::testing {
namespace {

class TurnLife : public TurnStream {};

// ---- Failures --------------------------------------------------------------

TEST_F(TurnLife, FailedNetworkIsOneErrorAndEosStillPasses) {
  backend_.settings().voice_activity_error = Error{ErrorCode::kFailed, "the run failed", "why"};
  backend_.settings().windows_before_error = 4;
  start();
  play("####");
  EXPECT_EQ(push(1, kVoice), GST_FLOW_ERROR);
  EXPECT_EQ(push(1, kVoice), GST_FLOW_ERROR);
  h_->push_event(gst_event_new_gap(time_, GST_SECOND));
  h_->push_eos();
  EXPECT_EQ(h_->messages(GST_MESSAGE_ERROR).size(), 1u);
  const Names last = story();
  EXPECT_EQ(last.at(last.size() - 2), "turn-end 1 speech 128");
  EXPECT_EQ(last.back(), "eos");
}

TEST_F(TurnLife, FlushRecoversFromAFailedNetwork) {
  backend_.settings().voice_activity_error = Error{ErrorCode::kNoSpace, "out of memory", ""};
  start();
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  backend_.settings().voice_activity_error.reset();
  flush();
  time_ = 0;
  EXPECT_EQ(push(1, 0), GST_FLOW_OK);
}

TEST_F(TurnLife, ExceptionStopsAtTheElement) {
  backend_.settings().throw_in_step = true;
  start();
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  EXPECT_EQ(push(1, 0), GST_FLOW_ERROR);
  h_->push_eos();
  const auto errors = h_->messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_TRUE(
      g_error_matches(error_of(errors[0].get()).get(), GST_STREAM_ERROR, GST_STREAM_ERROR_FAILED));
}

TEST_F(TurnLife, MissingFileFailsTheStateChangeWithOneErrorThatSaysWhatToDo) {
  backend_.settings().session_error =
      Error{ErrorCode::kNotFound, "/nowhere.safetensors does not exist", ""};
  ElementPtr element(
      GST_ELEMENT(gst_object_ref_sink(gst_element_factory_make("minicpmoturn", nullptr))));
  BusPtr bus(gst_bus_new());
  gst_element_set_bus(element.get(), bus.get());
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_FAILURE);
  MessagePtr message(gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR));
  ASSERT_NE(message, nullptr);
  const GErrorPtr error = error_of(message.get());
  EXPECT_TRUE(g_error_matches(error.get(), GST_RESOURCE_ERROR, GST_RESOURCE_ERROR_NOT_FOUND));
  const std::string text = error->message;
  for (const char* part : {"/nowhere.safetensors does not exist", "tools/setup", "property model"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  EXPECT_EQ(gst_bus_pop_filtered(bus.get(), GST_MESSAGE_ERROR), nullptr);
  // And it can be tried again, or done without.
  gst_util_set_object_arg(G_OBJECT(element.get()), "mode", "manual");
  EXPECT_EQ(gst_element_set_state(element.get(), GST_STATE_READY), GST_STATE_CHANGE_SUCCESS);
  gst_element_set_state(element.get(), GST_STATE_NULL);
  gst_element_set_bus(element.get(), nullptr);
}

TEST_F(TurnLife, ModelIsThePropertyTheEnvironmentOrTheDefault) {
  start();
  ASSERT_EQ(backend_.voice_activity_paths().size(), 1u);
  EXPECT_NE(backend_.voice_activity_paths()[0].find("silero_vad_16k.safetensors"),
            std::string::npos);
  g_setenv("MINICPMO_VAD", "/from/environment", TRUE);
  start();
  start([](GstElement* e) { g_object_set(e, "model", "/from/property", nullptr); });
  g_unsetenv("MINICPMO_VAD");
  EXPECT_EQ(backend_.voice_activity_paths().at(1), "/from/environment");
  EXPECT_EQ(backend_.voice_activity_paths().at(2), "/from/property");
}

TEST_F(TurnLife, DownstreamFlowComesBack) {
  start();
  play("##");
  GST_PAD_SET_FLUSHING(h_->get()->sinkpad);
  EXPECT_EQ(push(1, kVoice), GST_FLOW_FLUSHING);
  GST_PAD_UNSET_FLUSHING(h_->get()->sinkpad);
}

// ---- Properties ------------------------------------------------------------

TEST_F(TurnLife, EachPropertyReadsBackWhatWasSetAndChangesNoOther) {
  start({});
  const std::vector<std::pair<const char*, const char*>> values = {
      {"model", "/some/file"},       {"mode", "manual"},         {"threshold", "0.75"},
      {"release-threshold", "0.25"}, {"min-speech", "1"},        {"silence-duration", "2"},
      {"prefix-padding", "3"},       {"max-turn", "4"},          {"min-turn-speech", "5"},
      {"interrupt-after", "6"},      {"speculative-after", "7"}, {"barge-in", "false"}};
  for (const auto& [name, text] : values)
    gst_util_set_object_arg(G_OBJECT(h_->element()), name, text);
  for (const auto& [name, text] : values) {
    GValue value = G_VALUE_INIT;
    g_object_get_property(G_OBJECT(h_->element()), name, &value);
    GCharPtr read(gst_value_serialize(&value));
    EXPECT_STRCASEEQ(read.get(), text) << name;
    g_value_unset(&value);
  }
}

TEST_F(TurnLife, PropertiesExplainThemselves) {
  start();
  guint count = 0;
  GParamSpec** specs = g_object_class_list_properties(G_OBJECT_GET_CLASS(h_->element()), &count);
  for (guint i = 0; i < count; ++i) {
    const std::string name = g_param_spec_get_name(specs[i]);
    const std::string blurb = g_param_spec_get_blurb(specs[i]);
    if (name == "name" || name == "parent") continue;
    EXPECT_GE(blurb.size(), 20u) << name;
    EXPECT_TRUE(g_ascii_isupper(g_param_spec_get_nick(specs[i])[0])) << name;
    if (G_IS_PARAM_SPEC_UINT(specs[i])) {
      EXPECT_NE(blurb.find("milliseconds"), std::string::npos) << name << " names no unit";
    }
    const bool writable = (specs[i]->flags & G_PARAM_WRITABLE) != 0;
    const auto when = specs[i]->flags & (GST_PARAM_MUTABLE_READY | GST_PARAM_MUTABLE_PLAYING);
    EXPECT_EQ(when, static_cast<guint>(!writable         ? 0
                                       : name == "model" ? GST_PARAM_MUTABLE_READY
                                                         : GST_PARAM_MUTABLE_PLAYING))
        << name;
  }
  g_free(specs);
}

// ---- Life cycle ------------------------------------------------------------

TEST_F(TurnLife, StateCycling) {
  start();
  for (int i = 0; i < 20; ++i) {
    play(i % 2 == 0 ? "####" : "....####....");
    gst_element_set_state(h_->element(), i % 3 == 0 ? GST_STATE_READY : GST_STATE_NULL);
    EXPECT_EQ(backend_.counters().sessions_alive, i % 3 == 0 ? 1 : 0);
    gst_element_set_state(h_->element(), GST_STATE_PLAYING);
    h_->set_caps(kPcmCaps);
    time_ = 0;
  }
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(TurnLife, FlushAndChangesAtAnyMoment) {
  start();
  std::atomic<bool> stop{false};
  std::mutex order;  // data does not come between a flush and its segment
  std::thread flusher([&] {
    std::mt19937 random(1);
    for (int i = 0; i < 200; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      h_->push_event(gst_event_new_flush_start());
      std::lock_guard lock(order);
      h_->push_event(gst_event_new_flush_stop(TRUE));
      push_segment(GST_FORMAT_TIME, 0);
    }
    stop = true;
  });
  std::thread changer([&] {
    std::mt19937 random(2);
    const char* times[] = {"prefix-padding",  "silence-duration", "speculative-after",
                           "min-turn-speech", "max-turn",         "min-speech"};
    while (!stop) {
      g_object_set(h_->element(), times[random() % 6], random() % 300, nullptr);
      g_signal_emit_by_name(h_->element(), random() % 2 == 0 ? "start-turn" : "end-turn");
      stat("turns");
      gst_harness_query_latency(h_->get());
    }
  });
  std::mt19937 random(3);
  while (!stop) {
    {
      std::lock_guard lock(order);
      const GstFlowReturn flow =
          h_->push(pcm_buffer(random() % 9000, random() % 2 == 0 ? kVoice : 0.0f));
      EXPECT_TRUE(flow == GST_FLOW_OK || flow == GST_FLOW_FLUSHING) << gst_flow_get_name(flow);
    }
    h_->pull_all();
    std::this_thread::yield();
  }
  flusher.join();
  changer.join();
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(TurnLife, StoppedAtAnyMoment) {
  for (int i = 0; i < 40; ++i) {
    start();
    std::atomic<bool> started{false};
    std::thread pusher([&] {
      GstFlowReturn flow = GST_FLOW_OK;
      while (flow == GST_FLOW_OK) {
        flow = h_->push(pcm_buffer(16000, kVoice));
        started = true;
      }
      EXPECT_EQ(flow, GST_FLOW_FLUSHING);
    });
    while (!started) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(37 * i));
    gst_element_set_state(h_->element(), GST_STATE_NULL);
    pusher.join();
    log_.reset();
    h_.reset();
  }
}

// ---- Pipelines -------------------------------------------------------------

GstMessageType run_to_end(GstElement* pipeline) {
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  BusPtr bus(gst_element_get_bus(pipeline));
  MessagePtr message(
      gst_bus_timed_pop_filtered(bus.get(), 20 * GST_SECOND,
                                 static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR)));
  gst_element_set_state(pipeline, GST_STATE_NULL);
  return message != nullptr ? GST_MESSAGE_TYPE(message.get()) : GST_MESSAGE_UNKNOWN;
}

std::string raw_file(const std::string& name, const std::vector<float>& samples) {
  GCharPtr path(g_build_filename(g_get_tmp_dir(), name.c_str(), nullptr));
  EXPECT_TRUE(g_file_set_contents(path.get(), reinterpret_cast<const gchar*>(samples.data()),
                                  static_cast<gssize>(samples.size() * 4), nullptr));
  return path.get();
}

TEST_F(TurnLife, TwoAtOnceBeforeTheirEncoders) {
  std::vector<float> samples;
  for (const size_t speech : {20, 40}) {
    samples.insert(samples.end(), 20 * kWindow, 0.0f);
    samples.insert(samples.end(), speech * kWindow, kVoice);
  }
  const std::string path =
      raw_file("minicpmo-turn-test-" + std::to_string(getpid()) + ".f32", samples);
  std::string line;
  for (int i = 0; i < 2; ++i) {
    line += "filesrc blocksize=1001 location=" + path +
            " ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! minicpmoturn prefix-padding=96 "
            "silence-duration=160 ! queue ! minicpmoaudioenc ! fakesink async=false ";
  }
  ElementPtr pipeline(GST_ELEMENT(gst_object_ref_sink(gst_parse_launch(line.c_str(), nullptr))));
  EXPECT_EQ(run_to_end(pipeline.get()), GST_MESSAGE_EOS);
  pipeline.reset();
  // Two turns each: 3 + 20 + 5 windows, and 3 + 40 more.
  EXPECT_EQ(backend_.log().count("audio.step 14336"), 2);
  EXPECT_EQ(backend_.log().count("audio.step 16000"), 2);
  EXPECT_EQ(backend_.log().count("audio.step 6016"), 2);
  EXPECT_EQ(backend_.log().count("audio.step"), 6);
  g_remove(path.c_str());
}

}  // namespace
}  // namespace minicpmo::testing
