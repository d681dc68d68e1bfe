// The loops as custom calls of XLA: checks sizes, divides the work between threads.
//
// All arrays have a leading axis of independent instances (V), each with weights of its own.

#include "xla/ffi/api/ffi.h"

#include "choice.h"
#include "self_test.h"
#include "threads.h"

namespace {

namespace ffi = xla::ffi;

const Loops& chosen = Choice();

// A thread has to be worth waking (some microseconds): at least this many multiplications and additions a chunk.
constexpr Index kChunkWork = 1 << 20;
// Rows that are better divided than computed by one thread, where threads cannot share the units of each step.
constexpr Index kAloneRows = 4;
// Threads that share the units of each step meet after it: at least this many multiplications and additions between.
constexpr Index kStepWork = 1 << 16;

// They are asked to share so many at a time: with threads that were stopped before, they can share again.
constexpr Index kSharedWork = 1 << 28;

// A thread's rows of a weight gradient, for which it packs the columns: at least this many.
constexpr Index kLeastRows = 32;

// How long to wait for the part of a step that another thread does, in nanoseconds: far longer than it takes, and far
// shorter than the system lets another process run.
constexpr std::int64_t Patience(Index work) { return 100'000 + work / 4; }

// `inner` is the inner dimension of the products of a step.
struct Sizes {
  Index instances, time, batch, hidden, gates, features, inner;
};

// Runs pack(instance, unit, panels), then run(instance, panels, part), for all of these and for all parts of `steps`
// steps; blocks of `units` hidden units are not divided.
//
// `threads`: 0 is as many as are worth it; otherwise at most so many, on a busy machine too.
template <typename Pool, typename Pack, typename Run>
ffi::Error Split(Pool& pool, Index threads, const Sizes& s, Index steps, Index units, const Pack& pack,
                 const Run& run) {
  const bool is_free = threads <= 0;
  if (is_free) threads = std::max<Index>(pool.num_threads(), 1);
  const Index step_work = s.gates * s.hidden * s.inner * s.batch, work = step_work * std::max<Index>(steps, 1);
  if (s.instances * work < 2 * kChunkWork) threads = 1;
  const Index panel_size = Ceil(s.hidden, chosen.width) * chosen.width * (s.gates * s.inner + kBiases);
  Scratch<0> panels(s.instances * panel_size);
  if (panels.get() == nullptr) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for packed weights");
  const Index blocks = Ceil(s.hidden, units);
  auto pack_block = [&](Index n) {
    pack(n / blocks, n % blocks * units, panels.get() + n / blocks * panel_size);
  };
  // How many threads divide the rows of an instance, of which each takes at least so many.
  auto chunks_of = [&](Index rows) {
    if (threads <= s.instances) return Index{1};
    return std::max<Index>(std::min({Ceil(threads, s.instances), s.batch / rows, work / kChunkWork}), 1);
  };
  auto run_rows = [&](Index chunks, Index begin, Index end) {
    Parallel(pool, threads, s.instances * chunks, s.instances * chunks, 0, [&](Index n) {
      const Index instance = n / chunks, chunk = n % chunks;
      run(instance, panels.get() + instance * panel_size,
          Part{s.batch * chunk / chunks, s.batch * (chunk + 1) / chunks, begin, end, 0, s.hidden});
    });
  };
  const Index chunks = chunks_of(chosen.chunk_rows), sharing = std::min({threads, blocks, step_work / kStepWork});
  if (s.instances > 1 || sharing < 2 * chunks) {
    Parallel(pool, threads, s.instances * blocks, s.instances * blocks, 0, pack_block);
    run_rows(chunks, 0, steps);
    return ffi::Error::Success();
  }
  // Rows too few for so many threads: they share the units of each step, while each has a processor.
  const Index most = is_free ? std::min(sharing, Processors()) : sharing;
  auto is_alone = [&] { return most == 1 || (is_free && Nanoseconds() < alone_until.load()); };
  const std::int64_t patience = Patience(step_work / blocks);
  Parallel(pool, is_alone() ? 1 : most, blocks, blocks, patience, pack_block);
  const Index some = std::max<Index>(kSharedWork / step_work, 1);
  for (Index begin = 0; begin < steps; begin += some) {
    const Index end = std::min(begin + some, steps);
    if (is_alone()) {
      run_rows(chunks_of(kAloneRows), begin, end);
      continue;
    }
    Parallel(pool, most, (end - begin) * blocks, blocks, patience, [&](Index n) {
      const Index step = begin + n / blocks, unit = n % blocks * units;
      run(0, panels.get(), Part{0, s.batch, step, step + 1, unit, std::min(unit + units, s.hidden)});
    });
  }
  return ffi::Error::Success();
}

using Array = ffi::Buffer<ffi::F32>;
using Output = ffi::Result<ffi::Buffer<ffi::F32>>;
using Booleans = ffi::Buffer<ffi::PRED>;

// An array of XLA. One that is not given, or not wanted, has no elements, or is none at all.
template <typename T>
struct View {
  T* data = nullptr;
  Index size = 0;

  View() = default;
  View(const Array& array) : data(array.typed_data()), size(array.element_count()) {}
  View(Output& array) : data(array->typed_data()), size(array->element_count()) {}
  // The part of an instance; nullptr where there are no elements.
  T* at(Index offset) const { return size == 0 ? nullptr : data + offset; }
};
using In = View<const float>;
using Out = View<float>;

ffi::Error WrongSizes() { return ffi::Error::InvalidArgument("compiled recurrence: the sizes of the arrays do not agree"); }

// The sizes from [instances, time, batch, gates * hidden] and [instances, hidden, gates * hidden].
bool GetSizes(const Array& projected, const Array& weights, Index gates, Sizes* sizes) {
  const auto a = projected.dimensions(), b = weights.dimensions();
  if (a.size() != 4 || b.size() != 3 || a[0] != b[0] || a[3] != b[2] || b[2] != gates * b[1]) return false;
  *sizes = {a[0], a[1], a[2], b[1], gates, 0, b[1]};
  return true;
}

// Those from inputs [instances, time, batch, features] with their weights [instances, features, gates * hidden]; or from
// projected inputs, where there are none of these weights.
bool GetSizes(const Array& inputs, const Array& input_weights, const Array& weights, Index gates, Sizes* sizes) {
  const auto a = inputs.dimensions(), b = input_weights.dimensions(), c = weights.dimensions();
  if (b.size() != 3) return GetSizes(inputs, weights, gates, sizes);
  if (a.size() != 4 || c.size() != 3 || a[0] != b[0] || a[0] != c[0] || a[3] != b[1] || b[2] != c[2]) return false;
  *sizes = {a[0], a[1], a[2], c[1], gates, a[3], a[3] + c[1]};
  return c[2] == gates * c[1];
}

// Whether there are resets: then `reset` has the three axes of a state.
bool HasResets(const Array& reset) { return reset.dimensions().size() == 3; }

struct ForwardArrays {
  In bias, initial[kStates], resets_to[kStates];
  Out states[kStates], activations, recurrents, last[kStates];
};

ffi::Error RunForward(const Cell& cell, ffi::ThreadPool& pool, const Array& inputs, const Array& input_weights,
                      const Array& weights, const ForwardArrays& a, const Booleans& resets, bool has_resets,
                      bool reverse, Index threads) {
  Sizes s;
  if (!GetSizes(inputs, input_weights, weights, cell.gates, &s)) return WrongSizes();
  const bool projects = input_weights.dimensions().size() == 3;
  const Index state = s.batch * s.hidden, all = s.instances * state, every = all * s.time;
  auto has = [](const auto& array, Index size) { return array.size == size; };
  bool agree = has(a.bias, s.instances * kBiases * s.hidden);
  for (Index n = 0; n < cell.states; ++n) {
    agree &= has(a.initial[n], all) && has(a.last[n], all) && (has(a.states[n], every) || (n > 0 && has(a.states[n], 0)));
    agree &= !has_resets || has(a.resets_to[n], all);
  }
  agree &= has(a.activations, 0) || has(a.activations, cell.gates * every);
  agree &= has(a.recurrents, 0) || has(a.recurrents, every);
  agree &= !has_resets || static_cast<Index>(resets.element_count()) == s.instances * s.time * s.batch;
  if (!agree) return WrongSizes();
  if (s.instances == 0 || state == 0) return ffi::Error::Success();

  auto job = [&](Index v) {
    const Index sequence = v * s.time * state, at = v * state;
    Forward job{};
    job.time = s.time, job.batch = s.batch, job.features = s.features, job.hidden = s.hidden, job.reverse = reverse;
    (projects ? job.inputs : job.projected) = inputs.typed_data() + v * (inputs.element_count() / s.instances);
    for (Index n = 0; n < cell.states; ++n) {
      job.initial[n] = a.initial[n].at(at);
      job.last[n] = a.last[n].at(at);
      job.states[n] = a.states[n].at(sequence);
      job.reset_states[n] = a.resets_to[n].at(at);
    }
    job.activations = a.activations.at(cell.gates * sequence);
    job.recurrents = a.recurrents.at(sequence);
    if (has_resets) job.resets = resets.typed_data() + v * s.time * s.batch;
    return job;
  };
  auto pack = [&](Index v, Index unit, float* panels) {
    const Index columns = cell.gates * s.hidden;
    const float* of_inputs = input_weights.typed_data() + v * s.features * columns;
    const float* recurrent = weights.typed_data() + v * s.hidden * columns;
    cell.pack_forward({s.features, s.hidden, of_inputs, recurrent, a.bias.at(v * kBiases * s.hidden)}, unit, panels);
  };
  auto run = [&](Index v, const float* panels, const Part& part) {
    Scratch<1> copies(has_resets ? cell.states * cell.forward_rows * s.hidden : 0);
    cell.forward(job(v), panels, copies.get(), part);
  };
  const auto error = Split(pool, threads, s, s.time, cell.forward_units, pack, run);
  if (!error.success()) return error;
  for (Index v = 0; v < s.instances; ++v) {
    const Forward done = job(v);
    for (Index n = 0; n < cell.states; ++n) {
      const float* states = done.states[n];
      if (s.time > 0 && states == nullptr) continue;  // `last` has been the state all along
      const float* last = s.time == 0 ? done.initial[n] : states + (reverse ? 0 : (s.time - 1) * state);
      std::memcpy(done.last[n], last, state * sizeof(float));
    }
  }
  return ffi::Error::Success();
}

struct BackwardArrays {
  In recurrents, states, initial, resets_to, d_states[kStates], d_last[kStates];
  Out d_projected, d_recurrents, d_state[kStates], d_resets_to[kStates];
};

ffi::Error RunBackward(const Cell& cell, ffi::ThreadPool& pool, const Array& activations, const Array& weights,
                       const BackwardArrays& a, const Booleans& resets, bool has_resets, bool reverse, Index threads) {
  Sizes s;
  if (!GetSizes(activations, weights, cell.gates, &s)) return WrongSizes();
  const Index state = s.batch * s.hidden, all = s.instances * state, every = all * s.time;
  auto has = [](const auto& array, Index size) { return array.size == size; };
  bool agree = has(a.states, every) && has(a.initial, all) && has(a.d_projected, cell.gates * every);
  agree &= a.recurrents.size == a.d_recurrents.size && (has(a.recurrents, every) || has(a.recurrents, 0));
  for (Index n = 0; n < cell.states; ++n) {
    agree &= (has(a.d_states[n], 0) || has(a.d_states[n], every)) && has(a.d_last[n], all) && has(a.d_state[n], all);
    agree &= !has_resets || has(a.d_resets_to[n], all);
  }
  agree &= !has_resets || has(a.resets_to, all);
  agree &= !has_resets || static_cast<Index>(resets.element_count()) == s.instances * s.time * s.batch;
  if (!agree) return WrongSizes();
  if (s.instances == 0 || state == 0) return ffi::Error::Success();

  auto job = [&](Index v) {
    const Index sequence = v * s.time * state, at = v * state;
    Backward job{};
    job.time = s.time, job.batch = s.batch, job.hidden = s.hidden, job.reverse = reverse;
    job.activations = activations.typed_data() + cell.gates * sequence;
    job.recurrents = a.recurrents.at(sequence);
    job.states = a.states.at(sequence);
    job.initial = a.initial.at(at);
    job.d_projected = a.d_projected.at(cell.gates * sequence);
    job.d_recurrents = a.d_recurrents.at(sequence);
    for (Index n = 0; n < cell.states; ++n) {
      job.d_states[n] = a.d_states[n].at(sequence);
      job.d_state[n] = a.d_state[n].at(at);
      if (has_resets) job.d_reset_states[n] = a.d_resets_to[n].at(at);
    }
    if (has_resets) {
      job.resets = resets.typed_data() + v * s.time * s.batch;
      job.reset_state = a.resets_to.at(at);
    }
    return job;
  };
  for (Index n = 0; n < cell.states; ++n) {
    std::memcpy(a.d_state[n].data, a.d_last[n].data, all * sizeof(float));
    if (has_resets) std::memset(a.d_resets_to[n].data, 0, all * sizeof(float));
  }
  auto pack = [&](Index v, Index unit, float* panels) {
    cell.pack_backward(weights.typed_data() + v * cell.gates * s.hidden * s.hidden, s.hidden, unit, panels);
  };
  auto run = [&](Index v, const float* panels, const Part& part) { cell.backward(job(v), panels, part); };
  return Split(pool, threads, s, s.time == 0 ? 0 : s.time + 1, cell.backward_units, pack, run);
}

// The panels of columns, and the rows where these are fewer than the threads, are divided. Each number is the same sum.
ffi::Error WeightGradientCall(ffi::ThreadPool pool, Array inputs, Array gradients, Array initial, Output d_weights,
                              Output d_bias, bool reverse, Index threads) {
  const auto a = inputs.dimensions(), b = gradients.dimensions();
  if (a.size() != 4 || b.size() != 4 || a[0] != b[0] || a[1] != b[1] || a[2] != b[2]) return WrongSizes();
  const Index instances = a[0], time = a[1], batch = a[2], rows = a[3], columns = b[3], all = time * batch;
  const bool has_initial = initial.dimensions().size() == 3;
  const In from(initial);
  const Out weights(d_weights), bias(d_bias);
  bool agree = weights.size == instances * rows * columns && (!has_initial || from.size == instances * batch * rows);
  agree &= bias.size == 0 || bias.size == instances * columns;
  if (!agree) return WrongSizes();
  if (all == 0) {
    std::fill_n(weights.data, weights.size, 0.0f);
    std::fill_n(bias.data, bias.size, 0.0f);
  }
  if (all == 0 || instances == 0) return ffi::Error::Success();
  if (threads <= 0) threads = std::max<Index>(pool.num_threads(), 1);
  const Index work = rows * columns * all;
  if (instances * work < 2 * kChunkWork) threads = 1;
  const Index panels = Ceil(columns, chosen.gradient_columns);
  const Index parts = std::max<Index>(std::min({Ceil(threads, instances * panels), rows / kLeastRows, work / kChunkWork}), 1);
  Parallel(pool, threads, instances * panels * parts, instances * panels * parts, 0, [&](Index n) {
    const Index instance = n / (panels * parts), panel = n / parts % panels, part = n % parts;
    const Index column = panel * chosen.gradient_columns;
    const WeightGradient job{time, batch, rows, columns, reverse, inputs.typed_data() + instance * all * rows,
                             has_initial ? from.at(instance * batch * rows) : nullptr,
                             gradients.typed_data() + instance * all * columns,
                             weights.data + instance * rows * columns, bias.at(instance * columns)};
    chosen.weight_gradient(job, {rows * part / parts, rows * (part + 1) / parts, 0, 0, column,
                                 std::min(column + chosen.gradient_columns, columns)});
  });
  return ffi::Error::Success();
}

ffi::Error LstmForwardCall(ffi::ThreadPool pool, Array inputs, Array input_weights, Array bias, Array weights, Array h,
                           Array c, Booleans resets, Array reset_h, Array reset_c, Output hs, Output cs,
                           Output activations, Output last_h, Output last_c, bool reverse, Index threads) {
  const ForwardArrays arrays{bias, {h, c}, {reset_h, reset_c}, {hs, cs}, activations, {}, {last_h, last_c}};
  return RunForward(chosen.lstm, pool, inputs, input_weights, weights, arrays, resets, HasResets(reset_h), reverse,
                    threads);
}

ffi::Error LstmBackwardCall(ffi::ThreadPool pool, Array activations, Array cs, Array c, Array weights, Array d_hs,
                            Array d_cs, Array d_last_h, Array d_last_c, Booleans resets, Array reset_c,
                            Output d_projected, Output d_h, Output d_c, Output d_reset_h, Output d_reset_c,
                            bool reverse, Index threads) {
  const BackwardArrays arrays{{},          cs, c,          reset_c, {d_hs, d_cs}, {d_last_h, d_last_c},
                              d_projected, {}, {d_h, d_c}, {d_reset_h, d_reset_c}};
  return RunBackward(chosen.lstm, pool, activations, weights, arrays, resets, HasResets(reset_c), reverse, threads);
}

ffi::Error GruForwardCall(ffi::ThreadPool pool, Array inputs, Array input_weights, Array bias, Array weights, Array h,
                          Booleans resets, Array reset_h, Output hs, Output activations, Output recurrents,
                          Output last_h, bool reverse, Index threads) {
  const ForwardArrays arrays{bias, {h}, {reset_h}, {hs}, activations, recurrents, {last_h}};
  return RunForward(chosen.gru, pool, inputs, input_weights, weights, arrays, resets, HasResets(reset_h), reverse,
                    threads);
}

ffi::Error GruBackwardCall(ffi::ThreadPool pool, Array activations, Array recurrents, Array hs, Array h, Array weights,
                           Array d_hs, Array d_last_h, Booleans resets, Array reset_h, Output d_projected,
                           Output d_recurrents, Output d_h, Output d_reset_h, bool reverse, Index threads) {
  const BackwardArrays arrays{recurrents,  hs,           h,     reset_h, {d_hs}, {d_last_h},
                              d_projected, d_recurrents, {d_h}, {d_reset_h}};
  return RunBackward(chosen.gru, pool, activations, weights, arrays, resets, HasResets(reset_h), reverse, threads);
}

template <int count, typename Binding>
auto Arguments(Binding&& binding) {
  if constexpr (count == 1) {
    return std::move(binding).template Arg<Array>();
  } else {
    return Arguments<count - 1>(std::move(binding).template Arg<Array>());
  }
}

template <int count, typename Binding>
auto Results(Binding&& binding) {
  if constexpr (count == 1) {
    return std::move(binding).template Ret<Array>();
  } else {
    return Results<count - 1>(std::move(binding).template Ret<Array>());
  }
}

// What one of the functions above takes and returns: `arguments` arrays, resets, `states` after a reset, and `results`.
// Their axes are in `SIGNATURES` of kernel.py.
template <int arguments, int states, int results>
auto Signature() {
  return Results<results>(
             Arguments<states>(Arguments<arguments>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()).template Arg<Booleans>()))
      .template Attr<bool>("reverse")
      .template Attr<std::int64_t>("threads");
}

}  // namespace

// What a test of the loops finds on this processor: nullptr, or why they are not to be used.
extern "C" const char* LstmMnistJaxSelfTest() { return SelfTest(chosen); }

// Their names are those of the loops in `SIGNATURES`.
XLA_FFI_DEFINE_HANDLER_SYMBOL(weight_gradient, WeightGradientCall,
                              (Results<2>(Arguments<3>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()))
                                   .Attr<bool>("reverse")
                                   .Attr<std::int64_t>("threads")));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_forward, LstmForwardCall, (Signature<6, 2, 5>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_backward, LstmBackwardCall, (Signature<8, 1, 5>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(gru_forward, GruForwardCall, (Signature<5, 1, 4>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(gru_backward, GruBackwardCall, (Signature<7, 1, 4>()));
