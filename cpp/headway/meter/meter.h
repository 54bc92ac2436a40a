// headway/meter/meter.h: one limit's live state, lock-free, whatever its shape.
#ifndef HEADWAY_METER_METER_H_
#define HEADWAY_METER_METER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "headway/base/limit.h"
#include "headway/meter/parameters.h"
#include "headway/meter/word.h"

namespace headway {

class Cells;

// Calls that are admitted within so long of each other may have to wait for each other, in the
// client, before they are sent.
inline constexpr Nanos kCrowdSpan = 50 * kMillisecond;

// So long may pass between an admission and the call that was waiting for it before a `bucket`
// takes note: no longer than what any network varies by.
inline constexpr Nanos kSoon = 20 * kMillisecond;

// What an answer tells about the instant at which the server counted the request.
enum class Answer : std::uint8_t {
  kBounded,  // it was sent at a known instant over a network of known delay (Meter::Sent)
  kOpaque,   // nothing was known before; calls are sent in the order in which they begin
  kQuiet,    // as kOpaque, and started while the client had nothing else to do
  kRefused,  // the server refused it, at the instant of the answer
};

// What a provider does with what is already counted when it changes a limit (provider data).
enum class Debt : std::uint8_t {
  kAbsolute,      // so many units are owed, whatever the limit
  kProportional,  // such a share of the limit is owed: the provider scales it
};

// Calls that began from `first` to `last`, and the units that they have taken.
struct RunOfCalls {
  Nanos first;
  Nanos last;
  std::int64_t amount;
};

// What one take took of one meter: enough to give exactly that back later. Only the amount has a
// value before; each take sets what its shape reads.
struct Taken {
  std::int64_t amount = 0;  // units; 0: this meter was not asked
  Nanos increment;          // bucket: the time that was added to the word; window, fixed: where the
                            // bucket remembers (History), all that had been admitted when it began
  Nanos after;              // bucket: the word's instant after this take; window, fixed: what of
                            // the word was ours when it began
  Nanos period;             // bucket: the limit's period then
  std::uint32_t cell;       // window, fixed: which cell, Cells::kNone before it has begun; bucket:
                            // Meter::shifted_
  // bucket: for how long it had been full, 4 s at most; window, fixed: the cell's generation
  std::uint32_t full_for_or_lap;
  std::uint16_t cell_generation;  // its low bits
  std::uint8_t generation;        // of the parameters
  bool future;                    // bucket: taken by ReserveAt
  bool unbegun;                   // bucket: taken for somebody who waits, and who has not gone on
};

// Of `window` and `fixed`: units of ours that leave together, at a known instant.
struct Departure {
  std::uint64_t run;  // which: no other ever has that number
  std::int64_t amount;
  Nanos at;
};

// One limit's live state. The verbs are the same for all shapes; a shape's own file says how.
//
// Thread-safe: every verb may be called from any thread at any time, with that thread's own idea of
// `now` (threads need not agree). All verbs are lock-free and take O(1) memory, except SetLimit,
// which callers serialise. Amounts are in units of the limit's resource, from 0 to
// Limit::kMaxAmount; 0 always fits and takes nothing.
//
// Verbs that can bring an admission nearer return whether somebody waits on this meter and has to
// be signalled. The protocol that loses no wake-up: whoever is going to sleep sets the flag
// (`SetWaiters`), looks again, and only then sleeps; whoever gives back changes the state, then
// looks at the flag. All of these are sequentially consistent, so at least one of the two sees the
// other.
class Meter {
 public:
  Meter(const Limit& limit, Nanos wall_offset);
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  Shape shape() const { return shape_; }
  // Whether it counts in cells: `window` and `fixed` (an unknown shape is kept as `window`).
  bool has_cells() const { return shape_ == Shape::kWindow || shape_ == Shape::kFixed; }
  Parameters parameters() const;

  // When `amount` would fit if nothing else happened: `now` or earlier means that it fits now;
  // kUntold, that it depends on an answer still out, or on somebody admitted who has not begun;
  // kNever, that it is more than the limit admits at once. `answered` as in Take. May free cells
  // whose time has come.
  Nanos ReadyAt(Nanos now, std::int64_t amount, bool answered = false);

  // Takes `amount` if it fits at `now`. With `pass_waiters` false, also refuses when somebody
  // waits. `answered` says that no answer is to come: it is then counted at `now`, which a `bucket`
  // needs no guard for.
  // `begins` false: it is for somebody who waits, and begins when he goes on (Begin); until then it
  // is in use, whatever others are answered.
  bool Take(Nanos now, std::int64_t amount, bool pass_waiters, bool answered, Taken& taken,
            bool begins = true);
  // What was taken so begins at `now`. By whoever owns `taken`, once, before he says more of it.
  // Returns whether to signal.
  [[nodiscard]] bool Begin(Nanos now, Taken& taken);

  // Takes `amount` whether or not it fits, and whoever waits: it is being used. What fits then is
  // less than nothing, until that has left or flowed back.
  void Force(Nanos now, std::int64_t amount, Taken& taken);

  // `bucket` only: takes `amount` for the first instant at which it fits behind all that was taken
  // and reserved before, and returns that instant (`now` or later), or kNever and takes nothing.
  // The slot keeps its instant when the limit changes; what a changed limit says of it is not
  // looked at.
  Nanos ReserveAt(Nanos now, std::int64_t amount, Taken& taken);

  // Gives `amount` of what was taken back: a refund of what was taken, never lifting what is
  // available above the limit. From a window or cell that has left: nothing. `cancel` gives
  // everything back and ends the taker's hold on its cell. Returns whether to signal.
  [[nodiscard]] bool GiveBack(Nanos now, const Taken& taken, std::int64_t amount, Debt debt,
                              bool cancel);

  // Takes `amount` more than was reserved, whether or not it fits: it has been used.
  void Charge(Nanos now, const Taken& taken, std::int64_t amount);

  // window, fixed: a call of ours that the server had counted by `counted_by`, before anybody took
  // anything of this. It can be neither given back nor answered any more.
  void CountEarlier(Nanos counted_by, std::int64_t amount);

  // window, fixed: what calls of ours have taken, in runs that began one after another, the latest
  // first. What changes meanwhile may be missing.
  std::vector<RunOfCalls> Runs();

  // What is ours of what is in use, in units, and of that what is known to leave: `bucket`: nothing
  // of either. The units are read first, so what is not in `departures` errs upwards.
  std::int64_t Holds(std::vector<Departure>& departures);

  // A call that has begun goes ahead of others, which wait for its answer. window, fixed: they do
  // not share its cell, so its slot is free again before theirs.
  void GoesAhead(const Taken& taken);

  // An opaque call begins at `now`, having waited for others by `waited` at most (kUntold: nobody
  // can tell). While calls are counted in order, the answer to any later one then shows that the
  // network was working, and that this one was counted within the guard of kQuiet below, answered
  // or not.
  void Begun(const Taken& taken, Nanos now, Nanos waited);
  // The request was sent at an instant after which the server counts it by `counted_by` at the
  // latest. window, fixed: then its slot may leave a period after that. bucket: the server's refill
  // begins at that instant, not at the admission; where that is later than the guard allows for,
  // the word moves by the difference, once for a burst. Returns whether to signal.
  [[nodiscard]] bool Sent(const Taken& taken, Nanos counted_by);
  // The request was answered at `at`; `pinned` unless `Sent` was called. kQuiet: it was started at
  // `began`, and counted within a guard of that: 1 % of the period, at least 20 ms and at most 250
  // ms. Returns whether to signal.
  [[nodiscard]] bool Answered(const Taken& taken, Nanos at, Answer answer, bool pinned,
                              Nanos began = kNever);
  // How much earlier than answered an opaque call is counted, at least. The least that was ever
  // told holds; before, nothing.
  void SetMargin(Nanos margin);

  // An observation. bucket: the instant at which all is paid for lies not before / not after
  // `bound`; or did so when it was at `seen`, and what was taken since comes on top. window, fixed:
  // others have used at least `bound` units as last counted at `at`, / at most `bound`, of which it
  // is not known that they are still counted. Lowering returns whether to signal.
  void Raise(std::int64_t bound, Nanos at, Nanos seen = kNever);
  [[nodiscard]] bool Lower(std::int64_t bound, Nanos seen = kNever);
  // What others have used of a window will have left it by `at`, as far as that is known; until the
  // next observation.
  void OthersLeaveBy(Nanos at);

  // window, fixed: what others have used, as last observed and not yet left.
  std::int64_t Others() const;

  // Changes the limit (same shape) while in use. Not thread-safe against itself. Returns whether to
  // signal: a raised limit brings admissions nearer.
  [[nodiscard]] bool SetLimit(Nanos now, const Limit& limit, Nanos wall_offset, Debt debt);

  // Units in use at `now`, as far as the server may see them, and the most that may be in use (the
  // burst, the window's amount, …). In use may be more than the most after the limit was lowered.
  std::int64_t Used(Nanos now);
  std::int64_t Capacity() const;

  std::uint64_t bits() const { return word_.load(); }
  bool has_waiters() const { return Word{word_.load()}.waiters(); }
  void SetWaiters() { word_.fetch_or(Word::kWaiters); }
  void ClearWaiters() { word_.fetch_and(~Word::kWaiters); }

  // Of credit: so many units more are there, or less, if there are so many. Granting returns
  // whether to signal, taking back whether it did.
  [[nodiscard]] bool Grant(std::int64_t amount);
  [[nodiscard]] bool TakeBack(std::int64_t amount);

  // Of credit: until when it may be used; kNever at first. Whoever has looked at the time before,
  // and is stopped there, uses it later.
  void HoldsUntil(Nanos at) { promised_.store(at); }

  // Of credit: when somebody has begun to use it last, 0: never; and what was taken for those who
  // wait, and have not gone on. Read after the word, they are not older than that.
  Nanos last_begun() const { return began_.load(); }
  std::int64_t unbegun() const { return unbegun_.load(); }

  // Whether freeing cells, by any verb above, owes those who wait a signal; asked after each of
  // them by whoever can send one. Clears the debt.
  bool TakeOwedSignal();

  // After a request was refused, requests cannot be assumed to be counted in order any more.
  void StopTrustingOrder();

 private:
  friend class BucketMeter;
  friend class CellMeter;
  friend class ConcurrencyMeter;
  friend class CreditMeter;

  Cells& cells();

  std::atomic<std::uint64_t> word_{0};
  // bucket: the units that were admitted and have not begun, and two small numbers (BucketMeter);
  // credit: these units. Beside the word, for they are written together.
  std::atomic<std::int64_t> unbegun_{0};
  ParameterSlots slots_;
  union {
    std::atomic<Cells*> cells_{nullptr};  // window, fixed: made on first use
    std::atomic<Nanos> shifted_;          // bucket: by how much Sent has moved the word, in all
  };
  // bucket: what the latest slot ever reserved for later stands on; credit: it is nobody's to use
  // after that.
  std::atomic<Nanos> promised_{0};
  std::atomic<Nanos> began_{0};  // bucket: when it was last taken from after it had been full;
                                 // credit: when it was last begun to be used
  const Shape shape_;
};

}  // namespace headway

#endif  // HEADWAY_METER_METER_H_
