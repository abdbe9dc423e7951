// Back through the sweeps, update by update.
//
// Walking back to the update that made version v of h_l, every drive computed from v has its whole gradient: that of
// y_{l+1} and that of u_{l-1}, each of which may have served several updates. Their transposed convolutions give the
// gradient of h_l, the epilogue makes d = f'(h_l) * (that) of it, and d goes to the gradients of y_l and of u_l.
#pragma once

#include "settle_network.h"

namespace lmser {

// The gradients of the two drives of a layer, in three places of memory: a sum never overwrites what it reads.
template <class T>
class DriveGradients {
 public:
  explicit DriveGradients(std::int64_t values) : values_(values) {}
  T *up = nullptr, *down = nullptr;  // null: none yet
  // A place that neither of the two is in, nor `but`.
  T* free_place(const T* but = nullptr) {
    for (Memory<T>& m : places_) {
      if (!m) m = Memory<T>(values_);
      if (m.get() != up && m.get() != down && m.get() != but) return m.get();
    }
    return nullptr;
  }

 private:
  std::int64_t values_;
  Memory<T> places_[4];
};

// Weight gradients of every edge, both directions of it, summed over all sweeps.
template <class T>
class WeightGradients {
 public:
  WeightGradients(const InstructionSet& isa, const ThreadPool& pool, const Network& net, std::vector<View> weights,
                  std::vector<View> reverse, bool winograd)
      : isa_(isa),
        pool_(pool),
        net_(net),
        winograd_(winograd),
        weights_(std::move(weights)),
        reverse_(std::move(reverse)),
        weight_sums_(net.edges.size()),
        reverse_sums_(net.edges.size()) {}
  // The drive of `edge`'s upper layer: from `state` below, with gradient `grad` above.
  void up(int edge, const T* state, const T* grad) {
    const Edge& e = net_.edges[edge];
    Source big = source(edge, state), small;
    big.pool_h = e.pool.h, big.pool_w = e.pool.w, big.scale = 1.0 / (double(e.pool.h) * e.pool.w);
    small.base = net_.layers[edge + 1].view(grad, kDTypeOf<T>);
    add(edge, weights_, weight_sums_, {big, small});
  }
  // The drive of `edge`'s lower layer: from `state` above, with gradient `grad` below.
  void down(int edge, const T* grad, const T* state) {
    const Edge& e = net_.edges[edge];
    Source big = source(edge, grad), small;
    big.pool_h = e.pool.h, big.pool_w = e.pool.w, big.scale = 1;
    small.base = net_.layers[edge + 1].view(state, kDTypeOf<T>);
    if (reverse_.empty())
      add(edge, weights_, weight_sums_, {big, small});
    else
      add(edge, reverse_, reverse_sums_, {big, small});
  }
  // Writes all; zeros where nothing was added. False where a minimal-filtering sum is not finite.
  bool finish() {
    bool finite = true;
    for (std::size_t e = 0; e < net_.edges.size(); ++e)
      finite = write(weights_, weight_sums_, e) && write(reverse_, reverse_sums_, e) && finite;
    return finite;
  }

 private:
  using Sums = std::vector<std::optional<WeightGradSum>>;
  Source source(int edge, const T* data) const {
    Source s;
    s.base = net_.layers[edge].view(data, kDTypeOf<T>);
    return s;
  }
  void add(int edge, const std::vector<View>& to, Sums& sums, const WeightGradPair& pair) {
    if (to.empty() || !to[edge]) return;
    if (!sums[edge]) sums[edge].emplace(isa_, pool_, net_.edges[edge].up, kDTypeOf<T>, winograd_);
    sums[edge]->add({pair});
  }
  static bool write(const std::vector<View>& to, Sums& sums, std::size_t e) {
    if (to.empty() || !to[e]) return true;
    if (sums[e]) return sums[e]->finish(to[e]);
    std::memset(to[e].data, 0, sizeof(T) * to[e].n * to[e].c * to[e].h * to[e].w);
    return true;
  }

  const InstructionSet& isa_;
  const ThreadPool& pool_;
  const Network& net_;
  bool winograd_;
  std::vector<View> weights_, reverse_;
  Sums weight_sums_, reverse_sums_;
};

// Edge directions of the adjoint: the gradient of a drive, carried to the state it was computed from.
template <class T>
class Carrier {
 public:
  Carrier(const InstructionSet& isa, const ThreadPool& pool, const Network& net)
      : net_(net), directions_(isa, pool, net, kDTypeOf<T>, {}, true) {
    for (const Layer& l : net.layers) drives.emplace_back(l.values());
  }
  std::vector<DriveGradients<T>> drives;

  // The gradient of layer l's state into `to` (with `epilogue` on the finished sum); false if there is none.
  bool gather(int l, T* to, const T* add, const Epilogue* epilogue, WeightGradients<T>& weights, const T* state) {
    T* const above = l < net_.top() ? drives[l + 1].up : nullptr;
    T* const below = l > 0 ? drives[l - 1].down : nullptr;
    const Layer& layer = net_.layers[l];
    Sink sink;
    sink.out = layer.view(to, kDTypeOf<T>);
    if (add) sink.add = layer.view(add, kDTypeOf<T>);
    if (above && below) {
      if (!partial_[l]) partial_[l] = Memory<T>(layer.values());
      Sink first = sink;
      first.out = layer.view(partial_[l].get(), kDTypeOf<T>);
      directions_.up(l, layer.n, below, first);
      sink.add = first.out;
    }
    sink.epilogue = epilogue;
    if (above)
      directions_.down(l, layer.n, above, sink);
    else if (below)
      directions_.up(l, layer.n, below, sink);
    if (above) weights.up(l, state, above), drives[l + 1].up = nullptr;
    if (below) weights.down(l - 1, below, state), drives[l - 1].down = nullptr;
    return above || below;
  }

 private:
  const Network& net_;
  Directions directions_;
  std::vector<Memory<T>> partial_ = std::vector<Memory<T>>(net_.layers.size());
};

}  // namespace lmser
