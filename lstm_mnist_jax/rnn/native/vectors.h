// Vectors of the processor that this is compiled for, and weights packed into them.
//
// Each output is a sum in the order of k, however the rows are cut into tiles and threads: the results
// depend on neither. For that, what is rounded once and what twice is written out (MultiplyAdd), and compiled with
// -ffp-contract=off: left to the compiler, it may differ from one size of tile to another.
//
// Portable C++17 with the vector extensions of GCC and Clang.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "loops.h"

namespace {

using namespace lstm_mnist_jax;

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

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFused = true;  // products are added without being rounded before
#else
constexpr bool kFused = false;
#endif

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef float LooseVector __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

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

// A vector that is read from memory once. (GCC would read it again for every use, which takes longer than the uses.)
INLINE Vector InRegister(Vector x) {
#if defined(__AVX__) && !defined(__AVX512F__)
  asm("" : "+x"(x));
#endif
  return x;
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
// sigmoid(z) = (1 + a)/2 where a = tanh(z/2), so sigmoid'(z) = (1 - a^2)/4.
INLINE Vector SigmoidSlope(Vector tanh) { return 0.25f * TanhSlope(tanh); }

// sigmoid(z) = (1 + tanh(z/2))/2: biases, weights and projected inputs of the sigmoids are halved, and every gate is a tanh.
// Gates are in the order i, f, g, o or r, z, n; of a GRU's biases, the fourth is that of the product which r multiplies.
template <Index Gates>
constexpr INLINE float Factor(Index gate) { return gate == 2 || (Gates == 3 && gate == 3) ? 1.0f : 0.5f; }

// Adds rows x weights to sums[block][n][row]: `size` values of each row, which begin `stride` after those of the row
// before, and for each value N vectors of weights, in panels of their own for each block, which begin `panel_size`
// after that of the block before (0 where there is one). Registers hold the fewer of values and weights, beside the
// sums; where products are rounded before they are added, they need registers too.
template <Index J, Index N, Index R>
INLINE void AddProduct(Vector (&sums)[J][N][R], const float* values, Index stride, const float* panel, Index size,
                       Index panel_size) {
  for (Index k = 0; k < size; ++k, panel += N * kWidth) {
    if constexpr (R <= N && kFused) {
      Vector value[R];
      UNROLL for (Index r = 0; r < R; ++r) value[r] = Fill(values[r * stride + k]);
      UNROLL for (Index j = 0; j < J; ++j) {
        UNROLL for (Index n = 0; n < N; ++n) {
          const Vector weight = InRegister(Load(panel + j * panel_size + n * kWidth));
          UNROLL for (Index r = 0; r < R; ++r) sums[j][n][r] = MultiplyAdd(value[r], weight, sums[j][n][r]);
        }
      }
    } else {
      UNROLL for (Index j = 0; j < J; ++j) {
        Vector weight[N];
        UNROLL for (Index n = 0; n < N; ++n) weight[n] = InRegister(Load(panel + j * panel_size + n * kWidth));
        UNROLL for (Index r = 0; r < R; ++r) {
          const Vector value = Fill(values[r * stride + k]);
          UNROLL for (Index n = 0; n < N; ++n) sums[j][n][r] = MultiplyAdd(value, weight[n], sums[j][n][r]);
        }
      }
    }
  }
}

// Adds projected inputs [rows][N * hidden] to sums[block][n][row], of the units from this one on, of N gates.
template <Index J, Index N, Index R>
INLINE void AddProjected(Vector (&sums)[J][N][R], const float* projected, Index hidden, Index unit) {
  UNROLL for (Index j = 0; j < J; ++j, unit += kWidth) {
    UNROLL for (Index n = 0; n < N; ++n) {
      UNROLL for (Index r = 0; r < R; ++r) {
        const Vector value = Load(projected + (r * N + n) * hidden + unit, hidden - unit);
        sums[j][n][r] = MultiplyAdd(value, Fill(Factor<N>(n)), sums[j][n][r]);
      }
    }
  }
}

// Vectors of units at once in a backward loop.
constexpr Index kGroup = 4;

// Packed weights of the forward loops, of kWidth units after kWidth units: the biases [kBiases][kWidth], the weights of
// the inputs [features][gates][kWidth], and the recurrent ones [hidden][gates][kWidth], units beyond the last filled
// with 0. Packs `Units` units, a multiple of kWidth, from this one on.
template <Index Gates, Index Units>
void PackForward(const Weights& weights, Index unit, float* panels) {
  const Index hidden = weights.hidden, end = Least(unit + Units, hidden);
  float* panel = panels + unit * (kBiases + Gates * (weights.features + hidden));
  for (; unit < end; unit += kWidth) {
    auto pack = [&](const float* from, Index rows, Index parts) {  // of `hidden` columns
      for (; rows > 0; --rows) {
        for (Index gate = 0; gate < parts; ++gate, from += hidden, panel += kWidth) {
          Store(panel, Load(from + unit, hidden - unit) * Factor<Gates>(gate));
        }
      }
    };
    pack(weights.bias, 1, kBiases);
    pack(weights.of_inputs, weights.features, Gates);
    pack(weights.recurrent, hidden, Gates);
  }
}

// Packed weights of the backward loops, transposed: [groups of kGroup vectors of units][gates][up to kGroup][kWidth].
// Packs the group from this unit on.
template <Index Gates>
void PackBackward(const float* weights, Index hidden, Index unit, float* panels) {
  const Index gates = Gates * hidden, units = Least(kGroup, Ceil(hidden - unit, kWidth)) * kWidth;
  float* panel = panels + unit * gates;
  for (Index begin = 0; begin < gates; begin += kWidth) {  // so many rows of the panel stay in the nearest cache
    const Index end = Least(begin + kWidth, gates);
    for (Index n = 0; n < units; ++n, ++unit) {
      for (Index k = begin; k < end; ++k) panel[k * units + n] = unit < hidden ? weights[unit * gates + k] : 0.0f;
    }
    unit -= units;
  }
}

}  // namespace
