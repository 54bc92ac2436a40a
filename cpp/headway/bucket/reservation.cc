// headway/bucket/reservation.cc: a reservation's life.
#include "headway/bucket/reservation.h"

#include <algorithm>

#include "headway/bucket/bucket.h"

namespace headway {

bool Reservation::Sent(Nanos now, Nanos network_delay) {
  if (bucket_ == nullptr || (state_.fetch_or(kSent) & (kSent | kEnded)) != 0) return false;
  sent_at_.store(now);
  if (network_delay < 0 || bucket_->calls_ == nullptr) return true;
  const Nanos counted_by = now + std::max(network_delay, Calls::kLeastNetworkDelay);
  bool signal = bucket_->calls_->SawTransport();
  bounded_.store(true);
  for (int i = 0; i < bucket_->size(); ++i)
    signal |= bucket_->meter(i).Sent(taken_[static_cast<std::size_t>(i)], counted_by);
  if (signal) bucket_->Signal();
  return true;
}

bool Reservation::Answered(Nanos now, bool refused) {
  if (bucket_ == nullptr) return false;
  const std::uint8_t before = state_.fetch_or(kAnswered | kSent);
  if ((before & (kAnswered | kEnded)) != 0) return false;
  if (bucket_->calls_ == nullptr) return true;
  Calls& calls = *bucket_->calls_;
  const Answer answer = refused ? Answer::kRefused : bounded_.load() ? Answer::kBounded : Answer::kOpaque;
  const bool pinned = !bounded_.load();
  const Nanos began = sent_at_.load() == kNever ? admitted_at_ : sent_at_.load();
  const bool learnt = answer == Answer::kOpaque && tells_ && now > began && calls.Learn(now - began);
  bool signal = calls.End(/*answered=*/true);
  for (int i = 0; i < bucket_->size(); ++i) {
    Meter& meter = bucket_->meter(i);
    if (learnt) meter.SetMargin(calls.Margin());
    // With a transport's marks in the bucket, or after a refusal, nothing is assumed about the order.
    if (refused || calls.transport()) meter.StopTrustingOrder();
    signal |= meter.Answered(taken_[static_cast<std::size_t>(i)], now, answer, pinned);
  }
  signal |= learnt;
  if (signal && bucket_->has_waiters()) bucket_->Signal();
  return true;
}

bool Reservation::Settle(Nanos now, absl::Span<const std::int64_t> actual) {
  if (bucket_ == nullptr) return false;
  Answered(now, /*refused=*/false);
  if ((state_.fetch_or(kEnded) & kEnded) != 0) return false;
  const Debt debt = bucket_->debt_.load();
  bool signal = false;
  for (int i = 0; i < bucket_->size(); ++i) {
    const Taken& taken = taken_[static_cast<std::size_t>(i)];
    Meter& meter = bucket_->meter(i);
    if (meter.shape() == Shape::kConcurrency) {
      signal |= meter.GiveBack(now, taken, taken.amount, debt, /*cancel=*/false);
      continue;
    }
    if (actual.empty()) continue;
    const std::int64_t used = actual[static_cast<std::size_t>(bucket_->resource(i))];
    if (used < 0) continue;
    if (used < taken.amount) {
      signal |= meter.GiveBack(now, taken, taken.amount - used, debt, /*cancel=*/false);
    } else if (used > taken.amount) {
      meter.Charge(now, taken, used - taken.amount);
    }
  }
  if (signal) bucket_->Signal();
  return true;
}

bool Reservation::Cancel(Nanos now) {
  std::uint8_t held = 0;
  if (bucket_ == nullptr || !state_.compare_exchange_strong(held, kSent | kAnswered | kEnded)) return false;
  const Debt debt = bucket_->debt_.load();
  bool signal = bucket_->calls_ != nullptr && bucket_->calls_->End(/*answered=*/false);
  for (int i = bucket_->size() - 1; i >= 0; --i) {
    const Taken& taken = taken_[static_cast<std::size_t>(i)];
    signal |= bucket_->meter(i).GiveBack(now, taken, taken.amount, debt, /*cancel=*/true);
  }
  if (signal) bucket_->Signal();
  return true;
}

}  // namespace headway
