// Back through the sweeps of a fully connected network in one launch.
//
// Of every drive the gradient is returned, and with them what the weights were multiplied with where that is not in the
// trajectory: their products over all sweeps and samples are the gradients of the weights.
#include "settle_back_kernel.cuh"
#include "settle_launch.cuh"

namespace lmser {
namespace {

template <class T>
struct BackKernels {
  using Value = T;
  template <int S>
  static auto of() {
    return &settle_back_kernel<T, S>;
  }
};

// (start grads, of the drives from below, of the drives from above, visible states, of the evidence)
using Back = std::tuple<Tensors, Tensors, Tensors, Tensor, Tensor>;

struct Given {
  const Tensors &grad_states, &states, &weights, &reverse;
  const Tensor &grad_readouts, &readouts, &trajectory;
  const Maybe &evidence, &hold;
  Activation activation;
  double slope;
  bool want_states, want_evidence;
};

Tensor zeros_of(const Tensor& like, const std::vector<std::int64_t>& size) {
  Tensor t = empty_of(like, size, like.scalar_type());
  torch::stable::zero_(t);
  return t;
}

template <class T>
Back back_as(const SettleShape& shape, const Given& g) {
  const Tensor& like = g.states[0];
  const cudaStream_t stream = stream_of(like);
  const std::int64_t n = shape.samples, sweeps = g.readouts.size(0), visible = shape.sizes[0];
  const int layers = int(shape.sizes.size());
  Tensors start, up, down;
  if (g.want_states) start = empty_states(like, shape);
  for (int l = 0; l < layers; ++l) {
    // What nothing flows through, and what no sweep used, is zero.
    up.push_back(l > 0 ? zeros_of(like, {sweeps, n, shape.sizes[l]}) : empty_1d(like, 0));
    down.push_back(l + 1 < layers ? zeros_of(like, {sweeps + 1, n, shape.sizes[l]}) : empty_1d(like, 0));
  }
  Tensor shown = empty_of(like, {sweeps, n, visible}, like.scalar_type());
  Tensor evidence_grad = empty_4d(like, true, g.want_evidence ? n : 0, visible, 1, 1);
  if (n == 0 || sweeps == 0) return {start, up, down, shown, evidence_grad};
  if (g.want_evidence) torch::stable::zero_(evidence_grad);

  const SettlePlan plan = settle_plan(shape, device_of<BackKernels<T>>(like.get_device_index()));
  check_fits(plan, shape);
  SettleBackArguments<T> a = settle_back_arguments<T>(shape, plan);
  for (int l = 0; l < layers; ++l) {
    SettleBackLayer<T>& layer = a.layer[l];
    layer.grad = given<T>(g.grad_states[l], "grad_states", like, n, shape.sizes[l]);
    if (g.want_states) layer.start_grad = static_cast<T*>(start[l].data_ptr());
    if (l > 0) layer.up_grads = static_cast<T*>(up[l].data_ptr());
    if (l + 1 < layers) layer.down_grads = static_cast<T*>(down[l].data_ptr());
  }
  a.sweeps = sweeps, a.activation = g.activation, a.slope = T(g.slope);
  a.half = sizeof(T) == 4 && g.trajectory.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(a.half || g.trajectory.scalar_type() == like.scalar_type(), "trajectory and states differ in dtype");
  STD_TORCH_CHECK(g.trajectory.dim() == 1 && g.trajectory.numel() == a.kept * sweeps, "trajectory has shape ",
                  shape_text(g.trajectory), "; expected (", a.kept * sweeps, ",)");
  STD_TORCH_CHECK(g.trajectory.numel() <= 1 || g.trajectory.stride(0) == 1, "trajectory must be contiguous");
  a.trajectory = g.trajectory.data_ptr();
  a.evidence = maybe<T>(g.evidence, "evidence", like, n, visible), a.hold = maybe<T>(g.hold, "hold", like, n, visible);
  a.start = strided<T>(g.states[0], "states", like, n, visible);
  const auto dense = [&](const Tensor& t, std::int64_t d, std::int64_t stride) {
    return t.size(d) == 1 || t.stride(d) == stride;
  };
  STD_TORCH_CHECK(g.readouts.dim() == 5 && g.readouts.numel() == sweeps * n * visible &&
                      dense(g.readouts, 0, n * visible) && dense(g.readouts, 1, visible) && dense(g.readouts, 2, 1),
                  "readouts have shape ", shape_text(g.readouts), "; expected dense (T, ", n, ", ", visible, ", 1, 1)");
  a.readouts = static_cast<const T*>(g.readouts.data_ptr());
  if (g.grad_readouts.numel()) {
    const Tensor& t = g.grad_readouts;
    check_like(t, "grad_readouts", like, "states[0]");
    STD_TORCH_CHECK(t.dim() == 5 && t.size(0) == sweeps && t.size(1) == n && t.size(2) == visible &&
                        t.numel() == sweeps * n * visible,
                    "grad_readouts have shape ", shape_text(t), "; expected the readouts' ", shape_text(g.readouts));
    a.grad_readouts = {static_cast<const T*>(t.data_ptr()), t.stride(1), t.stride(2)}, a.grad_readouts_t = t.stride(0);
  }
  a.visible = static_cast<T*>(shown.data_ptr());
  if (g.want_evidence) a.evidence_grad = static_cast<T*>(evidence_grad.data_ptr());
  // what went up comes down
  const Tensor weights = packed<T>(a, shape, g.reverse.empty() ? g.weights : g.reverse, g.weights, like, stream);
  launch<BackKernels<T>>(plan, false, stream, a);
  return {start, up, down, shown, evidence_grad};
}

Back settle_backward_persistent(const Tensors& grad_states, const Tensor& grad_readouts, const Tensors& states,
                                const Tensors& weights, const Tensors& reverse, const Maybe& evidence,
                                const Maybe& hold, const Tensor& readouts, const Tensor& trajectory,
                                const std::string& activation, double slope, const std::string& order, bool want_states,
                                bool want_evidence) {
  STD_TORCH_CHECK(grad_states.size() == states.size(), "grad_states: expected one for each layer, got ",
                  grad_states.size());
  STD_TORCH_CHECK(evidence.has_value() == hold.has_value(), "evidence and hold must be given together");
  SettleShape shape = shape_of(states, weights, reverse, up_down_of(order), false);
  shape.back = true;
  const OnDevice device(states[0]);
  const Given g{grad_states,
                states,
                weights,
                reverse,
                grad_readouts,
                readouts,
                trajectory,
                evidence,
                hold,
                activation_named(activation),
                slope,
                want_states,
                want_evidence && evidence.has_value()};
  return shape.itemsize == 8 ? back_as<double>(shape, g) : back_as<float>(shape, g);
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CUDA, m) {
  m.impl("settle_backward_persistent", TORCH_BOX(&lmser::settle_backward_persistent));
}
