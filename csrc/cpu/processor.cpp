#include "processor.h"

#include <atomic>

namespace lmser {
namespace {

bool has_fast_wide_products() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return !__builtin_cpu_is("amdfam19h");  // Zen 4 takes them in halves
#else
  return false;
#endif
}

std::atomic<bool>& assumed() {
  static std::atomic<bool> fast{has_fast_wide_products()};
  return fast;
}

}  // namespace

bool fast_wide_products() { return assumed().load(std::memory_order_relaxed); }
bool assume_fast_wide_products(bool fast) { return assumed().exchange(fast); }

}  // namespace lmser
