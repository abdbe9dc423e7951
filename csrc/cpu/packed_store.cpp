#include "packed_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

namespace lmser::packed_store {
namespace {

std::size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

bool same_place(const View& a, const View& b) {
  return a.data == b.data && a.dtype == b.dtype && a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w &&
         a.sn == b.sn && a.sc == b.sc && a.sh == b.sh && a.sw == b.sw;
}
std::size_t bytes_of(const View& w) { return std::size_t(w.n * w.c * w.h * w.w) * size_of(w.dtype); }

struct Entry {
  const InstructionSet* isa;
  Weights weights;
  ConvPlan plan;
  std::size_t value_bytes, bytes;
  std::unique_ptr<char[]> raw;  // of one after the other
  std::shared_ptr<void> packed;

  bool is_for(const InstructionSet& i, const Weights& w, const ConvPlan& p, std::size_t value) const {
    return isa == &i && same_place(weights.weight, w.weight) && same_place(weights.beside, w.beside) &&
           value_bytes == value && same_packing(plan, p);
  }
};
using Kept = std::shared_ptr<const Entry>;

struct Store {
  std::mutex mutex;
  std::vector<Kept> entries;  // the longest unused first
  std::size_t bytes = 0;

  std::vector<Kept>::iterator find(const InstructionSet& isa, const Weights& w, const ConvPlan& plan,
                                   std::size_t value) {
    return std::ranges::find_if(entries, [&](const Kept& e) { return e->is_for(isa, w, plan, value); });
  }
  void drop(std::vector<Kept>::iterator at) {
    bytes -= (*at)->bytes;
    entries.erase(at);
  }
};
// Never destroyed: threads may still compute when static objects die.
Store& store() {
  static Store* const s = new Store;
  return *s;
}

// Values follow each other in memory without gaps, in whatever order.
bool dense(const View& w) {
  return (w.n - 1) * w.sn + (w.c - 1) * w.sc + (w.h - 1) * w.sh + (w.w - 1) * w.sw + 1 == w.n * w.c * w.h * w.w;
}
bool is_kept(const Weights& w) {
  return w.weight.n * w.weight.c * w.weight.h * w.weight.w >= kLeast && dense(w.weight) &&
         (!w.beside || dense(w.beside));
}

bool same_bits(const ThreadPool& pool, const View& weight, const char* raw) {
  const char* const now = static_cast<const char*>(weight.data);
  const std::size_t bytes = bytes_of(weight);
  constexpr std::size_t kPiece = std::size_t(1) << 18;
  // A weight that was trained differs everywhere: the first values tell.
  if (std::memcmp(now, raw, std::min<std::size_t>(bytes, 256)) != 0) return false;
  if (pool.threads == 1 || bytes < 2 * kPiece) return std::memcmp(now, raw, bytes) == 0;
  std::atomic<bool> same{true};
  const std::int64_t tasks = pool.threads;
  pool.run(tasks, [&](std::int64_t t) {
    const std::size_t from = bytes * t / tasks, to = bytes * (t + 1) / tasks;
    if (std::memcmp(now + from, raw + from, to - from) != 0) same.store(false, std::memory_order_relaxed);
  });
  return same.load();
}
bool same_bits(const ThreadPool& pool, const Entry& e) {
  const View& beside = e.weights.beside;
  return same_bits(pool, e.weights.weight, e.raw.get()) &&
         (!beside || same_bits(pool, beside, e.raw.get() + bytes_of(e.weights.weight)));
}

}  // namespace

bool same_packing(const ConvPlan& a, const ConvPlan& b) {
  const Geometry &g = a.geometry, &h = b.geometry;
  const auto same_phase = [](const Phase& x, const Phase& y) {
    return x.taps_h == y.taps_h && x.taps_w == y.taps_w && x.first_tap_h == y.first_tap_h &&
           x.first_tap_w == y.first_tap_w && x.weight_offset == y.weight_offset && x.pairs == y.pairs;
  };
  const auto same_block = [](const Block& x, const Block& y) {
    return x.channel == y.channel && x.vectors == y.vectors && x.weight_column == y.weight_column;
  };
  return a.winograd.m == b.winograd.m && a.winograd.taps == b.winograd.taps &&
         a.winograd.by_point == b.winograd.by_point && a.winograd.in_registers == b.winograd.in_registers &&
         a.dot == b.dot && a.planar == b.planar && a.narrow == b.narrow && a.four_phases == b.four_phases &&
         a.packed_size == b.packed_size && g.transposed == h.transposed && g.in_c == h.in_c && g.out_c == h.out_c &&
         g.kernel_h == h.kernel_h && g.kernel_w == h.kernel_w && g.stride_h == h.stride_h && g.stride_w == h.stride_w &&
         std::ranges::equal(a.phases, b.phases, same_phase) && std::ranges::equal(a.blocks, b.blocks, same_block);
}

std::shared_ptr<void> find(const InstructionSet& isa, const ThreadPool& pool, const Weights& weights,
                           const ConvPlan& plan, std::size_t value_bytes) {
  if (!is_kept(weights)) return nullptr;
  Kept found;
  {
    // Only ever tried: a process forked while another thread held the lock must not wait for it.
    Store& s = store();
    const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    const auto at = s.find(isa, weights, plan, value_bytes);
    if (at == s.entries.end()) return nullptr;
    found = *at;
    std::rotate(at, at + 1, s.entries.end());
  }
  return same_bits(pool, *found) ? found->packed : nullptr;
}

void keep(const InstructionSet& isa, const Weights& weights, const ConvPlan& plan, std::size_t value_bytes,
          std::shared_ptr<void> packed) {
  if (!is_kept(weights)) return;
  const std::size_t first = bytes_of(weights.weight), raw = first + (weights.beside ? bytes_of(weights.beside) : 0);
  const std::size_t bytes = raw + std::size_t(plan.packed_size) * value_bytes;
  if (bytes > kMost / 2) return;
  auto entry = std::make_shared<Entry>(
      Entry{&isa, weights, plan, value_bytes, bytes, std::make_unique_for_overwrite<char[]>(raw), std::move(packed)});
  std::memcpy(entry->raw.get(), weights.weight.data, first);
  if (weights.beside) std::memcpy(entry->raw.get() + first, weights.beside.data, raw - first);
  Store& s = store();
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const auto at = s.find(isa, weights, plan, value_bytes);
  if (at != s.entries.end()) s.drop(at);
  while (!s.entries.empty() && s.bytes + bytes > kMost) s.drop(s.entries.begin());
  s.entries.push_back(std::move(entry));
  s.bytes += bytes;
}

std::size_t bytes() noexcept {
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.bytes;
}

void empty() noexcept {
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.entries.clear();
  s.bytes = 0;
}

}  // namespace lmser::packed_store
