// What a backward pass of settling returns, and the sums its weight gradients are formed in.
#pragma once

#include "settle_state.h"

namespace lmser {

struct Wanted {
  bool states, weights, biases, evidence, external;
};
inline Wanted wanted_of(const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 5, "needs has ", needs.size(),
                  " values; expected 5 (states, weights, biases, evidence, external)");
  return {needs[0], needs[1], needs[2], needs[3], needs[4]};
}

// The gradients of a backward pass, in the order of the operator's result: states, weights, reverse weights, biases,
// evidence, external. What is not wanted has no values.
template <class T>
struct Outputs {
  Tensors all;
  std::vector<T*> states;
  std::vector<View> weights, reverse;
  std::vector<std::vector<double>> biases;
  std::vector<Tensor> bias_tensors;
  T *evidence = nullptr, *external = nullptr;

  Outputs(const Network& net, const Tensor& like, const Wanted& want, bool reverse_too, bool evidence_too,
          bool external_too) {
    const auto state = [&](const Layer& l, bool wanted) -> T* {
      if (!wanted) {
        all.push_back(empty_1d(like, 0));
        return nullptr;
      }
      Memory<T> m = zeros<T>(l.values());
      T* const data = m.get();
      all.push_back(state_tensor(std::move(m), l, like));
      return data;
    };
    for (const Layer& l : net.layers) states.push_back(state(l, want.states));
    const auto weight = [&](std::vector<View>& to, const View& w) {
      all.push_back(want.weights ? empty_4d(like, false, w.n, w.c, w.h, w.w) : empty_1d(like, 0));
      to.push_back(want.weights ? view_of(all.back(), "grad_weight") : View{});
    };
    for (const Edge& e : net.edges) weight(weights, e.weight);
    for (const Edge& e : net.edges) {
      if (reverse_too) weight(reverse, e.weight);
    }
    for (const Layer& l : net.layers) {
      all.push_back(empty_1d(like, want.biases ? l.c : 0));
      bias_tensors.push_back(all.back());
      biases.emplace_back(l.c, 0.0);
    }
    evidence = state(net.layers[0], want.evidence && evidence_too);
    external = state(net.layers[0], want.external && external_too);
  }
  void finish(const Wanted& want) {
    if (want.biases)
      for (std::size_t l = 0; l < biases.size(); ++l) {
        T* const to = static_cast<T*>(bias_tensors[l].data_ptr());
        for (std::size_t c = 0; c < biases[l].size(); ++c) to[c] = T(biases[l][c]);
      }
  }
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

}  // namespace lmser
