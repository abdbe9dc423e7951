// Max pooling and its two linear maps, with the arguments of their operators.
#include "direct_call.h"

namespace lmser::direct {
namespace py = pybind11;
namespace {

// What follows the size of what is pooled: windows, activation and slope. The small side and its places.
struct Windows {
  PoolCall call;
  std::int64_t h = 0, w = 0;
  Windows(Arguments& a, std::int64_t big_h, std::int64_t big_w) {
    const Pair k = a.pair(1), s = a.pair(1), p = a.pair(0);
    call.kernel_h = k.h, call.kernel_w = k.w, call.stride_h = s.h, call.stride_w = s.w;
    call.pad_h = p.h, call.pad_w = p.w;
    call.activation = a.activation(), call.slope = a.number();
    if (!a.require(std::int64_t(k.h) * k.w <= PoolCall::kMostPlaces && 2 * p.h <= k.h && 2 * p.w <= k.w &&
                   big_h + 2 * p.h >= k.h && big_w + 2 * p.w >= k.w))
      return;
    call.big.h = big_h, call.big.w = big_w;
    h = call.small_h(), w = call.small_w();
  }
  // Of the linear maps: places, and what f' is read from.
  void take(Arguments& a, const Arguments::Bytes& places, const View& output, std::int64_t n, std::int64_t c) {
    a.require(places.size == std::array<std::int64_t, 4>{n, h, w, c});
    call.places = places.data;
    if (call.activation == Activation::identity) return;
    a.require(output && shaped(output, n, c, h, w));
    call.output = output;
  }
};

// (h, places) of x
py::object max_pool2d_act(Arguments& a) {
  const View x = a.tensor();
  Windows windows(a, x.h, x.w);
  PoolCall& call = windows.call;
  a.require_size(x.n, x.c, windows.h, windows.w);
  if (!a.complete()) return py::none();
  call.big = x;
  const py::object h = a.empty(channels_last(x), x.n, x.c, windows.h, windows.w, call.small),
                   places = a.empty_bytes({x.n, windows.h, windows.w, x.c}, call.places);
  {
    const py::gil_scoped_release release;
    run_max_pool(instruction_set(), torch_pool(), call);
  }
  return a.give(h, places);
}

py::object max_unpool2d(Arguments& a) {
  const View z = a.tensor();
  const Arguments::Bytes places = a.bytes();
  const View output = a.maybe_tensor();
  const Pair size = a.pair(1);
  Windows windows(a, size.h, size.w);
  PoolCall& call = windows.call;
  windows.take(a, places, output, z.n, z.c);
  a.require(z.h == windows.h && z.w == windows.w);
  a.require_size(z.n, z.c, size.h, size.w);
  if (!a.complete()) return py::none();
  // Of a map of one pixel the layout cannot be told: the places' own.
  const bool last = channels_last(z) || z.h * z.w == 1;
  py::object x = a.empty(last, z.n, z.c, size.h, size.w, call.big);
  call.small = z;
  {
    const py::gil_scoped_release release;
    run_max_unpool(instruction_set(), torch_pool(), call);
  }
  return a.give(std::move(x));
}

py::object max_select2d(Arguments& a) {
  const View x = a.tensor();
  const Arguments::Bytes places = a.bytes();
  const View output = a.maybe_tensor();
  Windows windows(a, x.h, x.w);
  PoolCall& call = windows.call;
  windows.take(a, places, output, x.n, x.c);
  a.require_size(x.n, x.c, windows.h, windows.w);
  if (!a.complete()) return py::none();
  call.big = x;
  py::object z = a.empty(channels_last(x), x.n, x.c, windows.h, windows.w, call.small);
  {
    const py::gil_scoped_release release;
    run_max_select(instruction_set(), torch_pool(), call);
  }
  return a.give(std::move(z));
}

}  // namespace

void add_max_pool_functions(py::module_& module) {
  static PyMethodDef methods[] = {method<max_pool2d_act>("max_pool2d_act"),
                                  method<max_unpool2d>("max_unpool2d"),
                                  method<max_select2d>("max_select2d"),
                                  {}};
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace lmser::direct
