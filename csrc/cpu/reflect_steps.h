// What the passes of a reflection network and those back through them are made of.
#pragma once

#include <deque>

#include "reflect_network.h"

namespace lmser {

// States of all updates, update after update, each of images [first, first + images) of the batch; none where nothing
// is kept. They are all that the backward passes read beside the arguments.
template <class T>
struct Trajectory {
  T* data = nullptr;
  std::int64_t first = 0, images = 0;
  explicit operator bool() const { return data; }
  View state(const ReflectNetwork& net, const ReflectUpdate& u, std::int64_t n0, std::int64_t n1) const {
    Layer l = net.layers[std::size_t(u.layer)];
    l.n = images;
    return images_of(l.view(data + u.before * images, kDTypeOf<T>), n0 - first, n1 - first);
  }
};

// Every edge in both directions: `up` and `down` as the passes take it, `grad_up` and `grad_down` their transposes,
// the same ones where the weights are tied: what is packed serves both.
struct ReflectConvs {
  std::vector<PreparedConv*> up, down, grad_up, grad_down;

  ReflectConvs(const InstructionSet& isa, const ReflectNetwork& net, DType dtype, bool filtering, bool forward,
               bool backward) {
    const auto made = [&](const Geometry& g, const View& weight) {
      return &all_.emplace_back(isa, g, dtype, weight, net.calls, filtering);
    };
    for (const ReflectEdge& e : net.edges) {
      if (forward) up.push_back(made(e.up, e.weight)), down.push_back(made(e.down, e.back));
      if (!backward) continue;
      const bool same = forward && net.tied;
      grad_down.push_back(same ? up.back() : made(e.up, e.back));
      grad_up.push_back(same ? down.back() : made(e.down, e.weight));
    }
  }

 private:
  std::deque<PreparedConv> all_;
};

// A layer's working memory, dense, which holds `images` images.
template <class T>
View dense_state(const ReflectNetwork& net, int layer, T* memory, std::int64_t images) {
  Layer l = net.layers[std::size_t(layer)];
  l.n = images;
  return l.view(memory, kDTypeOf<T>);
}

// The most images that a piece of the batch has (over_pieces).
inline std::int64_t largest_piece(std::int64_t samples, std::int64_t image_bytes, int threads,
                                  std::int64_t least = kLeastImages) {
  std::int64_t most = 0;
  const auto found = [&](std::int64_t n0, std::int64_t n1) { return most = std::max(most, n1 - n0), true; };
  over_pieces(samples, image_bytes, threads, found, least);
  return most;
}

}  // namespace lmser
