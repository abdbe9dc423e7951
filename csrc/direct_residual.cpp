// Both ways through a residual block, h = f(conv(x)) + conv1x1(x), and their gradients, a call each. What two
// convolutions give to one tensor is added where the 1x1 one is written, which reads what the other has left there.
#include "direct_call.h"

namespace lmser::direct {
namespace py = pybind11;
namespace {

constexpr Pair kOne{1, 1}, kZero{0, 0};

// The convolutions of a block from an input of its size, after `pool`.
struct Block {
  Geometry inner, outer;
  Pair pool;
  Block(Arguments& a, const View& x, const View& w_inner, const View& w_outer, Pair padding, Pair pool)
      : inner(edge(a, x, w_inner, kOne, padding, pool)), outer(edge(a, x, w_outer, kOne, kZero, pool)), pool(pool) {
    a.require(x.h % pool.h == 0 && x.w % pool.w == 0 && w_outer.h == 1 && w_outer.w == 1 &&
              inner.out_c == outer.out_c && inner.out_h == outer.out_h && inner.out_w == outer.out_w);
  }
  bool gives(const View& v) const { return shaped(v, outer.batch, outer.out_c, outer.out_h, outer.out_w); }
  Source pooled(Source s) const {
    s.pool_h = pool.h, s.pool_w = pool.w, s.scale = mean_of(pool);
    return s;
  }
  Sink spread(Sink s) const {
    s.upsample_h = pool.h, s.upsample_w = pool.w, s.scale = mean_of(pool);
    return s;
  }
};
Sink added_to(const View& v) {
  Sink s = sink_of(v);
  s.add = v;
  return s;
}
void run_both(const ConvTask& inner, const ConvTask& outer) {
  run_conv_pair(instruction_set(), torch_pool(), inner, outer);
}
void weights_of_both(const WeightGradTask& inner, const WeightGradTask& outer) {
  run_weight_grad_pair(instruction_set(), torch_pool(), inner, outer);
}
void require_like(Arguments& a, const View& v) { a.require_size(v.n, v.c, v.h, v.w); }
py::object like(Arguments& a, const View& v, View& view) { return a.empty(channels_last(v), v.n, v.c, v.h, v.w, view); }
py::object weight_like(Arguments& a, const View& w, View& view) { return a.empty(false, w.n, w.c, w.h, w.w, view); }

// (h, r) of x
py::object residual_up(Arguments& a) {
  const View x = a.tensor(), w_inner = a.tensor(), b_inner = a.maybe_bias(), w_outer = a.tensor(),
             b_outer = a.maybe_bias();
  const Pair padding = a.pair(0), pool = a.pair(1);
  Sink r, h;
  r.activation = a.activation(), r.slope = a.number();
  const Block block(a, x, w_inner, w_outer, padding, pool);
  const Geometry& g = block.outer;
  a.require((!b_inner || b_inner.c == g.out_c) && (!b_outer || b_outer.c == g.out_c));
  a.require_size(g.batch, g.out_c, g.out_h, g.out_w);
  if (!a.complete()) return py::none();
  const bool last = channels_last(x);
  const py::object opened = a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, r.out),
                   result = a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, h.out);
  h.add = r.out;
  const Source source = block.pooled(source_of(x));
  {
    const py::gil_scoped_release release;
    run_both({block.inner, source, r, w_inner, b_inner}, {block.outer, source, h, w_outer, b_outer});
  }
  return a.give(result, opened);
}

// Gradients of (x, inner weight, inner bias, outer weight, outer bias) from that of h
py::object residual_up_backward(Arguments& a) {
  const View grad = a.tensor(), r = a.tensor(), x = a.tensor(), w_inner = a.tensor(), w_outer = a.tensor();
  const Pair padding = a.pair(0), pool = a.pair(1);
  const Activation activation = a.activation();
  const double slope = a.number();
  const std::array<bool, 5> needs = a.flags<5>();
  const Block block(a, x, w_inner, w_outer, padding, pool);
  a.require(block.gives(grad) && block.gives(r));
  require_like(a, x), require_like(a, w_inner);
  if (!a.complete()) return py::none();
  GradientViews inner, outer;
  py::object gx = py::none(), gw_inner = gx, gb_inner = gx, gw_outer = gx, gb_outer = gx;
  View to_x;
  if (needs[0]) gx = like(a, x, to_x);
  if (needs[1]) gw_inner = weight_like(a, w_inner, inner.weight);
  if (needs[2]) gb_inner = a.empty(w_inner.n, inner.bias);
  if (needs[3]) gw_outer = weight_like(a, w_outer, outer.weight);
  if (needs[4]) gb_outer = a.empty(w_outer.n, outer.bias);
  {
    const py::gil_scoped_release release;
    const Source side = block.pooled(source_of(x));
    const Incoming into_inner(grad, {}, r, {}, activation, slope, 0);
    if (needs[0])
      run_both({transposed(block.inner), into_inner.total, block.spread(sink_of(to_x)), w_inner, {}},
               {transposed(block.outer), source_of(grad), block.spread(added_to(to_x)), w_outer, {}});
    if (inner.weight && outer.weight) {
      weights_of_both({block.inner, {side, into_inner.total}, inner.weight, inner.bias},
                      {block.outer, {side, source_of(grad)}, outer.weight, outer.bias});
    } else {
      run_conv_backward(block.inner, into_inner, side, w_inner, inner);
      run_conv_backward(block.outer, Incoming(grad, {}, grad, {}, Activation::identity, 0, 0), side, w_outer, outer);
    }
  }
  return a.give(std::move(gx), std::move(gw_inner), std::move(gb_inner), std::move(gw_outer), std::move(gb_outer));
}

// u of g
py::object residual_down(Arguments& a) {
  const View g = a.tensor(), w_inner = a.tensor(), w_outer = a.tensor(), opened = a.tensor();
  const double leak = a.number();
  const View gate = a.maybe_tensor();
  const double slope = a.number();
  const Pair size = a.pair(1), padding = a.pair(0), pool = a.pair(1);
  View x;  // its size
  x.n = g.n, x.c = w_inner.c, x.h = std::int64_t(size.h) * pool.h, x.w = std::int64_t(size.w) * pool.w;
  const Block block(a, x, w_inner, w_outer, padding, pool);
  a.require(block.gives(g) && alike(opened, g) && alike(gate, x) && slope_fits(leak) && slope_fits(slope));
  require_like(a, x);
  if (!a.complete()) return py::none();
  Sink inner;
  const bool last = channels_last(telling(g, gate));
  const py::object u = a.empty(last, x.n, x.c, x.h, x.w, inner.out);
  Sink outer = added_to(inner.out);
  outer.gate = gate, outer.gate_slope = slope;
  {
    const py::gil_scoped_release release;
    run_both({transposed(block.inner), gated(g, opened, leak), block.spread(inner), w_inner, {}},
             {transposed(block.outer), source_of(g), block.spread(outer), w_outer, {}});
  }
  return a.give(u);
}

// Gradients of (g, inner weight, outer weight) from that of u
py::object residual_down_backward(Arguments& a) {
  const View c = a.tensor(), g = a.tensor(), w_inner = a.tensor(), w_outer = a.tensor(), opened = a.tensor();
  const double leak = a.number();
  const View gate = a.maybe_tensor();
  const double slope = a.number();
  const Pair padding = a.pair(0), pool = a.pair(1);
  const std::array<bool, 3> needs = a.flags<3>();
  const Block block(a, c, w_inner, w_outer, padding, pool);
  a.require(block.gives(g) && alike(opened, g) && alike(gate, c) && slope_fits(leak) && slope_fits(slope));
  require_like(a, c), require_like(a, g), require_like(a, w_inner);
  if (!a.complete()) return py::none();
  GradientViews inner, outer;
  py::object gg = py::none(), gw_inner = gg, gw_outer = gg, formed;
  View to_g;
  if (needs[0]) gg = like(a, g, to_g);
  if (needs[1]) gw_inner = weight_like(a, w_inner, inner.weight);
  if (needs[2]) gw_outer = weight_like(a, w_outer, outer.weight);
  View passed = c;
  if (gate) formed = like(a, c, passed);  // c times its gate, for all that follow
  {
    const py::gil_scoped_release release;
    if (gate) run_transform(instruction_set(), torch_pool(), gated(c, gate, slope), passed, {}, {});
    Incoming in(passed, {}, passed, {}, Activation::identity, 0, 0);
    in.total = block.pooled(in.total);
    if (needs[0]) {
      Sink sink = sink_of(to_g);
      sink.gate = opened, sink.gate_slope = leak;
      run_both({block.inner, in.total, sink, w_inner, {}}, {block.outer, in.total, added_to(to_g), w_outer, {}});
    }
    const Source opened_g = gated(g, opened, leak);
    if (inner.weight && outer.weight) {
      weights_of_both({block.inner, {in.total, opened_g}, inner.weight, {}},
                      {block.outer, {in.total, source_of(g)}, outer.weight, {}});
    } else {
      run_conv_backward(transposed(block.inner), in, opened_g, w_inner, inner);
      run_conv_backward(transposed(block.outer), in, source_of(g), w_outer, outer);
    }
  }
  return a.give(std::move(gg), std::move(gw_inner), std::move(gw_outer));
}

}  // namespace

void add_residual_functions(py::module_& module) {
  static PyMethodDef methods[] = {method<residual_up>("residual_up"),
                                  method<residual_up_backward>("residual_up_backward"),
                                  method<residual_down>("residual_down"),
                                  method<residual_down_backward>("residual_down_backward"),
                                  {}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace lmser::direct
