// What the loops of the cells share: vectors, packed weights, and how threads divide a batch.
//
// Each output is a sum in the order of k, however the rows are cut into tiles and threads: the results
// depend on neither. For that, what is rounded once and what twice is written out (MultiplyAdd), and compiled with
// -ffp-contract=off: left to the compiler, it may differ from one size of tile to another.
//
// Portable C++17 with the vector extensions of GCC and Clang; the vector's width is that of the machine compiled for.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

using Index = std::int64_t;

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

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef float LooseVector __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
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
// sigmoid(z) = (1 + a)/2 where a = tanh(z/2), so d sigmoid(z) / d(z/2) = (1 - a^2)/2.
INLINE Vector SigmoidSlope(Vector tanh) { return 0.5f * TanhSlope(tanh); }

constexpr Index Ceil(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

// Some of the rows of a batch, over some of the steps, for some of the hidden units: what a thread does at once. The
// units of a step may be computed when all those of the step before, of the same rows, have been.
struct Part {
  Index row, end_row, step, end_step, unit, end_unit;
};

// ---------------------------------------------------------------------------------------------------- weights

// Vectors of units at once in a backward loop.
constexpr Index kGroup = 4;

// Packed weights of the forward loops, of kWidth units after kWidth units: [hidden][gates][kWidth], units beyond the
// last filled with 0.
template <Index Gates>
Index ForwardPanelSize(Index hidden) { return Ceil(hidden, kWidth) * hidden * Gates * kWidth; }

// Packs so many units, a multiple of kWidth, from this one on.
template <Index Gates>
void PackForward(const float* weights, Index hidden, Index unit, Index units, float* panels) {
  const Index end = std::min(unit + units, hidden);
  float* panel = panels + unit * hidden * Gates;
  for (; unit < end; unit += kWidth) {
    for (Index k = 0; k < hidden; ++k) {
      for (Index gate = 0; gate < Gates; ++gate, panel += kWidth) {
        Store(panel, Load(weights + k * Gates * hidden + gate * hidden + unit, hidden - unit));
      }
    }
  }
}

// Packed weights of the backward loops, transposed: [groups of kGroup vectors of units][gates][up to kGroup][kWidth].
template <Index Gates>
Index BackwardPanelSize(Index hidden) { return Ceil(hidden, kWidth) * kWidth * Gates * hidden; }

// Packs the group from this unit on.
template <Index Gates>
void PackBackward(const float* weights, Index hidden, Index unit, float* panels) {
  const Index gates = Gates * hidden, units = std::min(kGroup, Ceil(hidden - unit, kWidth)) * kWidth;
  float* panel = panels + unit * gates;
  for (Index begin = 0; begin < gates; begin += kWidth) {  // so many rows of the panel stay in the nearest cache
    const Index end = std::min(begin + kWidth, gates);
    for (Index n = 0; n < units; ++n, ++unit) {
      for (Index k = begin; k < end; ++k) panel[k * units + n] = unit < hidden ? weights[unit * gates + k] : 0.0f;
    }
    unit -= units;
  }
}

// ---------------------------------------------------------------------------------------------------- threads

INLINE void Pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::int64_t Nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Until then threads do not share steps: the system took the processor from one of them in the middle of a task, and
// the calling thread had to wait for it. After a wait of w they do not share for kAlone w, so at most 1/kAlone of the
// time is lost to such waits, however busy the machine is.
// (One for all loops: not within the unnamed namespace, of which each source file has its own.)
}  // namespace
namespace lstm_mnist_jax {
inline __attribute__((visibility("hidden"))) std::atomic<std::int64_t> alone_until{0};
}  // namespace lstm_mnist_jax
namespace {
using lstm_mnist_jax::alone_until;
constexpr std::int64_t kAlone = 32;

// Runs task(0), ..., task(count - 1) on the calling thread and, as far as they are free, those of the pool. The tasks
// come in groups of so many: none begins before those of the group before have ended. The calling thread takes tasks
// like any other. A task is taken only when it can begin, so a thread that the system stops while it waits holds up
// nobody, and a pool whose every thread is in here cannot wait for itself.
//
// `patience`: so many nanoseconds the calling thread waits, without sleep, for tasks that other threads have begun.
// If these take longer, it does the rest of the tasks alone, and sets `alone_until`. 0: it sleeps at once, and that it
// waits is no reason to be alone.
template <typename Pool>
void Parallel(Pool& pool, Index threads, Index count, Index group, std::int64_t patience,
              const std::function<void(Index)>& task) {
  threads = std::min({threads, count, group});
  if (threads <= 1) {
    for (Index n = 0; n < count; ++n) task(n);
    return;
  }
  struct Shared {
    alignas(64) std::atomic<Index> next{0}, done{0};
    std::atomic<bool> alone{false}, asleep{false};
    std::mutex mutex;
    std::condition_variable wake;

    // The tasks that must have ended before the next one can begin; all of them, where there is no next one.
    static Index Before(Index n, Index count, Index group) { return n < count ? n / group * group : count; }
    // Whether a wait of so many turns, since `start` (0: not yet known), has lasted for `limit` nanoseconds.
    static bool TooLong(Index turn, std::int64_t limit, std::int64_t* start) {
      Pause();
      if (turn < 100) return limit == 0;
      if (*start == 0) *start = Nanoseconds();
      return Nanoseconds() - *start >= limit;
    }
  };
  // A thread may come when all is done and the caller gone: it then touches `shared` alone, which it keeps alive.
  auto shared = std::make_shared<Shared>();
  auto help = [shared, count, group, patience, &task] {
    std::int64_t start = 0;
    for (Index turn = 0; !shared->alone.load();) {
      Index n = shared->next.load();
      if (n >= count) return;
      if (shared->done.load() < Shared::Before(n, count, group)) {
        if (Shared::TooLong(turn++, patience, &start)) return;  // the caller has no processor: it needs no help
        continue;
      }
      if (!shared->next.compare_exchange_weak(n, n + 1)) continue;
      task(n);
      shared->done.fetch_add(1);
      if (shared->asleep.load()) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->wake.notify_all();
      }
      turn = start = 0;
    }
  };
  for (Index n = 1; n < threads; ++n) pool.Schedule(decltype(help)(help));
  for (;;) {
    Index n = shared->next.load();
    const Index before = Shared::Before(n, count, group);
    std::int64_t start = 0;
    for (Index turn = 0; shared->done.load() < before; ++turn) {
      if (!Shared::TooLong(turn, patience, &start)) continue;
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->asleep.store(true);
      shared->wake.wait(lock, [&] { return shared->done.load() >= before; });
      shared->asleep.store(false);
      if (patience == 0) break;
      shared->alone.store(true);
      const std::int64_t now = Nanoseconds();
      alone_until.store(now + kAlone * (now - start));
    }
    if (n >= count) return;
    if (!shared->next.compare_exchange_weak(n, n + 1)) continue;
    task(n);
    shared->done.fetch_add(1);
  }
}

#if defined(__linux__)
// Reads a file that holds a number, or two of them; whether there are as many.
bool ReadNumbers(const std::string& path, double* one, double* two = nullptr) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return false;
  const bool found = std::fscanf(file, "%lf", one) == 1 && (two == nullptr || std::fscanf(file, "%lf", two) == 1);
  std::fclose(file);
  return found;
}

// The least number of processors that a control group, or one of those around it, may use; 0: there is no limit.
double Quota(const std::string& folder, std::string group) {
  double least = 0;
  for (;; group.resize(group.rfind('/'))) {
    const std::string path = folder + group;
    double quota = 0, period = 0;  // "max 100000" or "50000 100000"; or in two files, -1 for no limit
    if ((ReadNumbers(path + "/cpu.max", &quota, &period) ||
         (ReadNumbers(path + "/cpu.cfs_quota_us", &quota) && ReadNumbers(path + "/cpu.cfs_period_us", &period))) &&
        quota > 0 && period > 0) {
      least = least == 0 ? quota / period : std::min(least, quota / period);
    }
    if (group.rfind('/') == std::string::npos) return least;
  }
}

// The same for the groups of this process.
double Quota() {
  double least = 0;
  std::FILE* groups = std::fopen("/proc/self/cgroup", "r");  // lines of "number:controllers:/path"
  if (groups == nullptr) return least;
  char text[4096];
  while (std::fgets(text, sizeof(text), groups) != nullptr) {
    const std::string line(text, std::strcspn(text, "\n"));
    const std::size_t one = line.find(':'), two = line.find(':', one + 1);
    if (one == std::string::npos || two == std::string::npos) continue;
    const std::string controllers = "," + line.substr(one + 1, two - one - 1) + ",", path = line.substr(two + 1);
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    for (const char* folder : {"/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"}) {
      const double found = Quota(folder, path == "/" ? "" : path);
      if (found > 0) least = least == 0 ? found : std::min(least, found);
    }
  }
  std::fclose(groups);
  return least;
}
#endif

// How many processors this process may keep busy: those that it may run on, within the quota of its control group (of
// a container, say), as it was when the process asked first.
Index Processors() {
  Index processors = std::numeric_limits<Index>::max();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) processors = CPU_COUNT(&set);
  static const double quota = Quota();
  if (quota > 0) processors = std::min(processors, static_cast<Index>(quota));
#endif
  return std::max<Index>(processors, 1);
}

// Scratch memory of the calling thread, kept for its next call unless it is large.
class Scratch {
 public:
  explicit Scratch(Index floats) {
    const std::size_t bytes = Ceil(std::max<Index>(floats, 1) * sizeof(float), 64) * 64;
    static thread_local Kept kept;
    if (bytes <= kKeep) {
      if (kept.bytes < bytes) {
        std::free(kept.data);
        kept.data = std::aligned_alloc(64, bytes);
        kept.bytes = kept.data == nullptr ? 0 : bytes;
      }
      data_ = kept.data;
    } else {
      data_ = owned_ = std::aligned_alloc(64, bytes);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(owned_); }
  float* get() const { return static_cast<float*>(data_); }  // nullptr: there is no memory

 private:
  static constexpr std::size_t kKeep = 1 << 22;
  struct Kept {
    void* data = nullptr;
    std::size_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  void* data_ = nullptr;
  void* owned_ = nullptr;
};

// A thread has to be worth waking (some microseconds): at least this many multiplications and additions a chunk...
constexpr Index kChunkWork = 1 << 20;
// ...and rows enough that the weights are not read for a single tile.
constexpr Index kChunkRows = kRegisters == 32 ? 12 : 6;
// Rows that are better divided than computed by one thread, where threads cannot share the units of each step.
constexpr Index kAloneRows = 4;
// Threads that share the units of each step meet after it: at least this many multiplications and additions between.
constexpr Index kStepWork = 1 << 16;

// They are asked to share so many at a time: with threads that were stopped before, they can share again.
constexpr Index kSharedWork = 1 << 28;

// How long to wait for the part of a step that another thread does, in nanoseconds: far longer than it takes, and far
// shorter than the system lets another process run.
constexpr std::int64_t Patience(Index work) { return 100'000 + work / 4; }

struct Sizes {
  Index instances, time, batch, hidden, gates;
};

// Runs pack(instance, unit, panels), then run(instance, panels, part), for all of these and for all parts of `steps`
// steps; blocks of `units` hidden units are not divided.
//
// `threads`: 0 is as many as are worth it; otherwise at most so many, on a busy machine too.
template <typename Pool, typename Pack, typename Run>
ffi::Error Split(Pool& pool, Index threads, const Sizes& s, Index steps, Index units, Index panel_size,
                 const Pack& pack, const Run& run) {
  const bool is_free = threads <= 0;
  if (is_free) threads = std::max<Index>(pool.num_threads(), 1);
  const Index step_work = s.gates * s.hidden * s.hidden * s.batch, work = step_work * std::max<Index>(steps, 1);
  if (s.instances * work < 2 * kChunkWork) threads = 1;
  Scratch panels(s.instances * panel_size);
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
  const Index chunks = chunks_of(kChunkRows), sharing = std::min({threads, blocks, step_work / kStepWork});
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

// The sizes from [instances, time, batch, gates * hidden] and [instances, hidden, gates * hidden].
bool GetSizes(const Array& projected, const Array& weights, Index gates, Sizes* sizes) {
  const auto a = projected.dimensions(), b = weights.dimensions();
  if (a.size() != 4 || b.size() != 3 || a[0] != b[0] || a[3] != b[2] || b[2] != gates * b[1]) return false;
  *sizes = {a[0], a[1], a[2], b[1], gates};
  return true;
}

ffi::Error WrongSizes() { return ffi::Error::InvalidArgument("compiled recurrence: the sizes of the arrays do not agree"); }

bool Has(const Array& array, Index size) { return static_cast<Index>(array.element_count()) == size; }
bool Has(Output& array, Index size) { return static_cast<Index>(array->element_count()) == size; }
bool HasResets(const Booleans& resets, const Sizes& s) {
  return static_cast<Index>(resets.element_count()) == s.instances * s.time * s.batch;
}

}  // namespace
