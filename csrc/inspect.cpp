// What is not an operator: how the library was built, what the processor offers, measured peaks, and the plan
// that a convolution gets.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/version.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "cpu/narrow.h"
#include "cpu/output_store.h"
#include "cpu/packed_store.h"
#include "cpu/processor.h"
#include "cpu/settle_state.h"
#include "cpu/torch_pool.h"
#include "cuda/settle_plan.h"
#include "describe_plan.h"
#include "direct.h"

namespace py = pybind11;

namespace lmser {
namespace {

#define LMSER_TEXT_(x) #x
#define LMSER_TEXT(x) LMSER_TEXT_(x)

std::vector<std::string> names() {
  int count;
  const InstructionSet* const* sets = instruction_sets(&count);
  std::vector<std::string> v;
  for (int i = 0; i < count; ++i) v.emplace_back(sets[i]->name);
  return v;
}

py::dict build_info() {
  py::dict d;
  d["version"] = LMSER_TEXT(LMSER_VERSION);
#if defined(__clang__)
  d["compiler"] = std::string("clang ") + __clang_version__;
#else
  d["compiler"] = std::string("gcc ") + __VERSION__;
#endif
#if defined(__x86_64__)
  d["isa"] = std::vector<std::string>{"avx512", "avx2", "baseline"};
#else
  d["isa"] = std::vector<std::string>{"baseline"};
#endif
  d["torch_target"] =
      std::to_string(TORCH_TARGET_VERSION >> 56) + "." + std::to_string((TORCH_TARGET_VERSION >> 48) & 0xff);
#if defined(LMSER_WITH_CUDA)
  d["cuda"] = true;
  d["cuda_version"] = LMSER_TEXT(LMSER_CUDA_VERSION);
#else
  d["cuda"] = false;
  d["cuda_version"] = py::none();
#endif
  return d;
}

constexpr std::pair<const char*, NarrowTiles> kTileNames[] = {
    {"none", NarrowTiles::none}, {"emulated", NarrowTiles::emulated}, {"amx", NarrowTiles::amx}};
const char* name_of(NarrowTiles tiles) {
  return std::ranges::find(kTileNames, tiles, [](const auto& known) { return known.second; })->first;
}

py::dict cpu_info() {
  py::dict d;
  d["isa"] = instruction_set().name;
  d["runs_here"] = names();
  const TileShape& t = instruction_set().f32.tile;
  d["lanes_float32"] = t.lanes;
  d["tile"] = std::to_string(t.pixels) + " pixels x " + std::to_string(t.max_vectors * t.lanes) + " channels";
  d["fast_wide_products"] = fast_wide_products();
  d["bfloat16_tiles"] = name_of(narrow_kernels(instruction_set()) ? narrow_tiles() : NarrowTiles::none);
  d["hardware_threads"] = std::thread::hardware_concurrency();
  return d;
}

// For tests and benchmarks that compare instruction sets; returns the name used until now.
std::string choose_isa(const std::string& name) {
  const std::string before = instruction_set().name;
  if (!choose_instruction_set(name.c_str())) {
    std::string known;
    for (const std::string& n : names()) known += (known.empty() ? "" : ", ") + n;
    throw py::value_error("instruction set '" + name + "' does not run here; expected one of " + known);
  }
  return before;
}

// For benchmarks that compare the choice of an algorithm with its alternatives; returns the mode until now.
template <class Choice, Choice choose(Choice), class Modes>
std::string choose_mode(const std::string& mode, const Modes& modes) {
  std::string known;
  for (const auto& [name, choice] : modes) {
    if (mode == name) {
      const Choice before = choose(choice);
      for (const auto& [other, value] : modes)
        if (value == before) return other;
    }
    known += (known.empty() ? "'" : ", '") + std::string(name) + "'";
  }
  throw py::value_error("mode is '" + mode + "'; expected one of " + known);
}
std::string choose_filtering_mode(const std::string& mode) {
  static const std::pair<const char*, Filtering> modes[] = {
      {"where faster", Filtering::where_faster},     {"never", Filtering::never},
      {"where possible", Filtering::where_possible}, {"in buffers", Filtering::in_buffers},
      {"in registers", Filtering::in_registers},     {"along rows", Filtering::along_rows}};
  return choose_mode<Filtering, choose_filtering>(mode, modes);
}
std::string choose_unpacking_mode(const std::string& mode) {
  static const std::pair<const char*, Unpacking> modes[] = {{"where faster", Unpacking::where_faster},
                                                            {"never", Unpacking::never},
                                                            {"where possible", Unpacking::where_possible}};
  return choose_mode<Unpacking, choose_unpacking>(mode, modes);
}

std::string choose_tiles(const std::string& name) {
  const auto known = std::ranges::find(kTileNames, name, [](const auto& k) { return std::string(k.first); });
  if (known == std::end(kTileNames))
    throw py::value_error("tiles are '" + name + "'; expected 'none', 'emulated' or 'amx'");
  const std::string before = name_of(narrow_tiles());
  if (!choose_narrow_tiles(known->second)) throw py::value_error("tiles '" + name + "' do not run here");
  return before;
}

using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// The best of short rounds: what the machine can do when it is left alone.
template <class F>
double best_rate(double seconds, F&& round) {
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto t = Clock::now();
    const double amount = round();
    best = std::max(best, amount / since(t));
  } while (since(start) < seconds);
  return best;
}

// On PyTorch's threads where it has as many: after an operation these spin for a while, and others would share their
// cores with them.
template <class F>
double on_threads(int threads, F&& f) {
  std::vector<double> amounts(threads);
  const ThreadPool pool = torch_pool();
  if (threads == pool.threads) {
    pool.run(threads, [&](std::int64_t t) { amounts[t] = f(int(t)); });
  } else {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { amounts[t] = f(t); });
    amounts[0] = f(0);
    for (auto& t : others) t.join();
  }
  double sum = 0;
  for (double a : amounts) sum += a;
  return sum;
}

void check_probe(double seconds, int threads) {
  if (!(seconds > 0 && seconds <= 60))
    throw py::value_error("seconds is " + std::to_string(seconds) + "; expected above 0 and at most 60");
  if (threads < 1 || threads > 1024)
    throw py::value_error("threads is " + std::to_string(threads) + "; expected 1 to 1024");
}

double measure_fma_peak(double seconds, int threads) {
  check_probe(seconds, threads);
  py::gil_scoped_release release;
  const auto& k = instruction_set().f32;
  return best_rate(seconds,
                   [&] {
                     return on_threads(threads, [&](int) {
                       alignas(64) float sink[64];
                       std::fill(sink, sink + 64, 0.5f);
                       return k.fma_rounds(400000, sink);
                     });
                   }) /
         1e9;
}

// None where there are no tiles to measure.
std::optional<double> measure_tile_peak(double seconds, int threads) {
  check_probe(seconds, threads);
  const NarrowKernels* const tiles = narrow_kernels(instruction_set());
  if (!tiles || narrow_tiles() == NarrowTiles::emulated) return std::nullopt;
  py::gil_scoped_release release;
  return best_rate(seconds, [&] { return on_threads(threads, [&](int) { return tiles->product_rounds(20000); }); }) /
         1e9;
}

double measure_copy_bandwidth(double seconds, int threads) {
  check_probe(seconds, threads);
  py::gil_scoped_release release;
  constexpr std::size_t kBytes = std::size_t(64) << 20;
  std::vector<std::vector<char>> from(threads, std::vector<char>(kBytes, 1)), to(threads, std::vector<char>(kBytes, 2));
  return best_rate(seconds,
                   [&] {
                     return on_threads(threads, [&](int t) {
                       std::memcpy(to[t].data(), from[t].data(), kBytes);
                       return 2.0 * double(kBytes);
                     });
                   }) /
         1e9;
}

SettlePlan settle_plan_for(std::vector<std::int64_t> sizes, std::int64_t samples, int itemsize, bool up_down,
                           bool together, std::int64_t shared_bytes, std::vector<std::int64_t> clusters, bool back) {
  if (itemsize != 4 && itemsize != 8)
    throw py::value_error("itemsize is " + std::to_string(itemsize) + "; expected 4 or 8");
  if (clusters.empty() || clusters.size() > 4)
    throw py::value_error(
        "clusters has " + std::to_string(clusters.size()) +
        " values; expected how many of 1, 2, 4 and 8 blocks run at the same time, the first at least");
  return settle_plan({std::move(sizes), samples, itemsize, up_down, together, back},
                     {shared_bytes, std::move(clusters)});
}

py::dict settle_kept(const std::vector<std::array<std::int64_t, 4>>& layers,
                     const std::vector<std::array<std::int64_t, 2>>& kernels,
                     const std::vector<std::array<int, 2>>& windows, bool up_down, bool held) {
  const std::size_t edges = kernels.size();
  if (edges == 0 || layers.size() != edges + 1 || windows.size() != edges)
    throw py::value_error("expected one layer more than kernels, and as many windows as these; got " +
                          std::to_string(layers.size()) + ", " + std::to_string(edges) + " and " +
                          std::to_string(windows.size()));
  Network net;
  for (const auto& [n, c, h, w] : layers) net.layers.push_back({n, c, h, w});
  for (std::size_t e = 0; e < edges; ++e) {
    Edge edge;
    edge.pool = {windows[e][0], windows[e][1]};
    edge.weight.n = net.layers[e + 1].c, edge.weight.c = net.layers[e].c;
    edge.weight.h = kernels[e][0], edge.weight.w = kernels[e][1];
    net.edges.push_back(edge);
  }
  const Trajectory places(net, schedule(net.top() + 1, up_down, held, true));
  std::vector<int> again;
  for (int l = 1; l < net.top(); ++l)
    if (places.is_replayed(l)) again.push_back(l);
  py::dict d;
  d["values"] = places.later.values, d["made_again"] = again;
  return d;
}

py::dict describe(const SettlePlan& p) {
  py::dict d;
  d["fits"] = p.fits, d["cluster"] = p.cluster, d["samples_per_cluster"] = p.group, d["samples_per_warp"] = p.tile;
  d["clusters"] = p.groups, d["shared_bytes"] = p.shared_bytes;
  d["resident_weight_bytes"] = p.resident_bytes, d["streamed_weight_bytes"] = p.streamed_bytes;
  return d;
}

}  // namespace
}  // namespace lmser

PYBIND11_MODULE(_C, m) {
  m.doc() = "lmser's compiled operators (torch.ops.lmser.*) and what can be asked about them.";
  lmser::direct::add_functions(m);
  m.def("build_info", &lmser::build_info);
  m.def("cpu_info", &lmser::cpu_info);
  m.def("choose_isa", &lmser::choose_isa, py::arg("name"),
        "Makes every operator use this instruction set from now on (for comparing them); returns the one used before.");
  m.def("assume_fast_wide_products", &lmser::assume_fast_wide_products, py::arg("fast"),
        "Makes plans weigh filtering as on a processor with two 64-byte multiply-adds a cycle, or as on others.");
  m.def(
      "choose_filtering", &lmser::choose_filtering_mode, py::arg("mode"),
      "Makes plans from now on filter 'where faster' (the default), 'never' or 'where possible' (for comparing them), "
      "or wherever possible with the sums of three taps at stride 2 'in buffers' or 'in registers', or filtered 'along "
      "rows' alone; returns the mode "
      "until now.");
  m.def(
      "choose_unpacking", &lmser::choose_unpacking_mode, py::arg("mode"),
      "Makes convolutions of few pixels from now on read their weight as it lies 'where faster' (the default), 'never' "
      "or 'where possible'; returns the mode until now.");
  m.def("choose_bfloat16_tiles", &lmser::choose_tiles, py::arg("name"),
        "Makes convolutions of bfloat16 from now on multiply in tiles of 'amx' (the default where the processor has "
        "them), of loops that stand for them ('emulated', for tests) or of 'none', in float32; returns those until "
        "now. A gradient is to be asked for with the tiles that its operation had.");
  m.def(
      "multiplies_bfloat16", [] { return lmser::narrow_kernels(lmser::instruction_set()) != nullptr; },
      "Whether convolutions of bfloat16 multiply in tiles now.");
  m.def(
      "empty_cache",
      [] {
        lmser::output_store::empty();
        lmser::packed_store::empty();
      },
      "Returns the idle memory of large results, and packed weights, to the system.");
  m.def("packed_bytes", &lmser::packed_store::bytes, "Memory of packed weights kept for the next calls.");
  m.def("idle_bytes", &lmser::output_store::idle_bytes, "Memory of large results kept for the next calls.");
  m.def("measure_fma_peak", &lmser::measure_fma_peak, py::arg("seconds") = 0.3, py::arg("threads") = 1,
        "float32 fused multiply-adds, GFLOP/s, best of short rounds.");
  m.def("measure_bfloat16_peak", &lmser::measure_tile_peak, py::arg("seconds") = 0.3, py::arg("threads") = 1,
        "Products of bfloat16 in tiles, GFLOP/s, best of short rounds; None where there are no tiles.");
  m.def("measure_copy_bandwidth", &lmser::measure_copy_bandwidth, py::arg("seconds") = 0.3, py::arg("threads") = 1,
        "Bytes read plus bytes written by copies of 64 MiB a thread, GB/s, best of short rounds.");
  lmser::add_plan(m);
  m.def(
      "settle_kept", &lmser::settle_kept, py::arg("layers"), py::arg("kernels"), py::arg("windows"), py::arg("up_down"),
      py::arg("held"),
      "What a solve on a CPU keeps of the hidden layers for the way back through its sweeps: values a sweep after the "
      "first, and the layers of which that is the drive from above alone. layers: (N, C, H, W) each, the visible one "
      "first; `held`: all of it is evidence.");
  m.def(
      "settle_persistent_plan",
      [](std::vector<std::int64_t> sizes, std::int64_t samples, int itemsize, bool up_down, bool together,
         std::int64_t shared_bytes, std::vector<std::int64_t> clusters, bool back) {
        return lmser::describe(lmser::settle_plan_for(std::move(sizes), samples, itemsize, up_down, together,
                                                      shared_bytes, clusters, back));
      },
      py::arg("sizes"), py::arg("samples"), py::arg("itemsize"), py::arg("up_down"), py::arg("together"),
      py::arg("shared_bytes"), py::arg("clusters"), py::arg("back") = false,
      "How a whole solve of a fully connected network is laid onto a GPU whose blocks have `shared_bytes` of shared "
      "memory and that runs clusters[i] clusters of 2**i blocks at the same time. `together`: one stop for the batch. "
      "`back`: "
      "the way back through its sweeps instead.");
  m.def(
      "settle_persistent_obstacle",
      [](int device) -> std::optional<std::string> {
#if defined(LMSER_WITH_CUDA)
        std::string said = lmser::settle_obstacle(device);
        if (said.empty()) return std::nullopt;
        return said;
#else
        (void)device;
        return "the library was compiled without CUDA";
#endif
      },
      py::arg("device"), "Why settle_persistent cannot run on the GPU of this number, or None.");
  m.def(
      "settle_persistent_fits",
      [](std::vector<std::int64_t> sizes, std::int64_t samples, int itemsize, bool up_down, bool together,
         std::int64_t shared_bytes, std::vector<std::int64_t> clusters, bool back) {
        return lmser::settle_plan_for(std::move(sizes), samples, itemsize, up_down, together, shared_bytes, clusters,
                                      back)
            .fits;
      },
      py::arg("sizes"), py::arg("samples"), py::arg("itemsize"), py::arg("up_down"), py::arg("together"),
      py::arg("shared_bytes"), py::arg("clusters"), py::arg("back") = false,
      "Whether settle_persistent_plan finds a layout.");
}
