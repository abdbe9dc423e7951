// One unit of a convolution to few output channels, whose registers run along rows of pixels (planar_tile.h).
#pragma once

#include "ahead.h"
#include "few_channels.h"
#include "planar_tile.h"
#include "turn.h"

namespace lmser::LMSER_ISA {

// Rows of a unit's input as planes, zero outside it, made one after the other where they are wanted: of one phase no
// more are kept than the first-level cache holds, as a rule.
template <class T>
class PlanarInput {
 public:
  PlanarInput(const ConvCall<T>& call, const ConvScratch<T>& layout, T* memory)
      : plan_(*call.plan),
        source_(call.source),
        memory_(memory),
        line_(memory + layout.slab),
        rows_(RowScratch<T>::at(line_ + layout.line, call.source.row_values())) {
    const View& v = source_.base;
    channels_ = source_.channels();
    dense_ = source_.plain() && v.dtype == kDType<T> && (v.sw == 1 || v.sc == 1);
    before_ = greater<std::int64_t>(0, -plan_.slab_w0);
    inside_ = lesser(plan_.slab_w0 + plan_.slab_cols, v.w) - plan_.slab_w0 - before_;
    lead_ = div_up(before_, L) * L - before_;
    if (!dense_) return;
    // What is beside the values of a row stays zero.
    const std::int64_t first = lead_ + before_, last = first + greater<std::int64_t>(inside_, 0);
    for (std::int64_t i = 0; i < plan_.planar_slots * channels_; ++i) {
      T* const plane = memory_ + i * plan_.planar_pitch;
      for (std::int64_t x = 0; x < first; x += L) store<T>(plane + x, Vec<T>{});
      for (std::int64_t x = last / L * L; x < plan_.planar_pitch; x += L) store<T>(plane + x, Vec<T>{});
    }
  }

  // From here on the rows of image n, `first` and what follows it.
  void begin(std::int64_t n, std::int64_t first) { image_ = n, first_ = next_ = first; }
  void make_until(std::int64_t end) {
    for (; next_ < end; ++next_) make(next_);
  }

  const T* column(std::int64_t col) const { return memory_ + lead_ + col - plan_.slab_w0; }
  std::int64_t slot(std::int64_t row) const { return (row - first_) % plan_.planar_slots; }
  std::int64_t row_values() const { return channels_ * plan_.planar_pitch; }

 private:
  static constexpr std::int64_t L = kLanes<T>;

  void make(std::int64_t row) {
    const View& v = source_.base;
    const std::int64_t pitch = plan_.planar_pitch, c = channels_;
    T* const to = memory_ + slot(row) * row_values() + lead_;
    if (!dense_) {
      stage<T>(source_, image_, row, 1, plan_.slab_w0, plan_.slab_cols, c, line_, rows_);
      turn<T>(line_, c, plan_.slab_cols, c, to, pitch);
      for (std::int64_t k = 0; k < c; ++k)
        std::memset(to + k * pitch + plan_.slab_cols, 0, sizeof(T) * (pitch - lead_ - plan_.slab_cols));
      return;
    }
    if (row < 0 || row >= v.h || inside_ <= 0) {
      std::memset(to - lead_, 0, sizeof(T) * row_values());
      return;
    }
    const T* const from = static_cast<const T*>(v.data) + image_ * v.sn + row * v.sh + (plan_.slab_w0 + before_) * v.sw;
    if (v.sw != 1) return turn<T>(from, v.sw, inside_, c, to + before_, pitch);
    for (std::int64_t k = 0; k < c; ++k) std::memcpy(to + k * pitch + before_, from + k * v.sc, sizeof(T) * inside_);
  }

  const ConvPlan& plan_;
  const Source& source_;
  T *memory_, *line_;
  RowScratch<T> rows_;
  std::int64_t channels_, before_, inside_, lead_;  // lead: so that the values begin with a cache line
  bool dense_;
  std::int64_t image_ = 0, first_ = 0, next_ = 0;
};

template <class T>
void planar_unit(const ConvCall<T>& call, const UnitRange& unit, const UnitOutput<T>& to, const ConvScratch<T>& layout,
                 T* scratch, Ahead& ahead) {
  constexpr int L = kLanes<T>;
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const int channels = int(g.out_c), add_h = call.sink.add_h, add_w = call.sink.add_w;
  const bool add_apart = to.add && add_h * add_w > 1;
  alignas(64) T tile[kFewValues<T>], planes[kFewValues<T>];
  std::int64_t out_offset[kFewValues<T>], add_offset[kFewValues<T>];
  PlanarInput<T> input(call, layout, scratch);
  FewChannels<T> results(to, channels);
  for (std::int64_t n = 0; n < unit.n1 - unit.n0; ++n) {
    input.begin(unit.n0 + n, input_rows(p, unit.r0, unit.r1).first);
    for (const Phase& ph : p.phases) {
      const std::int64_t q0 = div_up(greater<std::int64_t>(unit.r0 - ph.out_h0, 0), p.out_step_h),
                         q1 = lesser(ph.rows, div_up(greater<std::int64_t>(unit.r1 - ph.out_h0, 0), p.out_step_h));
      for (std::int64_t q = q0; q < q1;) {
        const int rows = planar_rows<T>(channels) == 2 && p.in_step_h == 1 && q + 1 < q1 ? 2 : 1,
                  most = planar_width<T>(channels, rows);
        const std::int64_t under = ph.off_h + q * p.in_step_h, slot = ph.taps_h ? input.slot(under) : 0;
        if (ph.taps_h) input.make_until(under + ph.taps_h + rows - 1);
        PlanarTile<T> args{nullptr,
                           input.row_values(),
                           p.planar_pitch,
                           slot,
                           p.planar_slots,
                           ph.taps_h,
                           ph.taps_w,
                           g.in_c,
                           call.weight + ph.weight_offset,
                           planes,
                           most * L};
        for (std::int64_t x = 0; x < ph.cols;) {
          const std::int64_t left = div_up(ph.cols - x, L), width = div_up(left, div_up(left, most));
          const int m = int(lesser<std::int64_t>(width * L, ph.cols - x));
          args.slab = ph.taps_h ? input.column(ph.off_w) + x : nullptr;
          planar_fn<T>(channels, rows, int(width))(args);
          for (int o = 0; o < rows; ++o) {
            const std::int64_t row = ph.out_h0 + (q + o) * p.out_step_h, col = ph.out_w0 + x * p.out_step_w;
            weave_fn<T>(channels)(planes + o * channels * args.result_row, args.result_row, m, tile);
            count_up(out_offset, to.out.at(n, row - unit.r0, col), p.out_step_w * to.out.col, m);
            if (add_apart)
              for (int i = 0; i < m; ++i)
                add_offset[i] = to.add.at(n, row / add_h - unit.r0 / add_h, (col + i * p.out_step_w) / add_w);
            ahead.step();
            results.write(tile, m, out_offset, add_apart ? add_offset : out_offset);
          }
          x += m;
        }
        q += rows;
      }
    }
  }
}

}  // namespace lmser::LMSER_ISA
