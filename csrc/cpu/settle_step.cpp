// One neuron update from both neighbours.
//
// Where the two drives have the same taps, as between layers of one size, they are one sum, over the channels of both
// neighbours. A drive from above that is repeated over windows is as small as the layer above: it is computed first, to
// memory that stays in the cache (large batches are updated in groups of images), and each of its values is added to
// the sums of its window in registers. Bias, activation, evidence and the change against the state before follow before
// the one write leaves the cache.
#include "settle_state.h"

namespace lmser {
namespace {

constexpr std::int64_t kGroupBytes = std::int64_t(4) << 20;

struct Side {
  View state, weight;
  explicit operator bool() const { return bool(weight); }
};

Side side_of(const Maybe& state, const Maybe& weight, const Tensor& first, const char* name) {
  STD_TORCH_CHECK(state.has_value() == weight.has_value(), name, " and its weight must be given together");
  if (!state) return {};
  check_like(*state, name, first, "the other arguments");
  check_like(*weight, "weight", first, "the other arguments");
  return {view_of(*state, name), view_of(*weight, "weight")};
}

// Whether convolution and transposed convolution, both of stride 1, meet the same pixels under the same number of taps.
// Those of few pixels are left apart: their weights are read as they lie, not packed.
template <class T>
bool same_taps(const InstructionSet& isa, const ThreadPool& pool, const Geometry& up, const Geometry& down) {
  if (takes_unpacked(up, kernels_of<T>(isa).tile, sizeof(T), pool.threads, 1, false)) return false;
  return up.kernel_h == down.kernel_h && up.kernel_w == down.kernel_w && up.pad_h == up.kernel_h - 1 - down.pad_h &&
         up.pad_w == up.kernel_w - 1 - down.pad_w;
}

template <class T>
std::tuple<Tensor, Tensor> step_as(const Side& below, const Side& above, const Layer& layer, const View& bias,
                                   const Maybe& evidence, const Maybe& hold, const Maybe& previous, Pair padding,
                                   Pair padding_above, Pair pool, Pair upsample, Activation activation, double slope,
                                   const Tensor& first) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool threads = torch_pool();
  constexpr DType kType = kDTypeOf<T>;
  const Held<T> held(isa, threads, layer, evidence, hold, first);
  Dense<T> before;
  if (previous)
    before =
        Dense<T>(isa, threads, same_shape_view(previous, "previous", first, "h", layer.n, layer.c, layer.h, layer.w));
  Memory<T> h(layer.values());
  Changes<T> changes(std::max<std::int64_t>(layer.n, 1));
  changes.clear();

  const Geometry up{false,
                    layer.n,
                    below.state.c,
                    below ? below.state.h / pool.h : 0,
                    below ? below.state.w / pool.w : 0,
                    layer.c,
                    layer.h,
                    layer.w,
                    below ? int(below.weight.h) : 1,
                    below ? int(below.weight.w) : 1,
                    1,
                    1,
                    padding.h,
                    padding.w};
  const Layer windows{layer.n, layer.c, layer.h / upsample.h, layer.w / upsample.w};
  const Geometry down{true,
                      layer.n,
                      above.state.c,
                      above.state.h,
                      above.state.w,
                      layer.c,
                      windows.h,
                      windows.w,
                      above ? int(above.weight.h) : 1,
                      above ? int(above.weight.w) : 1,
                      1,
                      1,
                      padding_above.h,
                      padding_above.w};
  const bool both = below && above,
             one_sum = both && upsample.h == 1 && upsample.w == 1 && same_taps<T>(isa, threads, up, down);
  const std::int64_t bytes = std::max<std::int64_t>(std::int64_t(sizeof(T)) * windows.image(), 1),
                     groups = both && !one_sum
                                  ? std::max<std::int64_t>(1, layer.n / std::max<std::int64_t>(1, kGroupBytes / bytes))
                                  : 1;
  Geometry geometry = below ? up : down;
  if (one_sum) geometry.in_c += above.state.c;
  PreparedConv conv(isa, geometry, kType, below ? below.weight : above.weight, int(groups), true,
                    one_sum ? above.weight : View{});
  std::optional<PreparedConv> from_above;
  Memory<T> drive;
  if (both && !one_sum) {
    from_above.emplace(isa, down, kType, above.weight, int(groups));
    drive = Memory<T>((layer.n / groups + 1) * windows.image());
  }
  const Buffer<T> dense = dense_bias<T>(bias);
  for (std::int64_t i = 0; i < groups; ++i) {
    const std::int64_t n0 = layer.n * i / groups, n1 = layer.n * (i + 1) / groups, at = n0 * layer.image();
    Layer part = layer, part_windows = windows;
    part.n = part_windows.n = n1 - n0;
    Epilogue e;
    e.result = h.get() + at, e.image = layer.image();
    if (held.any) e.state = h.get() + at, e.evidence = held.evidence.get() + at, e.hold = held.hold.get() + at;
    if (previous) e.previous = before.get() + at, e.change = changes.change.data() + n0;
    Source source;
    Sink sink;
    sink.out = part.view(h.get() + at, kType);
    sink.activation = activation, sink.slope = slope;
    sink.epilogue = &e, sink.bias = dense.get();
    if (below) {
      source.base = images_of(below.state, n0, n1);
      source.pool_h = pool.h, source.pool_w = pool.w, source.scale = 1.0 / (double(pool.h) * pool.w);
      if (one_sum) source.beside = images_of(above.state, n0, n1);
    } else {
      source.base = images_of(above.state, n0, n1);
      sink.upsample_h = upsample.h, sink.upsample_w = upsample.w;
    }
    if (from_above) {
      Source upper;
      upper.base = images_of(above.state, n0, n1);
      Sink linear;
      linear.out = sink.add = part_windows.view(drive.get(), kType);
      sink.add_h = upsample.h, sink.add_w = upsample.w;
      from_above->run(threads, upper, linear);
    }
    conv.run(threads, source, sink);
  }
  const torch::headeronly::IntHeaderOnlyArrayRef none;
  Tensor change = torch::stable::empty(none, first.scalar_type(), std::nullopt, first.device());
  *static_cast<T*>(change.data_ptr()) =
      previous ? T(Changes<T>::most(changes.change, layer.n)) : std::numeric_limits<T>::infinity();
  return {state_tensor(std::move(h), layer, first), change};
}

std::tuple<Tensor, Tensor> settle_step(const Maybe& below, const Maybe& above, const Maybe& weight_below,
                                       const Maybe& weight_above, const Maybe& bias, const Maybe& evidence,
                                       const Maybe& hold, const Maybe& previous, const Ints& padding,
                                       const Ints& padding_above, const Ints& pool, const Ints& upsample,
                                       const std::string& activation, double slope) {
  STD_TORCH_CHECK(below || above, "below and above are both missing");
  const Tensor& first = below ? *below : *above;
  const Side from_below = side_of(below, weight_below, first, "below"),
             from_above = side_of(above, weight_above, first, "above");
  const Pair pad = pair_of(padding, "padding", 0), pad_above = pair_of(padding_above, "padding_above", 0);
  const Pair window = pair_of(pool, "pool", 1), times = pair_of(upsample, "upsample", 1);
  Layer layer{};
  if (from_below) {
    const View &v = from_below.state, &w = from_below.weight;
    STD_TORCH_CHECK(v.c == w.c, "below has ", v.c, " channels; weight_below takes ", w.c);
    layer = {v.n, w.n, v.h / window.h + 2 * pad.h - w.h + 1, v.w / window.w + 2 * pad.w - w.w + 1};
  }
  if (from_above) {
    const View &v = from_above.state, &w = from_above.weight;
    STD_TORCH_CHECK(v.c == w.n, "above has ", v.c, " channels; weight_above takes ", w.n);
    const Layer other{v.n, w.c, (v.h - 1 - 2 * pad_above.h + w.h) * times.h,
                      (v.w - 1 - 2 * pad_above.w + w.w) * times.w};
    STD_TORCH_CHECK(
        !from_below || (other.n == layer.n && other.c == layer.c && other.h == layer.h && other.w == layer.w),
        "above and below give layers of different shapes");
    layer = other;
  }
  STD_TORCH_CHECK(layer.h > 0 && layer.w > 0, "the result would be empty");
  const View b = bias_view(bias, first, "the states", layer.c);
  const Activation f = activation_named(activation);
  const DType dtype = dtype_of(first, "below");
  STD_TORCH_CHECK(dtype == DType::f32 || dtype == DType::f64, "states must be float32 or float64");
  const auto run = dtype == DType::f64 ? step_as<double> : step_as<float>;
  return run(from_below, from_above, layer, b, evidence, hold, previous, pad, pad_above, window, times, f, slope,
             first);
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("settle_step", TORCH_BOX(&lmser::settle_step)); }
