// The settling kernels under the emulator, called by tests through ctypes: dense tensors in, dense tensors out.
#define LMSER_EMULATED
#include "../../csrc/cuda/settle_back_kernel.cuh"
#include "../../csrc/cuda/settle_kernel.cuh"

namespace lmser {
namespace {

struct Settings {
  int layers, up_down, per_sample, keep, half, every, activation, adjoint;
  int cluster, group, groups, threads;
  std::int64_t samples, max_steps, shared_bytes, seed;
  double slope, theta;
};

// Null where there is none.
struct Pointers {
  void *states[8], *weights[8], *reverse[8], *biases[8], *grads[8], *results[8];
  void *evidence, *hold, *external, *grad_readout, *readouts, *trajectory, *change;
  std::int64_t* steps;
  void *up[8], *down[8], *visible, *evidence_grad;  // of the way back
};

template <class T>
Strided<T> dense(const void* data, std::int64_t c) {
  return {static_cast<const T*>(data), c, 1};
}

SettlePlan plan_of(const SettleShape& shape, const Settings& s) {
  const SettlePlan plan = s.cluster ? settle_layout(shape, s.cluster, s.group, s.shared_bytes)
                                    : settle_plan(shape, {s.shared_bytes, {s.groups}});
  if (!plan.fits) throw std::invalid_argument("does not fit");
  return plan;
}

template <class T, class Arguments>
std::vector<Four<T>> packed(Arguments& a, const SettleShape& shape, const std::vector<Strided<T>>& up,
                            const std::vector<Strided<T>>& down, std::uint64_t seed) {
  std::vector<Four<T>> to(std::size_t(settle_packed_values(shape.sizes)) / 4);
  const SettlePacking<T> packing = settle_packing(a, up.data(), down.data(), to[0].v);
  for (int m = 0; m < packing.count; ++m) {
    SettlePacking<T> one;
    one.matrix[0] = packing.matrix[m];
    emulator::run({2, 1, 32, 0}, seed, [&] { settle_pack_kernel<T>(one); });
  }
  return to;
}

template <class T>
std::vector<Strided<T>> edges(void* const* weights, const std::int64_t* sizes, int layers) {
  std::vector<Strided<T>> found;
  for (int e = 0; e + 1 < layers; ++e) found.push_back(dense<T>(weights[e], sizes[e]));
  return found;
}

template <class T>
SettlePlan run(const std::int64_t* sizes, const Settings& s, const Pointers& p) {
  SettleShape shape{{sizes, sizes + s.layers},
                    s.samples,
                    int(sizeof(T)),
                    bool(s.up_down),
                    s.adjoint || (!s.per_sample && s.theta > 0)};
  const SettlePlan plan = plan_of(shape, s);
  SettleArguments<T> a = settle_arguments<T>(shape, plan, s.keep);
  for (int l = 0; l < s.layers; ++l) {
    a.layer[l].start = a.layer[l].fixed = dense<T>(p.states[l], sizes[l]);
    a.layer[l].bias = {static_cast<const T*>(p.biases[l]), 0, 1};
    a.layer[l].grad = dense<T>(p.grads[l], sizes[l]);
    a.layer[l].result = static_cast<T*>(p.results[l]);
  }
  auto up = edges<T>(p.weights, sizes, s.layers),
       down = edges<T>(p.reverse[0] ? p.reverse : p.weights, sizes, s.layers);
  if (s.adjoint) std::swap(up, down);
  a.max_steps = s.max_steps, a.adjoint = s.adjoint, a.per_sample = s.per_sample, a.half = s.half, a.every = s.every;
  a.activation = Activation(s.activation), a.slope = T(s.slope), a.theta = s.theta;
  a.evidence = dense<T>(p.evidence, sizes[0]), a.hold = dense<T>(p.hold, sizes[0]);
  a.external = dense<T>(p.external, sizes[0]), a.grad_readout = dense<T>(p.grad_readout, sizes[0]);
  a.readouts = static_cast<T*>(p.readouts), a.trajectory = p.trajectory;
  a.steps = p.steps, a.change = static_cast<T*>(p.change);
  std::vector<SettleMeeting> meetings(shape.together ? s.max_steps : 0);
  a.meetings = meetings.data();
  const auto weights = packed(a, shape, up, down, std::uint64_t(s.seed));
  emulator::run({int(plan.groups) * plan.cluster, plan.cluster, s.threads, std::size_t(plan.shared_bytes)}, s.seed,
                [&] {
                  if (plan.tile == 1) return settle_kernel<T, 1>(a);
                  if (plan.tile == 2) return settle_kernel<T, 2>(a);
                  if constexpr (sizeof(T) == 4) return plan.tile == 4 ? settle_kernel<T, 4>(a) : settle_kernel<T, 8>(a);
                });
  return plan;
}

template <class T>
SettlePlan run_back(const std::int64_t* sizes, const Settings& s, const Pointers& p) {
  SettleShape shape{{sizes, sizes + s.layers}, s.samples, int(sizeof(T)), bool(s.up_down), false, true};
  const SettlePlan plan = plan_of(shape, s);
  SettleBackArguments<T> a = settle_back_arguments<T>(shape, plan);
  for (int l = 0; l < s.layers; ++l) {
    a.layer[l].grad = dense<T>(p.grads[l], sizes[l]);
    a.layer[l].start_grad = static_cast<T*>(p.results[l]);
    a.layer[l].up_grads = static_cast<T*>(p.up[l]), a.layer[l].down_grads = static_cast<T*>(p.down[l]);
  }
  a.sweeps = s.max_steps, a.half = s.half, a.activation = Activation(s.activation), a.slope = T(s.slope);
  a.start = dense<T>(p.states[0], sizes[0]), a.evidence = dense<T>(p.evidence, sizes[0]);
  a.hold = dense<T>(p.hold, sizes[0]), a.grad_readouts = dense<T>(p.grad_readout, sizes[0]);
  a.grad_readouts_t = s.samples * sizes[0];
  a.readouts = static_cast<const T*>(p.readouts), a.trajectory = p.trajectory;
  a.visible = static_cast<T*>(p.visible), a.evidence_grad = static_cast<T*>(p.evidence_grad);
  const auto down = edges<T>(p.weights, sizes, s.layers);
  const auto up = edges<T>(p.reverse[0] ? p.reverse : p.weights, sizes, s.layers);
  const auto weights = packed(a, shape, up, down, std::uint64_t(s.seed));
  emulator::run({int(plan.groups) * plan.cluster, plan.cluster, s.threads, std::size_t(plan.shared_bytes)}, s.seed,
                [&] {
                  if (plan.tile == 1) return settle_back_kernel<T, 1>(a);
                  if (plan.tile == 2) return settle_back_kernel<T, 2>(a);
                  if constexpr (sizeof(T) == 4)
                    return plan.tile == 4 ? settle_back_kernel<T, 4>(a) : settle_back_kernel<T, 8>(a);
                });
  return plan;
}

}  // namespace
}  // namespace lmser

// Empty where it went well; `plan`: cluster, group, tile, groups, bytes resident and streamed.
template <class F>
static const char* told(F&& run, std::int64_t* plan) {
  static std::string message;
  try {
    const lmser::SettlePlan found = run();
    const std::int64_t facts[] = {found.cluster, found.group,          found.tile,
                                  found.groups,  found.resident_bytes, found.streamed_bytes};
    std::copy(std::begin(facts), std::end(facts), plan);
    message.clear();
  } catch (const std::exception& problem) {
    message = problem.what();
  }
  return message.c_str();
}

extern "C" const char* settle(int wide, const std::int64_t* sizes, const lmser::Settings* s, const lmser::Pointers* p,
                              std::int64_t* plan) {
  return told([&] { return wide ? lmser::run<double>(sizes, *s, *p) : lmser::run<float>(sizes, *s, *p); }, plan);
}
extern "C" const char* settle_back(int wide, const std::int64_t* sizes, const lmser::Settings* s,
                                   const lmser::Pointers* p, std::int64_t* plan) {
  return told([&] { return wide ? lmser::run_back<double>(sizes, *s, *p) : lmser::run_back<float>(sizes, *s, *p); },
              plan);
}
