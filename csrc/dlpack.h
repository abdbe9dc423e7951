// Of DLPack 1.3 (github.com/dmlc/dlpack, include/dlpack/dlpack.h) what reads a tensor without owning it and what makes
// one of memory: PyTorch's own copy of that header cannot be included beside its stable ABI.
#pragma once

#include <cstdint>

namespace lmser::dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;  // within which the layouts below stay

enum DeviceType : std::int32_t { kCPU = 1 };
enum TypeCode : std::uint8_t { kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t dimensions;
  std::uint8_t type_code, type_bits;
  std::uint16_t type_lanes;
  std::int64_t *shape, *strides;  // strides in elements
  std::uint64_t byte_offset;
};

// A tensor that owns its memory until `deleter` is called with it.
struct ManagedTensor {
  std::uint32_t major_version, minor_version;
  void* context;
  void (*deleter)(ManagedTensor* self);
  std::uint64_t flags;
  Tensor tensor;
};

// What a tensor type has as `__dlpack_c_exchange_api__`, a capsule named "dlpack_exchange_api".
struct ExchangeApi {
  std::uint32_t major_version, minor_version;
  ExchangeApi* previous;  // an older version's
  void *allocate, *managed_from_python;
  // A new object that owns the tensor; -1 with a Python exception.
  int (*managed_to_python)(ManagedTensor* tensor, void** object);
  // Fills in a view that lives as long as the object stays as it is; -1 with a Python exception where it has none.
  // May be null.
  int (*view_from_python)(void* object, Tensor* view);
  void* current_stream;
};

}  // namespace lmser::dlpack
