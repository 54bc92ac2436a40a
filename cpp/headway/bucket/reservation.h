// headway/bucket/reservation.h: an admitted cost, until it is settled, cancelled or expired.
#ifndef HEADWAY_BUCKET_RESERVATION_H_
#define HEADWAY_BUCKET_RESERVATION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "headway/base/clock.h"
#include "headway/base/stack.h"
#include "headway/bucket/calls.h"
#include "headway/meter/meter.h"

namespace headway {

class Bucket;

// held → sent → answered → ended, exactly once.
//
// - What the scheduler admitted for somebody who waits is held for him until he takes it (`Begin`).
// - `Cancel` is possible only before `Sent`, and gives everything back.
// - `Sent` and `Answered` tell when the server can have counted the request; they free a slot of a
//   `window` or `fixed` limit at the right instant. A call that nobody can look into skips `Sent`.
// - `Settle` ends it with what was really used; `Expire` ends it when nobody will ever say (rates
//   keep the estimate and heal by time; concurrency is given back).
//
// Owned by whoever was admitted; the bucket must outlive it. Thread-safe: the verbs may race, the
// first one to end it wins, and every later one is a no-op that returns false.
//
// Memory ordering: `state_` is a set of bits moved by fetch_or (sequentially consistent); the
// thread that sets a bit first does that bit's work. One thread at a time tells the meters: while
// `Sent` is at it (kMarking), `Answered` leaves its instant behind, and whoever of the two clears
// the bit or sets kAnswered last tells them of the answer.
class Reservation {
 public:
  Reservation() = default;
  ~Reservation() = default;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  // Some of the memory is kept, for Reservations.
  static void* operator new(std::size_t size);
  static void operator delete(void* memory);

  // The request goes out at `now`. `network_delay` is the largest time that this host's connections
  // recently took to carry a request there (0 or more), or negative where nothing is known about
  // it: then only the answer tells. Returns whether it was held.
  bool Sent(Nanos now, Nanos network_delay);

  // The first sign of an answer is there. `refused`: the server did not admit it.
  bool Answered(Nanos now, bool refused);

  // Ends it. `actual` has one amount for each resource of the bucket, negative meaning "as
  // estimated"; empty means that for all. Less than the estimate is given back, more is taken.
  // `answered` false: no answer has come, or will (a connection that broke, a task that was
  // cancelled). The server may have counted it until now; but unlike an answer that says nothing of
  // the calls before it.
  bool Settle(Nanos now, absl::Span<const std::int64_t> actual, bool answered = true);

  // Ends it as if it had never been. Only before `Sent`.
  bool Cancel(Nanos now);

  // It was admitted for somebody who waited, and he goes on at `now`: his call begins, after all
  // calls that have begun by then, whenever they were admitted. Else it has begun already. By its
  // owner, once, before anybody else sees it.
  void Begin(Nanos now);

  // What was entered and reserved together with it ends with it. Once, before anybody else sees it.
  void Attach(Bucket* gate, std::unique_ptr<Reservation> of_account) {
    gate_ = gate;
    of_account_ = std::move(of_account);
  }

  // Ends it at the estimate, and without an answer.
  bool Expire(Nanos now) { return Settle(now, {}, /*answered=*/false); }
  // Whether it matters when it expires; else any instant will do, and no clock need be read.
  bool ExpiresInTime() const;

  // The answer is a failure: what it says is of the failure. Before `Answered`, by whoever tells of
  // that.
  void Failed() { failed_.store(true); }
  // Whether a refusal is known since it was admitted, and it is still held: what it was admitted to
  // may be used up.
  bool IsCalledOff() const;
  // Whether it went alone because nothing was known of its bucket; then, others wait for it for so
  // long in all.
  bool alone() const { return alone_; }
  void LetOthersWait(Nanos hold);

  bool held() const { return state_.load() == 0 && bucket_ != nullptr; }
  bool sent() const { return (state_.load() & kSent) != 0; }
  bool answered() const { return (state_.load() & kAnswered) != 0; }
  bool ended() const { return (state_.load() & kEnded) != 0; }
  Bucket* bucket() const { return bucket_; }
  Nanos began_at() const { return began_at_; }
  Nanos sent_at() const { return sent_at_.load(); }  // kNever: not told
  // How many of its bucket's calls had begun and not ended as it began, itself with them, and now;
  // 1 where nobody counts them.
  int out_before() const { return call_.out; }
  int out_now() const;
  // How many others of its bucket's calls are admitted and not answered now; 1 where nobody counts
  // them.
  std::int64_t others_unanswered() const;
  // When the server has counted it at the latest, by what `Sent` knew; kNever: it knew nothing.
  Nanos counted_by() const { return counted_by_.load(); }
  // How many of the bucket's limits it was taken of: those that there were then. By whoever owns
  // it, what of each.
  int size() const { return static_cast<int>(taken_.size()); }
  const Taken& taken(int meter) const { return taken_[static_cast<std::size_t>(meter)]; }

 private:
  friend class Bucket;

  static constexpr std::uint8_t kSent = 1;
  static constexpr std::uint8_t kAnswered = 2;
  static constexpr std::uint8_t kEnded = 4;
  static constexpr std::uint8_t kMarking = 8;   // Sent is telling the meters
  static constexpr std::uint8_t kRefused = 16;  // with kAnswered
  static constexpr std::uint8_t kLost = 32;     // with kAnswered: there was no answer

  // What its bucket's calls tell, where that is asked.
  Calls* calls() const;
  // `how`: 0, kRefused or kLost.
  bool AnsweredAs(Nanos now, std::uint8_t how);
  // Tells the meters of an answer at `answered_at_`.
  void TellAnswered(std::uint8_t how);

  Bucket* bucket_ = nullptr;
  Nanos began_at_ = 0;  // as far as is known without `Sent`
  std::atomic<Nanos> sent_at_{kNever};
  Calls::Call call_;
  std::atomic<std::uint8_t> state_{0};
  std::atomic<Nanos> counted_by_{kNever};
  std::atomic<Nanos> answered_at_{0};
  absl::InlinedVector<Taken, 4> taken_;  // by meter; most buckets have requests and three of tokens
  Bucket* gate_ = nullptr;
  bool untimed_ = false;  // it counts from its admission on: nobody asks when it was answered
  bool begun_ = true;
  Nanos ahead_ = 0;  // what Bucket::cold_ became when it went ahead of others; 0: it did not
  std::uint16_t place_ = 0;  // in Bucket::opening_
  bool alone_ = false;       // of a bucket that knows nothing yet: its answer tells
  std::atomic<bool> failed_{false};
  std::unique_ptr<Reservation> of_account_;
};

// Makes reservations, of memory that others have let go of where there is some.
//
// One thread makes those of all who wait, and others let go of them. With each from the allocator,
// the two contend for the lock of the arena that the first thread has there: 100,000 who were let
// go at once went on in 1.43 times what bare futures take, and with another allocator in 1.18.
//
// Not thread-safe; any number of these may make reservations at once.
class Reservations {
 public:
  Reservations() = default;
  ~Reservations();
  Reservations(const Reservations&) = delete;
  Reservations& operator=(const Reservations&) = delete;

  std::unique_ptr<Reservation> Make();

  // A sanitizer that looks for the use of what was let go of needs to see it go.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kKeeps = false;
#elif defined(__has_feature)
  static constexpr bool kKeeps = !__has_feature(address_sanitizer);
#else
  static constexpr bool kKeeps = true;
#endif

 private:
  friend class Reservation;
  struct Memory {
    Memory* next = nullptr;
  };
  // Let go of, and not taken yet: so many at most, about.
  static constexpr int kKept = 1'024;
  static Stack<Memory, &Memory::next> kept;
  static std::atomic<int> kept_count;

  Memory* mine_ = nullptr;
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_RESERVATION_H_
