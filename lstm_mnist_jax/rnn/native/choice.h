// Which loops run on this processor.
//
// A library that is compiled where it runs has one kind. That of a wheel has several (LSTM_MNIST_JAX_WHEEL): for any
// x86-64 processor, for those with AVX2 and FMA, and for those with AVX-512.

#pragma once

#include "loops.h"

#if defined(LSTM_MNIST_JAX_WHEEL) && defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

using namespace lstm_mnist_jax;

#if defined(LSTM_MNIST_JAX_WHEEL) && defined(__x86_64__)
// Not by __builtin_cpu_supports: in the libraries of some compilers (Zig) it answers no to everything.
inline const Loops& Choice() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return loops;
  const bool has_xgetbv = c >> 27 & 1, has_fma = c >> 12 & 1;
  if (!has_xgetbv || !has_fma || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return loops;
  const bool has_avx2 = b >> 5 & 1, has_avx512 = b >> 16 & 1;
  unsigned kept, high;  // the registers that the system keeps for each process
  asm volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
  if (!has_avx2 || (kept & 0x06) != 0x06) return loops;
  return has_avx512 && (kept & 0xe6) == 0xe6 ? loops_avx512 : loops_avx2;
}
#else
inline const Loops& Choice() { return loops; }
#endif

}  // namespace
