// The gradient of one weight, of pairs that several threads add.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

#include "engine.h"
#include "layout.h"

namespace lmser {

// Every task adds to sums of its own, and those are added in the order of the tasks: the result depends on how the
// pairs were shared out, not on who was faster.
class WeightSums {
 public:
  // `tasks` threads that add by themselves; after them one that is all threads together.
  WeightSums(const InstructionSet& isa, const ThreadPool& pool, const ThreadPool& one, const Geometry& geometry,
             DType dtype, bool winograd, std::int64_t tasks)
      : isa_(isa),
        pool_(pool),
        one_(one),
        geometry_(geometry),
        dtype_(dtype),
        winograd_(winograd),
        sums_(std::size_t(tasks) + 1) {}

  // Sides of the same images. Only the last task may be all threads.
  void add(std::int64_t task, const View& big, const View& small) {
    std::vector<GatheredGradient> gathered;
    add(task, big, small, gathered);
    run_gathered_gradients(isa_, pool_, gathered);
  }
  // The same, but for what `run_gathered_gradients` is to do with all that is in `later`.
  void add(std::int64_t task, const View& big, const View& small, std::vector<GatheredGradient>& later) {
    WeightGradPair pair;
    pair.big.base = big, pair.small.base = small;
    Geometry g = geometry_;
    g.batch = big.n;
    if (!destination_ || !(is_all(task) || sums_.size() == 2) || !gathers_gradient(isa_, g, destination_))
      return of(task, big, small).add({pair});
    const auto same =
        std::ranges::find_if(later, [&](const GatheredGradient& l) { return l.grad.data == destination_.data; });
    if (same != later.end())
      same->pairs.push_back(pair);
    else
      later.push_back({g, {pair}, destination_, std::exchange(written_, true)});
  }
  // Where the gradient will be wanted: what all threads add together, or one that is alone, may go there at once.
  void will_finish(const View& grad) { destination_ = grad; }

  // Writes the gradient, zero where nothing was added; false where a minimal-filtering sum is not finite.
  template <class T>
  bool finish(const View& grad) {
    bool first = !written_;
    std::vector<WeightGradSum*> all;
    for (std::deque<Sum>& own : sums_)
      for (Sum& sum : own) {
        const auto merges = [&](WeightGradSum* with) { return with->merge(sum.sum, pool_); };
        if (std::ranges::none_of(all, merges)) all.push_back(&sum.sum);
      }
    for (WeightGradSum* sum : all) {
      sum->finish_by(pool_);
      if (!sum->finish(grad, !first)) return false;
      first = false;
    }
    if (first) std::memset(grad.data, 0, sizeof(T) * grad.n * grad.c * grad.h * grad.w);
    return true;
  }

  // Whether `pairs` of so many images are better summed by all threads, each a part of the gradient, than by every
  // thread over its own: where a sum is large beside what is added to it.
  bool together(std::int64_t images) const {
    const Geometry& g = geometry_;
    const double sum = double(g.kernel_h * g.kernel_w) * double(g.in_c * g.out_c);
    return pool_.threads > 1 &&
           2 * sum > double(images) * double(g.in_h * g.in_w * g.in_c + g.out_h * g.out_w * g.out_c);
  }

 private:
  // Pairs of one sum must be of one size and lie alike (whether their pixels are one axis decides how they are read).
  struct Sum {
    std::int64_t images;
    bool big_is_rows, small_is_rows;
    WeightGradSum sum;
  };
  WeightGradSum& of(std::int64_t task, const View& big, const View& small) {
    std::deque<Sum>& own = sums_[std::size_t(task)];
    const bool big_is_rows = pixel_stride(big).has_value(), small_is_rows = pixel_stride(small).has_value();
    for (Sum& s : own)
      if (s.images == big.n && s.big_is_rows == big_is_rows && s.small_is_rows == small_is_rows) return s.sum;
    Geometry g = geometry_;
    g.batch = big.n;
    own.push_back({big.n, big_is_rows, small_is_rows, {isa_, is_all(task) ? pool_ : one_, g, dtype_, winograd_, true}});
    return own.back().sum;
  }
  bool is_all(std::int64_t task) const { return task + 1 == std::int64_t(sums_.size()); }

  const InstructionSet& isa_;
  const ThreadPool &pool_, &one_;
  Geometry geometry_;
  DType dtype_;
  bool winograd_, written_ = false;
  View destination_;
  std::vector<std::deque<Sum>> sums_;
};

}  // namespace lmser
