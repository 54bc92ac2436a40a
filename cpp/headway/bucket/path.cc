// headway/bucket/path.cc: admission through gate, account and bucket, all or nothing.
#include "headway/bucket/path.h"

#include <utility>

#include "headway/base/pause.h"

namespace headway {

Path::~Path() {
  bucket_->Unref();
  if (gate_ != nullptr) gate_->Unref();
  if (account_ != nullptr) account_->Unref();
}

std::optional<Refusal> Path::TryReserve(Nanos now, absl::Span<const std::int64_t> amounts,
                                        bool privileged, Reservation& out, bool looked) const {
  Bucket* const limits = this->limits();
  if (gate_ != nullptr && !gate_->TryEnter(now, privileged))
    return Refusal{Denial{0, kUntold}, gate_};
  HEADWAY_PAUSE();
  std::unique_ptr<Reservation> of_account;
  if (limits != nullptr) {
    of_account = std::make_unique<Reservation>();
    if (const auto denial =
            limits->TryReserve(now, amounts, privileged, *of_account, /*answered=*/true)) {
      if (gate_ != nullptr) gate_->Leave(now);
      return Refusal{*denial, limits};
    }
  }
  HEADWAY_PAUSE();
  if (const auto denial =
          bucket_->TryReserve(now, amounts, privileged, out, /*answered=*/false, looked)) {
    if (of_account != nullptr) of_account->Cancel(now);
    if (gate_ != nullptr) gate_->Leave(now);
    return Refusal{*denial, bucket_};
  }
  out.Attach(gate_, std::move(of_account));
  return std::nullopt;
}

Refusal Path::Look(Nanos now, absl::Span<const std::int64_t> amounts) const {
  Refusal refusal{bucket_->Look(now, amounts), bucket_};
  if (limits() != nullptr) {
    const Denial own = limits()->Look(now, amounts, /*answered=*/true);
    if (own.ready_at > refusal.denial.ready_at) refusal = Refusal{own, limits()};
  }
  return refusal;
}

}  // namespace headway
