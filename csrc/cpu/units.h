// Units of work for whoever is free.
#pragma once

#include <atomic>

#include "engine.h"

namespace lmser {

// The one thread that a task is.
inline const ThreadPool& alone() {
  static const ThreadPool one{1, [](std::int64_t count, const std::function<void(std::int64_t)>& f) {
                                for (std::int64_t i = 0; i < count; ++i) f(i);
                              }};
  return one;
}

// Units in any order on `tasks` threads: whoever is free takes the next, so a busy neighbour costs little. Only
// for work whose result does not depend on who does it.
template <class F>
void run_units(const ThreadPool& pool, std::int64_t tasks, std::int64_t units, F&& f) {
  if (tasks <= 1) {
    for (std::int64_t u = 0; u < units; ++u) f(0, u);
    return;
  }
  std::atomic<std::int64_t> next{0};
  pool.run(tasks, [&](std::int64_t task) {
    for (std::int64_t u; (u = next.fetch_add(1, std::memory_order_relaxed)) < units;) f(task, u);
  });
}

}  // namespace lmser
