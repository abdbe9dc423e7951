// How the steps of a whole-network operator are shared out.
//
// Samples do not depend on each other. So where there are enough of them every thread takes its own through all steps,
// in one parallel region, and takes them in groups: small enough that what a step writes is still in the cache when the
// next one reads it, large enough that a convolution streams its weight no more often than it would for all of them. A
// step whose samples are too few for that is shared by all threads.
#pragma once

#include <deque>
#include <functional>

#include "states.h"
#include "units.h"
#include "weight_sums.h"

namespace lmser {

// One direction of an edge over a whole batch, or over images of it.
struct DirectionCall {
  PreparedConv* conv;
  Source source;
  Sink sink;
  DirectionCall images(std::int64_t n0, std::int64_t n1) const {
    DirectionCall part = *this;
    for_views(part.source, [&](View& v) { v = images_of(v, n0, n1); });
    for_views(part.sink, [&](View& v) { v = images_of(v, n0, n1); });
    return part;
  }
};

// What a step adds to a weight's gradient once its result is there.
struct GradPair {
  WeightSums* sums;
  View big, small;
};

// One update over whole layers.
template <class T>
struct Step {
  // One, or two of which the second adds what the first has written; none: what is left is for all threads together.
  std::vector<DirectionCall> calls;
  Epilogue epilogue;  // of the last
  View rounded;       // where its result goes in bfloat16 as well
  // What follows for images [n0, n1) of a task.
  std::function<void(std::int64_t n0, std::int64_t n1, std::int64_t task)> after;
  std::vector<GradPair> pairs;
  std::int64_t bias_values = 0;  // between the places of two tasks, where a bias gradient is summed
};

template <class T>
Epilogue from_image(Epilogue e, std::int64_t n) {
  const auto on = [&](const void*& p) { p = p ? static_cast<const T*>(p) + n * e.image : p; };
  const auto out = [&](void*& p) { p = p ? static_cast<T*>(p) + n * e.image : p; };
  out(e.result), out(e.state), out(e.total);
  on(e.evidence), on(e.hold), on(e.previous), on(e.output), on(e.inject), on(e.extra);
  if (e.change) e.change += n;
  if (e.largest) e.largest += n;
  return e;
}

// Images [n0, n1) of a step by `task`, which may be all threads.
template <class T>
bool run_step(const InstructionSet& isa, const ThreadPool& pool, const Step<T>& step, std::int64_t n0, std::int64_t n1,
              std::int64_t task) {
  Epilogue e = from_image<T>(step.epilogue, n0);
  if (e.bias_grad) e.bias_grad += task * step.bias_values;
  for (std::size_t i = 0; i < step.calls.size(); ++i) {
    DirectionCall call = step.calls[i].images(n0, n1);
    if (i + 1 == step.calls.size()) call.sink.epilogue = &e;
    if (!call.conv->run_once(pool, call.source, call.sink)) return false;
  }
  if (step.rounded) {
    Source source;
    source.base = images_of(step.calls.back().sink.out, n0, n1);
    run_transform(isa, pool, source, images_of(step.rounded, n0, n1), {}, {});
  }
  if (step.after) step.after(n0, n1, task);
  std::vector<GatheredGradient> gathered;
  for (const GradPair& p : step.pairs)
    p.sums->add(task, images_of(p.big, n0, n1), images_of(p.small, n0, n1), gathered);
  run_gathered_gradients(isa, pool, gathered);
  return true;
}

// Consecutive steps, and how many images take them at a time; 0: all, by all threads.
struct Stage {
  std::size_t first, last;
  std::int64_t images;
};

// Bytes of states that the steps of a stage may touch by default: about a second-level cache.
inline constexpr std::int64_t kStageBytes = std::int64_t(2) << 20;
// Fewer tiles a thread than this would stream a filtered weight too often.
inline constexpr std::int64_t kStageTiles = 16;

struct Stages {
  std::vector<Stage> list;
  double work = 0;  // multiply-adds
};

template <class T>
Stages stages_of(const std::vector<Step<T>>& steps, std::int64_t samples, const ThreadPool& pool, std::int64_t threads,
                 std::int64_t stage_bytes) {
  const std::int64_t share = (samples + threads - 1) / threads;
  const bool even = 8 * share * threads <= 9 * samples;
  Stages stages;
  std::int64_t bytes = 0;  // of an image in the last stage
  for (std::size_t i = 0; i < steps.size(); ++i) {
    std::int64_t images = 1, touched = 0;
    bool apart = even || threads == 1;
    for (const DirectionCall& whole : steps[i].calls) {
      const DirectionCall call = whole.images(0, share);
      const ConvPlan& plan = call.conv->prepare(alone(), call.source, call.sink);
      const WinogradGrid& w = plan.winograd;
      stages.work += double(threads) * plan.work();
      if (w.m) {
        // A weight beyond the caches, and too few tiles for each thread to read all of it.
        const DirectionCall all = whole.images(0, samples);
        const ConvPlan& together = all.conv->prepare(threads > 1 ? pool : alone(), all.source, all.sink);
        if (together.round_units && !together.own_rounds) apart = false;
        apart = apart && (threads == 1 || share * w.rows * w.cols >= kStageTiles);
      }
      const bool merged = plan.geometry.batch != share;  // pixels of all images are rows of one
      const std::int64_t of_unit =
          merged ? plan.unit_rows * share / std::max<std::int64_t>(plan.geometry.out_h, 1) : plan.unit_images;
      images =
          std::max(images, plan.round_units ? std::min(share, of_unit * plan.round_units / plan.row_units) : of_unit);
      const View &in = call.source.base, &out = call.sink.pooled ? call.sink.pooled : call.sink.out;
      touched += std::int64_t(sizeof(T)) *
                 (in.c * in.h * in.w + out.c * out.h * out.w * (1 + bool(call.sink.add) + bool(call.sink.drive)));
    }
    for (const GradPair& p : steps[i].pairs)
      stages.work += double(p.big.c * p.small.c) * double(samples * p.small.h * p.small.w);
    if (steps[i].epilogue.previous) touched += std::int64_t(sizeof(T)) * steps[i].epilogue.image;
    if (!apart || steps[i].calls.empty()) images = 0;
    Stage* const last = stages.list.empty() ? nullptr : &stages.list.back();
    if (last && last->images && images && std::max(last->images, images) * (bytes + touched) <= stage_bytes) {
      last->last = i + 1, last->images = std::max(last->images, images), bytes += touched;
    } else {
      stages.list.push_back({i, i + 1, images}), bytes = touched;
    }
  }
  return stages;
}

// All steps for the first `samples`; false as soon as a result is not finite. Tasks are numbered from 0 to the threads
// of the pool, where the last number is all of them together.
template <class T>
bool run_steps(const InstructionSet& isa, const ThreadPool& pool, const std::vector<Step<T>>& steps,
               std::int64_t samples, std::int64_t stage_bytes = kStageBytes) {
  for (const Step<T>& step : steps)
    for (const DirectionCall& call : step.calls) call.conv->forget_plans();
  std::int64_t threads = std::max(1, pool.threads);
  Stages stages = stages_of<T>(steps, samples, pool, threads, stage_bytes);
  if (threads > 1 && stages.work < kSerialWork) stages = stages_of<T>(steps, samples, pool, threads = 1, stage_bytes);
  // Group i of thread t, none beyond its last. Where a few more groups are all of one size, they are: one plan and one
  // sum serve them all.
  const auto group = [&](std::int64_t t, std::int64_t i, std::int64_t images) {
    const std::int64_t begin = samples * t / threads, count = samples * (t + 1) / threads - begin;
    std::int64_t groups = (count + images - 1) / images;
    for (std::int64_t more = groups; more && 2 * more <= 3 * groups; ++more)
      if (count % more == 0) {
        groups = more;
        break;
      }
    return i < groups ? std::pair{begin + count * i / groups, begin + count * (i + 1) / groups}
                      : std::pair{begin, begin};
  };
  std::size_t done = 0;
  while (done < stages.list.size()) {
    const Stage& stage = stages.list[done];
    if (stage.images == 0) {
      for (std::size_t i = stage.first; i < stage.last; ++i)
        if (!run_step(isa, pool, steps[i], 0, samples, std::max(1, pool.threads))) return false;
      ++done;
      continue;
    }
    std::size_t end = done;
    for (; end < stages.list.size() && stages.list[end].images; ++end)
      for (std::int64_t t = 0; t < threads; ++t)
        for (std::int64_t g = 0;; ++g) {
          const auto [n0, n1] = group(t, g, stages.list[end].images);
          if (n0 == n1) break;
          for (std::size_t i = stages.list[end].first; i < stages.list[end].last; ++i)
            for (const DirectionCall& whole : steps[i].calls) {
              const DirectionCall call = whole.images(n0, n1);
              call.conv->prepare(alone(), call.source, call.sink);
            }
        }
    std::atomic<bool> finite{true};
    // A thread's groups are another's to take where nothing else of theirs comes before or after, and no sum is the
    // thread's own.
    bool others = end == done + 1;
    for (std::size_t i = stage.first; i < stage.last; ++i)
      others = others && steps[i].pairs.empty() && !steps[i].bias_values;
    std::deque<Parts> groups;
    for (std::size_t s = done; s < end; ++s) groups.emplace_back(threads);
    const auto share = [&](std::int64_t t) {
      for (std::size_t s = done; s < end && finite.load(std::memory_order_relaxed); ++s) {
        const auto range = [&](std::int64_t of, std::int64_t i) { return group(of, i, stages.list[s].images); };
        const bool good = groups[s - done].take(t, others, range, [&](std::int64_t n0, std::int64_t n1) {
          for (std::size_t i = stages.list[s].first; i < stages.list[s].last; ++i)
            if (!run_step(isa, alone(), steps[i], n0, n1, t)) return false;
          return true;
        });
        if (!good) finite.store(false, std::memory_order_relaxed);
      }
    };
    if (threads == 1)
      share(0);
    else
      pool.run(threads, share);
    if (!finite.load()) return false;
    done = end;
  }
  return true;
}

}  // namespace lmser
