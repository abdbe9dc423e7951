// The passes of a reflection network, and their gradient, as operators.
#include "reflect_network.h"

namespace lmser {
namespace {

// A fully connected edge's matrix is a 1x1 kernel.
View edge_view(const Tensor& weight, const char* name) {
  if (weight.dim() != 2) return view_of(weight, name);
  return {weight.data_ptr(),
          dtype_of(weight, name),
          weight.size(0),
          weight.size(1),
          1,
          1,
          weight.stride(0),
          weight.stride(1),
          1,
          1};
}

std::vector<Pair> pairs_of(const Ints& flat, const char* name, std::size_t edges, std::int64_t least) {
  STD_TORCH_CHECK(flat.size() == 2 * edges, name, ": expected a pair for each weight");
  std::vector<Pair> pairs;
  for (std::size_t e = 0; e < edges; ++e) pairs.push_back(pair_of({flat[2 * e], flat[2 * e + 1]}, name, least));
  return pairs;
}

ReflectNetwork network(const Tensor& x, const Tensors& weights, const Tensors& back, const Ints& stride,
                       const Ints& padding, const Ints& linear, bool paired, std::int64_t reflections,
                       const std::string& activation, double slope) {
  const auto edges = [&](const Tensors& tensors, const char* name) {
    std::vector<View> views;
    for (const Tensor& t : tensors) check_like(t, name, x, "x"), views.push_back(edge_view(t, name));
    return views;
  };
  STD_TORCH_CHECK(linear.size() == 2, "linear: expected two counts");
  return reflect_network(view_of(x, "x"), edges(weights, "weights"), edges(back, "decoder_weights"),
                         pairs_of(stride, "stride", weights.size(), 1), pairs_of(padding, "padding", weights.size(), 0),
                         {linear[0], linear[1]}, paired, reflections, activation_named(activation), slope);
}

std::vector<View> biases_of(const Tensors& biases, const Tensor& x, const ReflectNetwork& net) {
  STD_TORCH_CHECK(biases.size() == net.layers.size(), "biases: expected one for each of ", net.layers.size(),
                  " layers, got ", biases.size());
  std::vector<View> views;
  for (std::size_t l = 0; l < biases.size(); ++l) views.push_back(bias_view(biases[l], x, "x", net.layers[l].c));
  return views;
}

// Memory for the gradients of weights, decoder weights and biases, behind what `results` has: without values where they
// are not wanted.
void add_gradients(const ReflectNetwork& net, const Tensor& x, const Tensors& weights, bool of_weights, bool of_biases,
                   Tensors& results, ReflectGradients& to) {
  for (std::vector<View>* const views : {&to.weights, &to.back}) {
    if (views == &to.back && net.tied) break;
    for (const Tensor& w : weights) {
      std::vector<std::int64_t> size{0};
      if (of_weights) {
        size.clear();
        for (std::int64_t i = 0; i < w.dim(); ++i) size.push_back(w.size(i));
      }
      results.push_back(torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(size.data(), size.size()),
                                             x.scalar_type(), std::nullopt, x.device()));
      if (of_weights) views->push_back(edge_view(results.back(), "grad_weight"));
    }
  }
  for (const Layer& l : net.layers) {
    results.push_back(empty_1d(x, of_biases ? l.c : 0));
    if (of_biases) to.biases.push_back(bias_view(results.back(), x, "x", l.c));
  }
}

std::tuple<Tensor, Tensor, Tensor> reflect(const Tensor& x, const Tensors& weights, const Tensors& decoder_weights,
                                           const Tensors& biases, const Maybe& noise, const Ints& stride,
                                           const Ints& padding, const Ints& linear, bool paired,
                                           std::int64_t reflections, const std::string& activation, double slope,
                                           bool keep) {
  const ReflectNetwork net =
      network(x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation, slope);
  const std::vector<View> b = biases_of(biases, x, net);
  const Layer &visible = net.layers[0], &top = net.layers.back();
  const View from = view_of(x, "x"),
             noise_view = same_shape_view(noise, "noise", x, "x", top.n, net.linear.last, top.h, top.w);
  Tensor reconstruction = empty_4d(x, channels_last(from), visible.n, visible.c, visible.h, visible.w),
         code = empty_4d(x, top.h * top.w > 1, top.n, top.c, top.h, top.w), trajectory = empty_1d(x, 0);
  const auto run = [&]<class T>(T) {
    const std::int64_t values = net.kept * visible.n;
    Memory<T> kept = keep ? Memory<T>(values) : Memory<T>();
    run_reflect(net, from, b, noise_view, view_of(reconstruction, "reconstruction"), view_of(code, "code"), kept.get());
    if (keep) trajectory = tensor_of(std::move(kept), x, {values}, {1});
  };
  from.dtype == DType::f64 ? run(double()) : from.dtype == DType::bf16 ? run(BFloat16()) : run(float());
  return {reconstruction, code, trajectory};
}

// Of x, weights, decoder weights, biases; without values where they are not wanted.
Tensors reflect_backward(const Maybe& grad_reconstruction, const Maybe& grad_code, const Tensor& x,
                         const Tensors& weights, const Tensors& decoder_weights, const Tensor& trajectory,
                         const Ints& stride, const Ints& padding, const Ints& linear, bool paired,
                         std::int64_t reflections, const std::string& activation, double slope,
                         const std::vector<bool>& needs) {
  const ReflectNetwork net =
      network(x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation, slope);
  STD_TORCH_CHECK(needs.size() == 3, "needs has ", needs.size(), " values; expected 3 (x, weights, biases)");
  const Layer &visible = net.layers[0], &top = net.layers.back();
  const View from = view_of(x, "x");
  STD_TORCH_CHECK(dtype_of(trajectory, "trajectory") == from.dtype && trajectory.numel() == net.kept * visible.n,
                  "trajectory has ", trajectory.numel(), " values; expected ", net.kept * visible.n);
  const View grad =
      same_shape_view(grad_reconstruction, "grad_reconstruction", x, "x", visible.n, visible.c, visible.h, visible.w);
  const View of_code = same_shape_view(grad_code, "grad_code", x, "x", top.n, top.c, top.h, top.w);
  Tensors results;
  ReflectGradients to;
  results.push_back(needs[0] ? empty_4d(x, channels_last(from), visible.n, visible.c, visible.h, visible.w)
                             : empty_1d(x, 0));
  if (needs[0]) to.x = view_of(results.back(), "grad_x");
  add_gradients(net, x, weights, needs[1], needs[2], results, to);
  run_reflect_backward(net, grad, of_code, from, trajectory.data_ptr(), to);
  return results;
}

// The loss, and the gradients of weights, decoder weights and biases; without values where they are not wanted.
std::tuple<Tensor, Tensors> reflect_loss(const Tensor& x, const Maybe& target, const Tensors& weights,
                                         const Tensors& decoder_weights, const Tensors& biases, const Maybe& noise,
                                         const Ints& stride, const Ints& padding, const Ints& linear, bool paired,
                                         std::int64_t reflections, const std::string& activation, double slope,
                                         const std::vector<bool>& needs) {
  const ReflectNetwork net =
      network(x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation, slope);
  STD_TORCH_CHECK(needs.size() == 2, "needs has ", needs.size(), " values; expected 2 (weights, biases)");
  const std::vector<View> b = biases_of(biases, x, net);
  const Layer &visible = net.layers[0], &top = net.layers.back();
  const View from = view_of(x, "x"),
             towards = same_shape_view(target, "target", x, "x", visible.n, visible.c, visible.h, visible.w),
             noise_view = same_shape_view(noise, "noise", x, "x", top.n, net.linear.last, top.h, top.w);
  Tensors gradients;
  ReflectGradients to;
  add_gradients(net, x, weights, needs[0], needs[1], gradients, to);
  const double value = run_reflect_loss(net, from, towards, b, noise_view, to);
  // Of half precision in float32, as the squared error by itself is.
  const auto type = from.dtype == DType::bf16 ? ScalarType::Float : x.scalar_type();
  Tensor loss = torch::stable::empty({}, type, std::nullopt, x.device());
  if (from.dtype == DType::f64)
    *static_cast<double*>(loss.data_ptr()) = value;
  else
    *static_cast<float*>(loss.data_ptr()) = float(value);
  return {loss, gradients};
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) {
  m.impl("reflect", TORCH_BOX(&lmser::reflect));
  m.impl("reflect_backward", TORCH_BOX(&lmser::reflect_backward));
  m.impl("reflect_loss", TORCH_BOX(&lmser::reflect_loss));
}
