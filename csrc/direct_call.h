// What functions of the module that read their arguments by `direct::Arguments` are written with.
#pragma once

#include "cpu/tied_conv.h"
#include "cpu/torch_pool.h"
#include "direct.h"

namespace lmser::direct {

inline bool shaped(const View& v, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  return !v || (v.n == n && v.c == c && v.h == h && v.w == w);
}
inline bool alike(const View& v, const View& other) { return shaped(v, other.n, other.c, other.h, other.w); }

// Of a convolution from x (after pooling by `pool`), or none where x, the weight and the settings do not go together.
inline Geometry edge(Arguments& a, const View& x, const View& w, Pair stride, Pair padding, Pair pool) {
  const std::int64_t height = x.h / pool.h, width = x.w / pool.w;
  if (!a.require(x.c == w.c && height > 0 && width > 0 && height + 2 * padding.h >= w.h &&
                 width + 2 * padding.w >= w.w))
    return {};
  return conv_geometry(x.n, x.c, height, width, w.n, w.h, w.w, stride, padding);
}
// The same from its small side z, for a big side of `size` or the smallest.
inline Geometry edge_below(Arguments& a, const View& z, const View& w, Pair stride, Pair padding,
                           std::optional<Pair> size) {
  const std::int64_t height = size ? size->h : (z.h - 1) * stride.h - 2 * padding.h + w.h,
                     width = size ? size->w : (z.w - 1) * stride.w - 2 * padding.w + w.w;
  if (!a.require(z.c == w.n && height > 0 && width > 0 && height <= kMostOfPair && width <= kMostOfPair &&
                 height + 2 * padding.h >= w.h && width + 2 * padding.w >= w.w))
    return {};
  const Geometry g = conv_geometry(z.n, w.c, height, width, w.n, w.h, w.w, stride, padding);
  a.require(g.out_h == z.h && g.out_w == z.w);
  return g;
}
inline Source gated(const View& z, const View& gate, double slope) {
  Source s = source_of(z);
  s.gate = gate, s.gate_slope = slope;
  return s;
}
inline bool slope_fits(double slope) { return slope >= 0 && slope <= 1e300; }

inline void run(const Geometry& g, const Source& source, const Sink& sink, const View& w, const View& bias) {
  const pybind11::gil_scoped_release release;
  run_conv(instruction_set(), torch_pool(), g, source, sink, w, bias);
}

template <pybind11::object (*function)(Arguments&)>
PyObject* call(PyObject*, PyObject* const* values, Py_ssize_t count) noexcept {
  try {
    if (!undisturbed()) Py_RETURN_NONE;
    Arguments arguments(values, count);
    return function(arguments).release().ptr();
  } catch (const std::bad_alloc&) {  // the operator says what could not be had
    Py_RETURN_NONE;
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <pybind11::object (*function)(Arguments&)>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call<function>)), METH_FASTCALL,
          "The operator's results without the dispatcher, in a list if they are to be recorded; None if not for this "
          "call."};
}

}  // namespace lmser::direct
