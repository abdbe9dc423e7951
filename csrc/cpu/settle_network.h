// A bipartite network as the settling loops see it: dense channels-last states, the two directions of every edge.
#pragma once

#include "settle_schedule.h"
#include "stages.h"

namespace lmser {

// Edge e joins layers e and e + 1.
struct Edge {
  Geometry up, down;
  Pair pool;
  View weight, reverse;  // reverse: the one of the downward direction, the same where tied
};

struct Network {
  std::vector<Layer> layers;
  std::vector<Edge> edges;
  int top() const { return int(edges.size()); }
};

inline Network network_of(const std::vector<Tensor>& states, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& reverse, const Ints& pools, const Ints& padding) {
  const std::size_t edges = weights.size();
  STD_TORCH_CHECK(edges > 0 && states.size() == edges + 1, "expected one state more than weights, got ", states.size(),
                  " and ", edges);
  STD_TORCH_CHECK(reverse.empty() || reverse.size() == edges, "reverse_weights: expected ", edges, " or none, got ",
                  reverse.size());
  STD_TORCH_CHECK(pools.size() == 2 * edges && padding.size() == 2 * edges,
                  "pools and padding: expected a pair for each weight");
  Network net;
  for (const Tensor& s : states) {
    check_like(s, "states", states[0], "states[0]");
    const View v = view_of(s, "states");
    net.layers.push_back({v.n, v.c, v.h, v.w});
  }
  for (std::size_t e = 0; e < edges; ++e) {
    check_like(weights[e], "weights", states[0], "states[0]");
    Edge edge;
    edge.weight = edge.reverse = view_of(weights[e], "weights");
    if (!reverse.empty()) {
      check_like(reverse[e], "reverse_weights", states[0], "states[0]");
      edge.reverse = view_of(reverse[e], "reverse_weights");
    }
    edge.pool = pair_of({pools[2 * e], pools[2 * e + 1]}, "pools", 1);
    const Pair pad = pair_of({padding[2 * e], padding[2 * e + 1]}, "padding", 0);
    const Layer &below = net.layers[e], &above = net.layers[e + 1];
    for (const View& w : {edge.weight, edge.reverse})
      STD_TORCH_CHECK(w.n == above.c && w.c == below.c && w.h == edge.weight.h && w.w == edge.weight.w, "weights[", e,
                      "] do not fit the states");
    STD_TORCH_CHECK(below.h % edge.pool.h == 0 && below.w % edge.pool.w == 0 && below.n == above.n, "states[", e,
                    "] do not fit pools or batch");
    edge.up = {false,
               below.n,
               below.c,
               below.h / edge.pool.h,
               below.w / edge.pool.w,
               above.c,
               above.h,
               above.w,
               int(edge.weight.h),
               int(edge.weight.w),
               1,
               1,
               pad.h,
               pad.w};
    STD_TORCH_CHECK(edge.up.in_h + 2 * pad.h - edge.weight.h + 1 == above.h &&
                        edge.up.in_w + 2 * pad.w - edge.weight.w + 1 == above.w,
                    "states[", e + 1, "] do not have the size that weights[", e, "] gives");
    edge.down = edge.up;
    edge.down.transposed = true;
    std::swap(edge.down.in_c, edge.down.out_c), std::swap(edge.down.in_h, edge.down.out_h),
        std::swap(edge.down.in_w, edge.down.out_w);
    net.edges.push_back(edge);
  }
  return net;
}

// The windows through which the layer above sees a layer; of the top layer, single pixels.
inline Pair window_of(const Network& net, int layer) { return layer < net.top() ? net.edges[layer].pool : Pair{1, 1}; }
// A layer as the one above it sees it: means over windows, or a drive from above before it is repeated over them.
inline Layer windows_of(const Network& net, int layer) {
  const Layer& l = net.layers[layer];
  const Pair pool = window_of(net, layer);
  return {l.n, l.c, l.h / pool.h, l.w / pool.w};
}

// The directions of all edges with their packed weights. Going up takes means (or sums) over windows, going down
// repeats values (or shares them out): `adjoint` exchanges the two, and the weights with them.
class Directions {
 public:
  static constexpr int kCalls = 8;  // a solve makes that many sweeps or more

  // `filtering` false: by direct sums alone.
  Directions(const InstructionSet& isa, const Network& net, DType dtype, bool adjoint, bool filtering = true)
      : net_(net), dtype_(dtype) {
    for (int e = 0; e < net.top(); ++e) {
      const Edge& edge = net.edges[e];
      const double window = double(edge.pool.h) * edge.pool.w;
      up_scale_.push_back(adjoint ? 1 : 1 / window);
      down_scale_.push_back(adjoint ? 1 / window : 1);
      const View &up = adjoint ? edge.reverse : edge.weight, &down = adjoint ? edge.weight : edge.reverse;
      up_.emplace_back(isa, edge.up, dtype, up, kCalls, filtering);
      down_.emplace_back(isa, edge.down, dtype, down, kCalls, filtering);
    }
  }
  // What `layer` gets from below, and from above. `pooled`: `below` are the means over windows.
  DirectionCall up(int layer, const void* below, Sink sink, bool pooled = false) {
    const Edge& edge = net_.edges[layer - 1];
    Source s;
    s.base = (pooled ? windows_of(net_, layer - 1) : net_.layers[layer - 1]).view(below, dtype_);
    if (!pooled) s.pool_h = edge.pool.h, s.pool_w = edge.pool.w, s.scale = up_scale_[layer - 1];
    return {&up_[layer - 1], s, sink};
  }
  DirectionCall down(int layer, const void* above, Sink sink) {
    const Edge& edge = net_.edges[layer];
    Source s;
    s.base = net_.layers[layer + 1].view(above, dtype_);
    sink.upsample_h = edge.pool.h, sink.upsample_w = edge.pool.w, sink.scale = down_scale_[layer];
    return {&down_[layer], s, sink};
  }

 private:
  const Network& net_;
  DType dtype_;
  std::vector<PreparedConv> up_, down_;
  std::vector<double> up_scale_, down_scale_;
};

template <class T>
bool all_are(T wanted, const T* p, std::int64_t n) {
  constexpr std::int64_t kPiece = 1024;  // looked at without a branch
  for (std::int64_t i = 0; i < n; i += kPiece) {
    bool same = true;
    for (std::int64_t k = i; k < std::min(i + kPiece, n); ++k) same &= p[k] == wanted;
    if (!same) return false;
  }
  return true;
}

// By all threads, where there is enough to look at.
template <class T>
bool all_are(const ThreadPool& pool, T wanted, const T* p, std::int64_t n) {
  constexpr std::int64_t kFew = 1 << 16;
  const std::int64_t tasks = n < kFew ? 1 : pool.threads;
  if (tasks <= 1) return all_are(wanted, p, n);
  std::atomic<bool> all{true};
  pool.run(tasks, [&](std::int64_t t) {
    const std::int64_t from = n * t / tasks, until = n * (t + 1) / tasks;
    if (!all_are(wanted, p + from, until - from)) all.store(false, std::memory_order_relaxed);
  });
  return all.load();
}

template <class T>
double magnitude(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return double(value);
}

}  // namespace lmser
