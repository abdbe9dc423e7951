// The shortest way from Python to a computation on the CPU: the arguments of an operator as they come from Python, read
// without PyTorch's dispatcher. Tensors are read through the table of DLPack's exchange protocol that torch.Tensor
// carries, and results made through it.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <optional>
#include <vector>

#include "cpu/output_store.h"
#include "tensor.h"

namespace lmser::direct {

// Whether PyTorch's table was found; without it every call is left to the dispatcher.
bool ready();
// Whether PyTorch's dispatcher would go straight to the CPU kernel for plain tensors: no mode, transform, trace or
// profile is active in this thread.
bool undisturbed();

// The arguments of a call, one after the other. Where one is not what the kernels take as it is, the call must be left
// to the operator, which either knows what to do or says what is wrong.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count) : next_(values), left_(count) {}

  bool require(bool condition) { return fit_ = fit_ && condition; }
  // Whether all arguments have been read and fit.
  bool complete() const { return fit_ && left_ == 0; }
  // The result, or a tuple of several; a list where a gradient has to be recorded for a tensor that was read.
  template <class... Results>
  pybind11::object give(Results&&... results) const {
    pybind11::tuple tuple = pybind11::make_tuple(std::forward<Results>(results)...);
    if (recorded()) return pybind11::list(tuple);
    if constexpr (sizeof...(results) == 1) return tuple[0];
    return tuple;
  }

  // (N, C, H, W) of the dtype of the first that was read, on the CPU, not empty.
  View tensor() { return read(take(), 4); }
  View maybe_tensor() {
    PyObject* const value = take();
    return value == Py_None ? View{} : read(value, 4);
  }
  // A number: of no dimension.
  View scalar() { return read_own(take(), 0); }
  // A sequence of such tensors.
  std::vector<View> tensors();
  // Dense bytes (N, H, W, C), not empty, on the CPU.
  struct Bytes {
    std::uint8_t* data = nullptr;
    std::array<std::int64_t, 4> size{};
  };
  Bytes bytes() { return read_bytes(take()); }
  // (C,)
  View maybe_bias() {
    PyObject* const value = take();
    return value == Py_None ? View{} : read(value, 1);
  }
  // A sequence of kernels (C_out, C_in, kh, kw), or (C_out, C_in) for 1x1; none for None. `flat`: which are 2-D.
  std::vector<View> kernels(std::vector<bool>* flat = nullptr);
  // A sequence of (C,).
  std::vector<View> biases();
  Pair pair(std::int64_t least);
  std::optional<Pair> maybe_pair(std::int64_t least);
  // One for all of `count`, or a list of one for each; nothing for None.
  std::optional<std::vector<Pair>> maybe_pairs(std::size_t count, std::int64_t least);
  std::int64_t integer(std::int64_t least);
  Activation activation();
  double number();
  bool flag();
  template <std::size_t N>
  std::array<bool, N> flags() {  // a list of them
    std::array<bool, N> found{};
    read_flags(found.data(), N);
    return found;
  }
  std::vector<char> flags(std::size_t count);
  // A result of this size can be made.
  bool require_size(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);
  // Of the dtype of the tensors, uninitialised, and the view of it; a large one from the output store.
  pybind11::object empty(bool last, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, View& view);
  pybind11::object empty(std::int64_t n, View& view);
  pybind11::object empty_scalar(View& view);
  pybind11::object empty_bytes(const std::array<std::int64_t, 4>& size, std::uint8_t*& data);
  // Like a kernel that was read: (C_out, C_in) where `flat`.
  pybind11::object empty_kernel(const View& like, bool flat, View& view);
  // Whether a gradient has to be recorded for a tensor that was read.
  bool recorded() const;

 private:
  PyObject* take() {
    if (!require(left_ > 0)) return Py_None;
    return --left_, *next_++;
  }
  Bytes read_bytes(PyObject* value);
  View read(PyObject* value, int dimensions, bool* flat = nullptr);  // kKernel: 4 or 2, which `flat` says
  // Of a tensor that was just made: neither a negated view nor one that a gradient is recorded for.
  View read_own(PyObject* value, int dimensions, bool* flat = nullptr);
  template <class F>
  bool each(PyObject* sequence, F&& f);
  template <class Flag>
  void read_flags(Flag* flags, std::size_t count);
  Pair pair_in(PyObject* value, std::int64_t least);
  using Sizes = std::array<std::int64_t, 4>;
  pybind11::object made(int dimensions, const Sizes& size, const Sizes& strides, View& view);
  static pybind11::object of_memory(std::size_t bytes, int dimensions, const Sizes& size, const Sizes& strides,
                                    std::uint8_t type_code, std::uint8_t type_bits);
  std::int64_t value_bytes() const { return dtype_ == DType::f64 ? 8 : dtype_ == DType::f32 ? 4 : 2; }

  static constexpr int kKernel = -1;

  PyObject* const* next_;
  Py_ssize_t left_;
  bool fit_ = true, requires_grad_ = false;
  bool any_ = false;  // tensor was read, the first of which has this dtype
  DType dtype_ = DType::f32;
};

// Adds the functions that have operators' names to the module; none where `ready` is false.
void add_functions(pybind11::module_& module);
void add_residual_functions(pybind11::module_& module);  // direct_residual.cpp
void add_reflect_functions(pybind11::module_& module);   // direct_reflect.cpp
void add_max_pool_functions(pybind11::module_& module);  // direct_max_pool.cpp

}  // namespace lmser::direct
