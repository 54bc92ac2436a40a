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
//
// With a guard, a bucket that has been full for so long may be emptied at once, and then refills
// only after it; a bucket in between may be emptied no further than if the refill of the last
// `guard` were still to come. A debt below zero says for how long the bucket has been full.
class BucketOracle {
 public:
  BucketOracle(std::int64_t cost_numerator, std::int64_t cost_denominator, std::int64_t burst,
               Instant guard = 0)
      : cost_{cost_numerator, cost_denominator, guard}, burst_(burst) {}
  // By the core's rule: a sixteenth of what can be ahead beyond one unit, from 20 ms to 1 s.
  static Instant Guard(std::int64_t amount, Instant period, std::int64_t burst) {
    if (amount == 0) return 0;
    const Wide unit = (Wide{period} + amount - 1) / amount;
    const Wide all = unit >= 1'000 ? unit * burst : (Wide{period} * burst + amount - 1) / amount;
    const Wide guard = (all - unit) / 16;
    return guard < 20'000'000 ? 0 : static_cast<Instant>(std::min<Wide>(guard, 1'000'000'000));
  }

  // The debt before and after a take, to undo it.
  struct Receipt {
    Instant at = 0;
    Wide before = 0;
    Wide after = 0;
  };

  // Something that happened; events come in the order of time.
  Receipt Take(Instant at, std::int64_t units) {
    Receipt receipt{at, Replay(at).debt, 0};
    events_.push_back({at, Kind::kAdd, units, {}, 0});
    receipt.after = Replay(at).debt;
    return receipt;
  }
  // Raises what is available, never above the burst.
  void GiveBack(Instant at, std::int64_t units) {
    events_.push_back({at, Kind::kAdd, -units, {}, 0});
  }
  // As GiveBack; and where the debt is as if nothing had happened since that take, it then is as
  // long full as it was before it.
  void Cancel(Instant at, std::int64_t units, const Receipt& receipt) {
    if (Replay(at).debt == receipt.after - Wide{at - receipt.at} * kFine)
      events_.push_back({at, Kind::kAddTime, 0, {}, std::min<Wide>(0, receipt.before)});
    GiveBack(at, units);
  }
  // As much as a take of `units` cost under the price at which it was taken, for a provider whose
  // debts are shares of the limit: `numerator / denominator` ns.
  void GiveBackTime(Instant at, Wide numerator, Wide denominator) {
    events_.push_back({at, Kind::kAddTime, 0, {}, -numerator * kFine / denominator});
  }
  // The limit changes, and with it what is owed: the same units (absolute), or the same time times
  // `numerator / denominator` (proportional: the same share).
  void SetAbsolute(Instant at, std::int64_t cost_numerator, std::int64_t cost_denominator,
                   std::int64_t burst, Instant guard = 0) {
    events_.push_back({at, Kind::kAbsolute, 0, {cost_numerator, cost_denominator, guard}, 0});
    burst_ = burst;
  }
  void SetProportional(Instant at, std::int64_t cost_numerator, std::int64_t cost_denominator,
                       std::int64_t burst, std::int64_t numerator, std::int64_t denominator,
                       Instant guard = 0) {
    events_.push_back({at,
                       Kind::kAbsolute,
                       0,
                       {cost_numerator, cost_denominator, guard},
                       0,
                       {numerator, denominator}});
    burst_ = burst;
  }

  // When `units` fit if nothing else happens, from `now` on.
  Instant ReadyAt(Instant now, std::int64_t units) const {
    if (units > burst_) return kOracleNever;
    const auto [debt, price, began] = Replay(now);
    const Wide over = debt + Time(price, units) - Time(price, burst_);
    // How much of the refill may be still to come: none where the bucket has been full for long.
    const bool full = debt <= -Wide{price.guard} * kFine;
    const Instant late = full ? 0 : std::min(price.guard, std::max<Instant>(0, now - began));
    if (over <= -Wide{late} * kFine) return now;
    const Wide wait = over + Wide{price.guard} * kFine;
    if (wait > kFar * kFine) return now + kFar;
    return wait <= 0 ? now : now + static_cast<Instant>((wait + kFine - 1) / kFine);
  }
  bool Fits(Instant now, std::int64_t units) const { return ReadyAt(now, units) == now; }

 private:
  static constexpr Wide kFine = Wide{1} << 30;
  static constexpr Instant kFar = Instant{1} << 61;  // beyond all clocks
  struct Price {
    std::int64_t numerator = 0;
    std::int64_t denominator = 1;
    Instant guard = 0;
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

  struct State {
    Wide debt;
    Price price;
    Instant began;  // when something was last taken that found the bucket full for the guard
  };

  State Replay(Instant now) const {
    Wide debt = -kFar * kFine;
    Price price = cost_;
    Instant began = 0;
    Instant last = events_.empty() ? now : events_.front().at;
    const auto pass = [&](Instant at) {
      debt -= Wide{std::max<Instant>(0, at - last)} * kFine;
      last = std::max(last, at);
    };
    const auto touch = [&](Instant at) {
      if (debt <= -Wide{price.guard} * kFine) began = std::max(began, at);
      debt = std::max<Wide>(0, debt);
    };
    for (const Event& e : events_) {
      pass(e.at);
      if (e.kind == Kind::kAdd && e.units > 0) touch(e.at);
      if (e.kind == Kind::kAdd) debt += Time(price, e.units);
      if (e.kind == Kind::kAddTime) debt += e.time;
      if (e.kind == Kind::kAbsolute) {
        touch(e.at);
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
    return {debt, price, began};
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
