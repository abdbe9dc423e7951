// Both ways through residual blocks that follow each other, h = f(conv(x)) + conv1x1(x) of each, and their gradients: a
// call for all blocks. What two convolutions give to one tensor is added where the 1x1 one is written, which reads what
// the other has left there.
#include <algorithm>
#include <functional>

#include "direct_call.h"

namespace lmser::direct {
namespace py = pybind11;
namespace {

constexpr Pair kOne{1, 1}, kZero{0, 0};

// The convolutions of a block from an input of its size, after `pool`.
struct Block {
  View w_inner, w_outer;
  Geometry inner, outer;
  Pair pool;
  Source pooled(Source s) const {
    s.pool_h = pool.h, s.pool_w = pool.w, s.scale = mean_of(pool);
    return s;
  }
  Sink spread(Sink s) const {
    s.upsample_h = pool.h, s.upsample_w = pool.w, s.scale = mean_of(pool);
    return s;
  }
  // Whether `v` is of the size of its result, of its input.
  bool gives(const View& v) const { return shaped(v, outer.batch, outer.out_c, outer.out_h, outer.out_w); }
  bool takes(const View& v) const {
    return shaped(v, outer.batch, outer.in_c, outer.in_h * pool.h, outer.in_w * pool.w);
  }
};
using Blocks = std::vector<Block>;

// What is said of the blocks themselves: both weights of each, with biases where they are asked for, padding and pool.
struct Settings {
  std::vector<View> inner, inner_bias, outer, outer_bias;
  std::vector<Pair> padding, pool;
  Settings(Arguments& a, bool biases) {
    inner = a.kernels();
    if (biases) inner_bias = a.biases();
    outer = a.kernels();
    if (biases) outer_bias = a.biases();
    for (std::vector<Pair>* pairs : {&padding, &pool})
      *pairs = a.maybe_pairs(inner.size(), pairs == &pool).value_or(std::vector<Pair>{});
    a.require(!inner.empty());
    for (const std::vector<View>* b : {&inner_bias, &outer_bias}) a.require(b->empty() || b->size() == inner.size());
  }
  // From an input of the size of `x`; fewer where the sizes do not go together.
  Blocks blocks(Arguments& a, View x) const {
    Blocks all;
    const std::size_t count = std::min({outer.size(), padding.size(), pool.size()});
    a.require(count == inner.size());
    for (std::size_t i = 0; i < count; ++i) {
      const Pair p = pool[i];
      if (!a.require(x.h % p.h == 0 && x.w % p.w == 0)) break;
      const Block b{inner[i], outer[i], edge(a, x, inner[i], kOne, padding[i], p), edge(a, x, outer[i], kOne, kZero, p),
                    p};
      const Geometry& g = b.outer;
      if (!a.require(outer[i].h == 1 && outer[i].w == 1 && b.inner.out_c == g.out_c && b.inner.out_h == g.out_h &&
                     b.inner.out_w == g.out_w) ||
          !a.require_size(g.batch, g.out_c, g.out_h, g.out_w))
        break;
      x.c = g.out_c, x.h = g.out_h, x.w = g.out_w;
      all.push_back(b);
    }
    return all;
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
// Of a block whose convolutions, or the transposed ones, have these sides; what is not wanted has no data.
void weights_of_both(const Block& b, const WeightGradPair& inner, const WeightGradPair& outer, const View& to_inner,
                     const View& inner_bias, const View& to_outer, const View& outer_bias) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  if (to_inner && to_outer)
    return run_weight_grad_pair(isa, pool, {b.inner, inner, to_inner, inner_bias},
                                {b.outer, outer, to_outer, outer_bias});
  const auto alone = [&](const Geometry& g, const WeightGradPair& pair, const View& to, const View& bias) {
    if (to)
      run_weight_grad(isa, pool, g, {pair}, to, false, bias);
    else if (bias)
      run_transform(isa, pool, pair.small, {}, {}, bias);
  };
  alone(b.inner, inner, to_inner, inner_bias), alone(b.outer, outer, to_outer, outer_bias);
}
py::object like(Arguments& a, const View& v, View& view) { return a.empty(channels_last(v), v.n, v.c, v.h, v.w, view); }
// One that is wanted, else None.
py::object weight_like(Arguments& a, const View& w, View& view, bool wanted) {
  return wanted ? a.empty(false, w.n, w.c, w.h, w.w, view) : py::none();
}
py::object bias_of(Arguments& a, const View& w, View& view, bool wanted) {
  return wanted ? a.empty(w.n, view) : py::none();
}
bool all_give(const Blocks& blocks, const std::vector<View>& views) {
  if (blocks.size() != views.size()) return false;
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (!blocks[i].gives(views[i])) return false;
  return true;
}

// All h, then all r = f(conv(.)), of x
py::object residual_up(Arguments& a) {
  const View x = a.tensor();
  const Settings settings(a, true);
  Sink opened;
  opened.activation = a.activation(), opened.slope = a.number();
  const Blocks blocks = settings.blocks(a, x);
  if (!a.require(blocks.size() == settings.inner.size())) return py::none();
  for (const std::vector<View>* biases : {&settings.inner_bias, &settings.outer_bias})
    for (std::size_t i = 0; i < biases->size(); ++i) a.require((*biases)[i].c == blocks[i].outer.out_c);
  if (!a.complete()) return py::none();
  const bool last = channels_last(x);
  std::vector<View> h(blocks.size()), r(blocks.size());
  py::list results;
  for (std::vector<View>* views : {&h, &r})
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const Geometry& g = blocks[i].outer;
      results.append(a.empty(last, g.batch, g.out_c, g.out_h, g.out_w, (*views)[i]));
    }
  {
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const Block& b = blocks[i];
      const auto bias = [&](const std::vector<View>& of) { return of.empty() ? View{} : of[i]; };
      const Source source = b.pooled(source_of(i ? h[i - 1] : x));
      opened.out = r[i];
      Sink sum = sink_of(h[i]);
      sum.add = r[i];
      run_both({b.inner, source, opened, b.w_inner, bias(settings.inner_bias)},
               {b.outer, source, sum, b.w_outer, bias(settings.outer_bias)});
    }
  }
  return a.give(py::tuple(results));
}

// Gradients of x and of (inner weight, inner bias, outer weight, outer bias) of each block, from that of the last h;
// r and the input x of each
py::object residual_up_backward(Arguments& a) {
  const View grad = a.tensor();
  const std::vector<View> r = a.tensors(), x = a.tensors();
  const Settings settings(a, false);
  const Activation activation = a.activation();
  const double slope = a.number();
  const std::size_t count = settings.inner.size();
  const std::vector<char> needs = a.flags(1 + 4 * count);
  if (!a.require(x.size() == count && count > 0)) return py::none();
  const Blocks blocks = settings.blocks(a, x[0]);
  if (!a.require(blocks.size() == count && all_give(blocks, r) && blocks.back().gives(grad))) return py::none();
  for (std::size_t i = 0; i < count; ++i) a.require(blocks[i].takes(x[i]));
  if (!a.complete()) return py::none();
  std::vector<py::object> results(needs.size(), py::none());
  // Nothing of the blocks below the lowest that something is wanted of.
  std::size_t lowest = 0;
  while (!needs[0] && lowest < count &&
         std::none_of(&needs[1 + 4 * lowest], &needs[1 + 4 * lowest] + 4, std::identity()))
    ++lowest;
  View from = grad;
  py::object held;  // what `from` is a view of
  for (std::size_t i = count; i-- > lowest;) {
    const Block& b = blocks[i];
    const char* const wanted = &needs[1 + 4 * i];
    View to_x, to_inner, inner_bias, to_outer, outer_bias;
    py::object gx = py::none();
    if (i > lowest || needs[0]) gx = like(a, x[i], to_x);
    py::object* const of_block = &results[1 + 4 * i];
    of_block[0] = weight_like(a, b.w_inner, to_inner, wanted[0]);
    of_block[1] = bias_of(a, b.w_inner, inner_bias, wanted[1]);
    of_block[2] = weight_like(a, b.w_outer, to_outer, wanted[2]);
    of_block[3] = bias_of(a, b.w_outer, outer_bias, wanted[3]);
    {
      const py::gil_scoped_release release;
      const Source side = b.pooled(source_of(x[i])), outside = source_of(from),
                   inside = Incoming(from, {}, r[i], {}, activation, slope, 0).total;
      if (to_x)
        run_both({transposed(b.inner), inside, b.spread(sink_of(to_x)), b.w_inner, {}},
                 {transposed(b.outer), outside, b.spread(added_to(to_x)), b.w_outer, {}});
      weights_of_both(b, {side, inside}, {side, outside}, to_inner, inner_bias, to_outer, outer_bias);
    }
    held = gx, from = to_x;
  }
  if (needs[0]) results[0] = held;
  py::tuple found{results.size()};
  for (std::size_t i = 0; i < results.size(); ++i) found[i] = results[i];
  return a.give(std::move(found));
}

// All u, the first block's first, of g, which is the last block's
py::object residual_down(Arguments& a) {
  const View g = a.tensor();
  const Settings settings(a, false);
  const std::vector<View> opened = a.tensors();
  const double leak = a.number();
  const View gate = a.maybe_tensor();
  const double slope = a.number();
  const Pair size = a.pair(1);
  if (!a.require(!settings.inner.empty())) return py::none();
  View x;
  x.n = g.n, x.c = settings.inner[0].c, x.h = size.h, x.w = size.w;
  const Blocks blocks = settings.blocks(a, x);
  if (!a.require(blocks.size() == settings.inner.size() && all_give(blocks, opened) && blocks.back().gives(g) &&
                 alike(gate, x) && slope_fits(leak) && slope_fits(slope)))
    return py::none();
  a.require_size(x.n, x.c, x.h, x.w);
  if (!a.complete()) return py::none();
  std::vector<View> u(blocks.size());
  py::list results;
  for (std::size_t i = 0; i < blocks.size(); ++i)
    results.append(
        i ? like(a, opened[i - 1], u[i])
          : a.empty(channels_last(telling(blocks.size() == 1 ? g : opened[0], gate)), x.n, x.c, x.h, x.w, u[i]));
  {
    const py::gil_scoped_release release;
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const Block& b = blocks[i];
      const View from = i + 1 == blocks.size() ? g : u[i + 1];
      Sink outer = added_to(u[i]);
      if (i == 0) outer.gate = gate, outer.gate_slope = slope;
      run_both({transposed(b.inner), gated(from, opened[i], leak), b.spread(sink_of(u[i])), b.w_inner, {}},
               {transposed(b.outer), source_of(from), b.spread(outer), b.w_outer, {}});
    }
  }
  return a.give(py::tuple(results));
}

// Gradients of g and of (inner weight, outer weight) of each block, from that of the first u; what came down to each
py::object residual_down_backward(Arguments& a) {
  const View c = a.tensor();
  const std::vector<View> g = a.tensors();
  const Settings settings(a, false);
  const std::vector<View> opened = a.tensors();
  const double leak = a.number();
  const View gate = a.maybe_tensor();
  const double slope = a.number();
  const std::size_t count = settings.inner.size();
  const std::vector<char> needs = a.flags(1 + 2 * count);
  const Blocks blocks = settings.blocks(a, c);
  if (!a.require(blocks.size() == count && all_give(blocks, opened) && all_give(blocks, g) && alike(gate, c) &&
                 slope_fits(leak) && slope_fits(slope)))
    return py::none();
  a.require_size(c.n, c.c, c.h, c.w);
  if (!a.complete()) return py::none();
  std::vector<py::object> results(needs.size(), py::none());
  std::size_t end = count;  // of the blocks that something is wanted of
  while (!needs[0] && end > 0 && !needs[2 * end - 1] && !needs[2 * end]) --end;
  View from = c;
  py::object held;  // what `from` is a view of
  if (gate) {       // c times its gate, for all that follow
    held = like(a, c, from);
    const py::gil_scoped_release release;
    run_transform(instruction_set(), torch_pool(), gated(c, gate, slope), from, {}, {});
  }
  for (std::size_t i = 0; i < end; ++i) {
    const Block& b = blocks[i];
    View to_g, to_inner, to_outer;
    py::object gg = py::none();
    if (i + 1 < end || needs[0]) gg = like(a, g[i], to_g);
    results[1 + 2 * i] = weight_like(a, b.w_inner, to_inner, needs[1 + 2 * i]);
    results[2 + 2 * i] = weight_like(a, b.w_outer, to_outer, needs[2 + 2 * i]);
    {
      const py::gil_scoped_release release;
      const Source side = b.pooled(source_of(from));
      if (to_g) {
        Sink inner = sink_of(to_g);
        inner.gate = opened[i], inner.gate_slope = leak;
        run_both({b.inner, side, inner, b.w_inner, {}}, {b.outer, side, added_to(to_g), b.w_outer, {}});
      }
      weights_of_both(b, {side, gated(g[i], opened[i], leak)}, {side, source_of(g[i])}, to_inner, {}, to_outer, {});
    }
    held = gg, from = to_g;
  }
  if (needs[0]) results[0] = held;
  py::tuple found{results.size()};
  for (std::size_t i = 0; i < results.size(); ++i) found[i] = results[i];
  return a.give(std::move(found));
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
