// minicpmovocoder.
#include <glib/gstdio.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "common/gstminicpmotensormemory.h"
#include "common/gstminicpmoturn.h"
#include "support/element_harness.h"
#include "support/fake_backend.h"
#include "support/gst_test_main.h"
#include "vocoder/gstminicpmovocoder.h"

using namespace std::chrono_literals;

namespace minicpmo::testing {

void register_elements() {
  GST_ELEMENT_REGISTER(minicpmovocoder, nullptr);
}

namespace {

using Names = std::vector<std::string>;

BufferPtr chunk(size_t rows, int first, guint flags = GST_MINICPMO_TURN_CHUNK, guint64 turn = 1,
                GstClockTime pts = GST_CLOCK_TIME_NONE) {
  BufferPtr buffer = code_buffer(rows, first, pts);
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), turn, 0, flags, 5 * GST_SECOND);
  return buffer;
}

GstEvent* answer_end() {
  return gst_minicpmo_event_new_answer_end(1, "stop");
}

class VocoderTest : public ::testing::Test {
 protected:
  void start(const char* caps = kCodeCaps, const ElementHarness::Setup& setup = {}) {
    h_ = std::make_unique<ElementHarness>("minicpmovocoder", setup);
    h_->set_caps(caps);
  }
  // What the vocoder was asked to do, without resets.
  Names decoded() {
    Names steps;
    for (const std::string& call : backend_.log().take()) {
      if (call != "vocoder.reset") steps.push_back(call.substr(8));
    }
    return steps;
  }
  // All samples, and that their buffers are contiguous.
  std::vector<float> pull_samples() {
    std::vector<float> all;
    GstClockTime end = GST_CLOCK_TIME_NONE;
    for (const BufferPtr& buffer : h_->pull_all()) {
      const auto part = floats_of(buffer.get());
      all.insert(all.end(), part.begin(), part.end());
      if (GST_CLOCK_TIME_IS_VALID(end)) {
        EXPECT_EQ(GST_BUFFER_PTS(buffer.get()), end);
      }
      end = GST_BUFFER_PTS(buffer.get()) + GST_BUFFER_DURATION(buffer.get());
    }
    return all;
  }

  FakeBackend backend_;
  std::unique_ptr<ElementHarness> h_;
};

TEST_F(VocoderTest, PadTakesCodesOnly) {
  start();
  PadPtr sink(gst_element_get_static_pad(h_->element(), "sink"));
  const auto accepts = [&](const char* text) {
    CapsPtr caps(gst_caps_from_string(text));
    return gst_pad_query_accept_caps(sink.get(), caps.get()) != FALSE;
  };
  EXPECT_TRUE(accepts(kCodeCaps));
  // Written by hand, without dims-order.
  EXPECT_TRUE(accepts("tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,4>"));
  EXPECT_TRUE(
      accepts("tensor/strided,tensor-id=minicpmo-audio-code,type=int32,dims=(int)<0,4>,"
              "dims-order=row-major"));
  EXPECT_FALSE(
      accepts("tensor/strided,tensor-id=minicpmo-audio-code,type=uint16,dims=(int)<0,5>,"
              "dims-order=row-major"));
  EXPECT_FALSE(
      accepts("tensor/strided,tensor-id=minicpmo-audio-code,type=float32,"
              "dims=(int)<0,4>,dims-order=row-major"));
  EXPECT_FALSE(
      accepts("tensor/strided,tensor-id=minicpmo-audio-embedding,type=uint16,"
              "dims=(int)<0,4>,dims-order=row-major"));
  EXPECT_FALSE(accepts("audio/x-raw"));
}

TEST_F(VocoderTest, MarkedChunksAreNotCutAgain) {
  start();
  h_->push(chunk(25, 0));
  h_->push(chunk(7, 25));
  h_->push(chunk(25, 32, GST_MINICPMO_TURN_CHUNK | GST_MINICPMO_TURN_SEGMENT_START));
  h_->push_event(answer_end());
  EXPECT_EQ(decoded(), (Names{"step 25", "step 7", "step 25 segment", "flush"}));
  const auto samples = pull_samples();
  ASSERT_EQ(samples.size(), 57u * 512);
  for (size_t i = 0; i < samples.size(); ++i)
    ASSERT_EQ(samples[i], static_cast<float>(i / 512) / 625.0f) << i;
}

TEST_F(VocoderTest, UnmarkedCodesAreCutInto25Rows) {
  for (size_t rows : {1, 24, 60, 137}) {
    start();
    for (size_t done = 0; done < 137; done += rows)
      EXPECT_EQ(h_->push(code_buffer(std::min(rows, 137 - done), static_cast<int>(done))),
                GST_FLOW_OK);
    h_->push_eos();
    EXPECT_EQ(decoded(),
              (Names{"step 25", "step 25", "step 25", "step 25", "step 25", "step 12", "flush"}))
        << rows;
    EXPECT_EQ(pull_samples().size(), 137u * 512);
    h_.reset();
  }
}

TEST_F(VocoderTest, RowsCutAnywhere) {
  start();
  BufferPtr whole = code_buffer(50);
  for (gsize at = 0; at < 400; at += 7)
    h_->push(BufferPtr(gst_buffer_copy_region(whole.get(), GST_BUFFER_COPY_MEMORY, at,
                                              std::min<gsize>(7, 400 - at))));
  h_->push_eos();
  EXPECT_EQ(decoded(), (Names{"step 25", "step 25", "flush"}));
}

TEST_F(VocoderTest, Int32CodesAreTheSame) {
  start(
      "tensor/strided,tensor-id=minicpmo-audio-code,type=int32,dims=(int)<0,4>,"
      "dims-order=row-major");
  const std::vector<int32_t> codes(100, 125);
  h_->push(BufferPtr(gst_buffer_new_memdup(codes.data(), codes.size() * 4)));
  h_->push_eos();
  const auto samples = pull_samples();
  ASSERT_EQ(samples.size(), 25u * 512);
  EXPECT_EQ(samples.front(), 0.2f);
  EXPECT_EQ(samples.back(), 0.2f);
}

TEST_F(VocoderTest, TensorsGoThroughAsTheyAre) {
  start();
  BufferPtr plain = code_buffer(25, 100);
  auto tensor = gst_minicpmo_buffer_get_tensor(plain.get(), DataType::kUInt16, 4);
  BufferPtr buffer(gst_minicpmo_tensor_buffer_new(tensor.value()));
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), 1, 0, GST_MINICPMO_TURN_CHUNK, 0);
  EXPECT_EQ(h_->push(std::move(buffer)), GST_FLOW_OK);
  EXPECT_EQ(pull_samples().front(), 100.0f / 625.0f);
}

TEST_F(VocoderTest, ChunkWithoutRowsIsNothing) {
  start();
  EXPECT_EQ(h_->push(chunk(0, 0)), GST_FLOW_OK);
  h_->push_event(answer_end());
  EXPECT_TRUE(h_->pull_all().empty());
}

TEST_F(VocoderTest, MarkedChunkOfTooManyRowsIsCut) {
  start();
  EXPECT_EQ(h_->push(chunk(60, 0)), GST_FLOW_OK);
  EXPECT_EQ(decoded(), (Names{"step 25", "step 25", "step 10"}));
}

TEST_F(VocoderTest, TimeCountsSamplesFromTheAnswersFirstBuffer) {
  start();
  h_->push(chunk(25, 0, GST_MINICPMO_TURN_CHUNK, 1, 3 * GST_SECOND));
  h_->push(chunk(25, 25, GST_MINICPMO_TURN_CHUNK, 1, 99 * GST_SECOND));
  h_->push_event(answer_end());
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 3u);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[0].get()), 3 * GST_SECOND);
  EXPECT_EQ(gst_buffer_get_size(buffers[0].get()), (12800u - 2048) * 4);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[1].get()), 3 * GST_SECOND + 448 * GST_MSECOND);
  EXPECT_EQ(gst_buffer_get_size(buffers[2].get()), 2048u * 4);
  const GstBuffer* tail = buffers[2].get();
  EXPECT_EQ(GST_BUFFER_PTS(tail) + GST_BUFFER_DURATION(tail),
            3 * GST_SECOND + gst_util_uint64_scale(25600, GST_SECOND, 24000));
}

TEST_F(VocoderTest, AnswersDoNotOverlap) {
  start();
  for (GstClockTime ms : {0, 100, 10000}) {
    h_->push(chunk(25, 0, GST_MINICPMO_TURN_CHUNK, 1, ms * GST_MSECOND));
    h_->push_event(answer_end());
  }
  const auto buffers = h_->pull_all();
  ASSERT_EQ(buffers.size(), 6u);
  const GstClockTime length = gst_util_uint64_scale(12800, GST_SECOND, 24000);
  EXPECT_EQ(GST_BUFFER_PTS(buffers[2].get()), length);  // where the first ended, not at 100 ms
  EXPECT_EQ(GST_BUFFER_PTS(buffers[4].get()), 10 * GST_SECOND);
  for (size_t i = 0; i < 6; ++i) {
    const bool first = i % 2 == 0;
    EXPECT_EQ(GST_BUFFER_FLAG_IS_SET(buffers[i].get(), GST_BUFFER_FLAG_DISCONT), first);
    const auto* meta = gst_buffer_get_minicpmo_turn_meta(buffers[i].get());
    ASSERT_NE(meta, nullptr);
    EXPECT_EQ((meta->flags & GST_MINICPMO_TURN_FIRST) != 0, first);
    EXPECT_EQ(meta->chunk, i % 2);
    EXPECT_EQ(meta->turn_id, 1u);
    EXPECT_EQ(meta->capture_time, 5 * GST_SECOND);
  }
}

TEST_F(VocoderTest, AnotherTurnEndsTheAnswer) {
  start();
  h_->push(chunk(25, 0, GST_MINICPMO_TURN_CHUNK, 1));
  h_->push(chunk(25, 0, GST_MINICPMO_TURN_CHUNK, 2));
  EXPECT_EQ(decoded(), (Names{"step 25", "flush", "step 25"}));
}

TEST_F(VocoderTest, AnswerEndComesAfterTheTail) {
  start();
  h_->push(chunk(25, 0));
  h_->push_event(answer_end());
  h_->push_eos();
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "buffer", "buffer",
                                     "minicpmo/answer-end", "eos"}));
}

TEST_F(VocoderTest, EventsKeepTheirPlaceAmongTheData) {
  start();
  h_->push(code_buffer(30));
  h_->push_event(
      gst_event_new_custom(GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty("inside")));
  h_->push(code_buffer(20));
  h_->push_eos();
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "buffer", "buffer",
                                     "inside", "buffer", "eos"}));
}

TEST_F(VocoderTest, NewSegmentDrains) {
  start();
  h_->push(chunk(25, 0));
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  segment.start = 50 * GST_SECOND;
  h_->push_event(gst_event_new_segment(&segment));
  h_->push(chunk(25, 0));
  EXPECT_EQ(h_->take_order(),
            (Names{"stream-start", "caps", "segment", "buffer", "buffer", "segment", "buffer"}));
  EXPECT_EQ(GST_BUFFER_PTS(h_->pull_all().back().get()), 50 * GST_SECOND);
}

TEST_F(VocoderTest, EndOfStreamBeforeDataBringsCaps) {
  start();
  h_->push_eos();
  EXPECT_EQ(h_->take_order(), (Names{"stream-start", "caps", "segment", "eos"}));
  CapsPtr caps(gst_pad_get_current_caps(h_->get()->sinkpad));
  CapsPtr expected(
      gst_caps_from_string("audio/x-raw,format=F32LE,rate=24000,channels=1,layout=interleaved"));
  EXPECT_TRUE(gst_caps_is_equal(caps.get(), expected.get()));
}

TEST_F(VocoderTest, CodesOutOfRangeAreOneError) {
  start();
  std::vector<uint16_t> codes(100, 3);
  codes[50] = 625;
  codes.resize(160, 626);  // and more of them after the first chunk
  BufferPtr bad(gst_buffer_new_memdup(codes.data(), codes.size() * 2));
  EXPECT_EQ(h_->push(std::move(bad)), GST_FLOW_ERROR);
  EXPECT_EQ(h_->push(code_buffer(25)), GST_FLOW_ERROR);
  h_->push_eos();
  const auto errors = h_->messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  GErrorPtr error = error_of(errors[0].get());
  EXPECT_TRUE(g_error_matches(error.get(), GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT));
  EXPECT_NE(std::string(error->message).find("625"), std::string::npos);
}

TEST_F(VocoderTest, HalfARowAtTheEndIsOneError) {
  start();
  h_->push(BufferPtr(gst_buffer_new_memdup("\0\0\0\0\0\0\0\0\0\0\0", 11)));
  h_->push_eos();
  const auto errors = h_->messages(GST_MESSAGE_ERROR);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_NE(std::string(error_of(errors[0].get())->message).find("3 of 8 bytes"),
            std::string::npos);
  EXPECT_EQ(h_->take_order().back(), "eos");
}

TEST_F(VocoderTest, BrokenChunkIsOneError) {
  start();
  BufferPtr buffer(gst_buffer_new_allocate(nullptr, 13, nullptr));
  gst_buffer_add_minicpmo_turn_meta(buffer.get(), 1, 0, GST_MINICPMO_TURN_CHUNK, 0);
  EXPECT_EQ(h_->push(std::move(buffer)), GST_FLOW_ERROR);
  EXPECT_EQ(h_->messages(GST_MESSAGE_ERROR).size(), 1u);
}

// A queue sends EOS after an error, and a sink that is given more says its error again.
TEST_F(VocoderTest, NothingIsPushedAfterTheSinkFailed) {
  start();
  int pushed = 0;
  gst_pad_add_probe(
      h_->get()->sinkpad, GST_PAD_PROBE_TYPE_BUFFER,
      [](GstPad*, GstPadProbeInfo* info, gpointer count) {
        ++*static_cast<int*>(count);
        gst_buffer_unref(GST_PAD_PROBE_INFO_BUFFER(info));
        GST_PAD_PROBE_INFO_DATA(info) = nullptr;
        GST_PAD_PROBE_INFO_FLOW_RETURN(info) = GST_FLOW_ERROR;
        return GST_PAD_PROBE_HANDLED;
      },
      &pushed, nullptr);
  EXPECT_EQ(h_->push(chunk(25, 0)), GST_FLOW_ERROR);
  EXPECT_EQ(h_->push(chunk(25, 25)), GST_FLOW_ERROR);
  h_->push_eos();
  EXPECT_EQ(pushed, 1);
  EXPECT_EQ(h_->take_order().back(), "eos");
}

TEST_F(VocoderTest, ExceptionStopsAtTheElement) {
  backend_.settings().throw_in_step = true;
  start();
  EXPECT_EQ(h_->push(chunk(60, 0)), GST_FLOW_ERROR);
  h_->push_eos();
  EXPECT_EQ(h_->messages(GST_MESSAGE_ERROR).size(), 1u);
  EXPECT_EQ(h_->take_order().back(), "eos");
}

// Live sound is timed when it comes: what is held back for the cross-fade delays nothing.
TEST_F(VocoderTest, LatencyIsThatOfTheSource) {
  start();
  for (const bool live : {true, false}) {
    gst_harness_set_live(h_->get(), live);
    gst_harness_set_upstream_latency(h_->get(), GST_SECOND);
    EXPECT_EQ(gst_harness_query_latency(h_->get()), live ? GST_SECOND : 0);
  }
}

TEST_F(VocoderTest, CompatibilityReachesTheSession) {
  start(kCodeCaps,
        [](GstElement* e) { gst_util_set_object_arg(G_OBJECT(e), "compatibility", "upstream"); });
  ASSERT_TRUE(h_->wait_loaded());
  EXPECT_EQ(backend_.vocoder_options().compatibility, Compatibility::kUpstream);
  gint value = 0;
  g_object_get(h_->element(), "compatibility", &value, nullptr);
  EXPECT_EQ(value, static_cast<int>(Compatibility::kUpstream));
}

TEST_F(VocoderTest, CompatibilityDefaultsToNone) {
  start();
  ASSERT_TRUE(h_->wait_loaded());
  EXPECT_EQ(backend_.vocoder_options().compatibility, Compatibility::kNone);
}

TEST_F(VocoderTest, StatsCount) {
  backend_.settings().gpu_time = std::chrono::nanoseconds(3);
  start();
  h_->push(chunk(25, 0));
  h_->push_event(answer_end());
  GstStructure* stats = nullptr;
  g_object_get(h_->element(), "stats", &stats, nullptr);
  StructurePtr owned(stats);
  guint64 rows = 0, samples = 0, answers = 0, gpu = 0;
  EXPECT_TRUE(gst_structure_get(stats, "rows", G_TYPE_UINT64, &rows, "samples", G_TYPE_UINT64,
                                &samples, "answers", G_TYPE_UINT64, &answers, "gpu-time",
                                G_TYPE_UINT64, &gpu, nullptr));
  EXPECT_EQ(gpu, 3u);
  EXPECT_EQ(rows, 25u);
  EXPECT_EQ(samples, 12800u);
  EXPECT_EQ(answers, 1u);
}

TEST_F(VocoderTest, FlushDropsTheTail) {
  start();
  h_->push(chunk(25, 600));
  h_->push_event(gst_event_new_flush_start());
  h_->push_event(gst_event_new_flush_stop(FALSE));
  GstSegment segment;
  gst_segment_init(&segment, GST_FORMAT_TIME);
  h_->push_event(gst_event_new_segment(&segment));
  h_->pull_all();
  h_->push(chunk(25, 0));
  h_->push_event(answer_end());
  const auto samples = pull_samples();
  ASSERT_EQ(samples.size(), 12800u);
  EXPECT_EQ(samples.front(), 0.0f);
}

TEST_F(VocoderTest, FlushCancelsARunningStep) {
  backend_.settings().step_delay = 20s;
  start();
  GstFlowReturn flow = GST_FLOW_OK;
  std::thread pusher([&] { flow = h_->push(chunk(25, 0)); });
  while (backend_.counters().steps == 0) std::this_thread::sleep_for(1ms);
  h_->push_event(gst_event_new_flush_start());
  pusher.join();
  EXPECT_EQ(flow, GST_FLOW_FLUSHING);
  EXPECT_TRUE(h_->messages(GST_MESSAGE_ERROR).empty());
}

// An answer without sound must still give a file that players open.
TEST_F(VocoderTest, EmptyStreamWritesAWholeWavFile) {
  GCharPtr codes(g_build_filename(g_get_tmp_dir(), "minicpmo-vocoder-test.u16", nullptr));
  GCharPtr wav(g_build_filename(g_get_tmp_dir(), "minicpmo-vocoder-test.wav", nullptr));
  ASSERT_TRUE(g_file_set_contents(codes.get(), "", 0, nullptr));
  GCharPtr line(
      g_strdup_printf("filesrc location=%s ! %s ! minicpmovocoder ! wavenc ! "
                      "filesink location=%s",
                      codes.get(), kCodeCaps, wav.get()));
  GError* error = nullptr;
  ElementPtr pipeline(gst_parse_launch(line.get(), &error));
  ASSERT_EQ(error, nullptr) << error->message;
  gst_object_ref_sink(pipeline.get());
  gst_element_set_state(pipeline.get(), GST_STATE_PLAYING);
  BusPtr bus(gst_element_get_bus(pipeline.get()));
  MessagePtr message(
      gst_bus_timed_pop_filtered(bus.get(), 20 * GST_SECOND,
                                 static_cast<GstMessageType>(GST_MESSAGE_EOS | GST_MESSAGE_ERROR)));
  ASSERT_NE(message, nullptr);
  EXPECT_EQ(GST_MESSAGE_TYPE(message.get()), GST_MESSAGE_EOS);
  gst_element_set_state(pipeline.get(), GST_STATE_NULL);
  gchar* bytes = nullptr;
  gsize size = 0;
  ASSERT_TRUE(g_file_get_contents(wav.get(), &bytes, &size, nullptr));
  GCharPtr owned(bytes);
  ASSERT_GE(size, 44u);
  EXPECT_EQ(std::string(bytes, 4), "RIFF");
  g_remove(codes.get());
  g_remove(wav.get());
}

}  // namespace
}  // namespace minicpmo::testing
