// headway/base/cache_line.h: what threads that write must not share with others by accident.
#ifndef HEADWAY_BASE_CACHE_LINE_H_
#define HEADWAY_BASE_CACHE_LINE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace headway {

// What the machines that we know move between their caches. Between cores that lie far apart (of a
// virtual machine, whose cores are wherever its host puts them) that takes 100 ns and more.
inline constexpr std::size_t kCacheLine = 64;

// Words, all 0 at first, on cache lines of their own: what lies beside them in memory is not taken
// from those who only read it whenever somebody writes here.
class LineWords {
 public:
  explicit LineWords(std::size_t size)
      : lines_(std::make_unique<Line[]>((size + kPerLine - 1) / kPerLine)) {}

  std::atomic<std::int64_t>& operator[](std::size_t i) {
    return lines_[i / kPerLine].words[i % kPerLine];
  }
  const std::atomic<std::int64_t>& operator[](std::size_t i) const {
    return lines_[i / kPerLine].words[i % kPerLine];
  }

 private:
  static constexpr std::size_t kPerLine = kCacheLine / sizeof(std::int64_t);
  struct alignas(kCacheLine) Line {
    std::array<std::atomic<std::int64_t>, kPerLine> words{};
  };
  std::unique_ptr<Line[]> lines_;
};

}  // namespace headway

#endif  // HEADWAY_BASE_CACHE_LINE_H_
