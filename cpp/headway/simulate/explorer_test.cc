// headway/simulate/explorer_test.cc: the explorer finds what it is there to find.
#include "headway/simulate/explorer.h"

#include <memory>

#include <gtest/gtest.h>

#include "headway/base/pause.h"

#if defined(HEADWAY_PAUSE_POINTS) && HEADWAY_PAUSE_POINTS

namespace headway::simulate {
namespace {

Interleaving TwoThatAddOne(int pauses) {
  auto value = std::make_shared<int>(0);
  const auto add = [value, pauses] {
    const int seen = *value;
    for (int i = 0; i < pauses; ++i) HEADWAY_PAUSE();
    *value = seen + 1;
  };
  return {{add, add}, [value] { return *value == 2 ? "" : "an addition was lost"; }};
}

TEST(Explorer, RunsEverySchedule) {
  // Two threads of two steps each: 4 over 2.
  const auto make = [] {
    return Interleaving{{[] { HEADWAY_PAUSE(); }, [] { HEADWAY_PAUSE(); }}, [] { return ""; }};
  };
  EXPECT_EQ(Explorer::Explore(make, -1).schedules, 6U);
  // Without preemption only the order is left.
  EXPECT_EQ(Explorer::Explore(make, 0).schedules, 2U);
}

TEST(Explorer, FindsALostUpdate) {
  EXPECT_NE(Explorer::Explore([] { return TwoThatAddOne(1); }, 1).failure, "");
  EXPECT_EQ(Explorer::Explore([] { return TwoThatAddOne(0); }, -1).failure, "");
}

TEST(Explorer, FindsWhatNeverEnds) {
  const auto make = [] {
    return Interleaving{{[] {
                          for (int i = 0; i < 10'000; ++i) HEADWAY_PAUSE();
                        }},
                        [] { return ""; }};
  };
  EXPECT_NE(Explorer::Explore(make, 0).failure, "");
}

}  // namespace
}  // namespace headway::simulate

#endif  // HEADWAY_PAUSE_POINTS
