// The passes of a reflection network and their gradient, with the arguments of `lmser_kernels.reflect`.
#include "cpu/reflect_network.h"
#include "direct_call.h"

namespace lmser::direct {
namespace py = pybind11;
namespace {

// What follows x: weights, decoder weights, strides, paddings, counts of linear channels, whether paired, reflections,
// activation and slope. None where the sizes do not go together.
std::optional<ReflectNetwork> network(Arguments& a, const View& x, std::vector<bool>* flat = nullptr) {
  const std::vector<View> weights = a.kernels(flat), back = a.kernels();
  const auto stride = a.maybe_pairs(weights.size(), 1);
  auto padding = a.maybe_pairs(weights.size(), 0);
  const Pair linear = a.pair(0);
  const bool paired = a.flag();
  const std::int64_t reflections = a.integer(1);
  const Activation activation = a.activation();
  const double slope = a.number();
  if (!a.require(stride.has_value())) return std::nullopt;
  if (!padding) {
    padding.emplace();
    for (const View& w : weights) padding->push_back({int(w.h / 2), int(w.w / 2)});
  }
  if (!a.require(x.dtype == DType::f32 || x.dtype == DType::f64 || passes_halves(x.dtype))) return std::nullopt;
  try {
    return reflect_network(x, weights, back, *stride, *padding, {linear.h, linear.w}, paired, reflections, activation,
                           slope);
  } catch (const std::exception&) {  // the caller says what is wrong
    return a.require(false), std::nullopt;
  }
}

// What the passes read beside the network.
struct Given {
  std::vector<View> biases;
  View noise;
};
Given given(Arguments& a, const std::optional<ReflectNetwork>& net) {
  Given g{a.biases(), a.maybe_tensor()};
  if (!net) return g;
  const Layer& top = net->layers.back();
  a.require(g.biases.size() == net->layers.size() && shaped(g.noise, top.n, net->linear.last, top.h, top.w));
  for (std::size_t l = 0; l < g.biases.size() && l < net->layers.size(); ++l)
    a.require(g.biases[l].c == net->layers[l].c);
  return g;
}

// Memory for the gradients of weights, decoder weights and biases, behind what `results` has; None for those not
// wanted. `flat`: which weights are matrices.
void add_gradients(Arguments& a, const ReflectNetwork& net, const std::vector<bool>& flat, bool of_weights,
                   bool of_biases, py::list& results, ReflectGradients& to) {
  for (std::vector<View>* const views : {&to.weights, &to.back}) {
    if (views == &to.back && net.tied) break;
    for (std::size_t e = 0; e < net.edges.size(); ++e)
      results.append(of_weights ? a.empty_kernel(net.edges[e].weight, flat[e], views->emplace_back()) : py::none());
  }
  for (const Layer& l : net.layers) results.append(of_biases ? a.empty(l.c, to.biases.emplace_back()) : py::none());
}

// (reconstruction, code, states): the states of all updates where a gradient has to be recorded
py::object reflect(Arguments& a) {
  const View x = a.tensor();
  const std::optional<ReflectNetwork> net = network(a, x);
  const Given g = given(a, net);
  if (!net) return py::none();
  const Layer& top = net->layers.back();
  a.require_size(x.n, x.c, x.h, x.w), a.require_size(top.n, top.c, top.h, top.w);
  a.require_size(net->kept, x.n, 1, 1);
  if (!a.complete()) return py::none();
  View to, code, states;
  const py::object reconstruction = a.empty(channels_last(x), x.n, x.c, x.h, x.w, to),
                   result = a.empty(top.h * top.w > 1, top.n, top.c, top.h, top.w, code),
                   kept = a.recorded() ? a.empty(net->kept * x.n, states) : py::none();
  {
    const py::gil_scoped_release release;
    run_reflect(*net, x, g.biases, g.noise, to, code, states.data);
  }
  return a.give(reconstruction, result, kept);
}

// Gradients of x, weights, decoder weights and biases, one after the other; None for those not asked for.
py::object reflect_backward(Arguments& a) {
  const View grad = a.maybe_tensor(), grad_code = a.maybe_tensor(), x = a.tensor();
  std::vector<bool> flat;
  const std::optional<ReflectNetwork> net = network(a, x, &flat);
  const View states = a.maybe_bias();
  const std::array<bool, 3> needs = a.flags<3>();
  if (!net) return py::none();
  const Layer& top = net->layers.back();
  a.require(alike(grad, x) && shaped(grad_code, top.n, top.c, top.h, top.w) && states.c == net->kept * x.n &&
            states.sc == 1);
  a.require_size(x.n, x.c, x.h, x.w);
  for (const ReflectEdge& e : net->edges) a.require_size(e.weight.n, e.weight.c, e.weight.h, e.weight.w);
  if (!a.complete()) return py::none();
  ReflectGradients to;
  py::list results;
  results.append(needs[0] ? a.empty(channels_last(x), x.n, x.c, x.h, x.w, to.x) : py::none());
  add_gradients(a, *net, flat, needs[1], needs[2], results, to);
  {
    const py::gil_scoped_release release;
    run_reflect_backward(*net, grad, grad_code, x, states.data, to);
  }
  return a.give(py::tuple(results));
}

// (loss, gradients of weights, decoder weights and biases one after the other), which are None where nothing is
// recorded
py::object reflect_loss(Arguments& a) {
  const View x = a.tensor(), target = a.maybe_tensor();
  std::vector<bool> flat;
  const std::optional<ReflectNetwork> net = network(a, x, &flat);
  const Given g = given(a, net);
  const std::array<bool, 2> needs = a.flags<2>();
  if (!net) return py::none();
  a.require(alike(target, x));
  a.require_size(x.n, x.c, x.h, x.w), a.require_size(net->kept, x.n, 1, 1);
  for (const ReflectEdge& e : net->edges) a.require_size(e.weight.n, e.weight.c, e.weight.h, e.weight.w);
  if (!a.complete()) return py::none();
  const bool records = a.recorded();
  ReflectGradients to;
  py::list gradients;
  add_gradients(a, *net, flat, records && needs[0], records && needs[1], gradients, to);
  View loss;
  const py::object result = a.empty_scalar(loss);
  double value;
  {
    const py::gil_scoped_release release;
    value = run_reflect_loss(*net, x, target, g.biases, g.noise, to);
  }
  if (loss.dtype == DType::f64)
    *static_cast<double*>(loss.data) = value;
  else
    *static_cast<float*>(loss.data) = float(value);
  return a.give(result, gradients);
}

// Whether a number is 1, read where it lies; None where it does not lie on the CPU.
py::object is_one(Arguments& a) {
  const View v = a.scalar();
  if (!a.require(v.dtype == DType::f32 || v.dtype == DType::f64) || !a.complete()) return py::none();
  return py::bool_(v.dtype == DType::f64 ? *static_cast<const double*>(v.data) == 1
                                         : *static_cast<const float*>(v.data) == 1);
}

}  // namespace

void add_reflect_functions(py::module_& module) {
  static PyMethodDef methods[] = {method<reflect>("reflect"),
                                  method<reflect_backward>("reflect_backward"),
                                  method<reflect_loss>("reflect_loss"),
                                  method<is_one>("is_one"),
                                  {}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace lmser::direct
