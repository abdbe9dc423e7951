// Every operator of the library, by schema. Implementations register themselves per device; fakes, autograd and
// autocast are Python's (lmser_kernels/*/ops.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lmser, m) {
  m.def(
      "conv2d_add_act(Tensor x, Tensor weight, Tensor? add, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] "
      "pool, str activation, "
      "float slope, bool drive) -> (Tensor, Tensor)");
  m.def(
      "conv2d_add_act_backward(Tensor? grad, Tensor? grad_drive, Tensor h, Tensor x, Tensor weight, SymInt[] stride, "
      "SymInt[] padding, "
      "SymInt[] pool, str activation, float slope, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "conv_transpose2d_add_act(Tensor z, Tensor weight, Tensor? add, Tensor? bias, Tensor? gate, SymInt[] stride, "
      "SymInt[] padding, "
      "SymInt[] output_size, SymInt[] upsample, str activation, float slope, bool drive, float gate_slope, Tensor? "
      "input_gate, float input_slope, bool spread) -> (Tensor, Tensor)");
  m.def(
      "conv_transpose2d_add_act_backward(Tensor? grad, Tensor? grad_drive, Tensor h, Tensor z, Tensor weight, Tensor? "
      "gate, SymInt[] stride, "
      "SymInt[] padding, SymInt[] upsample, str activation, float slope, bool[] needs, float gate_slope, "
      "Tensor? input_gate, float input_slope, bool spread) -> "
      "(Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def("tied_conv2d(Tensor x, Tensor z, Tensor weight, SymInt[] stride, SymInt[] padding) -> (Tensor, Tensor)");
  m.def(
      "tied_conv2d_weight_grad(Tensor x, Tensor grad_y, Tensor? grad_u, Tensor? z, SymInt[] kernel_size, SymInt[] "
      "stride, SymInt[] padding) "
      "-> Tensor");
  m.def("add_act(Tensor y, Tensor? u, Tensor? bias, str activation, float slope) -> Tensor");
  m.def("add_act_backward(Tensor grad, Tensor h, str activation, float slope, bool needs_bias) -> (Tensor, Tensor)");
  m.def(
      "max_pool2d_act(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, str activation, float slope) "
      "-> "
      "(Tensor, Tensor)");
  m.def(
      "max_unpool2d(Tensor z, Tensor places, Tensor? h, SymInt[] output_size, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, str activation, float slope) -> Tensor");
  m.def(
      "max_select2d(Tensor x, Tensor places, Tensor? h, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, str "
      "activation, float slope) -> Tensor");
  m.def(
      "settle_step(Tensor? below, Tensor? above, Tensor? weight_below, Tensor? weight_above, Tensor? bias, Tensor? "
      "evidence, Tensor? hold, Tensor? previous, SymInt[] padding, SymInt[] padding_above, SymInt[] pool, SymInt[] "
      "upsample, str activation, float slope) -> (Tensor, Tensor)");
  m.def(
      "settle(Tensor[] states, Tensor[] weights, Tensor[] reverse_weights, Tensor[] biases, Tensor? evidence, Tensor? "
      "hold, Tensor? external, SymInt[] pools, SymInt[] padding, str activation, float slope, str order, float theta, "
      "SymInt max_steps, bool per_sample, bool keep, bool half, bool readouts, float adjoint_theta, SymInt "
      "adjoint_max_steps, "
      "str unconverged) -> (Tensor[], Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "settle_backward(Tensor[] grad_states, Tensor grad_readouts, Tensor[] states, Tensor[] weights, Tensor[] "
      "reverse_weights, Tensor? evidence, Tensor? hold, bool external, Tensor readouts, Tensor trajectory, SymInt[] "
      "pools, SymInt[] padding, str activation, float slope, str order, bool[] needs) -> Tensor[]");
  m.def(
      "settle_adjoint(Tensor[] grad_states, Tensor grad_readout, Tensor[] states, Tensor[] weights, Tensor[] "
      "reverse_weights, Tensor? evidence, Tensor? hold, bool external, Tensor readout, SymInt[] pools, SymInt[] "
      "padding, str activation, float slope, str order, float theta, SymInt max_steps, bool[] needs) -> (Tensor[], "
      "Tensor, Tensor)");
  m.def(
      "reflect(Tensor x, Tensor[] weights, Tensor[] decoder_weights, Tensor[] biases, Tensor? noise, SymInt[] stride, "
      "SymInt[] padding, int[] linear, bool paired, int reflections, str activation, float slope, bool keep) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "reflect_backward(Tensor? grad_reconstruction, Tensor? grad_code, Tensor x, Tensor[] weights, Tensor[] "
      "decoder_weights, Tensor states, SymInt[] stride, SymInt[] padding, int[] linear, bool paired, int reflections, "
      "str activation, float slope, bool[] needs) -> Tensor[]");
  m.def(
      "reflect_loss(Tensor x, Tensor? target, Tensor[] weights, Tensor[] decoder_weights, Tensor[] biases, Tensor? "
      "noise, SymInt[] stride, SymInt[] padding, int[] linear, bool paired, int reflections, str activation, float "
      "slope, bool[] needs) -> (Tensor, Tensor[])");
  // Fully connected networks on the GPU, a whole solve in one launch (csrc/cuda/settle.cu).
  m.def(
      "settle_persistent(Tensor[] states, Tensor[] weights, Tensor[] reverse_weights, Tensor[] biases, Tensor? "
      "evidence, "
      "Tensor? hold, Tensor? external, str activation, float slope, str order, float theta, SymInt max_steps, bool "
      "per_sample, bool keep, bool half, bool readouts) -> (Tensor[], Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "settle_adjoint_persistent(Tensor[] grad_states, Tensor grad_readout, Tensor[] states, Tensor[] weights, "
      "Tensor[] "
      "reverse_weights, Tensor? hold, Tensor readout, str activation, float slope, str order, float theta, SymInt "
      "max_steps) -> (Tensor[], Tensor, Tensor, Tensor)");
  m.def(
      "settle_backward_persistent(Tensor[] grad_states, Tensor grad_readouts, Tensor[] states, Tensor[] weights, "
      "Tensor[] "
      "reverse_weights, Tensor? evidence, Tensor? hold, Tensor readouts, Tensor trajectory, str activation, float "
      "slope, "
      "str order, bool want_states, bool want_evidence) -> (Tensor[], Tensor[], Tensor[], Tensor, Tensor)");
}
