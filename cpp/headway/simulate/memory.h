// headway/simulate/memory.h: how much the process has allocated.
#ifndef HEADWAY_SIMULATE_MEMORY_H_
#define HEADWAY_SIMULATE_MEMORY_H_

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// GCC ships the function, not the header that declares it.
extern "C" std::size_t __sanitizer_get_current_allocated_bytes();
#else
#include <malloc.h>
#endif

namespace headway::simulate {

// Bytes that are allocated and not freed, by whichever allocator is in this build.
inline std::size_t AllocatedBytes() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return __sanitizer_get_current_allocated_bytes();
#else
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
#endif
}

}  // namespace headway::simulate

#endif  // HEADWAY_SIMULATE_MEMORY_H_
