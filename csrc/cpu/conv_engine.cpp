// Convolutions in both directions: pack the weight, run the units.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <stdexcept>

#include "layout.h"
#include "narrow.h"
#include "packed_store.h"
#include "packed_weight.h"
#include "under_kernel.h"
#include "units.h"

namespace lmser {

struct PreparedConv::State {
  virtual ~State() = default;
  virtual const ConvPlan& prepare(const ThreadPool& pool, Source source, Sink sink) = 0;
  virtual bool run(const ThreadPool& pool, Source source, Sink sink, bool filtering) = 0;
  virtual void forget_plans() = 0;
  bool filtering = true;
};

namespace {

template <class T>
class Prepared final : public PreparedConv::State {
 public:
  Prepared(const InstructionSet& isa, const Geometry& geometry, const View& weight, int calls, const View& beside,
           bool far = false)
      : isa_(isa), geometry_(geometry), weight_(weight), beside_(beside), calls_(calls), far_(far) {}

  const ConvPlan& prepare(const ThreadPool& pool, Source source, Sink sink) override {
    const Geometry g = normal_form(source, sink);
    return packed_for(pool, g, filtering, narrow(source, sink)).plan;
  }

  bool run(const ThreadPool& pool, Source source, Sink sink, bool filtered) override {
    const Geometry g = normal_form(source, sink);
    const Packed& p = packed_for(pool, g, filtered, narrow(source, sink));
    return run_packed(pool, p, call_of(p, source, sink));
  }

  // And then `next`, of another convolution with as many outputs: unit by unit, where that one's can be these.
  bool run_pair(const ThreadPool& pool, Source source, Sink sink, Prepared& next, const Source& next_source,
                const Sink& next_sink, bool filtered) {
    const Geometry g = normal_form(source, sink);
    const NarrowKernels* const tiles = narrow(source, sink);
    const Packed& p = packed_for(pool, g, filtered, tiles);
    if (g == geometry_ && !tiles)
      if (const Packed* const following = next.packed_in_units_of(pool, p.plan, filtered)) {
        const ConvCall<T> call = next.call_of(*following, next_source, next_sink);
        return run_packed(pool, p, call_of(p, source, sink), &call);
      }
    return run_packed(pool, p, call_of(p, source, sink)) && next.run(pool, next_source, next_sink, filtered);
  }

  void forget_plans() override {
    constexpr std::size_t kMost = 64, kKept = 8;  // those kept share the packed weight
    if (packed_.size() > kMost) packed_.erase(packed_.begin(), packed_.end() - kKept);
  }

 private:
  struct Packed {
    Geometry geometry;           // normalised
    bool filtering;              // whether it was allowed
    const NarrowKernels* tiles;  // of bfloat16, or none
    int threads;
    ConvPlan plan;
    std::shared_ptr<const PackedWeight<T>> weight;
  };

  Geometry normal_form(Source& source, Sink& sink) const {
    Geometry g = geometry_;
    g.batch = source.base.n;
    normalise(g, source, sink);
    return g;
  }

  // Whether bfloat16 is multiplied as such: values that are read as they are, so that nothing is rounded on the way.
  // Of what may follow a result the derivative of the activation is known to them.
  const NarrowKernels* narrow(const Source& source, const Sink& sink) const {
    if (sizeof(T) != 4 || weight_.dtype != DType::bf16 || source.base.dtype != DType::bf16 || !source.plain() ||
        beside_ || sink.pooled)
      return nullptr;
    const NarrowKernels* const tiles = narrow_kernels(isa_);
    const Epilogue* const e = sink.epilogue;
    if (tiles && e && (e->state || e->previous || e->hold || e->inject))
      throw std::logic_error("tiles of bfloat16 do not know what was to follow their results");
    return tiles;
  }

  const Packed& packed_for(const ThreadPool& pool, const Geometry& g, bool filtered, const NarrowKernels* tiles) {
    for (const Packed& p : packed_)
      if (p.geometry == g && p.filtering == filtered && p.tiles == tiles && p.threads == pool.threads) return p;
    if (tiles)
      return packed(pool, {g, filtered, tiles, pool.threads, plan_narrow_conv(g, pool.threads, calls_), nullptr});
    const TileShape& tile = kernels_of<T>(isa_).tile;
    Filtering how = filtered ? Filtering::where_faster : Filtering::never;
    if (filtered && g.batch > 0 && g.batch < geometry_.batch) {
      Geometry whole = g;
      whole.batch = geometry_.batch;
      const WinogradGrid w = plan_conv(whole, tile, sizeof(T), pool.threads, how, calls_).winograd;
      how = w.along_rows     ? Filtering::along_rows
            : !w.m           ? Filtering::never
            : w.in_registers ? Filtering::in_registers
                             : Filtering::in_buffers;
    }
    ConvPlan plan = plan_conv(g, tile, sizeof(T), pool.threads, how, calls_);
    const ConvPlan* const of_whole = filtered && g == geometry_ ? &plan : nullptr;
    if (weight_.dtype == kDTypeOf<T> && !beside_ && lies_well(weight_, geometry_) &&
        takes_unpacked(geometry_, tile, sizeof(T), pool.threads, calls_, far_, of_whole))
      plan = plan_unpacked(g, tile, pool.threads, taps_lie_together(weight_));
    return packed(pool, {g, filtered, nullptr, pool.threads, std::move(plan), nullptr});
  }

  // For the whole batch in the units of another plan; null where that cannot be.
  const Packed* packed_in_units_of(const ThreadPool& pool, const ConvPlan& other, bool filtered) {
    const Filtering how = filtered ? Filtering::where_faster : Filtering::never;
    ConvPlan plan = plan_conv(geometry_, kernels_of<T>(isa_).tile, sizeof(T), pool.threads, how, calls_);
    if (!shares_units(plan, other)) return nullptr;
    return &packed(pool, {geometry_, filtered, nullptr, pool.threads, in_units_of(std::move(plan), other), nullptr});
  }

  // `made` with its weight, kept.
  const Packed& packed(const ThreadPool& pool, Packed made) {
    const bool dense = weight_.dtype == kDTypeOf<T> && (weight_.sn == 1 || weight_.sc == 1);
    made.plan.packs_blocks = dense && !beside_ && packs_once(made.plan, calls_);
    if (made.plan.units > 0 && !made.plan.unpacked && !made.plan.packs_blocks) {
      for (const Packed& p : packed_)
        if (p.weight && packed_store::same_packing(p.plan, made.plan)) made.weight = p.weight;
      if (!made.weight) made.weight = packed_weight(pool, made.plan, made.tiles);
      // Zero times what is not finite is something: then nothing is left out.
      if (made.plan.winograd.along_rows && !made.weight->is_finite(pool)) {
        made.plan =
            plan_conv(made.plan.geometry, kernels_of<T>(isa_).tile, sizeof(T), pool.threads, Filtering::never, calls_);
        made.weight = nullptr;
        return packed(pool, std::move(made));
      }
      const bool grouped =
          std::ranges::any_of(made.plan.phases, [](const Phase& ph) { return ph.by_rows || ph.by_cols; });
      if (grouped && !made.weight->is_finite(pool))
        for (Phase& ph : made.plan.phases) ph.by_rows = ph.by_cols = false;
    }
    packed_.push_back(std::move(made));
    return packed_.back();
  }

  std::shared_ptr<const PackedWeight<T>> packed_weight(const ThreadPool& pool, const ConvPlan& plan,
                                                       const NarrowKernels* tiles) const {
    const packed_store::Weights weights{weight_, beside_};
    if (const auto kept = packed_store::find(isa_, pool, weights, plan, sizeof(T)))
      return std::static_pointer_cast<const PackedWeight<T>>(kept);
    View w = weight_, other = beside_;
    // A turned signal has its kernel turned with it; a 1 x k kernel read as k x 1 is the same memory.
    if (plan.geometry.kernel_h != geometry_.kernel_h) swap_axes(w), swap_axes(other);
    Buffer<T> copy;
    const auto packed = std::make_shared<PackedWeight<T>>();
    packed->values = allocate<T>(plan.packed_size), packed->count = plan.packed_size;
    WeightParts<T> parts{layout_of<T>(plan.geometry, w, copy)};
    if (other) parts.beside = turned<T>(other, w.c);
    pack<T>(isa_, tiles, pool, plan, parts, packed->values.get());
    packed_store::keep(isa_, weights, plan, sizeof(T), packed);
    return packed;
  }

  ConvCall<T> call_of(const Packed& p, const Source& source, const Sink& sink) const {
    ConvCall<T> call{&p.plan, source, sink, p.weight ? p.weight->values.get() : nullptr};
    if (p.plan.unpacked || p.plan.packs_blocks) {
      Buffer<T> copy;
      View w = weight_;
      if (!p.plan.gathers && p.plan.geometry.kernel_h != geometry_.kernel_h) swap_axes(w);
      call.as_it_lies = layout_of<T>(p.plan.geometry, w, copy);
      if (p.plan.gathers) call.as_it_lies.in = 1;
    }
    return call;
  }

  // False: a minimal-filtering unit met a value that is not finite. `next` has its units after this one's.
  bool run_packed(const ThreadPool& pool, const Packed& p, ConvCall<T> call, const ConvCall<T>* next = nullptr) const {
    if (p.plan.units == 0) return true;
    const Sink sink = call.sink;
    if (sink.epilogue && sink.epilogue->previous && sink.epilogue->previous == sink.epilogue->result &&
        !p.plan.winograd.buffered())
      throw std::logic_error(
          "a state was to be compared where it lies by a kernel that does not look before it writes");
    const Kernels<T>& k = kernels_of<T>(isa_);
    Buffer<T> columns;
    if (p.plan.gathers) call.source = under_kernel<T>(k, pool, p.geometry, call.source, p.plan.taps_together, columns);
    // Every unit adds up its own channels; the units' sums are added in their order.
    Epilogue epilogue;
    Buffer<double> sums;
    if (sink.epilogue && sink.epilogue->bias_grad) {
      epilogue = *sink.epilogue;
      sums = allocate<double>(p.plan.units * epilogue.channels);
      std::fill_n(sums.get(), p.plan.units * epilogue.channels, 0.0);
      epilogue.sums = sums.get();
      call.sink.epilogue = &epilogue;
    }
    const NarrowKernels* const tiles = p.tiles;
    const std::int64_t scratch = scratch_of(tiles, call, next),
                       unit_tasks = std::min<std::int64_t>(pool.threads, p.plan.units),
                       tasks = p.plan.work() + work_of_values(call.source.base) + work_of_values(sink.out) < kSerialWork
                                   ? 1
                               : p.plan.round_units ? pool.threads
                                                    : unit_tasks;
    std::atomic<bool> finite{true};
    if (p.plan.round_units)
      run_rounds(pool, tasks, call, next, scratch, finite);
    else
      run_units<T>(pool, tasks, p.plan.units, scratch, [&](std::int64_t u, T* memory) {
        if constexpr (sizeof(T) == 4)
          if (tiles) return tiles->conv_unit(call, u, memory);
        if (!k.conv_unit(call, u, memory)) finite.store(false, std::memory_order_relaxed);
        if (next) k.conv_unit(*next, u, memory);
      });
    if (sink.pooled && finite.load() && !k.pools_by_unit(call))
      run_units<T>(pool, std::min<std::int64_t>(tasks, sink.pooled.n), sink.pooled.n, 0,
                   [&](std::int64_t n, T*) { k.pooled_rows(sink, n, 0, sink.pooled.h); });
    if (sums && finite.load())
      for (std::int64_t u = 0; u < p.plan.units; ++u)
        for (std::int64_t c = 0; c < epilogue.channels; ++c) epilogue.bias_grad[c] += sums[u * epilogue.channels + c];
    return finite.load();
  }

  std::int64_t scratch_of(const NarrowKernels* tiles, const ConvCall<T>& call, const ConvCall<T>* next) const {
    if constexpr (sizeof(T) == 4)
      if (tiles) return tiles->conv_scratch(call);
    const Kernels<T>& k = kernels_of<T>(isa_);
    return std::max(k.conv_scratch(call), next ? k.conv_scratch(*next) : 0);
  }

  // Units in rounds: each part waits for the one before.
  void run_rounds(const ThreadPool& pool, std::int64_t tasks, const ConvCall<T>& call, const ConvCall<T>* next,
                  std::int64_t scratch, std::atomic<bool>& finite) const {
    const ConvPlan& p = *call.plan;
    const WinogradGrid& w = p.winograd;
    std::int64_t most = 0;
    for (std::int64_t u = 0; u < p.units; u += p.round_units)
      most = std::max(most, (p.tile_row(std::min(u + p.round_units, p.units)) - p.tile_row(u)) * w.cols);
    const std::int64_t rounds = (p.units + p.round_units - 1) / p.round_units,
                       points = w.points() * w.pitch(most * p.geometry.in_c),
                       sums = w.points() * w.pitch(most * p.padded_out_c);
    const auto round = [&](const ThreadPool& threads, std::int64_t of_tasks, std::int64_t i, T* memory) {
      const std::int64_t first = i * p.round_units, last = std::min(first + p.round_units, p.units);
      if (!run_round(threads, of_tasks, call, next, first, last, memory, memory + points, scratch))
        finite.store(false, std::memory_order_relaxed);
    };
    if (p.own_rounds) {
      run_units<T>(pool, std::min(tasks, rounds), rounds, points + sums,
                   [&](std::int64_t i, T* memory) { round(alone(), 1, i, memory); });
    } else {
      const Buffer<T> shared = allocate<T>(points + sums);
      for (std::int64_t i = 0; i < rounds; ++i) round(pool, tasks, i, shared.get());
    }
  }

  // Units [first, last) by `tasks` threads; false where an output is not finite.
  bool run_round(const ThreadPool& pool, std::int64_t tasks, const ConvCall<T>& call, const ConvCall<T>* next,
                 std::int64_t first, std::int64_t last, T* points, T* sums, std::int64_t scratch) const {
    const Kernels<T>& k = kernels_of<T>(isa_);
    const ConvPlan& p = *call.plan;
    const WinogradGrid& w = p.winograd;
    const std::int64_t units = last - first;
    // Where there are many threads they share the blocks of a point as well.
    const int blocks = int(p.blocks.size()),
              splits = tasks == 1 ? 1 : int(std::min<std::int64_t>(blocks, (4 * tasks + w.points() - 1) / w.points()));
    const TileOrder order(w, p.tile_row(first), p.tile_row(last));
    run_units<T>(pool, std::min(tasks, units), units, scratch,
                 [&](std::int64_t u, T* memory) { k.round_points(call, first + u, order, points, memory); });
    run_units<T>(pool, tasks, w.points() * splits, 0, [&](std::int64_t i, T*) {
      const int part = int(i % splits);
      k.round_products(call, int(i / splits), blocks * part / splits, blocks * (part + 1) / splits, order, points,
                       sums);
    });
    std::atomic<bool> finite{true};
    run_units<T>(pool, std::min(tasks, units), units, scratch, [&](std::int64_t u, T* memory) {
      if (!k.round_outputs(call, first + u, order, sums, memory)) finite.store(false, std::memory_order_relaxed);
      if (next) k.conv_unit(*next, first + u, memory);
    });
    return finite.load();
  }

  const InstructionSet& isa_;
  Geometry geometry_;
  View weight_, beside_;
  int calls_;
  bool far_;
  std::deque<Packed> packed_;  // references stay while others are added
};

}  // namespace

PreparedConv::PreparedConv(const InstructionSet& isa, const Geometry& geometry, DType dtype, const View& weight,
                           int calls, bool filtering, const View& beside, bool far) {
  if (dtype == DType::f64)
    state_ = std::make_unique<Prepared<double>>(isa, geometry, weight, calls, beside, far);
  else
    state_ = std::make_unique<Prepared<float>>(isa, geometry, weight, calls, beside, far);
  state_->filtering = filtering;
}
PreparedConv::PreparedConv(PreparedConv&&) noexcept = default;
PreparedConv& PreparedConv::operator=(PreparedConv&&) noexcept = default;
PreparedConv::~PreparedConv() = default;

const ConvPlan& PreparedConv::prepare(const ThreadPool& pool, const Source& source, const Sink& sink) {
  return state_->prepare(pool, source, sink);
}
void PreparedConv::forget_plans() { state_->forget_plans(); }
bool PreparedConv::run_once(const ThreadPool& pool, const Source& source, const Sink& sink) {
  return state_->run(pool, source, sink, state_->filtering);
}
void PreparedConv::run(const ThreadPool& pool, const Source& source, const Sink& sink) {
  if (!run_once(pool, source, sink)) state_->run(pool, source, sink, false);
}

template <class T>
void run_conv_as(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, const Source& source,
                 Sink sink, const View& weight, const View& bias, bool far) {
  const Buffer<T> dense = dense_bias<T>(bias);
  sink.bias = dense.get();
  PreparedConv(isa, geometry, kDTypeOf<T>, weight, 1, true, {}, far).run(pool, source, sink);
}
void run_conv(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, const Source& source,
              const Sink& sink, const View& weight, const View& bias, bool far) {
  const auto run = source.base.dtype == DType::f64 ? run_conv_as<double> : run_conv_as<float>;
  run(isa, pool, geometry, source, sink, weight, bias, far);
}

template <class T>
void run_conv_pair_as(const InstructionSet& isa, const ThreadPool& pool, ConvTask first, ConvTask second) {
  const Buffer<T> first_bias = dense_bias<T>(first.bias), second_bias = dense_bias<T>(second.bias);
  first.sink.bias = first_bias.get(), second.sink.bias = second_bias.get();
  for (const bool filtering : {true, false}) {
    Prepared<T> a(isa, first.geometry, first.weight, 1, {}), b(isa, second.geometry, second.weight, 1, {});
    if (a.run_pair(pool, first.source, first.sink, b, second.source, second.sink, filtering)) return;
  }
}
void run_conv_pair(const InstructionSet& isa, const ThreadPool& pool, const ConvTask& first, const ConvTask& second) {
  const auto run = first.source.base.dtype == DType::f64 ? run_conv_pair_as<double> : run_conv_pair_as<float>;
  run(isa, pool, first, second);
}

ConvPlan inspect_conv(const InstructionSet& isa, int threads, Geometry g, DType dtype, bool channels_last, bool pools) {
  Source source;
  View v{&g, DType::f32, g.batch, g.in_c, g.in_h, g.in_w, 0, 0, 0, 0};
  if (channels_last)
    v.sc = 1, v.sw = g.in_c, v.sh = g.in_w * g.in_c, v.sn = g.in_h * v.sh;
  else
    v.sw = 1, v.sh = g.in_w, v.sc = g.in_h * g.in_w, v.sn = g.in_c * v.sc;
  source.base = v;
  normalise(g, source);
  if (dtype == DType::bf16 && !pools && narrow_kernels(isa)) return plan_narrow_conv(g, threads, 1);
  const bool wide = dtype == DType::f64;
  const TileShape& tile = wide ? isa.f64.tile : isa.f32.tile;
  const std::int64_t value_bytes = wide ? 8 : 4;
  // The weight can be read as it lies where it is of the type that is computed in.
  if ((wide || dtype == DType::f32) && takes_unpacked(g, tile, value_bytes, threads, 1, false))
    return plan_unpacked(g, tile, threads);
  return plan_conv(g, tile, value_bytes, threads);
}

}  // namespace lmser
