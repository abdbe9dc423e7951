#include "describe_plan.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>

#include "cpu/engine.h"
#include "cpu/filter_choice.h"
#include "cpu/narrow.h"

namespace py = pybind11;

namespace lmser {
namespace {

// Of an image, for each pair of channels.
double products_of(const ConvPlan& p) {
  return p.winograd.along_rows ? products_along_rows(p.geometry) : p.winograd.products();
}

using Four = std::array<std::int64_t, 4>;
using Two = std::array<std::int64_t, 2>;

py::dict plan(const std::string& op, const std::string& dtype, Four shape, Four weight, Two stride, Two padding,
              Two pool, Two output_size, bool channels_last, int threads) {
  const bool up = op == "conv2d_add_act";
  if (!up && op != "conv_transpose2d_add_act")
    throw py::value_error("op is '" + op + "'; expected conv2d_add_act or conv_transpose2d_add_act");
  Geometry g;
  g.transposed = !up;
  g.batch = shape[0], g.kernel_h = int(weight[2]), g.kernel_w = int(weight[3]);
  g.stride_h = int(stride[0]), g.stride_w = int(stride[1]), g.pad_h = int(padding[0]), g.pad_w = int(padding[1]);
  if (g.stride_h < 1 || g.stride_w < 1 || pool[0] < 1 || pool[1] < 1)
    throw py::value_error("stride and pool must be at least 1");
  g.in_c = up ? weight[1] : weight[0], g.out_c = up ? weight[0] : weight[1];
  g.in_h = up ? shape[2] / pool[0] : shape[2], g.in_w = up ? shape[3] / pool[1] : shape[3];
  g.out_h = up ? (g.in_h + 2 * g.pad_h - g.kernel_h) / g.stride_h + 1 : output_size[0];
  g.out_w = up ? (g.in_w + 2 * g.pad_w - g.kernel_w) / g.stride_w + 1 : output_size[1];
  if (g.out_h < 1 || g.out_w < 1) throw py::value_error("the output would be empty");
  const DType type = dtype == "float64"    ? DType::f64
                     : dtype == "float32"  ? DType::f32
                     : dtype == "bfloat16" ? DType::bf16
                                           : DType::f16;
  const bool wide = type == DType::f64, pools = up && pool[0] * pool[1] > 1;
  const ConvPlan p = inspect_conv(instruction_set(), threads, g, type, channels_last, pools);
  const double value = wide ? 8 : type == DType::f32 ? 4 : 2;
  py::dict d;
  const bool winograd = p.winograd.m > 0, stride1 = p.winograd.stride1();
  d["kernel"] =
      p.narrow  ? std::string(up ? "implicit product in tiles of bfloat16"
                                 : "sub-pixel implicit product in tiles of bfloat16 (stride^2 phases, no zeros "
                                    "multiplied)")
      : stride1 ? std::string(p.winograd.taps == 5 ? "minimal filtering (Winograd), F(2x2, 5x5)"
                                                   : "minimal filtering (Winograd), F(4x4, 3x3)")
      : winograd && p.winograd.taps == 5
          ? std::string("minimal filtering (Winograd), F(2, 3) on one phase of each axis and F(2, 2) on the other")
      : winograd ? "minimal filtering (Winograd), F(" + std::to_string(p.winograd.m) +
                       ", 2) on one phase of each axis and single taps on the other" +
                       (p.winograd.in_registers ? ", sums in registers" : "")
      : p.winograd.along_rows
          ? std::string(up ? "implicit product, F(3, 2) along rows of pixels"
                           : "sub-pixel implicit product, F(3, 2) along rows of pixels (no zeros multiplied)")
      : p.planar      ? std::string("implicit product, registers along rows of pixels (few output channels)")
      : p.unpacked    ? std::string(up ? "product of a few pixels, the weight as it lies"
                                       : "product of a few pixels, the weight as it lies, added where the kernel "
                                            "reaches")
      : p.dot         ? std::string("implicit product, registers along the depth (few output channels)")
      : p.sliding     ? std::string("implicit product, two rows of pixels in one tile")
      : p.four_phases ? std::string("sub-pixel implicit product, four phases in one tile (no zeros multiplied)")
                      : std::string(up ? "implicit product over channels-last pixels"
                                       : "sub-pixel implicit product (stride^2 phases, no zeros multiplied)");
  d["isa"] = instruction_set().name;
  d["tile"] = std::to_string(p.tile.pixels) + "x" + std::to_string(p.tile.max_vectors * p.tile.lanes);
  d["compute_dtype"] = wide ? "float64" : p.narrow ? "bfloat16 (sums in float32)" : "float32";
  d["phases"] = winograd ? std::size_t(1) : p.phases.size();
  const double direct = p.flops();
  d["products_of_direct"] =
      p.winograd.filters() ? 2.0 * double(g.batch) * products_of(p) * double(g.in_c) * double(g.out_c) / direct : 1.0;
  d["units"] = p.units;
  d["unit_images"] = p.unit_images;
  d["unit_rows"] = p.unit_rows;
  d["slab_bytes"] = p.slab_values * (wide ? 8 : p.narrow ? 2 : 4);
  d["packed_weight_bytes"] = p.packed_size * (wide ? 8 : 4);
  d["flops"] = p.flops();
  const double out =
      double(shape[0]) * double(g.out_c) * double(g.out_h) * double(g.out_w) * (up ? 1.0 : double(pool[0] * pool[1]));
  d["bytes"] = value * (double(shape[0]) * double(shape[1]) * double(shape[2]) * double(shape[3]) +
                        double(weight[0]) * double(weight[1]) * double(weight[2]) * double(weight[3]) + out);
  const double filled = double(g.out_c) / double(p.padded_out_c);
  d["register_fill"] = filled;
  const bool lies = channels_last && (p.narrow || value != 2) && !pools && reads_as_it_lies(p);
  const std::string staging = lies       ? std::string("; the input is read as it lies")
                              : p.planar ? "; input rows are turned to planes as they are wanted, into memory for " +
                                               std::to_string(p.planar_slots) + " of them"
                              : channels_last || (g.in_h == 1 && g.in_w == 1)
                                  ? "; input rows are staged once per unit into a padded slab in the second-level cache"
                                  : "; the plainly contiguous input is turned to channels-last while it is staged";
  const bool grouped = std::ranges::any_of(p.phases, [](const Phase& ph) { return ph.by_rows || ph.by_cols; });
  d["reason"] =
      (p.narrow
           ? std::string(narrow_tiles() == NarrowTiles::amx
                             ? "the processor multiplies bfloat16 in tiles (AMX), sixteen times as many a cycle as "
                               "float32 in registers"
                             : "tiles are emulated, as was asked for")
       : stride1 ? std::string(p.winograd.taps == 5 ? "5x5 at stride 1: 36 products for the direct sum's 100"
                                                    : "3x3 at stride 1: 36 products for the direct sum's 144") +
                       " pay for the transforms here; the direct sum is run instead where a result is not finite" +
                       (p.round_units ? std::string("; the weight is beyond the caches: ") +
                                            (p.own_rounds ? "each thread multiplies many tiles by it, "
                                                          : "threads share its points, ") +
                                            std::to_string(p.round_units) + " units a round"
                                      : "")
       : winograd ? std::string(p.winograd.taps == 5 ? "5x5" : "3x3") +
                        std::string(" at stride 2 with enough channels on both sides: fewer products than "
                                    "the direct sum, which is run "
                                    "instead where a result is not finite")
       : p.winograd.along_rows
           ? std::string("3x3 at stride 2: the outer taps of a kernel row take four products for every six, and "
                         "nothing but input and sums of all taps is transformed; the direct sum is run instead where "
                         "a result is not finite")
       : p.unpacked
           ? std::string("so few pixels that packing the weight, or comparing it with what was packed, would cost more "
                         "than it saves")
       : p.dot ? std::string("no more than half a register of output channels")
       : p.sliding || p.four_phases
           ? std::string(
                 "more than half a register of output channels, up to a whole one: an input that is read serves "
                 "the sums of several pixels")
           : std::string("the direct sum is the best compiled algorithm for this shape")) +
      (grouped ? "; pixels that meet the padding with the same taps go together, without those" : "") + staging;
  return d;
}

}  // namespace

void add_plan(py::module_& m) {
  m.def("plan", &plan, py::arg("op"), py::arg("dtype"), py::arg("shape"), py::arg("weight"), py::arg("stride"),
        py::arg("padding"), py::arg("pool"), py::arg("output_size"), py::arg("channels_last"), py::arg("threads"));
}

}  // namespace lmser
