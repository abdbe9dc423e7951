// In which order a sweep updates the layers, and which drives are computed anew for it.
//
// A drive is computed from one neighbour's state and stays what it is until that neighbour is updated again. So in an
// upward pass the drive from above is the one of the last downward pass, and the other way round; the drive of a
// visible layer that is wholly held by evidence is computed once; and an update with no new drive changes nothing and
// is left out. None of this is written down for an order: it follows from counting the versions of every state.
#pragma once

#include <string>
#include <vector>

namespace lmser {

struct Update {
  int layer;
  bool new_up = false, new_down = false;    // the drive from below, from above: computed now
  bool keep_up = false, keep_down = false;  // and used again by a later update
  bool changes = true;                      // false: the visible layer, held, is only read out
  bool last = false;                        // of this layer in its sweep
  bool only_above = false;                  // the layer above alone reads the state that this update makes
};
struct Schedule {
  std::vector<Update> first, later;
  const std::vector<Update>& sweep(std::int64_t t) const { return t == 0 ? first : later; }
};

inline std::vector<int> sweep_order(int layers, bool up_down) {
  std::vector<int> order;
  if (up_down) {
    for (int l = 1; l < layers; ++l) order.push_back(l);
    for (int l = layers - 2; l >= 0; --l) order.push_back(l);
  } else {
    for (int l = 1; l < layers; l += 2) order.push_back(l);
    for (int l = 0; l < layers; l += 2) order.push_back(l);
  }
  return order;
}

// `held`: the visible layer is wholly held. `read`: it is nevertheless to be read out.
inline Schedule schedule(int layers, bool up_down, bool held, bool read) {
  constexpr int kSweeps = 4;
  struct Made {
    Update update;
    int sweep;
  };
  std::vector<Made> made;
  std::vector<int> version(layers, 0), up_from(layers, -1), down_from(layers, -1);
  std::vector<int> up_user(layers, -1), down_user(layers, -1);  // the update that computed the drive
  for (int t = 0; t < kSweeps; ++t)
    for (int l : sweep_order(layers, up_down)) {
      Update u{l};
      u.changes = !(l == 0 && held);
      if (!u.changes && !read) continue;
      u.new_up = l > 0 && up_from[l] != version[l - 1];
      u.new_down = l + 1 < layers && (down_from[l] != version[l + 1] || !u.changes);  // every sweep is read out
      if (!u.new_up && !u.new_down) continue;
      if (l > 0 && !u.new_up) made[up_user[l]].update.keep_up = true;
      if (l + 1 < layers && !u.new_down) made[down_user[l]].update.keep_down = true;
      if (u.new_up) up_from[l] = version[l - 1], up_user[l] = int(made.size());
      if (u.new_down) down_from[l] = version[l + 1], down_user[l] = int(made.size());
      if (u.changes) ++version[l];
      made.push_back({u, t});
    }
  for (std::size_t i = 0; i < made.size(); ++i) {
    bool last = true;
    for (std::size_t j = i + 1; j < made.size(); ++j)
      last = last && !(made[j].sweep == made[i].sweep && made[j].update.layer == made[i].update.layer);
    made[i].update.last = last;
    bool replaced = false, below = false;
    for (std::size_t j = i + 1; j < made.size() && !replaced; ++j) {
      replaced = made[j].update.layer == made[i].update.layer && made[j].update.changes;
      below = below || (made[j].update.layer == made[i].update.layer - 1 && made[j].update.new_down);
    }
    made[i].update.only_above = replaced && !below && !last;
  }
  Schedule s;
  for (const Made& m : made) {
    if (m.sweep == 0) s.first.push_back(m.update);
    if (m.sweep == 2) s.later.push_back(m.update);
  }
  return s;
}

// Whether the drives of a layer take turns: whoever writes the one reads the other for the last time. Then they live in
// one memory, each value overwritten by what replaces it.
inline bool drives_share(const Schedule& s, int layer) {
  std::vector<Update> turns;
  for (const std::vector<Update>* sweep : {&s.first, &s.later, &s.later})
    for (const Update& u : *sweep)
      if (u.layer == layer) turns.push_back(u);
  for (std::size_t i = 0; i + 1 < turns.size(); ++i) {
    const Update &now = turns[i], &next = turns[i + 1];
    if (now.keep_up && now.keep_down) return false;
    if (now.keep_up && !next.new_down) return false;
    if (now.keep_down && !next.new_up) return false;
  }
  return true;
}

}  // namespace lmser
