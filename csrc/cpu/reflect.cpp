// The passes of a reflection network, those back through them, and both together for a loss.
#include "reflect_backward.h"
#include "reflect_forward.h"

namespace lmser {
namespace {

// f(filtering) until it gives true. Minimal filtering spreads what is not finite over whole tiles: the direct sum says
// where it really goes.
template <class F>
void until_finite(F&& f) {
  for (const bool filtering : {true, false})
    if (f(filtering)) return;
}

template <class T>
bool forward(const ReflectNetwork& net, const View& x, const std::vector<View>& biases, const View& noise,
             const View& reconstruction, const View& code, T* trajectory, bool filtering) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  std::int64_t image = 0;  // values of an image in the working memory
  for (int l = 1; l <= net.top(); ++l) image += net.layers[std::size_t(l)].image() * (trajectory ? 1 : 2);
  const std::int64_t bytes = image * std::int64_t(sizeof(T));
  const ReflectConvs convs(isa, net, kDTypeOf<T>, filtering, true, false);
  const Reflection<T> passes(net, convs, biases, noise, largest_piece(x.n, bytes, pool.threads), trajectory);
  return over_pieces(x.n, bytes, pool.threads, [&](std::int64_t n0, std::int64_t n1) {
    std::vector<Step<T>> steps;
    const auto part = [&](const View& v) { return images_of(v, n0, n1); };
    passes.append(steps, {part(x), part(reconstruction), part(code), n0, {trajectory, 0, x.n}});
    return run_steps<T>(isa, pool, steps, n1 - n0, kReflectStageBytes);
  });
}

template <class T>
bool backward(const ReflectNetwork& net, View grad, const View& grad_code, const View& x, T* trajectory,
              const ReflectGradients& to, bool filtering) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  Memory<T> nothing;
  if (!grad) {
    nothing = zeros<T>(net.layers[0].values());
    grad = net.layers[0].view(nothing.get(), kDTypeOf<T>);
  }
  const Dense<T> code = grad_code ? Dense<T>(isa, pool, grad_code) : Dense<T>();
  const std::int64_t bytes = ReflectBackward<T>::image_values(net) * std::int64_t(sizeof(T));
  const ReflectConvs convs(isa, net, kDTypeOf<T>, filtering, false, true);
  ReflectBackward<T> passes(net, convs, to, largest_piece(x.n, bytes, pool.threads), filtering);
  const bool finite = over_pieces(x.n, bytes, pool.threads, [&](std::int64_t n0, std::int64_t n1) {
    std::vector<Step<T>> steps;
    const auto part = [&](const View& v) { return images_of(v, n0, n1); };
    const T* const inject = code.get() ? code.get() + n0 * net.layers.back().image() : nullptr;
    passes.append(steps, {part(x), part(grad), part(to.x), inject, n0, {trajectory, 0, x.n}});
    return run_steps<T>(isa, pool, steps, n1 - n0, kReflectStageBytes);
  });
  if (!finite || !passes.finish()) return false;
  if (!to.biases.empty()) run_transform(isa, pool, source_of(grad), {}, {}, to.biases[0]);
  return true;
}

// d = reconstruction - target to where the reconstruction is, times `scale`; the sum of the squares of d.
template <class T>
double residual(T* values, const T* target, std::int64_t count, ComputeType<T> scale) {
  using C = ComputeType<T>;
  constexpr std::int64_t kWide = 16;  // sums side by side, for registers of any width
  double sums[kWide] = {};
  std::int64_t i = 0;
  for (; i + kWide <= count; i += kWide)
    for (std::int64_t k = 0; k < kWide; ++k) {
      const C d = C(values[i + k]) - C(target[i + k]);
      sums[k] += double(d) * double(d), values[i + k] = T(d * scale);
    }
  for (; i < count; ++i) {
    const C d = C(values[i]) - C(target[i]);
    sums[0] += double(d) * double(d), values[i] = T(d * scale);
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

// A piece of the batch goes up, down and back before the next: its states never leave the caches for long, and memory
// is that of a piece.
template <class T>
class LossPasses {
 public:
  LossPasses(const ReflectNetwork& net, const View& x, const View& target, const std::vector<View>& biases,
             const View& noise, const ReflectGradients& to, bool filtering)
      : net_(net),
        x_(x),
        target_(target),
        to_(to),
        differentiates_(!to.weights.empty() || !to.biases.empty()),
        convs_(isa_, net, kDTypeOf<T>, filtering, true, differentiates_),
        most_(largest_piece(x.n, image_bytes(), pool_.threads, least())),
        up_and_down_(net, convs_, biases, noise, most_, differentiates_),
        back_(net, convs_, to, most_, filtering),
        reconstruction_(net.layers[0].image() * most_),
        states_(differentiates_ ? Memory<T>(net.kept * most_) : Memory<T>()),
        squares_(std::size_t(x.n)) {}

  // The loss into `loss`; false where a result is not finite and was not made by direct sums alone.
  bool run(double& loss) {
    const auto part = [&](std::int64_t n0, std::int64_t n1) { return piece(n0, n1); };
    if (!over_pieces(x_.n, image_bytes(), pool_.threads, part, least())) return false;
    if (differentiates_ && !back_.finish()) return false;
    double sum = 0;
    for (const double s : squares_) sum += s;
    loss = sum / (2.0 * double(x_.n));
    return true;
  }

 private:
  std::int64_t least() const { return differentiates_ ? kLeastImagesTraining : kLeastImages; }
  std::int64_t image_bytes() const {
    // A state and a drive of each layer, or all states and a drive: the way back takes the memory of what it is done
    // with.
    const std::int64_t two = ReflectBackward<T>::image_values(net_),
                       values = net_.layers[0].image() + (differentiates_ ? net_.kept + two / 2 : two);
    return values * std::int64_t(sizeof(T));
  }

  bool piece(std::int64_t n0, std::int64_t n1) {
    const Dense<T> x(isa_, pool_, images_of(x_, n0, n1)), own(isa_, pool_, images_of(target_, n0, n1));
    const T* const target = target_ ? own.get() : x.get();
    const View from = dense_state(net_, 0, const_cast<T*>(x.get()), n1 - n0),
               reconstruction = dense_state(net_, 0, reconstruction_.get(), n1 - n0);
    const Trajectory<T> kept{states_.get(), n0, n1 - n0};
    std::vector<Step<T>> steps;
    up_and_down_.append(steps, {from, reconstruction, {}, n0, kept});
    Step<T>& last = steps.back();
    last.bias_values = back_.bias_values();
    last.after = [this, target, n0](std::int64_t a, std::int64_t b, std::int64_t task) {
      const std::int64_t image = net_.layers[0].image();
      for (std::int64_t n = a; n < b; ++n)
        squares_[std::size_t(n0 + n)] =
            residual(reconstruction_.get() + n * image, target + n * image, image, ComputeType<T>(1.0 / double(x_.n)));
      if (!to_.biases.empty()) sum_pixels(a, b, back_.visible_bias(task));
    };
    if (differentiates_)
      back_.append(steps, {from, reconstruction, {}, nullptr, n0, kept, true, up_and_down_.drives()});
    return run_steps<T>(isa_, pool_, steps, n1 - n0, kReflectStageBytes);
  }

  // Adds those of each channel of the gradient in images [a, b) of the piece, whole rows at a time.
  void sum_pixels(std::int64_t a, std::int64_t b, double* sums) const {
    const Layer& l = net_.layers[0];
    const std::int64_t row = l.w * l.c;
    std::vector<double> of_row(std::size_t(row), 0.0);
    for (std::int64_t r = a * l.h; r < b * l.h; ++r)
      for (std::int64_t i = 0; i < row; ++i)
        of_row[std::size_t(i)] += double(ComputeType<T>(reconstruction_.get()[r * row + i]));
    for (std::int64_t i = 0; i < row; ++i) sums[i % l.c] += of_row[std::size_t(i)];
  }

  const InstructionSet& isa_ = instruction_set();
  const ThreadPool pool_ = torch_pool();
  const ReflectNetwork& net_;
  View x_, target_;
  const ReflectGradients& to_;
  bool differentiates_;
  ReflectConvs convs_;
  std::int64_t most_;
  Reflection<T> up_and_down_;
  ReflectBackward<T> back_;
  Memory<T> reconstruction_, states_;
  std::vector<double> squares_;
};

// Calls f with a number of the dtype of x.
template <class F>
void in_dtype_of(const View& x, F&& f) {
  x.dtype == DType::f64 ? f(double()) : x.dtype == DType::bf16 ? f(BFloat16()) : f(float());
}

}  // namespace

void run_reflect(const ReflectNetwork& net, const View& x, const std::vector<View>& biases, const View& noise,
                 const View& reconstruction, const View& code, void* trajectory) {
  in_dtype_of(x, [&]<class T>(T) {
    until_finite([&](bool filtering) {
      return forward(net, x, biases, noise, reconstruction, code, static_cast<T*>(trajectory), filtering);
    });
  });
}

void run_reflect_backward(const ReflectNetwork& net, const View& grad_reconstruction, const View& grad_code,
                          const View& x, void* trajectory, const ReflectGradients& to) {
  in_dtype_of(x, [&]<class T>(T) {
    until_finite([&](bool filtering) {
      return backward(net, grad_reconstruction, grad_code, x, static_cast<T*>(trajectory), to, filtering);
    });
  });
}

double run_reflect_loss(const ReflectNetwork& net, const View& x, const View& target, const std::vector<View>& biases,
                        const View& noise, const ReflectGradients& to) {
  double loss = 0;
  in_dtype_of(x, [&]<class T>(T) {
    until_finite([&](bool filtering) { return LossPasses<T>(net, x, target, biases, noise, to, filtering).run(loss); });
  });
  return loss;
}

}  // namespace lmser
