// headway/schedule/waiter.cc: how waits begin and go.
#include "headway/schedule/waiter.h"

namespace headway {

Waiter::Waiter(Bucket* bucket, const Path* path, absl::Span<const std::int64_t> amounts,
               std::int32_t priority, Nanos submitted, Nanos deadline, Mailbox* mailbox,
               void* cookie, bool again)
    : cookie(cookie),
      again_(again),
      priority_(priority),
      bucket_(bucket),
      path_(path),
      mailbox_(mailbox),
      submitted_(submitted),
      deadline_(deadline),
      amounts_(amounts.begin(), amounts.end()) {
  path_ != nullptr ? path_->Ref() : bucket_->Ref();
  mailbox_->Ref();
}

Waiter::~Waiter() {
  // Nobody else has it any more, so it need not be taken out to be looked at.
  if (reservation_.load(std::memory_order_relaxed) != nullptr) Unclaimed()->Cancel(at_);
  mailbox_->Unref();
  path_ != nullptr ? path_->Unref() : bucket_->Unref();
}

// Nothing can be in it: a waiter in the mailbox holds a reference to it.
Mailbox::~Mailbox() = default;

}  // namespace headway
