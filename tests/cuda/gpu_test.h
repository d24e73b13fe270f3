// Tests of a stage's runner on a GPU: skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include "backend/device.h"

namespace minicpmo {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    auto choice = choose_device("cuda", "bfloat16");
    if (!choice.ok() && choice.error().code == ErrorCode::kNotFound) {
      GTEST_SKIP() << choice.error().message;
    }
    ASSERT_TRUE(choice.ok()) << choice.error().message << " " << choice.error().detail;
    device_ = choice->stage;
    device_.graphs = true;
    ASSERT_NE(device_.runners, nullptr);
  }

  StageDevice device_;
};

}  // namespace minicpmo
