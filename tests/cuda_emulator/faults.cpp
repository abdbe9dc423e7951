// Small kernels with and without a fault, for the tests of the emulator itself.
#include "cuda_emulator.h"

#include <string>

namespace {

float* values() { return reinterpret_cast<float*>(emulator::dynamic_shared()); }

// out = in reversed, by way of shared memory.
void reverse(const float* in, float* out, bool synced, int shift) {
  const int i = int(threadIdx.x), n = int(blockDim.x);
  values()[i + shift] = in[i];
  if (synced) __syncthreads();
  out[i] = values()[n - 1 - i + shift];
}

// Every thread adds up the block by shuffles, then over warps in shared memory.
void add(const float* in, float* out) {
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  values()[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += values()[w];
  out[threadIdx.x] = sum;
}

void missed_barrier() {
  if (threadIdx.x != 5) __syncthreads();
  if (threadIdx.x == 5)
    while (true) emulator::spin();
}

// Blocks wait for all blocks; one that never comes leaves them waiting.
void meet_all(unsigned* arrived, float* out, unsigned expected) {
  if (threadIdx.x == 0) {
    atomicAdd(arrived, 1u);
    while (*arrived < expected) emulator::spin();
  }
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = float(*arrived);
}

}  // namespace

extern "C" const char* run_fault(const char* name, int threads, std::int64_t seed, const float* in, float* out) {
  static std::string message;
  message.clear();
  const std::string which = name;
  unsigned arrived = 0;
  try {
    emulator::run({which == "meet" || which == "never" ? 3 : 1, 1, threads, sizeof(float) * std::size_t(threads)},
                  std::uint64_t(seed), [&] {
                    if (which == "reverse") reverse(in, out, true, 0);
                    if (which == "race") reverse(in, out, false, 0);
                    if (which == "outside") reverse(in, out, true, 1);
                    if (which == "add") add(in, out);
                    if (which == "missed") missed_barrier();
                    if (which == "meet") meet_all(&arrived, out, 3);
                    if (which == "never") meet_all(&arrived, out, 4);
                  });
  } catch (const std::exception& problem) {
    message = problem.what();
  }
  return message.c_str();
}
