// headway/bucket/history.h: how much a bucket had admitted by an instant of the past.
#ifndef HEADWAY_BUCKET_HISTORY_H_
#define HEADWAY_BUCKET_HISTORY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "absl/types/span.h"
#include "headway/base/cache_line.h"
#include "headway/base/clock.h"
#include "headway/base/pause.h"

namespace headway {

// Running totals of what calls have taken, by resource, and marks of what they were at instants of
// the past: an answer tells what the server had counted when it counted *that* request, so whoever
// reads it has to know what of ours came after.
//
// The marks get sparser with their age: no two are closer than kGrain, or than 1/kPerAge of their
// age. So a bound is off by what was admitted within that time, and kMost of them reach back for
// more than a day. What began between two marks did so within kGrain of the earlier one, or there
// would be another: so a burst counts as begun soon after its first call, however long nobody
// follows.
//
// Thread-safe. What calls do is lock-free: whoever finds another thread at the marks leaves them
// alone, and what is missing makes bounds looser, never wrong. Amounts are in units of the
// resource.
class History {
 public:
  static constexpr Nanos kGrain = 10 * kMillisecond;
  static constexpr Nanos kPerAge = 128;
  static constexpr std::size_t kMost = 1'536;

  // Resources are numbered from 0 to `resources` - 1; at most 32 of them.
  explicit History(std::size_t resources)
      : resources_(resources), totals_(resources), unbegun_(resources) {}

  // A call is about to be admitted that will take `amount`. Once it is among the totals and the
  // marks, or it was not admitted after all, that is taken back.
  void Expect(std::size_t resource, std::int64_t amount) { unbegun_[resource].fetch_add(amount); }
  // A call that has begun takes more than was known. No mark says since when.
  void AdmitMore(std::size_t resource, std::int64_t amount) {
    missed_.fetch_or(Bit(resource));
    totals_[resource].fetch_add(amount);
    missed_.fetch_or(Bit(resource));  // a mark that was made in between holds none of it
  }
  // A call that begins takes `amount`. Returns the total with it.
  std::int64_t Admit(std::size_t resource, std::int64_t amount) {
    return totals_[resource].fetch_add(amount) + amount;
  }
  // A call has begun at `now`, and `own`, by resource, is what it has taken (or nothing is said of
  // that): what there is by then is remembered, if that is worth it.
  void Mark(Nanos now, absl::Span<const std::int64_t> own = {}) {
    if (IsDue(now)) MakeMark(now, own);
  }
  bool IsDue(Nanos now) const {
    const Nanos since = now - marked_.load(std::memory_order_relaxed);
    return since >= kGrain || since < 0;
  }

  // All that has begun by now.
  std::int64_t Total(std::size_t resource) const { return totals_[resource].load(); }
  // At most so much is admitted by now that had not begun for certain by `at`: whoever waited is
  // admitted, by another thread, some time before he begins. Memory ordering: what has not begun is
  // read first, so that nobody is missed who begins meanwhile.
  std::int64_t AdmittedSince(std::size_t resource, Nanos at) const {
    const std::int64_t unbegun = unbegun_[resource].load();
    HEADWAY_PAUSE();
    return unbegun + Total(resource) - AtLeast(resource, at);
  }
  // By when all that is admitted by now has begun, at the latest; `now` where that is not known.
  Nanos BegunBy(std::size_t resource, Nanos now) const {
    const Nanos by = marked_.load(std::memory_order_relaxed) + kGrain;
    return by < now && AdmittedSince(resource, by) == 0 ? by : now;
  }
  // At most, and at least, so much had begun by `at`.
  std::int64_t AtMost(std::size_t resource, Nanos at) const;
  std::int64_t AtLeast(std::size_t resource, Nanos at) const;
  // At most so much has begun from `from` to `to`.
  std::int64_t MostBetween(std::size_t resource, Nanos from, Nanos to) const {
    return AtMost(resource, to) - AtLeast(resource, from);
  }
  // What has begun since `from`: at least, and short of it by no more than what began within the
  // distance of two marks.
  std::int64_t Since(std::size_t resource, Nanos from) const;
  // What would be owed at `now` to a bucket into which `amount` flows back in each `period`, had
  // nobody else taken of it. What began between two marks counts from the earlier one: it began
  // just after that, or there would be a mark in between.
  std::int64_t Owed(std::size_t resource, std::int64_t amount, Nanos period, Nanos now) const;

 private:
  static std::uint32_t Bit(std::size_t resource) { return std::uint32_t{1} << resource; }
  void MakeMark(Nanos now, absl::Span<const std::int64_t> own);
  std::int64_t SurelyBegun(std::size_t resource) const;
  void Thin(Nanos now);

  const std::size_t resources_;
  LineWords totals_;   // written by who begins
  LineWords unbegun_;  // and these by who admits as well
  // Of which resources somebody has taken some and left no mark, since the latest one, for want of
  // the lock or because it was known later: a bit each.
  std::atomic<std::uint32_t> missed_{0};
  // When the latest mark was made. A clock's zero is long past.
  std::atomic<Nanos> marked_{-kDay};
  mutable std::mutex mutex_;
  bool whole_ = true;               // no mark has been dropped for want of room
  std::vector<Nanos> at_;           // of each mark, rising
  std::vector<std::int64_t> then_;  // resources_ totals for each mark
  std::vector<std::int64_t> own_;   // what of each was taken by the call that made the mark
  // What of each had begun, at least, kGrain after the mark before.
  std::vector<std::int64_t> before_;
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_HISTORY_H_
