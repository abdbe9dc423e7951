// The operators' CPU kernels for plain calls, as functions of the module that take an operator's arguments and
// give what it gives bit for bit: with None for a result that was not asked for, and all in a list where the caller has
// to record a gradient. None alone leaves the call to the operator, which says what is wrong.
#include "direct_call.h"

namespace lmser::direct {
namespace py = pybind11;
namespace {

py::object conv2d_add_act(Arguments& a) {
  const View x = a.tensor(), w = a.tensor(), add = a.maybe_tensor(), bias = a.maybe_bias();
  const Pair stride = a.pair(1), padding = a.pair(0), pool = a.pair(1);
  Sink sink;
  sink.add = add, sink.activation = a.activation(), sink.slope = a.number();
  const bool want_drive = a.flag();
  const Geometry g = edge(a, x, w, stride, padding, pool);
  a.require(shaped(add, g.batch, g.out_c, g.out_h, g.out_w) && (!bias || bias.c == g.out_c));
  a.require_size(g.batch, g.out_c, g.out_h, g.out_w);
  if (!a.complete()) return py::none();
  const bool last = channels_last(telling(x, add));
  const py::object h = a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, sink.out);
  const py::object drive = want_drive ? a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, sink.drive) : py::none();
  Source source = source_of(x);
  source.pool_h = pool.h, source.pool_w = pool.w, source.scale = mean_of(pool);
  run(g, source, sink, w, bias);
  return a.give(h, drive);
}

py::object conv_transpose2d_add_act(Arguments& a) {
  const View z = a.tensor(), w = a.tensor(), add = a.maybe_tensor(), bias = a.maybe_bias(), gate = a.maybe_tensor();
  const Pair stride = a.pair(1), padding = a.pair(0);
  const std::optional<Pair> size = a.maybe_pair(1);
  const Pair up = a.pair(1);
  Sink sink;
  sink.add = add, sink.gate = gate, sink.activation = a.activation(), sink.slope = a.number();
  const bool want_drive = a.flag();
  sink.gate_slope = a.number();
  const View input_gate = a.maybe_tensor();
  const double input_slope = a.number();
  sink.upsample_h = up.h, sink.upsample_w = up.w;
  if (a.flag()) sink.scale = mean_of(up);
  const Geometry g = edge_below(a, z, w, stride, padding, size);
  const std::int64_t height = g.in_h * up.h, width = g.in_w * up.w;
  a.require(shaped(add, g.batch, g.in_c, height, width) && shaped(gate, g.batch, g.in_c, height, width) &&
            alike(input_gate, z) && (!bias || bias.c == g.in_c) && slope_fits(sink.gate_slope) &&
            slope_fits(input_slope) && (sink.gate_slope == 0 || sink.activation <= Activation::leaky_relu));
  a.require_size(g.batch, g.in_c, height, width);
  if (!a.complete()) return py::none();
  const bool last = channels_last(telling(z, add, gate));
  const py::object h = a.empty(last, g.batch, g.in_c, height, width, sink.out);
  const py::object drive = want_drive ? a.empty(last, g.batch, g.in_c, height, width, sink.drive) : py::none();
  run(transposed(g), gated(z, input_gate, input_slope), sink, w, bias);
  return a.give(h, drive);
}

// Allocates what is needed, runs the pass and returns the four.
py::object backward(Arguments& a, const Geometry& g, const Incoming& in, const Source& side, const View& w,
                    const View& h, std::array<bool, 4> needs) {
  const View& v = side.base;
  if (needs[0]) a.require_size(v.n, v.c, v.h, v.w);
  if (needs[1]) a.require_size(w.n, w.c, w.h, w.w);
  if (needs[2]) a.require_size(h.n, h.c, h.h, h.w);
  if (!a.complete()) return py::none();
  GradientViews out;
  py::object input = py::none(), weight = py::none(), add = py::none(), bias = py::none();
  if (needs[0]) input = a.empty(channels_last(v), v.n, v.c, v.h, v.w, out.input);
  if (needs[1]) weight = a.empty(false, w.n, w.c, w.h, w.w, out.weight);
  if (needs[2]) add = a.empty(channels_last(h), h.n, h.c, h.h, h.w, out.add);
  if (needs[3]) bias = a.empty(h.c, out.bias);
  {
    const py::gil_scoped_release release;
    run_conv_backward(g, in, side, w, out);
  }
  return a.give(std::move(input), std::move(weight), std::move(add), std::move(bias));
}

py::object conv2d_add_act_backward(Arguments& a) {
  const View grad = a.tensor(), grad_drive = a.maybe_tensor(), h = a.tensor(), x = a.tensor(), w = a.tensor();
  const Pair stride = a.pair(1), padding = a.pair(0), pool = a.pair(1);
  const Activation activation = a.activation();
  const double slope = a.number();
  const std::array<bool, 4> needs = a.flags<4>();
  const Geometry g = edge(a, x, w, stride, padding, pool);
  a.require(shaped(h, g.batch, g.out_c, g.out_h, g.out_w) && alike(grad, h) && alike(grad_drive, h));
  Source side = source_of(x);
  side.pool_h = pool.h, side.pool_w = pool.w, side.scale = mean_of(pool);
  return backward(a, g, Incoming(grad, grad_drive, h, {}, activation, slope, 0), side, w, h, needs);
}

py::object conv_transpose2d_add_act_backward(Arguments& a) {
  const View grad = a.tensor(), grad_drive = a.maybe_tensor(), h = a.tensor(), z = a.tensor(), w = a.tensor(),
             gate = a.maybe_tensor();
  const Pair stride = a.pair(1), padding = a.pair(0), up = a.pair(1);
  const Activation activation = a.activation();
  const double slope = a.number();
  const std::array<bool, 4> needs = a.flags<4>();
  const double gate_slope = a.number();
  const View input_gate = a.maybe_tensor();
  const double input_slope = a.number();
  const bool spread = a.flag();
  a.require(h.n == z.n && h.c == w.c && h.h % up.h == 0 && h.w % up.w == 0 && alike(grad, h) && alike(grad_drive, h) &&
            alike(gate, h) && alike(input_gate, z));
  const Geometry g = edge_below(a, z, w, stride, padding, Pair{int(h.h / up.h), int(h.w / up.w)});
  Incoming in(grad, grad_drive, h, gate, activation, slope, gate_slope);
  in.total.pool_h = up.h, in.total.pool_w = up.w;
  if (spread) in.total.scale = mean_of(up);
  return backward(a, transposed(g), in, gated(z, input_gate, input_slope), w, h, needs);
}

py::object tied_conv2d(Arguments& a) {
  const View x = a.tensor(), z = a.tensor(), w = a.tensor();
  const Pair stride = a.pair(1), padding = a.pair(0);
  const Geometry g = edge(a, x, w, stride, padding, {1, 1});
  a.require(shaped(z, g.batch, g.out_c, g.out_h, g.out_w));
  a.require_size(x.n, x.c, x.h, x.w), a.require_size(z.n, z.c, z.h, z.w);
  if (!a.complete()) return py::none();
  const bool last = channels_last(x);
  Sink up, down;
  const py::object y = a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, up.out),
                   u = a.empty(last, g.batch, g.in_c, g.in_h, g.in_w, down.out);
  run(g, source_of(x), up, w, {});
  run(transposed(g), source_of(z), down, w, {});
  return a.give(y, u);
}

py::object tied_conv2d_weight_grad(Arguments& a) {
  const View x = a.tensor(), grad_y = a.tensor(), grad_u = a.maybe_tensor(), z = a.maybe_tensor();
  const Pair kernel = a.pair(1), stride = a.pair(1), padding = a.pair(0);
  a.require(bool(grad_u) == bool(z) && alike(grad_u, x) && alike(z, grad_y));
  View w;  // of the weight, its size
  w.n = grad_y.c, w.c = x.c, w.h = kernel.h, w.w = kernel.w;
  const Geometry g = edge(a, x, w, stride, padding, {1, 1});
  a.require(shaped(grad_y, g.batch, g.out_c, g.out_h, g.out_w));
  a.require_size(w.n, w.c, w.h, w.w);
  if (!a.complete()) return py::none();
  View view;
  py::object grad = a.empty(false, w.n, w.c, w.h, w.w, view);
  std::vector<WeightGradPair> pairs{{source_of(x), source_of(grad_y)}};
  if (z) pairs.push_back({source_of(grad_u), source_of(z)});
  {
    const py::gil_scoped_release release;
    run_weight_grad(instruction_set(), torch_pool(), g, pairs, view);
  }
  return a.give(grad);
}

py::object add_act(Arguments& a) {
  const View y = a.tensor(), u = a.maybe_tensor(), bias = a.maybe_bias();
  const Activation activation = a.activation();
  const double slope = a.number();
  a.require(alike(u, y) && (!bias || bias.c == y.c));
  a.require_size(y.n, y.c, y.h, y.w);
  if (!a.complete()) return py::none();
  View out;
  py::object h = a.empty(channels_last(y), y.n, y.c, y.h, y.w, out);
  {
    const py::gil_scoped_release release;
    run_add_act(instruction_set(), torch_pool(), y, u, bias, out, activation, slope);
  }
  return a.give(h);
}

py::object add_act_backward(Arguments& a) {
  const View grad = a.tensor(), h = a.tensor();
  Source source;
  source.base = grad, source.activation = a.activation(), source.slope = a.number();
  if (source.activation != Activation::identity) source.output = h;
  const bool needs_bias = a.flag();
  a.require(alike(grad, h));
  a.require_size(h.n, h.c, h.h, h.w);
  if (!a.complete()) return py::none();
  View pre, bias;
  py::object g = a.empty(channels_last(h), h.n, h.c, h.h, h.w, pre);
  py::object grad_bias = needs_bias ? a.empty(h.c, bias) : py::none();
  {
    const py::gil_scoped_release release;
    run_transform(instruction_set(), torch_pool(), source, pre, {}, bias);
  }
  return a.give(std::move(g), std::move(grad_bias));
}

}  // namespace

void add_functions(py::module_& module) {
  static PyMethodDef methods[] = {method<conv2d_add_act>("conv2d_add_act"),
                                  method<conv2d_add_act_backward>("conv2d_add_act_backward"),
                                  method<conv_transpose2d_add_act>("conv_transpose2d_add_act"),
                                  method<conv_transpose2d_add_act_backward>("conv_transpose2d_add_act_backward"),
                                  method<tied_conv2d>("tied_conv2d"),
                                  method<tied_conv2d_weight_grad>("tied_conv2d_weight_grad"),
                                  method<add_act>("add_act"),
                                  method<add_act_backward>("add_act_backward"),
                                  {}};
  if (!ready()) return;
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  add_residual_functions(module);
  add_reflect_functions(module);
  add_max_pool_functions(module);
}

}  // namespace lmser::direct
