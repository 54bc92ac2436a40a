// headway/bucket/path.h: everything that one request is admitted through, and on whose account.
#ifndef HEADWAY_BUCKET_PATH_H_
#define HEADWAY_BUCKET_PATH_H_

#include <atomic>
#include <cstdint>
#include <optional>

#include "headway/base/cache_line.h"
#include "headway/bucket/bucket.h"

namespace headway {

// A tenant whose requests share buckets with those of others, by weight, and may have limits of its
// own, which hold over all buckets together. The caller's own: they are counted at admission.
//
// Immutable, but for the limits' state. Reference-counted; made with one reference.
class Account {
 public:
  // weight: more than 0. limits: null, or a bucket that numbers resources as the others do.
  explicit Account(double weight, Bucket* limits = nullptr) : weight_(weight), limits_(limits) {
    if (limits_ != nullptr) limits_->Ref();
  }

  void Ref() const { references_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() const {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  double weight() const { return weight_; }
  Bucket* limits() const { return limits_; }

  Account(const Account&) = delete;
  Account& operator=(const Account&) = delete;

 private:
  ~Account() {
    if (limits_ != nullptr) limits_->Unref();
  }

  const double weight_;
  Bucket* const limits_;
  mutable std::atomic<std::uint32_t> references_{1};
};

// Why a path does not admit, and which of its buckets says so.
struct Refusal {
  Denial denial;
  Bucket* by = nullptr;
};

// The gate (how many may be under way at once, over all buckets), the account and the bucket of the
// provider. Immutable; reference-counted; made with one reference. A reservation's path must
// outlive it.
//
// Thread-safe. What is local and cheap to give back is taken first, the provider's bucket last; a
// refusal rolls back, so another thread may be refused falsely for as long as that takes.
// The padding is meant: see references_. NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
class Path {
 public:
  // ageing: what waiting is worth, for the whole bucket (see Scheduler); 0: as the scheduler has
  // it.
  explicit Path(Bucket* bucket, Bucket* gate = nullptr, Account* account = nullptr,
                Nanos ageing = 0)
      : bucket_(bucket), gate_(gate), account_(account), ageing_(ageing) {
    bucket_->Ref();
    if (gate_ != nullptr) gate_->Ref();
    if (account_ != nullptr) account_->Ref();
  }

  void Ref() const { references_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() const {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }
  // Whether there is more than one reference. Sure only where nobody else can make more.
  bool shared() const { return references_.load() > 1; }

  Bucket* bucket() const { return bucket_; }
  Bucket* gate() const { return gate_; }
  Account* account() const { return account_; }
  Nanos ageing() const { return ageing_; }
  Bucket* limits() const { return account_ == nullptr ? nullptr : account_->limits(); }

  // Takes the amounts (by resource, one numbering for all of the path) into `out` (fresh), or says
  // why not. `privileged` is for the scheduler alone: it may pass those who wait. `looked`: Look
  // has just said that it fits.
  std::optional<Refusal> TryReserve(Nanos now, absl::Span<const std::int64_t> amounts,
                                    bool privileged, Reservation& out, bool looked = false) const;

  // Looks only: what would bind, and when it would fit (`now` or earlier: it fits). Look leaves out
  // the gate.
  Refusal Look(Nanos now, absl::Span<const std::int64_t> amounts) const;
  Refusal LookAll(Nanos now, absl::Span<const std::int64_t> amounts) const {
    if (gate_ != nullptr && gate_->meter(0).ReadyAt(now, 1) > now)
      return Refusal{Denial{0, kUntold}, gate_};
    return Look(now, amounts);
  }

  bool EverFits(absl::Span<const std::int64_t> amounts) const {
    return bucket_->EverFits(amounts) && (limits() == nullptr || limits()->EverFits(amounts));
  }

  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;

 private:
  ~Path();

  Bucket* const bucket_;
  Bucket* const gate_;
  Account* const account_;
  const Nanos ageing_;
  // Each wait and each call has one, and whoever admits only reads what stands above.
  alignas(kCacheLine) mutable std::atomic<std::uint32_t> references_{1};
};

}  // namespace headway

#endif  // HEADWAY_BUCKET_PATH_H_
