// headway/base/stack.h: a lock-free stack that any thread pushes to and one takes whole.
#ifndef HEADWAY_BASE_STACK_H_
#define HEADWAY_BASE_STACK_H_

#include <atomic>

#include "headway/base/pause.h"

namespace headway {

// Intrusive: `Next` is the member that links. Taking it whole leaves no ABA problem, and a producer
// that is stopped in the middle of a push keeps nobody else from pushing or from taking what is
// there (a linked queue would make the consumer wait for it).
//
// Memory ordering: a push releases what the producer wrote to the node, TakeAll acquires it; both
// are sequentially consistent because "pushed, then looked whether the consumer sleeps" against
// "about to sleep, then looked whether something was pushed" is how the consumer is woken exactly
// when needed.
template <typename T, T* T::*Next>
class Stack {
 public:
  // Returns whether the stack was empty.
  bool Push(T* node) {
    T* head = head_.load(std::memory_order_relaxed);
    do {
      node->*Next = head;
      HEADWAY_PAUSE();
    } while (!head_.compare_exchange_weak(head, node));
    return head == nullptr;
  }

  // Everything, oldest first.
  T* TakeAll() {
    T* node = head_.exchange(nullptr);
    T* reversed = nullptr;
    while (node != nullptr) {
      T* next = node->*Next;
      node->*Next = reversed;
      reversed = node;
      node = next;
    }
    return reversed;
  }

  bool empty() const { return head_.load() == nullptr; }

 private:
  std::atomic<T*> head_{nullptr};
};

}  // namespace headway

#endif  // HEADWAY_BASE_STACK_H_
