#include "output_store.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "pages.h"

namespace lmser::output_store {
namespace {

struct Store {
  std::mutex mutex;
  std::vector<Piece> pieces;  // oldest first
  std::size_t idle = 0;
  std::atomic<std::size_t> live{0};  // in use by tensors
  std::atomic<std::size_t> most{0};  // that has ever been in use, or since it was emptied
  Store() { pieces.reserve(256); }

  Piece taken(std::size_t i) {
    const Piece found = pieces[i];
    pieces.erase(pieces.begin() + std::ptrdiff_t(i));
    idle -= found.bytes;
    return found;
  }
  void free_oldest() {
    const Piece piece = taken(0);
    free_pages(piece.data, piece.bytes);
  }
  // The smallest idle piece of [least, largest] bytes; pieces.size() where there is none.
  std::size_t best(std::size_t least, std::size_t largest) const {
    std::size_t found = pieces.size();
    for (std::size_t i = 0; i < pieces.size(); ++i)
      if (pieces[i].bytes >= least && pieces[i].bytes <= largest &&
          (found == pieces.size() || pieces[i].bytes < pieces[found].bytes))
        found = i;
    return found;
  }
};
// Never destroyed: tensors may die after every static object has.
Store& store() {
  static Store* const s = new Store;
  return *s;
}

}  // namespace

Piece take(std::size_t bytes) {
  if (bytes < kLeast) return {pages(bytes), bytes};
  Store& s = store();
  const auto in_use = [&](std::size_t more) {
    const std::size_t live = s.live.fetch_add(more, std::memory_order_relaxed) + more;
    // Not before there is memory: what could not be had was never in use.
    std::size_t most = s.most.load(std::memory_order_relaxed);
    while (most < live && !s.most.compare_exchange_weak(most, live, std::memory_order_relaxed)) {
    }
  };
  {
    // Only ever tried: a process forked while another thread held the lock must not wait for it.
    const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      const std::size_t live = s.live.load(std::memory_order_relaxed);
      const std::size_t most = std::max(s.most.load(std::memory_order_relaxed), live + bytes);
      // Pieces of other sizes lie idle while a step goes through its layers. Together with what is in use they may
      // hold a little more than the most that ever was in use; beyond that a looser fit is taken, or the oldest go.
      const std::size_t room = most + most / kSlack;
      std::size_t found = s.best(bytes, bytes + bytes / 8);
      if (found == s.pieces.size() && live + s.idle + bytes > room) found = s.best(bytes, 4 * bytes);
      if (found < s.pieces.size()) {
        const Piece piece = s.taken(found);
        in_use(piece.bytes);
        return piece;
      }
      while (!s.pieces.empty() && live + s.idle + bytes > room) s.free_oldest();
    }
  }
  if (kReuse) bytes = (bytes + 4095) / 4096 * 4096;
  void* const data = pages(bytes);
  in_use(bytes);
  return {data, bytes};
}

void give(Piece piece) noexcept {
  if (piece.bytes < kLeast) return free_pages(piece.data, piece.bytes);
  Store& s = store();
  s.live.fetch_sub(piece.bytes, std::memory_order_relaxed);
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock.owns_lock() || piece.bytes > kMostIdle) return free_pages(piece.data, piece.bytes);
  while (!s.pieces.empty() && (s.idle + piece.bytes > kMostIdle || s.pieces.size() == s.pieces.capacity()))
    s.free_oldest();
  s.pieces.push_back(piece);  // within the reserved room: cannot throw
  s.idle += piece.bytes;
}

std::size_t idle_bytes() noexcept {
  Store& s = store();
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  return lock.owns_lock() ? s.idle : 0;
}

void empty() noexcept {
  Store& s = store();
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  for (const Piece& p : s.pieces) free_pages(p.data, p.bytes);
  s.pieces.clear();
  s.idle = 0;
  s.most.store(s.live.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

}  // namespace lmser::output_store
