// minicpmoaudioenc: chunks, turns, timestamps, gaps.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>

#include "audioenc/gstminicpmoaudioenc.h"
#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"
#include "support/gst_test_main.h"

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmoaudioenc, nullptr);
}

namespace {

using Names = std::vector<std::string>;

class AudioEnc : public ::testing::Test {
 protected:
  void start(const ElementHarness::Setup& setup = {}) {
    h_ = std::make_unique<ElementHarness>("minicpmoaudioenc", setup);
    h_->set_caps(kPcmCaps);
  }
  GstFlowReturn push(size_t samples, float value, GstClockTime pts = GST_CLOCK_TIME_NONE) {
    return h_->push(pcm_buffer(samples, value, pts));
  }
  guint64 stat(const char* name) {
    GstStructure* stats = nullptr;
    g_object_get(h_->element(), "stats", &stats, nullptr);
    StructurePtr owned(stats);
    guint64 value = G_MAXUINT64;
    EXPECT_TRUE(gst_structure_get_uint64(stats, name, &value)) << name;
    return value;
  }
  Names encoded() {  // sizes of the chunks that the encoder was given, and its resets
    Names calls = backend_.log().take();
    for (std::string& call : calls) call = call.substr(6);
    return calls;
  }

  FakeBackend backend_;
  std::unique_ptr<ElementHarness> h_;
};

TEST_F(AudioEnc, PadTemplatesTakeWhatTheyShould) {
  start();
  PadPtr sink(gst_element_get_static_pad(h_->element(), "sink"));
  const auto accepts = [&](const char* text) {
    CapsPtr caps(gst_caps_from_string(text));
    return gst_pad_query_accept_caps(sink.get(), caps.get()) != FALSE;
  };
  EXPECT_TRUE(accepts(kPcmCaps));
  EXPECT_TRUE(accepts("audio/x-raw,format=F32LE,rate=16000,channels=1"));
  EXPECT_FALSE(accepts("audio/x-raw,format=S16LE,rate=16000,channels=1,layout=interleaved"));
  EXPECT_FALSE(accepts("audio/x-raw,format=F32LE,rate=48000,channels=1,layout=interleaved"));
  EXPECT_FALSE(accepts("audio/x-raw,format=F32LE,rate=16000,channels=2,layout=interleaved"));
  EXPECT_FALSE(accepts("text/x-raw,format=utf8"));
}

TEST_F(AudioEnc, CapsSayTypeAndWidthOfTheModel) {
  backend_.settings().info.embedding_type = DataType::kBFloat16;
  backend_.settings().info.hidden_size = 48;
  start();
  push(16000, 0.25f);
  CapsPtr caps(gst_pad_get_current_caps(h_->get()->sinkpad));
  DataType type;
  gint64 columns;
  ASSERT_TRUE(gst_minicpmo_tensor_caps_parse(caps.get(), GST_MINICPMO_TENSOR_ID_EMBEDDING, &type,
                                             &columns));
  EXPECT_EQ(type, DataType::kBFloat16);
  EXPECT_EQ(columns, 48);
  PadPtr src(gst_element_get_static_pad(h_->element(), "src"));
  CapsPtr allowed(gst_pad_get_pad_template_caps(src.get()));
  EXPECT_TRUE(gst_caps_can_intersect(caps.get(), allowed.get()));
  EXPECT_EQ(gst_buffer_get_size(h_->try_pull().get()), 25u * 48 * 2);
}

TEST_F(AudioEnc, CutsChunksWhateverTheBuffersAre) {
  for (size_t size : {160, 1000, 16000, 40000}) {
    start();
    for (size_t done = 0; done < 40000; done += size)
      EXPECT_EQ(push(std::min(size, 40000 - done), 0.5f), GST_FLOW_OK);
    h_->push_eos();
    EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 16000", "step 8000"})) << size;
    EXPECT_EQ(h_->pull_all().size(), 3u);
    h_.reset();
  }
}

TEST_F(AudioEnc, HasEverySampleInItsPlace) {
  start();
  std::vector<float> ramp(24000);
  std::iota(ramp.begin(), ramp.end(), 0.0f);
  // Cut in the middle of samples, as a file source may.
  const auto* bytes = reinterpret_cast<const guint8*>(ramp.data());
  for (size_t at = 0; at < 96000; at += 4097) {
    const size_t part = std::min<size_t>(4097, 96000 - at);
    h_->push(BufferPtr(gst_buffer_new_memdup(bytes + at, part)));
  }
  h_->push_eos();
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  size_t row = 0;
  for (const BufferPtr& buffer : buffers) {
    const auto values = floats_of(buffer.get());
    for (size_t i = 0; i < values.size(); i += 8, ++row) {
      const size_t count = std::min<size_t>(640, 24000 - row * 640);
      const double mean = static_cast<double>(row) * 640 + (static_cast<double>(count) - 1) / 2;
      EXPECT_NEAR(values[i], mean, 0.01) << row;
    }
  }
  EXPECT_EQ(row, 38u);
}

TEST_F(AudioEnc, TimestampsAreThoseOfTheFirstSample) {
  start();
  push(4000, 0.1f, 2 * GST_SECOND);
  push(20000, 0.1f, 2 * GST_SECOND + 250 * GST_MSECOND);
  h_->push_eos();
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[0].get()), 2 * GST_SECOND);
  EXPECT_EQ(GST_BUFFER_DURATION(buffers[0].get()), GST_SECOND);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), 3 * GST_SECOND);
  EXPECT_EQ(GST_BUFFER_DURATION(buffers[1].get()), 500 * GST_MSECOND);
  EXPECT_TRUE(GST_BUFFER_FLAG_IS_SET(buffers[0].get(), GST_BUFFER_FLAG_DISCONT));
  EXPECT_FALSE(GST_BUFFER_FLAG_IS_SET(buffers[1].get(), GST_BUFFER_FLAG_DISCONT));
}

TEST_F(AudioEnc, BuffersSayTurnChunkAndCaptureTime) {
  start();
  push(24000, 0.1f, GST_SECOND);
  h_->push_eos();
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  for (guint i = 0; i < 2; ++i) {
    const auto* meta = gst_buffer_get_minicpmo_turn_meta(buffers[i].get());
    ASSERT_NE(meta, nullptr);
    EXPECT_EQ(meta->turn_id, 1u);
    EXPECT_EQ(meta->chunk, i);
    EXPECT_EQ(meta->flags, static_cast<guint>(GST_MINICPMO_TURN_CHUNK));
    EXPECT_EQ(meta->capture_time, (i == 0 ? 2000 : 2500) * GST_MSECOND);
    EXPECT_NE(gst_minicpmo_tensor_memory_peek(gst_buffer_peek_memory(buffers[i].get(), 0)),
              nullptr);
  }
}

TEST_F(AudioEnc, EndOfStreamBeforeDataIsOrderly) {
  start();
  EXPECT_TRUE(h_->push_eos());
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "eos"}));
  EXPECT_EQ(encoded(), Names{});
}

TEST_F(AudioEnc, TailThatIsTooShortIsDropped) {
  start();
  push(16100, 0.1f);
  EXPECT_TRUE(h_->push_eos());
  EXPECT_EQ(h_->pull_all().size(), 1u);
  EXPECT_EQ(stat("dropped-samples"), 100u);
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(AudioEnc, OneSampleIsNoError) {
  start();
  EXPECT_EQ(push(1, 0.1f), GST_FLOW_OK);
  EXPECT_TRUE(h_->push_eos());
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "eos"}));
}

TEST_F(AudioEnc, NonFiniteSamplesAreWarnedAboutOnce) {
  start();
  for (float bad : {std::nanf(""), INFINITY, -INFINITY}) EXPECT_EQ(push(16000, bad), GST_FLOW_OK);
  EXPECT_EQ(h_->messages(GST_MESSAGE_WARNING).size(), 1u);
  EXPECT_EQ(stat("non-finite-samples"), 48000u);
}

// ---- Turns -----------------------------------------------------------------

TEST_F(AudioEnc, TurnsAreEncodedByThemselves) {
  start();
  for (guint64 id : {5, 9}) {
    h_->push_event(gst_minicpmo_event_new_turn_start(id));
    push(20000, 0.1f);
    h_->push_event(gst_minicpmo_event_new_turn_end(id));
    const auto buffers = h_->pull_all();
    ASSERT_EQ(buffers.size(), 2u);
    EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[1].get())->turn_id, id);
    EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[1].get())->chunk, 1u);
  }
  EXPECT_EQ(encoded(),
            (Names{"reset", "step 16000", "step 4000", "reset", "step 16000", "step 4000"}));
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "minicpmo/turn-start",
                                     "buffer", "buffer", "minicpmo/turn-end", "minicpmo/turn-start",
                                     "buffer", "buffer", "minicpmo/turn-end"}));
  EXPECT_EQ(stat("turns"), 2u);
}

TEST_F(AudioEnc, ATurnGoesOnAfterASpeculativeEnd) {
  start();
  h_->push_event(gst_minicpmo_event_new_turn_start(1));
  push(20000, 0.5f, 0);
  h_->push_event(gst_minicpmo_event_new_turn_end_full(1, GST_CLOCK_TIME_NONE, TRUE));
  push(16000, 0.5f, 1250 * GST_MSECOND);
  h_->push_event(gst_minicpmo_event_new_turn_end(1));
  push(16000, 0.5f, 3 * GST_SECOND);  // between turns
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 4000", "step 16000"}));
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[2].get()), 1250 * GST_MSECOND);
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[2].get())->turn_id, 1u);
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[2].get())->chunk, 2u);
}

TEST_F(AudioEnc, OfACancelledTurnNothingMoreComes) {
  start();
  h_->push_event(gst_minicpmo_event_new_turn_start(1));
  push(20000, 0.5f, 0);
  h_->push_event(gst_minicpmo_event_new_turn_cancel(1));
  push(16000, 0.5f, 2 * GST_SECOND);  // between turns
  h_->push_event(gst_minicpmo_event_new_turn_start(2));
  push(8000, 0.25f, 3 * GST_SECOND);
  h_->push_event(gst_minicpmo_event_new_turn_end(2));
  EXPECT_EQ(h_->take_order(),
            (Names{"stream-start", "caps", "segment", "minicpmo/turn-start", "buffer",
                   "minicpmo/turn-cancel", "minicpmo/turn-start", "buffer", "minicpmo/turn-end"}));
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), 3 * GST_SECOND);
  EXPECT_FLOAT_EQ(floats_of(buffers[1].get())[0], 0.25f);
  EXPECT_EQ(stat("dropped-samples"), 4000u + 16000u);
}

TEST_F(AudioEnc, AudioBetweenTurnsIsDropped) {
  start();
  h_->push_event(gst_minicpmo_event_new_turn_start(1));
  push(16000, 0.1f);
  h_->push_event(gst_minicpmo_event_new_turn_end(1));
  EXPECT_EQ(push(16000, 0.1f), GST_FLOW_OK);
  EXPECT_EQ(h_->pull_all().size(), 1u);
  EXPECT_EQ(stat("dropped-samples"), 16000u);
}

TEST_F(AudioEnc, TurnEndAloneEndsAnUnmarkedTurn) {
  start();
  push(8000, 0.1f);
  h_->push_event(gst_minicpmo_event_new_turn_end(1));
  push(8000, 0.1f);
  h_->push_eos();
  EXPECT_EQ(encoded(), (Names{"reset", "step 8000", "reset", "step 8000"}));
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(gst_buffer_get_minicpmo_turn_meta(buffers[1].get())->turn_id, 2u);
}

TEST_F(AudioEnc, TooLongATurnIsCutWithOneWarning) {
  start([](GstElement* e) {
    g_object_set(e, "max-turn-duration", static_cast<guint64>(1500 * GST_MSECOND), nullptr);
  });
  for (int i = 0; i < 10; ++i) EXPECT_EQ(push(8000, 0.1f), GST_FLOW_OK);
  h_->push_eos();
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 8000"}));
  EXPECT_EQ(h_->messages(GST_MESSAGE_WARNING).size(), 1u);
  EXPECT_EQ(stat("dropped-samples"), 56000u);
  EXPECT_EQ(h_->take_order().back(), "eos");
}

TEST_F(AudioEnc, NoLimitTakesAll) {
  start([](GstElement* e) {
    g_object_set(e, "max-turn-duration", static_cast<guint64>(0), nullptr);
  });
  for (int i = 0; i < 70; ++i) push(16000, 0.1f);
  EXPECT_EQ(h_->pull_all().size(), 70u);
}

TEST_F(AudioEnc, MaxTurnDurationReadsBack) {
  start();
  guint64 value = 0;
  g_object_get(h_->element(), "max-turn-duration", &value, nullptr);
  EXPECT_EQ(value, 60 * GST_SECOND);
  g_object_set(h_->element(), "max-turn-duration", static_cast<guint64>(7), nullptr);
  g_object_get(h_->element(), "max-turn-duration", &value, nullptr);
  EXPECT_EQ(value, 7u);
}

// ---- Gaps ------------------------------------------------------------------

TEST_F(AudioEnc, ShortHoleIsFilledWithSilence) {
  start();
  push(8000, 1.0f, 0);
  push(8000, 1.0f, 750 * GST_MSECOND);  // 250 ms are missing
  h_->push_eos();
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 4000"}));
  EXPECT_EQ(stat("silence-samples"), 4000u);
  const auto buffers = h_->pull_all();
  const auto values = floats_of(buffers[0].get());
  EXPECT_EQ(values[8 * 11], 1.0f);
  EXPECT_EQ(values[8 * 12], 0.5f);  // samples 7680 to 8319, half of them silent
  EXPECT_EQ(values[8 * 13], 0.0f);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), GST_SECOND);
}

TEST_F(AudioEnc, JitterIsNoHole) {
  start();
  push(8000, 1.0f, 0);
  push(8000, 1.0f, 510 * GST_MSECOND);
  push(8000, 1.0f, 1000 * GST_MSECOND);
  EXPECT_EQ(stat("silence-samples"), 0u);
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000"}));
}

TEST_F(AudioEnc, LongJumpFillsOnlyTheChunk) {
  start();
  push(10000, 1.0f, 0);
  push(16000, 1.0f, 3600 * GST_SECOND);
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 16000"}));
  EXPECT_EQ(stat("silence-samples"), 6000u);
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), 3600 * GST_SECOND);
  EXPECT_TRUE(GST_BUFFER_FLAG_IS_SET(buffers[1].get(), GST_BUFFER_FLAG_DISCONT));
}

TEST_F(AudioEnc, JumpBackLosesNothing) {
  start();
  push(16000, 1.0f, 10 * GST_SECOND);
  push(16000, 1.0f, 5 * GST_SECOND);
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 2u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), 5 * GST_SECOND);
  EXPECT_EQ(stat("silence-samples"), 0u);
}

TEST_F(AudioEnc, GapEventInATurnIsSilence) {
  start();
  push(8000, 1.0f, 0);
  EXPECT_TRUE(h_->push_event(gst_event_new_gap(500 * GST_MSECOND, 1500 * GST_MSECOND)));
  EXPECT_EQ(encoded(), (Names{"reset", "step 16000", "step 16000"}));
  EXPECT_EQ(stat("silence-samples"), 24000u);
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "buffer", "buffer"}));
}

TEST_F(AudioEnc, GapEventOfAnyDurationIsBounded) {
  start([](GstElement* e) {
    g_object_set(e, "max-turn-duration", static_cast<guint64>(0), nullptr);
  });
  push(8000, 1.0f, 0);
  h_->push_event(gst_event_new_gap(500 * GST_MSECOND, G_MAXINT64));
  EXPECT_EQ(stat("silence-samples"), 60u * 16000);
  h_->push_event(gst_event_new_gap(600 * GST_SECOND, GST_CLOCK_TIME_NONE));
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

TEST_F(AudioEnc, GapEventBeforeATurnIsPassedOn) {
  start();
  ASSERT_TRUE(h_->wait_loaded());
  h_->push_event(gst_event_new_gap(0, GST_SECOND));
  push(16000, 1.0f, GST_SECOND);
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "gap", "buffer"}));
}

}  // namespace
}  // namespace minicpmo::testing
