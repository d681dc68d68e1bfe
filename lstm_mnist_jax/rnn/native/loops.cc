// The recurrences on a CPU, forward and backward, and the gradients of their weights: what
// `lstm_mnist_jax.rnn.xla_loops` computes with two XLA loops and products.
//
// Why it is quicker than XLA's loop: one step of a loop in XLA is a call into a matrix library, which packs the
// same weights again in every step, and a handful of kernels that pass their results through memory. Here the weights
// are packed once a call; a tile of rows x hidden units keeps all gates in registers from the product to
// the new state; and a batch is split over threads by rows, which never meet until the sequence ends. Rows too few
// for that share the units of each step: then no processor reads all of the weights in every step.

#include <cstring>

#include "gru.h"
#include "lstm.h"
#include "weight_gradient.h"

namespace {

template <typename C>
void ForwardRows(const ForwardStep& step, Index hidden, const float* panels, Index row, Index rows, Index unit) {
  switch (rows) {
#define ROWS(R) \
  case R:       \
    if constexpr (R <= C::kForwardRows) C::template ForwardTile<R, 1>(step, hidden, panels, row, unit); \
    return;
    ROWS(1) ROWS(2) ROWS(3) ROWS(4)
    ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
  }
}

// `ForwardRows` where some of these rows begin anew: on a copy of their states.
template <typename C>
void ForwardRowsWithResets(const Forward& job, const ForwardStep& step, const bool* resets, const float* panels,
                           float* copies, Index row, Index rows, Index unit) {
  const Index hidden = job.hidden;
  bool any = false;
  for (Index r = 0; r < rows; ++r) any |= resets[row + r];
  if (!any) return ForwardRows<C>(step, hidden, panels, row, rows, unit);
  ForwardStep moved = step;
  for (Index s = 0; s < C::kStates; ++s) {
    float* copy = copies + s * C::kForwardRows * hidden;
    // Of c, the units of this tile alone: where c is kept in place, other threads write the others.
    const Index first = s == 0 ? 0 : unit, count = s == 0 ? hidden : Least(kWidth, hidden - unit);
    for (Index r = 0; r < rows; ++r) {
      const float* from = resets[row + r] ? job.reset_states[s] : step.states[s];
      std::memcpy(copy + r * hidden + first, from + (row + r) * hidden + first, count * sizeof(float));
    }
    moved.states[s] = copy;
    moved.new_states[s] = step.new_states[s] + row * hidden;
  }
  if (step.projected != nullptr) moved.projected += C::kGates * row * hidden;
  moved.inputs += row * step.features;
  if (step.activations != nullptr) moved.activations += C::kGates * row * hidden;
  if (step.recurrents != nullptr) moved.recurrents += row * hidden;
  ForwardRows<C>(moved, hidden, panels, 0, rows, unit);
}

template <typename C>
void RunForward(const Forward& job, const float* panels, float* copies, const Part& part) {
  const Index states = job.batch * job.hidden;
  const Index rows = part.end_row - part.row, tiles = Ceil(rows, C::kForwardRows);
  for (Index n = part.step; n < part.end_step; ++n) {
    const Index t = job.reverse ? job.time - 1 - n : n, before = job.reverse ? t + 1 : t - 1;
    ForwardStep step{};
    if (job.projected != nullptr) step.projected = job.projected + t * C::kGates * states;
    step.inputs = job.inputs + t * job.batch * job.features;
    step.features = job.features;
    for (Index s = 0; s < C::kStates; ++s) {
      float* every = job.states[s];
      step.states[s] = n == 0 ? job.initial[s] : every == nullptr ? job.last[s] : every + before * states;
      step.new_states[s] = every == nullptr ? job.last[s] : every + t * states;
    }
    if (job.activations != nullptr) step.activations = job.activations + t * C::kGates * states;
    if (job.recurrents != nullptr) step.recurrents = job.recurrents + t * states;
    const bool* resets = job.resets == nullptr ? nullptr : job.resets + t * job.batch;
    Index unit = part.unit;
    if (resets == nullptr) {  // too few sums to keep the multipliers busy: several blocks of units at once
      constexpr Index kBlocks = C::kBlocks, kOfTwo = C::kBlocksOfTwo;
      for (; rows == 1 && unit + kBlocks * kWidth <= part.end_unit; unit += kBlocks * kWidth) {
        C::template ForwardTile<1, kBlocks>(step, job.hidden, panels, part.row, unit);
      }
      for (; kBlocks > 2 && rows == 1 && unit + 2 * kWidth <= part.end_unit; unit += 2 * kWidth) {
        C::template ForwardTile<1, 2>(step, job.hidden, panels, part.row, unit);
      }
      for (; kOfTwo > 1 && rows == 2 && unit + kOfTwo * kWidth <= part.end_unit; unit += kOfTwo * kWidth) {
        C::template ForwardTile<2, kOfTwo>(step, job.hidden, panels, part.row, unit);
      }
    }
    for (; unit < part.end_unit; unit += kWidth) {
      Index row = part.row;
      for (Index tile = tiles; tile > 0; --tile) {
        const Index some = (part.end_row - row) / tile;
        if (resets == nullptr) {
          ForwardRows<C>(step, job.hidden, panels, row, some, unit);
        } else {
          ForwardRowsWithResets<C>(job, step, resets, panels, copies, row, some, unit);
        }
        row += some;
      }
    }
  }
}

template <typename C, Index Vectors>
void BackwardRows(const BackwardStep& step, Index hidden, const float* panels, Index row, Index rows, Index unit) {
  switch (rows) {
#define ROWS(R) \
  case R:       \
    if constexpr (R <= kBackwardRows) C::template BackwardTile<R, Vectors>(step, hidden, panels, row, unit); \
    return;
    ROWS(1) ROWS(2) ROWS(3)
    ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
  }
}

template <typename C>
void RunBackward(const Backward& job, const float* panels, const Part& part) {
  const Index states = job.batch * job.hidden;
  const Index tiles = Ceil(part.end_row - part.row, kBackwardRows);
  for (Index s = part.step; s < part.end_step; ++s) {
    const Index n = job.time - 1 - s;
    const Index t = job.reverse ? s : n, next = job.reverse ? t - 1 : t + 1, previous = job.reverse ? t + 1 : t - 1;
    BackwardStep step{};
    step.reset_state = job.reset_state;
    for (Index state = 0; state < C::kStates; ++state) {
      step.d_state[state] = job.d_state[state];
      step.d_reset_states[state] = job.d_reset_states[state];
    }
    if (s > 0) {
      step.next = job.d_projected + next * C::kGates * states;
      if (job.recurrents != nullptr) step.next_recurrents = job.d_recurrents + next * states;
    }
    if (job.resets != nullptr) {
      if (s > 0) step.next_resets = job.resets + next * job.batch;
      if (n >= 0) step.resets = job.resets + t * job.batch;
    }
    if (n >= 0) {
      step.activations = job.activations + t * C::kGates * states;
      step.d_projected = job.d_projected + t * C::kGates * states;
      step.state = job.states + t * states;
      step.previous = n == 0 ? job.initial : job.states + previous * states;
      for (Index state = 0; state < C::kStates; ++state) {
        if (job.d_states[state] != nullptr) step.d_outputs[state] = job.d_states[state] + t * states;
      }
      if (job.recurrents != nullptr) {
        step.recurrents = job.recurrents + t * states;
        step.d_recurrents = job.d_recurrents + t * states;
      }
    }
    for (Index unit = part.unit; unit < part.end_unit; unit += kGroup * kWidth) {
      Index row = part.row;
      for (Index tile = tiles; tile > 0; --tile) {
        const Index rows = (part.end_row - row) / tile;
        switch (Least(kGroup, Ceil(job.hidden - unit, kWidth))) {
          case 1: BackwardRows<C, 1>(step, job.hidden, panels, row, rows, unit); break;
          case 2: BackwardRows<C, 2>(step, job.hidden, panels, row, rows, unit); break;
          case 3: BackwardRows<C, 3>(step, job.hidden, panels, row, rows, unit); break;
          case 4: BackwardRows<C, 4>(step, job.hidden, panels, row, rows, unit); break;
        }
        row += rows;
      }
    }
  }
}

template <typename C>
constexpr Cell LoopsOf() {
  return {C::kGates, C::kStates, C::kBlocks * kWidth, kGroup * kWidth, C::kForwardRows,
          PackForward<C::kGates, C::kBlocks * kWidth>, PackBackward<C::kGates>, RunForward<C>, RunBackward<C>};
}

}  // namespace

#if !defined(LOOPS)
#define LOOPS loops  // a wheel's library has several
#endif

const Loops lstm_mnist_jax::LOOPS{kWidth, kRegisters == 32 ? 12 : 6, LoopsOf<Lstm>(), LoopsOf<Gru>(),
                                   kGradientVectors * kWidth, RunWeightGradient};
