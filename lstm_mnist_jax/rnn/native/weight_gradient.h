// The gradient of a matrix: the sum over all steps and sequences of what entered it times the gradient of what came out.
//
// XLA's matrix library packs both factors, which takes as long as the product where the matrix is small. Here a block of
// the gradients is packed for a panel of columns, and stays in the nearest cache while all rows are multiplied by it.

#pragma once

#include "vectors.h"

namespace {

// The sums of a tile, so many rows x vectors of columns, and what `AddOuter` reads fill the registers.
constexpr Index kGradientRows = 6, kGradientVectors = kRegisters == 32 ? 4 : 2;
// Steps x sequences whose gradients are packed at once.
constexpr Index kGradientBlock = 128;

INLINE void AddTo(float* out, Vector sum, bool is_first, Index count) {
  Store(out, is_first ? sum : Load(out, count) + sum, count);
}

// Adds the products of `size` rows of `inputs`, of which R columns, with as many of a panel to `out`, or writes them. (A sum
// of sums of blocks: one over thousands of rows in their order would be an order of magnitude less accurate.)
template <Index R, Index N>
__attribute__((noinline)) void AddOuter(const float* inputs, Index stride, const float* panel, Index size, bool is_first,
                                        float* out, Index columns, Index count) {
  Vector sums[N][R];
  UNROLL for (Index n = 0; n < N; ++n) {
    UNROLL for (Index r = 0; r < R; ++r) sums[n][r] = Vector{};
  }
  for (Index k = 0; k < size; ++k, inputs += stride, panel += N * kWidth) {
    Vector gradient[N];
    UNROLL for (Index n = 0; n < N; ++n) gradient[n] = InRegister(Load(panel + n * kWidth));
    UNROLL for (Index r = 0; r < R; ++r) {
      const Vector value = Fill(inputs[r]);
      UNROLL for (Index n = 0; n < N; ++n) sums[n][r] = MultiplyAdd(value, gradient[n], sums[n][r]);
    }
  }
  UNROLL for (Index n = 0; n < N; ++n) {
    UNROLL for (Index r = 0; r < R; ++r) AddTo(out + r * columns + n * kWidth, sums[n][r], is_first, count - n * kWidth);
  }
}

// `size` rows of inputs and of gradients, which enter the sums of some rows (of inputs) x N vectors of columns.
template <Index N>
void AddBlock(const WeightGradient& job, const float* inputs, const float* gradients, Index size, bool is_first,
              const Part& part, Index column) {
  const Index columns = job.columns, count = columns - column;
  float panel[kGradientBlock * N * kWidth];
  const bool has_bias = job.d_bias != nullptr && part.row == 0;
  Vector bias[N];
  UNROLL for (Index n = 0; n < N; ++n) bias[n] = Vector{};
  for (Index k = 0; k < size; ++k) {
    UNROLL for (Index n = 0; n < N; ++n) {
      const Vector gradient = Load(gradients + k * columns + column + n * kWidth, count - n * kWidth);
      Store(panel + (k * N + n) * kWidth, gradient);
      bias[n] += gradient;
    }
  }
  UNROLL for (Index n = 0; has_bias && n < N; ++n) {
    AddTo(job.d_bias + column + n * kWidth, bias[n], is_first, count - n * kWidth);
  }
  Index row = part.row;
  for (Index tile = Ceil(part.end_row - row, kGradientRows); tile > 0; --tile) {
    const Index rows = (part.end_row - row) / tile;
    float* out = job.d_weights + row * columns + column;
    switch (rows) {
#define ROWS(R) \
  case R: AddOuter<R, N>(inputs + row, job.rows, panel, size, is_first, out, columns, count); break;
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
    }
    row += rows;
  }
}

void RunWeightGradient(const WeightGradient& job, const Part& part) {
  const Index all = job.time * job.batch;
  for (Index column = part.unit; column < part.end_unit;) {
    const bool is_whole = column + kGradientVectors * kWidth <= part.end_unit;
    bool is_first = true;
    // Rows `to` of the gradients with rows `from` of the inputs.
    auto add = [&](const float* inputs, Index from, Index to, Index count) {
      for (Index n = 0; n < count; n += kGradientBlock) {
        const Index size = Least(kGradientBlock, count - n);
        (is_whole ? AddBlock<kGradientVectors> : AddBlock<1>)(job, inputs + (from + n) * job.rows,
            job.gradients + (to + n) * job.columns, size, is_first, part, column);
        is_first = false;
      }
    };
    if (job.initial == nullptr) {
      add(job.inputs, 0, 0, all);
    } else if (job.reverse) {
      add(job.inputs, job.batch, 0, all - job.batch);
      add(job.initial, 0, all - job.batch, job.batch);
    } else {
      add(job.initial, 0, 0, job.batch);
      add(job.inputs, 0, job.batch, all - job.batch);
    }
    column += is_whole ? kGradientVectors * kWidth : kWidth;
  }
}

}  // namespace
