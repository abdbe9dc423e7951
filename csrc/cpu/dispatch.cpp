#include <atomic>
#include <cstring>

#include "kernels.h"

namespace lmser {
namespace baseline {
extern const InstructionSet table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const InstructionSet table;
}
namespace avx512 {
extern const InstructionSet table;
}
#endif

namespace {

struct Available {
  const InstructionSet* sets[3];
  int count = 0;
  Available() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      sets[count++] = &avx512::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      sets[count++] = &avx2::table;
#endif
    sets[count++] = &baseline::table;
  }
};

const Available& available() {
  static const Available a;
  return a;
}

std::atomic<const InstructionSet*>& chosen() {
  static std::atomic<const InstructionSet*> set{available().sets[0]};
  return set;
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen().load(std::memory_order_relaxed); }
bool choose_instruction_set(const char* name) {
  for (int i = 0; i < available().count; ++i)
    if (std::strcmp(available().sets[i]->name, name) == 0) {
      chosen().store(available().sets[i], std::memory_order_relaxed);
      return true;
    }
  return false;
}
const InstructionSet* const* instruction_sets(int* count) {
  *count = available().count;
  return available().sets;
}

}  // namespace lmser
