// The LSTM: one step of a tile of rows x hidden units, forward and backward.

#pragma once

#include "tiles.h"

namespace {

struct Lstm {
  static constexpr Index kGates = 4, kStates = 2;

  // Accumulators for `rows` x 4 gates and what `AddProduct` keeps in registers fill them.
  static constexpr Index kForwardRows = kRegisters == 32 ? 6 : 3;

  // Blocks of units at once where there is one row alone, and where there are two.
  static constexpr Index kBlocks = kRegisters == 32 ? 4 : 2, kBlocksOfTwo = 1;

  // One step for R rows x J blocks of kWidth hidden units.
  template <Index R, Index J>
  static __attribute__((noinline)) void ForwardTile(const ForwardStep& step, Index hidden, const float* panels, Index row, Index unit) {
    const Index gates = 4 * hidden, features = step.features, panel_size = (kBiases + 4 * (features + hidden)) * kWidth;
    const float* panel = panels + unit / kWidth * panel_size;
    Vector sums[J][4][R];
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index gate = 0; gate < 4; ++gate) {
        const Vector bias = Load(panel + j * panel_size + gate * kWidth);
        UNROLL for (Index r = 0; r < R; ++r) sums[j][gate][r] = bias;
      }
    }
    if (step.projected != nullptr) AddProjected(sums, step.projected + row * gates, hidden, unit);
    panel += kBiases * kWidth;
    AddProduct(sums, step.inputs + row * features, features, panel, features, panel_size);
    panel += 4 * features * kWidth;
    AddProduct(sums, step.states[0] + row * hidden, hidden, panel, hidden, panel_size);
    Vector done[J][4][R];  // in memory, as `sums` must not be
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index gate = 0; gate < 4; ++gate) {
        UNROLL for (Index r = 0; r < R; ++r) done[j][gate][r] = sums[j][gate][r];
      }
    }
    for (Index j = 0; j < J; ++j, unit += kWidth) {
      const Index count = hidden - unit;
      for (Index r = 0; r < R; ++r) {
        const Index at = (row + r) * hidden + unit;
        const Vector i = Tanh(done[j][0][r]), f = Tanh(done[j][1][r]), g = Tanh(done[j][2][r]), o = Tanh(done[j][3][r]);
        if (step.activations != nullptr) {
          float* activations = step.activations + (row + r) * gates + unit;
          Store(activations, i, count);
          Store(activations + hidden, f, count);
          Store(activations + 2 * hidden, g, count);
          Store(activations + 3 * hidden, o, count);
        }
        const Vector c = MultiplyAdd(Sigmoid(f), Load(step.states[1] + at, count), Sigmoid(i) * g);
        Store(step.new_states[1] + at, c, count);
        Store(step.new_states[0] + at, Sigmoid(o) * Tanh(c), count);
      }
    }
  }

  // One step for R rows x C vectors of hidden units: dh from the step after it, then the gradient at the gates.
  template <Index R, Index C>
  static __attribute__((noinline)) void BackwardTile(const BackwardStep& step, Index hidden, const float* panels, Index row,
                                              Index unit) {
    const Index gates = 4 * hidden;
    Vector done[R][C];  // in memory, as `sums` must not be
    if (step.next != nullptr) {
      Vector sums[1][C][R];
      UNROLL for (Index c = 0; c < C; ++c) {
        UNROLL for (Index r = 0; r < R; ++r) sums[0][c][r] = Vector{};
      }
      AddProduct(sums, step.next + row * gates, gates, panels + unit * gates, gates, 0);
      UNROLL for (Index r = 0; r < R; ++r) {
        UNROLL for (Index c = 0; c < C; ++c) done[r][c] = sums[0][c][r];
      }
    } else {
      for (Index r = 0; r < R; ++r) {
        for (Index c = 0; c < C; ++c) {
          const Index u = unit + c * kWidth;
          done[r][c] = Load(step.d_state[0] + (row + r) * hidden + u, hidden - u);
        }
      }
    }
    for (Index r = 0; r < R; ++r) {
      for (Index v = 0; v < C; ++v) {
        const Index u = unit + v * kWidth, count = hidden - u, at = (row + r) * hidden + u;
        Vector dh = done[r][v];
        if (step.next_resets != nullptr && step.next_resets[row + r]) {  // the step after this began anew
          Store(step.d_reset_states[0] + at, Load(step.d_reset_states[0] + at, count) + dh, count);
          Store(step.d_reset_states[1] + at, Load(step.d_reset_states[1] + at, count) + Load(step.d_state[1] + at, count), count);
          Store(step.d_state[1] + at, Vector{}, count);
          dh = Vector{};
        }
        if (step.d_projected == nullptr) {
          Store(step.d_state[0] + at, dh, count);
          continue;
        }
        const float* activations = step.activations + (row + r) * gates + u;
        const Vector i = Load(activations, count), f = Load(activations + hidden, count);
        const Vector g = Load(activations + 2 * hidden, count), o = Load(activations + 3 * hidden, count);
        const Vector c = Tanh(Load(step.state + at, count));
        Vector dc = Load(step.d_state[1] + at, count);
        if (step.d_outputs[0] != nullptr) dh += Load(step.d_outputs[0] + at, count);
        if (step.d_outputs[1] != nullptr) dc += Load(step.d_outputs[1] + at, count);
        dc = MultiplyAdd(dh * Sigmoid(o), TanhSlope(c), dc);
        float* d_projected = step.d_projected + (row + r) * gates + u;
        const float* previous_c = step.resets != nullptr && step.resets[row + r] ? step.reset_state : step.previous;
        Store(d_projected, dc * g * SigmoidSlope(i), count);
        Store(d_projected + hidden, dc * Load(previous_c + at, count) * SigmoidSlope(f), count);
        Store(d_projected + 2 * hidden, dc * Sigmoid(i) * TanhSlope(g), count);
        Store(d_projected + 3 * hidden, dh * c * SigmoidSlope(o), count);
        Store(step.d_state[1] + at, dc * Sigmoid(f), count);
      }
    }
  }
};

}  // namespace
