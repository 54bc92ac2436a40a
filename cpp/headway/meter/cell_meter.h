// headway/meter/cell_meter.h: `window` and `fixed`: what was admitted, in a few cells, until it
// leaves.
#ifndef HEADWAY_METER_CELL_METER_H_
#define HEADWAY_METER_CELL_METER_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "headway/base/pause.h"
#include "headway/meter/meter.h"

namespace headway {

class MeterForecast;

// A run of calls that began one after another, and leave together.
//
// `state` packs, from the top: generation (12 bits, moved when the cell is emptied; `lap` has more
// of them, for whoever holds a reservation through 4096 generations), closed (1), emptying (1),
// busy (10: threads between entering a verb and leaving it), pins (20: members of which nothing
// says yet by when the server has counted them) and pending (20: members that were sent, and are
// counted by `pending_until` at the latest, perhaps earlier).
//
// Memory ordering (all sequentially consistent; x86 makes no difference to a compare-and-swap, and
// the handshake with the waiters flag needs it):
// - Whoever changes anything else of the cell first enters by a compare-and-swap on
//   `state` that checks the generation and counts it as busy; leaving is the compare-and-swap that
//   counts it out. So between "nobody busy" seen and the generation moved in one compare-and-swap,
//   nothing else of the cell changes; what may have changed is what a member brought that came and
//   left again before `state` was seen (it leaves no trace in it), so it is looked at once more
//   then.
// - The thread whose compare-and-swap sets `emptying` owns the cell until it stores the next state.
// - `sum` is subtracted from the meter's word after the cell is empty, never before: `used` errs
//   only upwards.
struct Cell {
  static constexpr std::uint64_t kPending = 1;
  static constexpr std::uint64_t kPin = std::uint64_t{1} << 20;
  static constexpr std::uint64_t kBusy = std::uint64_t{1} << 40;
  static constexpr std::uint64_t kEmptying = std::uint64_t{1} << 50;
  static constexpr std::uint64_t kClosed = std::uint64_t{1} << 51;
  static constexpr std::uint64_t kGeneration = std::uint64_t{1} << 52;
  static constexpr std::uint64_t kCountMask = kPin - 1;
  // A cell takes no more members than this, so that no count can overflow into the next.
  static constexpr std::uint64_t kMaxMembers = kPin / 2;

  static std::uint64_t pending(std::uint64_t s) { return s & kCountMask; }
  static std::uint64_t pins(std::uint64_t s) { return (s >> 20) & kCountMask; }
  static std::uint64_t busy(std::uint64_t s) { return (s >> 40) & 0x3FF; }
  static std::uint16_t generation(std::uint64_t s) { return static_cast<std::uint16_t>(s >> 52); }

  std::atomic<std::uint64_t> state{0};
  std::atomic<std::int64_t> sum{0};         // units taken by members, less what they gave back
  std::atomic<Nanos> begin{kNever};         // when the first member began
  std::atomic<Nanos> newest{0};             // when the latest member began
  std::atomic<Nanos> last{0};               // the latest counting instant of the answered members
  std::atomic<Nanos> pending_until{0};      // the same for those sent and not yet answered
  std::atomic<Nanos> opaque_last{0};        // the latest answer to an opaque call; its counting
                                            // was Cells::margin earlier, as known when asked
  std::atomic<Nanos> opaque_first{kNever};  // the earliest such answer: all members of earlier
                                            // cells were counted a margin before it
  std::atomic<Nanos> quiet_first{kNever};   // as opaque_first, less the margin already
  std::atomic<Nanos> calm_until{0};   // by when all members were counted if the network works;
                                      // 0: nobody said, kUntold: nobody can tell
  std::atomic<std::uint32_t> lap{0};  // how often it was emptied; `state` keeps 12 bits of it

  bool fresh() const { return state.load() % kGeneration == 0 && sum.load() == 0; }
};

// The cells of one meter, a ring in the order in which their members began. What was admitted for
// whoever waits is in none before he goes on: it is in the word alone, and cannot leave. 64 is more
// than the kSplit + kParts + 2 that are alive while answers come at once; when stragglers hold the
// whole ring, the open cell simply takes more members and leaves later, which errs on the safe
// side.
class Cells {
 public:
  static constexpr std::uint32_t kRing = 64;
  // As Taken::cell: it is in none yet.
  static constexpr std::uint32_t kNone = kRing;
  // A cell closes when it spans 1/16 of the period or holds 1/32 of the limit. Cells that begin
  // with their first member, unlike cells on a grid, then use 99 % and more of the limit. Where the
  // limit binds it is mostly the amount that closes them: of a burst, each period is longer by as
  // long as the client takes to send one cell.
  static constexpr std::int64_t kSplit = 16;
  static constexpr std::int64_t kParts = 32;
  static bool Full(std::int64_t sum, std::int64_t limit) {
    return sum >= (limit + kParts - 1) / kParts;
  }

  std::array<Cell, kRing> ring;
  std::atomic<std::uint32_t> open{0};  // sequence number of the open cell
  std::atomic<bool> in_order{true};    // later cells tell about earlier ones
  std::atomic<Nanos> margin{kNever};   // how much earlier an opaque call is counted than
                                       // answered; kNever: not known, so not at all
  // Units moved while somebody waited (freed, entered, observed): whoever looked meanwhile could
  // not tell when they leave. Whoever moved them has that somebody signalled.
  std::atomic<bool> owes_signal{false};
  std::atomic<std::int64_t> foreign{0};  // units that others have used, as last observed
  std::atomic<Nanos> foreign_last{0};

  Cell& at(std::uint32_t sequence) { return ring[sequence % kRing]; }
  Nanos known_margin() const {
    const Nanos known = margin.load();
    return known == kNever ? 0 : known;
  }
};

// Strict window: never more than N in any window W. Fixed window: never more than N in each window
// that begins at the anchor plus a multiple of W. Both count what can still be inside, in the word
// (`used`, bounded by compare-and-swap), and differ only in when a cell leaves:
//   window: W after the latest instant at which the server can have counted one of its members;
//   fixed:  at the end of the window that contains that instant.
class CellMeter {
 public:
  static bool Take(Meter& m, Nanos now, std::int64_t amount, bool pass_waiters, bool answered,
                   bool begins, Taken& taken);
  static void Begin(Meter& m, Nanos now, Taken& taken);
  static Nanos ReadyAt(Meter& m, Nanos now, std::int64_t amount);
  static void Foresee(Meter& m, Nanos now, MeterForecast& out);
  // When what the server counted at `counted` leaves.
  static Nanos Leaves(Shape shape, const Parameters& p, Nanos counted);
  static bool GiveBack(Meter& m, const Taken& taken, std::int64_t amount, bool cancel);
  static void Charge(Meter& m, Nanos now, std::int64_t amount);
  static void Force(Meter& m, Nanos now, std::int64_t amount, Taken& taken);
  static void CountEarlier(Meter& m, Nanos counted_by, std::int64_t amount);
  static std::vector<RunOfCalls> Runs(Meter& m);
  static std::int64_t Holds(Meter& m, std::vector<Departure>& departures);
  static void GoesAhead(Meter& m, const Taken& taken);
  static void Begun(Meter& m, const Taken& taken, Nanos now, Nanos waited);
  static bool Sent(Meter& m, const Taken& taken, Nanos counted_by);
  static bool Answered(Meter& m, const Taken& taken, Nanos at, Answer answer, bool pinned,
                       Nanos began);
  static void SetMargin(Meter& m, Nanos margin);
  static void Raise(Meter& m, std::int64_t bound, Nanos at);
  static bool Lower(Meter& m, std::int64_t bound);
  static void OthersLeaveBy(Meter& m, Nanos at);
  static std::int64_t Used(Meter& m, Nanos now);

 private:
  struct Leaving {
    Nanos at;
    std::int64_t amount;
    Nanos open_since;   // of the cell that takes new members; else kNever
    Nanos least;        // it does not leave before that, whatever answers tell
    std::uint64_t run;  // as Departure::run; kForeign
  };
  static constexpr std::uint64_t kForeign = UINT64_MAX;
  using AllLeaving = std::array<Leaving, Cells::kRing + 1>;
  // What is in use, in the order in which it leaves (kUntold: only answers tell); what is in no
  // cell yet is left out. Returns how many there are; nothing where a cell moved meanwhile.
  static std::optional<std::size_t> Look(Meter& m, const Parameters& p, AllLeaving& leaving);
  static Nanos CountedBy(const Cell& cell, std::uint64_t state, Nanos margin, Nanos later_first);
  static Nanos Earlier(const Cell& cell, Nanos margin, Nanos period);
  // Frees every cell whose time has come. Returns whether any was.
  static bool Free(Meter& m, const Parameters& p, Nanos now);
  static bool FreeForeign(Meter& m, const Parameters& p, Nanos now, Cells& cells);
  static bool Due(Shape shape, const Parameters& p, Nanos now, const Cell& cell,
                  std::uint64_t state, Nanos margin, Nanos later_first);
  static bool Empty(Meter& m, const Parameters& p, Nanos now, Cells& cells, Cell& cell,
                    std::uint64_t state, Nanos margin, Nanos later_first);
  static bool WantsClose(Shape shape, const Parameters& p, Nanos now, const Cell& cell,
                         std::uint64_t state);
  // `tell`: whoever waits has to be signalled when it is done.
  static void Enter(Meter& m, const Parameters& p, Nanos now, std::int64_t amount, bool answered,
                    bool tell, Taken& taken);
  static void Owe(Meter& m);
  static Cell* EnterAgain(Meter& m, const Taken& taken);
  static void Release(Meter& m, std::int64_t amount) {
    m.word_.fetch_sub(static_cast<std::uint64_t>(amount) << Word::kValueShift);
  }
};

}  // namespace headway

#endif  // HEADWAY_METER_CELL_METER_H_
