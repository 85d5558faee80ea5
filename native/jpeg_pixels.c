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

/* One block of 4 x 4 or 2 x 2: columns first, then rows. 0 where a number is beyond what either pass can take. */
INLINE AVX2 int block_to_fewer(const int16_t *block, const uint16_t *steps, int side, uint8_t *out, size_t stride) {
    Eight in[SIDE], columns[4], rows[SIDE], found[4], wrong = {0};
    for (int k = 0; k < SIDE; k++) {
        __m256i numbers = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(block + SIDE * k)));
        __m256i by = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(steps + SIDE * k)));
        in[k] = (Eight)_mm256_mullo_epi32(numbers, by);
        wrong |= beyond(in[k], 1 << SAFE_BITS);
    }
    if (!none(wrong)) return 0;
    if (side == 4) to_four(in, FIRST_SHIFT + 1, columns);
    else to_two(in, FIRST_SHIFT + 2, columns);
    for (int row = 0; row < side; row++) wrong |= beyond(columns[row], 1 << SAFE_BITS);
    if (!none(wrong)) return 0;
    for (int k = 0; k < SIDE; k++)
        rows[k] = side == 4 ? (Eight){columns[0][k], columns[1][k], columns[2][k], columns[3][k]}
                            : (Eight){columns[0][k], columns[1][k]};
    if (side == 4) to_four(rows, SECOND_SHIFT + 1, found);
    else to_two(rows, SECOND_SHIFT + 2, found);
    for (int k = 0; k < side; k++) {
        wrong |= beyond(found[k], LIMIT);
        for (int row = 0; row < side; row++) out[stride * (size_t)row + (size_t)k] = clipped(found[k][row] + 128);
    }
    return none(wrong);
}

AVX2 int blocks_to_fewer_pixels(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t count, int side,
                                uint8_t *out, size_t stride) {
    int sound = 1;
    for (size_t block = 0; sound && block < count; block++, coefficients += BLOCK, out += side) {
        int32_t mean = (coefficients[0] * quantisation[0] + 4) >> 3;
        if (side == 4) {
            sound = block_to_fewer(coefficients, quantisation, 4, out, stride);
        } else if (side == 2) {
            sound = block_to_fewer(coefficients, quantisation, 2, out, stride);
        } else {
            *out = clipped(mean + 128);
            sound = mean >= -LIMIT && mean < LIMIT;
        }
    }
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
