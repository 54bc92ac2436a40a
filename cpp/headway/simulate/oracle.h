// headway/simulate/oracle.h: what each shape of limit admits, slowly and by its definition.
#ifndef HEADWAY_SIMULATE_ORACLE_H_
#define HEADWAY_SIMULATE_ORACLE_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

namespace headway::simulate {

// The oracles share no code with the core, not even its types: lists of what happened, replayed
// from the beginning for every question. Instants are nanoseconds.
using Instant = std::int64_t;
using Wide = __int128;
inline constexpr Instant kOracleNever = std::numeric_limits<Instant>::max();

// Continuous refill: a debt in time that is paid off as time passes, at most `burst` units of it.
//
// One unit costs `cost_numerator / cost_denominator` ns. Debts are kept in 2^-30 ns, so that what
// rounding there is (rates that are no whole number of ns a unit, changed limits) stays far below
// one. Amounts up to 2^40.
class BucketOracle {
 public:
  BucketOracle(std::int64_t cost_numerator, std::int64_t cost_denominator, std::int64_t burst)
      : cost_{cost_numerator, cost_denominator}, burst_(burst) {}

  // Something that happened; events come in the order of time.
  void Take(Instant at, std::int64_t units) { events_.push_back({at, Kind::kAdd, units, {}, 0}); }
  // Raises what is available, never above the burst.
  void GiveBack(Instant at, std::int64_t units) {
    events_.push_back({at, Kind::kAdd, -units, {}, 0});
  }
  // As much as a take of `units` cost under the price at which it was taken, for a provider whose
  // debts are shares of the limit: `numerator / denominator` ns.
  void GiveBackTime(Instant at, Wide numerator, Wide denominator) {
    events_.push_back({at, Kind::kAddTime, 0, {}, -numerator * kFine / denominator});
  }
  // The limit changes, and with it what is owed: the same units (absolute), or the same time times
  // `numerator / denominator` (proportional: the same share).
  void SetAbsolute(Instant at, std::int64_t cost_numerator, std::int64_t cost_denominator,
                   std::int64_t burst) {
    events_.push_back({at, Kind::kAbsolute, 0, {cost_numerator, cost_denominator}, 0});
    burst_ = burst;
  }
  void SetProportional(Instant at, std::int64_t cost_numerator, std::int64_t cost_denominator,
                       std::int64_t burst, std::int64_t numerator, std::int64_t denominator) {
    events_.push_back(
        {at, Kind::kAbsolute, 0, {cost_numerator, cost_denominator}, 0, {numerator, denominator}});
    burst_ = burst;
  }

  // When `units` fit if nothing else happens, from `now` on; and when they would, had `ahead` units
  // gone before them as soon as each fitted.
  Instant ReadyAt(Instant now, std::int64_t units, std::int64_t ahead = 0) const {
    if (units > burst_) return kOracleNever;
    const auto [debt, price] = Replay(now);
    const Wide over = debt + Time(price, ahead) + Time(price, units) - Time(price, burst_);
    if (over > kFar * kFine) return now + kFar;
    return over <= 0 ? now : now + static_cast<Instant>((over + kFine - 1) / kFine);
  }
  bool Fits(Instant now, std::int64_t units) const { return ReadyAt(now, units) == now; }

 private:
  static constexpr Wide kFine = Wide{1} << 30;
  static constexpr Instant kFar = Instant{1} << 61;  // beyond all clocks
  struct Price {
    std::int64_t numerator = 0;
    std::int64_t denominator = 1;
  };
  enum class Kind { kAdd, kAddTime, kAbsolute };
  struct Event {
    Instant at;
    Kind kind;
    std::int64_t units;
    Price price;
    Wide time;
    Price share = {0, 0};
  };

  static Wide Time(const Price& p, std::int64_t units) {
    return Wide{units} * p.numerator * kFine / p.denominator;
  }

  std::pair<Wide, Price> Replay(Instant now) const {
    Wide debt = 0;
    Price price = cost_;
    Instant last = events_.empty() ? now : events_.front().at;
    const auto pass = [&](Instant at) {
      debt = std::max<Wide>(0, debt - Wide{std::max<Instant>(0, at - last)} * kFine);
      last = std::max(last, at);
    };
    for (const Event& e : events_) {
      pass(e.at);
      if (e.kind == Kind::kAdd) debt = std::max<Wide>(0, debt + Time(price, e.units));
      if (e.kind == Kind::kAddTime) debt = std::max<Wide>(0, debt + e.time);
      if (e.kind == Kind::kAbsolute) {
        if (e.share.denominator != 0) {
          debt = debt * e.share.numerator / e.share.denominator;
        } else {
          // By halves, so that the product stays within 128 bits: units first, exact to 2^-30.
          const Wide units = debt * price.denominator / price.numerator;
          debt = units * e.price.numerator / e.price.denominator;
        }
        price = e.price;
      }
    }
    pass(now);
    return {debt, price};
  }

  Price cost_;
  std::int64_t burst_;
  std::vector<Event> events_;
};

// Never more than N in any window W, by a list of (instant, amount): the window that ends at t is
// (t - W, t].
class WindowOracle {
 public:
  WindowOracle(std::int64_t amount, Instant window) : amount_(amount), window_(window) {}

  void Add(Instant at, std::int64_t units) { list_.push_back({at, units}); }

  std::int64_t Used(Instant now) const {
    std::int64_t sum = 0;
    for (const Entry& e : list_)
      if (e.at > now - window_) sum += e.units;
    return sum;
  }

  Instant ReadyAt(Instant now, std::int64_t units) const {
    if (units > amount_) return kOracleNever;
    if (Used(now) + units <= amount_) return now;
    // Things change only where an entry leaves.
    Instant best = kOracleNever;
    for (const Entry& e : list_)
      if (e.at + window_ > now && Used(e.at + window_) + units <= amount_)
        best = std::min(best, e.at + window_);
    return best;
  }

  // The most that was ever in one window. Linear in the entries after sorting them.
  std::int64_t Most() const {
    std::vector<Entry> sorted = list_;
    std::sort(sorted.begin(), sorted.end(),
              [](const Entry& a, const Entry& b) { return a.at < b.at; });
    std::int64_t most = 0;
    std::int64_t sum = 0;
    std::size_t first = 0;
    for (const Entry& e : sorted) {
      sum += e.units;
      while (sorted[first].at <= e.at - window_) sum -= sorted[first++].units;
      most = std::max(most, sum);
    }
    return most;
  }

 private:
  struct Entry {
    Instant at;
    std::int64_t units;
  };
  std::int64_t amount_;
  Instant window_;
  std::vector<Entry> list_;
};

// At most N in each window that begins at the anchor plus a multiple of W: one sum a window.
class FixedOracle {
 public:
  FixedOracle(std::int64_t amount, Instant window, Instant anchor)
      : amount_(amount), window_(window), anchor_(anchor) {}

  void Add(Instant at, std::int64_t units) { sums_[Index(at)] += units; }
  Instant ReadyAt(Instant now, std::int64_t units) const {
    if (units > amount_) return kOracleNever;
    for (Instant k = Index(now);; ++k) {
      const auto found = sums_.find(k);
      if ((found == sums_.end() ? 0 : found->second) + units <= amount_)
        return std::max(now, anchor_ + k * window_);
    }
  }
  std::int64_t Most() const {
    std::int64_t most = 0;
    for (const auto& [index, sum] : sums_) most = std::max(most, sum);
    return most;
  }

 private:
  Instant Index(Instant at) const {
    const Instant since = at - anchor_;
    return since >= 0 ? since / window_ : -((-since + window_ - 1) / window_);
  }

  std::int64_t amount_;
  Instant window_;
  Instant anchor_;
  std::map<Instant, std::int64_t> sums_;
};

// At most N at once.
class ConcurrencyOracle {
 public:
  explicit ConcurrencyOracle(std::int64_t amount) : amount_(amount) {}
  bool Take(std::int64_t units) {
    if (count_ + units > amount_) return false;
    count_ += units;
    return true;
  }
  void GiveBack(std::int64_t units) { count_ -= units; }
  void SetLimit(std::int64_t amount) { amount_ = amount; }
  std::int64_t count() const { return count_; }

 private:
  std::int64_t amount_;
  std::int64_t count_ = 0;
};

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_ORACLE_H_
