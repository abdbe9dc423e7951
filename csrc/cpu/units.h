// Units of work, shared out to threads.
#pragma once

#include <atomic>
#include <utility>
#include <vector>

#include "buffer.h"
#include "engine.h"

namespace lmser {

// The one thread that a task is.
inline const ThreadPool& alone() {
  static const ThreadPool one{1, [](std::int64_t count, const std::function<void(std::int64_t)>& f) {
                                for (std::int64_t i = 0; i < count; ++i) f(i);
                              }};
  return one;
}

// What threads take: each its own part in its order, and then, where it is free to, what another has not come to yet. A
// thread that is held up by a busy neighbour keeps the others waiting for one piece alone.
class Parts {
 public:
  explicit Parts(std::int64_t threads) : next_(std::size_t(threads)) {}
  // f(first, last) for the pieces that thread t takes, until it is false; with `others`, of other threads as well.
  // range(t, i): piece i of thread t, an empty one beyond its last.
  template <class Range, class F>
  bool take(std::int64_t t, bool others, Range&& range, F&& f) {
    const std::int64_t threads = std::int64_t(next_.size());
    for (std::int64_t i = 0; i < (others ? threads : 1); ++i) {
      const std::int64_t of = (t + i) % threads;
      for (;;) {
        const auto piece = range(of, next_[std::size_t(of)].value.fetch_add(1, std::memory_order_relaxed));
        if (piece.first == piece.second) break;
        if (!f(piece.first, piece.second)) return false;
      }
    }
    return true;
  }

 private:
  struct alignas(64) Next {
    std::atomic<std::int64_t> value{0};
  };
  std::vector<Next> next_;
};

// Units on `tasks` threads, each of which has a stretch of them: what a thread wrote of some images it reads again in
// the next call, out of its own cache. `scratch` values of T belong to a thread, out of its own store for the same
// reason. f(unit, memory), only for work whose result does not depend on who does it.
template <class T, class F>
void run_units(const ThreadPool& pool, std::int64_t tasks, std::int64_t units, std::int64_t scratch, F&& f) {
  if (tasks <= 1) {
    const Buffer<T> memory = allocate<T>(scratch);
    for (std::int64_t u = 0; u < units; ++u) f(u, memory.get());
    return;
  }
  Parts parts(tasks);
  const auto range = [&](std::int64_t t, std::int64_t i) {
    const std::int64_t u = units * t / tasks + i, end = units * (t + 1) / tasks;
    return u < end ? std::pair{u, u + 1} : std::pair{end, end};
  };
  pool.run(tasks, [&](std::int64_t task) {
    const Buffer<T> memory = allocate<T>(scratch);
    parts.take(task, true, range, [&](std::int64_t u, std::int64_t) {
      f(u, memory.get());
      return true;
    });
  });
}

}  // namespace lmser
