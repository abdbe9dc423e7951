#include "output_store.h"

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
  Store() { pieces.reserve(256); }
};
// Never destroyed: tensors may die after every static object has.
Store& store() {
  static Store* const s = new Store;
  return *s;
}

}  // namespace

Piece take(std::size_t bytes) {
  Store& s = store();
  {
    // Only ever tried: a process forked while another thread held the lock must not wait for it.
    const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      std::size_t best = s.pieces.size();
      for (std::size_t i = 0; i < s.pieces.size(); ++i)
        if (s.pieces[i].bytes >= bytes && s.pieces[i].bytes <= bytes + bytes / 8 &&
            (best == s.pieces.size() || s.pieces[i].bytes < s.pieces[best].bytes))
          best = i;
      if (best < s.pieces.size()) {
        const Piece found = s.pieces[best];
        s.pieces.erase(s.pieces.begin() + std::ptrdiff_t(best));
        s.idle -= found.bytes;
        return found;
      }
    }
  }
  bytes = (bytes + 4095) / 4096 * 4096;
  return {pages(4096, bytes), bytes};
}

void give(Piece piece) noexcept {
  Store& s = store();
  const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock.owns_lock() || piece.bytes > kMostIdle) return std::free(piece.data);
  while (!s.pieces.empty() && (s.idle + piece.bytes > kMostIdle || s.pieces.size() == s.pieces.capacity())) {
    std::free(s.pieces.front().data);
    s.idle -= s.pieces.front().bytes;
    s.pieces.erase(s.pieces.begin());
  }
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
  for (const Piece& p : s.pieces) std::free(p.data);
  s.pieces.clear();
  s.idle = 0;
}

}  // namespace lmser::output_store
