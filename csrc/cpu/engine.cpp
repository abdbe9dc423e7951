#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

namespace lmser {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> allocate(std::int64_t values) {
  const std::size_t bytes = (std::size_t(std::max<std::int64_t>(values, 1)) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (!p) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

template <class T>
const Kernels<T>& kernels_of(const InstructionSet& isa) {
  if constexpr (sizeof(T) == 4)
    return isa.f32;
  else
    return isa.f64;
}

// ---- layout normalisation -------------------------------------------------------------------------------

// The stride of (n, h, w) seen as one axis of pixels, where there is one.
std::optional<std::int64_t> pixel_stride(const View& v) {
  std::int64_t stride = 0, count = 1;
  for (auto [size, s] : {std::pair{v.w, v.sw}, std::pair{v.h, v.sh}, std::pair{v.n, v.sn}}) {
    if (size == 1) continue;
    if (count > 1 && s != stride * count) return std::nullopt;
    if (count == 1) stride = s;
    count *= size;
  }
  return count == 1 ? v.c : stride;
}
template <class F>
void for_views(Source& s, F&& f) {
  for (View* v : {&s.base, &s.output, &s.gate, &s.extra})
    if (*v) f(*v);
}
template <class F>
void for_views(Sink& s, F&& f) {
  for (View* v : {&s.out, &s.drive, &s.add, &s.gate})
    if (*v) f(*v);
}
void merge_pixels(View& v) {
  const std::int64_t stride = *pixel_stride(v), pixels = v.n * v.h * v.w;
  v.sn = stride * pixels, v.n = 1, v.h = pixels, v.sh = stride, v.w = 1, v.sw = v.c;
}
void swap_axes(View& v) { std::swap(v.h, v.w), std::swap(v.sh, v.sw); }

// Pixels of a pointwise convolution (a fully connected layer among them) become rows of one image; a height-1
// signal is turned so that its length runs along rows. Both give units of work along the long axis.
template <class... Parts>
void normalise(Geometry& g, Parts&... parts) {
  bool mergeable = g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 &&
                   g.pad_w == 0 && g.in_h == g.out_h && g.in_w == g.out_w && g.batch * g.out_h * g.out_w > 0;
  const auto same_pixels = [&](View& v) {
    mergeable = mergeable && v.h == g.in_h && v.w == g.in_w && pixel_stride(v).has_value();
  };
  (for_views(parts, same_pixels), ...);
  if (mergeable) {
    (for_views(parts, merge_pixels), ...);
    g.in_h = g.out_h = g.batch * g.out_h * g.out_w;
    g.in_w = g.out_w = g.batch = 1;
    return;
  }
  bool flat = g.kernel_h == 1 && g.stride_h == 1 && g.pad_h == 0 && g.in_h == 1 && g.out_h == 1;
  const auto one_row = [&](View& v) { flat = flat && v.h == 1; };
  (for_views(parts, one_row), ...);
  if (flat) {
    (for_views(parts, swap_axes), ...);
    std::swap(g.in_h, g.in_w), std::swap(g.out_h, g.out_w);
    std::swap(g.kernel_h, g.kernel_w), std::swap(g.stride_h, g.stride_w), std::swap(g.pad_h, g.pad_w);
    const auto turn = [](auto& part) {
      if constexpr (std::is_same_v<std::decay_t<decltype(part)>, Source>)
        std::swap(part.pool_h, part.pool_w);
      else
        std::swap(part.upsample_h, part.upsample_w);
    };
    (turn(parts), ...);
  }
}

// ---- weights --------------------------------------------------------------------------------------------

float bf16_value(std::uint16_t b) {
  const std::uint32_t bits = std::uint32_t(b) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <class T>
T value_at(const View& v, std::int64_t i) {
  switch (v.dtype) {
    case DType::f32:
      return T(static_cast<const float*>(v.data)[i]);
    case DType::f64:
      return T(static_cast<const double*>(v.data)[i]);
    case DType::bf16:
      return T(bf16_value(static_cast<const std::uint16_t*>(v.data)[i]));
    case DType::f16:
      return T(float(static_cast<const _Float16*>(v.data)[i]));
  }
  __builtin_unreachable();
}
template <class T>
constexpr DType kDTypeOf = sizeof(T) == 4 ? DType::f32 : DType::f64;

// The weight as dense values of T, (C_out, C_in, kh, kw): itself, or a converted copy held by `copy`.
template <class T>
const T* dense_weight(const View& w, Buffer<T>& copy) {
  const bool dense = w.dtype == kDTypeOf<T> && (w.sw == 1 || w.w == 1) && (w.sh == w.w || w.h == 1) &&
                     (w.sc == w.h * w.w || w.c == 1) && (w.sn == w.c * w.h * w.w || w.n == 1);
  if (dense) return static_cast<const T*>(w.data);
  copy = allocate<T>(w.n * w.c * w.h * w.w);
  T* p = copy.get();
  for (std::int64_t n = 0; n < w.n; ++n)
    for (std::int64_t c = 0; c < w.c; ++c)
      for (std::int64_t i = 0; i < w.h; ++i)
        for (std::int64_t j = 0; j < w.w; ++j) *p++ = value_at<T>(w, n * w.sn + c * w.sc + i * w.sh + j * w.sw);
  return copy.get();
}

// A phase for the dot tile: [tap row][depth in registers][output channel][lanes], zero behind the depth.
template <class T>
void pack_dot(const ConvPlan& p, const Phase& ph, const T* weight, T* packed) {
  const Geometry& g = p.geometry;
  const std::int64_t taps = std::int64_t(g.kernel_h) * g.kernel_w, lanes = p.tile.lanes;
  const std::int64_t out_stride = g.transposed ? taps : g.in_c * taps, in_stride = g.transposed ? g.out_c * taps : taps;
  const std::int64_t registers = (ph.taps_w * g.in_c + lanes - 1) / lanes;
  T* row = packed + ph.weight_offset;
  for (int a = 0; a < ph.taps_h; ++a, row += registers * g.out_c * lanes) {
    std::memset(static_cast<void*>(row), 0, sizeof(T) * registers * g.out_c * lanes);
    const int i = g.transposed ? ph.first_tap_h - a * g.stride_h : a;
    for (int b = 0; b < ph.taps_w; ++b) {
      const int j = g.transposed ? ph.first_tap_w - b * g.stride_w : b;
      for (std::int64_t c = 0; c < g.in_c; ++c) {
        const std::int64_t k = b * g.in_c + c;
        for (std::int64_t v = 0; v < g.out_c; ++v)
          row[(k / lanes * g.out_c + v) * lanes + k % lanes] =
              weight[v * out_stride + c * in_stride + i * g.kernel_w + j];
      }
    }
  }
}

// One block of one phase: [tap row][tap column][input channel][block width], zero beyond the last channel.
template <class T>
void pack_block(const ConvPlan& p, const Phase& ph, const Block& block, const T* weight, T* packed) {
  const Geometry& g = p.geometry;
  const std::int64_t taps = std::int64_t(g.kernel_h) * g.kernel_w;
  const std::int64_t out_stride = g.transposed ? taps : g.in_c * taps, in_stride = g.transposed ? g.out_c * taps : taps;
  const std::int64_t width = std::int64_t(block.vectors) * p.tile.lanes,
                     channels = std::min(width, g.out_c - block.channel);
  T* dst = packed + ph.weight_offset + block.weight_column * ph.taps_h * ph.taps_w * g.in_c;
  for (int a = 0; a < ph.taps_h; ++a)
    for (int b = 0; b < ph.taps_w; ++b) {
      const int i = g.transposed ? ph.first_tap_h - a * g.stride_h : a,
                j = g.transposed ? ph.first_tap_w - b * g.stride_w : b;
      const T* src = weight + block.channel * out_stride + i * g.kernel_w + j;
      if (channels < width) std::memset(dst, 0, sizeof(T) * g.in_c * width);
      constexpr std::int64_t kChunk = 32;  // of input channels, so that the lines written stay in the first-level cache
      for (std::int64_t c0 = 0; c0 < g.in_c; c0 += kChunk) {
        const std::int64_t c1 = std::min(c0 + kChunk, g.in_c);
        if (out_stride == 1) {
          for (std::int64_t c = c0; c < c1; ++c)
            std::memcpy(dst + c * width, src + c * in_stride, sizeof(T) * channels);
        } else {
          for (std::int64_t v = 0; v < channels; ++v)
            for (std::int64_t c = c0; c < c1; ++c) dst[c * width + v] = src[v * out_stride + c * in_stride];
        }
      }
      dst += g.in_c * width;
    }
}

template <class T>
void pack(const InstructionSet& isa, const ThreadPool& pool, const ConvPlan& p, const T* weight, T* packed) {
  if (p.winograd.m) {
    const std::int64_t tasks = std::min<std::int64_t>(pool.threads, std::int64_t(p.blocks.size()));
    const auto part = [&](std::int64_t t) {
      for (std::size_t b = std::size_t(t); b < p.blocks.size(); b += std::size_t(tasks))
        kernels_of<T>(isa).winograd_pack(p, weight, int(b), packed);
    };
    if (tasks == 1 || p.packed_size < 1 << 16) {
      for (std::int64_t t = 0; t < tasks; ++t) part(t);
    } else {
      pool.run(tasks, part);
    }
    return;
  }
  if (p.dot) {
    for (const Phase& ph : p.phases) pack_dot<T>(p, ph, weight, packed);
    return;
  }
  const std::int64_t blocks = std::int64_t(p.blocks.size()), pieces = blocks * std::int64_t(p.phases.size());
  const auto piece = [&](std::int64_t i) {
    pack_block<T>(p, p.phases[i / blocks], p.blocks[i % blocks], weight, packed);
  };
  if (p.packed_size < 1 << 16 || pool.threads == 1) {
    for (std::int64_t i = 0; i < pieces; ++i) piece(i);
  } else {
    const std::int64_t tasks = std::min<std::int64_t>(pool.threads, pieces);
    pool.run(tasks, [&](std::int64_t t) {
      for (std::int64_t i = pieces * t / tasks; i < pieces * (t + 1) / tasks; ++i) piece(i);
    });
  }
}

template <class T>
Buffer<T> dense_bias(const View& bias) {
  if (!bias) return {};
  Buffer<T> copy = allocate<T>(bias.c);
  for (std::int64_t i = 0; i < bias.c; ++i) copy[i] = value_at<T>(bias, i * bias.sc);
  return copy;
}

// Units in any order on `tasks` threads: whoever is free takes the next, so a busy neighbour costs little. Only
// for work whose result does not depend on who does it.
template <class F>
void run_units(const ThreadPool& pool, std::int64_t units, double work, F&& f) {
  const std::int64_t tasks = work < 40e3 ? 1 : std::min<std::int64_t>(pool.threads, units);
  if (tasks <= 1) {
    for (std::int64_t u = 0; u < units; ++u) f(0, u);
    return;
  }
  std::atomic<std::int64_t> next{0};
  pool.run(tasks, [&](std::int64_t task) {
    for (std::int64_t u; (u = next.fetch_add(1, std::memory_order_relaxed)) < units;) f(task, u);
  });
}

template <class T>
void conv(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, const Source& source, Sink sink,
          const View& weight, const View& bias, bool winograd = true) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const ConvPlan plan = plan_conv(geometry, k.tile, sizeof(T), pool.threads, winograd);
  if (plan.units == 0) return;
  Buffer<T> weight_copy, packed = allocate<T>(plan.packed_size);
  pack<T>(isa, pool, plan, dense_weight<T>(weight, weight_copy), packed.get());
  const Buffer<T> bias_copy = dense_bias<T>(bias);
  sink.bias = bias_copy.get();
  const ConvCall<T> call{&plan, source, sink, packed.get()};
  const std::int64_t scratch = k.conv_scratch(call), tasks = std::min<std::int64_t>(pool.threads, plan.units);
  const Buffer<T> memory = allocate<T>(scratch * tasks);
  std::atomic<bool> finite{true};
  run_units(pool, plan.units, plan.flops() / 2, [&](std::int64_t task, std::int64_t u) {
    if (!k.conv_unit(call, u, memory.get() + task * scratch)) finite.store(false, std::memory_order_relaxed);
  });
  if (!finite.load()) conv<T>(isa, pool, geometry, source, sink, weight, bias, false);
}

// ---- weight gradient ------------------------------------------------------------------------------------

template <class T>
void store_value(const View& v, std::int64_t i, T x) {
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(v.data)[i] = float(x);
      return;
    case DType::f64:
      static_cast<double*>(v.data)[i] = double(x);
      return;
    case DType::f16:
      static_cast<_Float16*>(v.data)[i] = _Float16(float(x));
      return;
    case DType::bf16: {
      const float f = float(x);
      std::uint32_t bits;
      std::memcpy(&bits, &f, sizeof bits);
      static_cast<std::uint16_t*>(v.data)[i] =
          f != f ? 0x7FC0 : std::uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
      return;
    }
  }
}

template <class T>
void weight_grad(const InstructionSet& isa, const ThreadPool& pool, Geometry g, std::vector<WeightGradPair>& pairs,
                 const View& grad, bool turned, bool winograd = true) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const WeightGradPlan plan = plan_weight_grad(g, k.tile, sizeof(T), pool.threads, winograd);
  const std::int64_t bands = plan.bands_per_row * plan.sum_rows;
  std::int64_t tasks =
      std::max<std::int64_t>(1, std::min<std::int64_t>(pool.threads, plan.split_pixels ? plan.units : bands));
  if (double(plan.sum_values) * double(g.batch) * double(g.out_h) * double(g.out_w) < 40e3) tasks = 1;
  const std::int64_t sums = plan.split_pixels ? tasks : 1;
  std::vector<WeightGradCall<T>> calls;
  std::int64_t scratch = 1;
  for (WeightGradPair& pair : pairs) {
    calls.push_back({&plan, pair.big, pair.small, nullptr});
    scratch = std::max(scratch, k.weight_grad_scratch(calls.back()));
  }
  const Buffer<T> memory = allocate<T>(scratch * tasks);
  Buffer<T> sum = allocate<T>(plan.sum_values * sums);
  const auto work = [&](std::int64_t task) {
    T* const own = sum.get() + (plan.split_pixels ? task * plan.sum_values : 0);
    const std::int64_t band0 = plan.split_pixels ? 0 : bands * task / tasks,
                       band1 = plan.split_pixels ? bands : bands * (task + 1) / tasks;
    const std::int64_t unit0 = plan.split_pixels ? plan.units * task / tasks : 0,
                       unit1 = plan.split_pixels ? plan.units * (task + 1) / tasks : plan.units;
    // Bands are consecutive rows of the sum.
    const std::int64_t length = plan.sum_length;
    const auto row = [&](std::int64_t band) {
      return band / plan.bands_per_row * length + length * (band % plan.bands_per_row) / plan.bands_per_row;
    };
    std::memset(static_cast<void*>(own + row(band0) * plan.padded_out_c), 0,
                sizeof(T) * (row(band1) - row(band0)) * plan.padded_out_c);
    for (WeightGradCall<T> call : calls) {
      call.sum = own;
      for (std::int64_t u = unit0; u < unit1; ++u)
        k.weight_grad_unit(call, u, band0, band1, memory.get() + task * scratch);
    }
  };
  if (tasks == 1)
    work(0);
  else
    pool.run(tasks, work);

  std::int64_t partial = sums;  // how many sums are left to add
  if (plan.winograd.m) {
    Buffer<T> taps = allocate<T>(9 * g.in_c * plan.padded_out_c);
    std::atomic<bool> finite{true};
    const auto finish = [&](std::int64_t t) {
      if (!k.winograd_grad_finish(plan, sum.get(), int(sums), g.in_c * t / tasks, g.in_c * (t + 1) / tasks, taps.get()))
        finite.store(false);
    };
    if (tasks == 1)
      finish(0);
    else
      pool.run(tasks, finish);
    if (!finite.load()) return weight_grad<T>(isa, pool, g, pairs, grad, turned, false);
    sum = std::move(taps);
    partial = 1;
  }
  // Sum the tasks in their order and turn (kh, kw, C_in, C_out) into (C_out, C_in, kh, kw).
  const int lanes = k.tile.lanes;
  const std::int64_t groups = plan.padded_out_c / lanes;
  const auto reduce = [&](std::int64_t group) {
    const std::int64_t c0 = group * lanes, c1 = std::min(c0 + lanes, g.out_c);
    for (int i = 0; i < g.kernel_h; ++i)
      for (int j = 0; j < g.kernel_w; ++j)
        for (std::int64_t ci = 0; ci < g.in_c; ++ci) {
          T* const from = sum.get() + ((i * g.kernel_w + j) * g.in_c + ci) * plan.padded_out_c + c0;
          for (std::int64_t t = 1; t < partial; ++t)
            for (int v = 0; v < lanes; ++v) from[v] += from[t * plan.sum_values + v];
          const std::int64_t at = ci * grad.sc + (turned ? j * grad.sh + i * grad.sw : i * grad.sh + j * grad.sw);
          if (grad.dtype == kDTypeOf<T>) {
            T* const to = static_cast<T*>(grad.data) + at;
            for (std::int64_t co = c0; co < c1; ++co) to[co * grad.sn] = from[co - c0];
          } else {
            for (std::int64_t co = c0; co < c1; ++co) store_value<T>(grad, at + co * grad.sn, from[co - c0]);
          }
        }
  };
  if (tasks == 1 || plan.sum_values < 1 << 14) {
    for (std::int64_t group = 0; group < groups; ++group) reduce(group);
  } else {
    pool.run(tasks, [&](std::int64_t t) {
      for (std::int64_t group = groups * t / tasks; group < groups * (t + 1) / tasks; ++group) reduce(group);
    });
  }
}

// ---- element-wise ---------------------------------------------------------------------------------------

bool dense_nchw(const View& v) {
  return (v.sw == 1 || v.w == 1) && (v.sh == v.w || v.h == 1) && (v.sc == v.h * v.w || v.c == 1) &&
         (v.sn == v.c * v.h * v.w || v.n == 1);
}
// A plainly contiguous tensor as rows of one channel plane each.
void planes(View& v) {
  const std::int64_t plane = v.h * v.w;
  v.sn = v.c * plane, v.h = v.c, v.sh = plane, v.w = plane, v.sw = 1, v.c = 1, v.sc = 1;
}
// Small images have short rows: the pixels of a channels-last tensor become one long axis, in rows of about
// `kRow` values.
bool dense_nhwc(const View& v) {
  return (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1) && (v.sh == v.w * v.c || v.h == 1) &&
         (v.sn == v.h * v.w * v.c || v.n == 1);
}

template <class T, class Rows>
void over_rows(const ThreadPool& pool, const View& v, std::int64_t scratch, Rows&& rows) {
  const std::int64_t total = v.n * v.h, values = total * v.w * v.c;
  if (values == 0) return;
  const std::int64_t tasks = std::clamp<std::int64_t>(values / 32768, 1, std::min<std::int64_t>(pool.threads, total));
  const Buffer<T> memory = allocate<T>(scratch * tasks);
  const auto work = [&](std::int64_t task) {
    std::int64_t r = total * task / tasks;
    const std::int64_t end = total * (task + 1) / tasks;
    while (r < end) {
      const std::int64_t n = r / v.h, h0 = r % v.h, h1 = std::min(v.h, h0 + end - r);
      rows(task, n, h0, h1, memory.get() + task * scratch);
      r += h1 - h0;
    }
  };
  if (tasks == 1)
    work(0);
  else
    pool.run(tasks, work);
}

// One long axis of pixels cut into equal rows: (1, C, rows, pixels per row), or as it was.
void recut(std::initializer_list<View*> views) {
  const View* first = *views.begin();
  for (const View* v : views)
    if (*v && !dense_nhwc(*v)) return;
  const std::int64_t pixels = first->n * first->h * first->w;
  std::int64_t per_row = first->n * first->h > 0 && first->w * first->c >= 1024 ? first->w : 0;
  if (per_row == 0) {
    // The largest divisor of the pixel count that keeps a row near 4096 values.
    const std::int64_t most =
        std::clamp<std::int64_t>(4096 / std::max<std::int64_t>(1, first->c), 1, std::max<std::int64_t>(1, pixels));
    for (per_row = most; per_row > 1 && pixels % per_row != 0; --per_row) {
    }
    if (per_row < first->w) per_row = first->w;
  }
  for (View* v : views) {
    if (!*v) continue;
    v->h = pixels / per_row, v->n = 1, v->w = per_row;
    v->sc = 1, v->sw = v->c, v->sh = per_row * v->c, v->sn = pixels * v->c;
  }
}

template <class T>
void transform(const InstructionSet& isa, const ThreadPool& pool, TransformCall call, std::int64_t channels,
               const View& bias_grad) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const std::int64_t tasks_at_most = pool.threads;
  const Buffer<double> sums = allocate<double>(channels * tasks_at_most);
  std::memset(static_cast<void*>(sums.get()), 0, sizeof(double) * channels * tasks_at_most);
  over_rows<T>(pool, call.source.base, k.transform_scratch(call),
               [&](std::int64_t task, std::int64_t n, std::int64_t h0, std::int64_t h1, T* scratch) {
                 TransformCall own = call;
                 own.bias = bias_grad ? sums.get() + task * channels : nullptr;
                 k.transform_rows(own, n, h0, h1, scratch);
               });
  if (!bias_grad) return;
  for (std::int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (std::int64_t t = 0; t < tasks_at_most; ++t) total += sums[t * channels + c];
    store_value<double>(bias_grad, c * bias_grad.sc, total);
  }
}

template <class T>
void add_act(const InstructionSet& isa, const ThreadPool& pool, AddActCall<T> call, const View& bias) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const Buffer<T> bias_copy = dense_bias<T>(bias);
  call.bias = bias_copy.get();
  over_rows<T>(pool, call.y, k.add_act_scratch(call),
               [&](std::int64_t, std::int64_t n, std::int64_t h0, std::int64_t h1, T* scratch) {
                 k.add_act_rows(call, n, h0, h1, scratch);
               });
}

}  // namespace

void run_conv(const InstructionSet& isa, const ThreadPool& pool, Geometry geometry, Source source, Sink sink,
              const View& weight, const View& bias) {
  View w = weight;
  const int kernel_h = geometry.kernel_h;
  const bool was_flat = geometry.in_h == 1 && geometry.out_h == 1;
  normalise(geometry, source, sink);
  // A turned signal has its kernel turned with it; a 1 x k kernel read as k x 1 is the same memory.
  if (was_flat && geometry.kernel_h != kernel_h) swap_axes(w);
  if (source.base.dtype == DType::f64)
    conv<double>(isa, pool, geometry, source, sink, w, bias);
  else
    conv<float>(isa, pool, geometry, source, sink, w, bias);
}

void run_weight_grad(const InstructionSet& isa, const ThreadPool& pool, Geometry geometry,
                     std::vector<WeightGradPair> pairs, const View& grad) {
  const Geometry before = geometry;
  // Every pair must normalise alike; a second one of another layout keeps the first from being merged.
  if (pairs.size() == 1)
    normalise(geometry, pairs[0].big, pairs[0].small);
  else
    normalise(geometry, pairs[0].big, pairs[0].small, pairs[1].big, pairs[1].small);
  const bool turned = before.kernel_h != geometry.kernel_h;
  if (grad.dtype == DType::f64)
    weight_grad<double>(isa, pool, geometry, pairs, grad, turned);
  else
    weight_grad<float>(isa, pool, geometry, pairs, grad, turned);
}

void run_transform(const InstructionSet& isa, const ThreadPool& pool, Source source, View pre, View total,
                   const View& bias_grad) {
  TransformCall call{source, pre, total};
  const std::int64_t channels = source.base.c;
  bool plain = true;
  const auto check = [&](View& v) { plain = plain && dense_nchw(v); };
  for_views(call.source, check);
  if (call.pre) check(call.pre);
  if (call.total) check(call.total);
  if (plain && source.base.h * source.base.w > 1) {
    for_views(call.source, planes);
    if (call.pre) planes(call.pre);
    if (call.total) planes(call.total);
    call.bias_by_row = true;
  } else {
    recut({&call.source.base, &call.source.output, &call.source.gate, &call.source.extra, &call.pre, &call.total});
  }
  if (source.base.dtype == DType::f64)
    transform<double>(isa, pool, call, channels, bias_grad);
  else
    transform<float>(isa, pool, call, channels, bias_grad);
}

void run_add_act(const InstructionSet& isa, const ThreadPool& pool, View y, View u, const View& bias, View out,
                 Activation activation, double slope) {
  const bool by_row = y.h * y.w > 1 && dense_nchw(y) && dense_nchw(out) && (!u || dense_nchw(u));
  if (by_row) {
    planes(y), planes(out);
    if (u) planes(u);
  } else {
    recut({&y, &u, &out});
  }
  if (y.dtype == DType::f64)
    add_act<double>(isa, pool, {y, u, out, nullptr, by_row, activation, slope}, bias);
  else
    add_act<float>(isa, pool, {y, u, out, nullptr, by_row, activation, slope}, bias);
}

ConvPlan inspect_conv(const InstructionSet& isa, int threads, Geometry g, bool double_precision, bool channels_last) {
  Source source;
  View v{&g, DType::f32, g.batch, g.in_c, g.in_h, g.in_w, 0, 0, 0, 0};
  if (channels_last)
    v.sc = 1, v.sw = g.in_c, v.sh = g.in_w * g.in_c, v.sn = g.in_h * v.sh;
  else
    v.sw = 1, v.sh = g.in_w, v.sc = g.in_h * g.in_w, v.sn = g.in_c * v.sc;
  source.base = v;
  normalise(g, source);
  return plan_conv(g, double_precision ? isa.f64.tile : isa.f32.tile, double_precision ? 8 : 4, threads);
}

}  // namespace lmser
