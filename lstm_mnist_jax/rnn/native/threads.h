// How the loops share the threads of XLA's pool with each other and with a busy machine; and scratch memory.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <new>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "loops.h"

namespace {

using namespace lstm_mnist_jax;

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
std::atomic<std::int64_t> alone_until{0};
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
    std::atomic<Index> owners;
    std::mutex mutex;
    std::condition_variable wake;

    explicit Shared(Index owners) : owners(owners) {}
    void Release() {
      if (owners.fetch_sub(1) == 1) delete this;
    }

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
  // A thread may come when all is done and the caller gone: it then touches `shared` alone, which it keeps alive. (Not
  // by std::shared_ptr, which asks for a C library of 2021.)
  Shared* shared = new Shared(threads);
  auto take = [shared, count, group, patience, &task] {
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
  for (Index n = 1; n < threads; ++n) {
    pool.Schedule([shared, take] {
      take();
      shared->Release();
    });
  }
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
    if (n >= count) return shared->Release();
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

// Scratch memory of the calling thread, kept for its next call unless it is large. Each `Use` has its own.
template <int Use>
class Scratch {
 public:
  explicit Scratch(Index floats) {
    const std::size_t bytes = Ceil(std::max<Index>(floats, 1) * sizeof(float), 64) * 64;
    static thread_local Kept kept;
    if (bytes <= kKeep) {
      if (kept.bytes < bytes) {
        Free(kept.data);
        kept.data = Allocate(bytes);
        kept.bytes = kept.data == nullptr ? 0 : bytes;
      }
      data_ = kept.data;
    } else {
      data_ = owned_ = Allocate(bytes);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { Free(owned_); }
  float* get() const { return static_cast<float*>(data_); }  // nullptr: there is no memory

 private:
  static constexpr std::size_t kKeep = 1 << 22;
  static constexpr std::align_val_t kAlignment{64};
  static void* Allocate(std::size_t bytes) { return ::operator new(bytes, kAlignment, std::nothrow); }
  static void Free(void* data) { ::operator delete(data, kAlignment); }
  struct Kept {
    void* data = nullptr;
    std::size_t bytes = 0;
    ~Kept() { Free(data); }
  };
  void* data_ = nullptr;
  void* owned_ = nullptr;
};

}  // namespace
