// The loops of the cells as the rest of the library calls them.
//
// `loops.cc` is compiled for a kind of processor, `ffi.cc` calls it. No function of the C++ library is instantiated in
// what `loops.cc` includes: compiled for one kind of processor, it could be what another kind runs.

#pragma once

#include <cstdint>

namespace lstm_mnist_jax {

using Index = std::int64_t;

#define INLINE inline __attribute__((always_inline))

constexpr INLINE Index Ceil(Index value, Index divisor) { return (value + divisor - 1) / divisor; }
constexpr INLINE Index Least(Index a, Index b) { return b < a ? b : a; }

// The states of a cell: h and, of an LSTM, c.
constexpr Index kStates = 2;

// The forward loop over one network's batch. Arrays are contiguous, time-major: [time, batch, ...].
// `activations` may be the memory of `projected`: a tile reads its part of one before it writes it to the other.
struct Forward {
  Index time, batch, features, hidden;  // 0 features where the inputs are projected
  bool reverse;
  const float *projected, *inputs;  // inputs that are projected, or that the loop projects; the others are nullptr
  const float* initial[kStates];
  float* states[kStates];           // of every step; of c nullptr where not wanted
  float *activations, *recurrents;  // of sigmoids tanh(z/2); nullptr where not wanted; only a GRU has `recurrents`
  float* last[kStates];             // of c also the state, where those of every step are not wanted
  const bool* resets;               // [time, batch]: before which steps the carry returns to `reset_states`; or nullptr
  const float* reset_states[kStates];
};

// The backward loop. `d_projected` may be the memory of `activations`, and `d_recurrents` that of `recurrents`.
struct Backward {
  Index time, batch, hidden;
  bool reverse;
  const float *activations, *recurrents;
  const float *states, *initial;  // of every step, and before the first: c of an LSTM, h of a GRU
  const float* d_states[kStates];  // nullptr: 0
  float *d_projected, *d_recurrents;
  float* d_state[kStates];  // before: the gradient at the last state; after: that at the initial one
  const bool* resets;
  const float* reset_state;
  float* d_reset_states[kStates];
};

// The gradient of a matrix [rows, columns]: the sum over time and batch of `inputs` [.., rows] times `gradients`
// [.., columns]. With `initial`, [batch, rows], the inputs are the states after each step, of which each entered the next.
struct WeightGradient {
  Index time, batch, rows, columns;
  bool reverse;
  const float *inputs, *initial;  // `initial` may be nullptr
  const float* gradients;
  float *d_weights, *d_bias;  // `d_bias`, the sum of the gradients, nullptr where not wanted
};

// Some of the rows of a batch, over some of the steps, for some of the hidden units: what a thread does at once. The
// units of a step may be computed when all those of the step before, of the same rows, have been.
struct Part {
  Index row, end_row, step, end_step, unit, end_unit;
};

// The weights of a cell: [features, gates * hidden], [hidden, gates * hidden] and [4 * hidden].
struct Weights {
  Index features, hidden;  // 0 features where the inputs are projected
  const float *of_inputs, *recurrent, *bias;
};

constexpr Index kBiases = 4;

// The loops of a cell. Panels are packed weights: of `Ceil(hidden, width) * width * (gates * inner + kBiases)` floats.
// `inner` is features + hidden in the forward loop, and hidden in the backward loop.
struct Cell {
  Index gates, states;
  Index forward_units, backward_units;  // blocks of hidden units that are not divided
  Index forward_rows;                   // the most rows of a tile
  // Packs the weights, or the recurrent ones, of a block that begins with `unit`.
  void (*pack_forward)(const Weights& weights, Index unit, float* panels);
  void (*pack_backward)(const float* weights, Index hidden, Index unit, float* panels);
  // `copies`: memory of `states * forward_rows * hidden` floats where there are resets.
  void (*forward)(const Forward& job, const float* panels, float* copies, const Part& part);
  // Its steps are counted from the end of the sequence; beyond the last one stands that to the gradient of the initial
  // states.
  void (*backward)(const Backward& job, const float* panels, const Part& part);
};

struct Loops {
  Index width;       // floats in a vector
  Index chunk_rows;  // rows enough that the weights are not read for a single tile
  Cell lstm, gru;
  Index gradient_columns;  // of a panel, which is not divided
  // Of the rows and columns (units) of a part, all steps.
  void (*weight_gradient)(const WeightGradient& job, const Part& part);
};

// Those of the processor that they are compiled for; a wheel's library also has those of better processors.
extern const Loops loops, loops_avx2, loops_avx512;

}  // namespace lstm_mnist_jax
