// The GRU: one step of a tile of rows x hidden units, forward and backward, where the reset gate stands after the product,
//
//     r, z = sigmoid(x + h U)    n = tanh(x + r (h U + d))    h' = n + z (h - n)
//
// The columns of r and z come scaled by 1/2, as those of the LSTM's sigmoid gates. A bias has four parts of `hidden`
// columns: those of r, z and n, and d. The loops keep h U + d of the gate n (`recurrents`).

#pragma once

#include "tiles.h"

namespace {

struct Gru {
  static constexpr Index kGates = 3, kStates = 1;

  // Accumulators for `rows` x 3 gates, three vectors of weights and a value of h fill the registers.
  static constexpr Index kForwardRows = kRegisters == 32 ? 8 : 4;

  // Blocks of units at once where there is one row alone, and where there are two.
  static constexpr Index kBlocks = 4, kBlocksOfTwo = 2;

  // The new state of some rows x blocks of kWidth hidden units, from `sums`: vectors [blocks][3 gates][rows].
  //
  // (Not a part of each tile's own code: that would take the compiler twice as long.)
  static __attribute__((noinline)) void ForwardGates(const ForwardStep& step, Index hidden, const Vector* sums, Index rows,
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
        Store(step.new_states[0] + at, MultiplyAdd(Sigmoid(z), Load(step.states[0] + at, count) - n, n), count);
      }
    }
  }

  // One step for R rows x J blocks of kWidth hidden units.
  template <Index R, Index J>
  static __attribute__((noinline)) void ForwardTile(const ForwardStep& step, Index hidden, const float* panels, Index row,
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
    const float* h = step.states[0] + row * hidden;
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

  // The gradient at the gates of some rows x vectors of hidden units, from that of h: [rows][vectors].
  static __attribute__((noinline)) void BackwardGates(const BackwardStep& step, Index hidden, const Vector* sums, Index rows,
                                               Index vectors, Index row, Index unit) {
    for (const Index end = row + rows; row < end; ++row) {
      for (Index v = 0; v < vectors; ++v, ++sums) {
        const Index u = unit + v * kWidth, count = hidden - u, at = row * hidden + u, gates_at = row * 3 * hidden + u;
        Vector dh = *sums;
        if (step.next_resets != nullptr && step.next_resets[row]) {  // the step after this began anew
          Store(step.d_reset_states[0] + at, Load(step.d_reset_states[0] + at, count) + dh, count);
          dh = Vector{};
        }
        if (step.d_projected == nullptr) {
          Store(step.d_state[0] + at, dh, count);
          continue;
        }
        if (step.d_outputs[0] != nullptr) dh += Load(step.d_outputs[0] + at, count);
        const float* activations = step.activations + gates_at;
        const Vector r = Load(activations, count), z = Load(activations + hidden, count);
        const Vector n = Load(activations + 2 * hidden, count);
        const float* previous_h = step.resets != nullptr && step.resets[row] ? step.reset_state : step.previous;
        const Vector dn = dh * Sigmoid(-z) * TanhSlope(n);  // sigmoid(-z) = 1 - sigmoid(z)
        const Vector dr = dn * Load(step.recurrents + at, count) * SigmoidSlope(r);
        const Vector dz = dh * SigmoidSlope(z) * (Load(previous_h + at, count) - n);
        float* d_projected = step.d_projected + gates_at;
        Store(d_projected, dr, count);
        Store(d_projected + hidden, dz, count);
        Store(d_projected + 2 * hidden, dn, count);
        Store(step.d_recurrents + at, dn * Sigmoid(r), count);
        Store(step.d_state[0] + at, dh * Sigmoid(z), count);
      }
    }
  }

  // One step for R rows x C vectors of hidden units: dh from the step after it, then the gradient at the gates.
  template <Index R, Index C>
  static __attribute__((noinline)) void BackwardTile(const BackwardStep& step, Index hidden, const float* panels, Index row,
                                              Index unit) {
    const Index gates = 3 * hidden;
    Vector sums[R][C];
    UNROLL for (Index r = 0; r < R; ++r) {
      UNROLL for (Index c = 0; c < C; ++c) {
        const Index u = unit + c * kWidth;
        sums[r][c] = Load(step.d_state[0] + (row + r) * hidden + u, hidden - u);
      }
    }
    if (step.next != nullptr) {
      const float* panel = panels + unit * gates;
      auto multiply = [&](const float* gradients, Index stride, Index end) __attribute__((always_inline)) {
        for (Index k = 0; k < end; ++k, panel += C * kWidth) {
          Vector values[R];
          UNROLL for (Index r = 0; r < R; ++r) values[r] = Fill(gradients[r * stride + k]);
          UNROLL for (Index c = 0; c < C; ++c) {
            const Vector weights = Load(panel + c * kWidth);
            UNROLL for (Index r = 0; r < R; ++r) sums[r][c] = MultiplyAdd(values[r], weights, sums[r][c]);
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
};

}  // namespace
