// conv2d_add_act, conv_transpose2d_add_act, tied_conv2d and their backward passes: checks, allocation, one call
// into the engine.
#include "tied_conv.h"

#include <algorithm>

#include "buffer.h"
#include "narrow.h"
#include "torch_pool.h"

namespace lmser {

Geometry conv_geometry(std::int64_t n, std::int64_t c_in, std::int64_t h, std::int64_t w, std::int64_t c_out,
                       std::int64_t kh, std::int64_t kw, Pair stride, Pair pad) {
  STD_TORCH_CHECK(h + 2 * pad.h >= kh && w + 2 * pad.w >= kw, "the kernel (", kh, ", ", kw,
                  ") is larger than the padded input (", h + 2 * pad.h, ", ", w + 2 * pad.w, ")");
  Geometry g;
  g.batch = n, g.in_c = c_in, g.in_h = h, g.in_w = w, g.out_c = c_out;
  g.out_h = (h + 2 * pad.h - kh) / stride.h + 1, g.out_w = (w + 2 * pad.w - kw) / stride.w + 1;
  g.kernel_h = int(kh), g.kernel_w = int(kw), g.stride_h = stride.h, g.stride_w = stride.w, g.pad_h = pad.h,
  g.pad_w = pad.w;
  return g;
}
Geometry transposed(Geometry g) {
  g.transposed = !g.transposed;
  std::swap(g.in_c, g.out_c), std::swap(g.in_h, g.out_h), std::swap(g.in_w, g.out_w);
  return g;
}

Incoming::Incoming(const View& grad, const View& grad_drive, const View& h, const View& gate, Activation activation,
                   double slope, double gate_slope) {
  if (grad) {
    pre.base = grad;
    pre.activation = activation, pre.slope = slope, pre.gate_slope = gate_slope;
    if (activation != Activation::identity) pre.output = h;
    pre.gate = gate;
    total = pre;
    total.extra = grad_drive;
  } else {
    total.base = grad_drive;
  }
}

namespace {
Source images_of(Source s, std::int64_t n0, std::int64_t n1) {
  for (View* v : {&s.base, &s.output, &s.gate, &s.extra}) *v = images_of(*v, n0, n1);
  return s;
}
}  // namespace

// The gradient before the activation is read by three passes. Large batches therefore run in groups of images whose
// tensors stay in the last-level cache from one pass to the next; sums over groups are formed in their order.
void run_conv_backward(const Geometry& geometry, const Incoming& in, const Source& side, const View& w,
                       const GradientViews& out) {
  constexpr std::int64_t kGroupBytes = 12 << 20, kLargeBytes = 40 << 20;
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  const bool down = geometry.transposed;
  const View h = in.total.base;
  const std::int64_t value = h.dtype == DType::f64 ? 8 : 4, batch = geometry.batch;
  const std::int64_t image = value * (2 * side.base.c * side.base.h * side.base.w + 3 * h.c * h.h * h.w);
  const bool sums_in_place = h.dtype == DType::f32 || h.dtype == DType::f64;
  const bool large = batch * image > kLargeBytes && sums_in_place;
  const std::int64_t groups = large ? std::max<std::int64_t>(1, std::min(batch / 4, batch * image / kGroupBytes)) : 1;
  Buffer<std::uint16_t> formed;
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t n0 = batch * i / groups, n1 = batch * (i + 1) / groups;
    Geometry g = geometry;
    g.batch = n1 - n0;
    const Source pre = images_of(in.pre, n0, n1), input = images_of(side, n0, n1);
    Source total = images_of(in.total, n0, n1);
    const bool later = i > 0;
    // Summed where the weight gradient reads the same values, if nothing else asks for a pass over them.
    const bool bias_beside = out.bias && out.weight && !out.add && !down && !total.extra;
    if (h.dtype == DType::bf16 && narrow_kernels(isa) && pre.base && (pre.output || pre.gate || total.extra) &&
        (!out.add || total.extra) && (out.input || out.weight) && total.pool_h * total.pool_w == 1) {
      // Rounded once, as the gradient of `add` is, for tiles take values as they are.
      formed = allocate<std::uint16_t>(h.n * h.c * h.h * h.w);
      const View dense{formed.get(), h.dtype, h.n, h.c, h.h, h.w, h.c * h.h * h.w, 1, h.w * h.c, h.c};
      if (!run_narrow_pull_back(isa, pool, total, out.add, dense, out.bias))
        run_transform(isa, pool, total, out.add, dense, out.bias);
      total.base = dense;
      total.output = total.gate = total.extra = {};
    } else if (out.add || (out.bias && !bias_beside)) {
      const View add = images_of(out.add, n0, n1);
      if (!run_narrow_pull_back(isa, pool, pre, add, {}, out.bias))
        run_transform(isa, pool, pre, add, {}, out.bias, later);
      if (add && (pre.output || pre.gate)) {  // formed already: read it instead of forming it again
        total.base = add;
        total.output = total.gate = {};
      }
    }
    if (down) {  // each repeated pixel passes its gradient on: a sum
      const Geometry up = transposed(g);
      if (out.input) {
        Sink sink = sink_of(images_of(out.input, n0, n1));
        sink.gate = input.gate, sink.gate_slope = input.gate_slope;
        run_conv(isa, pool, up, total, sink, w, {}, true);
      }
      if (out.weight) run_weight_grad(isa, pool, up, {{total, input}}, out.weight, later);
    } else {
      if (out.input) {
        Sink sink = sink_of(images_of(out.input, n0, n1));
        sink.upsample_h = side.pool_h, sink.upsample_w = side.pool_w, sink.scale = side.scale;
        run_conv(isa, pool, transposed(g), total, sink, w, {}, true);
      }
      if (out.weight)
        run_weight_grad(isa, pool, g, {{input, total}}, out.weight, later, bias_beside && !formed ? out.bias : View{});
    }
  }
}

namespace {

View weight_view(const Tensor& weight, const Tensor& first, const char* first_name) {
  check_like(weight, "weight", first, first_name);
  const View w = view_of(weight, "weight");
  STD_TORCH_CHECK(w.n > 0 && w.c > 0 && w.h > 0 && w.w > 0, "weight has shape ", shape_text(weight),
                  "; expected no empty dimension");
  return w;
}

// Geometry of the convolution for an x of shape `v` (before pooling).
Geometry geometry_from_x(const View& v, const Tensor& x, const View& w, const Tensor& weight, Pair stride, Pair pad,
                         Pair pool) {
  STD_TORCH_CHECK(v.c == w.c, "x has ", v.c, " channels (shape ", shape_text(x), ") but weight ", shape_text(weight),
                  " takes ", w.c);
  return conv_geometry(v.n, v.c, v.h / pool.h, v.w / pool.w, w.n, w.h, w.w, stride, pad);
}
// The same for a z on the small side whose transposed convolution is pinned to `size`.
Geometry geometry_from_z(const View& v, const Tensor& z, const View& w, const Tensor& weight, Pair stride, Pair pad,
                         Pair size) {
  STD_TORCH_CHECK(v.c == w.n, "z has ", v.c, " channels (shape ", shape_text(z), ") but weight ", shape_text(weight),
                  " gives ", w.n);
  const Geometry g = conv_geometry(v.n, w.c, size.h, size.w, w.n, w.h, w.w, stride, pad);
  STD_TORCH_CHECK(g.out_h == v.h && g.out_w == v.w, "output_size (", size.h, ", ", size.w, ") does not fit z of shape ",
                  shape_text(z), ": its convolution would be (", g.out_h, ", ", g.out_w, ")");
  return g;
}

// z * (gate > 0 ? 1 : slope)
Source gated_source(const View& v, const Tensor& z, const std::optional<Tensor>& gate, double slope) {
  Source s = source_of(v);
  s.gate = like_view(gate, "input_gate", z, "z");
  s.gate_slope = slope;
  STD_TORCH_CHECK(!s.gate || (s.gate.n == v.n && s.gate.c == v.c && s.gate.h == v.h && s.gate.w == v.w),
                  "input_gate has shape ", shape_text(*gate), "; expected that of z, ", shape_text(z));
  return s;
}

std::tuple<Tensor, Tensor> conv2d_add_act(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& add,
                                          const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                                          const Ints& pool, const std::string& activation, double slope,
                                          bool with_drive) {
  const View v = view_of(x, "x"), w = weight_view(weight, x, "x");
  const Pair p = pair_of(pool, "pool", 1);
  const Geometry g = geometry_from_x(v, x, w, weight, pair_of(stride, "stride", 1), pair_of(padding, "padding", 0), p);
  Sink sink;
  sink.activation = activation_named(activation), sink.slope = slope;
  sink.add = same_shape_view(add, "add", x, "x", g.batch, g.out_c, g.out_h, g.out_w);
  const View b = bias_view(bias, x, "x", g.out_c);
  const bool last = channels_last(telling(v, sink.add));
  Tensor h = empty_4d(x, last, g.batch, g.out_c, g.out_h, g.out_w);
  Tensor drive = with_drive ? empty_4d(x, last, g.batch, g.out_c, g.out_h, g.out_w) : empty_1d(x, 0);
  sink.out = view_of(h, "h");
  if (with_drive) sink.drive = view_of(drive, "drive");
  Source source = source_of(v);
  source.pool_h = p.h, source.pool_w = p.w, source.scale = mean_of(p);
  run_conv(instruction_set(), torch_pool(), g, source, sink, w, b);
  return {h, drive};
}

std::tuple<Tensor, Tensor> conv_transpose2d_add_act(const Tensor& z, const Tensor& weight,
                                                    const std::optional<Tensor>& add, const std::optional<Tensor>& bias,
                                                    const std::optional<Tensor>& gate, const Ints& stride,
                                                    const Ints& padding, const Ints& output_size, const Ints& upsample,
                                                    const std::string& activation, double slope, bool with_drive,
                                                    double gate_slope, const std::optional<Tensor>& input_gate,
                                                    double input_slope, bool spread) {
  const View v = view_of(z, "z"), w = weight_view(weight, z, "z");
  const Pair up = pair_of(upsample, "upsample", 1), size = pair_of(output_size, "output_size", 1);
  const Geometry g =
      geometry_from_z(v, z, w, weight, pair_of(stride, "stride", 1), pair_of(padding, "padding", 0), size);
  const std::int64_t out_h = g.in_h * up.h, out_w = g.in_w * up.w;
  Sink sink;
  sink.activation = activation_named(activation), sink.slope = slope;
  sink.upsample_h = up.h, sink.upsample_w = up.w;
  if (spread) sink.scale = mean_of(up);
  sink.add = same_shape_view(add, "add", z, "z", g.batch, g.in_c, out_h, out_w);
  STD_TORCH_CHECK(gate_slope >= 0 && (gate_slope == 0 || sink.activation <= Activation::leaky_relu), "gate_slope is ",
                  gate_slope, " with activation ", activation);
  sink.gate_slope = gate_slope;
  sink.gate = same_shape_view(gate, "gate", z, "z", g.batch, g.in_c, out_h, out_w);
  const View b = bias_view(bias, z, "z", g.in_c);
  const bool last = channels_last(telling(v, sink.add, sink.gate));
  Tensor h = empty_4d(z, last, g.batch, g.in_c, out_h, out_w);
  Tensor drive = with_drive ? empty_4d(z, last, g.batch, g.in_c, out_h, out_w) : empty_1d(z, 0);
  sink.out = view_of(h, "h");
  if (with_drive) sink.drive = view_of(drive, "drive");
  run_conv(instruction_set(), torch_pool(), transposed(g), gated_source(v, z, input_gate, input_slope), sink, w, b);
  return {h, drive};
}

std::tuple<Tensor, Tensor> tied_conv2d(const Tensor& x, const Tensor& z, const Tensor& weight, const Ints& stride,
                                       const Ints& padding) {
  const View vx = view_of(x, "x"), w = weight_view(weight, x, "x"), vz = like_view(z, "z", x, "x");
  const Geometry g =
      geometry_from_x(vx, x, w, weight, pair_of(stride, "stride", 1), pair_of(padding, "padding", 0), {1, 1});
  STD_TORCH_CHECK(vz.n == g.batch && vz.c == g.out_c && vz.h == g.out_h && vz.w == g.out_w, "z has shape ",
                  shape_text(z), "; expected that of the convolution of x, (", g.batch, ", ", g.out_c, ", ", g.out_h,
                  ", ", g.out_w, ")");
  const bool last = channels_last(vx);
  Tensor y = empty_4d(x, last, g.batch, g.out_c, g.out_h, g.out_w),
         u = empty_4d(x, last, g.batch, g.in_c, g.in_h, g.in_w);
  run_conv(instruction_set(), torch_pool(), g, source_of(vx), sink_of(view_of(y, "y")), w, {});
  run_conv(instruction_set(), torch_pool(), transposed(g), source_of(vz), sink_of(view_of(u, "u")), w, {});
  return {y, u};
}

Tensor tied_conv2d_weight_grad(const Tensor& x, const Tensor& grad_y, const std::optional<Tensor>& grad_u,
                               const std::optional<Tensor>& z, const Ints& kernel_size, const Ints& stride,
                               const Ints& padding) {
  const View vx = view_of(x, "x"), vy = like_view(grad_y, "grad_y", x, "x");
  const Pair k = pair_of(kernel_size, "kernel_size", 1);
  const Geometry g = conv_geometry(vx.n, vx.c, vx.h, vx.w, vy.c, k.h, k.w, pair_of(stride, "stride", 1),
                                   pair_of(padding, "padding", 0));
  STD_TORCH_CHECK(vy.n == g.batch && vy.h == g.out_h && vy.w == g.out_w, "grad_y has shape ", shape_text(grad_y),
                  "; expected (", g.batch, ", *, ", g.out_h, ", ", g.out_w, ")");
  STD_TORCH_CHECK(grad_u.has_value() == z.has_value(), "grad_u and z must be given together");
  std::vector<WeightGradPair> pairs{{source_of(vx), source_of(vy)}};
  if (z) {
    const View vu = same_shape_view(grad_u, "grad_u", x, "x", vx.n, vx.c, vx.h, vx.w),
               vz = same_shape_view(z, "z", x, "x", vy.n, vy.c, vy.h, vy.w);
    pairs.push_back({source_of(vu), source_of(vz)});
  }
  Tensor grad = empty_4d(x, false, g.out_c, g.in_c, k.h, k.w);
  run_weight_grad(instruction_set(), torch_pool(), g, std::move(pairs), view_of(grad, "grad"));
  return grad;
}

Incoming incoming(const std::optional<Tensor>& grad, const std::optional<Tensor>& grad_drive, const Tensor& h,
                  const std::optional<Tensor>& gate, const std::string& activation, double slope,
                  double gate_slope = 0) {
  STD_TORCH_CHECK(grad || grad_drive, "grad and grad_drive are both missing");
  const View vh = view_of(h, "h");
  const auto like_h = [&](const std::optional<Tensor>& t, const char* name) {
    return same_shape_view(t, name, h, "h", vh.n, vh.c, vh.h, vh.w);
  };
  return {like_h(grad, "grad"),
          like_h(grad_drive, "grad_drive"),
          vh,
          like_h(gate, "gate"),
          activation_named(activation),
          slope,
          gate_slope};
}

struct Needs {
  bool input, weight, add, bias;
};
Needs needs_of(const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 4, "needs has ", needs.size(), " values; expected 4 (input, weight, add, bias)");
  return {needs[0], needs[1], needs[2], needs[3]};
}

// The four gradients, empty where not wanted. Those of add and bias are zero without a grad.
struct Gradients {
  Tensor input, weight, add, bias;
  Gradients(const Needs& needs, const Tensor& source, const View& v, const View& w, const Tensor& h, const View& vh)
      : input(needs.input ? empty_4d(source, channels_last(v), v.n, v.c, v.h, v.w) : empty_1d(source, 0)),
        weight(needs.weight ? empty_4d(source, false, w.n, w.c, w.h, w.w) : empty_1d(source, 0)),
        add(needs.add ? empty_4d(h, channels_last(vh), vh.n, vh.c, vh.h, vh.w) : empty_1d(source, 0)),
        bias(empty_1d(source, needs.bias ? vh.c : 0)) {}
  void form(const Geometry& geometry, const Incoming& in, const Source& side, const View& w, const Needs& needs) {
    GradientViews out;
    if (needs.input) out.input = view_of(input, "grad_input");
    if (needs.weight) out.weight = view_of(weight, "grad_weight");
    if (!in.pre.base) {
      if (needs.add) torch::stable::zero_(add);
      if (needs.bias) torch::stable::zero_(bias);
    } else {
      if (needs.add) out.add = view_of(add, "grad_add");
      if (needs.bias) out.bias = {bias.data_ptr(), in.pre.base.dtype, 1, bias.size(0), 1, 1, 0, 1, 0, 0};
    }
    run_conv_backward(geometry, in, side, w, out);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> conv2d_add_act_backward(
    const std::optional<Tensor>& grad, const std::optional<Tensor>& grad_drive, const Tensor& h, const Tensor& x,
    const Tensor& weight, const Ints& stride, const Ints& padding, const Ints& pool, const std::string& activation,
    double slope, const std::vector<bool>& needed) {
  const View v = view_of(x, "x"), w = weight_view(weight, x, "x");
  const Pair p = pair_of(pool, "pool", 1);
  const Geometry g = geometry_from_x(v, x, w, weight, pair_of(stride, "stride", 1), pair_of(padding, "padding", 0), p);
  same_shape_view(h, "h", x, "x", g.batch, g.out_c, g.out_h, g.out_w);
  const Needs needs = needs_of(needed);
  const Incoming in = incoming(grad, grad_drive, h, std::nullopt, activation, slope);
  Gradients out(needs, x, v, w, h, view_of(h, "h"));
  Source side = source_of(v);
  side.pool_h = p.h, side.pool_w = p.w, side.scale = mean_of(p);
  out.form(g, in, side, w, needs);
  return {out.input, out.weight, out.add, out.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_transpose2d_add_act_backward(
    const std::optional<Tensor>& grad, const std::optional<Tensor>& grad_drive, const Tensor& h, const Tensor& z,
    const Tensor& weight, const std::optional<Tensor>& gate, const Ints& stride, const Ints& padding,
    const Ints& upsample, const std::string& activation, double slope, const std::vector<bool>& needed,
    double gate_slope, const std::optional<Tensor>& input_gate, double input_slope, bool spread) {
  const View v = view_of(z, "z"), w = weight_view(weight, z, "z"), vh = like_view(h, "h", z, "z");
  const Pair up = pair_of(upsample, "upsample", 1);
  STD_TORCH_CHECK(vh.n == v.n && vh.c == w.c && vh.h % up.h == 0 && vh.w % up.w == 0, "h has shape ", shape_text(h),
                  ", which upsampling by (", up.h, ", ", up.w, ") of ", w.c, " channels cannot give");
  const Geometry g = geometry_from_z(v, z, w, weight, pair_of(stride, "stride", 1), pair_of(padding, "padding", 0),
                                     {int(vh.h / up.h), int(vh.w / up.w)});
  const Needs needs = needs_of(needed);
  Incoming in = incoming(grad, grad_drive, h, gate, activation, slope, gate_slope);
  in.total.pool_h = up.h, in.total.pool_w = up.w;
  if (spread) in.total.scale = mean_of(up);
  Gradients out(needs, z, v, w, h, vh);
  out.form(transposed(g), in, gated_source(v, z, input_gate, input_slope), w, needs);
  return {out.input, out.weight, out.add, out.bias};
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) {
  m.impl("conv2d_add_act", TORCH_BOX(&lmser::conv2d_add_act));
  m.impl("conv2d_add_act_backward", TORCH_BOX(&lmser::conv2d_add_act_backward));
  m.impl("conv_transpose2d_add_act", TORCH_BOX(&lmser::conv_transpose2d_add_act));
  m.impl("conv_transpose2d_add_act_backward", TORCH_BOX(&lmser::conv_transpose2d_add_act_backward));
  m.impl("tied_conv2d", TORCH_BOX(&lmser::tied_conv2d));
  m.impl("tied_conv2d_weight_grad", TORCH_BOX(&lmser::tied_conv2d_weight_grad));
}
