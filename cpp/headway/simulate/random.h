// headway/simulate/random.h: seeded randomness for tests, with the seed in every failure.
#ifndef HEADWAY_SIMULATE_RANDOM_H_
#define HEADWAY_SIMULATE_RANDOM_H_

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

#include "headway/base/limit.h"

namespace headway::simulate {

// A source of random choices. Every run takes other seeds unless HEADWAY_SEED names one; a test
// puts `seed()` into a SCOPED_TRACE, so that a failure can be repeated.
class Random {
 public:
  explicit Random(std::uint64_t seed) : seed_(seed), engine_(seed) {}

  // The seed of a test's `run`th round.
  static std::uint64_t Seed(std::uint64_t run) {
    static const std::uint64_t base = [] {
      if (const char* given = std::getenv("HEADWAY_SEED"); given != nullptr)
        return static_cast<std::uint64_t>(std::strtoull(given, nullptr, 10));
      return static_cast<std::uint64_t>(std::random_device{}());
    }();
    return base + run;
  }

  std::uint64_t seed() const { return seed_; }
  std::string Describe() const {
    return "HEADWAY_SEED=" + std::to_string(seed_) + " repeats this as run 0";
  }

  // From `low` to `high`, both included.
  std::int64_t From(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool OneIn(std::int64_t n) { return From(1, n) == 1; }
  // Evenly over the magnitudes from 1 to 2^bits, so that small numbers are as frequent as large
  // ones.
  std::int64_t Magnitude(int bits) {
    const std::int64_t top = std::int64_t{1} << From(0, bits);
    return From((top + 1) / 2, top);
  }

  // `text` with so many bytes, at most, gone or become others.
  std::string Damage(std::string text, std::int64_t bytes) {
    for (; bytes > 0 && !text.empty(); --bytes) {
      const auto at = static_cast<std::size_t>(From(0, static_cast<std::int64_t>(text.size()) - 1));
      if (OneIn(3)) {
        text.erase(at, 1);
      } else {
        text[at] = static_cast<char>(From(-128, 127));
      }
    }
    return text;
  }

  std::mt19937_64& engine() { return engine_; }

 private:
  std::uint64_t seed_;
  std::mt19937_64 engine_;
};

// A limit of `shape` with any amount from 1 to 2^bits and any period from 1 ms to 31 days.
inline Limit AnyLimit(Random& random, Shape shape, int bits = 53) {
  for (;;) {
    Limit limit;
    limit.resource = shape == Shape::kConcurrency ? "concurrency" : "requests";
    limit.shape = shape;
    limit.amount = random.Magnitude(bits);
    if (shape != Shape::kConcurrency)
      limit.period = random.OneIn(4)
                         ? Limit::kMinPeriod
                         : std::min(Limit::kMaxPeriod, kMillisecond * random.Magnitude(32));
    if (shape == Shape::kBucket && random.OneIn(2)) limit.burst = random.Magnitude(bits);
    if (shape == Shape::kFixed && random.OneIn(2)) limit.anchor = random.From(-kDay, kDay);
    // A burst that takes years to refill is refused; take another.
    if (absl::StatusOr<Limit> made = Limit::Make(limit); made.ok()) return *made;
  }
}

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_RANDOM_H_
