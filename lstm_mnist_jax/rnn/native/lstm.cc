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

#include "common.h"

namespace {

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
  if (job.d_reset_h != nullptr) {
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

// ------------------------------------------------------------------------------------------------------ calls

ffi::Error ForwardCall(ffi::ThreadPool pool, Array projected, Array bias, Array weights, Array h, Array c,
                       Booleans resets, Array reset_h, Array reset_c, Output hs, Output cs, Output activations,
                       Output last_h, Output last_c, bool reverse, std::int64_t threads) {
  Sizes s;
  if (!GetSizes(projected, weights, 4, &s)) return WrongSizes();
  const Index states = s.batch * s.hidden, all = s.instances * states;
  if (!Has(bias, s.instances * 4 * s.hidden) || !Has(h, all) || !Has(c, all) || !Has(last_h, all) ||
      !Has(last_c, all) || !Has(hs, all * s.time) || (!Has(cs, 0) && !Has(cs, all * s.time)) ||
      (!Has(activations, 0) && !Has(activations, 4 * all * s.time))) {
    return WrongSizes();
  }
  const bool has_resets = reset_h.dimensions().size() == 3;
  if (has_resets && (!HasResets(resets, s) || !Has(reset_h, all) || !Has(reset_c, all))) return WrongSizes();
  auto pack = [&](Index v, Index unit, float* panels) {
    PackForward<4>(weights.typed_data() + v * 4 * s.hidden * s.hidden, s.hidden, unit, kBlocks * kWidth, panels);
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
  auto error = Split(pool, threads, s, s.time, kBlocks * kWidth, ForwardPanelSize<4>(s.hidden), pack, run);
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
  if (!GetSizes(activations, weights, 4, &s)) return WrongSizes();
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
    PackBackward<4>(weights.typed_data() + v * 4 * s.hidden * s.hidden, s.hidden, unit, panels);
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
  return Split(pool, threads, s, steps, kGroup * kWidth, BackwardPanelSize<4>(s.hidden), pack, run);
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
