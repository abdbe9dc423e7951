// Settling of fully connected networks in one launch: the whole solve, and the adjoint of a fixed point.
//
// Layers are (N, C, 1, 1), weights (C_above, C_below, 1, 1), float32 or float64. `lmser::settle_persistent` returns
// what `lmser::settle` does. Its number of sweeps stays on the device; where readouts or states of every sweep are
// returned and a threshold may end the solve early, it is read once, after the launch.
#include "settle_kernel.cuh"
#include "settle_launch.cuh"

namespace lmser {
namespace {

template <class T>
struct Kernels {
  using Value = T;
  template <int S>
  static auto of() {
    return &settle_kernel<T, S>;
  }
};

// A solve on its way to the device.
template <class T>
struct Solve {
  const Tensor& like;
  SettleShape shape;
  cudaStream_t stream;
  SettlePlan plan;
  SettleArguments<T> a;
  Tensor weights, meetings;

  Solve(const Tensors& states, const SettleShape& s, bool keep)
      : like(states[0]),
        shape(s),
        stream(stream_of(like)),
        plan(settle_plan(s, device_of<Kernels<T>>(like.get_device_index()))) {
    check_fits(plan, s);
    a = settle_arguments<T>(s, plan, keep);
  }

  Tensors results() {
    Tensors out = empty_states(like, shape);
    for (int l = 0; l < a.layers; ++l) a.layer[l].result = static_cast<T*>(out[l].data_ptr());
    return out;
  }

  void run(const Tensors& up, const Tensors& down, const Tensor& steps, const Tensor& change) {
    weights = packed<T>(a, shape, up, down, like, stream);
    a.steps = static_cast<std::int64_t*>(steps.data_ptr()), a.change = static_cast<T*>(change.data_ptr());
    check(cudaMemsetAsync(a.change, 0, sizeof(T) * change.numel(), stream), "zeros");
    if (shape.together) {
      const std::int64_t bytes = std::int64_t(sizeof(SettleMeeting)) * a.max_steps;
      meetings = empty_of(like, {bytes / 8}, ScalarType::Long);
      a.meetings = static_cast<SettleMeeting*>(meetings.data_ptr());
      check(cudaMemsetAsync(a.meetings, 0, std::size_t(bytes), stream), "zeros");
    }
    launch<Kernels<T>>(plan, shape.together, stream, a);
  }
};

// The largest count of sweeps; waits for the solve.
std::int64_t sweeps_made(const Tensor& steps, cudaStream_t stream) {
  std::vector<std::int64_t> made(std::size_t(steps.numel()));
  check(cudaMemcpyAsync(made.data(), steps.data_ptr(), made.size() * 8, cudaMemcpyDeviceToHost, stream), "steps");
  check(cudaStreamSynchronize(stream), "steps");
  return *std::max_element(made.begin(), made.end());
}

// What was made of the room for `most` sweeps: by itself where the rest is worth giving back.
Tensor made_of(Tensor all, std::int64_t made, std::int64_t most, std::int64_t each) {
  const Tensor part = torch::stable::narrow(all, 0, 0, made * each);
  return 8 * made < 7 * most ? torch::stable::clone(part) : part;
}

struct How {
  Activation activation;
  double slope, theta;
  std::int64_t max_steps;
  bool up_down, per_sample, keep, half, every;
};

using Found = std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor>;

// No sample, no launch: nothing moves, so that the first sweep ends a solve that may end early.
Found settle_nothing(const Tensors& states, const How& how) {
  const Tensor& like = states[0];
  Tensors out;
  for (const Tensor& s : states) out.push_back(empty_4d(like, true, 0, s.size(1), 1, 1));
  const std::int64_t sweeps = how.theta > 0 || how.per_sample ? 1 : how.max_steps;
  std::vector<std::int64_t> size;
  if (how.per_sample) size.push_back(0);
  Tensor steps = empty_of(like, size, ScalarType::Long), change = empty_of(like, size, like.scalar_type());
  torch::stable::fill_(steps, double(sweeps)), torch::stable::zero_(change);
  return {std::move(out), empty_readouts(like, how.every ? sweeps : 1, 0, states[0].size(1)),
          empty_of(like, {0}, how.keep && how.half ? ScalarType::BFloat16 : like.scalar_type()), steps, change};
}

template <class T>
Found settle_as(const SettleShape& shape, const Tensors& states, const Tensors& weights, const Tensors& reverse,
                const Tensors& biases, const Maybe& evidence, const Maybe& hold, const Maybe& external,
                const How& how) {
  const bool counted = how.every && how.theta > 0;  // how many sweeps are kept is known when they are made
  if (counted) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_of(states[0]), &capturing), "capture");
    STD_TORCH_CHECK(capturing == cudaStreamCaptureStatusNone,
                    "settle_persistent: in a CUDA graph, what is kept of every sweep needs a number of sweeps that is "
                    "known beforehand: theta must be 0, got ",
                    how.theta);
  }
  Solve<T> solve(states, shape, how.keep);
  SettleArguments<T>& a = solve.a;
  const Tensor& like = states[0];
  const std::int64_t n = shape.samples, visible = shape.sizes[0];
  for (int l = 0; l < a.layers; ++l) {
    a.layer[l].start = strided<T>(states[l], "states", like, n, shape.sizes[l]);
    if (biases[l].numel() == 0) continue;
    const View b = bias_view(biases[l], like, "states[0]", shape.sizes[l]);
    a.layer[l].bias = {static_cast<const T*>(b.data), 0, b.sc};
  }
  a.activation = how.activation, a.slope = T(how.slope), a.theta = how.theta, a.max_steps = how.max_steps;
  a.per_sample = how.per_sample, a.every = how.every, a.half = how.half;
  a.evidence = maybe<T>(evidence, "evidence", like, n, visible), a.hold = maybe<T>(hold, "hold", like, n, visible);
  a.external = maybe<T>(external, "external", like, n, visible);
  Tensors out = solve.results();
  Tensor readouts = empty_readouts(like, how.every ? how.max_steps : 1, n, visible);
  Tensor trajectory = empty_of(like, {how.keep ? a.kept * how.max_steps : 0},
                               how.keep && how.half ? ScalarType::BFloat16 : like.scalar_type());
  a.readouts = static_cast<T*>(readouts.data_ptr()), a.trajectory = trajectory.data_ptr();
  std::vector<std::int64_t> size;
  if (how.per_sample) size.push_back(n);
  Tensor steps = empty_of(like, size, ScalarType::Long), change = empty_of(like, size, like.scalar_type());
  solve.run(weights, reverse.empty() ? weights : reverse, steps, change);
  if (counted) {
    const std::int64_t made = sweeps_made(steps, solve.stream);
    readouts = made_of(readouts, made, how.max_steps, 1);
    if (how.keep) trajectory = made_of(trajectory, made, how.max_steps, a.kept);
  }
  return {std::move(out), readouts, trajectory, steps, change};
}

Found settle_persistent(const Tensors& states, const Tensors& weights, const Tensors& reverse, const Tensors& biases,
                        const Maybe& evidence, const Maybe& hold, const Maybe& external, const std::string& activation,
                        double slope, const std::string& order, double theta, std::int64_t max_steps, bool per_sample,
                        bool keep, bool half, bool readouts) {
  const How how{activation_named(activation),
                slope,
                theta,
                max_steps,
                up_down_of(order),
                per_sample,
                keep,
                half,
                keep || readouts};
  STD_TORCH_CHECK(max_steps >= 1, "max_steps is ", max_steps, "; expected at least 1");
  STD_TORCH_CHECK(!(keep && per_sample), "per_sample cannot keep a trajectory");
  STD_TORCH_CHECK(evidence.has_value() == hold.has_value(), "evidence and hold must be given together");
  const SettleShape shape = shape_of(states, weights, reverse, how.up_down, !per_sample && theta > 0);
  STD_TORCH_CHECK(biases.size() == states.size(), "biases: expected one for each layer, got ", biases.size());
  STD_TORCH_CHECK(!half || shape.itemsize == 4, "a bfloat16 trajectory is for float32 states");
  const OnDevice device(states[0]);
  if (shape.samples == 0) return settle_nothing(states, how);
  const auto solve = shape.itemsize == 8 ? settle_as<double> : settle_as<float>;
  return solve(shape, states, weights, reverse, biases, evidence, hold, external, how);
}

using Adjoint = std::tuple<Tensors, Tensor, Tensor, Tensor>;

template <class T>
Adjoint adjoint_as(const SettleShape& shape, const Tensors& grad_states, const Tensor& grad_readout,
                   const Tensors& states, const Tensors& weights, const Tensors& reverse, const Maybe& hold,
                   const Tensor& readout, const How& how) {
  Solve<T> solve(states, shape, false);
  SettleArguments<T>& a = solve.a;
  const Tensor& like = states[0];
  const std::int64_t n = shape.samples, visible = shape.sizes[0];
  for (int l = 0; l < a.layers; ++l) {
    a.layer[l].fixed = strided<T>(l ? states[l] : readout, l ? "states" : "readout", like, n, shape.sizes[l]);
    a.layer[l].grad = given<T>(grad_states[l], "grad_states", like, n, shape.sizes[l]);
  }
  a.adjoint = true;
  a.activation = how.activation, a.slope = T(how.slope), a.theta = how.theta, a.max_steps = how.max_steps;
  a.hold = maybe<T>(hold, "hold", like, n, visible);
  a.grad_readout = given<T>(grad_readout, "grad_readout", like, n, visible);
  Tensors out = solve.results();
  Tensor drive = empty_4d(like, true, n, visible, 1, 1);
  a.readouts = static_cast<T*>(drive.data_ptr());
  Tensor steps = empty_of(like, {}, ScalarType::Long), change = empty_of(like, {}, like.scalar_type());
  // what went up comes down
  solve.run(reverse.empty() ? weights : reverse, weights, steps, change);
  return {std::move(out), drive, steps, change};
}

Adjoint settle_adjoint_persistent(const Tensors& grad_states, const Tensor& grad_readout, const Tensors& states,
                                  const Tensors& weights, const Tensors& reverse, const Maybe& hold,
                                  const Tensor& readout, const std::string& activation, double slope,
                                  const std::string& order, double theta, std::int64_t max_steps) {
  const How how{activation_named(activation), slope, theta, max_steps, up_down_of(order), false, false, false, false};
  STD_TORCH_CHECK(max_steps >= 1, "max_steps is ", max_steps, "; expected at least 1");
  STD_TORCH_CHECK(grad_states.size() == states.size(), "grad_states: expected one for each layer, got ",
                  grad_states.size());
  const SettleShape shape = shape_of(states, weights, reverse, how.up_down, true);
  const OnDevice device(states[0]);
  if (shape.samples == 0) {
    auto [out, drive, path, steps, change] = settle_nothing(states, how);
    torch::stable::fill_(steps, 1.0);
    return {std::move(out), empty_4d(states[0], true, 0, shape.sizes[0], 1, 1), steps, change};
  }
  const auto solve = shape.itemsize == 8 ? adjoint_as<double> : adjoint_as<float>;
  return solve(shape, grad_states, grad_readout, states, weights, reverse, hold, readout, how);
}

}  // namespace

std::string settle_obstacle(int device) {
  if (aoti_torch_get_current_cuda_stream == nullptr) return "this torch has no CUDA stream to run on";
  try {
    const OnDevice here(device);
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, settle_kernel<float, 1>), "device", "kernel");
  } catch (const std::exception& problem) {
    return problem.what();
  }
  return {};
}

}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CUDA, m) {
  m.impl("settle_persistent", TORCH_BOX(&lmser::settle_persistent));
  m.impl("settle_adjoint_persistent", TORCH_BOX(&lmser::settle_adjoint_persistent));
}
