// Element-wise passes over rows that are long enough, whatever the layout.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "buffer.h"
#include "layout.h"

#include <initializer_list>

namespace lmser {
namespace {

bool dense_nchw(const View& v) {
  return (v.sw == 1 || v.w == 1) && (v.sh == v.w || v.h == 1) && (v.sc == v.h * v.w || v.c == 1) &&
         (v.sn == v.c * v.h * v.w || v.n == 1);
}
// A plainly contiguous tensor as rows of one channel plane each.
void planes(View& v) {
  const std::int64_t plane = v.h * v.w;
  v.sn = v.c * plane, v.h = v.c, v.sh = plane, v.w = plane, v.sw = 1, v.c = 1, v.sc = 1;
}
// Small images have short rows: the pixels of a channels-last tensor become one long axis, in rows of about
// `kRow` values.
bool dense_nhwc(const View& v) {
  return (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1) && (v.sh == v.w * v.c || v.h == 1) &&
         (v.sn == v.h * v.w * v.c || v.n == 1);
}

template <class T, class Rows>
void over_rows(const ThreadPool& pool, const View& v, std::int64_t scratch, Rows&& rows) {
  const std::int64_t total = v.n * v.h, values = total * v.w * v.c;
  if (values == 0) return;
  const std::int64_t tasks = std::clamp<std::int64_t>(values / 32768, 1, std::min<std::int64_t>(pool.threads, total));
  const auto work = [&](std::int64_t task) {
    const Buffer<T> memory = allocate<T>(scratch);
    std::int64_t r = total * task / tasks;
    const std::int64_t end = total * (task + 1) / tasks;
    while (r < end) {
      const std::int64_t n = r / v.h, h0 = r % v.h, h1 = std::min(v.h, h0 + end - r);
      rows(task, n, h0, h1, memory.get());
      r += h1 - h0;
    }
  };
  if (tasks == 1)
    work(0);
  else
    pool.run(tasks, work);
}

// One long axis of pixels cut into equal rows: (1, C, rows, pixels per row), or as it was.
void recut(std::initializer_list<View*> views) {
  const View* first = *views.begin();
  for (const View* v : views)
    if (*v && !dense_nhwc(*v)) return;
  const std::int64_t pixels = first->n * first->h * first->w;
  std::int64_t per_row = first->n * first->h > 0 && first->w * first->c >= 1024 ? first->w : 0;
  if (per_row == 0) {
    // The largest divisor of the pixel count that keeps a row near 4096 values.
    const std::int64_t most =
        std::clamp<std::int64_t>(4096 / std::max<std::int64_t>(1, first->c), 1, std::max<std::int64_t>(1, pixels));
    for (per_row = most; per_row > 1 && pixels % per_row != 0; --per_row) {
    }
    if (per_row < first->w) per_row = first->w;
  }
  for (View* v : views) {
    if (!*v) continue;
    v->h = pixels / per_row, v->n = 1, v->w = per_row;
    v->sc = 1, v->sw = v->c, v->sh = per_row * v->c, v->sn = pixels * v->c;
  }
}

template <class T>
void transform(const InstructionSet& isa, const ThreadPool& pool, TransformCall call, std::int64_t channels,
               const View& bias_grad, bool accumulate) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const std::int64_t tasks_at_most = pool.threads;
  const Buffer<double> sums = allocate<double>(channels * tasks_at_most);
  std::memset(static_cast<void*>(sums.get()), 0, sizeof(double) * channels * tasks_at_most);
  over_rows<T>(pool, call.source.base, k.transform_scratch(call),
               [&](std::int64_t task, std::int64_t n, std::int64_t h0, std::int64_t h1, T* scratch) {
                 TransformCall own = call;
                 own.bias = bias_grad ? sums.get() + task * channels : nullptr;
                 k.transform_rows(own, n, h0, h1, scratch);
               });
  if (!bias_grad) return;
  for (std::int64_t c = 0; c < channels; ++c) {
    double total = accumulate ? value_at<double>(bias_grad, c * bias_grad.sc) : 0;
    for (std::int64_t t = 0; t < tasks_at_most; ++t) total += sums[t * channels + c];
    store_value<double>(bias_grad, c * bias_grad.sc, total);
  }
}

template <class T>
void add_act(const InstructionSet& isa, const ThreadPool& pool, AddActCall<T> call, const View& bias) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const Buffer<T> bias_copy = dense_bias<T>(bias);
  call.bias = bias_copy.get();
  over_rows<T>(pool, call.y, k.add_act_scratch(call),
               [&](std::int64_t, std::int64_t n, std::int64_t h0, std::int64_t h1, T* scratch) {
                 k.add_act_rows(call, n, h0, h1, scratch);
               });
}

}  // namespace

void run_transform(const InstructionSet& isa, const ThreadPool& pool, Source source, View pre, View total,
                   const View& bias_grad, bool accumulate) {
  TransformCall call{source, pre, total};
  const std::int64_t channels = source.base.c;
  bool plain = true;
  const auto check = [&](View& v) { plain = plain && dense_nchw(v); };
  for_views(call.source, check);
  if (call.pre) check(call.pre);
  if (call.total) check(call.total);
  if (plain && source.base.h * source.base.w > 1) {
    for_views(call.source, planes);
    if (call.pre) planes(call.pre);
    if (call.total) planes(call.total);
    call.bias_by_row = true;
  } else {
    recut({&call.source.base, &call.source.output, &call.source.gate, &call.source.extra, &call.pre, &call.total});
  }
  if (source.base.dtype == DType::f64)
    transform<double>(isa, pool, call, channels, bias_grad, accumulate);
  else
    transform<float>(isa, pool, call, channels, bias_grad, accumulate);
}

void run_add_act(const InstructionSet& isa, const ThreadPool& pool, View y, View u, const View& bias, View out,
                 Activation activation, double slope, int repeat_h, int repeat_w) {
  const bool repeats = repeat_h > 1 || repeat_w > 1,
             by_row = !repeats && y.h * y.w > 1 && dense_nchw(y) && dense_nchw(out) && (!u || dense_nchw(u));
  if (by_row) {
    planes(y), planes(out);
    if (u) planes(u);
  } else if (!repeats) {
    recut({&y, &u, &out});
  }
  if (y.dtype == DType::f64)
    add_act<double>(isa, pool, {y, u, out, nullptr, by_row, activation, slope, repeat_h, repeat_w}, bias);
  else
    add_act<float>(isa, pool, {y, u, out, nullptr, by_row, activation, slope, repeat_h, repeat_w}, bias);
}

namespace {
template <class T>
void pool_pass(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call, const View& over,
               void (*Kernels<T>::*rows)(const PoolCall&, std::int64_t, std::int64_t, std::int64_t, T*)) {
  const Kernels<T>& k = kernels_of<T>(isa);
  over_rows<T>(pool, over, k.pool_scratch(call),
               [&](std::int64_t, std::int64_t n, std::int64_t h0, std::int64_t h1, T* scratch) {
                 (k.*rows)(call, n, h0, h1, scratch);
               });
}
}  // namespace

void run_max_pool(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call) {
  if (call.big.dtype == DType::f64)
    pool_pass<double>(isa, pool, call, call.small, &Kernels<double>::pool_rows);
  else
    pool_pass<float>(isa, pool, call, call.small, &Kernels<float>::pool_rows);
}

void run_max_unpool(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call) {
  if (call.big.dtype == DType::f64)
    pool_pass<double>(isa, pool, call, call.big, &Kernels<double>::unpool_rows);
  else
    pool_pass<float>(isa, pool, call, call.big, &Kernels<float>::unpool_rows);
}

void run_max_select(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call) {
  if (call.big.dtype == DType::f64)
    pool_pass<double>(isa, pool, call, call.small, &Kernels<double>::select_rows);
  else
    pool_pass<float>(isa, pool, call, call.small, &Kernels<float>::select_rows);
}

namespace {
template <class T>
void epilogue(const InstructionSet& isa, const ThreadPool& pool, Epilogue e, const View& result) {
  const std::int64_t rows = result.n * result.h, values = rows * result.w * result.c;
  if (values == 0) return;
  const std::int64_t tasks = std::clamp<std::int64_t>(values / 32768, 1, std::min<std::int64_t>(pool.threads, rows));
  Buffer<double> sums;
  if (e.bias_grad) {
    sums = allocate<double>(tasks * e.channels);
    std::fill_n(sums.get(), tasks * e.channels, 0.0);
    e.sums = sums.get();
  }
  const auto work = [&](std::int64_t task) {
    for (std::int64_t r = rows * task / tasks; r < rows * (task + 1) / tasks; ++r)
      kernels_of<T>(isa).epilogue_rows(e, result, r / result.h, r % result.h, r % result.h + 1, task);
  };
  if (tasks == 1)
    work(0);
  else
    pool.run(tasks, work);
  if (e.bias_grad)
    for (std::int64_t t = 0; t < tasks; ++t)
      for (std::int64_t c = 0; c < e.channels; ++c) e.bias_grad[c] += sums[t * e.channels + c];
}
}  // namespace

void run_epilogue(const InstructionSet& isa, const ThreadPool& pool, const Epilogue& e, const View& result) {
  if (result.dtype == DType::f64)
    epilogue<double>(isa, pool, e, result);
  else
    epilogue<float>(isa, pool, e, result);
}

}  // namespace lmser
