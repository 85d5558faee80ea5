/* From coefficients to RGB, as libjpeg's accurate inverse DCT (Loeffler, Ligtenberg and Moschytz, 13 bits), its smooth
 * widening of colours and its conversion (JFIF) give it, bit for bit; with AVX2. */
#include "jpeg.h"

#ifdef HAS_JPEG

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline))
#define FIRST_SHIFT 11  /* 13 bits of the constants, of which two are kept between the passes */
#define SECOND_SHIFT 18 /* 13, those two, and 3 of an 8 x 8 transform */
#define SAFE_BITS 14    /* a number of so many bits and a sign overflows nowhere, in no implementation */
#define LIMIT 512       /* of results, about 0: libjpeg in plain C takes those beyond it modulo 1024, others clip */

/* a * first + b * second of 16-bit pairs, as pairs that one multiplication takes. */
#define PAIR(first, second) _mm256_set1_epi32((int)((uint32_t)(uint16_t)(first) | (uint32_t)(uint16_t)(second) << 16))

/* What the inverse transform multiplies inputs 0 and 4, 2 and 6, 1 and 3, 5 and 7 by: sums of its 13-bit constants. */
INLINE AVX2 void half_pass(const __m256i pairs[4], int shift, __m256i out[SIDE]) {
    const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(pairs[0], PAIR(8192, 8192)), half);
    __m256i difference = _mm256_add_epi32(_mm256_madd_epi16(pairs[0], PAIR(8192, -8192)), half);
    __m256i outer = _mm256_madd_epi16(pairs[1], PAIR(10703, 4433)), inner = _mm256_madd_epi16(pairs[1], PAIR(4433, -10704));
    __m256i even[4] = {_mm256_add_epi32(sum, outer), _mm256_add_epi32(difference, inner),
                       _mm256_sub_epi32(difference, inner), _mm256_sub_epi32(sum, outer)};
    __m256i odd[4] = {
        _mm256_add_epi32(_mm256_madd_epi16(pairs[2], PAIR(11363, 9633)), _mm256_madd_epi16(pairs[3], PAIR(6437, 2260))),
        _mm256_add_epi32(_mm256_madd_epi16(pairs[2], PAIR(9633, -2259)), _mm256_madd_epi16(pairs[3], PAIR(-11362, -6436))),
        _mm256_add_epi32(_mm256_madd_epi16(pairs[2], PAIR(6437, -11362)), _mm256_madd_epi16(pairs[3], PAIR(2261, 9633))),
        _mm256_add_epi32(_mm256_madd_epi16(pairs[2], PAIR(2260, -6436)), _mm256_madd_epi16(pairs[3], PAIR(9633, -11363))),
    };
    for (int k = 0; k < 4; k++) {
        out[k] = _mm256_srai_epi32(_mm256_add_epi32(even[k], odd[k]), shift);
        out[SIDE - 1 - k] = _mm256_srai_epi32(_mm256_sub_epi32(even[k], odd[k]), shift);
    }
}

/* One pass over 8 inputs of 16 columns (two blocks, one in each half). */
INLINE AVX2 void pass(__m256i v[SIDE], int shift) {
    static const int first[4] = {0, 2, 1, 5}, second[4] = {4, 6, 3, 7};
    __m256i low[4], high[4], left[SIDE], right[SIDE];
    for (int k = 0; k < 4; k++) {
        low[k] = _mm256_unpacklo_epi16(v[first[k]], v[second[k]]);
        high[k] = _mm256_unpackhi_epi16(v[first[k]], v[second[k]]);
    }
    half_pass(low, shift, left);
    half_pass(high, shift, right);
    for (int k = 0; k < SIDE; k++) v[k] = _mm256_packs_epi32(left[k], right[k]);
}

/* 8 x 8 numbers of 16 bits in each half: three rounds that each interleave row k with row k + 4. */
INLINE AVX2 void transpose(__m256i v[SIDE]) {
    for (int round = 0; round < 3; round++) {
        __m256i u[SIDE];
        for (int k = 0; k < 4; k++) {
            u[2 * k] = _mm256_unpacklo_epi16(v[k], v[k + 4]);
            u[2 * k + 1] = _mm256_unpackhi_epi16(v[k], v[k + 4]);
        }
        for (int k = 0; k < SIDE; k++) v[k] = u[k];
    }
}

/* Bits that are set where a number has more than SAFE_BITS. */
INLINE AVX2 __m256i unsafe(__m256i numbers) {
    return _mm256_xor_si256(_mm256_srai_epi16(numbers, SAFE_BITS), _mm256_srai_epi16(numbers, 15));
}

AVX2 int blocks_to_pixels(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t pairs, uint8_t *out,
                          size_t stride) {
    __m256i wrong = _mm256_setzero_si256(), most = wrong, least = wrong;
    for (size_t pair = 0; pair < pairs; pair++, coefficients += 2 * BLOCK, out += 2 * SIDE) {
        __m256i v[SIDE];
        for (int k = 0; k < SIDE; k++) {
            __m128i a = _mm_loadu_si128((const __m128i *)(coefficients + SIDE * k));
            __m128i b = _mm_loadu_si128((const __m128i *)(coefficients + BLOCK + SIDE * k));
            __m256i step = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(quantisation + SIDE * k)));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
            v[k] = _mm256_mullo_epi16(both, step);
            __m256i upper = _mm256_mulhi_epi16(both, step);
            wrong = _mm256_or_si256(wrong, _mm256_xor_si256(upper, _mm256_srai_epi16(v[k], SAFE_BITS)));
        }
        pass(v, FIRST_SHIFT);
        for (int k = 0; k < SIDE; k++) wrong = _mm256_or_si256(wrong, unsafe(v[k]));
        transpose(v);
        pass(v, SECOND_SHIFT);
        for (int k = 0; k < SIDE; k++) {
            most = _mm256_max_epi16(most, v[k]);
            least = _mm256_min_epi16(least, v[k]);
        }
        transpose(v);
        for (int k = 0; k < SIDE; k += 2) {
            __m256i rows = _mm256_xor_si256(_mm256_packs_epi16(v[k], v[k + 1]), _mm256_set1_epi8((char)0x80));
            rows = _mm256_permute4x64_epi64(rows, 0xd8);
            _mm_storeu_si128((__m128i *)(out + stride * (size_t)k), _mm256_castsi256_si128(rows));
            _mm_storeu_si128((__m128i *)(out + stride * (size_t)(k + 1)), _mm256_extracti128_si256(rows, 1));
        }
    }
    const __m256i limit = _mm256_set1_epi16(LIMIT);
    wrong = _mm256_or_si256(wrong, _mm256_cmpgt_epi16(most, _mm256_sub_epi16(limit, _mm256_set1_epi16(1))));
    wrong = _mm256_or_si256(wrong, _mm256_cmpgt_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), limit), least));
    return _mm256_testz_si256(wrong, wrong);
}

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

INLINE AVX2 __m256i wide(const uint8_t *bytes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)bytes));
}

INLINE AVX2 __m256i thrice(__m256i numbers) {
    return _mm256_add_epi16(numbers, _mm256_add_epi16(numbers, numbers));
}

AVX2 void widen(const uint8_t *row, const uint8_t *other, size_t count, int16_t *sums, uint8_t *out) {
    const int shift = other ? 4 : 2;
    const __m256i before = _mm256_set1_epi16(other ? 8 : 1), behind = _mm256_set1_epi16(other ? 7 : 2);
    int16_t *at = sums + 1;
    for (size_t j = 0; j < count; j += 16) {
        __m256i sum = other ? _mm256_add_epi16(thrice(wide(row + j)), wide(other + j)) : wide(row + j);
        _mm256_storeu_si256((__m256i *)(at + j), sum);
    }
    at[-1] = at[0];
    at[count] = at[count - 1];
    for (size_t j = 0; j < count; j += 16) {
        __m256i near = thrice(_mm256_loadu_si256((const __m256i *)(at + j)));
        __m256i last = _mm256_loadu_si256((const __m256i *)(at + j - 1));
        __m256i next = _mm256_loadu_si256((const __m256i *)(at + j + 1));
        __m256i even = _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(near, last), before), shift);
        __m256i odd = _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(near, next), behind), shift);
        _mm256_storeu_si256((__m256i *)(out + 2 * j), _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
    }
}

/* (number * factor + half) >> 16 of 32 bits, rounded in two steps that come to the same. */
INLINE AVX2 __m256i times(__m256i number, int factor) {
    __m256i twice = _mm256_mulhi_epi16(_mm256_add_epi16(number, number), _mm256_set1_epi16((short)factor));
    return _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
}

/* Of 16 bits each; cb and cr less 128. R = y + 1.402 cr, G = y - 0.34414 cb - 0.71414 cr, B = y + 1.772 cb, in 16 bits
 * behind the point; whole parts of the factors are added, as the rest must fit a signed number. */
INLINE AVX2 void to_rgb_16(__m256i y, __m256i cb, __m256i cr, __m256i rgb[3]) {
    const __m256i factors = PAIR(-22554, 18734), half = _mm256_set1_epi32(1 << 15);
    __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), factors);
    __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), factors);
    __m256i green = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), 16),
                                       _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
    rgb[0] = _mm256_add_epi16(_mm256_add_epi16(y, cr), times(cr, 26345));
    rgb[1] = _mm256_add_epi16(_mm256_sub_epi16(y, cr), green);
    rgb[2] = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), times(cb, -14942));
}

/* Byte p of stored vector k is of the colour (k + p) % 3. One shuffle brings each of a colour to its place, modulo 16. */
INLINE AVX2 void store_rgb(const __m256i colours[3], uint8_t *out) {
    __m256i placed[3];
    uint8_t order[3][32], chosen[2][3][32];
    for (int c = 0; c < 3; c++)
        for (int j = 0; j < 16; j++) order[c][(3 * j + c) % 16] = order[c][16 + (3 * j + c) % 16] = (uint8_t)j;
    for (int k = 0; k < 3; k++)
        for (int p = 0; p < 32; p++) {
            chosen[0][k][p] = (k + p % 16) % 3 == 1 ? 0xFF : 0;
            chosen[1][k][p] = (k + p % 16) % 3 == 2 ? 0xFF : 0;
        }
    for (int c = 0; c < 3; c++)
        placed[c] = _mm256_shuffle_epi8(colours[c], _mm256_loadu_si256((const __m256i *)order[c]));
    for (int k = 0; k < 3; k++) {
        __m256i mixed = _mm256_blendv_epi8(placed[0], placed[1], _mm256_loadu_si256((const __m256i *)chosen[0][k]));
        mixed = _mm256_blendv_epi8(mixed, placed[2], _mm256_loadu_si256((const __m256i *)chosen[1][k]));
        _mm_storeu_si128((__m128i *)(out + 16 * k), _mm256_castsi256_si128(mixed));
        _mm_storeu_si128((__m128i *)(out + 48 + 16 * k), _mm256_extracti128_si256(mixed, 1));
    }
}

INLINE AVX2 void to_rgb_32(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256(), middle = _mm256_set1_epi16(128);
    __m256i in[3] = {_mm256_loadu_si256((const __m256i *)y), _mm256_loadu_si256((const __m256i *)cb),
                     _mm256_loadu_si256((const __m256i *)cr)};
    __m256i low[3], high[3], colours[3];
    to_rgb_16(_mm256_unpacklo_epi8(in[0], zero), _mm256_sub_epi16(_mm256_unpacklo_epi8(in[1], zero), middle),
              _mm256_sub_epi16(_mm256_unpacklo_epi8(in[2], zero), middle), low);
    to_rgb_16(_mm256_unpackhi_epi8(in[0], zero), _mm256_sub_epi16(_mm256_unpackhi_epi8(in[1], zero), middle),
              _mm256_sub_epi16(_mm256_unpackhi_epi8(in[2], zero), middle), high);
    for (int c = 0; c < 3; c++) colours[c] = _mm256_packus_epi16(low[c], high[c]);
    store_rgb(colours, out);
}

AVX2 void to_rgb(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, size_t count, uint8_t *out) {
    size_t j = 0;
    for (; j + 32 <= count; j += 32) to_rgb_32(y + j, cb + j, cr + j, out + 3 * j);
    if (j == count) return;
    uint8_t rest[3 * 32];
    to_rgb_32(y + j, cb + j, cr + j, rest);
    memcpy(out + 3 * j, rest, 3 * (count - j));
}

#endif
