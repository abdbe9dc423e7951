// The settling kernels under the emulator, called by tests through ctypes: dense tensors in, dense tensors out.
#define LMSER_EMULATED
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
};

template <class T>
SettlePlan run(const std::int64_t* sizes, const Settings& s, const Pointers& p) {
  SettleShape shape{{sizes, sizes + s.layers},
                    s.samples,
                    int(sizeof(T)),
                    bool(s.up_down),
                    s.adjoint || (!s.per_sample && s.theta > 0)};
  const SettlePlan plan = s.cluster ? settle_layout(shape, s.cluster, s.group, s.shared_bytes)
                                    : settle_plan(shape, {s.shared_bytes, {s.groups}});
  if (!plan.fits) throw std::invalid_argument("does not fit");
  SettleArguments<T> a = settle_arguments<T>(shape, plan, s.keep);
  const auto dense = [](void* data, std::int64_t c) { return Strided<T>{static_cast<const T*>(data), c, 1}; };
  std::vector<Strided<T>> up, down;
  for (int l = 0; l < s.layers; ++l) {
    a.layer[l].start = a.layer[l].fixed = dense(p.states[l], sizes[l]);
    a.layer[l].bias = dense(p.biases[l], 0), a.layer[l].bias.c = 1;
    a.layer[l].grad = dense(p.grads[l], sizes[l]);
    a.layer[l].result = static_cast<T*>(p.results[l]);
    if (l + 1 == s.layers) continue;
    up.push_back(dense(p.weights[l], sizes[l]));
    down.push_back(dense(p.reverse[l] ? p.reverse[l] : p.weights[l], sizes[l]));
  }
  if (s.adjoint) std::swap(up, down);
  a.max_steps = s.max_steps, a.adjoint = s.adjoint, a.per_sample = s.per_sample, a.half = s.half, a.every = s.every;
  a.activation = Activation(s.activation), a.slope = T(s.slope), a.theta = s.theta;
  a.evidence = dense(p.evidence, sizes[0]), a.hold = dense(p.hold, sizes[0]);
  a.external = dense(p.external, sizes[0]), a.grad_readout = dense(p.grad_readout, sizes[0]);
  a.readouts = static_cast<T*>(p.readouts), a.trajectory = p.trajectory;
  a.steps = p.steps, a.change = static_cast<T*>(p.change);
  std::vector<SettleMeeting> meetings(shape.together ? s.max_steps : 0);
  a.meetings = meetings.data();
  std::vector<Four<T>> packed(std::size_t(settle_packed_values(shape.sizes)) / 4);
  const SettlePacking<T> packing = settle_packing(a, up.data(), down.data(), packed[0].v);
  for (int m = 0; m < packing.count; ++m) {
    SettlePacking<T> one;
    one.matrix[0] = packing.matrix[m];
    emulator::run({2, 1, 32, 0}, s.seed, [&] { settle_pack_kernel<T>(one); });
  }
  emulator::run({int(plan.groups) * plan.cluster, plan.cluster, s.threads, std::size_t(plan.shared_bytes)}, s.seed,
                [&] {
                  if (plan.tile == 1) return settle_kernel<T, 1>(a);
                  if (plan.tile == 2) return settle_kernel<T, 2>(a);
                  if constexpr (sizeof(T) == 4) return plan.tile == 4 ? settle_kernel<T, 4>(a) : settle_kernel<T, 8>(a);
                });
  return plan;
}

}  // namespace
}  // namespace lmser

// Empty where it went well; `plan`: cluster, group, tile, groups, bytes resident and streamed.
extern "C" const char* settle(int wide, const std::int64_t* sizes, const lmser::Settings* s, const lmser::Pointers* p,
                              std::int64_t* plan) {
  static std::string message;
  try {
#if defined(LMSER_ONE_TYPE)
    if (!wide) throw std::invalid_argument("compiled for float64 alone");
    const lmser::SettlePlan found = lmser::run<double>(sizes, *s, *p);
#else
    const lmser::SettlePlan found = wide ? lmser::run<double>(sizes, *s, *p) : lmser::run<float>(sizes, *s, *p);
#endif
    const std::int64_t facts[] = {found.cluster, found.group,          found.tile,
                                  found.groups,  found.resident_bytes, found.streamed_bytes};
    std::copy(std::begin(facts), std::end(facts), plan);
    message.clear();
  } catch (const std::exception& problem) {
    message = problem.what();
  }
  return message.c_str();
}
