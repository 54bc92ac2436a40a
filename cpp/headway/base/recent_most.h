// headway/base/recent_most.h: the most of late.
#ifndef HEADWAY_BASE_RECENT_MOST_H_
#define HEADWAY_BASE_RECENT_MOST_H_

#include <algorithm>

#include "headway/base/clock.h"

namespace headway {

// The largest of the durations that were noted within the last minute, and perhaps the two before
// it: more than that need not be told apart. Not thread-safe.
class RecentMost {
 public:
  void Note(Nanos at, Nanos value) {
    if (at - since_ >= kSpan) {
      before_ = at - since_ < 2 * kSpan ? most_ : 0;
      most_ = 0;
      since_ = at;
    }
    most_ = std::max(most_, value);
  }
  // 0 where none was.
  Nanos most() const { return std::max(most_, before_); }

 private:
  static constexpr Nanos kSpan = 60 * kSecond;

  Nanos most_ = 0;
  Nanos before_ = 0;
  Nanos since_ = 0;
};

}  // namespace headway

#endif  // HEADWAY_BASE_RECENT_MOST_H_
