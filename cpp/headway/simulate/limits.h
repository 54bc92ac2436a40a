// headway/simulate/limits.h: limits for tests.
#ifndef HEADWAY_SIMULATE_LIMITS_H_
#define HEADWAY_SIMULATE_LIMITS_H_

#include <cstdint>
#include <optional>

#include "headway/base/limit.h"

namespace headway::simulate {

// A limit of requests, or of concurrency, which has no period.
inline Limit MakeLimit(Shape shape, std::int64_t amount, Nanos period,
                       std::optional<std::int64_t> burst) {
  Limit limit;
  limit.amount = amount;
  limit.resource = shape == Shape::kConcurrency ? "concurrency" : "requests";
  limit.period = shape == Shape::kConcurrency ? 0 : period;
  limit.shape = shape;
  limit.burst = burst;
  return Limit::Make(limit).value();
}

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_LIMITS_H_
