// headway/observe/learner.cc: from readings to meters.
#include "headway/observe/learner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/string_view.h"
#include "headway/base/pause.h"

namespace headway {
namespace {

// A request may be counted before others that were sent up to so much earlier: those of which
// nobody knows when they left wait for each other in the client.
constexpr Nanos kOvertakesMarked = 100 * kMillisecond;
constexpr Nanos kOvertakes = 500 * kMillisecond;
Nanos Overtakes(const AnsweredCall& of) { return of.timed ? kOvertakesMarked : kOvertakes; }
// A burst has somebody go ahead of it where nothing could be sent for such a part of the period...
constexpr Nanos kLooks = 16;
// ... and waits for the answer for such a part of a window, or so long after a fixed one has begun.
constexpr Nanos kPatience = 256;
constexpr Nanos kLongestLook = 10 * kSecond;
// After a refusal that nothing explains, one goes ahead, too: it waits for its answer twice as long
// as the slowest of late took, within these.
constexpr Nanos kShortestLook = 100 * kMillisecond;
constexpr Nanos kLongestSilentLook = 2 * kSecond;
// Who has used some of a window may do so again within so many periods; later he is gone, or has
// never been: what was sent before a limit was known can be taken for others'.
constexpr Nanos kOthersLast = 5;
// What is refused within such a time is remembered as one, and so many of those.
constexpr Nanos kRefusedTogether = 20 * kMillisecond;
constexpr std::size_t kMostRefused = 64;
// What a refusal tells to wait, at least, where others have used it up.
constexpr Nanos kShortestWait = kSecond;
// Each look that is refused doubles the wait for the next, so often.
constexpr int kMostDoubled = 7;
// After a refusal that nothing explains, somewhat more go where no answer comes for so long.
constexpr Nanos kOpens = 5 * kSecond;
// Where so many at once are counted, a wait is a guess, of a second mostly.
constexpr Nanos kLongWait = 2 * kSecond;
// A second of the slowest answer's delay, and of the quickest one's, is forgotten in so many.
constexpr Nanos kForgets = 32;

constexpr absl::string_view kRequests = "requests";
constexpr absl::string_view kConcurrency = "concurrency";

}  // namespace

AnsweredCall AnsweredCall::Of(const Reservation& reservation, Nanos now) {
  AnsweredCall call;
  call.began = reservation.began_at();
  call.sent = reservation.sent_at() == kNever ? call.began : reservation.sent_at();
  call.answered = now;
  call.timed = reservation.counted_by() != kNever;
  call.ahead = reservation.alone();
  call.out_before = reservation.out_before();
  call.out_now = reservation.out_now();
  call.others_unanswered = reservation.others_unanswered();
  call.counted_by = std::min(now, reservation.counted_by());
  for (int i = 0; i < reservation.size(); ++i) call.taken.push_back(reservation.taken(i));
  return call;
}

Learner::Learner(Bucket* bucket, std::vector<std::string> names, Options options)
    : bucket_(bucket), names_(std::move(names)), options_(options) {
  for (int i = 0; i < bucket->size(); ++i)
    given_.push_back(bucket_->meter(i).parameters().amount < Limit::kMaxAmount);
}

// What part of a stated limit is used; 1 at least.
std::int64_t Learner::Used(std::int64_t limit) const {
  const double part = std::floor(static_cast<double>(limit) * options_.ratio + 1e-9);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(part), 1, Limit::kMaxAmount - 1);
}

Learner::Track* Learner::Known(const Reading& reading) {
  for (Track& track : tracks_)
    if (track.resource == reading.resource && track.family == reading.family) return &track;
  return nullptr;
}

Learner::Track& Learner::Find(const Reading& reading) {
  if (Track* const known = Known(reading); known != nullptr) return *known;
  Track track;
  track.resource = reading.resource;
  track.family = reading.family;
  const Nanos period = reading.period > 0 ? reading.period : Inference::kMinute;
  for (int i = 0; i < static_cast<int>(given_.size()); ++i) {
    if (bucket_->resource(i) != reading.resource) continue;
    const Meter& meter = bucket_->meter(i);
    track.shared = track.shared || meter.shape() == Shape::kCredit;
    if (meter.shape() == Shape::kConcurrency || meter.shape() == Shape::kCredit) continue;
    const Parameters p = meter.parameters();
    const bool given = given_[static_cast<std::size_t>(i)];
    const bool kept = std::any_of(tracks_.begin(), tracks_.end(),
                                  [i](const Track& other) { return other.meter == i; });
    // Given limits win, resource by resource; a reading is about the one of its period. One that
    // does not say its period is about a minute, or else the one of its amount.
    const bool amounts = reading.period <= 0 && track.meter < 0 && meter.has_cells() &&
                         Used(reading.limit) == p.amount;
    if (given && p.period != period && !amounts) {
      track.given = true;
      continue;
    }
    // One that was learnt from elsewhere goes on as what this finds.
    if (!given && (track.given || kept || p.amount >= Limit::kMaxAmount)) continue;
    track.given = given;
    track.meter = i;
    track.kept = {meter.shape(), p.period, 0};
    if (given) track.limit = p.amount;  // until it is stated
  }
  if (!track.given) Recognise(reading, track);
  tracks_.push_back(track);
  return tracks_.back();
}

// What is recalled of it: of the same amount if there is such a one, else any of its resource,
// unless the reading says that it is of another period.
void Learner::Recognise(const Reading& reading, Track& track) {
  auto found = recalled_.end();
  for (auto each = recalled_.begin(); each != recalled_.end(); ++each) {
    if (each->resource != reading.resource) continue;
    if (reading.period > 0 && each->kept.period != reading.period) continue;
    if (found == recalled_.end() || each->limit == reading.limit) found = each;
  }
  if (found == recalled_.end()) return;
  track.meter = found->meter;
  track.kept = found->kept;
  track.limit = found->limit;
  // A period of hours is never found to be shorter; so that is believed only of the same limit.
  if (found->kept.period < Inference::kHour || found->limit == reading.limit)
    track.inference.Recall(found->kept);
  recalled_.erase(found);
}

std::vector<Change> Learner::Recall(Nanos now, Nanos wall_offset, absl::Span<const Limit> limits,
                                    Nanos hold, const std::optional<Limit>& searched) {
  std::vector<Change> changes;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Limit& limit : limits) {
    const auto name = std::find(names_.begin(), names_.end(), limit.resource);
    if (name == names_.end() || limit.amount < 1 || limit.shape == Shape::kConcurrency) continue;
    Track track;
    track.resource = static_cast<std::uint8_t>(name - names_.begin());
    if (IsGiven(track.resource)) continue;
    track.limit = std::min(limit.amount, Limit::kMaxAmount - 1);
    track.kept = {limit.shape == Shape::kUnknown ? Shape::kWindow : limit.shape, limit.period,
                  limit.shape == Shape::kFixed ? limit.anchor.value_or(0) : 0};
    Limit used = limit;
    used.shape = track.kept.shape;
    used.amount = Used(track.limit);
    if (used.shape == Shape::kBucket && limit.burst) used.burst = Used(*limit.burst);
    track.meter = MeterFor(now, wall_offset, track, used, changes);
    if (track.meter >= 0) recalled_.push_back(track);
  }
  if (searched && searched->amount >= 1 && Searches()) {
    const std::int64_t amount = std::min(searched->amount, Limit::kMaxAmount - 1);
    if (searched->resource == kRequests && searched->period > 0) {
      search_.Recall(now, amount, searched->period);
      KeepSearched(now, wall_offset, /*used=*/false, changes);
    } else if (searched->resource == kConcurrency && NumbersAtOnce()) {
      at_once_.Recall(amount);
      KeepAtOnce(now, wall_offset, changes);
    }
  }
  if (!recalled_.empty() && hold > 0) {
    bucket_->EndCold();  // something is known, if not what is left of it
    bucket_->LookAhead(hold, /*again=*/false);
  }
  return changes;
}

void Learner::Set(Nanos now, Nanos wall_offset, int meter, const Limit& limit,
                  std::vector<Change>& changes) {
  bucket_->SetLimit(now, meter, limit, wall_offset, options_.debt);
  changes.push_back({meter, limit});
}

// A meter of the limit's shape and resource that nobody else keeps: one that is open wide, or a new
// one. -1: there is no room for one.
int Learner::MeterFor(Nanos now, Nanos wall_offset, Track& track, const Limit& limit,
                      std::vector<Change>& changes) {
  track.counted = false;
  for (int i = 0; i < bucket_->size(); ++i) {
    if (bucket_->resource(i) != track.resource || bucket_->meter(i).shape() != limit.shape)
      continue;
    const Parameters p = bucket_->meter(i).parameters();
    if (p.amount < Limit::kMaxAmount) continue;
    // What a window has counted is right for its own period alone, and its own beginning.
    const Parameters fresh = Parameters::From(limit, wall_offset);
    const bool same =
        p.period == fresh.period && (limit.shape != Shape::kFixed || p.anchor() == fresh.anchor());
    if (limit.shape != Shape::kBucket && !same && bucket_->Used(i, now) != 0) continue;
    track.counted = limit.shape == Shape::kBucket || same;
    Set(now, wall_offset, i, limit, changes);
    return i;
  }
  const int added = bucket_->AddLimit(limit, track.resource, wall_offset);
  if (added >= 0) changes.push_back({added, limit});
  return added;
}

// Nothing is kept in the track's meter any more.
void Learner::Drop(Nanos now, Nanos wall_offset, Track& track, std::vector<Change>& changes) {
  Open(now, wall_offset, track, track.meter, changes);
  track.meter = -1;
}

// Whether no other fits into the track's meter now.
bool Learner::IsFull(const Track& track, Nanos now) {
  return track.meter >= 0 && bucket_->ReadyAt(track.meter, now, 1) > now;
}

// Makes the meter what the limit is found to be.
void Learner::Keep(Nanos now, Nanos wall_offset, Track& track, std::vector<Change>& changes) {
  const Inference::Verdict& verdict = track.inference.verdict();
  Limit limit;
  limit.amount = Used(track.limit);
  limit.resource = names_[track.resource];
  limit.period = verdict.period;
  limit.shape = verdict.shape;
  if (verdict.shape == Shape::kFixed) limit.anchor = verdict.anchor;
  if (track.meter >= 0 && track.kept == verdict) {
    if (bucket_->meter(track.meter).parameters().amount != limit.amount)
      Set(now, wall_offset, track.meter, limit, changes);
    return;
  }
  const int found = MeterFor(now, wall_offset, track, limit, changes);
  if (found < 0) return;  // what is kept goes on
  track.meter = found;
  track.kept = verdict;
  track.counts_since = -kNever;  // all along, unless Bound finds that it has not
  // What an open bucket was owed, and what others were seen to use of a window, is long out of
  // date.
  bucket_->Lower(found, bucket_->meter(found).has_cells() ? 0 : now);
}

// Nothing is learnt in this meter any more.
void Learner::Open(Nanos now, Nanos wall_offset, const Track& track, int meter,
                   std::vector<Change>& changes) {
  Limit open;
  open.amount = Limit::kMaxAmount;
  open.resource = names_[track.resource];
  open.shape = bucket_->meter(meter).shape();
  open.period = bucket_->meter(meter).parameters().period;
  Set(now, wall_offset, meter, open, changes);
}

std::int64_t Learner::Own(const Track& track, const AnsweredCall& of) const {
  for (std::size_t i = 0; i < of.taken.size(); ++i)
    if (bucket_->resource(static_cast<int>(i)) == track.resource && of.taken[i].amount > 0)
      return of.taken[i].amount;
  return 0;
}

// So many at most were admitted, itself apart, and perhaps not counted when a call was that began
// at `began` and took `own`.
std::int64_t Learner::MoreThan(const Track& track, Nanos began, std::int64_t own,
                               const AnsweredCall& of) const {
  const Nanos after = CountedAfter(began, of);
  return std::max<std::int64_t>(0, bucket_->history()->AdmittedSince(track.resource, after) - own);
}

void Learner::BoundBucket(Nanos now, Track& track, const Reading& reading, const AnsweredCall& of,
                          bool fresh) {
  const Meter& meter = bucket_->meter(track.meter);
  const Parameters p = meter.parameters();
  const History& history = *bucket_->history();
  const std::size_t r = track.resource;
  const auto owed_of = [&](std::int64_t units) {
    return std::min(MulDivCeil(units, p.period, track.limit), Word::kMaxValue / 4);
  };
  const std::int64_t used = track.limit - std::min(reading.remaining, track.limit);
  const std::int64_t least = std::max<std::int64_t>(0, used - reading.rounding);
  const Nanos seen = Word{meter.bits()}.value();
  HEADWAY_PAUSE();
  const std::int64_t since = MoreThan(track, of.began, Own(track, of), of);
  // By when all of those have been counted: who has not been answered may not have been.
  const Nanos since_by =
      of.others_unanswered > 0 ? now : std::min(now, history.BegunBy(r, now) + CountedLate(of));
  // What remains was so as it was counted, and what the reset says as it was told. More may be owed
  // than the limit, after it was lowered. Of a limit that is a fraction of what it was, the rest is
  // told again.
  const bool spent = reading.remaining <= reading.rounding;
  const Nanos by_rest = owed_of(used + reading.rounding);
  Nanos owed_least = MulDivFloor(least, p.period, track.limit);
  Nanos owed_until = spent ? kNever : of.counted_by + by_rest;
  if (reading.reset != kNever) {
    // When all of it is there again tells more than what remains where that is rounded or none.
    const Nanos at_most = now + std::min(reading.reset + Inference::kSlack, Word::kMaxValue / 4);
    owed_until = std::min(owed_until, std::max(at_most, of.counted_by + owed_least));
    const Nanos at_least = std::min(reading.reset - Inference::kSlack, 2 * p.period);
    owed_least = std::max(owed_least, spent ? at_least : std::min(at_least, by_rest));
  }
  // Since then, those of ours that were counted after it surely, and what others use.
  const Nanos after = of.counted_by + Overtakes(of);
  const std::int64_t later = std::max<std::int64_t>(
      0, history.Total(r) - history.AtMost(r, after) - RefusedSince(track, after));
  const Nanos told = of.sent + owed_least;
  std::int64_t others_since = 0;
  if (!fresh) {
    MeasurePace(track, of, told);
    others_since =
        static_cast<std::int64_t>(track.others_pace * static_cast<double>(now - of.sent));
    bucket_->Raise(track.meter, told + MulDivFloor(later + others_since, p.period, track.limit),
                   now, seen);
    const bool whole = Used(track.limit) == track.limit && !track.given;
    if (!whole || owed_until == kNever) return;
  } else {
    if (owed_until == kNever) owed_until = now + p.period;
    owed_until = std::min(owed_until, now + 2 * p.period);
  }
  // What is owed until then, and for so many more. It may have been empty before the last of them.
  const auto with = [&](Nanos until, std::int64_t more) {
    return std::max(until, since_by) + std::min(p.Cost(more + others_since), Word::kMaxValue / 4);
  };
  Nanos owed = with(owed_until, since);
  // Of a burst, it is the first that was counted which tells: to the last, all of the burst may
  // have been counted after it. Unless others came in between.
  const auto& first = track.lowest;
  if (first.began > -kNever && !spent &&
      least <= first.most + history.MostBetween(r, first.began - CountedLate(of),
                                                of.began + CountedLate(of)))
    owed = std::clamp(
        with(first.counted_by + owed_of(first.most), MoreThan(track, first.began, first.own, of)),
        std::min(owed, told + owed_of(later)), owed);
  if (fresh) {
    bucket_->Raise(track.meter, owed, now, seen);
  } else {
    bucket_->Lower(track.meter, owed, seen);
  }
}

// `fresh`: the meter has only just begun to count this limit. `certain`: of the one before it.
void Learner::Bound(Nanos now, Track& track, const Reading& reading, const AnsweredCall& of,
                    bool fresh, std::int64_t certain) {
  Meter& meter = bucket_->meter(track.meter);
  if (meter.shape() == Shape::kBucket) BoundBucket(now, track, reading, of, fresh);
  if (!meter.has_cells()) return;
  const History& history = *bucket_->history();
  const std::size_t r = track.resource;
  // Calls are sent in the order in which they begin, more or less.
  const Nanos overtakes = Overtakes(of);
  const std::int64_t used = track.limit - std::min(reading.remaining, track.limit);
  const std::int64_t least = std::max<std::int64_t>(0, used - reading.rounding);
  const std::int64_t most = used + reading.rounding;
  const int taken = static_cast<int>(of.taken.size());
  const std::int64_t own = Own(track, of);
  // What this holds. Before it is known what was admitted: whoever comes in between is in that, or
  // in both, and not only in this. Others' share first: it may leave, and is not to pass for ours.
  const std::int64_t others = meter.Others();
  HEADWAY_PAUSE();
  const std::int64_t seen = Word{meter.bits()}.value();
  HEADWAY_PAUSE();
  const std::int64_t since = MoreThan(track, of.began, own, of);
  // What of it was ours, at most: what was in use when it began, and what may have been counted
  // before it though it began later.
  const std::int64_t by_then = history.AtMost(r, of.began + overtakes);
  const Nanos from = of.began - meter.parameters().period;
  std::int64_t ours = by_then - history.AtLeast(r, from - CountedLate(of));
  // Not those of which we know that they were refused.
  ours -= RefusedBetween(track, from, of.began + overtakes, -kNever);
  if (fresh && (track.meter >= taken || !track.counted)) {
    // None of it has been counted here, nor what has been admitted since. The call itself was
    // counted first: its slot is free again before theirs.
    // As it is found to be in the window that we are in, it is counted there.
    const Parameters p = meter.parameters();
    const bool fixed = meter.shape() == Shape::kFixed;
    const Nanos window = fixed ? now - (now - p.anchor()) % p.period : 0;
    meter.CountEarlier(std::max(window, of.counted_by), std::min(own, most));
    bucket_->Raise(track.meter, std::max<std::int64_t>(0, most - own) + since, now);
    track.earlier_by = of.counted_by;
    track.counts_since = now;
    track.before = history.AdmittedSince(r, 0);
    return;
  }
  const std::int64_t ours_of_all = ours;
  if (track.meter < taken && of.taken[static_cast<std::size_t>(track.meter)].amount > 0) {
    const Taken& its = of.taken[static_cast<std::size_t>(track.meter)];
    // What has left may not have been taken out yet; and what was given back was admitted.
    const std::int64_t later = std::max<std::int64_t>(0, by_then - its.increment);
    // They held their places when it began, or began later.
    const std::int64_t refused = RefusedBetween(track, from, of.began + overtakes, of.began);
    ours = std::min(ours, std::max<std::int64_t>(0, its.after + later - refused));
  } else if (track.meter < taken) {
    // It took nothing here: all that this holds.
    ours = Word{meter.bits()}.value() - others;
  }
  if (fresh) certain = Certain(track, of);
  const bool forgets = Forgets(track, reading, certain);
  if (forgets) {
    // None of those that began before the pause is counted any more, so they are no part of this.
    const std::int64_t recent =
        history.MostBetween(r, BeganTogether(meter, of), of.began + overtakes);
    ours = std::min(ours, std::max(own, recent));
  }
  std::int64_t foreign = std::max<std::int64_t>(0, least - ours);
  // What this does not hold of it may all have been ours, before this counted.
  const bool all_ours =
      from < track.counts_since &&
      (track.meter >= taken ? least <= ours_of_all
                            : foreign <= track.before - history.AtLeast(r, from - CountedLate(of)));
  const Parameters p = meter.parameters();
  Nanos span = p.period;  // in which others have used that
  if (meter.shape() == Shape::kFixed) {
    // Only if it was counted in the window that we are in.
    if ((of.sent - p.anchor()) / p.period != (now - p.anchor()) / p.period) return;
    span = (of.sent - p.anchor()) % p.period;
  }
  // Too little to tell how fast they are.
  if (span >= p.period / 64 && !all_ours) {
    const double pace = static_cast<double>(foreign) / static_cast<double>(span);
    if (meter.shape() == Shape::kFixed) {
      // Of a burst, only the answer of the call that was counted last tells: to the others, all of
      // the burst may have been counted before them. And where it takes all that is left, others
      // are as fast as that only until then.
      const Nanos window = of.sent - span;
      if (track.paced_at == kNever || window > track.paced_at) {
        track.others_pace = track.window_pace;
        track.window_pace = 0;
        track.paced_at = window;
      }
      track.window_pace = std::max(track.window_pace, pace);
      track.others_pace = std::max(track.others_pace, track.window_pace);
    } else {
      track.others_pace += (pace - track.others_pace) / 4;
    }
  }
  if (foreign > 0 && !all_ours) track.others_until = of.sent + kOthersLast * p.period;
  const bool lately = of.sent < track.others_until;
  // They have gone on since it was counted, and the burst that waits for it would meet that.
  if (of.ahead && lately)
    foreign += static_cast<std::int64_t>(
        std::ceil(track.others_pace * static_cast<double>(now - of.sent)));
  const bool newest = of.sent >= track.newest;
  std::int64_t foreign_most = std::max(foreign, most - (forgets ? 0 : certain));
  if (track.meter >= taken) {
    // So did others of ours that may have to be counted yet.
    foreign_most = std::max(foreign, most + std::max<std::int64_t>(0, since - (seen - others)));
  }
  const bool fixed = meter.shape() == Shape::kFixed;
  if ((fixed || lately) && (newest || foreign > meter.Others())) {
    // Others' calls were counted before this one was; but they go on, and what they use is as much
    // until the calls that go when ours of now have left are answered: which ours have just been.
    const Nanos next = now + std::min(overtakes, p.period / kLooks);
    bucket_->Raise(track.meter, foreign, fixed || track.meter >= taken ? of.counted_by : next);
  } else if (all_ours && newest) {
    // Whoever has not been answered may have been counted as late as any.
    const Nanos by = of.timed ? std::min(now, track.counts_since + CountedLate(of)) : now;
    bucket_->Raise(track.meter, foreign, of.others_unanswered > 0 ? by : track.earlier_by);
  }
  if (newest) bucket_->Lower(track.meter, foreign_most);
  // What was sent before it was this meter that counts is taken for others' use of now. Once the
  // last of it is answered it is known since when it has been counted.
  if (track.meter < taken || fixed) return;
  track.earlier_by = std::max(track.earlier_by, of.counted_by);
  if (of.others_unanswered > 0) return;
  // Somebody may be about to look earlier than that, and is then waited for until that.
  bucket_->Raise(track.meter, meter.Others(), track.earlier_by);
  bucket_->OthersLeaveBy(track.meter, track.earlier_by + p.period);
}

// Calls that began by then may be counted later than one that began at `began`.
Nanos Learner::CountedAfter(Nanos began, const AnsweredCall& of) const {
  return began - std::max(Overtakes(of), slowest_);
}

void Learner::NoteLowest(Track& track, const Reading& reading, const AnsweredCall& of) const {
  if (reading.remaining <= reading.rounding) return;  // it may owe more
  const std::int64_t own = Own(track, of);
  const std::int64_t most =
      track.limit - std::min(reading.remaining, track.limit) + reading.rounding;
  const std::int64_t beyond =
      most - own - bucket_->history()->AtLeast(track.resource, CountedAfter(of.began, of));
  if (of.began <= track.lowest.answered && beyond > track.lowest.beyond) return;
  track.lowest = {of.began, of.counted_by, of.answered, most, own, beyond};
}

// Since when calls have begun one after another, up to this one, without a pause in which those
// before may have been let go of.
Nanos Learner::BeganTogether(Meter& meter, const AnsweredCall& of) {
  const Nanos pause = std::max(Overtakes(of), meter.parameters().period / kLooks);
  Nanos since = of.began - pause;
  for (const RunOfCalls& run : meter.Runs())
    if (run.first < of.began && run.last >= since) since = std::min(since, run.first - pause);
  return since;
}

// A call may be counted so much later than it began, where the client is busy.
Nanos Learner::CountedLate(const AnsweredCall& of) const {
  return std::max(Overtakes(of), counted_late_.most());
}

void Learner::NoteRefused(Track& track, const AnsweredCall& of) const {
  const std::int64_t amount = Own(track, of);
  if (amount == 0) return;
  std::vector<RunOfRefusals>& runs = track.refused;
  if (!runs.empty()) {
    RunOfRefusals& run = runs.back();
    const Nanos first = std::min(run.first, of.began);
    const Nanos last = std::max(run.last, of.began);
    if (last - first <= kRefusedTogether) {
      run = {first, last, std::min(run.answered, of.answered), run.amount + amount};
      return;
    }
  }
  if (runs.size() == kMostRefused) runs.erase(runs.begin());
  runs.push_back({of.began, of.began, of.answered, amount});
}

// Of calls that began within [from, to] and were answered later than `answered`, so many at least
// were refused.
std::int64_t Learner::RefusedBetween(const Track& track, Nanos from, Nanos to, Nanos answered) {
  std::int64_t amount = 0;
  for (const RunOfRefusals& run : track.refused)
    if (run.first >= from && run.last <= to && run.answered > answered) amount += run.amount;
  return amount;
}

// Of calls that began at `from` or later, so many at most were refused.
std::int64_t Learner::RefusedSince(const Track& track, Nanos from) {
  std::int64_t amount = 0;
  for (const RunOfRefusals& run : track.refused)
    if (run.last >= from) amount += run.amount;
  return amount;
}

// How fast others use a bucket: what it was owed when it counted this, `told` as an instant, beyond
// what it was owed some time before and what ours have taken since.
void Learner::MeasurePace(Track& track, const AnsweredCall& of, Nanos told) const {
  const Nanos period = bucket_->meter(track.meter).parameters().period;
  const double refill = static_cast<double>(track.limit) / static_cast<double>(period);
  if (track.paced_at < kNever) {
    const Nanos span = of.sent - track.paced_at;
    if (span < period / 32) return;  // too little to tell, or it is older
    // What a bucket has not used while it was full is not seen.
    if (track.paced_told > track.paced_at && told > of.sent) {
      const double used = static_cast<double>(told - track.paced_told) * refill;
      const std::int64_t ours =
          bucket_->history()->MostBetween(track.resource, track.paced_at, of.sent) -
          RefusedBetween(track, track.paced_at, of.sent, -kNever);
      const double pace = (used - static_cast<double>(ours)) / static_cast<double>(span);
      // No faster than it refills for long, whatever an answer says.
      track.others_pace += (std::clamp(pace, 0.0, refill) - track.others_pace) / 4;
    }
  }
  track.paced_at = of.sent;
  track.paced_told = told;
}

// Units of our own calls that a window, or a fixed one, had counted for certain when it counted
// this call: they were sent before it by more than what calls overtake each other by, and had not
// left. A call is counted after it was sent; so this needs no knowledge of how long each was on its
// way.
std::int64_t Learner::Certain(const Track& track, const AnsweredCall& of) {
  const Meter& meter = bucket_->meter(track.meter);
  const Parameters p = meter.parameters();
  Nanos from = of.counted_by - p.period;
  if (meter.shape() == Shape::kFixed) from = of.sent - (of.sent - p.anchor()) % p.period;
  const Nanos by = CountedAfter(of.began, of);
  std::int64_t certain = 0;
  // Those that were there when it was sent ahead may have left by the time of its answer.
  for (const RunOfCalls& run : of.ahead ? track.before_look : bucket_->meter(track.meter).Runs())
    if (run.first > from && run.last <= by) certain += run.amount;
  // What was given back meanwhile is not counted any more.
  const auto place = static_cast<std::size_t>(track.meter);
  if (place < of.taken.size() && of.taken[place].amount > 0)
    certain = std::min(certain, of.taken[place].after - of.taken[place].amount);
  return std::max<std::int64_t>(0, certain);
}

// Whether it no longer counted all of those: then it is no window of that period.
bool Learner::Forgets(const Track& track, const Reading& reading, std::int64_t certain) const {
  if (track.kept.shape != Shape::kWindow || reading.remaining < 0) return false;
  // With nothing left, more may be counted than the limit: it was lowered.
  if (reading.remaining <= reading.rounding) return false;
  const std::int64_t used = track.limit - std::min(reading.remaining, track.limit);
  // Refunds that nobody told of forget a little as well.
  return certain - used - reading.rounding > std::max<std::int64_t>(1, track.limit / 5);
}

// How long after it was sent, at most, one of those that it forgets was not counted any more: the
// oldest go first. 0: none is known to be gone, or it is nobody else's use that hides it.
Nanos Learner::GoneAfter(Track& track, const Reading& reading, const AnsweredCall& of,
                         std::int64_t certain, bool forgets) {
  if (track.meter < 0 || (!forgets && !of.ahead)) return 0;
  Meter& meter = bucket_->meter(track.meter);
  if (!meter.has_cells() || (meter.Others() == 0 && !of.ahead)) return 0;
  std::vector<RunOfCalls> runs = of.ahead ? track.before_look : meter.Runs();
  std::sort(runs.begin(), runs.end(),
            [](const RunOfCalls& a, const RunOfCalls& b) { return a.first < b.first; });
  if (!forgets) {
    if (!runs.empty())
      track.counted_after =
          std::max(track.counted_after, of.sent - runs.front().first - CountedLate(of));
    return 0;
  }
  std::int64_t gone =
      certain - (track.limit - std::min(reading.remaining, track.limit)) - reading.rounding;
  Nanos after = 0;
  for (const RunOfCalls& run : runs) {
    if (gone <= 0) break;
    gone -= run.amount;
    after = std::max<Nanos>(1, of.counted_by - run.first);
  }
  return after;
}

bool Learner::Crowded(const Track& track, const Reading& reading, const AnsweredCall& of) const {
  // Of a minute and more, nobody asks.
  if (track.inference.verdict().period >= Inference::kMinute) return false;
  if (track.meter < 0 || reading.remaining < 0) return false;
  // What somebody had used before we came, our own last run mostly, tells nothing.
  if (of.sent - track.since < track.kept.period + Inference::kSlack) return false;
  const Nanos overtakes = Overtakes(of);
  // What began so long before may have been counted that much later, where the client is busy.
  const std::int64_t ours = bucket_->history()->MostBetween(
      track.resource, of.began - track.kept.period - CountedLate(of), of.began + overtakes);
  const std::int64_t used = track.limit - std::min(reading.remaining, track.limit);
  return used - reading.rounding - ours > track.limit / 2;
}

std::vector<Change> Learner::Observe(Nanos now, Nanos wall_offset, const AnsweredCall& of,
                                     absl::Span<const Reading> readings,
                                     std::optional<Nanos> refused, bool failed) {
  std::vector<Change> changes;
  const std::lock_guard<std::mutex> lock(mutex_);
  const Nanos since = std::max<Nanos>(0, now - observed_);
  slowest_ = std::max(of.answered - of.began, slowest_ - since / kForgets);
  if (!refused && !failed)
    quickest_ = std::min(of.answered - of.began, quickest_ + since / kForgets);
  counted_late_.Note(now, of.counted_by - of.began);
  observed_ = std::max(observed_, now);
  ++observations_;
  patience_ = 0;
  for (const Reading& reading : readings) {
    // Who says that there is no limit at all, and answers, means that he does not know.
    if (reading.limit == 0) continue;
    Track& track = Find(reading);
    if (of.sent < track.told_at) continue;
    track.since = std::min(track.since, of.sent);
    track.heard = observations_;
    const bool stated = reading.limit > 0;
    if (stated && reading.limit != track.limit) {
      track.counted_after = 0;
      track.paced_at = kNever;
      track.lowest = {};
      track.limit = std::min(reading.limit, Limit::kMaxAmount - 1);
      track.told_at = of.sent;
    }
    if (track.limit <= 0) continue;
    if (refused) NoteRefused(track, of);
    NoteLowest(track, reading, of);
    const bool counts = track.meter >= 0 && bucket_->meter(track.meter).has_cells();
    const std::int64_t certain = counts ? Certain(track, of) : 0;
    const bool forgets = counts && Forgets(track, reading, certain);
    const Inference::Told told{reading,
                               track.limit,
                               of.sent,
                               of.counted_by,
                               of.answered,
                               wall_offset,
                               Own(track, of),
                               forgets,
                               Crowded(track, reading, of),
                               GoneAfter(track, reading, of, certain, forgets),
                               refused.has_value()};
    track.inference.Note(told, [&](Nanos from, Nanos to) {
      return bucket_->history()->MostBetween(track.resource, from, to) > 0;
    });
    for (const Track& other : tracks_)
      if (track.inference.Follow(other.inference)) break;
    const int before = track.meter;
    if (!track.given) Keep(now, wall_offset, track, changes);
    // A given limit may be of another period than what the reading is about.
    // And what others use of one that they share with us is counted elsewhere.
    const bool about =
        !track.shared && (!track.given || reading.period > 0 || reading.reset == kNever ||
                          track.kept.shape == Shape::kBucket ||
                          reading.reset <= track.kept.period + Inference::kSlack);
    if (track.meter >= 0 && reading.remaining >= 0 && about)
      Bound(now, track, reading, of, track.meter != before, certain);
    // Only now: the one that goes on does not hold what was used so far before it is bounded, and
    // others are being admitted all the while.
    if (before >= 0 && track.meter != before) Open(now, wall_offset, track, before, changes);
    const bool newest = of.sent >= track.newest;
    track.newest = std::max(track.newest, of.sent);
    const Nanos leave =
        about && !late_ ? OthersLeave(now, track, reading, of.ahead, refused) : kNever;
    // What an older one says of others may have left, and come again, since.
    if (newest || of.ahead || refused || of.others_unanswered == 0)
      LookAhead(now, track, of, leave, late_ ? nullptr : &reading);
  }
  for (Track& track : tracks_)
    if (of.ahead && track.released > 0 && track.heard != observations_)
      SawNothing(now, track, of, refused, failed);
  if (bucket_->is_opening() && !Silent()) bucket_->EndOpening();
  // A failure says nothing of what is admitted.
  if (refused || ((search_.limits() || at_once_.listens()) && !failed))
    Search(now, wall_offset, of, readings, refused, changes);
  return changes;
}

// Whether a rate of the resource was given.
bool Learner::IsGiven(std::uint8_t resource) const {
  for (int i = 0; i < static_cast<int>(given_.size()); ++i)
    if (given_[static_cast<std::size_t>(i)] && bucket_->resource(i) == resource &&
        bucket_->meter(i).shape() != Shape::kConcurrency)
      return true;
  return false;
}

// Whether no rate was ever stated, by an answer or by the user.
bool Learner::Silent() const {
  for (std::size_t i = 0; i < given_.size(); ++i)
    if (given_[i] && bucket_->meter(static_cast<int>(i)).shape() != Shape::kConcurrency)
      return false;
  return std::none_of(tracks_.begin(), tracks_.end(),
                      [](const Track& track) { return track.limit > 0; });
}

// Whether nothing that is stated explains a refusal. `hidden`: what would, of what is stated.
bool Learner::Unexplained(absl::Span<const Reading> readings, std::int64_t own,
                          RateSearch::Hidden& hidden) {
  if (readings.empty()) return Silent();
  for (const Reading& reading : readings) {
    if (reading.limit <= 0 || reading.remaining < 0) continue;
    // A call of unknown size may not have fitted into what was left.
    if (reading.remaining < std::max(reading.limit / 4, own)) return false;
    if (names_[reading.resource] != kRequests) continue;
    const Track* const track = Known(reading);
    if (track == nullptr) continue;
    const Nanos whole = track->inference.verdict().period;
    const std::int64_t used = reading.limit - reading.remaining + reading.rounding;
    for (const Nanos period : Inference::kPeriods) {
      const std::int64_t part = MulDivFloor(reading.limit, period, whole);
      // Of longer ones it is not known what was admitted.
      if (period >= whole || period > Inference::kMinute || part < 1 || part > used ||
          part <= hidden.amount)
        continue;
      hidden = {part, period};
    }
  }
  return true;
}

// Whether there is anything to search for: requests, of which no rate is given. Given limits win:
// then a refusal is somebody else's doing, and the cool-down after it is all.
bool Learner::Searches() {
  const auto found = std::find(names_.begin(), names_.end(), kRequests);
  if (found == names_.end()) return false;
  searched_.resource = static_cast<std::uint8_t>(found - names_.begin());
  return !IsGiven(searched_.resource);
}

// What refusals show that nothing stated explains. One request counts as one: of others' tokens
// nothing is known.
void Learner::Search(Nanos now, Nanos wall_offset, const AnsweredCall& of,
                     absl::Span<const Reading> readings, std::optional<Nanos> refused,
                     std::vector<Change>& changes) {
  if (!Searches()) return;
  RateSearch::Hidden hidden;
  if (refused && !Unexplained(readings, Own(searched_, of), hidden) && !search_.IsStep(of.began))
    return;
  if (SearchAtOnce(now, wall_offset, of, refused, changes)) return;
  const auto good = [&](Nanos since) { return bucket_->Good(since, now); };
  if (refused) {
    // Who was admitted before the last refusal was known is of its burst, whenever he was sent.
    search_.Refused(now, of.began, *refused, Silent(), hidden, good);
    // Nothing is known of when anything fits again: one finds out.
    if (!search_.limits() && Silent()) bucket_->Narrow(now, kOpens);
    if (!search_.limits() || search_.pace() > 0) GoAheadUntold(of);
    if (*refused == kNever && search_.wait() > 0) bucket_->Cool(now + search_.wait());
  } else {
    const bool full = IsFull(searched_, now) || IsFull(searched_pace_, now);
    if (!search_.Admitted(now, of.began, full, good)) return;
  }
  if (!search_.limits()) return;
  KeepSearched(now, wall_offset, /*used=*/true, changes);
  bucket_->EndOpening();
}

// Makes a meter what the search has found. `used`: calls were sent before this meter counts them.
void Learner::KeepSearched(Nanos now, Nanos wall_offset, bool used, std::vector<Change>& changes) {
  Limit limit;
  // What an idle client may send at once, of whatever a provider counts in.
  const std::int64_t burst = search_.pace() / 32;
  limit.amount = std::min(search_.amount() + burst, Limit::kMaxAmount - 1);
  limit.resource = std::string(kRequests);
  limit.period = search_.period();
  limit.shape = Shape::kWindow;
  KeepFound(now, wall_offset, searched_, limit, used, changes);
  if (search_.pace() > 0) {
    limit.amount = std::min(search_.pace(), Limit::kMaxAmount - 1);
    limit.shape = Shape::kBucket;
    limit.burst = std::max<std::int64_t>(1, burst);
    searched_pace_.resource = searched_.resource;
    KeepFound(now, wall_offset, searched_pace_, limit, /*used=*/false, changes);
  } else if (searched_pace_.meter >= 0) {
    Drop(now, wall_offset, searched_pace_, changes);
  }
}

// The same for requests at once, before it is taken for a rate; whether that explains it.
bool Learner::SearchAtOnce(Nanos now, Nanos wall_offset, const AnsweredCall& of,
                           std::optional<Nanos> refused, std::vector<Change>& changes) {
  if (search_.limits() || !Silent() || !NumbersAtOnce()) return false;
  const std::int64_t before = at_once_.amount();
  const bool long_wait =
      refused && *refused != kNever && *refused > std::max(kLongWait, 2 * slowest_);
  const bool explains = refused
                            ? at_once_.Refused(now, of.began, of.out_before, of.out_now, long_wait)
                            : at_once_.Admitted(now, of.began, IsFull(searched_at_once_, now));
  // While more are out than that, one finds out when that is over.
  if (refused && at_once_.limits() && of.out_now > at_once_.amount()) GoAheadUntold(of);
  if (at_once_.amount() == before) return explains || (!refused && before > 0);
  if (!at_once_.limits()) {
    Drop(now, wall_offset, searched_at_once_, changes);
    return false;
  }
  KeepAtOnce(now, wall_offset, changes);
  // It may be a rate all the same, so that not as many go at once that it refuses.
  if (before == 0) bucket_->Narrow(now, kOpens);
  return true;
}

// Whether requests at once have a number among the resources.
bool Learner::NumbersAtOnce() {
  const auto found = std::find(names_.begin(), names_.end(), kConcurrency);
  if (found == names_.end()) return false;
  searched_at_once_.resource = static_cast<std::uint8_t>(found - names_.begin());
  return true;
}

void Learner::KeepAtOnce(Nanos now, Nanos wall_offset, std::vector<Change>& changes) {
  Limit limit;
  limit.amount = std::min(at_once_.amount(), Limit::kMaxAmount - 1);
  limit.resource = std::string(kConcurrency);
  limit.shape = Shape::kConcurrency;
  KeepFound(now, wall_offset, searched_at_once_, limit, /*used=*/false, changes);
}

// A limit that was found by refusals is kept to from now on, in the meter of `track`. `used`: as
// above; what is under way at once will be back by the time that the refusal says to wait.
void Learner::KeepFound(Nanos now, Nanos wall_offset, Track& track, const Limit& limit, bool used,
                        std::vector<Change>& changes) {
  const int before = track.meter;
  if (before >= 0 && track.kept.period == limit.period) {
    if (bucket_->meter(before).parameters().amount != limit.amount)
      Set(now, wall_offset, before, limit, changes);
    return;
  }
  const int meter = MeterFor(now, wall_offset, track, limit, changes);
  if (meter < 0) return;
  // How much of what was sent within the period was admitted, nobody knows.
  if (used) bucket_->Raise(meter, limit.amount, now);
  track.meter = meter;
  track.kept = {limit.shape, limit.period, 0};
  if (before >= 0) Open(now, wall_offset, track, before, changes);
}

// When others' use of a window, which holds us up, is worth another look, as this answer tells:
// after its reset, or the wait that it names; kNever: it tells nothing. The meter itself knows only
// that all of it has left a period after it was counted. But a fixed window that nobody has
// recognised yet ends sooner, and what was spent of a bucket comes back bit by bit.
Nanos Learner::OthersLeave(Nanos now, Track& track, const Reading& reading, bool ahead,
                           std::optional<Nanos> refused) {
  if (refused && *refused != kNever) {
    // Seconds that were rounded down are over too early, and none at all have said nothing.
    const Nanos wait = std::max(*refused, kShortestWait);
    // Of a bucket, each comes back so long after the one before.
    const Nanos since = track.good_at == kNever ? 0 : std::max<Nanos>(0, now - track.good_at);
    track.comes_after = std::min(since, wait) + wait;
    // Who has waited for as long as he was told, and is refused again and again, meets others.
    track.refused_looks = ahead ? std::min(track.refused_looks + 1, kMostDoubled) : 0;
    return now + (wait << std::max(0, track.refused_looks - 1));
  }
  if (!refused) {
    track.refused_looks = 0;
    track.good_at = now;
  }
  const Nanos in =
      track.comes_after == 0 ? reading.reset : std::min(track.comes_after, reading.reset);
  return in == kNever ? kNever : now + in;
}

// When somebody is to look whether our own calls are still counted, where others use it, too, and
// of the period there is only a guess; kNever: not. After the usual periods, in strides, and then
// by halves; or later, if that is told.
Nanos Learner::LooksForPeriod(const Track& track, const Reading& reading, Nanos now) const {
  if (track.given || track.meter < 0 || !track.inference.guesses_period()) return kNever;
  if (bucket_->meter(track.meter).Others() == 0) return kNever;
  const Nanos period = track.inference.verdict().period;
  std::vector<Nanos> shorter;
  for (const Nanos each : Inference::kPeriods)
    if (each > track.counted_after && each < period) shorter.push_back(each);
  std::sort(shorter.begin(), shorter.end());
  Nanos oldest = kNever;
  for (const RunOfCalls& run : bucket_->meter(track.meter).Runs())
    oldest = std::min(oldest, run.first);
  if (shorter.empty() || oldest == kNever) return kNever;
  Nanos age = shorter[(shorter.size() - 1) / 2];
  if (period == Inference::kMinute) {
    const auto stride = std::lower_bound(shorter.begin(), shorter.end(),
                                         std::max(kSecond, 4 * track.counted_after));
    age = stride == shorter.end() ? shorter.back() : *stride;
  }
  const Nanos at = oldest + age + age / 16;
  return std::max(at, reading.reset == kNever ? now : now + reading.reset);
}

// Where all is used, and nothing can be asked for a while, whatever happens meanwhile is not heard
// of: a limit that was halved would have half of the next burst refused, and others who use it as
// much as they have taken.
// `reading`: null where nobody is to look for its period.
void Learner::LookAhead(Nanos now, Track& track, const AnsweredCall& of, Nanos others_leave,
                        const Reading* reading) {
  if (track.meter < 0 || !bucket_->meter(track.meter).has_cells()) return;
  const auto meter = static_cast<std::size_t>(track.meter);
  const std::int64_t amount =
      meter < of.taken.size() ? std::max<std::int64_t>(1, of.taken[meter].amount) : 1;
  const Parameters p = bucket_->meter(track.meter).parameters();
  const Nanos period = p.period;
  const Nanos ready = bucket_->ReadyAt(track.meter, now, amount);
  if (ready - now < period / kLooks) return;
  // What the others wait in a `window` moves all that follows, for good. But the one that went
  // ahead will do so again, by as much; so they soon wait for nothing. Not so where answers take
  // longer than it would be ahead in many windows, and nobody else uses it.
  const bool lately = of.sent < track.others_until;
  Nanos patience = quickest_ > period / kLooks && !lately ? 0 : period / kPatience;
  if (track.kept.shape == Shape::kFixed) {
    patience = std::min(period / kLooks, kLongestLook);
    // Where others use it meanwhile, its answer is worth more than the time: a `fixed` window is as
    // long for whoever begins a little later.
    if (track.others_pace * static_cast<double>(patience) >= 1)
      patience = std::max(patience, std::min({2 * slowest_, period / 4, kLongestLook}));
  }
  track.released = 0;
  bool sees = others_leave < kNever && track.kept.shape == Shape::kWindow &&
              2 * bucket_->meter(track.meter).Others() > p.amount;
  const Nanos looks_at = sees || reading == nullptr ? kNever : LooksForPeriod(track, *reading, now);
  track.for_period = looks_at < ready;
  if (track.for_period) {
    sees = true;
    others_leave = looks_at;
  }
  if (track.given && !sees) return;
  if (sees) {
    // They would have had to wait until the meter lets go of it anyhow.
    patience = std::max(patience, ready - others_leave);
    if (lately) patience = std::max(patience, kLongestLook);
    patience = std::min(patience, period);
    if (others_leave < ready) {
      track.released = bucket_->meter(track.meter).Others();
      track.released_at = of.counted_by;
      bucket_->OthersLeaveBy(track.meter, others_leave);
    }
    bucket_->LookAfterFirst(patience);
  }
  if (GoAhead(patience, of.ahead) || of.ahead)
    track.before_look = bucket_->meter(track.meter).Runs();
}

// One goes ahead, and is waited for as long as any of the limits of one answer asks for.
bool Learner::GoAhead(Nanos patience, bool again) {
  patience_ = std::max(patience_, patience);
  return bucket_->LookAhead(patience_, again);
}

// The same where nothing tells how long to wait for it.
void Learner::GoAheadUntold(const AnsweredCall& of) {
  GoAhead(std::clamp(2 * slowest_, kShortestLook, kLongestSilentLook), of.ahead);
}

// Somebody has gone to see, and his answer does not speak of the limit. A good one shows that it
// was time; but for what it was sent to see, where that was the period.
void Learner::SawNothing(Nanos now, Track& track, const AnsweredCall& of,
                         std::optional<Nanos> refused, bool failed) {
  if (refused || failed || track.for_period) {
    bucket_->Raise(track.meter, track.released, track.released_at);
    const Nanos again =
        refused ? OthersLeave(now, track, Reading{}, /*ahead=*/true, refused) : kNever;
    LookAhead(now, track, of, again, /*reading=*/nullptr);
  } else {
    track.released = 0;
  }
}

std::vector<Finding> Learner::Findings() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Finding> findings;
  for (const Track& track : tracks_)
    findings.push_back({track.resource, track.meter, track.given, track.limit,
                        track.inference.verdict(), track.inference.readings(),
                        track.meter < 0 ? 0 : bucket_->meter(track.meter).Others()});
  if (searched_.meter >= 0)
    findings.push_back({searched_.resource, searched_.meter, false, search_.amount(),
                        searched_.kept, 0, 0, /*searched=*/true});
  // How that is used, not what it is: of no amount.
  if (searched_pace_.meter >= 0)
    findings.push_back({searched_pace_.resource, searched_pace_.meter, false, 0,
                        searched_pace_.kept, 0, 0, /*searched=*/true});
  if (searched_at_once_.meter >= 0)
    findings.push_back({searched_at_once_.resource, searched_at_once_.meter, false,
                        at_once_.amount(), searched_at_once_.kept, 0, 0, /*searched=*/true});
  return findings;
}

}  // namespace headway
