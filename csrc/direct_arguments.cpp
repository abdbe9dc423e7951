#include "direct.h"

#include "dlpack.h"

#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace lmser::direct {
namespace py = pybind11;
namespace {

// What is used of torch, looked up once; never released, as the interpreter may be gone before static objects are.
struct Torch {
  const dlpack::ExchangeApi* exchange = nullptr;
  PyObject *tensor, *parameter;  // types
  PyObject *included, *raw, *function_mode, *profiler, *grad, *is_neg;
  PyObject* requires_grad;       // its name
  unsigned long long usual = 0;  // dispatch keys that are always included

  Torch() {
    try {
      find();
    } catch (const std::exception&) {  // another version of torch
      exchange = nullptr;
    }
  }
  void find() {
    const py::module_ torch = py::module_::import("torch");
    const py::object c = torch.attr("_C"), type = torch.attr("Tensor");
    tensor = py::object(type).release().ptr();
    parameter = py::object(torch.attr("nn").attr("Parameter")).release().ptr();
    const auto held = [](const py::object& o) { return py::object(o).release().ptr(); };
    included = held(c.attr("_dispatch_tls_local_include_set"));
    raw = held(c.attr("DispatchKeySet").attr("raw_repr"));
    function_mode = held(c.attr("_is_torch_function_mode_enabled"));
    profiler = held(c.attr("_autograd").attr("_profiler_enabled"));
    grad = held(torch.attr("is_grad_enabled"));
    is_neg = held(type.attr("is_neg"));
    requires_grad = held(py::str("requires_grad"));
    PyUnicode_InternInPlace(&requires_grad);
    const py::object keys = c.attr("DispatchKey"), set = c.attr("DispatchKeySet");
    for (const char* key : {"BackendSelect", "ADInplaceOrView"})
      usual |= set(keys.attr(key)).attr("raw_repr")().cast<unsigned long long>();
    const py::object capsule = type.attr("__dlpack_c_exchange_api__");
    const auto* const table =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw py::error_already_set();
    if (table->major_version == dlpack::kMajorVersion && table->view_from_python && table->managed_to_python)
      exchange = table;
  }
};
const Torch& torch() {
  static const Torch* const found = new Torch;
  return *found;
}

bool is_true(PyObject* function) {
  const py::object result = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(function));
  if (!result) throw py::error_already_set();
  return result.ptr() != Py_False;
}

}  // namespace

bool ready() { return torch().exchange != nullptr; }

bool undisturbed() {
  const Torch& t = torch();
  const py::object set = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(t.included));
  if (!set) throw py::error_already_set();
  const py::object keys = py::reinterpret_steal<py::object>(PyObject_CallOneArg(t.raw, set.ptr()));
  if (!keys) throw py::error_already_set();
  return (PyLong_AsUnsignedLongLongMask(keys.ptr()) & ~t.usual) == 0 && !is_true(t.function_mode) &&
         !is_true(t.profiler);
}

bool Arguments::recorded() const { return requires_grad_ && is_true(torch().grad); }

View Arguments::read(PyObject* value, int dimensions, bool* flat) {
  const Torch& t = torch();
  const View v = read_own(value, dimensions, flat);
  if (!fit_) return v;
  // A lazily negated view: its memory holds the values with the other sign.
  const py::object negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(t.is_neg, value));
  if (!negated) throw py::error_already_set();
  require(negated.ptr() == Py_False);
  if (!requires_grad_) {
    const py::object requires_grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(value, t.requires_grad));
    if (!requires_grad) throw py::error_already_set();
    requires_grad_ = requires_grad.ptr() == Py_True;
  }
  return v;
}
View Arguments::read_own(PyObject* value, int dimensions, bool* flat) {
  const Torch& t = torch();
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(value));
  if (!require(type == t.tensor || type == t.parameter)) return {};
  dlpack::Tensor d;
  if (t.exchange->view_from_python(value, &d) != 0) {  // one without strides, or without memory
    PyErr_Clear();
    return require(false), View{};
  }
  if (dimensions == kKernel) dimensions = d.dimensions == 2 ? 2 : 4;
  if (flat) *flat = dimensions == 2;
  if (!require(d.device_type == dlpack::kCPU && d.dimensions == dimensions && d.data &&
               (d.strides || dimensions == 0) && d.type_lanes == 1))
    return {};
  View v;
  v.data = static_cast<char*>(d.data) + d.byte_offset;
  if (d.type_code == dlpack::kFloat && d.type_bits == 32)
    v.dtype = DType::f32;
  else if (d.type_code == dlpack::kFloat && d.type_bits == 64)
    v.dtype = DType::f64;
  else if (d.type_code == dlpack::kBfloat && d.type_bits == 16)
    v.dtype = DType::bf16;
  else if (d.type_code == dlpack::kFloat && d.type_bits == 16)
    v.dtype = DType::f16;
  else
    return require(false), View{};
  if (!std::exchange(any_, true)) dtype_ = v.dtype;
  require(v.dtype == dtype_);
  for (int i = 0; i < dimensions; ++i) require(d.shape[i] > 0);
  if (dimensions == 4) {
    v.n = d.shape[0], v.c = d.shape[1], v.h = d.shape[2], v.w = d.shape[3];
    v.sn = d.strides[0], v.sc = d.strides[1], v.sh = d.strides[2], v.sw = d.strides[3];
  } else if (dimensions == 2) {
    v.n = d.shape[0], v.c = d.shape[1], v.h = v.w = 1;
    v.sn = d.strides[0], v.sc = d.strides[1], v.sh = v.sw = 1;
  } else {
    v.n = v.c = v.h = v.w = 1;
    if (dimensions == 1) v.c = d.shape[0], v.sc = d.strides[0];
  }
  return v;
}

Arguments::Bytes Arguments::read_bytes(PyObject* value) {
  const Torch& t = torch();
  dlpack::Tensor d;
  if (!require(reinterpret_cast<PyObject*>(Py_TYPE(value)) == t.tensor)) return {};
  if (t.exchange->view_from_python(value, &d) != 0) {
    PyErr_Clear();
    return require(false), Bytes{};
  }
  if (!require(d.device_type == dlpack::kCPU && d.dimensions == 4 && d.data && d.strides && d.type_lanes == 1 &&
               d.type_code == dlpack::kUInt && d.type_bits == 8))
    return {};
  Bytes found;
  std::int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    require(d.shape[i] > 0 && (d.shape[i] == 1 || d.strides[i] == stride));
    stride *= found.size[std::size_t(i)] = d.shape[i];
  }
  found.data = static_cast<std::uint8_t*>(d.data) + d.byte_offset;
  return found;
}

template <class F>
bool Arguments::each(PyObject* sequence, F&& f) {
  const bool list = PyList_CheckExact(sequence);
  if (!require(list || PyTuple_CheckExact(sequence))) return false;
  const Py_ssize_t count = list ? PyList_GET_SIZE(sequence) : PyTuple_GET_SIZE(sequence);
  for (Py_ssize_t i = 0; i < count && fit_; ++i) f(list ? PyList_GET_ITEM(sequence, i) : PyTuple_GET_ITEM(sequence, i));
  return fit_;
}
std::vector<View> Arguments::kernels(std::vector<bool>* flat) {
  std::vector<View> views;
  PyObject* const value = take();
  if (value == Py_None) return views;
  each(value, [&](PyObject* t) {
    bool two = false;
    views.push_back(read(t, kKernel, &two));
    if (flat) flat->push_back(two);
  });
  require(!views.empty());
  return views;
}
std::vector<View> Arguments::tensors() {
  std::vector<View> views;
  each(take(), [&](PyObject* t) { views.push_back(read(t, 4)); });
  return views;
}
std::vector<View> Arguments::biases() {
  std::vector<View> views;
  each(take(), [&](PyObject* t) { views.push_back(read(t, 1)); });
  return views;
}

Pair Arguments::pair(std::int64_t least) { return pair_in(take(), least); }
std::optional<Pair> Arguments::maybe_pair(std::int64_t least) {
  PyObject* const value = take();
  if (value == Py_None) return std::nullopt;
  return pair_in(value, least);
}
Pair Arguments::pair_in(PyObject* value, std::int64_t least) {
  PyObject *first = value, *second = value;
  if (PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2)
    first = PyTuple_GET_ITEM(value, 0), second = PyTuple_GET_ITEM(value, 1);
  else if (PyList_CheckExact(value) && PyList_GET_SIZE(value) == 2)
    first = PyList_GET_ITEM(value, 0), second = PyList_GET_ITEM(value, 1);
  if (!require(PyLong_CheckExact(first) && PyLong_CheckExact(second))) return {1, 1};
  int overflow[2];
  const long h = PyLong_AsLongAndOverflow(first, &overflow[0]), w = PyLong_AsLongAndOverflow(second, &overflow[1]);
  if (!require(!overflow[0] && !overflow[1] && h >= least && w >= least && h <= kMostOfPair && w <= kMostOfPair))
    return {1, 1};
  return {int(h), int(w)};
}

std::optional<std::vector<Pair>> Arguments::maybe_pairs(std::size_t count, std::int64_t least) {
  PyObject* const value = take();
  if (value == Py_None) return std::nullopt;
  if (!PyList_CheckExact(value)) return std::vector<Pair>(count, pair_in(value, least));
  std::vector<Pair> pairs;
  each(value, [&](PyObject* p) { pairs.push_back(pair_in(p, least)); });
  require(pairs.size() == count);
  return pairs;
}
std::int64_t Arguments::integer(std::int64_t least) {
  PyObject* const value = take();
  if (!require(PyLong_CheckExact(value))) return least;
  int overflow = 0;
  const long long found = PyLong_AsLongLongAndOverflow(value, &overflow);
  return require(!overflow && found >= least) ? found : least;
}

Activation Arguments::activation() {
  PyObject* const value = take();
  if (require(PyUnicode_CheckExact(value)))
    for (int i = 0; i < kActivations; ++i)
      if (PyUnicode_CompareWithASCIIString(value, kActivationNames[i]) == 0) return Activation(i);
  return require(false), Activation::identity;
}

double Arguments::number() {
  PyObject* const value = take();
  return require(PyFloat_CheckExact(value)) ? PyFloat_AS_DOUBLE(value) : 0;
}

bool Arguments::flag() {
  PyObject* const value = take();
  require(value == Py_True || value == Py_False);
  return value == Py_True;
}

template <class Flag>
void Arguments::read_flags(Flag* flags, std::size_t count) {
  PyObject* const value = take();
  if (!require(PyList_CheckExact(value) && PyList_GET_SIZE(value) == Py_ssize_t(count))) return;
  for (std::size_t i = 0; i < count; ++i) {
    PyObject* const flag = PyList_GET_ITEM(value, Py_ssize_t(i));
    require(flag == Py_True || flag == Py_False);
    flags[i] = flag == Py_True;
  }
}
template void Arguments::read_flags(bool* flags, std::size_t count);
std::vector<char> Arguments::flags(std::size_t count) {
  std::vector<char> found(count);
  read_flags(found.data(), count);
  return found;
}

bool Arguments::require_size(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  std::int64_t bytes = value_bytes();
  for (const std::int64_t s : {n, c, h, w})
    if (!require(s > 0 && !__builtin_mul_overflow(bytes, s, &bytes))) return false;
  return true;
}
py::object Arguments::made(int dimensions, const Sizes& size, const Sizes& strides, View& view) {
  const std::int64_t values =
      std::accumulate(size.begin(), size.begin() + dimensions, std::int64_t(1), std::multiplies());
  py::object result =
      of_memory(std::size_t(value_bytes() * values), dimensions, size, strides,
                dtype_ == DType::bf16 ? dlpack::kBfloat : dlpack::kFloat, std::uint8_t(8 * value_bytes()));
  view = read_own(result.ptr(), dimensions);
  if (!fit_) throw std::runtime_error("PyTorch did not make a plain tensor of memory");
  return result;
}
// A tensor of memory of ours: asking a tensor's methods for one takes about a microsecond more, which small layers
// feel.
py::object Arguments::of_memory(std::size_t bytes, int dimensions, const Sizes& size, const Sizes& strides,
                                std::uint8_t type_code, std::uint8_t type_bits) {
  struct Owner {
    dlpack::ManagedTensor managed{};
    Sizes size, strides;
    output_store::Piece piece;
    Owner(std::size_t bytes, const Sizes& n, const Sizes& step)
        : size(n), strides(step), piece(output_store::take(bytes)) {}
    ~Owner() { output_store::give(piece); }
  };
  auto owner = std::make_unique<Owner>(bytes, size, strides);
  dlpack::ManagedTensor& m = owner->managed;
  m.major_version = dlpack::kMajorVersion;
  m.context = owner.get();
  m.deleter = [](dlpack::ManagedTensor* self) { delete static_cast<Owner*>(self->context); };
  m.tensor = {owner->piece.data,  dlpack::kCPU,          0, dimensions, type_code, type_bits, 1,
              owner->size.data(), owner->strides.data(), 0};
  void* object = nullptr;
  if (torch().exchange->managed_to_python(&m, &object) != 0) throw py::error_already_set();
  static_cast<void>(owner.release());  // the tensor's
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}
py::object Arguments::empty_bytes(const Sizes& size, std::uint8_t*& data) {
  const std::int64_t c = size[3], w = size[2] * c, h = size[1] * w;
  const Sizes strides{h, w, c, 1};
  const py::object result = of_memory(std::size_t(size[0] * h), 4, size, strides, dlpack::kUInt, 8);
  data = read_bytes(result.ptr()).data;
  if (!fit_) throw std::runtime_error("PyTorch did not make a plain tensor of bytes");
  return result;
}
py::object Arguments::empty(bool last, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, View& view) {
  const std::int64_t pixel = last ? c : 1;  // from one to the next of a row
  return made(4, {n, c, h, w}, {c * h * w, last ? 1 : h * w, w * pixel, pixel}, view);
}
py::object Arguments::empty(std::int64_t n, View& view) { return made(1, {n}, {1}, view); }
py::object Arguments::empty_scalar(View& view) {
  if (dtype_ != DType::bf16) return made(0, {}, {}, view);
  py::object result = of_memory(sizeof(float), 0, {}, {}, dlpack::kFloat, 32);
  dlpack::Tensor d;
  if (torch().exchange->view_from_python(result.ptr(), &d) != 0) throw py::error_already_set();
  view = {static_cast<char*>(d.data) + d.byte_offset, DType::f32, 1, 1, 1, 1, 0, 0, 0, 0};
  return result;
}
py::object Arguments::empty_kernel(const View& like, bool flat, View& view) {
  return flat ? made(2, {like.n, like.c}, {like.c, 1}, view) : empty(false, like.n, like.c, like.h, like.w, view);
}

}  // namespace lmser::direct
