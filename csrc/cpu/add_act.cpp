// add_act and its backward pass on the CPU.
#include "../tensor.h"
#include "torch_pool.h"

namespace lmser {
namespace {

Tensor add_act(const Tensor& y, const std::optional<Tensor>& u, const std::optional<Tensor>& bias,
               const std::string& activation, double slope) {
  const View v = view_of(y, "y");
  const View vu = same_shape_view(u, "u", y, "y", v.n, v.c, v.h, v.w);
  const View b = bias_view(bias, y, "y", v.c);
  Tensor h = empty_4d(y, channels_last(v), v.n, v.c, v.h, v.w);
  run_add_act(instruction_set(), torch_pool(), v, vu, b, view_of(h, "h"), activation_named(activation), slope);
  return h;
}

std::tuple<Tensor, Tensor> add_act_backward(const Tensor& grad, const Tensor& h, const std::string& activation,
                                            double slope, bool needs_bias) {
  const View v = view_of(h, "h");
  Source source;
  source.base = same_shape_view(grad, "grad", h, "h", v.n, v.c, v.h, v.w);
  source.activation = activation_named(activation), source.slope = slope;
  if (source.activation != Activation::identity) source.output = v;
  Tensor g = empty_4d(h, channels_last(v), v.n, v.c, v.h, v.w), grad_bias = empty_1d(h, needs_bias ? v.c : 0);
  const View bias = needs_bias ? View{grad_bias.data_ptr(), v.dtype, 1, v.c, 1, 1, 0, 1, 0, 0} : View{};
  run_transform(instruction_set(), torch_pool(), source, view_of(g, "g"), {}, bias);
  return {g, grad_bias};
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) {
  m.impl("add_act", TORCH_BOX(&lmser::add_act));
  m.impl("add_act_backward", TORCH_BOX(&lmser::add_act_backward));
}
