// PyTorch's thread pool for the engine: torch.set_num_threads governs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "engine.h"

namespace lmser {

inline ThreadPool torch_pool() {
  return {int(torch::stable::get_num_threads()), [](std::int64_t count, const std::function<void(std::int64_t)>& f) {
            torch::stable::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
              for (std::int64_t i = begin; i < end; ++i) f(i);
            });
          }};
}

}  // namespace lmser
