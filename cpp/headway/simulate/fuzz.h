// headway/simulate/fuzz.h: what the fuzzers have in common.
#ifndef HEADWAY_SIMULATE_FUZZ_H_
#define HEADWAY_SIMULATE_FUZZ_H_

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/strings/string_view.h"

// Ends the process where it does not hold; the fuzzer keeps the input.
#define FUZZ_CHECK(condition)                                                             \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

namespace headway::simulate {

// Text in memory of its own that ends where the text does: a std::string has a byte more, and may
// have its bytes in itself, where AddressSanitizer sees no reading beyond them.
class ExactText {
 public:
  explicit ExactText(absl::string_view text) : bytes_(new char[text.size()]), size_(text.size()) {
    std::copy(text.begin(), text.end(), bytes_.get());
  }
  absl::string_view view() const { return {bytes_.get(), size_}; }

 private:
  std::unique_ptr<char[]> bytes_;
  std::size_t size_;
};

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_FUZZ_H_
