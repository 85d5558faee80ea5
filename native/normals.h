/* Normal numbers of a 64-bit key: Philox 4x32-10 and Box-Muller, in blocks of NORMALS. normals.py says which is which,
 * and has the same in NumPy: equal to the bit, since every step is one IEEE operation in float32, in this order.
 * What is here is inlined into each of the kernels, so that the compiler vectorises it for that processor. */
#ifndef LATENTMILL_NORMALS_H
#define LATENTMILL_NORMALS_H

#include "resample.h"

#include <math.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#define COUNTERS (NORMALS / 4)
#define ROUNDS 10
#define MULTIPLIER_0 0xD2511F53u /* Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (2011) */
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u

typedef uint32_t Words[4][COUNTERS]; /* the four words of counters that follow one another */

INLINE void words_of(uint64_t key, uint32_t first, Words words) {
    for (uint32_t j = 0; j < COUNTERS; j++) {
        uint32_t a = first + j, b = 0, c = 0, d = 0, key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
        for (int round = 0; round < ROUNDS; round++, key_0 += WEYL_0, key_1 += WEYL_1) {
            uint64_t p = (uint64_t)MULTIPLIER_0 * a, q = (uint64_t)MULTIPLIER_1 * c;
            a = (uint32_t)(q >> 32) ^ b ^ key_0;
            b = (uint32_t)q;
            c = (uint32_t)(p >> 32) ^ d ^ key_1;
            d = (uint32_t)p;
        }
        words[0][j] = a;
        words[1][j] = b;
        words[2][j] = c;
        words[3][j] = d;
    }
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define ROOT_HALF 0x3F3504F3u /* the bits of sqrt(0.5): mantissas are taken from there to sqrt(2) */
#define ONE 0x3F800000u

/* sqrt(-2 ln u) of u = (word + 0.5) / 2^32. */
INLINE float radius(uint32_t word) {
    float scaled = (float)(int32_t)(word >> 16) * 65536.0f + ((float)(int32_t)(word & 0xFFFF) + 0.5f);
    uint32_t shifted = bits_of(scaled) + (ONE - ROOT_HALF);
    float exponent = (float)(int32_t)(shifted >> 23) - (127.0f + 32.0f);
    float f = float_of((shifted & 0x7FFFFF) + ROOT_HALF) - 1.0f;
    float p = -0.174008742f;
    p = p * f + 0.285349756f;
    p = p * f + -0.298295349f;
    p = p * f + 0.331551701f;
    p = p * f + -0.399261266f;
    p = p * f + 0.500026762f;
    p = p * f + -0.66667819f;
    p = p * f + 1.0f;
    p = p * f + -2.0f;
    return sqrtf(exponent * -1.38629436f + p * f);
}

/* Two numbers of each two words. In two passes: so many steps that wait for each other are more than a processor looks
 * ahead. */
INLINE void pairs(const uint32_t *radii, const uint32_t *angles, float *restrict across, float *restrict up) {
    for (int j = 0; j < COUNTERS; j++) across[j] = radius(radii[j]);
    for (int j = 0; j < COUNTERS; j++) {
        float r = float_of(bits_of(across[j]) ^ (angles[j] & 0x80000000u));
        float angle = (float)((int32_t)(angles[j] & 0x7FFFFFFF) - 0x40000000) * 1.46291808e-09f;
        float t = angle * angle;
        float c = -2.6077106e-07f, s = 2.60005459e-06f;
        c = c * t + 2.47618864e-05f;
        c = c * t + -0.00138884038f;
        c = c * t + 0.0416666418f;
        c = c * t + -0.5f;
        c = c * t + 1.0f;
        s = s * t + -0.000198066147f;
        s = s * t + 0.00833301712f;
        s = s * t + -0.166666567f;
        s = s * t + 1.0f;
        across[j] = r * c;
        up[j] = r * (s * angle);
    }
}

/* A block: all first numbers of the counters' first pairs, all second ones, and those of the second pairs. */
INLINE void normals_of(Words words, float *out) {
    pairs(words[0], words[1], out, out + COUNTERS);
    pairs(words[2], words[3], out + 2 * COUNTERS, out + 3 * COUNTERS);
}

INLINE void place(const float *restrict mean, const float *restrict deviation, const float *restrict z, float shift,
                  float scale, float *restrict out, size_t n) {
    for (size_t j = 0; j < n; j++) out[j] = (mean[j] + deviation[j] * z[j] - shift) * scale;
}

#endif
