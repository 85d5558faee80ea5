/* What the processor that this runs on has, of what is compiled for x86-64 with GCC or Clang. */
#ifndef LATENTMILL_PROCESSOR_H
#define LATENTMILL_PROCESSOR_H

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>

static inline int has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

/* Not where it came without VBMI: those processors are said to lower their clock for it. */
static inline int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vbmi");
}

/* Instructions for SHA-256, which not all compilers have a name for yet. */
static inline int has_sha256(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

#endif
#endif
