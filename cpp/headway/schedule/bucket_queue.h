// headway/schedule/bucket_queue.h: who waits on one bucket, in the order in which they may go.
#ifndef HEADWAY_SCHEDULE_BUCKET_QUEUE_H_
#define HEADWAY_SCHEDULE_BUCKET_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/container/node_hash_map.h"
#include "headway/bucket/forecast.h"
#include "headway/schedule/waiter.h"

namespace headway {

class AccountPlace;
class BucketQueue;
class ClassQueue;
class GateQueue;
struct Line;

// What one account has been given of one bucket, in virtual time: a request adds its cost divided
// by the account's weight, and whoever has been given least goes next (start-time fair queueing,
// Goyal, Vin and Cheng 1996). So two accounts that both always wait are never further apart than
// one request of each, whatever sizes and weights they have, and there is no quantum to choose. A
// request costs the time that it takes to be paid for, by the limit that it needs most of (its
// dominant share, Ghodsi et al. 2011).
//
// An account that comes back begins where the others are: it is owed nothing for its idle time, and
// owes at most for its last request. Where the others are moves with every request, by what each of
// them, and one more, would get of it: else accounts that come once and never again would all begin
// before one that has been served, for ever.
struct Share {
  // Holds a reference: another account in the same place in memory would be taken for this one.
  explicit Share(const Account* a) : account(a), weight(a == nullptr ? 1 : a->weight()) {
    if (account != nullptr) account->Ref();
  }
  ~Share() {
    if (account != nullptr) account->Unref();
  }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  const Account* const account;  // null: whoever has none
  const double weight;
  double given = 0;
  int flows = 0;  // of this account that have somebody in them
  int users = 0;  // flows that refer to it
};

// The shares of all accounts in one priority at one place, each kept for as long as it says
// anything. By priority, because what is given there is given whatever the share. Not thread-safe.
class Shares {
 public:
  // Its share; a new one begins behind nobody.
  Share& Of(const Account* account);
  // It begins to wait: it is owed nothing for the time in which it did not.
  void Begin(Share& share) {
    if (share.flows++ > 0) return;
    share.given = std::max(share.given, virtual_now_);
    waiting_weight_ += share.weight;
    ++waiting_;
  }
  void End(Share& share) {
    if (--share.flows > 0) return;
    // No rounding error outlives those who made it.
    waiting_weight_ = --waiting_ == 0 ? 0 : waiting_weight_ - share.weight;
  }
  void Charge(Share& share, double cost) {
    if (share.flows == 0) share.given = std::max(share.given, virtual_now_);
    virtual_now_ = std::max(virtual_now_, share.given);
    share.given += cost / share.weight;
    const double all = waiting_weight_ + (share.flows == 0 ? share.weight : 0);
    virtual_now_ += cost / (all + share.weight);
  }
  // What it will be said to have been given when it begins to wait now.
  double Given(const Account* account) const;
  bool Waits(const Account* account) const {
    const auto own = shares_.find(account);
    return own != shares_.end() && own->second->flows > 0;
  }

 private:
  void Forget(const Account* but);

  double virtual_now_ = 0;     // where whoever begins to wait begins
  double waiting_weight_ = 0;  // of all accounts that wait
  std::size_t waiting_ = 0;    // how many they are
  absl::flat_hash_map<const Account*, std::unique_ptr<Share>> shares_;
  std::size_t forget_at_ = 64;
};

// An order of heads: when they were submitted, a step of priority counting as much as what it is
// aged by, then who was taken in first. It does not change while they wait. Wide, because
// priorities have all 32 bits and ageing may be a year.
using Turn = std::pair<__int128, std::uint64_t>;
Turn TurnOf(const Waiter& head, std::int32_t priority, Nanos ageing);

// Waits of one account, one priority and one line: first in, first out.
struct Flow {
  Flow(const Account* a, Share* s, ClassQueue* c) : account(a), share(s), of(c) {}

  void Append(Waiter* w);
  void Unlink(Waiter* w);

  const Account* const account;
  Share* const share;
  ClassQueue* const of;
  Waiter* head = nullptr;
  Waiter* tail = nullptr;
  AccountPlace* parked_at = nullptr;  // held up by the account's own limits
  Turn parked_turn;                   // there, of the head that it had then
  bool offered = false;               // an entry of the class's heap is for it
  double cost = 0;                    // of all that wait
};

// Waits of one priority in one line, of all accounts. The one whose turn it is, its head, is
// elected once and stays until it goes: a newcomer of another account does not pass it.
class ClassQueue {
 public:
  ClassQueue(Line* line, std::int32_t priority, Shares* shares)
      : line_(line), priority_(priority), shares_(shares) {}

  void Append(Waiter* w, const Account* account, Share* share);
  void Unlink(Waiter* w);

  // Null where nobody waits, or whoever does is parked.
  Waiter* head() {
    if (elected_ == nullptr) Elect();
    return elected_ == nullptr ? nullptr : elected_->head;
  }
  const Share& share() const { return *elected_->share; }
  std::int32_t priority() const { return priority_; }
  std::uint32_t asks() const;
  BucketQueue* queue() const;

  // The head's account must wait for its own limits: the next one is elected.
  Flow* Park(AccountPlace* place);
  void Unpark(Flow* flow);
  // The head is to stand at a gate. Nothing is held for it there, so it need not stay: whoever has
  // been given the fewest places there does. Takes as long as there are accounts in the class.
  void ElectAtGate(const Shares& places);

  // Null where there is none.
  const Flow* FlowOf(const Account* account) const {
    const auto found = flows_.find(account);
    return found == flows_.end() ? nullptr : found->second.get();
  }
  template <typename Each>
  void ForEachFlow(Each each) const {
    for (const auto& [account, flow] : flows_) each(*flow);
  }

  // Resources of the meters that have bound the head so far, as bits. What has bound it once stays
  // reserved for it: else those who ask only one of two could take turns for ever.
  std::uint32_t held = 0;
  // The head was held up last by what no grant of credit helps against.
  bool elsewhere = false;

 private:
  friend class BucketQueue;

  struct Offer {
    double given;
    std::uint64_t sequence;
    Flow* flow;
    friend bool operator>(const Offer& a, const Offer& b) {
      return a.given != b.given ? a.given > b.given : a.sequence > b.sequence;
    }
  };

  void Elect();
  void Push(Flow* flow);
  void EraseIfOver(Flow* flow);
  void Displace();
  void DropStale();
  bool over() const;

  Line* const line_;
  const std::int32_t priority_;
  Shares* const shares_;
  bool placed_ = false;  // in its line's order, at `turn_`
  bool listed_ = false;  // among those whose place is still to be found
  Turn turn_;
  std::size_t size_ = 0;
  Flow* elected_ = nullptr;
  Flow* last_ = nullptr;  // that was appended to: almost always the next one, too
  absl::flat_hash_map<const Account*, std::unique_ptr<Flow>> flows_;
  // Who may be elected, the least given in front. An entry may be out of date: it then stands too
  // far in front, never too far behind, since what was given only grows.
  std::vector<Offer> offers_;
  std::size_t stale_ = 0;  // offers of flows in which nobody waits any more
};

// Waits that ask the same resources. Whatever holds up the first of them holds up all, so there is
// only one to be tried, however many priorities there are.
struct Line {
  Line(BucketQueue* q, std::uint32_t a) : queue(q), asks(a) {}

  BucketQueue* const queue;
  const std::uint32_t asks;                                            // bit by resource
  absl::btree_map<std::int32_t, std::unique_ptr<ClassQueue>> classes;  // by priority
  absl::btree_set<std::pair<Turn, ClassQueue*>> order;                 // by their heads
};

inline std::uint32_t ClassQueue::asks() const { return line_->asks; }
inline BucketQueue* ClassQueue::queue() const { return line_->queue; }

// A place at which waits are held up: a bucket, the gate before it, or an account's own limits.
struct Place {
  enum class Kind : std::uint8_t { kBucket, kGate, kAccount };

  Place(Kind k, Bucket* b) : kind(k), bucket(b) { bucket->Ref(); }
  virtual ~Place() { bucket->Unref(); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  const Kind kind;
  bool dirty = false;  // something may be admissible
  Bucket* const bucket;
  Nanos wake_at = kNever;  // the timer that is set for this place
};

// All that waits on one bucket. Not thread-safe: the scheduler's lock guards it.
class BucketQueue final : public Place {
 public:
  explicit BucketQueue(Bucket* b) : Place(Kind::kBucket, b) {}

  std::size_t depth() const { return depth_; }
  // Of those who come through this gate.
  std::size_t depth(const Bucket* gate) const;

  void Append(Waiter* w);
  void Unlink(Waiter* w);
  // It is being admitted: its account is charged. Before it is unlinked.
  void Charge(Waiter* w);

  // Of each line the class that may go first, the one that may go before the others in front: by
  // priority, aged, then by what its account has been given, then by who was submitted first.
  absl::Span<ClassQueue* const> Ordered();
  // Whether all who wait are in one class.
  bool OfOneClass() const { return classes_ == 1; }

  // Of what goes in front of a newcomer of this priority and account. To make it takes as long as
  // all of that is looked at; so where many wait it is made once for as many newcomers as that pays
  // for, and does not know what became of the others since: at most for 1 µs for each that waits,
  // times the priorities and accounts of which it is kept.
  const Forecast& Ahead(std::int32_t priority, const Account* account, Nanos now);
  static constexpr std::size_t kMany = 1'000;
  static constexpr std::size_t kMostForeseen = 16;
  // When a newcomer, who is not in it yet, will be admitted.
  Refusal Estimate(const Waiter& w, Nanos now);

  // What the first `most` ask of those whom credit would let go, class by class.
  std::vector<Asked> Demand(std::size_t most);

  // Of those who come through this gate, and for the first time, who was taken in first.
  Waiter* OldestNewcomer(const Bucket* gate) const;
  // Takes out all, for the last time.
  template <typename Each>
  void Empty(Each each) {
    ForEachFlow([&each](Flow& flow) {
      while (Waiter* w = flow.head) {
        flow.Unlink(w);
        each(w);
      }
    });
    depth_ = 0;
  }
  static std::uint64_t Sequence(const Waiter& w) { return w.sequence_; }

  template <typename Each>
  void ForEachFlow(Each each) const {
    for (const auto& line : lines_)
      for (const auto& [priority, c] : line->classes) c->ForEachFlow(each);
  }

  Nanos ageing = 0;  // of who came first; of the same queue always the same

  // At a gate: its place there (see GateQueue).
  GateQueue* gate = nullptr;
  ClassQueue* at_gate_for = nullptr;  // whose head it is there with; null: it is at none
  Turn at_gate;
  double given_at_gate = 0;
  Share* share_at_gate = nullptr;
  const Bucket* turn = nullptr;  // the gate at which it is its turn
  bool contends = false;         // other buckets may be able to go at the same instant

 private:
  friend class ClassQueue;
  friend class GateQueue;

  static Refusal AddTo(Forecast& line, const Waiter& w) {
    return line.Add(*w.bucket_, w.path_ == nullptr ? nullptr : w.path_->limits(), w.amounts_);
  }
  Forecast Foresee(std::int32_t priority, const Account* account, Nanos now) const;
  ClassQueue& ClassOf(const Waiter& w);
  void List(ClassQueue* c);
  void Count(const Waiter& w, int change);
  void FindPlaces(bool also_alone);

  std::size_t depth_ = 0;
  absl::InlinedVector<std::pair<const Bucket*, std::size_t>, 1> by_gate_;  // of it
  std::size_t classes_ = 0;                                                // in all lines
  std::vector<std::unique_ptr<Line>> lines_;
  ClassQueue* last_ = nullptr;  // that was appended to
  std::vector<ClassQueue*> listed_;
  std::vector<ClassQueue*> order_;
  absl::btree_map<std::int32_t, std::unique_ptr<Shares>> shares_;  // of each priority there is
  struct Foreseen {
    std::int32_t priority;
    const Account* account;  // only compared
    Nanos at;
    std::size_t uses;  // before it is made anew
    Forecast line;
  };
  std::vector<Foreseen> foreseen_;  // at most kMostForeseen
};

// The buckets whose heads are held up by how many may be under way at once. They take turns: who
// has waited longest, a step of priority counting as much as what it is aged by, says which
// priority is due; of that one the head goes whose account has been given the fewest places here,
// by its weight, and among equals who has waited longest. A bucket stands here with the head of
// whichever of its accounts has been given the fewest. So a flood in one bucket does not keep an
// account waiting in another, nor behind some of it in the same.
//
// It exists as long as the gate's waiters flag is set.
class GateQueue final : public Place {
 public:
  explicit GateQueue(Bucket* b) : Place(Kind::kGate, b) {}

  void Park(BucketQueue* queue, ClassQueue& heads);
  bool Holds(const BucketQueue& queue) const { return queue.gate == this; }
  void Unpark(BucketQueue* queue);
  // Takes out whose turn it is.
  BucketQueue* Next();
  // Somebody of this account has got a place, while others wait for one.
  void Charge(const Account* account, std::int32_t priority) {
    Shares& shares = SharesOf(priority);
    shares.Charge(shares.Of(account), 1);
  }
  // The places that accounts have been given, of one priority.
  Shares& SharesOf(std::int32_t priority) { return shares_[priority]; }
  bool empty() const { return parked_.empty(); }
  std::size_t size() const { return parked_.size(); }

  template <typename Each>
  void ForEach(Each each) const {
    for (const auto& [key, queue] : parked_) each(*queue);
  }

  bool full = false;         // the last look found it so, with its waiters flag set
  Nanos choose_by = kNever;  // whoever decides here has been asked, and may take until then

 private:
  using ByShare = absl::btree_set<std::tuple<double, Turn, BucketQueue*>>;

  absl::btree_set<std::pair<Turn, BucketQueue*>> parked_;
  // The same by what was given as they were put there. That only grows, so an entry may stand too
  // far in front, never too far behind.
  absl::btree_map<std::int32_t, ByShare> by_priority_;
  absl::node_hash_map<std::int32_t, Shares> shares_;  // by priority
};

// The accounts that are held up by their own limits, in whatever buckets they wait.
//
// Of the flows that ask the same resources only the first is tried; and who comes behind one that
// is held up for a resource is not tried if he asks for it: what is free of it is kept for the
// first, or many small requests would starve a large one.
class AccountPlace final : public Place {
 public:
  explicit AccountPlace(Bucket* b) : Place(Kind::kAccount, b) {}

  // Of a class whose head is held up. `binding`: by what, as bits by resource; 0: it has not been
  // tried.
  void Park(ClassQueue& heads, std::uint32_t binding);
  // It goes, whoever is in it.
  void Remove(Flow* flow);
  // Whether a head that asks so much, and whose turn that is, has to stand behind one that is here.
  bool HoldsUp(std::uint32_t asks, const Turn& turn) const;
  // Something may have become free.
  void LookAgain() { held_.clear(); }
  // Takes out who is to be tried next; null: nobody. It may have become empty.
  Flow* Next();
  bool empty() const { return parked_.empty(); }

 private:
  using ByTurn = absl::btree_set<std::pair<Turn, Flow*>>;

  absl::btree_map<std::uint32_t, ByTurn> parked_;  // by what they ask
  // By what those that were tried are held up, and their turns.
  absl::InlinedVector<std::pair<std::uint32_t, Turn>, 2> held_;
};

}  // namespace headway

#endif  // HEADWAY_SCHEDULE_BUCKET_QUEUE_H_
