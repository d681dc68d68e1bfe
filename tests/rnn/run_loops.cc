// The loops of the compiled kernel without XLA, also for processors that this machine emulates: reads recurrences from
// standard input, and writes the results of their forward and their backward loop.
//
// Input, for each: nine int64 (gates, time, batch, features, hidden, reverse, resets, rows and units of a part; 0: all at
// once); then float32 inputs [T, B, F] and their weights [F, G H], or of 0 features projected inputs [T, B, G H] and no
// weights; bias [4 H], weights [H, G H], h, c, reset h, reset c, d last h, d last c [B, H], d hs [T, B, H]; with resets,
// bytes [T, B]. Output: hs, cs, d projected, d h, d c, d reset h, d reset c; and the gradients of the weights [H, G H], as
// the states before each step enter them where there are no resets, otherwise those after it, and of the bias [G H].
//
// An argument names loops of a wheel's library (loops, loops_avx2, loops_avx512), as if the processor had been found to
// have these instructions. The width of the vectors goes to standard error.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "choice.h"
#include "self_test.h"

namespace {

using Floats = std::vector<float>;

const Loops* chosen = &Choice();

template <typename T>
std::vector<T> Read(Index count) {
  std::vector<T> values(count);
  if (static_cast<Index>(std::fread(values.data(), sizeof(T), count, stdin)) != count) std::exit(3);
  return values;
}

void Write(const Floats& values) { std::fwrite(values.data(), sizeof(float), values.size(), stdout); }

void Run(const std::vector<Index>& s) {
  const Index gates = s[0], time = s[1], batch = s[2], features = s[3], hidden = s[4], state = batch * hidden;
  const bool projects = features != 0, reverse = s[5] != 0, has_resets = s[6] != 0;
  const Cell& cell = gates == 4 ? chosen->lstm : chosen->gru;
  const Floats inputs = Read<float>(time * batch * (projects ? features : gates * hidden));
  const Floats of_inputs = Read<float>(features * gates * hidden), bias = Read<float>(4 * hidden);
  const Floats weights = Read<float>(hidden * gates * hidden), h = Read<float>(state), c = Read<float>(state);
  const Floats reset_h = Read<float>(state), reset_c = Read<float>(state);
  Floats d_h = Read<float>(state), d_c = Read<float>(state);
  const Floats d_hs = Read<float>(time * state);
  const std::vector<char> resets = Read<char>(has_resets ? time * batch : 0);
  const bool* at = has_resets ? reinterpret_cast<const bool*>(resets.data()) : nullptr;

  Floats hs(time * state), cs(time * state), activations(time * gates * state), recurrents(time * state);
  Floats last_h(state), last_c(state), copies(cell.states * cell.forward_rows * hidden);
  Floats panels(Ceil(hidden, chosen->width) * chosen->width * (gates * (features + hidden) + kBiases));
  // Some of the rows at once, through all steps; or some of the units, step by step: as threads divide the work.
  const Index rows = s[7] == 0 ? batch : s[7], units = s[8];
  auto parts = [&](Index steps, Index block, auto run) {
    for (Index row = 0; row < batch; row += rows) {
      const Index end = std::min(row + rows, batch);
      for (Index step = 0; units != 0 && step < steps; ++step) {
        for (Index unit = 0; unit < hidden; unit += block) {
          run(Part{row, end, step, step + 1, unit, std::min(unit + block, hidden)});
        }
      }
      if (units == 0) run(Part{row, end, 0, steps, 0, hidden});
    }
  };

  const Weights packed{features, hidden, of_inputs.data(), weights.data(), bias.data()};
  for (Index unit = 0; unit < hidden; unit += cell.forward_units) cell.pack_forward(packed, unit, panels.data());
  Forward forward{time, batch, features, hidden, reverse, projects ? nullptr : inputs.data(),
                  projects ? inputs.data() : nullptr, {h.data(), c.data()},
                  {hs.data(), gates == 4 ? cs.data() : nullptr}, activations.data(), gates == 3 ? recurrents.data() : nullptr,
                  {last_h.data(), last_c.data()}, at, {reset_h.data(), reset_c.data()}};
  parts(time, cell.forward_units, [&](const Part& part) { cell.forward(forward, panels.data(), copies.data(), part); });

  for (Index unit = 0; unit < hidden; unit += cell.backward_units) cell.pack_backward(weights.data(), hidden, unit, panels.data());
  Floats d_projected(time * gates * state), d_recurrents(time * state), d_reset_h(state), d_reset_c(state);
  const bool is_lstm = gates == 4;
  Backward backward{time, batch, hidden, reverse, activations.data(), is_lstm ? nullptr : recurrents.data(),
                    is_lstm ? cs.data() : hs.data(), is_lstm ? c.data() : h.data(), {d_hs.data(), nullptr},
                    d_projected.data(), is_lstm ? nullptr : d_recurrents.data(), {d_h.data(), d_c.data()}, at,
                    is_lstm ? reset_c.data() : reset_h.data(), {d_reset_h.data(), d_reset_c.data()}};
  parts(time == 0 ? 0 : time + 1, cell.backward_units,
        [&](const Part& part) { cell.backward(backward, panels.data(), part); });

  const Index columns = gates * hidden;
  Floats d_weights(hidden * columns), d_bias(columns);
  const WeightGradient gradient{time, batch, hidden, columns, reverse, hs.data(), has_resets ? nullptr : h.data(),
                                d_projected.data(), d_weights.data(), d_bias.data()};
  const Index half = hidden / 2;
  for (Index column = 0; time != 0 && column < columns; column += chosen->gradient_columns) {
    const Index end = std::min(column + chosen->gradient_columns, columns);
    chosen->weight_gradient(gradient, Part{0, half, 0, 0, column, end});
    chosen->weight_gradient(gradient, Part{half, hidden, 0, 0, column, end});
  }
  for (const Floats* result : {&hs, &cs, &d_projected, &d_h, &d_c, &d_reset_h, &d_reset_c, &d_weights, &d_bias}) {
    Write(*result);
  }
}

}  // namespace

int main(int count, char** arguments) {
#if defined(LSTM_MNIST_JAX_WHEEL) && defined(__x86_64__)
  if (count > 1) {
    const std::string name = arguments[1];
    chosen = name == "loops_avx512" ? &loops_avx512 : name == "loops_avx2" ? &loops_avx2 : &loops;
  }
#endif
  if (const char* wrong = SelfTest(*chosen)) {
    std::fprintf(stderr, "%s\n", wrong);
    return 1;
  }
  std::fprintf(stderr, "%d\n", static_cast<int>(chosen->width));
  for (std::vector<Index> sizes(9); std::fread(sizes.data(), sizeof(Index), 9, stdin) == 9;) Run(sizes);
}
