// A reflection network: its edges, and the passes up and down as one chain of updates.
//
// Every state is read by the next update alone, so the chain says all: update i reads the state of update i - 1 (the
// first reads the visible layer) and adds the drive of its partner, an earlier update of its layer in the other
// direction.
#pragma once

#include "narrow.h"
#include "stages.h"
#include "tied_conv.h"

namespace lmser {

// Whether states may be bfloat16: where tiles make and read them.
inline bool passes_halves(DType dtype) { return dtype == DType::bf16 && narrow_kernels(instruction_set()); }

struct ReflectEdge {
  Geometry up, down;
  View weight, back;  // of the two directions; one tensor where they are tied
};

struct ReflectUpdate {
  int layer;
  bool up;
  int partner = -1;         // none
  bool keeps = false;       // its drive is the partner of others
  std::int64_t before = 0;  // values of an image in the states of the updates before it
};

// What the top layer reads out linearly: its first and its last channels.
struct Linear {
  std::int64_t first, last;
  bool whole(std::int64_t channels) const { return first + last >= channels; }
  bool none() const { return first + last == 0; }
  bool mixed(std::int64_t channels) const { return !none() && !whole(channels); }
};

struct ReflectNetwork {
  std::vector<Layer> layers;
  std::vector<ReflectEdge> edges;
  std::vector<ReflectUpdate> updates;  // the last is the reconstruction
  Linear linear{};
  Activation activation{};
  double slope = 0;
  bool tied = true;
  std::int64_t kept = 0;  // values of an image in all states but the reconstruction
  int last_top = 0;       // update
  int calls = 1;          // how often an edge is used in one direction

  int top() const { return int(edges.size()); }
  Activation activation_of(const ReflectUpdate& u) const {
    if (u.layer == 0 || (u.layer == top() && !linear.none())) return Activation::identity;
    return activation;
  }
};

// The chain of 001 Eqs. (3)-(5). u_1 is not kept: the pass up starts with h_1 = f(y_1 + u_1 + b_1), the very state that
// the pass down ends with, for y_1 is that of the clamped image. So y_1 is the partner of every h_1 that comes down.
inline void chain_updates(ReflectNetwork& net, bool paired, std::int64_t reflections) {
  const int top = net.top();
  if (!paired || top == 1) reflections = 1;  // nothing that comes down would reach the next pass up
  std::vector<int> up(std::size_t(top) + 1, -1), down(std::size_t(top) + 1, -1);
  const auto add = [&](int layer, bool is_up, int partner, bool keeps) {
    net.updates.push_back({layer, is_up, partner, keeps, net.kept});
    if (layer > 0) net.kept += net.layers[std::size_t(layer)].image();
    return int(net.updates.size()) - 1;
  };
  for (int l = 1; l < top; ++l) up[l] = add(l, true, -1, paired);
  net.last_top = add(top, true, -1, false);
  for (std::int64_t left = reflections; left-- > 0;) {
    for (int l = top - 1; l > 0; --l) down[l] = add(l, false, paired ? up[l] : -1, left > 0 && l > 1);
    if (left == 0) break;
    for (int l = 2; l < top; ++l) up[l] = add(l, true, down[l], true);
    net.last_top = add(top, true, -1, false);
  }
  add(0, false, -1, false);
  net.calls = int(std::min<std::int64_t>(reflections, 1 << 20));
}

// Throws where the sizes do not go together.
inline ReflectNetwork reflect_network(const View& x, const std::vector<View>& weights, const std::vector<View>& back,
                                      const std::vector<Pair>& stride, const std::vector<Pair>& padding, Linear linear,
                                      bool paired, std::int64_t reflections, Activation activation, double slope) {
  const std::size_t edges = weights.size();
  STD_TORCH_CHECK(edges > 0, "weights: expected at least one");
  STD_TORCH_CHECK(back.empty() || back.size() == edges, "decoder_weights: expected ", edges, " or none, got ",
                  back.size());
  STD_TORCH_CHECK(stride.size() == edges && padding.size() == edges,
                  "stride and padding: expected a pair for each weight");
  STD_TORCH_CHECK(reflections >= 1, "reflections is ", reflections, "; expected at least 1");
  STD_TORCH_CHECK(x.dtype == DType::f32 || x.dtype == DType::f64 || passes_halves(x.dtype),
                  "x must be float32, float64 or, where the processor multiplies it in tiles, bfloat16");
  ReflectNetwork net;
  net.layers.push_back({x.n, x.c, x.h, x.w});
  for (std::size_t e = 0; e < edges; ++e) {
    ReflectEdge edge;
    edge.weight = weights[e], edge.back = back.empty() ? weights[e] : back[e];
    const View& w = edge.weight;
    const Pair s = stride[e], p = padding[e];
    const Layer below = net.layers[e];
    STD_TORCH_CHECK(w.n > 0 && w.c > 0 && w.h > 0 && w.w > 0 && w.c == below.c, "weights[", e, "] has shape (", w.n,
                    ", ", w.c, ", ", w.h, ", ", w.w, "); expected (*, ", below.c, ", *, *) and no empty dimension");
    STD_TORCH_CHECK(edge.back.n == w.n && edge.back.c == w.c && edge.back.h == w.h && edge.back.w == w.w,
                    "decoder_weights[", e, "] has another shape than weights[", e, "]");
    STD_TORCH_CHECK(below.h + 2 * p.h >= w.h && below.w + 2 * p.w >= w.w, "weights[", e, "]: the kernel (", w.h, ", ",
                    w.w, ") is larger than the padded layer below it");
    edge.up = conv_geometry(x.n, below.c, below.h, below.w, w.n, w.h, w.w, s, p);
    edge.down = transposed(edge.up);
    const Layer above{x.n, w.n, edge.up.out_h, edge.up.out_w};
    net.edges.push_back(edge);
    net.layers.push_back(above);
  }
  const std::int64_t top = net.layers.back().c;
  STD_TORCH_CHECK(linear.first >= 0 && linear.last >= 0 && linear.first <= top && linear.last <= top - linear.first,
                  "linear: expected two counts that fit into the top layer");
  net.linear = linear;
  net.activation = activation, net.slope = slope;
  net.tied = back.empty();
  chain_updates(net, paired, reflections);
  return net;
}

// Images of a piece that every thread has at least: of fewer the weights of upper layers would be read too often. A
// training step, which holds all states of a piece, is as fast with one less.
inline constexpr std::int64_t kLeastImages = 4, kLeastImagesTraining = 3;

// The batch in pieces whose working memory (`image_bytes` an image) stays in the last-level cache, of which all threads
// have as many images; shared out evenly where a few more pieces make that possible. f(first image, one after the last)
// until it gives false.
template <class F>
bool over_pieces(std::int64_t samples, std::int64_t image_bytes, int threads, F&& f,
                 std::int64_t least = kLeastImages) {
  constexpr std::int64_t kPieceBytes = std::int64_t(12) << 20;
  const std::int64_t each = std::max(1, threads), rounds = (samples + each - 1) / each,
                     images = std::max(kPieceBytes / std::max<std::int64_t>(image_bytes, 1) / each, least);
  std::int64_t pieces = std::max<std::int64_t>(1, (rounds + images - 1) / images);
  for (std::int64_t more = pieces; 2 * more <= 3 * pieces; ++more)
    if (rounds % more == 0) {
      pieces = more;
      break;
    }
  const auto begin = [&](std::int64_t i) { return std::min(samples, each * (rounds * i / pieces)); };
  for (std::int64_t i = 0; i < pieces; ++i)
    if (!f(begin(i), begin(i + 1))) return false;
  return true;
}

// Steps touch this much before the next group of images.
inline constexpr std::int64_t kReflectStageBytes = std::int64_t(3) << 20;

// All passes: reconstruction and state of the top layer to views of any strides, and where `trajectory` is not null
// the states of all updates to it, each for the whole batch, update after update: net.kept values an image of the
// dtype of x.
void run_reflect(const ReflectNetwork& net, const View& x, const std::vector<View>& biases, const View& noise,
                 const View& reconstruction, const View& code, void* trajectory);

// Where gradients go, of the dtype of x: none where they are not wanted. Weights are wanted all or not at all, as
// kernels; so are biases.
struct ReflectGradients {
  View x;
  std::vector<View> weights, back, biases;
};
void run_reflect_backward(const ReflectNetwork& net, const View& grad_reconstruction, const View& grad_code,
                          const View& x, void* trajectory, const ReflectGradients& to);

// 1/(2 N) of the sum of squares of target - reconstruction (no target: x), and its gradients; `to` is empty, or has all
// weights and biases, and no x.
double run_reflect_loss(const ReflectNetwork& net, const View& x, const View& target, const std::vector<View>& biases,
                        const View& noise, const ReflectGradients& to);

}  // namespace lmser
