// The adjoint of a fixed point, swept as the states were.
#include "settle_gradients.h"

namespace lmser {
namespace {

// The adjoint of a fixed point: a_l = f'(h_l) (g_l + the adjoint drives from below and above), swept as the states
// were.
template <class T>
std::tuple<Tensors, Tensor, Tensor> settle_adjoint_as(const Network& net, const Tensors& grad_states,
                                                      const Tensor& grad_readout, const Tensors& states,
                                                      const Maybe& evidence, const Maybe& hold, bool has_external,
                                                      const Tensor& readout, bool tied, Activation activation,
                                                      double slope, bool up_down, const Stop& stop,
                                                      const Wanted& want) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  constexpr DType kType = kDTypeOf<T>;
  const Tensor& like = states[0];
  const int top = net.top();
  const Layer& visible = net.layers[0];
  const std::int64_t samples = visible.n;
  const Held<T> held(isa, pool, visible, evidence, hold, like);

  const std::vector<Dense<T>> fixed = dense_states<T>(isa, pool, states);
  std::vector<Dense<T>> grads;
  for (int l = 0; l <= top; ++l) {
    grads.emplace_back(grad_states[l].numel() ? Dense<T>(isa, pool, view_of(grad_states[l], "grad_states"))
                                              : Dense<T>());
  }
  const Dense<T> seen(isa, pool, view_of(readout, "readout"));
  Dense<T> seen_grad;
  if (grad_readout.numel()) seen_grad = Dense<T>(isa, pool, view_of(grad_readout, "grad_readout"));
  // What is injected into the visible layer, beside what the layer above returns.
  Memory<T> inject = zeros<T>(visible.values());
  for (std::int64_t k = 0; k < visible.values(); ++k) {
    const T share = held.any ? held.hold.get()[k] : T(0);
    if (grads[0].get() && share != T(1)) inject.get()[k] += (T(1) - share) * grads[0].get()[k];
    if (seen_grad.get()) inject.get()[k] += seen_grad.get()[k];
  }

  std::vector<Memory<T>> places[2];
  for (auto& p : places)
    for (const Layer& l : net.layers) p.push_back(Memory<T>(l.values()));
  std::vector<const T*> ended;
  std::optional<Sweeper<T>> sweeper;
  Changes<T> changes(samples);
  std::int64_t sweeps = 0;
  double change = std::numeric_limits<double>::infinity();
  // False where a result is not finite and the direct sum must say which others that reaches.
  const auto settled = [&](bool filtering) {
    ended.clear();
    for (int l = 0; l <= top; ++l) {
      std::memset(static_cast<void*>(places[1][l].get()), 0, sizeof(T) * net.layers[l].values());
      ended.push_back(places[1][l].get());
    }
    // Nothing that a held unit takes is passed on: the visible layer is still swept, for its own gradient.
    sweeper.emplace(isa, pool, net, std::vector<View>{}, true, schedule(top + 1, up_down, false, true), ended,
                    filtering);
    for (sweeps = 0; sweeps < stop.max_steps;) {
      changes.clear();
      for (const Update& u : sweeper->updates(sweeps)) {
        const Layer& layer = net.layers[u.layer];
        T* const to = places[sweeps % 2][u.layer].get();
        Sink sink;
        sink.out = layer.view(to, kType);
        Epilogue& e = sweeper->add(u, sink, to).epilogue;
        e.result = to, e.image = layer.image(), e.channels = layer.c;
        e.activation = activation, e.slope = slope;
        e.output = u.layer ? fixed[u.layer].get() : seen.get();
        e.inject = u.layer ? grads[u.layer].get() : inject.get();
        if (u.layer == 0 && held.any) e.hold = held.hold.get();
        if (u.last) {
          e.previous = ended[u.layer], e.change = changes.change.data(), e.largest = changes.largest.data();
          ended[u.layer] = to;
        }
      }
      if (!sweeper->run(samples)) return false;
      ++sweeps;
      const double largest = Changes<T>::most(changes.largest, samples);
      change = Changes<T>::most(changes.change, samples);
      change = largest > 0 ? change / largest : (largest == 0 ? 0 : largest);
      if (change < stop.theta || largest == 0) break;
    }
    return true;
  };
  if (!settled(true)) settled(false);

  Outputs<T> out(net, like, want, !tied, held.any, has_external);
  for (const bool winograd : {true, false}) {
    WeightGradients<T> weights(isa, pool, net, out.weights, out.reverse, winograd);
    for (int e = 0; e < top; ++e) {
      weights.up(e, fixed[e].get(), ended[e + 1]);
      weights.down(e, ended[e], fixed[e + 1].get());
    }
    if (weights.finish()) break;
  }
  if (want.biases)
    for (int l = 0; l <= top; ++l) {
      const Layer& layer = net.layers[l];
      for (std::int64_t k = 0; k < layer.values(); ++k) out.biases[l][k % layer.c] += double(ended[l][k]);
    }
  if (out.external) std::memcpy(static_cast<void*>(out.external), ended[0], sizeof(T) * visible.values());
  if (out.evidence) {
    Memory<T> g(visible.values());
    Sink sink;
    sink.out = visible.view(g.get(), kType);
    const DirectionCall call = sweeper->directions().down(0, ended[1], sink);
    call.conv->run(pool, call.source, call.sink);
    for (std::int64_t k = 0; k < visible.values(); ++k) {
      const T share = held.hold.get()[k];
      out.evidence[k] = share == T(0) ? T(0) : share * (g.get()[k] + (grads[0].get() ? grads[0].get()[k] : T(0)));
    }
  }
  out.finish(want);
  const torch::headeronly::IntHeaderOnlyArrayRef none;
  Tensor steps_out = torch::stable::empty(none, ScalarType::Long, std::nullopt, like.device());
  Tensor change_out = torch::stable::empty(none, like.scalar_type(), std::nullopt, like.device());
  *static_cast<std::int64_t*>(steps_out.data_ptr()) = sweeps;
  *static_cast<T*>(change_out.data_ptr()) = T(change);
  return {std::move(out.all), steps_out, change_out};
}

std::tuple<Tensors, Tensor, Tensor> settle_adjoint(const Tensors& grad_states, const Tensor& grad_readout,
                                                   const Tensors& states, const Tensors& weights,
                                                   const Tensors& reverse, const Maybe& evidence, const Maybe& hold,
                                                   bool has_external, const Tensor& readout, const Ints& pools,
                                                   const Ints& padding, const std::string& activation, double slope,
                                                   const std::string& order, double theta, std::int64_t max_steps,
                                                   const std::vector<bool>& needs) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  const Activation f = activation_named(activation);
  const Stop stop{theta, max_steps, false};
  const bool up_down = up_down_of(order);
  return dtype_of(states[0], "states[0]") == DType::f64
             ? settle_adjoint_as<double>(net, grad_states, grad_readout, states, evidence, hold, has_external, readout,
                                         reverse.empty(), f, slope, up_down, stop, wanted_of(needs))
             : settle_adjoint_as<float>(net, grad_states, grad_readout, states, evidence, hold, has_external, readout,
                                        reverse.empty(), f, slope, up_down, stop, wanted_of(needs));
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("settle_adjoint", TORCH_BOX(&lmser::settle_adjoint)); }
