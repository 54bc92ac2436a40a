// bindings/scheduler.h: what the scheduler, its buckets and its calls share.
#ifndef HEADWAY_BINDINGS_SCHEDULER_H_
#define HEADWAY_BINDINGS_SCHEDULER_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "bindings/metrics.h"
#include "bindings/state.h"

namespace headway::python {

extern PyTypeObject* scheduler_type;
extern PyTypeObject* bucket_type;
extern PyTypeObject* call_type;
extern PyTypeObject* with_reservation_type;

struct CallObject;

// All of this is guarded by the GIL.

// A bucket as one scheduler sees it. It is a Limiter over the same words.
struct BucketObject {
  LimiterObject limiter;
  PyObject* name;
  const Path* path;  // without an account
  // In the order of the resources; -1: this bucket does not count it.
  int requests;
  mutable int tokens;
  mutable int learnt;  // of the words' changes, those that `tokens` knows of
  int concurrency;
  char remote;   // its words live elsewhere: it is told of each attempt's end, by `_ended`
  char guarded;  // the scheduler's Python side wants to be asked before each admission
  std::int64_t queued;
  std::int64_t in_flight;
  BucketCounts* counts;  // null: metrics are off
  // What has happened, by how it ended.
  std::int64_t submitted;
  std::int64_t succeeded;
  std::int64_t failed;
  std::int64_t cancelled;
  std::int64_t attempts;
  std::int64_t oddities;

  State& state() const { return *limiter.state; }
  void AddQueued(int difference) {
    queued += difference;
    if (counts != nullptr) counts->queued.store(queued, std::memory_order_relaxed);
  }
  void AddInFlight(int difference) {
    in_flight += difference;
    if (counts != nullptr) counts->in_flight.store(in_flight, std::memory_order_relaxed);
  }
};

// Which of the amounts is that of estimated_tokens, by the limits that there are now.
void FindTokens(const BucketObject* bucket);

// Whether a request is not even to be tried any more. To come here takes a moment, too: with a
// deadline of 0, one that need not wait goes.
inline bool IsOver(Nanos deadline, Nanos since, bool retry) {
  return deadline != kNever && since > (retry ? deadline : std::max(deadline, kSoon));
}

enum class Overflow : std::uint8_t { kReject, kDropOldest, kWait };

// Which buckets' heads wait for credit. Filled by whoever drives the core, under its lock and
// without the GIL; it must not be called back from there.
class Askers {
 public:
  void Add(Bucket* bucket) {
    const std::lock_guard<std::mutex> lock(mutex_);
    asking_.insert(bucket);
    if (told_ != nullptr) told_->wake().Signal();
  }
  // From now on this mailbox is signalled; null: none.
  void Tell(std::shared_ptr<Mailbox> mailbox) {
    const std::lock_guard<std::mutex> lock(mutex_);
    told_ = std::move(mailbox);
  }
  // As names only: each may be gone by now.
  absl::flat_hash_set<Bucket*> TakeAll() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(asking_, {});
  }

 private:
  std::mutex mutex_;
  absl::flat_hash_set<Bucket*> asking_;
  std::shared_ptr<Mailbox> told_;
};

// The parts of a scheduler that are C++.
struct SchedulerParts {
  State* gate = nullptr;  // its bucket: how many may be under way at once
  Nanos request_timeout = kNever;
  std::int64_t max_queue_size = 0;
  Overflow overflow = Overflow::kReject;
  Nanos ageing = 0;  // 0: the core's own
  bool priorities = true;
  bool accounts = false;
  bool prepares = false;  // every request goes through `_prepare`
  bool tells = false;     // `_waits` is called for whoever is going to wait
  bool running = false;
  std::int64_t begun = 0;       // requests (not attempts), whatever has become of their buckets
  bool chosen_outside = false;  // which bucket goes next at the gate
  std::shared_ptr<Askers> askers = std::make_shared<Askers>();  // of its remote buckets
  unsigned fork_generation = 0;

  struct Known {
    Account* account;
    bool configured;  // else a name that came with a request
  };
  absl::flat_hash_map<std::string, Known> by_client;
  absl::flat_hash_map<std::pair<Bucket*, Account*>, const Path*> paths;
  std::size_t most_paths = kFewPaths;
  // Calls that have begun and not ended; and blocking waits, which Python counts.
  CallObject* live = nullptr;
  std::size_t unfinished = 0;
  std::vector<std::pair<Waiter*, Mailbox*>> blocked;

  static constexpr std::size_t kFewPaths = 10'000;

  std::unique_ptr<UserCodeErrors> errors;  // null: metrics are off

  ~SchedulerParts();
  // Borrowed. `client` is None or a string; null with a Python error set.
  const Path* PathOf(BucketObject* bucket, PyObject* client);
  void SetAccount(const std::string& client, double weight, Bucket* limits);
  // Drops what nobody uses at the moment.
  void ForgetPaths();
  bool Runs() const { return running && fork_generation == Dispatcher::ForkGeneration(); }
};

struct SchedulerObject {
  PyObject_HEAD PyObject* weakrefs;
  PyObject* routes;     // by resource type, by model: the bucket
  PyObject* when_idle;  // called when nothing is on its way any more; null while nobody drains
  SchedulerParts* parts;
};

// What a request asks for, as its metadata says.
struct Request {
  std::int64_t amounts[State::kMaxResources];
  std::int32_t priority = 0;
  Nanos timeout = kNever;   // of one attempt
  bool unbounded = false;   // whatever the scheduler's own is
  Nanos deadline = kNever;  // from submission
};
// False with a Python error set, which names the field.
bool ReadRequest(const SchedulerParts& parts, const BucketObject* bucket, PyObject* metadata,
                 Request& out);

// Of what cannot fit at all, or not through its account: raises. Always returns null.
PyObject* RaiseTooLarge(PyObject* scheduler, const BucketObject* bucket, const Path* path,
                        absl::Span<const std::int64_t> amounts, Nanos now);

// Amounts by resource as a tuple, new; and read back. False with a Python error set.
PyObject* TupleOf(absl::Span<const std::int64_t> amounts);
bool ReadTuple(const State& state, PyObject* tuple, Amounts& out);

// Whether no more may wait there. What was admitted and has not gone on yet does not wait.
bool QueueIsFull(const SchedulerParts& parts, const BucketObject* bucket, Nanos now);

// A request is going to wait, on this loop or blocking this thread: `_waits` sees to it that who
// decides about it is there. False with a Python error set.
bool TellOfWait(PyObject* scheduler, bool blocks);

// No call is on its way any more.
void TellIdle(SchedulerObject* scheduler);

// Borrowed: what a WithReservation calls.
PyObject* FunctionOf(PyObject* with_reservation);

// New reference: `scheduler.submit_request`'s awaitable.
PyObject* MakeCall(SchedulerObject* scheduler, PyObject* metadata, PyObject* function);
// All calls that are on their way, as a new list.
PyObject* LiveCalls(SchedulerParts& parts);
// None of them is on the list any more; they end by themselves.
void ForgetCalls(SchedulerParts& parts);

inline SchedulerObject* AsScheduler(PyObject* o) { return reinterpret_cast<SchedulerObject*>(o); }
inline BucketObject* AsBucket(PyObject* o) { return reinterpret_cast<BucketObject*>(o); }

}  // namespace headway::python

#endif  // HEADWAY_BINDINGS_SCHEDULER_H_
