// What every CUDA source takes its tensors to the device with: stream, device, errors, activation, values of any dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../tensor.h"
#include "device.cuh"

// The current stream belongs to the CUDA build of torch. Weak, so that the library also loads where there is none.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace lmser {

inline cudaStream_t stream_of(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA stream to run on");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}
// An error that was seen is forgotten: else the next launch would be blamed for it.
inline void check(cudaError_t error, const char* name, const char* what) {
  if (error != cudaSuccess) cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": ", what, ": ", cudaGetErrorString(error));
}
// Makes a device the current one for this scope. One that already is is left alone: setting it would begin its context.
struct OnDevice {
  int before = -1;
  explicit OnDevice(int index) {
    int current = 0;
    check(cudaGetDevice(&current), "device", "current");
    if (current == index) return;
    check(cudaSetDevice(index), "device", "change");
    before = current;
  }
  explicit OnDevice(const Tensor& t) : OnDevice(int(t.get_device_index())) {}
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    if (before >= 0) cudaSetDevice(before);
  }
};

template <class T>
__device__ T load(const void* base, DType type, std::int64_t i) {
  switch (type) {
    case DType::f32:
      return T(static_cast<const float*>(base)[i]);
    case DType::f64:
      return T(static_cast<const double*>(base)[i]);
    case DType::bf16:
      return T(__bfloat162float(static_cast<const __nv_bfloat16*>(base)[i]));
    default:
      return T(__half2float(static_cast<const __half*>(base)[i]));
  }
}
template <class T>
__device__ void store(void* base, DType type, std::int64_t i, T x) {
  switch (type) {
    case DType::f32:
      static_cast<float*>(base)[i] = float(x);
      break;
    case DType::f64:
      static_cast<double*>(base)[i] = double(x);
      break;
    case DType::bf16:
      static_cast<__nv_bfloat16*>(base)[i] = __float2bfloat16(float(x));
      break;
    default:
      static_cast<__half*>(base)[i] = __float2half(float(x));
      break;
  }
}

}  // namespace lmser
