// headway/schedule/bucket_queue.cc: order among those who wait.
#include "headway/schedule/bucket_queue.h"

#include <algorithm>
#include <functional>

namespace headway {
namespace {

const Account* AccountOf(const Waiter& w) {
  return w.path() == nullptr ? nullptr : w.path()->account();
}

// In seconds, what a request takes to be paid for by the limit that it needs most of. Where no rate
// is known, requests count alike, and as next to nothing beside those that one is known of.
constexpr float kLeastCost = 1e-9F;

float Cost(const Bucket& bucket, absl::Span<const std::int64_t> amounts) {
  float cost = kLeastCost;
  for (int i = 0; i < bucket.size(); ++i) {
    const std::int64_t amount = bucket.amount(i, amounts);
    if (amount == 0 || bucket.meter(i).shape() == Shape::kConcurrency) continue;
    const Parameters p = bucket.meter(i).parameters();
    if (p.amount == 0) continue;
    cost = std::max(cost, static_cast<float>(static_cast<double>(amount) *
                                             (static_cast<double>(p.period) / 1e9) /
                                             static_cast<double>(p.amount)));
  }
  return cost;
}

}  // namespace

std::uint32_t Asks(absl::Span<const std::int64_t> amounts) {
  std::uint32_t asks = 0;
  for (std::size_t i = 0; i < amounts.size(); ++i)
    if (amounts[i] > 0) asks |= std::uint32_t{1} << i;
  return asks;
}

void Flow::Append(Waiter* w) {
  w->previous_ = tail;
  w->next_ = nullptr;
  (tail != nullptr ? tail->next_ : head) = w;
  tail = w;
  w->flow_ = this;
  cost += static_cast<double>(w->cost_);
  for (std::size_t i = 0; i < w->amounts_.size(); ++i) queued[i] += w->amounts_[i];
}

void Flow::Unlink(Waiter* w) {
  (w->previous_ != nullptr ? w->previous_->next_ : head) = w->next_;
  (w->next_ != nullptr ? w->next_->previous_ : tail) = w->previous_;
  w->flow_ = nullptr;
  cost -= static_cast<double>(w->cost_);
  for (std::size_t i = 0; i < w->amounts_.size(); ++i) queued[i] -= w->amounts_[i];
}

void ClassQueue::Append(Waiter* w, const Account* account, Share* share) {
  ++size_;
  Flow* flow = last_;
  if (flow == nullptr || flow->account != account) {
    std::unique_ptr<Flow>& found = flows_[account];
    if (found == nullptr) {
      found = std::make_unique<Flow>(account, share, this, resources_);
      ++share->users;
    }
    flow = last_ = found.get();
  }
  const bool was_empty = flow->head == nullptr;
  if (flow->queued.size() < w->amounts().size()) flow->queued.resize(w->amounts().size());
  flow->Append(w);
  if (!was_empty || flow->parked_at != nullptr) return;
  ++share->flows;
  if (flow != elected_) Push(flow);
}

void ClassQueue::Unlink(Waiter* w) {
  --size_;
  Flow* flow = w->flow_;
  const bool was_head = flow == elected_ && flow->head == w;
  flow->Unlink(w);
  if (flow->head == nullptr && flow->parked_at == nullptr) --flow->share->flows;
  if (was_head) {
    held = 0;
    elsewhere = false;
    elected_ = nullptr;
    if (flow->head != nullptr) Push(flow);
  }
  EraseIfOver(flow);
}

void ClassQueue::Push(Flow* flow) {
  // By itself it need not be compared with anybody.
  if (elected_ == nullptr && flows_.size() == 1) {
    elected_ = flow;
    return;
  }
  if (flow->offered) return;  // what it says is corrected when it comes to the front
  flow->offered = true;
  offers_.push_back({flow->share->given, flow->head->sequence_, flow});
  std::push_heap(offers_.begin(), offers_.end(), std::greater<>());
}

void ClassQueue::Elect() {
  while (!offers_.empty()) {
    std::pop_heap(offers_.begin(), offers_.end(), std::greater<>());
    const Offer offer = offers_.back();
    offers_.pop_back();
    Flow* flow = offer.flow;
    flow->offered = false;
    if (flow->head == nullptr || flow->parked_at != nullptr) {
      EraseIfOver(flow);
    } else if (offer.given != flow->share->given || offer.sequence != flow->head->sequence_) {
      flow->offered = true;
      offers_.push_back({flow->share->given, flow->head->sequence_, flow});
      std::push_heap(offers_.begin(), offers_.end(), std::greater<>());
    } else {
      elected_ = flow;
      return;
    }
  }
}

void ClassQueue::EraseIfOver(Flow* flow) {
  if (flow->head != nullptr || flow->offered || flow->parked_at != nullptr || flow == elected_)
    return;
  if (last_ == flow) last_ = nullptr;
  --flow->share->users;
  flows_.erase(flow->account);
}

Flow* ClassQueue::Park(AccountPlace* place) {
  Flow* flow = elected_;
  flow->parked_at = place;
  --flow->share->flows;  // as if it was idle: it is owed nothing for that time
  elected_ = nullptr;
  held = 0;
  elsewhere = false;
  return flow;
}

void ClassQueue::Unpark(Flow* flow) {
  flow->parked_at = nullptr;
  if (flow->head != nullptr) {
    queue_->Return(*flow->share);
    ++flow->share->flows;
    Push(flow);
  } else {
    EraseIfOver(flow);
  }
}

ClassQueue& BucketQueue::ClassOf(const Waiter& w) {
  const std::uint32_t asks = Asks(w.amounts_);
  for (const auto& c : classes_)
    if (c->priority() == w.priority_ && c->asks() == asks) return *c;
  classes_.push_back(std::make_unique<ClassQueue>(this, w.priority_, asks, w.amounts_.size()));
  return *classes_.back();
}

Share* BucketQueue::ShareOf(const Account* account) {
  std::unique_ptr<Share>& share = shares_[account];
  if (share == nullptr) {
    share = std::make_unique<Share>(account);
    if (shares_.size() >= forget_at_) ForgetShares();
  }
  return shares_[account].get();
}

// Accounts that wait no more and are behind everybody else anyway: names come from outside.
void BucketQueue::ForgetShares() {
  for (auto it = shares_.begin(); it != shares_.end();) {
    const Share& share = *it->second;
    const auto here = it++;
    if (share.users == 0 && share.given > 0 && share.given <= virtual_now_) shares_.erase(here);
  }
  forget_at_ = 2 * shares_.size() + 64;
}

void BucketQueue::Append(Waiter* w) {
  const Account* account = AccountOf(*w);
  Share* share = ShareOf(account);
  if (account != nullptr) w->cost_ = Cost(*bucket, w->amounts());
  Return(*share);
  ClassOf(*w).Append(w, account, share);
  ++depth_;
}

void BucketQueue::Unlink(Waiter* w) {
  w->flow_->of->Unlink(w);
  --depth_;
}

void BucketQueue::Charge(Waiter* w) {
  Share& share = *w->flow_->share;
  virtual_now_ = std::max(virtual_now_, share.given);
  share.given += static_cast<double>(w->cost_) / share.weight;
}

absl::Span<ClassQueue* const> BucketQueue::Ordered(Nanos now, Nanos ageing) {
  // Priorities that came once and are gone would otherwise stay for ever.
  classes_.erase(std::remove_if(classes_.begin(), classes_.end(),
                                [](const auto& c) {
                                  bool over = c->empty();
                                  c->ForEachFlow([&](const Flow& flow) {
                                    over = over && flow.parked_at == nullptr;
                                  });
                                  return over;
                                }),
                 classes_.end());
  order_.clear();
  for (const auto& c : classes_)
    if (c->head() != nullptr) order_.push_back(c.get());
  std::sort(order_.begin(), order_.end(), [=](ClassQueue* a, ClassQueue* b) {
    const std::int64_t ea = a->Effective(now, ageing);
    const std::int64_t eb = b->Effective(now, ageing);
    if (ea != eb) return ea > eb;
    if (a->share().given != b->share().given) return a->share().given < b->share().given;
    return a->head()->sequence_ < b->head()->sequence_;
  });
  return order_;
}

absl::InlinedVector<std::int64_t, 4> BucketQueue::Ahead(std::int32_t priority,
                                                        const Account* account,
                                                        std::size_t resources) const {
  // By what its account will have been given when its turn comes, its own that wait included.
  const auto own = shares_.find(account);
  double given = own == shares_.end() ? 0 : own->second->given;
  if (own == shares_.end() || own->second->flows == 0) given = std::max(given, virtual_now_);
  for (const auto& c : classes_)
    c->ForEachFlow([&](const Flow& flow) {
      if (flow.account == account && c->priority() >= priority)
        given += flow.cost / flow.share->weight;
    });
  absl::InlinedVector<std::int64_t, 4> sum(resources);
  for (const auto& c : classes_) {
    if (c->priority() < priority) continue;
    const bool equal = c->priority() == priority;
    c->ForEachFlow([&](const Flow& flow) {
      // Of another account of this priority, as much as brings it up to there.
      double part = 1;
      if (equal && flow.account != account && flow.cost > 0)
        part = std::clamp((given - flow.share->given) * flow.share->weight / flow.cost, 0.0, 1.0);
      for (std::size_t i = 0; i < std::min(resources, flow.queued.size()); ++i)
        sum[i] += part == 1 ? flow.queued[i]
                            : static_cast<std::int64_t>(part * static_cast<double>(flow.queued[i]));
    });
  }
  return sum;
}

std::size_t BucketQueue::Demand(Nanos now, Nanos ageing_by_default, std::size_t most,
                                absl::Span<std::int64_t> amounts) {
  std::fill(amounts.begin(), amounts.end(), 0);
  std::size_t count = 0;
  const auto add = [&](const Waiter* w) {
    for (; w != nullptr && count < most; w = w->next_) {
      if (w->outcome() != Outcome::kWaiting) continue;  // cancelled: its owner pushes it, or has
      ++count;
      for (std::size_t i = 0; i < std::min(amounts.size(), w->amounts_.size()); ++i)
        amounts[i] += w->amounts_[i];
    }
  };
  // As the scheduler admits: behind a head that something else holds up, credit helps nobody who
  // asks what that waits for; and whoever does not ask it must not be counted out by them.
  std::uint32_t blocked = 0;
  for (ClassQueue* c : Ordered(now, ageing != 0 ? ageing : ageing_by_default)) {
    if ((c->asks() & blocked) != 0) continue;
    if (c->elsewhere) {
      blocked |= c->held;
      continue;
    }
    // Whose turn it is first: it is what a grant must be enough for.
    const Waiter* head = c->head();
    add(head);
    c->ForEachFlow([&](const Flow& flow) {
      if (flow.head != head && flow.parked_at == nullptr) add(flow.head);
    });
  }
  return count;
}

Waiter* BucketQueue::Oldest() const {
  Waiter* oldest = nullptr;
  ForEachFlow([&](const Flow& flow) {
    if (flow.head != nullptr && (oldest == nullptr || flow.head->sequence_ < oldest->sequence_))
      oldest = flow.head;
  });
  return oldest;
}

Waiter* BucketQueue::OldestNewcomer(const Bucket* gate) const {
  Waiter* oldest = nullptr;
  ForEachFlow([&](const Flow& flow) {
    for (Waiter* w = flow.head; w != nullptr; w = w->next_) {
      if (oldest != nullptr && oldest->sequence_ < w->sequence_) return;
      if (w->again_ || (w->path_ == nullptr ? nullptr : w->path_->gate()) != gate) continue;
      oldest = w;
      return;
    }
  });
  return oldest;
}

Turn TurnOf(const Waiter& head, std::int32_t priority, Nanos ageing) {
  return {head.submitted() - static_cast<__int128>(priority) * ageing, BucketQueue::Sequence(head)};
}

void GateQueue::Park(BucketQueue* queue, ClassQueue& heads, Nanos ageing) {
  queue->gate = this;
  queue->at_gate_for = &heads;
  queue->at_gate = TurnOf(*heads.head(), heads.priority(), ageing);
  parked_.insert({queue->at_gate, queue});
}

void GateQueue::Unpark(BucketQueue* queue) {
  parked_.erase({queue->at_gate, queue});
  queue->gate = nullptr;
}

BucketQueue* GateQueue::Next() {
  BucketQueue* queue = parked_.begin()->second;
  Unpark(queue);
  return queue;
}

}  // namespace headway
