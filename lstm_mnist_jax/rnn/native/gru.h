// The GRU: one step of a tile of rows x hidden units, forward and backward, where the reset gate stands after the product,
//
//     r, z = sigmoid(x + h U)    n = tanh(x + r (h U + d))    h' = n + z (h - n)
//
// A bias has four parts of `hidden` columns: those of r, z and n, and d. The loops keep h U + d of the gate n
// (`recurrents`).

#pragma once

#include "tiles.h"

namespace {

struct Gru {
  static constexpr Index kGates = 3, kStates = 1;

  // Accumulators for `rows` x 3 gates and what `AddProduct` keeps in registers fill them.
  static constexpr Index kForwardRows = kRegisters == 32 ? 8 : 4;

  // Blocks of units at once where there is one row alone, and where there are two.
  static constexpr Index kBlocks = 4, kBlocksOfTwo = 2;

  // The new state of some rows x blocks of kWidth hidden units, from `sums`: vectors [blocks][3 gates][rows]. Of the gate
  // n, they are h U + d, and `projected` [blocks][rows] is x W + b.
  //
  // (Not a part of each tile's own code: that would take the compiler twice as long.)
  static __attribute__((noinline)) void ForwardGates(const ForwardStep& step, Index hidden, const Vector* sums, const Vector* projected,
                                              Index rows, Index blocks, Index row, Index unit) {
    for (Index end = unit + blocks * kWidth; unit < end; unit += kWidth, sums += 3 * rows, projected += rows) {
      const Index count = hidden - unit;
      for (Index i = 0; i < rows; ++i) {
        const Index at = (row + i) * hidden + unit, gates_at = (row + i) * 3 * hidden + unit;
        const Vector r = Tanh(sums[i]), z = Tanh(sums[rows + i]), recurrent = sums[2 * rows + i];
        const Vector n = Tanh(MultiplyAdd(Sigmoid(r), recurrent, projected[i]));
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
    const Index features = step.features, panel_size = (kBiases + 3 * (features + hidden)) * kWidth;
    const float* panel = panels + unit / kWidth * panel_size;
    Vector sums[J][3][R];
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index gate = 0; gate < 3; ++gate) {
        const Vector bias = Load(panel + j * panel_size + gate * kWidth);
        UNROLL for (Index r = 0; r < R; ++r) sums[j][gate][r] = bias;
      }
    }
    if (step.projected != nullptr) AddProjected(sums, step.projected + row * 3 * hidden, hidden, unit);
    const float* products = panel + kBiases * kWidth;
    AddProduct(sums, step.inputs + row * features, features, products, features, panel_size);
    Vector projected[J][R], done[J][3][R];  // in memory, as `sums` must not be
    UNROLL for (Index j = 0; j < J; ++j) {
      const Vector bias = Load(panel + j * panel_size + 3 * kWidth);
      UNROLL for (Index r = 0; r < R; ++r) {
        projected[j][r] = sums[j][2][r];
        sums[j][2][r] = bias;
      }
    }
    products += 3 * features * kWidth;
    AddProduct(sums, step.states[0] + row * hidden, hidden, products, hidden, panel_size);
    UNROLL for (Index j = 0; j < J; ++j) {
      UNROLL for (Index gate = 0; gate < 3; ++gate) {
        UNROLL for (Index r = 0; r < R; ++r) done[j][gate][r] = sums[j][gate][r];
      }
    }
    ForwardGates(step, hidden, &done[0][0][0], &projected[0][0], R, J, row, unit);
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
    Vector sums[1][C][R];
    UNROLL for (Index c = 0; c < C; ++c) {
      const Index u = unit + c * kWidth;
      UNROLL for (Index r = 0; r < R; ++r) {
        sums[0][c][r] = Load(step.d_state[0] + (row + r) * hidden + u, hidden - u);
      }
    }
    if (step.next != nullptr) {
      const float* panel = panels + unit * gates;
      AddProduct(sums, step.next + row * gates, gates, panel, 2 * hidden, 0);
      AddProduct(sums, step.next_recurrents + row * hidden, hidden, panel + 2 * hidden * C * kWidth, hidden, 0);
    }
    Vector done[R][C];
    UNROLL for (Index r = 0; r < R; ++r) {
      UNROLL for (Index c = 0; c < C; ++c) done[r][c] = sums[0][c][r];
    }
    BackwardGates(step, hidden, &done[0][0], R, C, row, unit);
  }
};

}  // namespace
