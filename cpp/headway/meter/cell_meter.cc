// headway/meter/cell_meter.cc: the verbs of `window` and `fixed`.
#include "headway/meter/cell_meter.h"

#include <algorithm>
#include <thread>

#include "headway/meter/forecast.h"

namespace headway {
namespace {

void StoreMax(std::atomic<Nanos>& target, Nanos value) {
  Nanos seen = target.load();
  while (seen < value && !target.compare_exchange_weak(seen, value)) {
  }
}

void StoreMin(std::atomic<Nanos>& target, Nanos value) {
  Nanos seen = target.load();
  while (seen > value && !target.compare_exchange_weak(seen, value)) {
  }
}

// Which window of a `fixed` limit an instant lies in, as that window's beginning.
Nanos WindowStart(const Parameters& p, Nanos at) {
  const Nanos phase = (at - p.anchor()) % p.period;
  return at - (phase < 0 ? phase + p.period : phase);
}

// How much later than by the book a call may be counted where nothing but a rule speaks for the
// book: 1 % of the period, so that it costs no more, at least what any network takes.
Nanos Guard(Nanos period) {
  return std::clamp(period / 100, 20 * kMillisecond, 250 * kMillisecond);
}

}  // namespace

Nanos CellMeter::Leaves(Shape shape, const Parameters& p, Nanos counted) {
  if (counted >= kUntold - p.period) return kUntold;
  return shape == Shape::kFixed ? WindowStart(p, counted) + p.period : counted + p.period;
}

// The latest instant at which the server can have counted a member of this cell. kUntold while a
// member gives no bound of its own and none follows from later ones.
Nanos CellMeter::CountedBy(const Cell& cell, std::uint64_t state, Nanos margin, Nanos later_first) {
  if (Cell::busy(state) != 0) return kUntold;
  Nanos own = std::max(cell.last.load(), cell.opaque_last.load() - margin);
  if (Cell::pending(state) != 0) own = std::max(own, cell.pending_until.load());
  if (Cell::pins(state) != 0) {
    // What is not answered may not even be sent; but a later answer shows that the network works.
    const Nanos calm = cell.calm_until.load();
    own = calm != 0 && later_first < kUntold ? std::max(own, calm) : kUntold;
  }
  // Never before it began, however fast this call was compared with the fastest.
  return std::max(cell.newest.load(), std::min(own, later_first));
}

// By when the members of all earlier cells were counted, as this cell's answers tell.
Nanos CellMeter::Earlier(const Cell& cell, Nanos margin, Nanos period) {
  const Nanos opaque = cell.opaque_first.load();
  // In a crowd, connections overtake each other a little.
  const Nanos first = std::min(opaque == kNever ? kUntold : opaque - margin + Guard(period),
                               cell.quiet_first.load());
  return first >= kUntold ? kUntold : std::max(cell.begin.load(), first);
}

// Whether all members have left by `now`, or nothing is in it any more.
bool CellMeter::Due(Shape shape, const Parameters& p, Nanos now, const Cell& cell,
                    std::uint64_t state, Nanos margin, Nanos later_first) {
  if (state % Cell::kClosed == 0 && cell.sum.load() == 0) return true;
  return Leaves(shape, p, CountedBy(cell, state, margin, later_first)) <= now;
}

// Empties a cell that was seen due in `state`. Lock-free for the others: a thread stopped in here
// keeps this one cell's units, no more.
bool CellMeter::Empty(Meter& m, const Parameters& p, Nanos now, Cells& cells, Cell& cell,
                      std::uint64_t state, Nanos margin, Nanos later_first) {
  HEADWAY_PAUSE();
  std::uint64_t expected = state;
  if (!cell.state.compare_exchange_strong(expected, state | Cell::kEmptying)) return false;
  HEADWAY_PAUSE();
  // A member that needs no answer comes and leaves `state` as it was, so one may have come since
  // the look. It is ours now, and is not let go but entered again.
  const bool due = Due(m.shape_, p, now, cell, state, margin, later_first);
  const Nanos counted = CountedBy(cell, state, margin, later_first);
  const std::int64_t amount = cell.sum.exchange(0);
  cell.begin.store(kNever);
  cell.newest.store(0);
  cell.last.store(0);
  cell.pending_until.store(0);
  cell.opaque_last.store(0);
  cell.opaque_first.store(kNever);
  cell.quiet_first.store(kNever);
  cell.calm_until.store(0);
  cell.lap.fetch_add(1);
  HEADWAY_PAUSE();
  // A closed cell that is still the newest stays closed until `open` has moved past it: whoever
  // finds it closed moves on. Any other becomes fresh.
  const std::uint64_t next = (state / Cell::kGeneration + 1) * Cell::kGeneration;
  if ((state & Cell::kClosed) != 0) {
    std::uint32_t open = cells.open.load();
    if (&cells.at(open) == &cell) cells.open.compare_exchange_strong(open, open + 1);
  }
  cell.state.store(next);
  HEADWAY_PAUSE();
  if (!due) {
    Taken ignored;
    Enter(m, p, counted, amount, /*answered=*/true, /*tell=*/true, ignored);
    return false;
  }
  Release(m, amount);
  return true;
}

// Lets go of what others have used when that has left.
bool CellMeter::FreeForeign(Meter& m, const Parameters& p, Nanos now, Cells& cells) {
  std::int64_t foreign = cells.foreign.load();
  if (foreign == 0 || Leaves(m.shape_, p, cells.foreign_last.load()) > now) return false;
  HEADWAY_PAUSE();
  if (!cells.foreign.compare_exchange_strong(foreign, 0)) return false;
  HEADWAY_PAUSE();
  if (Leaves(m.shape_, p, cells.foreign_last.load()) > now) {
    // Observed again in between, perhaps with the same figure. An observer moves `foreign_last`
    // first and looks at `foreign` then, so either it has seen the 0 and counts anew, or we put it
    // back.
    std::int64_t none = 0;
    if (cells.foreign.compare_exchange_strong(none, foreign)) return false;
  }
  Release(m, foreign);
  return true;
}

bool CellMeter::Free(Meter& m, const Parameters& p, Nanos now) {
  Cells* cells = m.cells_.load(std::memory_order_acquire);
  if (cells == nullptr) return false;
  bool freed = FreeForeign(m, p, now, *cells);
  const std::uint32_t open = cells->open.load();
  const bool in_order = cells->in_order.load();
  const Nanos margin = cells->known_margin();
  Nanos later_first = kUntold;
  // Newest first, so that what later cells say of earlier ones is known when it is needed.
  for (std::uint32_t back = 0; back < Cells::kRing; ++back) {
    Cell& cell = cells->at(open - back);
    const std::uint64_t state = cell.state.load();
    const Nanos earlier = Earlier(cell, margin, p.period);
    const bool holds = cell.sum.load() != 0;
    const bool touched = holds || cell.begin.load() != kNever;
    // The open cell with nothing in it stays as it is: members may come.
    const bool stays = back == 0 && state % Cell::kGeneration == 0 && !holds;
    if ((state & Cell::kEmptying) == 0 && touched && !stays) {
      HEADWAY_PAUSE();
      if (Due(m.shape_, p, now, cell, state, margin, later_first))
        freed |= Empty(m, p, now, *cells, cell, state, margin, later_first);
    }
    if (in_order) later_first = std::min(later_first, earlier);
  }
  if (freed) Owe(m);
  return freed;
}

// Units have moved between `used` and the cells, and whoever looked meanwhile could not tell when
// they leave.
void CellMeter::Owe(Meter& m) {
  if (Word{m.word_.load()}.waiters()) m.cells().owes_signal.store(true);
}

// Whether a member that begins at `now` belongs into the next cell rather than in this one.
bool CellMeter::WantsClose(Shape shape, const Parameters& p, Nanos now, const Cell& cell,
                           std::uint64_t state) {
  const Nanos begin = cell.begin.load();
  if (begin == kNever) return false;
  // Threads do not agree on `now` to the microsecond: a member that comes a little before the first
  // may stay, since the cell leaves by its latest.
  const Nanos span = p.period / Cells::kSplit;
  return Cells::Full(cell.sum.load(), p.amount) || now - begin >= span || begin - now >= span ||
         Cell::pins(state) + Cell::pending(state) >= Cell::kMaxMembers ||
         (shape == Shape::kFixed && WindowStart(p, begin) < WindowStart(p, now));
}

void CellMeter::Enter(Meter& m, const Parameters& p, Nanos now, std::int64_t amount, bool answered,
                      bool tell, Taken& taken) {
  Cells& cells = m.cells();
  for (;;) {
    std::uint32_t open = cells.open.load();
    Cell& cell = cells.at(open);
    HEADWAY_PAUSE();
    std::uint64_t state = cell.state.load();
    const bool passed = (state & (Cell::kClosed | Cell::kEmptying)) != 0;
    if (passed || WantsClose(m.shape_, p, now, cell, state)) {
      // The next cell, once seen fresh, stays so until `open` moves: only moving it uses it.
      if (cells.at(open + 1).fresh()) {
        HEADWAY_PAUSE();
        if (!passed && !cell.state.compare_exchange_strong(state, state | Cell::kClosed)) continue;
        HEADWAY_PAUSE();
        cells.open.compare_exchange_strong(open, open + 1);
        continue;
      }
      // The whole ring is held: let go of what has left unnoticed, since nothing was refused so
      // far.
      if (Free(m, p, now)) continue;
      if (passed) {
        // … and this cell is being emptied by a thread that was stopped there.
        std::this_thread::yield();
        continue;
      }
    }
    HEADWAY_PAUSE();
    const std::uint64_t mine = Cell::kBusy + (answered ? 0 : Cell::kPin);
    if (!cell.state.compare_exchange_strong(state, state + mine)) continue;
    HEADWAY_PAUSE();
    if (cells.open.load() != open) {
      // It was closed, emptied and fresh again between the two looks: an earlier place in the
      // order.
      cell.state.fetch_sub(mine);
      continue;
    }
    HEADWAY_PAUSE();
    Nanos unset = kNever;
    cell.begin.compare_exchange_strong(unset, now);
    StoreMax(cell.newest, now);
    cell.sum.fetch_add(amount);
    if (answered) StoreMax(cell.last, now);
    const std::uint32_t lap = cell.lap.load();
    HEADWAY_PAUSE();
    cell.state.fetch_sub(Cell::kBusy);
    taken.amount = amount;
    taken.cell = open % Cells::kRing;
    taken.cell_generation = Cell::generation(state);
    taken.full_for_or_lap = lap;
    taken.after = Word{m.word_.load()}.value() - cells.foreign.load();
    HEADWAY_PAUSE();
    if (tell) Owe(m);
    return;
  }
}

bool CellMeter::Take(Meter& m, Nanos now, std::int64_t amount, bool pass_waiters, bool answered,
                     bool begins, Taken& taken) {
  std::uint64_t bits = m.word_.load(std::memory_order_acquire);
  for (;;) {
    const Word word{bits};
    if (word.waiters() && !pass_waiters) return false;
    const Parameters p = m.slots_.Load(word.generation());
    HEADWAY_PAUSE();
    if (amount > p.amount || word.value() > p.amount - amount) {
      const bool freed = amount <= p.amount && Free(m, p, now);
      const std::uint64_t again = m.word_.load(std::memory_order_acquire);
      if (again == bits && !freed) return false;
      bits = again;
      continue;
    }
    if (!m.word_.compare_exchange_weak(bits, word.with_value(word.value() + amount).bits)) continue;
    HEADWAY_PAUSE();
    // The scheduler itself needs no signal: it looks again after it has admitted.
    if (begins) {
      Enter(m, p, now, amount, answered, /*tell=*/!pass_waiters, taken);
    } else {
      taken.amount = amount;
      taken.cell = Cells::kNone;
    }
    return true;
  }
}

// Whoever looked before could not tell when it leaves, and nor can whoever looks now: its answer
// tells, or one in a later cell.
void CellMeter::Begin(Meter& m, Nanos now, Taken& taken) {
  Enter(m, m.parameters(), now, taken.amount, /*answered=*/false, /*tell=*/false, taken);
}

void CellMeter::CountEarlier(Meter& m, Nanos counted_by, std::int64_t amount) {
  m.word_.fetch_add(static_cast<std::uint64_t>(amount) << Word::kValueShift);
  HEADWAY_PAUSE();
  Taken taken;
  Enter(m, m.parameters(), counted_by, amount, /*answered=*/true, /*tell=*/true, taken);
  GoesAhead(m, taken);
}

std::vector<RunOfCalls> CellMeter::Runs(Meter& m) {
  Cells& cells = m.cells();
  const std::uint32_t open = cells.open.load();
  std::vector<RunOfCalls> runs;
  for (std::uint32_t back = 0; back < Cells::kRing; ++back) {
    const Cell& cell = cells.at(open - back);
    const std::uint64_t state = cell.state.load();
    const RunOfCalls run{cell.begin.load(), cell.newest.load(), cell.sum.load()};
    // Emptied meanwhile, it may tell of others.
    if (run.amount > 0 && run.first != kNever && (state & Cell::kEmptying) == 0 &&
        Cell::generation(cell.state.load()) == Cell::generation(state))
      runs.push_back(run);
  }
  return runs;
}

// The next to begin does so in another cell, if there is one: else this one's slot would leave with
// theirs.
void CellMeter::GoesAhead(Meter& m, const Taken& taken) {
  Cells& cells = m.cells();
  std::uint32_t open = cells.open.load();
  Cell& cell = cells.at(open);
  if (taken.cell != open % Cells::kRing || !cells.at(open + 1).fresh()) return;
  HEADWAY_PAUSE();
  std::uint64_t state = cell.state.load();
  while (Cell::generation(state) == taken.cell_generation &&
         (state & (Cell::kClosed | Cell::kEmptying)) == 0 && cells.open.load() == open) {
    HEADWAY_PAUSE();
    if (!cell.state.compare_exchange_strong(state, state | Cell::kClosed)) continue;
    HEADWAY_PAUSE();
    cells.open.compare_exchange_strong(open, open + 1);
    return;
  }
}

std::optional<std::size_t> CellMeter::Look(Meter& m, const Parameters& p, AllLeaving& leaving) {
  Cells& cells = m.cells();
  std::size_t count = 0;
  const std::uint32_t open = cells.open.load();
  const bool in_order = cells.in_order.load();
  const Nanos margin = cells.known_margin();
  Nanos later_first = kUntold;
  for (std::uint32_t back = 0; back < Cells::kRing; ++back) {
    const Cell& cell = cells.at(open - back);
    const std::uint64_t state = cell.state.load();
    const std::int64_t sum = cell.sum.load();
    if (sum > 0) HEADWAY_PAUSE();
    const Nanos earlier = Earlier(cell, margin, p.period);
    const Nanos counted = CountedBy(cell, state, margin, later_first);
    // Half emptied, a cell tells nothing; whoever empties it signals when it is done.
    const bool emptying = (state & Cell::kEmptying) != 0;
    const bool takes_more = back == 0 && (state & Cell::kClosed) == 0;
    if (sum > 0)
      leaving[count++] = {
          emptying ? kUntold : Leaves(m.shape_, p, counted), sum,
          takes_more ? cell.begin.load() : kNever, Leaves(m.shape_, p, cell.newest.load()),
          std::uint64_t{cell.lap.load()} * Cells::kRing + (open - back) % Cells::kRing};
    if (in_order) later_first = std::min(later_first, earlier);
    if (cell.state.load() != state) return std::nullopt;
  }
  if (const std::int64_t foreign = cells.foreign.load(); foreign > 0)
    leaving[count++] = {Leaves(m.shape_, p, cells.foreign_last.load()), foreign, kNever, 0,
                        kForeign};
  std::sort(leaving.begin(), leaving.begin() + static_cast<std::ptrdiff_t>(count),
            [](const Leaving& a, const Leaving& b) { return a.at < b.at; });
  return count;
}

std::int64_t CellMeter::Holds(Meter& m, std::vector<Departure>& departures) {
  for (;;) {
    departures.clear();
    // Others' are moved between the two, and which comes first differs: the less of them is ours,
    // the more is said to be.
    const std::int64_t others = m.Others();
    const Word word{m.word_.load()};
    const std::int64_t foreign = std::min(others, m.Others());
    if (word.value() == 0) return 0;
    AllLeaving leaving{};
    const std::optional<std::size_t> count = Look(m, m.parameters(), leaving);
    if (!count) continue;
    for (std::size_t i = 0; i < *count; ++i)
      if (leaving[i].at < kUntold && leaving[i].run != kForeign)
        departures.push_back({leaving[i].run, leaving[i].amount, leaving[i].at});
    return word.value() - foreign;
  }
}

Nanos CellMeter::ReadyAt(Meter& m, Nanos now, std::int64_t amount) {
  for (;;) {
    const Word word{m.word_.load()};
    const Parameters p = m.slots_.Load(word.generation());
    if (amount > p.amount) {
      if (m.word_.load() != word.bits) continue;
      return kNever;
    }
    if (word.value() <= p.amount - amount) return now;
    if (Free(m, p, now)) continue;
    AllLeaving leaving{};
    const std::optional<std::size_t> count = Look(m, p, leaving);
    if (!count || Word{m.word_.load()}.bits != word.bits) continue;
    std::int64_t over = word.value() - (p.amount - amount);
    Nanos at = now;
    for (std::size_t i = 0; i < *count && over > 0; ++i) {
      over -= leaving[i].amount;
      at = std::max(at, leaving[i].at);
    }
    return over > 0 || at >= kUntold ? kUntold : at;
  }
}

void CellMeter::Foresee(Meter& m, Nanos now, MeterForecast& out) {
  for (;;) {
    const Word word{m.word_.load()};
    const Parameters p = m.slots_.Load(word.generation());
    if (word.value() > 0 && Free(m, p, now)) continue;
    AllLeaving leaving{};
    const std::optional<std::size_t> count =
        word.value() > 0 ? Look(m, p, leaving) : std::optional<std::size_t>(0);
    if (!count || Word{m.word_.load()}.bits != word.bits) continue;
    out.p_ = p;
    out.used_ = word.value();
    std::int64_t unbegun = word.value();
    for (std::size_t i = 0; i < *count; ++i) {
      const Leaving& each = leaving[i];
      unbegun -= each.amount;
      const Nanos leaves = each.at < kUntold ? each.at : each.least;
      if (each.at < kUntold || leaves > now) out.Leave(leaves, each.open_since, each.amount);
    }
    if (unbegun > 0) out.Leave(Leaves(m.shape_, p, now), kNever, unbegun);
    std::int64_t told = 0;
    for (const MeterForecast::Leaving& each : out.leaving_) told += each.amount;
    out.stuck_ = told < out.used_;
    return;
  }
}

// Enters the cell of a member again if it still holds that: afterwards nobody can empty it until
// the caller has left (state -= kBusy). Null where it has left.
Cell* CellMeter::EnterAgain(Meter& m, const Taken& taken) {
  Cell& cell = m.cells().ring[taken.cell];
  std::uint64_t state = cell.state.load();
  for (;;) {
    if (Cell::generation(state) != taken.cell_generation || (state & Cell::kEmptying) != 0)
      return nullptr;
    if (cell.state.compare_exchange_weak(state, state + Cell::kBusy)) break;
    HEADWAY_PAUSE();
  }
  if (cell.lap.load() == taken.full_for_or_lap) return &cell;
  cell.state.fetch_sub(Cell::kBusy);
  return nullptr;
}

bool CellMeter::GiveBack(Meter& m, const Taken& taken, std::int64_t amount, bool cancel) {
  if (taken.cell == Cells::kNone) {
    Release(m, amount);
    HEADWAY_PAUSE();
    return Word{m.word_.load()}.waiters();
  }
  Cell* const entered = EnterAgain(m, taken);
  if (entered == nullptr) return Word{m.word_.load()}.waiters();
  Cell& cell = *entered;
  HEADWAY_PAUSE();
  cell.sum.fetch_sub(amount);
  HEADWAY_PAUSE();
  Release(m, amount);
  HEADWAY_PAUSE();
  cell.state.fetch_sub(Cell::kBusy + (cancel ? Cell::kPin : 0));
  HEADWAY_PAUSE();
  return Word{m.word_.load()}.waiters();
}

namespace {

// Counts `amount` more, whether or not it fits; absurd sums stop where the word ends. Gives what
// was counted.
std::int64_t Add(std::atomic<std::uint64_t>& of, std::int64_t amount) {
  std::uint64_t bits = of.load();
  for (;;) {
    const Word word{bits};
    const std::int64_t more = std::min(amount, Word::kMaxValue / 2 - word.value());
    if (more <= 0) return 0;
    HEADWAY_PAUSE();
    if (of.compare_exchange_weak(bits, word.with_value(word.value() + more).bits)) return more;
  }
}

}  // namespace

void CellMeter::Charge(Meter& m, Nanos now, std::int64_t amount) {
  const std::int64_t more = Add(m.word_, amount);
  HEADWAY_PAUSE();
  Taken ignored;
  if (more > 0) Enter(m, m.parameters(), now, more, /*answered=*/true, /*tell=*/true, ignored);
}

void CellMeter::Force(Meter& m, Nanos now, std::int64_t amount, Taken& taken) {
  const std::int64_t more = Add(m.word_, amount);
  HEADWAY_PAUSE();
  if (more > 0) Enter(m, m.parameters(), now, more, /*answered=*/false, /*tell=*/true, taken);
}

// Who comes with a crowd tells of those who came just before it, too: they have waited for it. The
// cells before may be emptied or begun anew meanwhile; what is then said of the wrong one makes it
// leave later, no worse.
void CellMeter::Begun(Meter& m, const Taken& taken, Nanos now, Nanos waited) {
  Cells& cells = m.cells();
  const Nanos until = waited >= kUntold ? kUntold : now + Guard(m.parameters().period) + waited;
  StoreMax(cells.at(taken.cell).calm_until, until);
  if (waited == 0) return;
  for (std::uint32_t back = 1; back < Cells::kRing; ++back) {
    Cell& before = cells.at(taken.cell - back);
    if (before.newest.load() + kCrowdSpan <= now || before.calm_until.load() >= until) return;
    StoreMax(before.calm_until, until);
  }
}

bool CellMeter::Sent(Meter& m, const Taken& taken, Nanos counted_by) {
  Cell* const entered = EnterAgain(m, taken);
  if (entered == nullptr) return Word{m.word_.load()}.waiters();
  Cell& cell = *entered;
  StoreMax(cell.pending_until, counted_by);
  HEADWAY_PAUSE();
  cell.state.fetch_sub(Cell::kBusy + Cell::kPin - Cell::kPending);
  HEADWAY_PAUSE();
  return Word{m.word_.load()}.waiters();
}

bool CellMeter::Answered(Meter& m, const Taken& taken, Nanos at, Answer answer, bool pinned,
                         Nanos began) {
  Cell* const entered = EnterAgain(m, taken);
  if (entered == nullptr) return Word{m.word_.load()}.waiters();
  Cell& cell = *entered;
  if (answer == Answer::kOpaque) {
    StoreMax(cell.opaque_last, at);
    StoreMin(cell.opaque_first, at);
  } else if (answer == Answer::kQuiet) {
    const Nanos guard = Guard(m.parameters().period);
    const Nanos counted_by = std::min(at - m.cells().known_margin(), began + guard);
    StoreMax(cell.last, counted_by);
    StoreMin(cell.quiet_first, counted_by);
  } else {
    StoreMax(cell.last, at);
  }
  HEADWAY_PAUSE();
  cell.state.fetch_sub(Cell::kBusy + (pinned ? Cell::kPin : Cell::kPending));
  HEADWAY_PAUSE();
  return Word{m.word_.load()}.waiters();
}

// The least of all that are told: threads may tell out of order, and a margin once found too large
// must not come back.
void CellMeter::SetMargin(Meter& m, Nanos margin) { StoreMin(m.cells().margin, margin); }

// What others have used is one cell more, replaced by the next observation. Two observers at once
// each move `used` by what they themselves replaced, so the sum stays right.
void CellMeter::Raise(Meter& m, std::int64_t bound, Nanos at) {
  Cells& cells = m.cells();
  bound = std::min(bound, Limit::kMaxAmount);
  StoreMax(cells.foreign_last, at);
  HEADWAY_PAUSE();
  std::int64_t seen = cells.foreign.load();
  while (seen < bound) {
    // Counted before it is stored: `used` errs upwards in between.
    m.word_.fetch_add(static_cast<std::uint64_t>(bound - seen) << Word::kValueShift);
    HEADWAY_PAUSE();
    const std::int64_t expected = seen;
    const bool done = cells.foreign.compare_exchange_strong(seen, bound);
    if (!done) Release(m, bound - expected);
    HEADWAY_PAUSE();
    Owe(m);
    if (done) return;
  }
}

bool CellMeter::Lower(Meter& m, std::int64_t bound) {
  Cells& cells = m.cells();
  std::int64_t seen = cells.foreign.load();
  while (seen > bound) {
    if (!cells.foreign.compare_exchange_strong(seen, bound)) continue;
    HEADWAY_PAUSE();
    Release(m, seen - bound);
    return Word{m.word_.load()}.waiters();
  }
  return false;
}

// FreeForeign looks at `foreign_last` twice, and either value will do.
void CellMeter::OthersLeaveBy(Meter& m, Nanos at) {
  StoreMin(m.cells().foreign_last, at - m.parameters().period);
  HEADWAY_PAUSE();
  Owe(m);
}

std::int64_t CellMeter::Used(Meter& m, Nanos now) {
  const Word word{m.word_.load()};
  Free(m, m.slots_.Load(word.generation()), now);
  return Word{m.word_.load()}.value();
}

}  // namespace headway
