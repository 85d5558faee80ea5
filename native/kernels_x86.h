/* The inner loops for x86-64: part of kernels.c, which has the plain ones. */
#include "processor.h"

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f")))

/* `vectors` times 8 bytes: 32-bit products, sums in registers. */
AVX2 INLINE void weigh_block(const uint8_t *const *rows, const int32_t *weights, int32_t length, uint8_t *out,
                             size_t at, const int vectors) {
    __m256i sums[6];
    for (int v = 0; v < vectors; v++) sums[v] = _mm256_set1_epi32(HALF);
    for (int32_t k = 0; k < length; k++) {
        __m256i weight = _mm256_set1_epi32(weights[k]);
        const uint8_t *row = rows[k] + at;
        for (int v = 0; v < vectors; v++) {
            __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row + 8 * v)));
            sums[v] = _mm256_add_epi32(sums[v], _mm256_mullo_epi32(bytes, weight));
        }
    }
    for (int v = 0; v < vectors; v += 2) {
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(sums[v], WEIGHT_BITS),
                                           _mm256_srai_epi32(sums[v + 1], WEIGHT_BITS));
        words = _mm256_permute4x64_epi64(words, 0xd8);
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i *)(out + at + 8 * v), bytes);
    }
}

AVX2 static void weigh_avx2(const uint8_t *const *rows, const Table *table, int32_t i, uint8_t *out, size_t n) {
    const int32_t *weights = table->weights + (size_t)i * table->taps;
    int32_t length = table->length[i];
    size_t at = 0;
    if (n < 16) {
        weigh_plain(rows, table, i, out, n);
        return;
    }
    for (; at + 48 <= n; at += 48) weigh_block(rows, weights, length, out, at, 6);
    for (; at + 16 <= n; at += 16) weigh_block(rows, weights, length, out, at, 2);
    if (at < n) weigh_block(rows, weights, length, out, n - 16, 2);
}

/* As weigh_block, 16 bytes a vector. */
AVX512 INLINE void weigh_wide(const uint8_t *const *rows, const int32_t *weights, int32_t length, uint8_t *out,
                              size_t at, const int vectors) {
    __m512i sums[6];
    for (int v = 0; v < vectors; v++) sums[v] = _mm512_set1_epi32(HALF);
    for (int32_t k = 0; k < length; k++) {
        __m512i weight = _mm512_set1_epi32(weights[k]);
        const uint8_t *row = rows[k] + at;
        for (int v = 0; v < vectors; v++) {
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(row + 16 * v)));
            sums[v] = _mm512_add_epi32(sums[v], _mm512_mullo_epi32(bytes, weight));
        }
    }
    for (int v = 0; v < vectors; v++) {
        __m512i words = _mm512_max_epi32(_mm512_srai_epi32(sums[v], WEIGHT_BITS), _mm512_setzero_si512());
        _mm_storeu_si128((__m128i *)(out + at + 16 * v), _mm512_cvtusepi32_epi8(words));
    }
}

AVX512 static void weigh_avx512(const uint8_t *const *rows, const Table *table, int32_t i, uint8_t *out, size_t n) {
    const int32_t *weights = table->weights + (size_t)i * table->taps;
    int32_t length = table->length[i];
    size_t at = 0;
    if (n < 16) {
        weigh_plain(rows, table, i, out, n);
        return;
    }
    for (; at + 96 <= n; at += 96) weigh_wide(rows, weights, length, out, at, 6);
    for (; at + 16 <= n; at += 16) weigh_wide(rows, weights, length, out, at, 1);
    if (at < n) weigh_wide(rows, weights, length, out, n - 16, 1);
}

/* 6 pixels to 3 at a time: averages of all neighbours, of which every other is kept. */
AVX2 static void average_pairs_avx2(const uint8_t *pixels, uint8_t *out, size_t count) {
    const __m128i even = _mm_setr_epi8(0, 1, 2, 6, 7, 8, 12, 13, 14, -1, -1, -1, -1, -1, -1, -1);
    size_t j = 0;
    for (; j + 4 <= count; j += 3) {
        __m128i here = _mm_loadu_si128((const __m128i *)(pixels + 6 * j));
        __m128i next = _mm_loadu_si128((const __m128i *)(pixels + 6 * j + 3));
        _mm_storeu_si128((__m128i *)(out + 3 * j), _mm_shuffle_epi8(_mm_avg_epu8(here, next), even));
    }
    average_pairs_plain(pixels + 6 * j, out + 3 * j, count - j);
}

AVX2 static void average_avx2(const uint8_t *a, const uint8_t *b, uint8_t *out, size_t n) {
    size_t j = 0;
    for (; j + 32 <= n; j += 32) {
        __m256i sum = _mm256_avg_epu8(_mm256_loadu_si256((const __m256i *)(a + j)),
                                      _mm256_loadu_si256((const __m256i *)(b + j)));
        _mm256_storeu_si256((__m256i *)(out + j), sum);
    }
    average_plain(a + j, b + j, out + j, n - j);
}

/* 16 x 16 bytes in each half: four rounds that each interleave row k with row k + 8. */
AVX2 INLINE void transpose(__m256i t[16]) {
    for (int round = 0; round < 4; round++) {
        __m256i u[16];
        for (int k = 0; k < 8; k++) {
            u[2 * k] = _mm256_unpacklo_epi8(t[k], t[k + 8]);
            u[2 * k + 1] = _mm256_unpackhi_epi8(t[k], t[k + 8]);
        }
        for (int k = 0; k < 16; k++) t[k] = u[k];
    }
}

_Static_assert(LINES == 32, "rows fill a register of so many bytes");

/* The first half of the rows in the lower halves of registers, the second in the upper ones. */
AVX2 static void to_columns_avx2(const uint8_t *const *rows, uint8_t *out, size_t n) {
    if (n < 16) {
        to_columns_plain(rows, out, n);
        return;
    }
    for (size_t at = 0; at < n; at += 16) {
        size_t j = at + 16 <= n ? at : n - 16;
        __m256i t[16];
        for (int k = 0; k < 16; k++)
            t[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows[k] + j))),
                                           _mm_loadu_si128((const __m128i *)(rows[k + LINES / 2] + j)), 1);
        transpose(t);
        for (int k = 0; k < 16; k++) _mm256_storeu_si256((__m256i *)(out + (j + k) * LINES), t[k]);
    }
}

AVX2 static void to_rows_avx2(const uint8_t *columns, uint8_t *const *rows, size_t n) {
    for (size_t j = 0; j < n; j += 16) {
        __m256i t[16];
        for (int k = 0; k < 16; k++) t[k] = _mm256_loadu_si256((const __m256i *)(columns + (j + k) * LINES));
        transpose(t);
        for (int k = 0; k < 16; k++) {
            _mm_storeu_si128((__m128i *)(rows[k] + j), _mm256_castsi256_si128(t[k]));
            _mm_storeu_si128((__m128i *)(rows[k + LINES / 2] + j), _mm256_extracti128_si256(t[k], 1));
        }
    }
}

/* 32 pixels at a time, 16 in each half of three registers. Byte p of load k is of the colour (k + p) % 3, so that each
 * byte of a colour has a place of its own, and one shuffle brings them into order. */
AVX2 INLINE __m256i colour(const __m256i loads[3], int first) {
    uint8_t chosen[2][32], order[32];
    for (int k = 0; k < 2; k++)
        for (int p = 0; p < 32; p++) chosen[k][p] = (k + 1 + p % 16) % 3 == first ? 0xFF : 0;
    for (int j = 0; j < 32; j++) order[j] = (uint8_t)((CHANNELS * (j % 16) + first) % 16);
    __m256i found = _mm256_blendv_epi8(loads[0], loads[1], _mm256_loadu_si256((const __m256i *)chosen[0]));
    found = _mm256_blendv_epi8(found, loads[2], _mm256_loadu_si256((const __m256i *)chosen[1]));
    return _mm256_shuffle_epi8(found, _mm256_loadu_si256((const __m256i *)order));
}

AVX2 static void split_avx2(const uint8_t *pixels, uint8_t *red, uint8_t *green, uint8_t *blue, size_t count) {
    size_t j = 0;
    for (; j + 32 <= count; j += 32) {
        const __m128i *from = (const __m128i *)(pixels + CHANNELS * j);
        __m256i loads[3];
        for (int k = 0; k < 3; k++)
            loads[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(from + k)),
                                               _mm_loadu_si128(from + 3 + k), 1);
        _mm256_storeu_si256((__m256i *)(red + j), colour(loads, 0));
        _mm256_storeu_si256((__m256i *)(green + j), colour(loads, 1));
        _mm256_storeu_si256((__m256i *)(blue + j), colour(loads, 2));
    }
    split_plain(pixels + CHANNELS * j, red + j, green + j, blue + j, count - j);
}

/* 5 pixels at a time, read with the byte before them and written with a byte that the next ones overwrite. */
AVX2 static void mirror_avx2(const uint8_t *pixels, uint8_t *out, size_t count) {
    const __m128i reverse = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, -1);
    size_t j = 0;
    for (; j + 6 <= count; j += 5) {
        __m128i five = _mm_loadu_si128((const __m128i *)(pixels + CHANNELS * (count - 5 - j) - 1));
        _mm_storeu_si128((__m128i *)(out + CHANNELS * j), _mm_shuffle_epi8(five, reverse));
    }
    mirror_plain(pixels, out + CHANNELS * j, count - j);
}

/* The words of four counters, each in the lower half of 64 bits. What the upper halves hold is never read. */
AVX2 INLINE void words_of_four(__m256i a, uint64_t key, __m256i words[4]) {
    const __m256i by_0 = _mm256_set1_epi32((int)MULTIPLIER_0), by_1 = _mm256_set1_epi32((int)MULTIPLIER_1);
    __m256i b = _mm256_setzero_si256(), c = b, d = b;
    uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
    for (int round = 0; round < ROUNDS; round++, key_0 += WEYL_0, key_1 += WEYL_1) {
        __m256i p = _mm256_mul_epu32(by_0, a), q = _mm256_mul_epu32(by_1, c);
        a = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(q, 32), b), _mm256_set1_epi32((int)key_0));
        b = q;
        c = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p, 32), d), _mm256_set1_epi32((int)key_1));
        d = p;
    }
    words[0] = a;
    words[1] = b;
    words[2] = c;
    words[3] = d;
}

AVX2 static void normals_avx2(uint64_t key, uint32_t block, float *out) {
    const __m256i even = _mm256_setr_epi64x(0, 2, 4, 6), one = _mm256_set1_epi64x(1);
    Words words;
    for (uint32_t j = 0; j < COUNTERS; j += 8) {
        __m256i low[4], high[4], first = _mm256_add_epi64(_mm256_set1_epi64x(block * COUNTERS + j), even);
        words_of_four(first, key, low);
        words_of_four(_mm256_add_epi64(first, one), key, high);
        for (int w = 0; w < 4; w++)
            _mm256_storeu_si256((__m256i *)(words[w] + j),
                                _mm256_blend_epi32(low[w], _mm256_slli_epi64(high[w], 32), 0xAA));
    }
    normals_of(words, out);
}

AVX2 static void place_avx2(const float *mean, const float *deviation, const float *z, float shift, float scale,
                            float *out, size_t n) {
    place(mean, deviation, z, shift, scale, out, n);
}

static const Kernels WITH_AVX512 = {
    "avx512",      weigh_avx512, average_pairs_avx2, average_avx2, to_columns_avx2, to_rows_avx2,
    split_avx2,    mirror_avx2,  normals_avx2,       place_avx2,
};

static const Kernels WITH_AVX2 = {
    "avx2",        weigh_avx2,  average_pairs_avx2, average_avx2, to_columns_avx2, to_rows_avx2,
    split_avx2,    mirror_avx2, normals_avx2,       place_avx2,
};

const Kernels *const *kernels_here(void) {
    static const Kernels *const ALL[] = {&WITH_AVX512, &WITH_AVX2, &PLAIN, NULL};
    return has_avx512() ? ALL : has_avx2() ? ALL + 1 : ALL + 2;
}
