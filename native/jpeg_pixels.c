/* From coefficients to RGB, as libjpeg's accurate inverse DCT (Loeffler, Ligtenberg and Moschytz, 13 bits), its smooth
 * widening of colours and its conversion (JFIF) give it, bit for bit; with AVX2 or AVX-512. */
#include "jpeg.h"

#ifdef HAS_JPEG

#include "processor.h"

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline))
#define FIRST_SHIFT 11  /* 13 bits of the constants, of which two are kept between the passes */
#define SECOND_SHIFT 18 /* 13, those two, and 3 of an 8 x 8 transform */
#define SAFE_BITS 14    /* a number of so many bits and a sign overflows nowhere, in no implementation */
#define LIMIT 512       /* of results, about 0: libjpeg in plain C takes those beyond it modulo 1024, others clip */

INLINE uint8_t clipped(int32_t number) {
    return (uint8_t)(number < 0 ? 0 : number > 255 ? 255 : number);
}

typedef int32_t Eight __attribute__((vector_size(32)));

/* Bits that are set where a number lies beyond -limit .. limit - 1, a power of two. */
INLINE AVX2 Eight beyond(Eight numbers, int32_t limit) {
    return (numbers + limit) & ~(2 * limit - 1);
}

/* The reduced transforms of libjpeg (`jidctred`), of eight columns or rows at once: 4 or 2 outputs of 8 inputs, of which
 * number 4 has no part. */
INLINE AVX2 void to_four(const Eight in[SIDE], int shift, Eight out[4]) {
    Eight first = in[0] * (1 << 14) + (1 << (shift - 1)), second = 15137 * in[2] - 6270 * in[6];
    Eight inner = -1730 * in[7] + 11893 * in[5] - 17799 * in[3] + 8697 * in[1];
    Eight outer = -4176 * in[7] - 4926 * in[5] + 7373 * in[3] + 20995 * in[1];
    out[0] = (first + second + outer) >> shift;
    out[1] = (first - second + inner) >> shift;
    out[2] = (first - second - inner) >> shift;
    out[3] = (first + second - outer) >> shift;
}

INLINE AVX2 void to_two(const Eight in[SIDE], int shift, Eight out[2]) {
    Eight first = in[0] * (1 << 15) + (1 << (shift - 1));
    Eight odd = -5906 * in[7] + 6967 * in[5] - 10426 * in[3] + 29692 * in[1];
    out[0] = (first + odd) >> shift;
    out[1] = (first - odd) >> shift;
}

INLINE AVX2 int none(Eight bits) {
    return _mm256_testz_si256((__m256i)bits, (__m256i)bits);
}

/* Rows of one column each: of 4 rows of 8 columns of each of two blocks, the first in the lower half. */
INLINE AVX2 void turn(const Eight first[4], const Eight second[4], Eight rows[SIDE]) {
    for (int half = 0; half < 2; half++) {
        __m256i both[4];
        for (int k = 0; k < 4; k++) {
            __m256i a = (__m256i)first[k], b = (__m256i)second[k];
            both[k] = half ? _mm256_permute2x128_si256(a, b, 0x31) : _mm256_permute2x128_si256(a, b, 0x20);
        }
        __m256i low[2] = {_mm256_unpacklo_epi32(both[0], both[1]), _mm256_unpacklo_epi32(both[2], both[3])};
        __m256i high[2] = {_mm256_unpackhi_epi32(both[0], both[1]), _mm256_unpackhi_epi32(both[2], both[3])};
        rows[4 * half] = (Eight)_mm256_unpacklo_epi64(low[0], low[1]);
        rows[4 * half + 1] = (Eight)_mm256_unpackhi_epi64(low[0], low[1]);
        rows[4 * half + 2] = (Eight)_mm256_unpacklo_epi64(high[0], high[1]);
        rows[4 * half + 3] = (Eight)_mm256_unpackhi_epi64(high[0], high[1]);
    }
}

/* Two blocks of 4 x 4 or 2 x 2, side by side: the columns of each, then the rows of both. 0 where a number is beyond what
 * either pass can take. */
INLINE AVX2 int two_to_fewer(const int16_t *blocks, const uint16_t *steps, int side, uint8_t *out, size_t stride) {
    Eight in[2][SIDE], columns[2][4] = {{{0}}}, rows[SIDE], found[4] = {{0}}, wrong = {0};
    for (int k = 0; k < SIDE; k++) {
        __m256i by = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(steps + SIDE * k)));
        for (int b = 0; b < 2; b++) {
            __m128i numbers = _mm_loadu_si128((const __m128i *)(blocks + BLOCK * b + SIDE * k));
            in[b][k] = (Eight)_mm256_mullo_epi32(_mm256_cvtepi16_epi32(numbers), by);
            wrong |= beyond(in[b][k], 1 << SAFE_BITS);
        }
    }
    if (!none(wrong)) return 0;
    for (int b = 0; b < 2; b++) {
        if (side == 4) to_four(in[b], FIRST_SHIFT + 1, columns[b]);
        else to_two(in[b], FIRST_SHIFT + 2, columns[b]);
        for (int row = 0; row < side; row++) wrong |= beyond(columns[b][row], 1 << SAFE_BITS);
    }
    if (!none(wrong)) return 0;
    turn(columns[0], columns[1], rows);
    if (side == 4) to_four(rows, SECOND_SHIFT + 1, found);
    else to_two(rows, SECOND_SHIFT + 2, found);
    for (int k = 0; k < side; k++) wrong |= beyond(found[k], LIMIT);
    const __m256i middle = _mm256_set1_epi16(128), in_rows = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i left = _mm256_add_epi16(_mm256_packs_epi32((__m256i)found[0], (__m256i)found[1]), middle);
    __m256i right = _mm256_add_epi16(_mm256_packs_epi32((__m256i)found[2], (__m256i)found[3]), middle);
    uint8_t pixels[2][4][4];
    _mm256_storeu_si256((__m256i *)pixels, _mm256_shuffle_epi8(_mm256_packus_epi16(left, right), in_rows));
    for (int b = 0; b < 2; b++)
        for (int row = 0; row < side; row++)
            memcpy(out + stride * (size_t)row + (size_t)(side * b), pixels[b][row], (size_t)side);
    return none(wrong);
}

AVX2 int blocks_to_fewer_pixels(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t count, int side,
                                uint8_t *out, size_t stride) {
    int sound = 1;
    if (side == 1) {
        for (size_t block = 0; sound && block < count; block++, coefficients += BLOCK) {
            int32_t mean = (coefficients[0] * quantisation[0] + 4) >> 3;
            out[block] = clipped(mean + 128);
            sound = mean >= -LIMIT && mean < LIMIT;
        }
        return sound;
    }
    for (size_t block = 0; sound && block < count; block += 2, coefficients += 2 * BLOCK, out += 2 * side)
        sound = side == 4 ? two_to_fewer(coefficients, quantisation, 4, out, stride)
                          : two_to_fewer(coefficients, quantisation, 2, out, stride);
    return sound;
}

/* Of colour c, which of 16 pixels lies at a byte p of 48, modulo 16: 3 times it and c more is p. */
static const uint8_t PLACES_OF[3][16] = {
    {0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5},
    {5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10},
    {10, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15},
};
static const uint8_t EVERY_THIRD[20] = {
    0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF,
};

#define LANES 2
#include "jpeg_lanes.h"
#undef LANES
#define LANES 4
#include "jpeg_lanes.h"
#undef LANES

static const Pixels *chosen = &PIXELS_avx2;

const Pixels *pixels_here(void) {
    return chosen;
}

void pixels_use(int wide) {
    chosen = wide && has_avx512() ? &PIXELS_avx512 : &PIXELS_avx2;
}

#endif
