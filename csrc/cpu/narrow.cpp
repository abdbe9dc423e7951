#include "narrow.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "buffer.h"
#include "divide.h"

namespace lmser {
#if defined(__x86_64__)
namespace avx512_narrow {
extern const NarrowKernels amx_table, emulated_table;
}
#endif

namespace {

#if defined(__x86_64__)
bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The processor has the instructions, the operating system saves their registers, and lets this process have them.
bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  if (!has_avx512() || !__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return false;  // AVX512_BF16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::atomic<NarrowTiles>& in_use() {
  static std::atomic<NarrowTiles> tiles{has_amx() ? NarrowTiles::amx : NarrowTiles::none};
  return tiles;
}

// Blocks of two tiles of channels, 32 pixels.
constexpr TileShape kTile{16, int(kNarrowPixels), 2, {0, int(kNarrowPixels), int(kNarrowPixels), 0}, false};

// Both sides of a unit of a weight gradient: the more pixels it has, the less often its sums are read and written.
// Every processor with these tiles has 2 MiB of second-level cache.
constexpr std::int64_t kGradBytes = 640 << 10;

}  // namespace

NarrowTiles narrow_tiles() { return in_use().load(std::memory_order_relaxed); }
bool choose_narrow_tiles(NarrowTiles tiles) {
  if (tiles == NarrowTiles::amx && !has_amx()) return false;
#if defined(__x86_64__)
  if (tiles == NarrowTiles::emulated && !has_avx512()) return false;
#else
  if (tiles != NarrowTiles::none) return false;
#endif
  in_use().store(tiles, std::memory_order_relaxed);
  return true;
}

const NarrowKernels* narrow_kernels(const InstructionSet& isa) {
#if defined(__x86_64__)
  if (std::strcmp(isa.name, "avx512") == 0) {
    if (narrow_tiles() == NarrowTiles::amx) return &avx512_narrow::amx_table;
    if (narrow_tiles() == NarrowTiles::emulated) return &avx512_narrow::emulated_table;
  }
#endif
  (void)isa;
  return nullptr;
}

ConvPlan plan_narrow_conv(const Geometry& g, int threads, int calls) {
  ConvPlan p = plan_conv(g, kTile, 2, threads, Filtering::never, calls);
  p.narrow = true;
  if (p.planar) p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
  p.dot = p.planar = p.four_phases = p.sliding = false;
  p.packed_size = 0;
  for (Phase& ph : p.phases) {
    ph.by_rows = ph.by_cols = false;  // the padding is staged as zeros: a tile reads all taps of its pixels
    ph.weight_offset = p.packed_size;
    p.packed_size += NarrowCut(p, ph).tiles() * (p.padded_out_c / 16) * kNarrowTile / 2;
  }
  return p;
}

WeightGradPlan plan_narrow_weight_grad(const Geometry& g, int threads) {
  WeightGradPlan p = plan_weight_grad(g, kTile, 2, threads, Filtering::never, kGradBytes);
  p.narrow = true;
  p.bands_per_row = ceil_div(p.sum_length, kNarrowDepth);
  p.sum_length = p.bands_per_row * kNarrowDepth;
  p.sum_values = p.sum_rows * p.sum_length * p.padded_out_c;
  p.split_pixels = p.split_pixels && fits(p, sizeof(float), threads);
  return p;
}

bool run_narrow_pull_back(const InstructionSet& isa, const ThreadPool& pool, const Source& s, const View& pre,
                          const View& total, const View& bias_grad) {
  const NarrowKernels* const tiles = narrow_kernels(isa);
  const View& v = s.base;
  for (const View* other : {&v, &s.output, &s.gate, &s.extra, &pre, &total})
    if (*other && (other->dtype != DType::bf16 || other->n != v.n || other->c != v.c || other->h != v.h ||
                   other->w != v.w || !lies_dense(*other, true)))
      return false;
  if (!tiles || s.beside || s.pool_h * s.pool_w != 1 || s.scale != 1) return false;
  const auto at = [](const View& view) { return static_cast<std::uint16_t*>(view.data); };
  const NarrowPullBack call{at(v),     at(s.output), at(s.gate),   at(s.extra),    at(pre),
                            at(total), v.c,          s.activation, float(s.slope), float(s.gate_slope)};
  const std::int64_t pixels = v.n * v.h * v.w, tasks = work_of_values(v) < kSerialWork ? 1 : std::max(1, pool.threads);
  Buffer<double> sums;
  if (bias_grad) {
    sums = allocate<double>(tasks * v.c);
    std::fill_n(sums.get(), tasks * v.c, 0.0);
  }
  const auto part = [&](std::int64_t t) {
    tiles->pull_back(call, pixels * t / tasks, pixels * (t + 1) / tasks, sums ? sums.get() + t * v.c : nullptr);
  };
  if (tasks == 1)
    part(0);
  else
    pool.run(tasks, part);
  for (std::int64_t c = 0; bias_grad && c < v.c; ++c) {
    double sum = 0;
    for (std::int64_t t = 0; t < tasks; ++t) sum += sums[t * v.c + c];
    store_value<double>(bias_grad, c * bias_grad.sc, sum);
  }
  return true;
}

}  // namespace lmser
