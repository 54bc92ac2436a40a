// headway/schedule/bucket_queue.cc: order among those who wait.
#include "headway/schedule/bucket_queue.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

namespace headway {
namespace {

const Account* AccountOf(const Waiter& w) {
  return w.path() == nullptr ? nullptr : w.path()->account();
}

const Bucket* GateOf(const Waiter& w) { return w.path() == nullptr ? nullptr : w.path()->gate(); }

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

void Flow::Append(Waiter* w) {
  w->previous_ = tail;
  w->next_ = nullptr;
  (tail != nullptr ? tail->next_ : head) = w;
  tail = w;
  w->flow_ = this;
  cost += static_cast<double>(w->cost_);
}

void Flow::Unlink(Waiter* w) {
  (w->previous_ != nullptr ? w->previous_->next_ : head) = w->next_;
  (w->next_ != nullptr ? w->next_->previous_ : tail) = w->previous_;
  w->flow_ = nullptr;
  cost -= static_cast<double>(w->cost_);
}

void ClassQueue::Append(Waiter* w, const Account* account, Share* share) {
  ++size_;
  Flow* flow = last_;
  if (flow == nullptr || flow->account != account) {
    std::unique_ptr<Flow>& found = flows_[account];
    if (found == nullptr) {
      found = std::make_unique<Flow>(account, share, this);
      ++share->users;
    }
    flow = last_ = found.get();
  }
  const bool was_empty = flow->head == nullptr;
  flow->Append(w);
  if (was_empty && flow->offered) --stale_;
  if (!was_empty || flow->parked_at != nullptr) return;
  shares_->Begin(*share);
  if (flow != elected_) Push(flow);
}

void ClassQueue::Unlink(Waiter* w) {
  --size_;
  Flow* flow = w->flow_;
  const bool was_head = flow == elected_ && flow->head == w;
  flow->Unlink(w);
  if (flow->head == nullptr && flow->parked_at == nullptr) shares_->End(*flow->share);
  if (flow->head == nullptr && flow->offered) ++stale_;
  if (was_head) {
    Displace();
    if (flow->head != nullptr) Push(flow);
  }
  EraseIfOver(flow);
  if (stale_ > 32 && stale_ > offers_.size() / 2) DropStale();
}

// Accounts that gave up while a head was held up: nobody is elected then, who would clear away.
void ClassQueue::DropStale() {
  std::vector<Offer> kept;
  std::vector<Flow*> gone;
  for (const Offer& offer : offers_) {
    if (offer.flow->head != nullptr) {
      kept.push_back(offer);
    } else {
      gone.push_back(offer.flow);
    }
  }
  std::make_heap(kept.begin(), kept.end(), std::greater<>());
  offers_ = std::move(kept);
  stale_ = 0;
  for (Flow* flow : gone) {
    flow->offered = false;
    EraseIfOver(flow);
  }
}

// Its head is one no more.
void ClassQueue::Displace() {
  held = 0;
  elsewhere = false;
  elected_ = nullptr;
  if (placed_) line_->order.erase({turn_, this});
  placed_ = false;
  line_->queue->List(this);
}

// Nobody waits in it, whether held up elsewhere or not.
bool ClassQueue::over() const {
  if (size_ != 0 || line_->queue->at_gate_for == this) return false;
  bool parked = false;
  ForEachFlow([&parked](const Flow& flow) { parked = parked || flow.parked_at != nullptr; });
  return !parked;
}

void ClassQueue::Push(Flow* flow) {
  line_->queue->List(this);
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
    if (flow->head == nullptr) --stale_;
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
  shares_->End(*flow->share);  // as if it was idle: it is owed nothing for that time
  Displace();
  return flow;
}

void ClassQueue::Unpark(Flow* flow) {
  flow->parked_at = nullptr;
  if (flow->head != nullptr) {
    shares_->Begin(*flow->share);
    Push(flow);
  } else {
    EraseIfOver(flow);
    line_->queue->List(this);
  }
}

ClassQueue& BucketQueue::ClassOf(const Waiter& w) {
  const std::uint32_t asks = Asks(w.amounts_);
  if (last_ != nullptr && last_->priority() == w.priority_ && last_->asks() == asks) return *last_;
  Line* line = nullptr;
  for (const auto& each : lines_)
    if (each->asks == asks) line = each.get();
  if (line == nullptr) {
    lines_.push_back(std::make_unique<Line>(this, asks));
    line = lines_.back().get();
  }
  std::unique_ptr<ClassQueue>& c = line->classes[w.priority_];
  if (c == nullptr) {
    std::unique_ptr<Shares>& shares = shares_[w.priority_];
    if (shares == nullptr) shares = std::make_unique<Shares>();
    c = std::make_unique<ClassQueue>(line, w.priority_, shares.get());
    ++classes_;
  }
  last_ = c.get();
  return *c;
}

void BucketQueue::List(ClassQueue* c) {
  if (c->placed_ || c->listed_) return;
  c->listed_ = true;
  listed_.push_back(c);
}

// Finds their places for those whose heads are new. One class alone needs none, unless
// `also_alone`. Those that are over go: priorities that came once would otherwise stay for ever.
void BucketQueue::FindPlaces(bool also_alone) {
  std::vector<ClassQueue*> kept;
  for (ClassQueue* c : listed_) {
    c->head();  // forgets flows in which nobody waits any more
    if (c->over()) {
      if (last_ == c) last_ = nullptr;
      Line* line = c->line_;
      const std::int32_t priority = c->priority();
      line->classes.erase(priority);
      --classes_;
      if (std::none_of(lines_.begin(), lines_.end(),
                       [priority](const auto& each) { return each->classes.contains(priority); }))
        shares_.erase(priority);
      if (!line->classes.empty()) continue;
      lines_.erase(std::find_if(lines_.begin(), lines_.end(),
                                [line](const auto& each) { return each.get() == line; }));
    } else {
      kept.push_back(c);
    }
  }
  listed_.clear();
  for (ClassQueue* c : kept) {
    const Waiter* head = c->head();
    if (head != nullptr && classes_ == 1 && !also_alone) {
      listed_.push_back(c);
      return;
    }
    c->listed_ = false;
    if (head == nullptr) continue;
    c->placed_ = true;
    c->turn_ = TurnOf(*head, c->priority(), ageing);
    c->line_->order.insert({c->turn_, c});
  }
}

Share& Shares::Of(const Account* account) {
  std::unique_ptr<Share>& share = shares_[account];
  if (share == nullptr) {
    share = std::make_unique<Share>(account);
    if (shares_.size() >= forget_at_) Forget(account);
  }
  return *shares_[account];
}

double Shares::Given(const Account* account) const {
  const auto own = shares_.find(account);
  if (own == shares_.end()) return virtual_now_;
  const Share& share = *own->second;
  return share.flows == 0 ? std::max(share.given, virtual_now_) : share.given;
}

// Accounts that wait no more and are behind everybody else anyway: names come from outside.
void Shares::Forget(const Account* but) {
  for (auto it = shares_.begin(); it != shares_.end();) {
    const Share& share = *it->second;
    const auto here = it++;
    if (share.users == 0 && share.account != but && share.given <= virtual_now_)
      shares_.erase(here);
  }
  forget_at_ = 2 * shares_.size() + 64;
}

void BucketQueue::Append(Waiter* w) {
  const Account* account = AccountOf(*w);
  w->cost_ = Cost(*bucket, w->amounts());
  ClassQueue& c = ClassOf(*w);
  c.Append(w, account, &c.shares_->Of(account));
  Count(*w, 1);
  for (Foreseen& each : foreseen_)
    if (each.uses > 0 && each.account == account && each.priority <= w->priority_)
      AddTo(each.line, *w);
}

void BucketQueue::Unlink(Waiter* w) {
  w->flow_->of->Unlink(w);
  Count(*w, -1);
}

void BucketQueue::Charge(Waiter* w) {
  w->flow_->of->shares_->Charge(*w->flow_->share, static_cast<double>(Cost(*bucket, w->amounts())));
}

absl::Span<ClassQueue* const> BucketQueue::Ordered() {
  FindPlaces(/*also_alone=*/false);
  order_.clear();
  if (classes_ == 1) {
    ClassQueue* only = lines_[0]->classes.begin()->second.get();
    if (only->head() != nullptr) order_.push_back(only);
    return order_;
  }
  for (const auto& line : lines_)
    if (!line->order.empty()) order_.push_back(line->order.begin()->second);
  // Whose turn comes first says which priority goes next, and within it goes who was given least.
  for (auto next = order_.begin(); next != order_.end(); ++next) {
    const ClassQueue* const due = *std::min_element(
        next, order_.end(),
        [](const ClassQueue* a, const ClassQueue* b) { return a->turn_ < b->turn_; });
    std::iter_swap(next, std::min_element(next, order_.end(), [due](const auto* a, const auto* b) {
                     const bool candidate = a->priority_ == due->priority_;
                     if (candidate != (b->priority_ == due->priority_)) return candidate;
                     if (!candidate) return false;
                     return std::pair(a->share().given, a->turn_) <
                            std::pair(b->share().given, b->turn_);
                   }));
  }
  return order_;
}

std::size_t BucketQueue::depth(const Bucket* gate) const {
  for (const auto& [through, count] : by_gate_)
    if (through == gate) return count;
  return 0;
}

void BucketQueue::Count(const Waiter& w, int change) {
  depth_ += static_cast<std::size_t>(change);
  const Bucket* const gate = GateOf(w);
  auto found = std::find_if(by_gate_.begin(), by_gate_.end(),
                            [gate](const auto& each) { return each.first == gate; });
  if (found == by_gate_.end()) found = by_gate_.insert(found, {gate, 0});
  found->second += static_cast<std::size_t>(change);
  if (found->second == 0) by_gate_.erase(found);
}

Refusal BucketQueue::Estimate(const Waiter& w, Nanos now) {
  Forecast line = Ahead(w.priority_, AccountOf(w), now);
  return AddTo(line, w);
}

const Forecast& BucketQueue::Ahead(std::int32_t priority, const Account* account, Nanos now) {
  const Nanos kept =
      static_cast<Nanos>(depth_) * static_cast<Nanos>(foreseen_.size()) * kMicrosecond;
  const auto found = std::find_if(foreseen_.begin(), foreseen_.end(), [&](const Foreseen& each) {
    return each.priority == priority && each.account == account;
  });
  if (found != foreseen_.end() && found->uses > 0 && now - found->at <= kept) {
    --found->uses;
    return found->line;
  }
  const std::size_t uses = depth_ < kMany ? 0 : depth_ / 16 - 1;
  Foreseen fresh{priority, account, now, uses, Foresee(priority, account, now)};
  if (found != foreseen_.end()) {
    *found = std::move(fresh);
    return found->line;
  }
  // Those that nobody can use any more first, else the oldest.
  std::erase_if(foreseen_,
                [&](const Foreseen& each) { return each.uses == 0 || now - each.at > kept; });
  if (foreseen_.size() >= kMostForeseen) foreseen_.erase(foreseen_.begin());
  foreseen_.push_back(std::move(fresh));
  return foreseen_.back().line;
}

Forecast BucketQueue::Foresee(std::int32_t priority, const Account* account, Nanos now) const {
  // By what its account will have been given when its turn comes, its own that wait included.
  const auto shares = shares_.find(priority);
  double given = shares == shares_.end() ? 0 : shares->second->Given(account);
  std::vector<std::pair<std::int32_t, const Flow*>> flows;
  for (const auto& line : lines_) {
    for (auto it = line->classes.lower_bound(priority); it != line->classes.end(); ++it) {
      const ClassQueue& c = *it->second;
      if (c.priority() == priority)
        if (const Flow* own = c.FlowOf(account)) given += own->cost / own->share->weight;
      c.ForEachFlow([&flows, &c](const Flow& f) { flows.emplace_back(c.priority(), &f); });
    }
  }
  // The next of each flow, and how much of it still goes in front.
  struct Next {
    std::int32_t priority;
    const Waiter* waiter;
    double left;
    bool operator<(const Next& other) const {
      return std::pair(priority, other.waiter->sequence_) <
             std::pair(other.priority, waiter->sequence_);
    }
  };
  std::vector<Next> heap;
  for (const auto& [of, flow] : flows) {
    // Of another account of this priority, as much as brings it up to there. Of equals who came
    // first goes; and whose turn it is stays until he has gone.
    double left = of != priority || flow->account == account
                      ? std::numeric_limits<double>::infinity()
                      : (given - flow->share->given) * flow->share->weight;
    if (flow == flow->of->elected_) left = std::max(left, 0.0);
    if (flow->head != nullptr && left >= 0) heap.push_back({of, flow->head, left});
  }
  std::make_heap(heap.begin(), heap.end());
  Forecast forecast(now);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    Next& next = heap.back();
    // While no other flow has one before it, which is always where there is no other.
    do {
      const Waiter* const w = next.waiter;
      if (w->outcome() == Outcome::kWaiting) AddTo(forecast, *w);
      next.left -= static_cast<double>(w->cost_);
      next.waiter = w->next_;
    } while (next.waiter != nullptr && next.left >= 0 && (heap.size() == 1 || heap.front() < next));
    if (next.waiter != nullptr && next.left >= 0) {
      std::push_heap(heap.begin(), heap.end());
    } else {
      heap.pop_back();
    }
  }
  return forecast;
}

std::vector<Asked> BucketQueue::Demand(std::size_t most) {
  std::vector<Asked> asked;
  std::size_t count = 0;
  const auto add = [&](const Waiter* w) {
    for (; w != nullptr && count < most; w = w->next_) {
      if (w->outcome() != Outcome::kWaiting) continue;  // cancelled: its owner pushes it, or has
      ++count;
      const absl::Span<const std::int64_t> amounts = w->amounts_;
      if (!asked.empty() && asked.back().amounts == amounts) {
        ++asked.back().count;
      } else {
        asked.push_back({1, {amounts.begin(), amounts.end()}});
      }
    }
  };
  // As the scheduler admits: behind a head that something else holds up, credit helps nobody who
  // asks what that waits for; and whoever does not ask it must not be counted out by them.
  std::uint32_t blocked = 0;
  const auto look = [&](ClassQueue* c) {
    if ((c->asks() & blocked) != 0) return;
    if (c->elsewhere) {
      blocked |= c->held;
      return;
    }
    // Whose turn it is first: it is what a grant must be enough for.
    const Waiter* head = c->head();
    add(head);
    c->ForEachFlow([&](const Flow& flow) {
      if (flow.head != head && flow.parked_at == nullptr) add(flow.head);
    });
  };
  FindPlaces(/*also_alone=*/true);
  ClassQueue* const first = Ordered().empty() ? nullptr : order_[0];
  if (first != nullptr) look(first);
  using Iterator = absl::btree_set<std::pair<Turn, ClassQueue*>>::iterator;
  std::vector<std::pair<Iterator, Iterator>> left;
  for (const auto& line : lines_)
    if (!line->order.empty()) left.emplace_back(line->order.begin(), line->order.end());
  while (!left.empty() && count < most) {
    const auto next = std::min_element(
        left.begin(), left.end(), [](const auto& a, const auto& b) { return *a.first < *b.first; });
    if (next->first->second != first) look(next->first->second);
    if (++next->first == next->second) left.erase(next);
  }
  return asked;
}

Waiter* BucketQueue::OldestNewcomer(const Bucket* gate) const {
  Waiter* oldest = nullptr;
  ForEachFlow([&](const Flow& flow) {
    for (Waiter* w = flow.head; w != nullptr; w = w->next_) {
      if (oldest != nullptr && oldest->sequence_ < w->sequence_) return;
      if (w->again_ || GateOf(*w) != gate) continue;
      oldest = w;
      return;
    }
  });
  return oldest;
}

Turn TurnOf(const Waiter& head, std::int32_t priority, Nanos ageing) {
  return {head.submitted() - static_cast<__int128>(priority) * ageing, BucketQueue::Sequence(head)};
}

void GateQueue::Park(BucketQueue* queue, ClassQueue& heads) {
  queue->gate = this;
  queue->at_gate_for = &heads;
  queue->at_gate = TurnOf(*heads.head(), heads.priority(), queue->ageing);
  parked_.insert({queue->at_gate, queue});
  if (shares_.size() > 64 + 2 * by_priority_.size())
    absl::erase_if(shares_,
                   [this](const auto& each) { return !by_priority_.contains(each.first); });
  Shares& shares = SharesOf(heads.priority());
  Share& share = shares.Of(AccountOf(*heads.head()));
  shares.Begin(share);
  ++share.users;
  queue->share_at_gate = &share;
  queue->given_at_gate = share.given;
  by_priority_[heads.priority()].insert({share.given, queue->at_gate, queue});
}

void GateQueue::Unpark(BucketQueue* queue) {
  parked_.erase({queue->at_gate, queue});
  const auto of_priority = by_priority_.find(queue->at_gate_for->priority());
  of_priority->second.erase({queue->given_at_gate, queue->at_gate, queue});
  if (of_priority->second.empty()) by_priority_.erase(of_priority);
  SharesOf(queue->at_gate_for->priority()).End(*queue->share_at_gate);
  --queue->share_at_gate->users;
  queue->gate = nullptr;
  // If it is over, it was kept for this.
  queue->List(std::exchange(queue->at_gate_for, nullptr));
}

void ClassQueue::ElectAtGate(const Shares& places) {
  if (held != 0 || flows_.size() == 1 || elected_ == nullptr) return;
  // Among equals one who does not stand there yet.
  const auto key = [&](const Flow* f) {
    return std::tuple(places.Given(f->account), places.Waits(f->account), f->share->given,
                      f->head->sequence_);
  };
  Flow* best = elected_;
  auto least = key(best);
  for (const auto& [account, flow] : flows_) {
    if (flow->head == nullptr || flow->parked_at != nullptr) continue;
    if (const auto k = key(flow.get()); k < least) {
      least = k;
      best = flow.get();
    }
  }
  if (best == elected_) return;
  Flow* before = elected_;
  Displace();
  Push(before);
  elected_ = best;
}

BucketQueue* GateQueue::Next() {
  for (;;) {
    const ByShare& due = by_priority_[parked_.begin()->second->at_gate_for->priority()];
    BucketQueue* queue = std::get<BucketQueue*>(*due.begin());
    ClassQueue& heads = *queue->at_gate_for;
    const bool current = queue->given_at_gate == queue->share_at_gate->given;
    Unpark(queue);
    if (current || heads.head() == nullptr) return queue;
    // Its account has been given more since: perhaps it is another's turn by now.
    heads.ElectAtGate(SharesOf(heads.priority()));
    Park(queue, heads);
  }
}

void AccountPlace::Park(ClassQueue& heads, std::uint32_t binding) {
  const Turn turn = TurnOf(*heads.head(), heads.priority(), heads.queue()->ageing);
  if (binding != 0) held_.emplace_back(binding, turn);
  Flow* flow = heads.Park(this);
  flow->parked_turn = turn;
  parked_[heads.asks()].insert({turn, flow});
}

void AccountPlace::Remove(Flow* flow) {
  const auto group = parked_.find(flow->of->asks());
  group->second.erase({flow->parked_turn, flow});
  if (group->second.empty()) parked_.erase(group);
}

bool AccountPlace::HoldsUp(std::uint32_t asks, const Turn& turn) const {
  return std::any_of(held_.begin(), held_.end(), [&](const auto& each) {
    return (each.first & asks) != 0 && each.second <= turn;
  });
}

Flow* AccountPlace::Next() {
  for (;;) {
    const std::pair<Turn, Flow*>* first = nullptr;
    for (const auto& [asks, flows] : parked_) {
      const std::pair<Turn, Flow*>& front = *flows.begin();
      if (!HoldsUp(asks, front.first) && (first == nullptr || front < *first)) first = &front;
    }
    if (first == nullptr) return nullptr;
    const auto [turn, flow] = *first;
    Remove(flow);
    if (flow->head == nullptr) return flow;
    const Turn now = TurnOf(*flow->head, flow->of->priority(), flow->of->queue()->ageing);
    if (now == turn) return flow;
    // Who was its head gave up.
    flow->parked_turn = now;
    parked_[flow->of->asks()].insert({now, flow});
  }
}

}  // namespace headway
