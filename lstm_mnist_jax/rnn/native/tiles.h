// What a tile of rows x hidden units reads and writes in one time step, each array [batch, hidden],
// [batch, gates * hidden] or, of inputs, [batch, features].

#pragma once

#include "vectors.h"

namespace {

struct ForwardStep {
  const float *projected, *inputs;  // `projected` may be nullptr: 0
  Index features;
  const float* states[kStates];  // before the step
  float* new_states[kStates];
  float *activations, *recurrents;  // nullptr where not wanted
};

struct BackwardStep {
  const float *next, *next_recurrents;  // `d_projected` and `d_recurrents` of the step after this, or nullptr
  const float *activations, *recurrents, *state, *previous;
  const float* d_outputs[kStates];  // nullptr: 0
  float *d_projected, *d_recurrents;  // nullptr: before the first step
  float* d_state[kStates];  // the gradient that reaches a state without the weights
  const bool *resets, *next_resets;  // before this step, and before the step after it; or nullptr
  const float* reset_state;
  float* d_reset_states[kStates];
};

// Accumulators of a backward tile: so many rows x kGroup vectors of hidden units.
constexpr Index kBackwardRows = kRegisters == 32 ? 6 : 3;

}  // namespace
