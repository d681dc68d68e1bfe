// The GRU recurrence on a CPU, forward and backward, as two custom calls of XLA: the loops that `lstm.cc` has for the
// LSTM, for a step whose reset gate stands after the product,
//
//     r, z = sigmoid(x + h U)    n = tanh(x + r (h U + d))    h' = n + z (h - n)
//
// Computes what `lstm_mnist_jax.rnn.xla_loops` computes with two XLA loops. The columns of r and z come scaled by 1/2.
// A bias has four parts of `hidden` columns: those of r, z and n, and d.

#include "common.h"

namespace {

// ---------------------------------------------------------------------------------------------------- forward

// Sizes of a tile: accumulators for `rows` x 3 gates, three vectors of weights and a value of h fill the registers.
constexpr Index kForwardRows = kRegisters == 32 ? 8 : 4;

// Blocks of units at once where there is one row alone, and where there are two.
constexpr Index kBlocks = 4;
constexpr Index kBlocksOfTwo = 2;

// Where the carry returns to another state before a step: booleans [time, batch], and this state. Or nullptr.
struct Resets {
  const bool* at;
  const float* h;
};

// `activations` may be the memory of `projected`: a tile reads its part of one before it writes it to the other.
struct Forward {
  Index time, batch, hidden;
  bool reverse;
  const float *projected, *bias, *initial_h;
  float *hs, *activations, *recurrents;  // activations, recurrents: nullptr where not wanted
  float* last_h;
  Resets resets;
};

// What one time step reads and writes, each [batch, hidden] or [batch, 3 hidden].
struct ForwardStep {
  const float *projected, *bias, *h;
  float *new_h, *activations, *recurrents;
};

// The new state of some rows x blocks of kWidth hidden units, from `sums`: vectors [blocks][3 gates][rows].
//
// (Not a part of each tile's own code: that would take the compiler twice as long.)
__attribute__((noinline)) void ForwardGates(const ForwardStep& step, Index hidden, const Vector* sums, Index rows,
                                            Index blocks, Index row, Index unit) {
  for (Index end = unit + blocks * kWidth; unit < end; unit += kWidth, sums += 3 * rows) {
    const Index count = hidden - unit;
    const Vector bias = Load(step.bias + 2 * hidden + unit, count);
    for (Index i = 0; i < rows; ++i) {
      const Index at = (row + i) * hidden + unit, gates_at = (row + i) * 3 * hidden + unit;
      const Vector r = Tanh(sums[i]), z = Tanh(sums[rows + i]), recurrent = sums[2 * rows + i];
      const Vector projected = Load(step.projected + gates_at + 2 * hidden, count) + bias;
      const Vector n = Tanh(MultiplyAdd(Sigmoid(r), recurrent, projected));
      if (step.activations != nullptr) {
        Store(step.activations + gates_at, r, count);
        Store(step.activations + gates_at + hidden, z, count);
        Store(step.activations + gates_at + 2 * hidden, n, count);
        Store(step.recurrents + at, recurrent, count);
      }
      Store(step.new_h + at, MultiplyAdd(Sigmoid(z), Load(step.h + at, count) - n, n), count);
    }
  }
}

// One step for R rows x J blocks of kWidth hidden units.
template <Index R, Index J>
__attribute__((noinline)) void ForwardTile(const ForwardStep& step, Index hidden, const float* panels, Index row,
                                           Index unit) {
  const Index gates = 3 * hidden;
  Vector sums[J][3][R];
  UNROLL for (Index j = 0; j < J; ++j) {
    const Index u = unit + j * kWidth, count = hidden - u;
    UNROLL for (Index gate = 0; gate < 2; ++gate) {
      const Vector bias = Load(step.bias + gate * hidden + u, count);
      UNROLL for (Index r = 0; r < R; ++r) {
        sums[j][gate][r] = Load(step.projected + (row + r) * gates + gate * hidden + u, count) + bias;
      }
    }
    const Vector bias = Load(step.bias + gates + u, count);
    UNROLL for (Index r = 0; r < R; ++r) sums[j][2][r] = bias;
  }
  const float* h = step.h + row * hidden;
  const float* panel = panels + unit * gates;
  const Index panel_size = gates * kWidth;
  for (Index k = 0; k < hidden; ++k, panel += 3 * kWidth) {
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index r = 0; r < R; ++r) {
        const Vector value = Fill(h[r * hidden + k]);
        UNROLL for (Index gate = 0; gate < 3; ++gate) {
          sums[j][gate][r] = MultiplyAdd(value, Load(panel + j * panel_size + gate * kWidth), sums[j][gate][r]);
        }
      }
    }
  }
  Vector done[J][3][R];  // in memory, as `sums` must not be
  UNROLL for (Index j = 0; j < J; ++j) {
    UNROLL for (Index gate = 0; gate < 3; ++gate) {
      UNROLL for (Index r = 0; r < R; ++r) done[j][gate][r] = sums[j][gate][r];
    }
  }
  ForwardGates(step, hidden, &done[0][0][0], R, J, row, unit);
}

void ForwardRows(const ForwardStep& step, Index hidden, const float* panels, Index row, Index rows, Index unit) {
  switch (rows) {
#define ROWS(R) case R: if constexpr (R <= kForwardRows) ForwardTile<R, 1>(step, hidden, panels, row, unit); return;
    ROWS(1) ROWS(2) ROWS(3) ROWS(4)
    ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
  }
}

// `ForwardRows` where some of these rows begin anew: on a copy of their h.
void ForwardRowsWithResets(const Forward& job, const ForwardStep& step, const bool* resets, const float* panels,
                           Index row, Index rows, Index unit) {
  const Index hidden = job.hidden;
  if (std::none_of(resets + row, resets + row + rows, [](bool reset) { return reset; })) {
    return ForwardRows(step, hidden, panels, row, rows, unit);
  }
  static thread_local std::vector<float> h;
  h.resize(kForwardRows * hidden);
  for (Index r = 0; r < rows; ++r) {
    const float* from = resets[row + r] ? job.resets.h : step.h;
    std::memcpy(h.data() + r * hidden, from + (row + r) * hidden, hidden * sizeof(float));
  }
  const Index states = row * hidden, gates = 3 * states;
  const bool is_kept = step.activations != nullptr;
  const ForwardStep moved{step.projected + gates, step.bias, h.data(), step.new_h + states,
                          is_kept ? step.activations + gates : nullptr, is_kept ? step.recurrents + states : nullptr};
  ForwardRows(moved, hidden, panels, 0, rows, unit);
}

void RunForward(const Forward& job, const float* panels, const Part& part) {
  const Index states = job.batch * job.hidden;
  const Index rows = part.end_row - part.row, tiles = Ceil(rows, kForwardRows);
  for (Index s = part.step; s < part.end_step; ++s) {
    const Index t = job.reverse ? job.time - 1 - s : s, before = job.reverse ? t + 1 : t - 1;
    const bool is_kept = job.activations != nullptr;
    const ForwardStep step{job.projected + t * 3 * states, job.bias,
                           s == 0 ? job.initial_h : job.hs + before * states, job.hs + t * states,
                           is_kept ? job.activations + t * 3 * states : nullptr,
                           is_kept ? job.recurrents + t * states : nullptr};
    Index unit = part.unit;
    const bool* resets = job.resets.at == nullptr ? nullptr : job.resets.at + t * job.batch;
    if (resets == nullptr) {  // too few sums to keep the multipliers busy: several blocks of units at once
      for (; rows == 1 && unit + kBlocks * kWidth <= part.end_unit; unit += kBlocks * kWidth) {
        ForwardTile<1, kBlocks>(step, job.hidden, panels, part.row, unit);
      }
      for (; rows == 2 && unit + kBlocksOfTwo * kWidth <= part.end_unit; unit += kBlocksOfTwo * kWidth) {
        ForwardTile<2, kBlocksOfTwo>(step, job.hidden, panels, part.row, unit);
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

// The last state from those of every step, for all rows.
void FinishForward(const Forward& job) {
  const Index states = job.batch * job.hidden, last = job.reverse ? 0 : (job.time - 1) * states;
  std::memcpy(job.last_h, job.time == 0 ? job.initial_h : job.hs + last, states * sizeof(float));
}

// --------------------------------------------------------------------------------------------------- backward

// Accumulators for rows x kGroup vectors of hidden units.
constexpr Index kBackwardRows = kRegisters == 32 ? 6 : 3;

// `d_projected` may be the memory of `activations`, as in `Forward`, and `d_recurrents` that of `recurrents`.
struct Backward {
  Index time, batch, hidden;
  bool reverse;
  const float *activations, *recurrents, *hs, *initial_h;
  const float* d_hs;  // nullptr: 0
  const float* d_last_h;
  float *d_projected, *d_recurrents, *d_h;
  Resets resets;
  float* d_reset_h;
};

struct BackwardStep {
  const float *next, *next_recurrents;  // `d_projected` and `d_recurrents` of the step after this, or nullptr
  const float *activations, *recurrents, *previous_h, *d_hs;
  float *d_projected, *d_recurrents;  // nullptr: before the first step
  float* d_h;  // before: the gradient that reaches h by z alone
  const bool *resets, *next_resets;  // before this step, and before the step after it; or nullptr
  const float* reset_h;
  float* d_reset_h;
};

// The gradient at the gates of some rows x vectors of hidden units, from that of h: [rows][vectors].
__attribute__((noinline)) void BackwardGates(const BackwardStep& step, Index hidden, const Vector* sums, Index rows,
                                             Index vectors, Index row, Index unit) {
  for (const Index end = row + rows; row < end; ++row) {
    for (Index v = 0; v < vectors; ++v, ++sums) {
      const Index u = unit + v * kWidth, count = hidden - u, at = row * hidden + u, gates_at = row * 3 * hidden + u;
      Vector dh = *sums;
      if (step.next_resets != nullptr && step.next_resets[row]) {  // the step after this began anew
        Store(step.d_reset_h + at, Load(step.d_reset_h + at, count) + dh, count);
        dh = Vector{};
      }
      if (step.d_projected == nullptr) {
        Store(step.d_h + at, dh, count);
        continue;
      }
      if (step.d_hs != nullptr) dh += Load(step.d_hs + at, count);
      const float* activations = step.activations + gates_at;
      const Vector r = Load(activations, count), z = Load(activations + hidden, count);
      const Vector n = Load(activations + 2 * hidden, count);
      const float* previous_h = step.resets != nullptr && step.resets[row] ? step.reset_h : step.previous_h;
      const Vector dn = dh * Sigmoid(-z) * TanhSlope(n);  // sigmoid(-z) = 1 - sigmoid(z)
      const Vector dr = dn * Load(step.recurrents + at, count) * SigmoidSlope(r);
      const Vector dz = dh * SigmoidSlope(z) * (Load(previous_h + at, count) - n);
      float* d_projected = step.d_projected + gates_at;
      Store(d_projected, dr, count);
      Store(d_projected + hidden, dz, count);
      Store(d_projected + 2 * hidden, dn, count);
      Store(step.d_recurrents + at, dn * Sigmoid(r), count);
      Store(step.d_h + at, dh * Sigmoid(z), count);
    }
  }
}

// One step for R rows x C vectors of hidden units: dh from the step after it, then the gradient at the gates.
template <Index R, Index C>
__attribute__((noinline)) void BackwardTile(const BackwardStep& step, Index hidden, const float* panels, Index row,
                                            Index unit) {
  const Index gates = 3 * hidden;
  Vector sums[R][C];
  UNROLL for (Index r = 0; r < R; ++r) {
    UNROLL for (Index c = 0; c < C; ++c) {
      const Index u = unit + c * kWidth;
      sums[r][c] = Load(step.d_h + (row + r) * hidden + u, hidden - u);
    }
  }
  if (step.next != nullptr) {
    const float* panel = panels + unit * gates;
    auto multiply = [&](const float* gradients, Index stride, Index end) __attribute__((always_inline)) {
      for (Index k = 0; k < end; ++k, panel += C * kWidth) {
        UNROLL for (Index r = 0; r < R; ++r) {
          const Vector value = Fill(gradients[r * stride + k]);
          UNROLL for (Index c = 0; c < C; ++c) sums[r][c] = MultiplyAdd(value, Load(panel + c * kWidth), sums[r][c]);
        }
      }
    };
    multiply(step.next + row * gates, gates, 2 * hidden);
    multiply(step.next_recurrents + row * hidden, hidden, hidden);
  }
  Vector done[R][C];
  UNROLL for (Index r = 0; r < R; ++r) {
    UNROLL for (Index c = 0; c < C; ++c) done[r][c] = sums[r][c];
  }
  BackwardGates(step, hidden, &done[0][0], R, C, row, unit);
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

// The state after the last step, where the backward pass begins, for all rows.
void BeginBackward(const Backward& job) {
  const Index bytes = job.batch * job.hidden * sizeof(float);
  std::memcpy(job.d_h, job.d_last_h, bytes);
  if (job.d_reset_h != nullptr) std::memset(job.d_reset_h, 0, bytes);
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
    if (s > 0) {
      step.next = job.d_projected + next * 3 * states;
      step.next_recurrents = job.d_recurrents + next * states;
    }
    if (job.resets.at != nullptr) {
      if (s > 0) step.next_resets = job.resets.at + next * job.batch;
      if (n >= 0) step.resets = job.resets.at + t * job.batch;
      step.reset_h = job.resets.h;
      step.d_reset_h = job.d_reset_h;
    }
    if (n >= 0) {
      step.activations = job.activations + t * 3 * states;
      step.recurrents = job.recurrents + t * states;
      step.previous_h = n == 0 ? job.initial_h : job.hs + previous * states;
      step.d_hs = job.d_hs == nullptr ? nullptr : job.d_hs + t * states;
      step.d_projected = job.d_projected + t * 3 * states;
      step.d_recurrents = job.d_recurrents + t * states;
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

// ------------------------------------------------------------------------------------------------------ calls

ffi::Error ForwardCall(ffi::ThreadPool pool, Array projected, Array bias, Array weights, Array h, Booleans resets,
                       Array reset_h, Output hs, Output activations, Output recurrents, Output last_h, bool reverse,
                       std::int64_t threads) {
  Sizes s;
  if (!GetSizes(projected, weights, 3, &s)) return WrongSizes();
  const Index states = s.batch * s.hidden, all = s.instances * states;
  const bool is_kept = !Has(activations, 0);
  if (!Has(bias, s.instances * 4 * s.hidden) || !Has(h, all) || !Has(last_h, all) || !Has(hs, all * s.time) ||
      (is_kept && (!Has(activations, 3 * all * s.time) || !Has(recurrents, all * s.time)))) {
    return WrongSizes();
  }
  const bool has_resets = reset_h.dimensions().size() == 3;
  if (has_resets && (!HasResets(resets, s) || !Has(reset_h, all))) return WrongSizes();
  auto pack = [&](Index v, Index unit, float* panels) {
    PackForward<3>(weights.typed_data() + v * 3 * s.hidden * s.hidden, s.hidden, unit, kBlocks * kWidth, panels);
  };
  if (s.instances == 0 || states == 0) return ffi::Error::Success();
  auto job = [&](Index v) {
    const Index sequence = v * s.time * states, state = v * states;
    return Forward{s.time, s.batch, s.hidden, reverse, projected.typed_data() + 3 * sequence,
                   bias.typed_data() + v * 4 * s.hidden, h.typed_data() + state, hs->typed_data() + sequence,
                   is_kept ? activations->typed_data() + 3 * sequence : nullptr,
                   is_kept ? recurrents->typed_data() + sequence : nullptr, last_h->typed_data() + state,
                   has_resets ? Resets{resets.typed_data() + v * s.time * s.batch, reset_h.typed_data() + state}
                              : Resets{}};
  };
  auto run = [&](Index v, const float* panels, const Part& part) { RunForward(job(v), panels, part); };
  auto error = Split(pool, threads, s, s.time, kBlocks * kWidth, ForwardPanelSize<3>(s.hidden), pack, run);
  if (error.success()) {
    for (Index v = 0; v < s.instances; ++v) FinishForward(job(v));
  }
  return error;
}

ffi::Error BackwardCall(ffi::ThreadPool pool, Array activations, Array recurrents, Array hs, Array h, Array weights,
                        Array d_hs, Array d_last_h, Booleans resets, Array reset_h, Output d_projected,
                        Output d_recurrents, Output d_h, Output d_reset_h, bool reverse, std::int64_t threads) {
  Sizes s;
  if (!GetSizes(activations, weights, 3, &s)) return WrongSizes();
  const Index states = s.batch * s.hidden, all = s.instances * states;
  if (!Has(recurrents, all * s.time) || !Has(hs, all * s.time) || !Has(h, all) || !Has(d_last_h, all) ||
      (!Has(d_hs, 0) && !Has(d_hs, all * s.time)) || !Has(d_projected, 3 * all * s.time) ||
      !Has(d_recurrents, all * s.time) || !Has(d_h, all)) {
    return WrongSizes();
  }
  const bool has_resets = reset_h.dimensions().size() == 3;
  if (has_resets && (!HasResets(resets, s) || !Has(reset_h, all) || !Has(d_reset_h, all))) return WrongSizes();
  auto pack = [&](Index v, Index unit, float* panels) {
    PackBackward<3>(weights.typed_data() + v * 3 * s.hidden * s.hidden, s.hidden, unit, panels);
  };
  if (s.instances == 0 || states == 0) return ffi::Error::Success();
  auto job = [&](Index v) {
    const Index sequence = v * s.time * states, state = v * states;
    return Backward{s.time, s.batch, s.hidden, reverse, activations.typed_data() + 3 * sequence,
                    recurrents.typed_data() + sequence, hs.typed_data() + sequence, h.typed_data() + state,
                    Has(d_hs, 0) ? nullptr : d_hs.typed_data() + sequence, d_last_h.typed_data() + state,
                    d_projected->typed_data() + 3 * sequence, d_recurrents->typed_data() + sequence,
                    d_h->typed_data() + state,
                    has_resets ? Resets{resets.typed_data() + v * s.time * s.batch, reset_h.typed_data() + state}
                               : Resets{},
                    has_resets ? d_reset_h->typed_data() + state : nullptr};
  };
  for (Index v = 0; v < s.instances; ++v) BeginBackward(job(v));
  auto run = [&](Index v, const float* panels, const Part& part) { RunBackward(job(v), panels, part); };
  const Index steps = s.time == 0 ? 0 : s.time + 1;
  return Split(pool, threads, s, steps, kGroup * kWidth, BackwardPanelSize<3>(s.hidden), pack, run);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GruForward, ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // projected [V, T, B, 3H]
                                  .Arg<Array>()  // bias [V, 4H]
                                  .Arg<Array>()  // weights [V, H, 3H]
                                  .Arg<Array>()  // h [V, B, H]
                                  .Arg<Booleans>()  // resets [V, T, B, 1], or no element: none
                                  .Arg<Array>()  // h after a reset [V, B, H], likewise
                                  .Ret<Array>()  // hs [V, T, B, H]
                                  .Ret<Array>()  // activations [V, T, B, 3H], or no element: not wanted
                                  .Ret<Array>()  // h U + d of the gate n [V, T, B, H], likewise
                                  .Ret<Array>()  // last h [V, B, H]
                                  .Attr<bool>("reverse")
                                  .Attr<std::int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GruBackward, BackwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()  // activations [V, T, B, 3H]
                                  .Arg<Array>()  // h U + d of the gate n [V, T, B, H]
                                  .Arg<Array>()  // hs [V, T, B, H]
                                  .Arg<Array>()  // h [V, B, H]
                                  .Arg<Array>()  // weights [V, H, 3H]
                                  .Arg<Array>()  // d hs [V, T, B, H], or no element: zero
                                  .Arg<Array>()  // d last h [V, B, H]
                                  .Arg<Booleans>()  // resets [V, T, B, 1], or no element: none
                                  .Arg<Array>()  // h after a reset [V, B, H], likewise
                                  .Ret<Array>()  // d projected [V, T, B, 3H]
                                  .Ret<Array>()  // d of h U + d of the gate n [V, T, B, H]
                                  .Ret<Array>()  // d h [V, B, H]
                                  .Ret<Array>()  // d h after a reset [V, B, H], or no element
                                  .Attr<bool>("reverse")
                                  .Attr<std::int64_t>("threads"));
