// headway/meter/forecast.h: what one limit will admit when, on paper.
#ifndef HEADWAY_METER_FORECAST_H_
#define HEADWAY_METER_FORECAST_H_

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "headway/meter/meter.h"

namespace headway {

// A copy of a meter's state, to be taken from while the meter itself stays as it is. It counts as
// the meter would if each call was counted as it begins, those that are out by now as well, and
// nothing was given back. A call that should have left a window by that, and whose answer is still
// out, may take any time: what waits for it is kUntold. First in, first out: nothing is admitted
// before what was taken last.
//
// For one thread. Copied freely: cells are merged as the meter merges its own, so there are at most
// some tens of them.
class MeterForecast {
 public:
  // As the meter is at `now`. `answered` as in Meter::Take.
  MeterForecast(Meter& meter, Nanos now, bool answered);

  // When `amount` fits, `from` at the earliest; kUntold, kNever: see clock.h.
  Nanos Earliest(Nanos from, std::int64_t amount) const;
  // Takes it then. At kUntold: whoever comes behind it is kUntold, too.
  void Take(Nanos at, std::int64_t amount);
  // When it was taken from last; before that, when it was made.
  Nanos last() const { return last_; }

 private:
  friend class BucketMeter;
  friend class CellMeter;

  // Units that leave together. `open_since`: when the first of them began, where more may join
  // them; else kNever.
  struct Leaving {
    Nanos leaves;
    Nanos open_since;
    std::int64_t amount;
  };

  void Leave(Nanos leaves, Nanos open_since, std::int64_t amount);
  bool IsFull(Nanos at) const { return word_ == 0 || word_ <= at - guard_; }

  Shape shape_;
  Parameters p_;
  Nanos last_;             // when it was taken from last
  Nanos guard_ = 0;        // bucket
  Nanos word_ = 0;         // bucket: by when all is paid for
  Nanos began_ = 0;        // bucket: as Meter::began_
  std::int64_t used_ = 0;  // others: units in use, those that only answers can tell of, too
  absl::InlinedVector<Leaving, 4> leaving_;  // window, fixed: in that order
  bool stuck_ = false;                       // some of what is in use is not in it
};

}  // namespace headway

#endif  // HEADWAY_METER_FORECAST_H_
