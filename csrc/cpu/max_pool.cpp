// max_pool2d_act, and the two linear maps it is for fixed winners: max_unpool2d (their transposes' pass down, and
// its backward) and max_select2d (the derivative of that).
#include "../tensor.h"
#include "torch_pool.h"

namespace lmser {
namespace {

PoolCall windows(const View& big, const Ints& kernel, const Ints& stride, const Ints& padding,
                 const std::string& activation, double slope) {
  const Pair k = pair_of(kernel, "kernel_size", 1), s = pair_of(stride, "stride", 1),
             p = pair_of(padding, "padding", 0);
  STD_TORCH_CHECK(std::int64_t(k.h) * k.w <= PoolCall::kMostPlaces, "kernel_size (", k.h, ", ", k.w, ") has ",
                  std::int64_t(k.h) * k.w, " places; expected at most ", PoolCall::kMostPlaces);
  STD_TORCH_CHECK(2 * p.h <= k.h && 2 * p.w <= k.w, "padding (", p.h, ", ", p.w,
                  ") must be at most half of kernel_size (", k.h, ", ", k.w, ")");
  STD_TORCH_CHECK(big.h >= 1 && big.w >= 1, "what is pooled must have at least one pixel; got a map of (", big.h, ", ",
                  big.w, ")");  // else a window could hold padding alone
  STD_TORCH_CHECK(big.h + 2 * p.h >= k.h && big.w + 2 * p.w >= k.w, "the window (", k.h, ", ", k.w,
                  ") is larger than the padded input (", big.h + 2 * p.h, ", ", big.w + 2 * p.w, ")");
  PoolCall call;
  call.big = big;
  call.kernel_h = k.h, call.kernel_w = k.w, call.stride_h = s.h, call.stride_w = s.w, call.pad_h = p.h,
  call.pad_w = p.w;
  call.activation = activation_named(activation), call.slope = slope;
  return call;
}

Tensor empty_places(const Tensor& like, std::int64_t n, std::int64_t h, std::int64_t w, std::int64_t c) {
  const std::int64_t size[] = {n, h, w, c};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(size, 4), ScalarType::Byte, std::nullopt,
                              like.device());
}
std::uint8_t* checked_places(const Tensor& places, const PoolCall& call) {
  const std::int64_t h = call.small_h(), w = call.small_w(), c = call.big.c;
  STD_TORCH_CHECK(places.scalar_type() == ScalarType::Byte && places.is_cpu(), "places must be uint8 on the CPU");
  STD_TORCH_CHECK(places.dim() == 4 && places.size(0) == call.big.n && places.size(1) == h && places.size(2) == w &&
                      places.size(3) == c && places.is_contiguous(),
                  "places has shape ", shape_text(places), "; expected a contiguous (", call.big.n, ", ", h, ", ", w,
                  ", ", c, ")");
  return static_cast<std::uint8_t*>(places.data_ptr());
}
void put_output(PoolCall& call, const std::optional<Tensor>& h, const Tensor& first, const char* first_name) {
  if (call.activation == Activation::identity) return;
  STD_TORCH_CHECK(h.has_value(), "h is missing, which the derivative of the activation is read from");
  call.output = same_shape_view(h, "h", first, first_name, call.big.n, call.big.c, call.small_h(), call.small_w());
}

std::tuple<Tensor, Tensor> max_pool2d_act(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                                          const std::string& activation, double slope) {
  const View v = view_of(x, "x");
  PoolCall call = windows(v, kernel, stride, padding, activation, slope);
  Tensor h = empty_4d(x, channels_last(v), v.n, v.c, call.small_h(), call.small_w());
  Tensor places = empty_places(x, v.n, call.small_h(), call.small_w(), v.c);
  call.small = view_of(h, "h");
  call.places = static_cast<std::uint8_t*>(places.data_ptr());
  run_max_pool(instruction_set(), torch_pool(), call);
  return {h, places};
}

Tensor max_unpool2d(const Tensor& z, const Tensor& places, const std::optional<Tensor>& h, const Ints& output_size,
                    const Ints& kernel, const Ints& stride, const Ints& padding, const std::string& activation,
                    double slope) {
  const View v = view_of(z, "z");
  STD_TORCH_CHECK(output_size.size() == 2, "output_size has ", output_size.size(), " values; expected 2");
  const std::int64_t big_h = output_size[0], big_w = output_size[1];
  // Of a map of one pixel the layout cannot be told: the places' own.
  const bool last = channels_last(v) || (v.h * v.w == 1 && v.n * v.c > 0);
  Tensor x = empty_4d(z, last, v.n, v.c, big_h, big_w);
  PoolCall call = windows(view_of(x, "x"), kernel, stride, padding, activation, slope);
  STD_TORCH_CHECK(v.h == call.small_h() && v.w == call.small_w(), "z has shape ", shape_text(z),
                  ", but pooling output_size (", big_h, ", ", big_w, ") gives (", call.small_h(), ", ", call.small_w(),
                  ")");
  call.small = v;
  call.places = checked_places(places, call);
  put_output(call, h, z, "z");
  run_max_unpool(instruction_set(), torch_pool(), call);
  return x;
}

Tensor max_select2d(const Tensor& x, const Tensor& places, const std::optional<Tensor>& h, const Ints& kernel,
                    const Ints& stride, const Ints& padding, const std::string& activation, double slope) {
  const View v = view_of(x, "x");
  PoolCall call = windows(v, kernel, stride, padding, activation, slope);
  call.places = checked_places(places, call);
  put_output(call, h, x, "x");
  Tensor z = empty_4d(x, channels_last(v), v.n, v.c, call.small_h(), call.small_w());
  call.small = view_of(z, "z");
  run_max_select(instruction_set(), torch_pool(), call);
  return z;
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) {
  m.impl("max_pool2d_act", TORCH_BOX(&lmser::max_pool2d_act));
  m.impl("max_unpool2d", TORCH_BOX(&lmser::max_unpool2d));
  m.impl("max_select2d", TORCH_BOX(&lmser::max_select2d));
}
