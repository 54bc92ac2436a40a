// headway/meter/parameters.cc: from a limit to the numbers that a meter works with.
#include "headway/meter/parameters.h"

namespace headway {
namespace {

Nanos Clamp(unsigned __int128 value) {
  return value > static_cast<unsigned __int128>(kNever) ? kNever : static_cast<Nanos>(value);
}

}  // namespace

Nanos MulDivFloor(std::int64_t a, std::int64_t b, std::int64_t c) {
  std::int64_t product = 0;
  if (!__builtin_mul_overflow(a, b, &product)) return product / c;
  return Clamp(static_cast<unsigned __int128>(a) * static_cast<unsigned __int128>(b) /
               static_cast<unsigned __int128>(c));
}

Nanos MulDivCeil(std::int64_t a, std::int64_t b, std::int64_t c) {
  std::int64_t product = 0;
  if (!__builtin_mul_overflow(a, b, &product)) return product / c + (product % c != 0 ? 1 : 0);
  const unsigned __int128 wide =
      static_cast<unsigned __int128>(a) * static_cast<unsigned __int128>(b);
  const auto divisor = static_cast<unsigned __int128>(c);
  return Clamp((wide + divisor - 1) / divisor);
}

Parameters Parameters::From(const Limit& limit, Nanos wall_offset) {
  Parameters p;
  p.amount = limit.amount;
  p.period = limit.period;
  if (limit.shape == Shape::kBucket && limit.amount > 0) {
    p.step_or_anchor = MulDivCeil(1, limit.period, limit.amount);
    p.burst = limit.burst_or_amount();
    p.tolerance = p.Cost(p.burst);
  } else if (limit.shape == Shape::kFixed) {
    // The anchor is told on the wall clock and kept on the monotonic one.
    const Nanos monotonic = (limit.anchor.value_or(0) - wall_offset) % limit.period;
    p.step_or_anchor = monotonic < 0 ? monotonic + limit.period : monotonic;
  }
  return p;
}

Parameters Parameters::Closed() const {
  Parameters closed = *this;
  closed.tolerance = 0;
  closed.burst = 0;
  return closed;
}

}  // namespace headway
