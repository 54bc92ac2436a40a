// headway/observe/inference.h: how a provider counts one limit, found out from what it says of it.
#ifndef HEADWAY_OBSERVE_INFERENCE_H_
#define HEADWAY_OBSERVE_INFERENCE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "headway/base/clock.h"
#include "headway/base/limit.h"
#include "headway/base/recent_most.h"

namespace headway {

// What one answer says of one limit.
struct Reading {
  std::uint8_t resource = 0;  // as the bucket numbers them
  std::uint8_t family = 0;    // one provider may state several limits of one resource
  // Units; kUnsaid where nothing is said, as is a limit of 0: no provider that admits anything
  // means that.
  static constexpr std::int64_t kUnsaid = -1;
  std::int64_t limit = kUnsaid;
  std::int64_t remaining = kUnsaid;
  std::int64_t rounding = 0;  // `remaining` may be off by so much either way
  // How long it takes until the limit is full again, or its window over; kNever: not said. Since
  // the call was counted, as what remains, as far as servers are known; since its answer, if it was
  // told as an instant.
  Nanos reset = kNever;
  bool dated = false;  // the reset was told as an instant...
  Nanos ago = 0;       // ... which is so long past, where the reset is 0...
  Nanos coarse = 0;    // ... and rounded up by less than that
  // What the provider's documentation, or the answer itself, says of how it counts.
  Nanos period = 0;               // 0: nothing
  Shape shape = Shape::kUnknown;  // kUnknown: nothing
  std::optional<Nanos> anchor;    // of a `fixed` limit, as Limit::anchor
};

// Shape, period and anchor of one limit, from readings of it.
//
// Three kinds of server say the same words. With `u` units used of a limit of N in W:
//
//   bucket  reset = u * W / N, the time until all is refilled;
//   fixed   reset = the end of the window, the same instant whatever is used meanwhile;
//   window  reset = W, or until the first call in it leaves.
//
// Each tells its reset as it counts the call, or as it answers it, which may be seconds later;
// which of the two shows where answers of one window take differently long. Until it does, what
// fits one of them is taken for that, all of it for the same; and an end is where it is if told as
// counted, as what remains is. An instant (Reading::dated) is the same whenever it is told.
//
// A limit counts as `window` of a minute until something else is shown, because all three kinds
// accept what a `window` admits. So a verdict of another kind has to be sure, and a reading that
// plainly speaks against it undoes it:
//
// - `bucket`: kReadings that fit it, and no window, over longer than the end of a `fixed` window
//   could fit by chance while time passes; or kApart of one burst, half of a small limit, whose
//   resets differ by more than that and than the time between them: what is used moves the end of
//   no window. None is shorter than a reset of late. Where so little is used, or the limit is so
//   small, that all kinds say the same, nothing is said.
// - `fixed`: kReadings with one common end, over as long; and that end is either on a whole hour of
//   UTC, where the period is an hour or more, or it comes again a period later, twice. An end that
//   is one period after calls of our own is what a `window` says, too, and no sign of anything;
//   unless calls are left out that a `window` would count: then, once is enough.
//
// Two resets longer than the period show a longer one: the shortest of the usual ones that holds
// them. A shorter one than a minute shows in a burst: where a third of the limit is used, and the
// end stays the same, it is no `bucket`, and a window that ends so soon is no longer than that, or
// it is a `fixed` one near its end. Both admit a whole burst after it. So that is believed, until a
// reset is longer, or more is used after the end than others can have used: then it was one of a
// minute, in which calls of others leave. Where others use it as well, their calls may be what
// leaves so soon, and calls of our own have to be seen to be gone. From an hour on a period does
// not become shorter.
//
// Not thread-safe.
class Inference {
 public:
  // What servers round to whole seconds, and how far clocks that tick apart may differ.
  static constexpr Nanos kSlack = 1'200 * kMillisecond;
  static constexpr int kReadings = 3;
  static constexpr Nanos kMinute = 60 * kSecond;
  static constexpr Nanos kHour = 3600 * kSecond;
  static constexpr Nanos kMonth = 31 * kDay;

  // Those that are used at all. What fits several is taken for the first of them.
  static constexpr std::array<Nanos, 13> kPeriods = {
      kMinute,     30 * kSecond, 20 * kSecond, 15 * kSecond, 10 * kSecond, 6 * kSecond, 5 * kSecond,
      3 * kSecond, 2 * kSecond,  kSecond,      kHour,        kDay,         kMonth};
  // The least of them that holds such a reset, which may be off by `slack`; 0: none does.
  static Nanos Holds(Nanos reset, Nanos slack);

  struct Verdict {
    Shape shape = Shape::kWindow;
    Nanos period = kMinute;
    Nanos anchor = 0;  // fixed: since the epoch
    friend bool operator==(const Verdict&, const Verdict&) = default;
  };

  // A reading, and when.
  struct Told {
    const Reading& reading;
    std::int64_t limit;  // units, more than 0
    Nanos sent;          // its request
    Nanos counted_by;    // by the server
    Nanos answered;
    Nanos wall_offset;     // see WallOffset
    std::int64_t own = 0;  // units of it are the call's own
    // It leaves calls of our own out that a `window` of the verdict's period would count.
    bool forgets = false;
    // More than half of the limit is used beyond what is ours within the verdict's period.
    bool crowded = false;
    // Calls of ours that a `window` of the verdict's period would count are gone after so long; 0:
    // none are known to be.
    Nanos gone_after = 0;
    bool refused = false;

    // How long it took from when it was counted, by what its server told: or by `latest_reset`, if
    // that told it as it answered.
    Nanos reset() const {
      return reading.dated ? std::max<Nanos>(0, answered - counted_by + since_answer())
                           : reading.reset;
    }
    Nanos latest_reset() const {
      return std::max<Nanos>(0, std::max<Nanos>(0, answered - sent) + since_answer());
    }
    Nanos since_answer() const { return reading.reset - reading.ago; }
    // Within this it was counted.
    Nanos way() const { return std::max<Nanos>(0, std::min(counted_by, answered) - sent); }
  };

  // Of another limit of the same provider a period of seconds is known, whose end is this one's,
  // too, or in which this one is refilled: so little of this one is used that it does not show.
  // Returns whether the verdict has changed.
  bool Follow(const Inference& other);
  // What was found out before, by whoever was here then; readings that speak against it undo it.
  void Recall(const Verdict& verdict) { Become(verdict, 1); }

  // Takes a reading in. Returns whether the verdict has changed. `own(from, to)`: whether calls of
  // our own may have begun between these instants.
  template <typename Own>
  bool Note(const Told& told, const Own& own) {
    const Verdict before = verdict_;
    NoteSaid(told.reading);
    if (told.limit != limit_) {
      for (Run& run : bucket_) run.ForgetUse();
      ends_.ForgetUse();
      burst_.ForgetUse();
      limit_ = told.limit;
    }
    if (told.reading.reset != kNever) {
      exact_ += told.reading.coarse == 0 && told.reading.reset % kSecond > kMillisecond ? 1 : 0;
      // A bucket that was lowered may owe for longer than it takes to be refilled.
      if (verdict_.shape != Shape::kBucket || told.reset() <= verdict_.period + kSlack)
        longest_.Note(told.sent, told.reset());
      if (!period_said_) NotePeriod(told);
      if (guesses_period()) JudgeGone(told);
      NoteBurst(told);
      if (!shape_said_) {
        NoteBucket(told);
        if (NoteEnd(told)) {
          const Nanos from = end_.counted.from - verdict_.period - kSlack;
          const Nanos by = end_.answered.by - verdict_.period + kSlack;
          explained_ = explained_ || own(from, by);
        }
        explained_ = explained_ && !told.forgets;
        if (!period_said_) JudgeShort(told);
        JudgeEnds(told);
      }
    }
    return verdict_ != before;
  }

  const Verdict& verdict() const { return verdict_; }
  // Whether its period is a minute at most, and of that only a guess.
  bool guesses_period() const {
    return !period_said_ && !shape_said_ && verdict_.shape == Shape::kWindow &&
           verdict_.period <= kMinute;
  }
  // How many readings speak for it.
  int readings() const { return readings_; }

 private:
  // How long it is not believed in a shorter period again that was wrong once.
  static constexpr Nanos kDoubts = 600 * kSecond;

  // Between two calls of one burst.
  static constexpr Nanos kBurst = kSecond / 8;

  // So many that rise with what is used make a bucket. Of so many units, half of a limit that is
  // not of a few, each of the usual periods would say something else of one more: the next differ
  // by a fifth.
  static constexpr std::int64_t kApart = 12;

  struct Span {
    Nanos from = 0;
    Nanos by = 0;
    void Hold(Nanos at) {
      from = std::min(from, at);
      by = std::max(by, at);
    }
    // Whether both have an instant in common, or would if the other came so much later. None has
    // where it was cut by one that it is not.
    bool Meets(const Span& other, Nanos later = 0) const {
      return from <= by && other.from <= other.by && from <= other.by + later &&
             other.from + later <= by;
    }
    // Both, where they overlap.
    void Cut(const Span& other) {
      from = std::max(from, other.from);
      by = std::min(by, other.by);
    }
  };
  // When a window ends, on the monotonic clock, by whether its server says how long that takes as
  // it counts the call or as it answers.
  struct End {
    Span counted;
    Span answered;
    static End Of(const Told& told, Nanos slack);
  };
  // Whether they are the same, or `one` comes so much later. Of what may be either, both are to be
  // the same way, and which that is may not be known yet.
  bool Same(const End& one, const End& other, Nanos later = 0) const;
  void VoteLate(int more) { told_late_ = std::clamp(told_late_ + more, -2 * kSure, 2 * kSure); }
  const Span& Likely(const End& end) const {
    return told_late_ >= kSure ? end.answered : end.counted;
  }
  // Readings that fit a hypothesis one after another: how many, and over what time.
  struct Run {
    int count = 0;
    Nanos first = 0;  // when the first of them was sent
    Nanos last = 0;
    Nanos answered = 0;  // when the last of their answers came
    Nanos longest = 0;   // of their resets
    std::int64_t least_used = std::numeric_limits<std::int64_t>::max();
    std::int64_t most_used = 0;
    // Those of the least and the most that are used: of one burst, the first and the last that the
    // server counted, in whatever order they were answered.
    Nanos reset_at_least = 0;
    Nanos reset_at_most = 0;
    std::int64_t least_foreign =
        std::numeric_limits<std::int64_t>::max();  // beyond the call itself
    // Of a bucket's: those of the latest burst that fit it, whatever else they would fit.
    int fitting = 0;
    Nanos fits_from = kNever;  // when the first of them was sent
    Nanos fits_to = 0;
    Span resets{kNever, 0};           // the least and the most, as counted...
    Span answered_resets{kNever, 0};  // ... and as answered
    // And whether all of them may have been told as their calls were counted, or were answered.
    bool told_counted = true;
    bool told_answered = true;
    void Add(const Told& told);
    void Fit(const Told& told);
    // The limit has changed, and what was used was of another.
    void ForgetUse() {
      least_used = least_foreign = std::numeric_limits<std::int64_t>::max();
      most_used = 0;
      reset_at_least = reset_at_most = 0;
    }
    // Whether they are enough, where time explains so much.
    bool Convinces(Nanos off) const { return count >= kReadings && last - first > off; }
    // Whether the resets of those that fit, of so many at least, differ by more than time explains.
    bool Spreads(Nanos off, std::int64_t least) const {
      const Nanos time = fits_to - fits_from + off;
      return fitting >= least && (!told_counted || resets.by - resets.from > time) &&
             (!told_answered || answered_resets.by - answered_resets.from > time);
    }
  };

  void NoteSaid(const Reading& reading);
  void NotePeriod(const Told& told);
  void JudgeShort(const Told& told);
  void JudgeGone(const Told& told);
  void NoteBucket(const Told& told);
  // The readings that fit a bucket of one of `kPeriods`; null: it is none.
  const Run* BucketRun(Nanos period) const;
  void NoteBurst(const Told& told);
  // Returns whether a window has begun.
  bool NoteEnd(const Told& told);
  void JudgeEnds(const Told& told);
  void Become(const Verdict& verdict, int readings);

  Verdict verdict_;
  std::int64_t limit_ = 0;  // of the latest reading
  int readings_ = 0;
  int exact_ = 0;  // resets that were no whole seconds
  bool Exact(const Reading& reading) const { return exact_ > 1 && reading.coarse == 0; }
  Nanos doubted_ = -kDoubts;  // when a shorter period was found to be wrong
  RecentMost longest_;        // reset
  // No window of late is shorter than that.
  Nanos LongestOfLate() const { return Holds(longest_.most(), kMillisecond); }
  int longer_ = 0;  // resets one after another that were longer than the period
  bool period_said_ = false;
  bool shape_said_ = false;
  std::array<Run, kPeriods.size()> bucket_{};  // by period; of one that was said, the first
  Run burst_;                                  // the latest
  // The readings with a common end, which lies within `end_` on the monotonic clock; and how many
  // ends before it, one period apart, came as these do.
  Run ends_;
  End end_;
  // More shows that resets are told as calls are answered, than as they are counted; from kSure on
  // they are taken for that, at -kSure for the other.
  static constexpr int kSure = 2;
  int told_late_ = 0;
  Nanos ends_slack_ = 0;
  static constexpr int kRepeats = 2;
  int repeats_ = 0;
  bool explained_ = false;  // by calls of our own, one period before
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_INFERENCE_H_
