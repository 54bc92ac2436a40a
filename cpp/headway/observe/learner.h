// headway/observe/learner.h: keeps a bucket to what its provider says.
#ifndef HEADWAY_OBSERVE_LEARNER_H_
#define HEADWAY_OBSERVE_LEARNER_H_

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "headway/base/limit.h"
#include "headway/base/recent_most.h"
#include "headway/bucket/bucket.h"
#include "headway/observe/concurrency_search.h"
#include "headway/observe/inference.h"
#include "headway/observe/search.h"

namespace headway {

// What was found out about one limit.
struct Finding {
  std::uint8_t resource;
  int meter;           // which of the bucket's limits it is kept as
  bool given;          // by the user: it stays as it is
  std::int64_t limit;  // as the provider states it; Reading::kUnsaid: it never has
  Inference::Verdict verdict;
  int readings;           // how many speak for the verdict
  std::int64_t foreign;   // units that others have used of it, as last seen
  bool searched = false;  // it was never stated: refusals show it
};

// What has to be known of a call to make use of its answer, for as long as that takes to be read.
struct AnsweredCall {
  // At `now`, when its answer has come; it was reserved, and has begun.
  static AnsweredCall Of(const Reservation& reservation, Nanos now);

  Nanos began = 0;
  Nanos sent = 0;  // or began, where nobody said
  Nanos answered = 0;
  bool ahead = false;  // others wait for its answer
  int out_before = 1;  // see Reservation
  int out_now = 1;
  std::int64_t others_unanswered = 1;
  Nanos counted_by = 0;                 // the server has counted it by then
  bool timed = false;                   // a transport said when it was sent
  absl::InlinedVector<Taken, 4> taken;  // by meter
};

// A limit of the bucket that has changed, or come to it.
struct Change {
  int meter;
  Limit limit;
};

// What answers say of limits, made true in a bucket's meters.
//
// An answer states the server's view at the instant at which it counted *that* request: not when it
// is read. So it bounds what the server has counted, from below and from above, and the meters are
// raised to the first and lowered to the second, never set; nothing in flight is added twice.
//
// - window, fixed: what the server had counted beyond our own calls, those included that may have
//   been counted just before this one, is what others have used (Meter::Raise and Lower).
// - bucket: at the instant at which it was counted, limit - remaining was owed: at least that, and
//   at most that and what was admitted since shortly before it was sent, which an instant later may
//   have been paid for. What is owed is lowered only where all of the provider's limit is used
//   (ratio 1): the room that a buffer leaves free is not to be spent.
// - An answer to a request that was sent before the one that last changed the limit is ignored: it
//   may come seconds later, and still speaks of the old one.
//
// Limits that were given stay as they are; others' use is seen in them all the same. All others are
// learnt: the amount from what is stated, shape and period by inference (Inference). When they are
// found to be of another shape, a meter of that shape is added, and the old one opened wide.
//
// Thread-safe: one lock, held for microseconds, which admission never takes.
class Learner {
 public:
  struct Options {
    double ratio = 1.0;  // what part of each limit is used
    Debt debt = Debt::kAbsolute;
  };

  // `bucket` must outlive it. `names`: of the resources. Limits that are Limit::kMaxAmount by now
  // are to be learnt; all others were given.
  Learner(Bucket* bucket, std::vector<std::string> names, Options options);
  Learner(const Learner&) = delete;
  Learner& operator=(const Learner&) = delete;

  // What the answer to `of` said, which was reserved of this bucket. `wall_offset`: see WallOffset.
  // `refused`: for want of what comes back, and after which wait it says that it will (kNever: it
  // says nothing). `failed`: for any other reason. Returns what has changed, in the order in which
  // it did.
  std::vector<Change> Observe(Nanos now, Nanos wall_offset, const AnsweredCall& of,
                              absl::Span<const Reading> readings,
                              std::optional<Nanos> refused = std::nullopt, bool failed = false);

  // What was learnt before, of another bucket of the same name: `limits` as they are stated, of
  // which the same part is used. They hold until an answer says otherwise, which is not far: one
  // request goes ahead, and the others wait for its answer, for `hold` at most; 0: none does.
  // `searched`: what refusals had shown, which is searched on. Before anybody uses the bucket.
  // Limits of resources that have a given one, or no number, are left out.
  std::vector<Change> Recall(Nanos now, Nanos wall_offset, absl::Span<const Limit> limits,
                             Nanos hold, const std::optional<Limit>& searched = std::nullopt);

  // What answers say is read later than they come: others may go on before that, so nobody goes to
  // see what may have come back.
  void ReadLate() {
    const std::lock_guard<std::mutex> lock(mutex_);
    late_ = true;
  }

  std::vector<Finding> Findings() const;
  // Whether a limit is being found out that is never stated, or somebody has gone to see: then
  // every answer tells, also one that says nothing.
  bool searches() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return search_.limits() || at_once_.listens() ||
           std::any_of(tracks_.begin(), tracks_.end(),
                       [](const Track& track) { return track.released > 0; });
  }

 private:
  // Calls that began within some milliseconds of each other and were refused, and when the first of
  // them was answered: none had given back its place before that.
  struct RunOfRefusals {
    Nanos first;
    Nanos last;
    Nanos answered;
    std::int64_t amount;
  };
  // One limit that the provider states: by resource and family.
  struct Track {
    std::uint8_t resource = 0;
    std::uint8_t family = 0;
    bool given = false;
    bool shared = false;                    // it is counted elsewhere, for all who use it
    int meter = -1;                         // the one that counts; -1: none, it cannot be kept
    bool counted = false;                   // all along, as this limit does
    std::int64_t limit = Reading::kUnsaid;  // as stated
    Nanos told_at = -kNever;                // when the request was sent whose answer changed it
    Nanos since = kNever;                   // when the first request was sent of which we know
    Nanos newest = -kNever;                 // when the newest request was sent of which we know
    Inference::Verdict kept;                // what `meter` is
    Inference inference;
    double others_pace = 0;        // units a nanosecond that others use, lately
    Nanos others_until = -kNever;  // so long they are reckoned with
    // When the call was sent of whose answer that was last measured, or the window began of which
    // it is (kNever: of none). bucket: until when it was owed then. fixed: the fastest that is
    // known of in this window.
    Nanos paced_at = kNever;
    Nanos paced_told = 0;
    double window_pace = 0;
    Nanos good_at = kNever;  // when the latest good answer was read; kNever: none has come
    Nanos comes_after = 0;   // how long after it the next fits, as a refusal has told; 0: none has
    int refused_looks = 0;   // so many that went to see were refused, one after another
    // What others have used and leaves early, for somebody to go and see, as it was counted; and
    // whether that is only to find out the period.
    std::int64_t released = 0;
    Nanos released_at = 0;
    bool for_period = false;
    std::uint64_t heard = 0;  // the observation that spoke of it last
    Nanos counted_after = 0;  // so long after they were sent, calls of ours were still counted
    // Since when `meter` counts, where that was found; what of ours had been admitted before, ever;
    // and by when that has been counted, of those that are answered.
    Nanos counts_since = -kNever;
    std::int64_t before = 0;
    Nanos earlier_by = 0;
    // Of the calls that were out together with the latest, the one to whose answer the least was
    // used beyond what of ours had surely been counted; `began` is -kNever where there is none.
    struct {
      Nanos began = -kNever;
      Nanos counted_by = 0;
      Nanos answered = -kNever;
      std::int64_t most = 0;  // that was used
      std::int64_t own = 0;   // of which this is its own
      std::int64_t beyond = 0;
    } lowest;
    // What of ours was in use when it was last settled that somebody goes ahead.
    std::vector<RunOfCalls> before_look;
    // What of ours was refused, and so not counted, oldest first.
    std::vector<RunOfRefusals> refused;
  };

  void NoteLowest(Track& track, const Reading& reading, const AnsweredCall& of) const;
  void Search(Nanos now, Nanos wall_offset, const AnsweredCall& of,
              absl::Span<const Reading> readings, std::optional<Nanos> refused,
              std::vector<Change>& changes);
  bool SearchAtOnce(Nanos now, Nanos wall_offset, const AnsweredCall& of,
                    std::optional<Nanos> refused, std::vector<Change>& changes);
  bool NumbersAtOnce();
  void KeepAtOnce(Nanos now, Nanos wall_offset, std::vector<Change>& changes);
  bool Searches();
  void KeepSearched(Nanos now, Nanos wall_offset, bool used, std::vector<Change>& changes);
  void KeepFound(Nanos now, Nanos wall_offset, Track& track, const Limit& limit, bool used,
                 std::vector<Change>& changes);
  bool IsGiven(std::uint8_t resource) const;
  bool Silent() const;
  bool Unexplained(absl::Span<const Reading> readings, std::int64_t own,
                   RateSearch::Hidden& hidden);
  void Recognise(const Reading& reading, Track& track);
  Track* Known(const Reading& reading);
  Track& Find(const Reading& reading);
  std::int64_t Used(std::int64_t limit) const;
  void Keep(Nanos now, Nanos wall_offset, Track& track, std::vector<Change>& changes);
  int MeterFor(Nanos now, Nanos wall_offset, Track& track, const Limit& limit,
               std::vector<Change>& changes);
  void Set(Nanos now, Nanos wall_offset, int meter, const Limit& limit,
           std::vector<Change>& changes);
  void Open(Nanos now, Nanos wall_offset, const Track& track, int meter,
            std::vector<Change>& changes);
  std::int64_t Certain(const Track& track, const AnsweredCall& of);
  std::int64_t Own(const Track& track, const AnsweredCall& of) const;
  bool Crowded(const Track& track, const Reading& reading, const AnsweredCall& of) const;
  bool Forgets(const Track& track, const Reading& reading, std::int64_t certain) const;
  Nanos GoneAfter(Track& track, const Reading& reading, const AnsweredCall& of,
                  std::int64_t certain, bool forgets);
  static Nanos BeganTogether(Meter& meter, const AnsweredCall& of);
  Nanos CountedLate(const AnsweredCall& of) const;
  Nanos CountedAfter(Nanos began, const AnsweredCall& of) const;
  void NoteRefused(Track& track, const AnsweredCall& of) const;
  static std::int64_t RefusedBetween(const Track& track, Nanos from, Nanos to, Nanos answered);
  static std::int64_t RefusedSince(const Track& track, Nanos from);
  void MeasurePace(Track& track, const AnsweredCall& of, Nanos told) const;
  static Nanos OthersLeave(Nanos now, Track& track, const Reading& reading, bool ahead,
                           std::optional<Nanos> refused);
  Nanos LooksForPeriod(const Track& track, const Reading& reading, Nanos now) const;
  void LookAhead(Nanos now, Track& track, const AnsweredCall& of, Nanos others_leave,
                 const Reading* reading);
  bool GoAhead(Nanos patience, bool again);
  void GoAheadUntold(const AnsweredCall& of);
  void Drop(Nanos now, Nanos wall_offset, Track& track, std::vector<Change>& changes);
  bool IsFull(const Track& track, Nanos now);
  void SawNothing(Nanos now, Track& track, const AnsweredCall& of, std::optional<Nanos> refused,
                  bool failed);
  std::int64_t MoreThan(const Track& track, Nanos began, std::int64_t own,
                        const AnsweredCall& of) const;
  void BoundBucket(Nanos now, Track& track, const Reading& reading, const AnsweredCall& of,
                   bool fresh);
  void Bound(Nanos now, Track& track, const Reading& reading, const AnsweredCall& of, bool fresh,
             std::int64_t certain);

  Bucket* const bucket_;
  const std::vector<std::string> names_;
  const Options options_;
  std::vector<bool> given_;  // of each limit that the bucket was made with
  mutable std::mutex mutex_;
  std::vector<Track> tracks_;
  std::vector<Track> recalled_;  // until an answer speaks of them
  RateSearch search_;            // of requests, by refusals that nothing explains
  Track searched_;               // the meter that is kept to what it finds...
  Track searched_pace_;          // ... and the one that has it used evenly
  ConcurrencySearch at_once_;    // of requests at once, likewise, where nothing is ever stated
  Track searched_at_once_;
  // How long after its call began the slowest answer of late came. Where a client or server stalls,
  // calls that began that much earlier may still have to be counted. What this bound is too loose
  // by costs that once: a bucket that is thought to owe more than it does refills as fast.
  Nanos slowest_ = 0;
  Nanos quickest_ = kNever / 2;  // of good answers, lately
  // And how long after it began one of late was counted, at most, as far as its transport knows.
  RecentMost counted_late_;
  bool late_ = false;
  Nanos patience_ = 0;  // with whoever goes ahead, by this observation
  std::uint64_t observations_ = 0;
  Nanos observed_ = 0;  // when the latest answer was read
};

}  // namespace headway

#endif  // HEADWAY_OBSERVE_LEARNER_H_
