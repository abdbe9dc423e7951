#include "packed_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

namespace lmser::packed_store {
namespace {

std::size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

struct Entry {
  const InstructionSet* isa;
  View weight;
  ConvPlan plan;
  std::size_t value_bytes, raw_bytes, bytes;
  std::unique_ptr<char[]> raw;
  std::shared_ptr<void> packed;

  bool is_for(const InstructionSet& i, const View& w, const ConvPlan& p, std::size_t value) const {
    return isa == &i && weight.data == w.data && weight.dtype == w.dtype && weight.n == w.n && weight.c == w.c &&
           weight.h == w.h && weight.w == w.w && weight.sn == w.sn && weight.sc == w.sc && weight.sh == w.sh &&
           weight.sw == w.sw && value_bytes == value && same_packing(plan, p);
  }
};
using Kept = std::shared_ptr<const Entry>;

struct Store {
  std::mutex mutex;
  std::vector<Kept> entries;  // the longest unused first
  std::size_t bytes = 0;

  std::vector<Kept>::iterator find(const InstructionSet& isa, const View& w, const ConvPlan& plan, std::size_t value) {
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
bool is_kept(const View& w) { return w.n * w.c * w.h * w.w >= kLeast && dense(w); }

bool same_bits(const ThreadPool& pool, const Entry& e) {
  const char* const now = static_cast<const char*>(e.weight.data);
  constexpr std::size_t kPiece = std::size_t(1) << 18;
  // A weight that was trained differs everywhere: the first values tell.
  if (std::memcmp(now, e.raw.get(), std::min<std::size_t>(e.raw_bytes, 256)) != 0) return false;
  if (pool.threads == 1 || e.raw_bytes < 2 * kPiece) return std::memcmp(now, e.raw.get(), e.raw_bytes) == 0;
  std::atomic<bool> same{true};
  const std::int64_t tasks = pool.threads;
  pool.run(tasks, [&](std::int64_t t) {
    const std::size_t from = e.raw_bytes * t / tasks, to = e.raw_bytes * (t + 1) / tasks;
    if (std::memcmp(now + from, e.raw.get() + from, to - from) != 0) same.store(false, std::memory_order_relaxed);
  });
  return same.load();
}

}  // namespace

bool same_packing(const ConvPlan& a, const ConvPlan& b) {
  const Geometry &g = a.geometry, &h = b.geometry;
  const auto same_phase = [](const Phase& x, const Phase& y) {
    return x.taps_h == y.taps_h && x.taps_w == y.taps_w && x.first_tap_h == y.first_tap_h &&
           x.first_tap_w == y.first_tap_w && x.weight_offset == y.weight_offset;
  };
  const auto same_block = [](const Block& x, const Block& y) {
    return x.channel == y.channel && x.vectors == y.vectors && x.weight_column == y.weight_column;
  };
  return a.winograd.m == b.winograd.m && a.winograd.taps == b.winograd.taps &&
         a.winograd.by_point == b.winograd.by_point && a.dot == b.dot && a.planar == b.planar &&
         a.packed_size == b.packed_size && g.transposed == h.transposed && g.in_c == h.in_c && g.out_c == h.out_c &&
         g.kernel_h == h.kernel_h && g.kernel_w == h.kernel_w && g.stride_h == h.stride_h && g.stride_w == h.stride_w &&
         std::ranges::equal(a.phases, b.phases, same_phase) && std::ranges::equal(a.blocks, b.blocks, same_block);
}

std::shared_ptr<void> find(const InstructionSet& isa, const ThreadPool& pool, const View& weight, const ConvPlan& plan,
                           std::size_t value_bytes) {
  if (!is_kept(weight)) return nullptr;
  Kept found;
  {
    // Only ever tried: a process forked while another thread held the lock must not wait for it.
    Store& s = store();
    const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    const auto at = s.find(isa, weight, plan, value_bytes);
    if (at == s.entries.end()) return nullptr;
    found = *at;
    std::rotate(at, at + 1, s.entries.end());
  }
  return same_bits(pool, *found) ? found->packed : nullptr;
}

void keep(const InstructionSet& isa, const View& weight, const ConvPlan& plan, std::size_t value_bytes,
          std::shared_ptr<void> packed) {
  if (!is_kept(weight)) return;
  const std::size_t raw = std::size_t(weight.n * weight.c * weight.h * weight.w) * size_of(weight.dtype);
  const std::size_t bytes = raw + std::size_t(plan.packed_size) * value_bytes;
  if (bytes > kMost / 2) return;
  auto entry = std::make_shared<Entry>(Entry{&isa, weight, plan, value_bytes, raw, bytes,
                                             std::make_unique_for_overwrite<char[]>(raw), std::move(packed)});
  std::memcpy(entry->raw.get(), weight.data, raw);
  Store& s = store();
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const auto at = s.find(isa, weight, plan, value_bytes);
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
