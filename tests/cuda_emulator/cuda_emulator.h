// Runs CUDA device code on the host, so that tests can see what a kernel computes and how it goes wrong.
//
// Every thread of every block is a fiber with its own stack; one runs at a time, until it waits for others. So
// barriers, warp shuffles, clusters and blocks that wait for one another behave as on the device, and the order in
// which threads take their turns is drawn from a seed: what depends on it (a barrier that is missing) shows. Shared
// memory begins as NaN between guard bands. Threads that wait for each other in a circle, and writes to a guard band,
// are errors.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static_assert(false, "static shared memory is not emulated")
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (emulator::now().thread)
#define blockIdx (emulator::now().block->index)
#define blockDim (emulator::running().block_size)
#define gridDim (emulator::running().grid_size)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

constexpr std::size_t kStack = 64 * 1024, kGuard = 256;
constexpr unsigned char kGuardByte = 0xa5;

struct Fiber;

// Everyone of a known number waits here for the others.
struct Barrier {
  int expected = 0, arrived = 0, votes = 0, result = 0;
  std::vector<Fiber*> waiting;
};

struct Block {
  dim3 index;
  unsigned rank = 0;
  std::vector<unsigned char> memory;  // guard, shared memory, guard
  unsigned char* shared = nullptr;
  Barrier barrier;
  Barrier* cluster = nullptr;
  std::vector<Block*> members;
  struct Warp {
    Barrier barrier;
    std::uint64_t exchange[2][32];
  };
  std::vector<Warp> warps;
};

struct Fiber {
  dim3 thread;
  Block* block = nullptr;
  int lane = 0, parity = 0;
  Block::Warp* warp = nullptr;
  bool begun = false, done = false, spinning = false;
  ucontext_t first;
  jmp_buf state;
  std::unique_ptr<unsigned char[]> stack;
};

struct Launch {
  dim3 block_size, grid_size;
  std::function<void()> kernel;
  std::vector<Fiber*> ready;
  std::uint64_t random = 0;
  bool shuffled = false;
  ucontext_t home_context;
  jmp_buf home;
  Fiber* current = nullptr;
  long idle = 0;  // turns in a row in which threads did nothing but look at a word of global memory
};

inline Launch*& launch_slot() {
  static Launch* launch = nullptr;
  return launch;
}
inline Launch& running() { return *launch_slot(); }
inline Fiber& now() { return *running().current; }

// Back to the scheduler; the fiber goes on when it is taken from `ready` again.
inline void leave() {
  if (_setjmp(now().state) == 0) _longjmp(running().home, 1);
}
inline void pause() {
  running().ready.push_back(running().current);
  leave();
}
inline void spin() {
  now().spinning = true;
  pause();
}

inline void release(Barrier& b) {
  b.result = b.votes, b.arrived = b.votes = 0;
  for (Fiber* f : b.waiting) running().ready.push_back(f);
  b.waiting.clear();
}
inline int meet(Barrier& b, bool vote = false) {
  b.votes += vote;
  running().idle = 0;
  if (++b.arrived == b.expected) {
    release(b);
  } else {
    b.waiting.push_back(running().current);
    leave();
  }
  return b.result;
}
inline void resign(Barrier& b) {
  if (--b.expected == b.arrived && b.expected > 0) release(b);
}

inline unsigned char* dynamic_shared() { return now().block->shared; }
inline unsigned cluster_rank() { return now().block->rank; }
inline void cluster_sync() { meet(*now().block->cluster); }
inline void* at_rank(void* own, unsigned rank) {
  Block& b = *now().block;
  return b.members.at(rank)->shared + (static_cast<unsigned char*>(own) - b.shared);
}

template <class T>
T exchange(T value, int lane) {
  static_assert(sizeof(T) <= 8);
  Fiber& f = now();
  auto& places = f.warp->exchange[f.parity ^= 1];
  std::memcpy(&places[f.lane], &value, sizeof(T));
  meet(f.warp->barrier);
  std::memcpy(&value, &places[lane & 31], sizeof(T));
  return value;
}

inline void run_fiber() {
  running().kernel();
  Fiber& f = now();
  f.done = true;
  resign(f.block->barrier), resign(f.warp->barrier), resign(*f.block->cluster);
  _longjmp(running().home, 1);
}

inline void resume(Launch& l, Fiber& f) {
  l.current = &f;
  if (_setjmp(l.home) != 0) return;
  if (f.begun) _longjmp(f.state, 1);
  f.begun = true;
  getcontext(&f.first);
  f.stack.reset(new unsigned char[kStack]);
  f.first.uc_stack = {f.stack.get(), 0, kStack};
  f.first.uc_link = nullptr;
  makecontext(&f.first, run_fiber, 0);
  setcontext(&f.first);
}

struct Shape {
  int blocks, cluster, threads;
  std::size_t shared_bytes;
};

// Runs `kernel` in every thread. `seed` 0: threads take their turns in order. Throws where they cannot go on.
inline void run(const Shape& shape, std::uint64_t seed, std::function<void()> kernel) {
  if (shape.threads % 32 || shape.blocks % shape.cluster) throw std::invalid_argument("whole warps and clusters only");
  Launch l;
  l.block_size.x = unsigned(shape.threads), l.grid_size.x = unsigned(shape.blocks);
  l.kernel = std::move(kernel), l.random = seed, l.shuffled = seed != 0;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Barrier>> clusters;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (int i = 0; i < shape.blocks; ++i) {
    auto b = std::make_unique<Block>();
    b->index = {unsigned(i), 0, 0}, b->rank = unsigned(i % shape.cluster);
    b->memory.assign(shape.shared_bytes + 2 * kGuard + 16, kGuardByte);
    auto* start = b->memory.data() + kGuard;
    b->shared = start + (16 - reinterpret_cast<std::uintptr_t>(start) % 16) % 16;
    std::memset(b->shared, 0xff, shape.shared_bytes);
    b->barrier.expected = shape.threads;
    if (b->rank == 0) clusters.push_back(std::make_unique<Barrier>());
    b->cluster = clusters.back().get(), b->cluster->expected += shape.threads;
    b->warps.resize(std::size_t(shape.threads / 32));
    for (auto& w : b->warps) w.barrier.expected = 32;
    for (int t = 0; t < shape.threads; ++t) {
      auto f = std::make_unique<Fiber>();
      f->thread = {unsigned(t), 0, 0}, f->block = b.get(), f->lane = t % 32, f->warp = &b->warps[std::size_t(t / 32)];
      l.ready.push_back(f.get());
      fibers.push_back(std::move(f));
    }
    blocks.push_back(std::move(b));
  }
  for (auto& b : blocks)
    for (int r = 0; r < shape.cluster; ++r)
      b->members.push_back(blocks[b->index.x / shape.cluster * shape.cluster + r].get());
  Launch* const before = launch_slot();
  launch_slot() = &l;
  std::size_t left = fibers.size(), at = 0;
  std::string problem;
  while (left > 0) {
    if (at == l.ready.size()) {
      problem = "threads wait for one another: a barrier that not all of them reach";
      break;
    }
    if (l.shuffled) {
      l.random = l.random * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(l.ready[at], l.ready[at + (l.random >> 33) % (l.ready.size() - at)]);
    }
    Fiber& f = *l.ready[at++];
    if (at > 4096 && 2 * at > l.ready.size()) l.ready.erase(l.ready.begin(), l.ready.begin() + long(at)), at = 0;
    f.spinning = false;
    resume(l, f);
    left -= f.done;
    l.idle = f.spinning ? l.idle + 1 : 0;
    if (l.idle > 100000) {
      problem = "threads look at a word that nobody writes";
      break;
    }
  }
  launch_slot() = before;
  for (auto& b : blocks) {
    for (const unsigned char* p = b->memory.data(); p < b->memory.data() + b->memory.size(); ++p)
      if ((p < b->shared || p >= b->shared + shape.shared_bytes) && *p != kGuardByte && problem.empty())
        problem = "block " + std::to_string(b->index.x) + " wrote outside its shared memory, at byte " +
                  std::to_string(p - b->shared);
  }
  if (!problem.empty()) throw std::runtime_error(problem);
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(emulator::now().block->barrier); }
inline int __syncthreads_or(int vote) { return emulator::meet(emulator::now().block->barrier, vote != 0) > 0; }
inline void __syncwarp() { emulator::meet(emulator::now().warp->barrier); }
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::exchange(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, emulator::now().lane ^ mask);
}
template <class T>
T atomicMax(T* place, T value) {
  emulator::pause();
  const T before = *place;
  if (value > before) *place = value;
  return before;
}
template <class T>
T atomicAdd(T* place, T value) {
  emulator::pause();
  const T before = *place;
  *place = before + value;
  return before;
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned b) { return std::bit_cast<float>(b); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long b) { return std::bit_cast<double>(b); }
