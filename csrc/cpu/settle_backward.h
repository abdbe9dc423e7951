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

// Weight gradients of every edge, both directions of it.
template <class T>
class WeightGradients {
 public:
  WeightGradients(const InstructionSet& isa, const ThreadPool& pool, const Network& net, std::vector<View> weights,
                  std::vector<View> reverse)
      : isa_(isa), pool_(pool), net_(net), weights_(std::move(weights)), reverse_(std::move(reverse)) {
    begun_.assign(2 * net.edges.size(), false);
  }
  // The drive of `edge`'s upper layer: from `state` below, with gradient `grad` above.
  void up(int edge, const T* state, const T* grad) {
    const Edge& e = net_.edges[edge];
    Source big = source(edge, state), small;
    big.pool_h = e.pool.h, big.pool_w = e.pool.w, big.scale = 1.0 / (double(e.pool.h) * e.pool.w);
    small.base = net_.layers[edge + 1].view(grad, kDTypeOf<T>);
    add(edge, weights_, big, small, false);
  }
  // The drive of `edge`'s lower layer: from `state` above, with gradient `grad` below.
  void down(int edge, const T* grad, const T* state) {
    const Edge& e = net_.edges[edge];
    Source big = source(edge, grad), small;
    big.pool_h = e.pool.h, big.pool_w = e.pool.w, big.scale = 1;
    small.base = net_.layers[edge + 1].view(state, kDTypeOf<T>);
    add(edge, reverse_.empty() ? weights_ : reverse_, big, small, !reverse_.empty());
  }
  // Edges that nothing was added to.
  void finish() {
    for (std::size_t e = 0; e < net_.edges.size(); ++e) {
      clear(weights_, e, begun_[e]);
      clear(reverse_, e, begun_[net_.edges.size() + e]);
    }
  }

 private:
  Source source(int edge, const T* data) const {
    Source s;
    s.base = net_.layers[edge].view(data, kDTypeOf<T>);
    return s;
  }
  void add(int edge, const std::vector<View>& to, const Source& big, const Source& small, bool reverse) {
    if (to.empty() || !to[edge]) return;
    const std::size_t slot = edge + (reverse ? net_.edges.size() : 0);
    run_weight_grad(isa_, pool_, net_.edges[edge].up, {{big, small}}, to[edge], begun_[slot]);
    begun_[slot] = true;
  }
  static void clear(const std::vector<View>& to, std::size_t e, bool begun) {
    if (to.empty() || !to[e] || begun) return;
    std::memset(to[e].data, 0, sizeof(T) * to[e].n * to[e].c * to[e].h * to[e].w);
  }

  const InstructionSet& isa_;
  const ThreadPool& pool_;
  const Network& net_;
  std::vector<View> weights_, reverse_;
  std::vector<bool> begun_;
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
