// A test of the loops when they are loaded: one tiny recurrence of each cell against its formula, in under a millisecond.
// The forward loop projects the inputs, and takes inputs that are projected.
//
// It finds loops for another processor: instructions that it does not have (SIGILL), or numbers that are not right.

#pragma once

#include <cmath>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <setjmp.h>
#include <signal.h>
#endif

#include "loops.h"

namespace {

using namespace lstm_mnist_jax;

struct Numbers {
  std::uint32_t state = 1;
  // Of a linear congruential generator, -1 to 1.
  float Next() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1.0f;
  }
  std::vector<float> Draw(Index count) {
    std::vector<float> drawn(count);
    for (float& value : drawn) value = Next();
    return drawn;
  }
};

// One step of one row in double precision: the new states, of an LSTM h and c, of a GRU h.
inline void FormulaStep(Index gates, Index hidden, const double* projected, const float* bias, const float* weights,
                        const std::vector<double>& h, std::vector<double>* new_h, std::vector<double>* c) {
  auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  for (Index u = 0; u < hidden; ++u) {
    double product[4] = {0, 0, 0, 0};
    for (Index gate = 0; gate < gates; ++gate) {
      for (Index k = 0; k < hidden; ++k) product[gate] += h[k] * weights[k * gates * hidden + gate * hidden + u];
    }
    auto input = [&](Index gate) { return projected[gate * hidden + u] + bias[gate * hidden + u]; };
    if (gates == 4) {
      const double i = sigmoid(input(0) + product[0]), f = sigmoid(input(1) + product[1]);
      (*c)[u] = f * (*c)[u] + i * std::tanh(input(2) + product[2]);
      (*new_h)[u] = sigmoid(input(3) + product[3]) * std::tanh((*c)[u]);
    } else {
      const double r = sigmoid(input(0) + product[0]), z = sigmoid(input(1) + product[1]);
      const double n = std::tanh(input(2) + r * (product[2] + bias[3 * hidden + u]));
      (*new_h)[u] = n + z * (h[u] - n);
    }
  }
}

// Whether the forward loop of a cell gives the formula's h, and its backward loop the derivatives of it.
inline bool IsRight(const Loops& loops, const Cell& cell) {
  constexpr Index kTime = 2, kFeatures = 3;
  constexpr double kTolerance = 1e-5;
  const Index hidden = loops.width + 1, columns = cell.gates * hidden;  // a whole vector, and a part of one
  Numbers numbers;
  const std::vector<float> inputs = numbers.Draw(kTime * kFeatures), input_weights = numbers.Draw(kFeatures * columns);
  const std::vector<float> bias = numbers.Draw(4 * hidden), weights = numbers.Draw(hidden * columns);
  const std::vector<float> h = numbers.Draw(hidden), c = numbers.Draw(hidden), d_h = numbers.Draw(hidden);
  const std::vector<float> zeros(hidden, 0.0f);
  std::vector<double> projected(kTime * columns);
  for (Index n = 0; n < kTime * columns; ++n) {
    for (Index k = 0; k < kFeatures; ++k) {
      projected[n] += double(inputs[n / columns * kFeatures + k]) * input_weights[k * columns + n % columns];
    }
  }

  // Of the last h, as the loss is the product of it and `d_h`.
  auto loss = [&](std::vector<double>* last) {
    std::vector<double> state(h.begin(), h.end()), cells(c.begin(), c.end()), next(hidden);
    for (Index t = 0; t < kTime; ++t) {
      FormulaStep(cell.gates, hidden, projected.data() + t * columns, bias.data(), weights.data(), state, &next, &cells);
      state = next;
    }
    double sum = 0;
    for (Index u = 0; u < hidden; ++u) sum += state[u] * d_h[u];
    if (last != nullptr) *last = state;
    return sum;
  };

  const Index blocks = Ceil(hidden, loops.width);
  std::vector<float> panels(blocks * loops.width * (cell.gates * (kFeatures + hidden) + kBiases));
  std::vector<float> hs(kTime * hidden), cs(kTime * hidden), activations(kTime * columns), recurrents(kTime * hidden);
  std::vector<double> wanted;
  loss(&wanted);
  for (const Index features : {kFeatures, Index{0}}) {
    const Weights packed{features, hidden, input_weights.data(), weights.data(), bias.data()};
    for (Index unit = 0; unit < hidden; unit += cell.forward_units) {
      cell.pack_forward(packed, unit, panels.data());
    }
    hs.assign(kTime * hidden, 0.0f);
    // Projected inputs are in the memory of the activations, as in training.
    for (Index n = 0; n < kTime * columns; ++n) activations[n] = features == 0 ? static_cast<float>(projected[n]) : 0.0f;
    const Part all_steps{0, 1, 0, kTime, 0, hidden};
    Forward forward{kTime, 1, features, hidden, false, features == 0 ? activations.data() : nullptr,
                    features == 0 ? nullptr : inputs.data(), {h.data(), c.data()}, {hs.data(), cs.data()},
                    activations.data(), recurrents.data(), {nullptr, nullptr}, nullptr, {nullptr, nullptr}};
    cell.forward(forward, panels.data(), nullptr, all_steps);
    for (Index u = 0; u < hidden; ++u) {
      if (!(std::abs(hs[(kTime - 1) * hidden + u] - wanted[u]) < kTolerance)) return false;
    }
  }

  for (Index unit = 0; unit < hidden; unit += cell.backward_units) {
    cell.pack_backward(weights.data(), hidden, unit, panels.data());
  }
  std::vector<float> d_projected(kTime * columns), d_recurrents(kTime * hidden), d_state = d_h, d_c = zeros;
  const float* states = cell.states == 2 ? cs.data() : hs.data();
  const float* initial = cell.states == 2 ? c.data() : h.data();
  const bool has_recurrents = cell.states == 1;
  Backward backward{kTime, 1, hidden, false, activations.data(), has_recurrents ? recurrents.data() : nullptr, states,
                    initial, {nullptr, nullptr}, d_projected.data(), has_recurrents ? d_recurrents.data() : nullptr,
                    {d_state.data(), d_c.data()}, nullptr, nullptr, {nullptr, nullptr}};
  cell.backward(backward, panels.data(), Part{0, 1, 0, kTime + 1, 0, hidden});
  for (Index n = 0; n < kTime * columns; n += 11) {
    constexpr double kStep = 1.0 / 256;
    const double before = projected[n];
    projected[n] = before + kStep;
    const double above = loss(nullptr);
    projected[n] = before - kStep;
    const double below = loss(nullptr);
    projected[n] = before;
    if (!(std::abs((above - below) / (2 * kStep) - d_projected[n]) < 1e-3)) return false;
  }
  return true;
}

// Whether the gradient of a matrix and that of a bias are the sums that they are defined as.
inline bool GradientIsRight(const Loops& loops) {
  constexpr Index kTime = 3, kBatch = 2, kRows = 7;
  const Index columns = loops.gradient_columns + loops.width + 1;  // a whole panel, a vector, and a part of one
  Numbers numbers;
  const std::vector<float> states = numbers.Draw(kTime * kBatch * kRows), initial = numbers.Draw(kBatch * kRows);
  const std::vector<float> gradients = numbers.Draw(kTime * kBatch * columns);
  std::vector<float> d_weights(kRows * columns), d_bias(columns);
  const WeightGradient job{kTime, kBatch, kRows, columns, false, states.data(), initial.data(), gradients.data(),
                           d_weights.data(), d_bias.data()};
  loops.weight_gradient(job, Part{0, kRows, 0, 0, 0, columns});
  for (Index n = 0; n < (kRows + 1) * columns; ++n) {  // the last row is the bias
    const Index row = n / columns, column = n % columns;
    double sum = 0;
    for (Index k = 0; k < kTime * kBatch; ++k) {
      const float entered = k < kBatch ? initial[k * kRows + row % kRows] : states[(k - kBatch) * kRows + row % kRows];
      sum += (row == kRows ? 1.0 : double(entered)) * gradients[k * columns + column];
    }
    if (!(std::abs(sum - (row == kRows ? d_bias : d_weights)[row % kRows * columns + column]) < 1e-5)) return false;
  }
  return true;
}

#if defined(__unix__) || defined(__APPLE__)
inline sigjmp_buf before_illegal_instruction;
inline void OnIllegalInstruction(int) { siglongjmp(before_illegal_instruction, 1); }
#endif

// nullptr, or what is wrong with the loops on this processor.
inline const char* SelfTest(const Loops& loops) {
#if defined(__unix__) || defined(__APPLE__)
  struct sigaction action {}, previous {};
  action.sa_handler = OnIllegalInstruction;
  sigaction(SIGILL, &action, &previous);
  if (sigsetjmp(before_illegal_instruction, 1) != 0) {
    sigaction(SIGILL, &previous, nullptr);
    return "the processor does not have the instructions that it says it has";
  }
#endif
  const bool is_right = IsRight(loops, loops.lstm) && IsRight(loops, loops.gru) && GradientIsRight(loops);
#if defined(__unix__) || defined(__APPLE__)
  sigaction(SIGILL, &previous, nullptr);
#endif
  return is_right ? nullptr : "its self-test gives wrong numbers";
}

}  // namespace
