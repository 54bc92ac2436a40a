// headway/observe/inference.cc: which kind of server says such things.
#include "headway/observe/inference.h"

#include <algorithm>

#include "headway/meter/parameters.h"

namespace headway {
namespace {

// An anchor that is late by less than such a part of the period stays as it is.
constexpr Nanos kCoarse = 128;

// How far resets that are no whole seconds may be off.
constexpr Nanos kExact = 2 * kMillisecond;

// How long after the latest multiple of `grid`, before 0 as well.
Nanos Phase(Nanos at, Nanos grid) {
  const Nanos phase = at % grid;
  return phase < 0 ? phase + grid : phase;
}

// Whether there is a multiple of `grid` between the two.
bool HoldsMultiple(Nanos from, Nanos to, Nanos grid) { return to - Phase(to, grid) >= from; }

}  // namespace

Nanos Inference::Holds(Nanos reset, Nanos slack) {
  Nanos least = 0;
  for (const Nanos period : kPeriods)
    if (period + slack >= reset && (least == 0 || period < least)) least = period;
  return least;
}

void Inference::Run::Add(const Told& told) {
  const Nanos sent = told.sent;
  const Nanos reset = told.reset();
  if (told.reading.remaining >= 0 && told.reading.remaining <= told.limit) {
    const std::int64_t used = told.limit - told.reading.remaining;
    if (used < least_used || (used == least_used && reset > reset_at_least)) reset_at_least = reset;
    if (used >= most_used) reset_at_most = reset;
    least_used = std::min(least_used, used);
    most_used = std::max(most_used, used);
    least_foreign = std::min(least_foreign, used - told.reading.rounding - told.own);
  }
  longest = std::max(longest, reset);
  first = count == 0 ? sent : std::min(first, sent);
  last = count == 0 ? sent : std::max(last, sent);
  answered = count == 0 ? told.answered : std::max(answered, told.answered);
  ++count;
}

void Inference::Run::Fit(const Told& told) {
  if (told.sent - fits_to > kBurst) {
    fitting = 0;
    fits_from = kNever;
    fits_to = 0;
    resets = answered_resets = {kNever, 0};
  }
  fits_from = std::min(fits_from, told.sent);
  fits_to = std::max(fits_to, told.sent);
  resets.Hold(told.reset());
  answered_resets.Hold(told.latest_reset());
  ++fitting;
}

void Inference::Become(const Verdict& verdict, int readings) {
  if (verdict == verdict_) {
    readings_ = std::max(readings_, readings);
    return;
  }
  verdict_ = verdict;
  readings_ = readings;
}

void Inference::NoteSaid(const Reading& reading) {
  if (reading.period > 0 && (!period_said_ || verdict_.period != reading.period)) {
    period_said_ = true;
    Become({verdict_.shape, reading.period, verdict_.anchor}, 0);
  }
  if (reading.shape != Shape::kUnknown && (!shape_said_ || verdict_.shape != reading.shape ||
                                           reading.anchor.value_or(0) != verdict_.anchor)) {
    shape_said_ = true;
    Become({reading.shape, verdict_.period, reading.anchor.value_or(0)}, 0);
  }
}

void Inference::NotePeriod(const Told& told) {
  const Nanos reset = told.reset();
  const bool is_short = verdict_.period < kMinute;
  // Where resets are no whole seconds, periods of a few can be told from each other.
  const bool exact = is_short && exact_ > 1;
  const Nanos off = exact ? kMillisecond : std::min(kSlack, verdict_.period / 8);
  const Nanos slack = std::max(off, told.reading.coarse);
  const bool wrong = is_short && told.crowded && verdict_.shape != Shape::kBucket;
  // After its limit was lowered, a bucket may owe for longer than it takes to be refilled.
  if (!wrong && (reset <= verdict_.period + slack || verdict_.shape == Shape::kBucket)) {
    longer_ = 0;
    return;
  }
  if (++longer_ < 2 && !is_short) return;
  longer_ = 0;
  const Nanos period = wrong ? kMinute : Holds(reset, slack);
  if (period == 0) return;
  if (wrong) doubted_ = told.sent;
  ends_ = {};
  repeats_ = 0;
  Become({Shape::kWindow, period, 0}, 1);
}

void Inference::JudgeShort(const Told& told) {
  if (verdict_.shape != Shape::kWindow || verdict_.period != kMinute) return;
  // Of a limit of few units those of a bucket soon have no end in common.
  const bool few = exact_ > 1 && told.limit < 2 * kApart;
  const Run& run = few && burst_.count > ends_.count ? burst_ : ends_;
  // Where others had used any of it before, it may be they who leave so soon.
  if (run.least_foreign > 0) return;
  // A burst that meets the end of a window is in two of them, and answers come in any order.
  const std::int64_t spread = run.most_used - run.least_used + 1;
  if (run.count < kReadings || 3 * spread < told.limit) return;
  if (told.sent - doubted_ < kDoubts) return;
  Nanos least = run.longest;
  // What ends the later the more of it is used, as no window does, is a bucket, which answers that
  // take seconds hide. Of more than a few units it is known by them soon; of a few, all of it is
  // refilled in as much more as there is more of it.
  const Nanos rise = run.reset_at_most - run.reset_at_least;
  if (exact_ > 1 && spread > 1 && rise > run.longest / 8) {
    if (!few) return;
    least = std::max({least, MulDivFloor(run.reset_at_most, told.limit, run.most_used),
                      MulDivFloor(rise, told.limit, spread)});
  }
  const Nanos period = Holds(least, kMillisecond);
  if (period == 0 || period >= kMinute) return;
  Become({Shape::kWindow, period, 0}, run.count);
}

// Its members are gone after the period, or at the end of a `fixed` one, which is no sooner than
// the longest reset.
void Inference::JudgeGone(const Told& told) {
  if (told.gone_after == 0 || told.sent - doubted_ < kDoubts) return;
  Nanos period = LongestOfLate();
  for (const Nanos each : kPeriods)
    if (each < kMinute && each <= told.gone_after) period = std::max(period, each);
  if (period == 0 || period >= verdict_.period) return;
  ends_ = {};
  repeats_ = 0;
  Become({Shape::kWindow, period, 0}, 1);
}

bool Inference::Follow(const Inference& other) {
  if (period_said_ || shape_said_ || verdict_ != Verdict{} || other.verdict_.period >= kMinute)
    return false;
  if (other.verdict_.shape == Shape::kBucket) {
    // What fits a short period by chance fits none that another limit of the same answers has.
    const Run* const run = BucketRun(other.verdict_.period);
    if (run == nullptr || run->count < kReadings || other.readings_ < kReadings) return false;
    Become({Shape::kBucket, other.verdict_.period, 0}, run->count);
    return true;
  }
  if (ends_.least_foreign > 0) return false;
  if (ends_.count < kReadings || other.ends_.count < kReadings) return false;
  if (!Same(end_, other.end_)) return false;
  if (ends_.longest > other.verdict_.period + kMillisecond || ends_.last - doubted_ < kDoubts)
    return false;
  Become({Shape::kWindow, other.verdict_.period, 0}, ends_.count);
  return true;
}

const Inference::Run* Inference::BucketRun(Nanos period) const {
  const auto* const found = std::find(kPeriods.begin(), kPeriods.end(), period);
  if (found == kPeriods.end()) return nullptr;
  return &bucket_[static_cast<std::size_t>(found - kPeriods.begin())];
}

void Inference::NoteBucket(const Told& told) {
  const Reading& reading = told.reading;
  if (reading.remaining < 0 || reading.remaining > told.limit) return;
  const std::int64_t used = told.limit - reading.remaining;
  // A few fit by chance, unless they say of a minute and more what is far apart.
  const std::int64_t many = std::clamp<std::int64_t>(told.limit / 2, kReadings, kApart);
  const Run* found = nullptr;
  Nanos found_period = 0;
  for (std::size_t i = 0; i < kPeriods.size(); ++i) {
    const Nanos period = period_said_ ? verdict_.period : kPeriods[i];
    // Whole seconds say little of a short one.
    const Nanos slack = period < kMinute && Exact(reading) ? kSlack / 8 : kSlack;
    const Nanos from = told.reset() - slack;
    const Nanos by = told.latest_reset() + slack;
    // A longer one than need be fits by chance, where little is used.
    if (period > kMinute && !period_said_ && verdict_.period == kMinute) break;
    // Until all is refilled. With nothing left, more may be owed than the limit: it was lowered.
    // Servers round parts of a unit as they like.
    const std::int64_t rounding = reading.rounding + 1;
    const Nanos least = MulDivFloor(std::max<std::int64_t>(0, used - rounding), period, told.limit);
    const Nanos most = MulDivCeil(used + rounding, period, told.limit);
    const Span full{least, most};
    Run& run = bucket_[i];
    const bool judged = verdict_.shape == Shape::kBucket && verdict_.period == period;
    const bool owes_more = judged && reading.remaining == 0 && from > period;
    if (!owes_more) {
      const Nanos wide = told.way() + 2 * slack;
      run.told_counted = run.told_counted && full.Meets({from, from + wide});
      run.told_answered = run.told_answered && full.Meets({by - wide, by});
    }
    if (!run.told_counted && !run.told_answered) {
      run = {};
      if (judged && !full.Meets({from - slack, by + slack}))
        Become({Shape::kWindow,
                period_said_ || period >= kMinute ? period : std::max(period, LongestOfLate()), 0},
               1);
    } else if (most - least <= period / 8 && !owes_more) {
      run.Fit(told);
      if (least > 2 * slack && (period < from || by < period)) {
        run.Add(told);
        if (judged) Become(verdict_, run.count);
      }
      // What time explains, whatever kind it is, and some more, for one of another period that is
      // answered late fits over a while.
      const Nanos off = told.way() + most - least + 2 * slack;
      const Nanos more = kSecond / 2;
      // What fits a short one as time passes may do so by chance; and a longer one than is known,
      // until a reset is longer, too.
      const bool longer = verdict_.shape != Shape::kBucket && verdict_.period < period;
      // None owes for longer than that.
      const bool holds = period + slack >= longest_.most();
      const bool known = (period >= kMinute && !longer && run.Convinces(off + more)) ||
                         (period >= kMinute && run.Spreads(period / 4 + off, kReadings)) ||
                         run.Spreads(exact_ > 1 ? off + more / 2 : off + more, many);
      if (found == nullptr && holds && known) {
        found = &run;
        found_period = period;
      }
    }
    if (period_said_) break;
  }
  if (found != nullptr) Become({Shape::kBucket, found_period, 0}, found->count);
}

Inference::End Inference::End::Of(const Told& told, Nanos slack) {
  const Nanos way = told.way();
  const Nanos counted = told.sent + told.reset();
  const Nanos answered = told.answered + told.since_answer();
  return {{counted - slack, counted + way + slack}, {answered - way - slack, answered + slack}};
}

bool Inference::Same(const End& one, const End& other, Nanos later) const {
  return (told_late_ < kSure && one.counted.Meets(other.counted, later)) ||
         (told_late_ > -kSure && one.answered.Meets(other.answered, later));
}

void Inference::NoteBurst(const Told& told) {
  if (told.sent + kBurst < burst_.first) return;
  if (told.sent > burst_.last + kBurst) burst_ = {};
  burst_.Add(told);
}

bool Inference::NoteEnd(const Told& told) {
  // Where resets are no whole seconds, short periods can be told from each other.
  const Nanos slack = Exact(told.reading) ? std::min(kSlack, verdict_.period / 32) : kSlack;
  const End end = End::Of(told, slack);
  ends_slack_ = slack;
  // Which of the two it is shows where only one of them goes on.
  const bool counted = end.counted.Meets(end_.counted);
  if (ends_.count > 0 && counted != end.answered.Meets(end_.answered)) VoteLate(counted ? -1 : 1);
  if (ends_.count > 0 && Same(end, end_)) {
    ends_.Add(told);
    end_.counted.Cut(end.counted);
    end_.answered.Cut(end.answered);
    return false;
  }
  // A burst may meet the end of a window. What was on its way together is counted in any order.
  if (ends_.count > 0 && told.sent <= ends_.answered && Likely(end).by < Likely(end_).from)
    return false;
  const Nanos period = verdict_.period;
  const bool again = ends_.count > 0 && Same(end, end_, period);
  const bool counts =
      again && 4 * slack <= period && ends_.count >= kReadings && (!explained_ || told.forgets);
  repeats_ = counts ? repeats_ + 1 : 0;
  if (counts && told.forgets) repeats_ = kRepeats;
  const Nanos anchor = verdict_.anchor - told.wall_offset;
  if (verdict_.shape == Shape::kFixed &&
      !HoldsMultiple(Likely(end).from - anchor, Likely(end).by - anchor, period))
    Become({Shape::kWindow, period, 0}, 1);
  ends_ = {};
  ends_.Add(told);
  end_ = end;
  explained_ = false;
  return true;
}

void Inference::JudgeEnds(const Told& told) {
  const bool fixed = verdict_.shape == Shape::kFixed;
  if (verdict_.shape == Shape::kBucket || (explained_ && !fixed)) return;
  const Nanos latency = std::max<Nanos>(0, told.answered - told.sent);
  const Nanos from = Likely(end_).from + told.wall_offset;
  const Nanos by = Likely(end_).by + told.wall_offset;
  // A burst that comes before the window has begun is refused, and one that comes later loses
  // nothing; so the latest instant that fits.
  const Nanos latest = std::max(from, by - ends_slack_);
  const bool on_the_hour = ends_.Convinces(2 * kSlack + kSecond / 2 + latency) &&
                           verdict_.period >= kHour && HoldsMultiple(from, by, kHour);
  if (fixed) {
    // It ends no sooner than any call of it tells, counted from when that was sent, whenever it was
    // told. Whoever is refused because it was thought to end sooner was told late, or it is no such
    // window at all.
    const Nanos least = told.sent + told.reset() + told.wall_offset;
    const Nanos later = Phase(least - verdict_.anchor, verdict_.period);
    const bool exact = Exact(told.reading) && latency < ends_slack_;
    if (told.refused && exact && later > kExact && later < verdict_.period / 2) {
      VoteLate(kSure);
      repeats_ = 0;
      return Become({Shape::kWindow, verdict_.period, 0}, 1);
    }
    if (on_the_hour || repeats_ >= kRepeats) readings_ = std::max(readings_, ends_.count);
    // What is sent between the beginning and where it is thought to be counts twice, in the end. So
    // it is moved as answers tell that it is earlier; never back.
    const Nanos earlier = Phase(verdict_.anchor - latest, verdict_.period);
    if (earlier >= verdict_.period / kCoarse && earlier < verdict_.period / 2)
      Become({Shape::kFixed, verdict_.period, latest}, ends_.count);
    return;
  }
  if (!on_the_hour && repeats_ < kRepeats) return;
  const Nanos middle = from + (by - from) / 2;
  const Nanos hour = (middle + kHour / 2) / kHour * kHour;
  Become({Shape::kFixed, verdict_.period, on_the_hour ? hour : latest}, ends_.count);
}

}  // namespace headway
