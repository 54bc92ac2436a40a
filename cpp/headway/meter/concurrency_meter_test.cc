// headway/meter/concurrency_meter_test.cc: at most so many at once, and every one given back.
#include "headway/meter/concurrency_meter.h"

#include <vector>

#include <gtest/gtest.h>

#include "headway/simulate/oracle.h"
#include "headway/simulate/random.h"

namespace headway {
namespace {

Limit Make(std::int64_t amount) {
  Limit limit;
  limit.amount = amount;
  limit.resource = "concurrency";
  return Limit::Make(limit).value();
}

TEST(ConcurrencyMeter, AdmitsExactlyWhatTheOracleAdmits) {
  for (std::uint64_t run = 0; run < 1'000; ++run) {
    simulate::Random random(simulate::Random::Seed(run));
    SCOPED_TRACE(random.Describe());
    std::int64_t amount = random.Magnitude(53);
    Meter meter(Make(amount), 0);
    simulate::ConcurrencyOracle oracle(amount);
    std::vector<Taken> held;
    for (int op = 0; op < 100; ++op) {
      const std::int64_t cost = random.OneIn(8)
                                    ? Limit::kMaxAmount
                                    : random.From(1, std::max<std::int64_t>(1, amount / 2));
      const Nanos ready = meter.ReadyAt(op, cost);
      if (random.OneIn(10)) {
        amount = random.OneIn(5) ? 0 : random.Magnitude(53);
        oracle.SetLimit(amount);
        EXPECT_FALSE(meter.SetLimit(op, Make(amount), 0, Debt::kAbsolute));
      } else if (random.OneIn(2)) {
        Taken taken;
        const bool fits = oracle.Take(cost);
        EXPECT_EQ(ready, fits ? op : cost > amount ? kNever : kUntold);
        ASSERT_EQ(meter.Take(op, cost, false, false, taken), fits);
        if (fits) held.push_back(taken);
      } else if (!held.empty()) {
        EXPECT_FALSE(
            meter.GiveBack(op, held.back(), held.back().amount, Debt::kAbsolute, random.OneIn(2)));
        oracle.GiveBack(held.back().amount);
        held.pop_back();
      }
      ASSERT_EQ(meter.Used(op), oracle.count());
      ASSERT_EQ(meter.Capacity(), amount);
    }
  }
}

TEST(ConcurrencyMeter, RefusesWhileSomebodyWaitsExceptTheOneWhoMayPass) {
  Meter meter(Make(2), 0);
  meter.SetWaiters();
  Taken taken;
  EXPECT_FALSE(meter.Take(0, 1, /*pass_waiters=*/false, false, taken));
  EXPECT_TRUE(meter.Take(0, 1, /*pass_waiters=*/true, false, taken));
  EXPECT_TRUE(meter.GiveBack(0, taken, 1, Debt::kAbsolute, false))
      << "the one who waits has to be told";
  meter.ClearWaiters();
  EXPECT_TRUE(meter.Take(0, 1, false, false, taken));
  EXPECT_FALSE(meter.GiveBack(0, taken, 1, Debt::kAbsolute, false));
}

}  // namespace
}  // namespace headway
