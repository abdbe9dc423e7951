// add_act and its backward pass on CUDA: one thread an element, any strides, sums and activation in float32
// (float64 for float64).
#include "launch.cuh"

namespace lmser {
namespace {

// Element `i` of `order`, counted as `order` lies in memory (channels-last or not), as coordinates.
struct Position {
  std::int64_t n, c, h, w;
};
__device__ Position position(const View& v, bool last, std::int64_t i) {
  Position p;
  if (last) {
    p.c = i % v.c, i /= v.c;
    p.w = i % v.w, i /= v.w;
    p.h = i % v.h, p.n = i / v.h;
  } else {
    p.w = i % v.w, i /= v.w;
    p.h = i % v.h, i /= v.h;
    p.c = i % v.c, p.n = i / v.c;
  }
  return p;
}
__device__ std::int64_t at(const View& v, const Position& p) {
  return p.n * v.sn + p.c * v.sc + p.h * v.sh + p.w * v.sw;
}

template <class T, Activation A>
__global__ void add_act_kernel(View y, View u, View bias, View out, bool last, std::int64_t count, T slope) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Position p = position(out, last, i);
    T z = load<T>(y.data, y.dtype, at(y, p));
    if (u.data) z += load<T>(u.data, u.dtype, at(u, p));
    if (bias.data) z += load<T>(bias.data, bias.dtype, p.c * bias.sc);
    store<T>(out.data, out.dtype, at(out, p), activate<A, T, T, DeviceMath<T>>(z, slope));
  }
}

template <class T, Activation A>
__global__ void add_act_backward_kernel(View grad, View h, View out, bool last, std::int64_t count, T slope) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Position p = position(out, last, i);
    const T g = load<T>(grad.data, grad.dtype, at(grad, p));
    const T d = pull_back<A, T, T, DeviceMath<T>>(g, load<T>(h.data, h.dtype, at(h, p)), slope);
    store<T>(out.data, out.dtype, at(out, p), d);
  }
}

// One block a channel, partial sums in a fixed tree: the same bits every time.
template <class T, Activation A>
__global__ void bias_grad_kernel(View grad, View h, View out, T slope) {
  __shared__ T sums[256];
  const std::int64_t c = blockIdx.x, pixels = h.n * h.h * h.w;
  T sum = T(0);
  for (std::int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
    const Position p{i / (h.h * h.w), c, i / h.w % h.h, i % h.w};
    sum += pull_back<A, T, T, DeviceMath<T>>(load<T>(grad.data, grad.dtype, at(grad, p)),
                                             load<T>(h.data, h.dtype, at(h, p)), slope);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) store<T>(out.data, out.dtype, c * out.sc, sums[0]);
}

unsigned blocks_for(std::int64_t count) {
  const std::int64_t blocks = (count + 255) / 256;
  return unsigned(blocks < 65535 ? blocks : 65535);
}

template <class T>
void launch_add_act(const View& y, const View& u, const View& bias, const View& out, Activation activation,
                    double slope, cudaStream_t stream) {
  const std::int64_t count = y.n * y.c * y.h * y.w;
  if (count == 0) return;
  with_activation(activation, [&]<Activation A>() {
    add_act_kernel<T, A><<<blocks_for(count), 256, 0, stream>>>(y, u, bias, out, channels_last(out), count, T(slope));
  });
  check_launch("add_act");
}

template <class T>
void launch_backward(const View& grad, const View& h, const View& out, const View& bias, Activation activation,
                     double slope, cudaStream_t stream) {
  const std::int64_t count = h.n * h.c * h.h * h.w;
  with_activation(activation, [&]<Activation A>() {
    if (count > 0)
      add_act_backward_kernel<T, A>
          <<<blocks_for(count), 256, 0, stream>>>(grad, h, out, channels_last(out), count, T(slope));
    if (bias.data && h.c > 0) bias_grad_kernel<T, A><<<unsigned(h.c), 256, 0, stream>>>(grad, h, bias, T(slope));
  });
  check_launch("add_act_backward");
}

Tensor add_act(const Tensor& y, const std::optional<Tensor>& u, const std::optional<Tensor>& bias,
               const std::string& activation, double slope) {
  const OnDevice device(y);
  const View v = view_of(y, "y");
  const View vu = same_shape_view(u, "u", y, "y", v.n, v.c, v.h, v.w);
  const View b = bias_view(bias, y, "y", v.c);
  Tensor h = empty_4d(y, channels_last(v), v.n, v.c, v.h, v.w);
  const auto launch = v.dtype == DType::f64 ? launch_add_act<double> : launch_add_act<float>;
  launch(v, vu, b, view_of(h, "h"), activation_named(activation), slope, stream_of(y));
  return h;
}

std::tuple<Tensor, Tensor> add_act_backward(const Tensor& grad, const Tensor& h, const std::string& activation,
                                            double slope, bool needs_bias) {
  const OnDevice device(h);
  const View v = view_of(h, "h"), vg = same_shape_view(grad, "grad", h, "h", v.n, v.c, v.h, v.w);
  Tensor g = empty_4d(h, channels_last(v), v.n, v.c, v.h, v.w), grad_bias = empty_1d(h, needs_bias ? v.c : 0);
  const View bias = needs_bias ? View{grad_bias.data_ptr(), v.dtype, 1, v.c, 1, 1, 0, 1, 0, 0} : View{};
  const auto launch = v.dtype == DType::f64 ? launch_backward<double> : launch_backward<float>;
  launch(vg, v, view_of(g, "g"), bias, activation_named(activation), slope, stream_of(h));
  return {g, grad_bias};
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CUDA, m) {
  m.impl("add_act", TORCH_BOX(&lmser::add_act));
  m.impl("add_act_backward", TORCH_BOX(&lmser::add_act_backward));
}
