// The LSTM recurrence on a CPU, forward and backward, as two custom calls of XLA.
//
// Computes what `lstm_mnist_jax.rnn.xla_loops` computes with two XLA loops, over float32 and contiguous, time-major
// arrays. The columns of the sigmoid gates come scaled by 1/2, so sigmoid(z) = tanh(z/2)/2 + 1/2 and every gate is
// a tanh. All arrays have a leading axis of independent instances (V), each with weights of its own.
//
// Why it is quicker than XLA's loop: one step of a loop in XLA is a call into a matrix library, which packs the
// same weights again in every step, and a handful of kernels that pass their results through memory. Here the weights
// are packed once a call; a tile of rows x hidden units keeps all four gates in registers from the product to
// the new state; and a batch is split over threads by rows, which never meet until the sequence ends. Rows too few
// for that share the units of each step: then no processor reads all of the weights in every step.
//
// Each output is a sum in the order of k, however the rows are cut into tiles and threads: the results
// depend on neither. For that, what is rounded once and what twice is written out (MultiplyAdd), and compiled with
// -ffp-contract=off: left to the compiler, it may differ from one size of tile to another.
//
// Portable C++17 with the vector extensions of GCC and Clang; the vector's width is that of the machine compiled for.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr Index kWidth = 16;
constexpr Index kRegisters = 32;
#elif defined(__AVX__)
constexpr Index kWidth = 8;
constexpr Index kRegisters = 16;
#elif defined(__ARM_NEON) || defined(__ARM_NEON__)
constexpr Index kWidth = 4;
constexpr Index kRegisters = 32;
#else
constexpr Index kWidth = 4;
constexpr Index kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef float LooseVector __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

INLINE Vector Load(const float* from) { return *reinterpret_cast<const LooseVector*>(from); }
INLINE void Store(float* to, Vector value) { *reinterpret_cast<LooseVector*>(to) = value; }
INLINE Vector Fill(float value) { return value - Vector{}; }  // x - 0, unlike x + 0, is x: no addition is left of it

// The first `count` elements; the others are 0.
INLINE Vector Load(const float* from, Index count) {
  if (count >= kWidth) return Load(from);
  Vector value{};
  for (Index n = 0; n < count; ++n) value[n] = from[n];
  return value;
}

INLINE void Store(float* to, Vector value, Index count) {
  if (count >= kWidth) return Store(to, value);
  for (Index n = 0; n < count; ++n) to[n] = value[n];
}

// x between -limit and limit; NaN stays NaN. (Of x86's minimum and maximum, the second operand is the answer where one
// is NaN. GCC does not find these instructions by itself in vectors of this width.)
INLINE Vector Clamp(Vector x, float limit) {
#if defined(__AVX512F__)
  return _mm512_min_ps(Fill(limit), _mm512_max_ps(Fill(-limit), x));
#elif defined(__AVX__)
  return _mm256_min_ps(Fill(limit), _mm256_max_ps(Fill(-limit), x));
#else
  x = x < Fill(-limit) ? Fill(-limit) : x;
  return x > Fill(limit) ? Fill(limit) : x;
#endif
}

// a b + c, rounded once where the processor can.
INLINE Vector MultiplyAdd(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// tanh(x) = x P(x^2) / Q(x^2). P and Q, of degree 4, minimise the largest relative error of the quotient on [0, 8.7]
// (2.8e-8; found by Lawson's algorithm: weighted least squares of P - Q tanh(x)/x, the weights multiplied by the error
// until it is level). Beyond, the quotient grows past 1, 7e-7 at 9.4, more than rounding takes away: cut at 1,
// it is exactly 1 from there on. With rounding, within 3.1e-7 of tanh everywhere
// (3.6e-7 where the processor rounds products before it adds them).
INLINE Vector Tanh(Vector x) {
  x = Clamp(x, 9.4f);
  const Vector y = x * x;
  Vector p = MultiplyAdd(y, Fill(1.401447878976992e-08f), Fill(2.1075673338291584e-05f));
  p = MultiplyAdd(p, y, Fill(0.0035236447098600256f));
  p = MultiplyAdd(p, y, Fill(0.13404577245568597f));
  p = MultiplyAdd(p, y, Fill(0.9999999867646678f));
  Vector q = MultiplyAdd(y, Fill(8.043549716545126e-07f), Fill(0.0003331707515183158f));
  q = MultiplyAdd(q, y, Fill(0.025983485262442832f));
  q = MultiplyAdd(q, y, Fill(0.46737898722645893f));
  q = MultiplyAdd(q, y, Fill(1.0f));
  return Clamp(x * p / q, 1.0f);
}

INLINE Vector Sigmoid(Vector tanh) { return MultiplyAdd(tanh, Fill(0.5f), Fill(0.5f)); }

// Derivatives, from the activations: tanh'(z) = 1 - a^2 where a = tanh(z).
INLINE Vector TanhSlope(Vector tanh) { return MultiplyAdd(-tanh, tanh, Fill(1.0f)); }
// sigmoid(z) = (1 + a)/2 where a = tanh(z/2), so d sigmoid(z) / d(z/2) = (1 - a^2)/2.
INLINE Vector SigmoidSlope(Vector tanh) { return 0.5f * TanhSlope(tanh); }

constexpr Index Ceil(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

// Some of the rows of a batch, over some of the steps, for some of the hidden units: what a thread does at once. The
// units of a step may be computed when all those of the step before, of the same rows, have been.
struct Part {
  Index row, end_row, step, end_step, unit, end_unit;
};

// ---------------------------------------------------------------------------------------------------- forward

// Sizes of a tile: accumulators for `rows` x 4 gates, four vectors of weights (from memory where there are 16
// registers) and a value of h fill the registers.
constexpr Index kForwardRows = kRegisters == 32 ? 6 : 3;

// Blocks of units at once where there is one row alone.
constexpr Index kBlocks = kRegisters == 32 ? 4 : 2;

// Where the carry returns to other states before a step: booleans [time, batch], and these states. Or nullptr.
struct Resets {
  const bool* at;
  const float *h, *c;
};

// `activations` may be the memory of `projected`: a tile reads its part of one before it writes it to the other.
struct Forward {
  Index time, batch, hidden;
  bool reverse;
  const float *projected, *bias, *initial_h, *initial_c;
  float *hs, *cs, *activations;  // cs, activations: nullptr where not wanted
  float *last_h, *last_c;        // last_c is also the state, where there are no cs
  Resets resets;
};

// [blocks of kWidth units][hidden][4 gates][kWidth], units beyond the last filled with 0.
Index ForwardPanelSize(Index hidden) { return Ceil(hidden, kWidth) * hidden * 4 * kWidth; }

// Packs kBlocks blocks from this unit on.
void PackForward(const float* weights, Index hidden, Index unit, float* panels) {
  const Index end = std::min(unit + kBlocks * kWidth, hidden);
  float* panel = panels + unit * hidden * 4;
  for (; unit < end; unit += kWidth) {
    for (Index k = 0; k < hidden; ++k) {
      for (Index gate = 0; gate < 4; ++gate, panel += kWidth) {
        Store(panel, Load(weights + k * 4 * hidden + gate * hidden + unit, hidden - unit));
      }
    }
  }
}

// What one time step reads and writes, each [batch, hidden] or [batch, 4 hidden].
struct ForwardStep {
  const float *projected, *bias, *h, *c;
  float *new_h, *new_c, *activations;
};

// One step for R rows x J blocks of kWidth hidden units.
template <Index R, Index J>
INLINE void ForwardTile(const ForwardStep& step, Index hidden, const float* panels, Index row, Index unit) {
  const Index gates = 4 * hidden;
  Vector sums[J][4][R];
  UNROLL for (Index j = 0; j < J; ++j) {
    const Index count = hidden - unit - j * kWidth;
    UNROLL for (Index gate = 0; gate < 4; ++gate) {
      const Index column = gate * hidden + unit + j * kWidth;
      const Vector bias = Load(step.bias + column, count);
      UNROLL for (Index r = 0; r < R; ++r) {
        sums[j][gate][r] = Load(step.projected + (row + r) * gates + column, count) + bias;
      }
    }
  }
  const float* h = step.h + row * hidden;
  const float* panel = panels + unit * hidden * 4;
  const Index panel_size = hidden * 4 * kWidth;
  for (Index k = 0; k < hidden; ++k, panel += 4 * kWidth) {
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index r = 0; r < R; ++r) {
        const Vector value = Fill(h[r * hidden + k]);
        UNROLL for (Index gate = 0; gate < 4; ++gate) {
          sums[j][gate][r] = MultiplyAdd(value, Load(panel + j * panel_size + gate * kWidth), sums[j][gate][r]);
        }
      }
    }
  }
  for (Index j = 0; j < J; ++j, unit += kWidth) {
    const Index count = hidden - unit;
    for (Index r = 0; r < R; ++r) {
      const Index at = (row + r) * hidden + unit;
      const Vector i = Tanh(sums[j][0][r]), f = Tanh(sums[j][1][r]), g = Tanh(sums[j][2][r]), o = Tanh(sums[j][3][r]);
      if (step.activations != nullptr) {
        float* activations = step.activations + (row + r) * gates + unit;
        Store(activations, i, count);
        Store(activations + hidden, f, count);
        Store(activations + 2 * hidden, g, count);
        Store(activations + 3 * hidden, o, count);
      }
      const Vector c = MultiplyAdd(Sigmoid(f), Load(step.c + at, count), Sigmoid(i) * g);
      Store(step.new_c + at, c, count);
      Store(step.new_h + at, Sigmoid(o) * Tanh(c), count);
    }
  }
}

template <Index R, Index J>
__attribute__((noinline)) void ForwardTiles(const ForwardStep& step, Index hidden, const float* panels, Index row,
                                            Index unit) {
  ForwardTile<R, J>(step, hidden, panels, row, unit);
}

void ForwardRows(const ForwardStep& step, Index hidden, const float* panels, Index row, Index rows, Index unit) {
  switch (rows) {
#define ROWS(R) case R: if constexpr (R <= kForwardRows) ForwardTiles<R, 1>(step, hidden, panels, row, unit); return;
    ROWS(1) ROWS(2) ROWS(3)
    ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
  }
}

// `ForwardRows` where some of these rows begin anew: on a copy of their h and c.
void ForwardRowsWithResets(const Forward& job, const ForwardStep& step, const bool* resets, const float* panels,
                           Index row, Index rows, Index unit) {
  const Index hidden = job.hidden;
  if (std::none_of(resets + row, resets + row + rows, [](bool reset) { return reset; })) {
    return ForwardRows(step, hidden, panels, row, rows, unit);
  }
  static thread_local std::vector<float> copy;
  copy.resize(2 * kForwardRows * hidden);
  float *h = copy.data(), *c = h + kForwardRows * hidden;
  for (Index r = 0; r < rows; ++r) {
    const Index from = (row + r) * hidden;
    const bool reset = resets[row + r];
    std::memcpy(h + r * hidden, (reset ? job.resets.h : step.h) + from, hidden * sizeof(float));
    // Of c, the units of this tile alone: where c is kept in place, other threads write the others.
    const Index count = std::min(kWidth, hidden - unit);
    std::memcpy(c + r * hidden + unit, (reset ? job.resets.c : step.c) + from + unit, count * sizeof(float));
  }
  const Index states = row * hidden, gates = 4 * states;
  const ForwardStep moved{step.projected + gates, step.bias, h, c, step.new_h + states, step.new_c + states,
                          step.activations == nullptr ? nullptr : step.activations + gates};
  ForwardRows(moved, hidden, panels, 0, rows, unit);
}

void RunForward(const Forward& job, const float* panels, const Part& part) {
  const Index states = job.batch * job.hidden;
  const Index rows = part.end_row - part.row, tiles = Ceil(rows, kForwardRows);
  for (Index n = part.step; n < part.end_step; ++n) {
    const Index t = job.reverse ? job.time - 1 - n : n, before = job.reverse ? t + 1 : t - 1;
    const float* h = n == 0 ? job.initial_h : job.hs + before * states;
    const float* c = n == 0 ? job.initial_c : job.cs == nullptr ? job.last_c : job.cs + before * states;
    const ForwardStep step{job.projected + t * 4 * states, job.bias, h, c, job.hs + t * states,
                           job.cs == nullptr ? job.last_c : job.cs + t * states,
                           job.activations == nullptr ? nullptr : job.activations + t * 4 * states};
    Index unit = part.unit;
    const bool* resets = job.resets.at == nullptr ? nullptr : job.resets.at + t * job.batch;
    if (rows == 1 && resets == nullptr) {  // too few sums to keep the multipliers busy: several blocks of units at once
      for (; unit + kBlocks * kWidth <= part.end_unit; unit += kBlocks * kWidth) {
        ForwardTiles<1, kBlocks>(step, job.hidden, panels, part.row, unit);
      }
    }
    for (; unit < part.end_unit; unit += kWidth) {
      Index row = part.row;
      for (Index tile = tiles; tile > 0; --tile) {
        const Index some = (part.end_row - row) / tile;
        if (resets == nullptr) {
          ForwardRows(step, job.hidden, panels, row, some, unit);
        } else {
          ForwardRowsWithResets(job, step, resets, panels, row, some, unit);
        }
        row += some;
      }
    }
  }
}

// The last states from those of every step, for all rows.
void FinishForward(const Forward& job) {
  const Index states = job.batch * job.hidden, last = job.reverse ? 0 : (job.time - 1) * states;
  const float* h = job.time == 0 ? job.initial_h : job.hs + last;
  std::memcpy(job.last_h, h, states * sizeof(float));
  if (job.time == 0 || job.cs != nullptr) {
    std::memcpy(job.last_c, job.time == 0 ? job.initial_c : job.cs + last, states * sizeof(float));
  }
}

// --------------------------------------------------------------------------------------------------- backward

// Accumulators for rows x kGroup vectors of hidden units.
constexpr Index kGroup = 4;
constexpr Index kBackwardRows = kRegisters == 32 ? 6 : 3;

// `d_projected` may be the memory of `activations`, as in `Forward`.
struct Backward {
  Index time, batch, hidden;
  bool reverse;
  const float *activations, *cs, *initial_c;
  const float *d_hs, *d_cs;  // nullptr: 0
  const float *d_last_h, *d_last_c;
  float *d_projected, *d_h, *d_c;
  Resets resets;
  float *d_reset_h, *d_reset_c;
};

// [groups of kGroup vectors of units][4 hidden][up to kGroup][kWidth]: the transposed weights.
Index BackwardPanelSize(Index hidden) { return Ceil(hidden, kWidth) * kWidth * 4 * hidden; }

// Packs the group from this unit on.
void PackBackward(const float* weights, Index hidden, Index unit, float* panels) {
  const Index gates = 4 * hidden, units = std::min(kGroup, Ceil(hidden - unit, kWidth)) * kWidth;
  float* panel = panels + unit * gates;
  for (Index begin = 0; begin < gates; begin += kWidth) {  // so many rows of the panel stay in the nearest cache
    const Index end = std::min(begin + kWidth, gates);
    for (Index n = 0; n < units; ++n, ++unit) {
      for (Index k = begin; k < end; ++k) panel[k * units + n] = unit < hidden ? weights[unit * gates + k] : 0.0f;
    }
    unit -= units;
  }
}

struct BackwardStep {
  const float* next;  // gradient at the gates of the step after this, or nullptr: d_h holds what comes from there
  const float *activations, *c, *previous_c, *d_hs, *d_cs;
  float* d_projected;  // nullptr: before the first step
  float *d_h, *d_c;
  const bool *resets, *next_resets;  // before this step, and before the step after it; or nullptr
  const float* reset_c;
  float *d_reset_h, *d_reset_c;
};

// One step for R rows x C vectors of hidden units: dh from the step after it, then the gradient at the gates.
template <Index R, Index C>
__attribute__((noinline)) void BackwardTile(const BackwardStep& step, Index hidden, const float* panels, Index row,
                                            Index unit) {
  const Index gates = 4 * hidden;
  Vector sums[R][C];
  if (step.next != nullptr) {
    UNROLL for (Index r = 0; r < R; ++r) {
      UNROLL for (Index c = 0; c < C; ++c) sums[r][c] = Vector{};
    }
    const float* next = step.next + row * gates;
    const float* panel = panels + unit * gates;
    for (Index k = 0; k < gates; ++k, panel += C * kWidth) {
      UNROLL for (Index r = 0; r < R; ++r) {
        const Vector value = Fill(next[r * gates + k]);
        UNROLL for (Index c = 0; c < C; ++c) sums[r][c] = MultiplyAdd(value, Load(panel + c * kWidth), sums[r][c]);
      }
    }
  } else {
    for (Index r = 0; r < R; ++r) {
      for (Index c = 0; c < C; ++c) {
        const Index u = unit + c * kWidth;
        sums[r][c] = Load(step.d_h + (row + r) * hidden + u, hidden - u);
      }
    }
  }
  for (Index r = 0; r < R; ++r) {
    for (Index v = 0; v < C; ++v) {
      const Index u = unit + v * kWidth, count = hidden - u, at = (row + r) * hidden + u;
      Vector dh = sums[r][v];
      if (step.next_resets != nullptr && step.next_resets[row + r]) {  // the step after this began anew
        Store(step.d_reset_h + at, Load(step.d_reset_h + at, count) + dh, count);
        Store(step.d_reset_c + at, Load(step.d_reset_c + at, count) + Load(step.d_c + at, count), count);
        Store(step.d_c + at, Vector{}, count);
        dh = Vector{};
      }
      if (step.d_projected == nullptr) {
        Store(step.d_h + at, dh, count);
        continue;
      }
      const float* activations = step.activations + (row + r) * gates + u;
      const Vector i = Load(activations, count), f = Load(activations + hidden, count);
      const Vector g = Load(activations + 2 * hidden, count), o = Load(activations + 3 * hidden, count);
      const Vector c = Tanh(Load(step.c + at, count));
      Vector dc = Load(step.d_c + at, count);
      if (step.d_hs != nullptr) dh += Load(step.d_hs + at, count);
      if (step.d_cs != nullptr) dc += Load(step.d_cs + at, count);
      dc = MultiplyAdd(dh * Sigmoid(o), TanhSlope(c), dc);
      float* d_projected = step.d_projected + (row + r) * gates + u;
      const float* previous_c = step.resets != nullptr && step.resets[row + r] ? step.reset_c : step.previous_c;
      Store(d_projected, dc * g * SigmoidSlope(i), count);
      Store(d_projected + hidden, dc * Load(previous_c + at, count) * SigmoidSlope(f), count);
      Store(d_projected + 2 * hidden, dc * Sigmoid(i) * TanhSlope(g), count);
      Store(d_projected + 3 * hidden, dh * c * SigmoidSlope(o), count);
      Store(step.d_c + at, dc * Sigmoid(f), count);
    }
  }
}

template <Index C>
void BackwardRows(const BackwardStep& step, Index hidden, const float* panels, Index row, Index rows, Index unit) {
  switch (rows) {
#define ROWS(R) case R: if constexpr (R <= kBackwardRows) BackwardTile<R, C>(step, hidden, panels, row, unit); return;
    ROWS(1) ROWS(2) ROWS(3)
    ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
  }
}

// The states after the last step, where the backward pass begins, for all rows.
void BeginBackward(const Backward& job) {
  const Index bytes = job.batch * job.hidden * sizeof(float);
  std::memcpy(job.d_h, job.d_last_h, bytes);
  std::memcpy(job.d_c, job.d_last_c, bytes);
  if (job.resets.at != nullptr) {
    std::memset(job.d_reset_h, 0, bytes);
    std::memset(job.d_reset_c, 0, bytes);
  }
}

// Its steps are counted from the end of the sequence; beyond the last one stands that to the gradient of the initial h.
void RunBackward(const Backward& job, const float* panels, const Part& part) {
  const Index states = job.batch * job.hidden;
  const Index tiles = Ceil(part.end_row - part.row, kBackwardRows);
  for (Index s = part.step; s < part.end_step; ++s) {
    const Index n = job.time - 1 - s;
    const Index t = job.reverse ? s : n, next = job.reverse ? t - 1 : t + 1, previous = job.reverse ? t + 1 : t - 1;
    BackwardStep step{};
    step.d_h = job.d_h;
    step.d_c = job.d_c;
    if (s > 0) step.next = job.d_projected + next * 4 * states;
    if (job.resets.at != nullptr) {
      if (s > 0) step.next_resets = job.resets.at + next * job.batch;
      if (n >= 0) step.resets = job.resets.at + t * job.batch;
      step.reset_c = job.resets.c;
      step.d_reset_h = job.d_reset_h;
      step.d_reset_c = job.d_reset_c;
    }
    if (n >= 0) {
      step.activations = job.activations + t * 4 * states;
      step.c = job.cs + t * states;
      step.previous_c = n == 0 ? job.initial_c : job.cs + previous * states;
      step.d_hs = job.d_hs == nullptr ? nullptr : job.d_hs + t * states;
      step.d_cs = job.d_cs == nullptr ? nullptr : job.d_cs + t * states;
      step.d_projected = job.d_projected + t * 4 * states;
    }
    for (Index unit = part.unit; unit < part.end_unit; unit += kGroup * kWidth) {
      Index row = part.row;
      for (Index tile = tiles; tile > 0; --tile) {
        const Index rows = (part.end_row - row) / tile;
        switch (std::min(kGroup, Ceil(job.hidden - unit, kWidth))) {
          case 1: BackwardRows<1>(step, job.hidden, panels, row, rows, unit); break;
          case 2: BackwardRows<2>(step, job.hidden, panels, row, rows, unit); break;
          case 3: BackwardRows<3>(step, job.hidden, panels, row, rows, unit); break;
          case 4: BackwardRows<4>(step, job.hidden, panels, row, rows, unit); break;
        }
        row += rows;
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------- threads

INLINE void Pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::int64_t Nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Until then threads do not share steps: the system took the processor from one of them in the middle of a task, and
// the calling thread had to wait for it. After a wait of w they do not share for kAlone w, so at most 1/kAlone of the
// time is lost to such waits, however busy the machine is.
std::atomic<std::int64_t> alone_until{0};
constexpr std::int64_t kAlone = 32;

// Runs task(0), ..., task(count - 1) on the calling thread and, as far as they are free, those of the pool. The tasks
// come in groups of so many: none begins before those of the group before have ended. The calling thread takes tasks
// like any other. A task is taken only when it can begin, so a thread that the system stops while it waits holds up
// nobody, and a pool whose every thread is in here cannot wait for itself.
//
// `patience`: so many nanoseconds the calling thread waits, without sleep, for tasks that other threads have begun.
// If these take longer, it does the rest of the tasks alone, and sets `alone_until`. 0: it sleeps at once, and that it
// waits is no reason to be alone.
template <typename Pool>
void Parallel(Pool& pool, Index threads, Index count, Index group, std::int64_t patience,
              const std::function<void(Index)>& task) {
  threads = std::min({threads, count, group});
  if (threads <= 1) {
    for (Index n = 0; n < count; ++n) task(n);
    return;
  }
  struct Shared {
    alignas(64) std::atomic<Index> next{0}, done{0};
    std::atomic<bool> alone{false}, asleep{false};
    std::mutex mutex;
    std::condition_variable wake;

    // The tasks that must have ended before the next one can begin; all of them, where there is no next one.
    static Index Before(Index n, Index count, Index group) { return n < count ? n / group * group : count; }
    // Whether a wait of so many turns, since `start` (0: not yet known), has lasted for `limit` nanoseconds.
    static bool TooLong(Index turn, std::int64_t limit, std::int64_t* start) {
      Pause();
      if (turn < 100) return limit == 0;
      if (*start == 0) *start = Nanoseconds();
      return Nanoseconds() - *start >= limit;
    }
  };
  // A thread may come when all is done and the caller gone: it then touches `shared` alone, which it keeps alive.
  auto shared = std::make_shared<Shared>();
  auto help = [shared, count, group, patience, &task] {
    std::int64_t start = 0;
    for (Index turn = 0; !shared->alone.load();) {
      Index n = shared->next.load();
      if (n >= count) return;
      if (shared->done.load() < Shared::Before(n, count, group)) {
        if (Shared::TooLong(turn++, patience, &start)) return;  // the caller has no processor: it needs no help
        continue;
      }
      if (!shared->next.compare_exchange_weak(n, n + 1)) continue;
      task(n);
      shared->done.fetch_add(1);
      if (shared->asleep.load()) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->wake.notify_all();
      }
      turn = start = 0;
    }
  };
  for (Index n = 1; n < threads; ++n) pool.Schedule(decltype(help)(help));
  for (;;) {
    Index n = shared->next.load();
    const Index before = Shared::Before(n, count, group);
    std::int64_t start = 0;
    for (Index turn = 0; shared->done.load() < before; ++turn) {
      if (!Shared::TooLong(turn, patience, &start)) continue;
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->asleep.store(true);
      shared->wake.wait(lock, [&] { return shared->done.load() >= before; });
      shared->asleep.store(false);
      if (patience == 0) break;
      shared->alone.store(true);
      const std::int64_t now = Nanoseconds();
      alone_until.store(now + kAlone * (now - start));
    }
    if (n >= count) return;
    if (!shared->next.compare_exchange_weak(n, n + 1)) continue;
    task(n);
    shared->done.fetch_add(1);
  }
}

#if defined(__linux__)
// Reads a file that holds a number, or two of them; whether there are as many.
bool ReadNumbers(const std::string& path, double* one, double* two = nullptr) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return false;
  const bool found = std::fscanf(file, "%lf", one) == 1 && (two == nullptr || std::fscanf(file, "%lf", two) == 1);
  std::fclose(file);
  return found;
}

// The least number of processors that a control group, or one of those around it, may use; 0: there is no limit.
double Quota(const std::string& folder, std::string group) {
  double least = 0;
  for (;; group.resize(group.rfind('/'))) {
    const std::string path = folder + group;
    double quota = 0, period = 0;  // "max 100000" or "50000 100000"; or in two files, -1 for no limit
    if ((ReadNumbers(path + "/cpu.max", &quota, &period) ||
         (ReadNumbers(path + "/cpu.cfs_quota_us", &quota) && ReadNumbers(path + "/cpu.cfs_period_us", &period))) &&
        quota > 0 && period > 0) {
      least = least == 0 ? quota / period : std::min(least, quota / period);
    }
    if (group.rfind('/') == std::string::npos) return least;
  }
}

// The same for the groups of this process.
double Quota() {
  double least = 0;
  std::FILE* groups = std::fopen("/proc/self/cgroup", "r");  // lines of "number:controllers:/path"
  if (groups == nullptr) return least;
  char text[4096];
  while (std::fgets(text, sizeof(text), groups) != nullptr) {
    const std::string line(text, std::strcspn(text, "\n"));
    const std::size_t one = line.find(':'), two = line.find(':', one + 1);
    if (one == std::string::npos || two == std::string::npos) continue;
    const std::string controllers = "," + line.substr(one + 1, two - one - 1) + ",", path = line.substr(two + 1);
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    for (const char* folder : {"/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"}) {
      const double found = Quota(folder, path == "/" ? "" : path);
      if (found > 0) least = least == 0 ? found : std::min(least, found);
    }
  }
  std::fclose(groups);
  return least;
}
#endif

// How many processors this process may keep busy: those that it may run on, within the quota of its control group (of
// a container, say), as it was when the process asked first.
Index Processors() {
  Index processors = std::numeric_limits<Index>::max();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) processors = CPU_COUNT(&set);
  static const double quota = Quota();
  if (quota > 0) processors = std::min(processors, static_cast<Index>(quota));
#endif
  return std::max<Index>(processors, 1);
}

// Scratch memory of the calling thread, kept for its next call unless it is large.
class Scratch {
 public:
  explicit Scratch(Index floats) {
    const std::size_t bytes = Ceil(std::max<Index>(floats, 1) * sizeof(float), 64) * 64;
    static thread_local Kept kept;
    if (bytes <= kKeep) {
      if (kept.bytes < bytes) {
        std::free(kept.data);
        kept.data = std::aligned_alloc(64, bytes);
        kept.bytes = kept.data == nullptr ? 0 : bytes;
      }
      data_ = kept.data;
    } else {
      data_ = owned_ = std::aligned_alloc(64, bytes);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(owned_); }
  float* get() const { return static_cast<float*>(data_); }  // nullptr: there is no memory

 private:
  static constexpr std::size_t kKeep = 1 << 22;
  struct Kept {
    void* data = nullptr;
    std::size_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  void* data_ = nullptr;
  void* owned_ = nullptr;
};

// A thread has to be worth waking (some microseconds): at least this many multiplications and additions a chunk...
constexpr Index kChunkWork = 1 << 20;
// ...and rows enough that the weights are not read for a single tile.
constexpr Index kChunkRows = 2 * kForwardRows;
// Rows that are better divided than computed by one thread, where threads cannot share the units of each step.
constexpr Index kAloneRows = 4;
// Threads that share the units of each step meet after it: at least this many multiplications and additions between.
constexpr Index kStepWork = 1 << 16;

// They are asked to share so many at a time: with threads that were stopped before, they can share again.
constexpr Index kSharedWork = 1 << 28;

// How long to wait for the part of a step that another thread does, in nanoseconds: far longer than it takes, and far
// shorter than the system lets another process run.
constexpr std::int64_t Patience(Index work) { return 100'000 + work / 4; }

struct Sizes {
  Index instances, time, batch, hidden;
};

// Runs pack(instance, unit, panels), then run(instance, panels, part), for all of these and for all parts of `steps`
// steps; blocks of `units` hidden units are not divided.
//
// `threads`: 0 is as many as are worth it; otherwise at most so many, on a busy machine too.
template <typename Pool, typename Pack, typename Run>
ffi::Error Split(Pool& pool, Index threads, const Sizes& s, Index steps, Index units, Index panel_size,
                 const Pack& pack, const Run& run) {
  const bool is_free = threads <= 0;
  if (is_free) threads = std::max<Index>(pool.num_threads(), 1);
  const Index step_work = 4 * s.hidden * s.hidden * s.batch, work = step_work * std::max<Index>(steps, 1);
  if (s.instances * work < 2 * kChunkWork) threads = 1;
  Scratch panels(s.instances * panel_size);
  if (panels.get() == nullptr) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for packed weights");
  const Index blocks = Ceil(s.hidden, units);
  auto pack_block = [&](Index n) {
    pack(n / blocks, n % blocks * units, panels.get() + n / blocks * panel_size);
  };
  // How many threads divide the rows of an instance, of which each takes at least so many.
  auto chunks_of = [&](Index rows) {
    if (threads <= s.instances) return Index{1};
    return std::max<Index>(std::min({Ceil(threads, s.instances), s.batch / rows, work / kChunkWork}), 1);
  };
  auto run_rows = [&](Index chunks, Index begin, Index end) {
    Parallel(pool, threads, s.instances * chunks, s.instances * chunks, 0, [&](Index n) {
      const Index instance = n / chunks, chunk = n % chunks;
      run(instance, panels.get() + instance * panel_size,
          Part{s.batch * chunk / chunks, s.batch * (chunk + 1) / chunks, begin, end, 0, s.hidden});
    });
  };
  const Index chunks = chunks_of(kChunkRows), sharing = std::min({threads, blocks, step_work / kStepWork});
  if (s.instances > 1 || sharing < 2 * chunks) {
    Parallel(pool, threads, s.instances * blocks, s.instances * blocks, 0, pack_block);
    run_rows(chunks, 0, steps);
    return ffi::Error::Success();
  }
  // Rows too few for so many threads: they share the units of each step, while each has a processor.
  const Index most = is_free ? std::min(sharing, Processors()) : sharing;
  auto is_alone = [&] { return most == 1 || (is_free && Nanoseconds() < alone_until.load()); };
  const std::int64_t patience = Patience(step_work / blocks);
  Parallel(pool, is_alone() ? 1 : most, blocks, blocks, patience, pack_block);
  const Index some = std::max<Index>(kSharedWork / step_work, 1);
  for (Index begin = 0; begin < steps; begin += some) {
    const Index end = std::min(begin + some, steps);
    if (is_alone()) {
      run_rows(chunks_of(kAloneRows), begin, end);
      continue;
    }
    Parallel(pool, most, (end - begin) * blocks, blocks, patience, [&](Index n) {
      const Index step = begin + n / blocks, unit = n % blocks * units;
      run(0, panels.get(), Part{0, s.batch, step, step + 1, unit, std::min(unit + units, s.hidden)});
    });
  }
  return ffi::Error::Success();
}

using Array = ffi::Buffer<ffi::F32>;
using Output = ffi::Result<ffi::Buffer<ffi::F32>>;
using Booleans = ffi::Buffer<ffi::PRED>;

// The sizes from [instances, time, batch, 4 hidden] and [instances, hidden, 4 hidden].
bool GetSizes(const Array& gates, const Array& weights, Sizes* sizes) {
  const auto a = gates.dimensions(), b = weights.dimensions();
  if (a.size() != 4 || b.size() != 3 || a[0] != b[0] || a[3] != b[2] || b[2] != 4 * b[1]) return false;
  *sizes = {a[0], a[1], a[2], b[1]};
  return true;
}

ffi::Error WrongSizes() { return ffi::Error::InvalidArgument("LSTM kernel: the sizes of the arrays do not agree"); }

bool Has(const Array& array, Index size) { return static_cast<Index>(array.element_count()) == size; }
bool Has(Output& array, Index size) { return static_cast<Index>(array->element_count()) == size; }
bool HasResets(const Booleans& resets, const Sizes& s) {
  return static_cast<Index>(resets.element_count()) == s.instances * s.time * s.batch;
}

ffi::Error ForwardCall(ffi::ThreadPool pool, Array projected, Array bias, Array weights, Array h, Array c,
                       Booleans resets, Array reset_h, Array reset_c, Output hs, Output cs, Output activations,
                       Output last_h, Output last_c, bool reverse, std::int64_t threads) {
  Sizes s;
  if (!GetSizes(projected, weights, &s)) return WrongSizes();
  const Index states = s.batch * s.hidden, all = s.instances * states;
  if (!Has(bias, s.instances * 4 * s.hidden) || !Has(h, all) || !Has(c, all) || !Has(last_h, all) ||
      !Has(last_c, all) || !Has(hs, all * s.time) || (!Has(cs, 0) && !Has(cs, all * s.time)) ||
      (!Has(activations, 0) && !Has(activations, 4 * all * s.time))) {
    return WrongSizes();
  }
  const bool has_resets = reset_h.dimensions().size() == 3;
  if (has_resets && (!HasResets(resets, s) || !Has(reset_h, all) || !Has(reset_c, all))) return WrongSizes();
  auto pack = [&](Index v, Index unit, float* panels) {
    PackForward(weights.typed_data() + v * 4 * s.hidden * s.hidden, s.hidden, unit, panels);
  };
  if (s.instances == 0 || states == 0) return ffi::Error::Success();
  auto job = [&](Index v) {
    const Index sequence = v * s.time * states, state = v * states;
    return Forward{s.time, s.batch, s.hidden, reverse, projected.typed_data() + 4 * sequence,
                   bias.typed_data() + v * 4 * s.hidden, h.typed_data() + state, c.typed_data() + state,
                   hs->typed_data() + sequence, Has(cs, 0) ? nullptr : cs->typed_data() + sequence,
                   Has(activations, 0) ? nullptr : activations->typed_data() + 4 * sequence,
                   last_h->typed_data() + state, last_c->typed_data() + state,
                   has_resets ? Resets{resets.typed_data() + v * s.time * s.batch, reset_h.typed_data() + state,
                                       reset_c.typed_data() + state}
                              : Resets{}};
  };
  auto run = [&](Index v, const float* panels, const Part& part) { RunForward(job(v), panels, part); };
  auto error = Split(pool, threads, s, s.time, kBlocks * kWidth, ForwardPanelSize(s.hidden), pack, run);
  if (error.success()) {
    for (Index v = 0; v < s.instances; ++v) FinishForward(job(v));
  }
  return error;
}

ffi::Error BackwardCall(ffi::ThreadPool pool, Array activations, Array cs, Array c, Array weights, Array d_hs,
                        Array d_cs, Array d_last_h, Array d_last_c, Booleans resets, Array reset_c,
                        Output d_projected, Output d_h, Output d_c, Output d_reset_h, Output d_reset_c, bool reverse,
                        std::int64_t threads) {
  Sizes s;
  if (!GetSizes(activations, weights, &s)) return WrongSizes();
  const Index states = s.batch * s.hidden, all = s.instances * states;
  if (!Has(cs, all * s.time) || !Has(c, all) || !Has(d_last_h, all) || !Has(d_last_c, all) || !Has(d_h, all) ||
      !Has(d_c, all) || !Has(d_projected, 4 * all * s.time)) {
    return WrongSizes();
  }
  const bool has_resets = reset_c.dimensions().size() == 3;
  if (has_resets &&
      (!HasResets(resets, s) || !Has(reset_c, all) || !Has(d_reset_h, all) || !Has(d_reset_c, all))) {
    return WrongSizes();
  }
  if ((!Has(d_hs, 0) && !Has(d_hs, all * s.time)) || (!Has(d_cs, 0) && !Has(d_cs, all * s.time))) return WrongSizes();
  auto pack = [&](Index v, Index unit, float* panels) {
    PackBackward(weights.typed_data() + v * 4 * s.hidden * s.hidden, s.hidden, unit, panels);
  };
  if (s.instances == 0 || states == 0) return ffi::Error::Success();
  auto job = [&](Index v) {
    const Index sequence = v * s.time * states, state = v * states;
    return Backward{s.time, s.batch, s.hidden, reverse, activations.typed_data() + 4 * sequence,
                    cs.typed_data() + sequence, c.typed_data() + state,
                    Has(d_hs, 0) ? nullptr : d_hs.typed_data() + sequence,
                    Has(d_cs, 0) ? nullptr : d_cs.typed_data() + sequence, d_last_h.typed_data() + state,
                    d_last_c.typed_data() + state, d_projected->typed_data() + 4 * sequence,
                    d_h->typed_data() + state, d_c->typed_data() + state,
                    has_resets ? Resets{resets.typed_data() + v * s.time * s.batch, nullptr,
                                        reset_c.typed_data() + state}
                               : Resets{},
                    has_resets ? d_reset_h->typed_data() + state : nullptr,
                    has_resets ? d_reset_c->typed_data() + state : nullptr};
  };
  for (Index v = 0; v < s.instances; ++v) BeginBackward(job(v));
  auto run = [&](Index v, const float* panels, const Part& part) { RunBackward(job(v), panels, part); };
  const Index steps = s.time == 0 ? 0 : s.time + 1;
  return Split(pool, threads, s, steps, kGroup * kWidth, BackwardPanelSize(s.hidden), pack, run);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LstmForward, ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // projected [V, T, B, 4H]
                                  .Arg<Array>()  // bias [V, 4H]
                                  .Arg<Array>()  // weights [V, H, 4H]
                                  .Arg<Array>()  // h [V, B, H]
                                  .Arg<Array>()  // c [V, B, H]
                                  .Arg<Booleans>()  // resets [V, T, B, 1], or no element: none
                                  .Arg<Array>()  // h after a reset [V, B, H], likewise
                                  .Arg<Array>()  // c after a reset [V, B, H], likewise
                                  .Ret<Array>()  // hs [V, T, B, H]
                                  .Ret<Array>()  // cs [V, T, B, H], or no element: not wanted
                                  .Ret<Array>()  // activations [V, T, B, 4H], likewise
                                  .Ret<Array>()  // last h [V, B, H]
                                  .Ret<Array>()  // last c [V, B, H]
                                  .Attr<bool>("reverse")
                                  .Attr<std::int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LstmBackward, BackwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // activations [V, T, B, 4H]
                                  .Arg<Array>()  // cs [V, T, B, H]
                                  .Arg<Array>()  // c [V, B, H]
                                  .Arg<Array>()  // weights [V, H, 4H]
                                  .Arg<Array>()  // d hs [V, T, B, H], or no element: zero
                                  .Arg<Array>()  // d cs, likewise
                                  .Arg<Array>()  // d last h [V, B, H]
                                  .Arg<Array>()  // d last c [V, B, H]
                                  .Arg<Booleans>()  // resets [V, T, B, 1], or no element: none
                                  .Arg<Array>()  // c after a reset [V, B, H], likewise
                                  .Ret<Array>()  // d projected [V, T, B, 4H]
                                  .Ret<Array>()  // d h [V, B, H]
                                  .Ret<Array>()  // d c [V, B, H]
                                  .Ret<Array>()  // d h after a reset [V, B, H], or no element
                                  .Ret<Array>()  // d c after a reset, likewise
                                  .Attr<bool>("reverse")
                                  .Attr<std::int64_t>("threads"));
