/* From coefficients to RGB in registers of LANES times 16 bytes: part of jpeg_pixels.c, which includes it once for AVX2
 * and once for AVX-512. Within a lane both do the same; they differ in how lanes are filled and emptied. */

#if LANES == 2
#define TARGET __attribute__((target("avx2")))
#define NAME(function) function##_avx2
#define REGISTERS "avx2"
#define OP(name) _mm256_##name
#define V __m256i
#define LOAD(at) _mm256_loadu_si256((const __m256i *)(at))
#define LOAD_HALF(at) _mm_loadu_si128((const __m128i *)(at))
#define STORE(at, v) _mm256_storeu_si256((__m256i *)(at), v)
#define STORE_HALF(at, v) _mm_storeu_si128((__m128i *)(at), v)
#define FIRST_HALF(v) _mm256_castsi256_si128(v)
#define SECOND_HALF(v) _mm256_extracti128_si256(v, 1)
#define IN_ALL(v) _mm256_broadcastsi128_si256(v)
#define OR(a, b) _mm256_or_si256(a, b)
#define AND(a, b) _mm256_and_si256(a, b)
#define XOR(a, b) _mm256_xor_si256(a, b)
#define NONE(v) _mm256_testz_si256(v, v)
#define CHOSEN(a, b, mask) _mm256_blendv_epi8(a, b, mask)
#define EVEN_THEN_ODD(v) _mm256_permute4x64_epi64(v, 0xd8)
#define ADD_LANE(v, lane, number) _mm256_inserti128_si256(v, lane, number)
#define TAKE_LANE(v, number) _mm256_extracti128_si256(v, number)
#else
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define NAME(function) function##_avx512
#define REGISTERS "avx512"
#define OP(name) _mm512_##name
#define V __m512i
#define LOAD(at) _mm512_loadu_si512(at)
#define LOAD_HALF(at) _mm256_loadu_si256((const __m256i *)(at))
#define STORE(at, v) _mm512_storeu_si512(at, v)
#define STORE_HALF(at, v) _mm256_storeu_si256((__m256i *)(at), v)
#define FIRST_HALF(v) _mm512_castsi512_si256(v)
#define SECOND_HALF(v) _mm512_extracti64x4_epi64(v, 1)
#define IN_ALL(v) _mm512_broadcast_i32x4(v)
#define OR(a, b) _mm512_or_si512(a, b)
#define AND(a, b) _mm512_and_si512(a, b)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define NONE(v) (_mm512_test_epi32_mask(v, v) == 0)
#define CHOSEN(a, b, mask) _mm512_ternarylogic_epi32(mask, b, a, 0xCA)
#define EVEN_THEN_ODD(v) _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), v)
#define ADD_LANE(v, lane, number) _mm512_inserti32x4(v, lane, number)
#define TAKE_LANE(v, number) _mm512_extracti32x4_epi32(v, number)
#endif

#define BYTES (16 * LANES)

/* 16 bytes a lane, each `step` bytes behind the last. */
INLINE TARGET V NAME(load_lanes)(const void *from, size_t step) {
    const uint8_t *at = from;
#if LANES == 2
    V v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)at));
#else
    V v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at));
    v = ADD_LANE(v, _mm_loadu_si128((const __m128i *)(at + 2 * step)), 2);
    v = ADD_LANE(v, _mm_loadu_si128((const __m128i *)(at + 3 * step)), 3);
#endif
    return ADD_LANE(v, _mm_loadu_si128((const __m128i *)(at + step)), 1);
}

INLINE TARGET void NAME(store_lanes)(uint8_t *at, size_t step, V v) {
    _mm_storeu_si128((__m128i *)at, TAKE_LANE(v, 0));
    _mm_storeu_si128((__m128i *)(at + step), TAKE_LANE(v, 1));
#if LANES == 4
    _mm_storeu_si128((__m128i *)(at + 2 * step), TAKE_LANE(v, 2));
    _mm_storeu_si128((__m128i *)(at + 3 * step), TAKE_LANE(v, 3));
#endif
}

/* a * first + b * second of 16-bit pairs, as pairs that one multiplication takes. */
#define PAIR(first, second) OP(set1_epi32)((int)((uint32_t)(uint16_t)(first) | (uint32_t)(uint16_t)(second) << 16))

/* What the inverse transform multiplies inputs 0 and 4, 2 and 6, 1 and 3, 5 and 7 by: sums of its 13-bit constants. */
INLINE TARGET void NAME(half_pass)(const V pairs[4], int shift, V out[SIDE]) {
    const V half = OP(set1_epi32)(1 << (shift - 1));
    V sum = OP(add_epi32)(OP(madd_epi16)(pairs[0], PAIR(8192, 8192)), half);
    V difference = OP(add_epi32)(OP(madd_epi16)(pairs[0], PAIR(8192, -8192)), half);
    V outer = OP(madd_epi16)(pairs[1], PAIR(10703, 4433)), inner = OP(madd_epi16)(pairs[1], PAIR(4433, -10704));
    V even[4] = {OP(add_epi32)(sum, outer), OP(add_epi32)(difference, inner), OP(sub_epi32)(difference, inner),
                 OP(sub_epi32)(sum, outer)};
    V odd[4] = {
        OP(add_epi32)(OP(madd_epi16)(pairs[2], PAIR(11363, 9633)), OP(madd_epi16)(pairs[3], PAIR(6437, 2260))),
        OP(add_epi32)(OP(madd_epi16)(pairs[2], PAIR(9633, -2259)), OP(madd_epi16)(pairs[3], PAIR(-11362, -6436))),
        OP(add_epi32)(OP(madd_epi16)(pairs[2], PAIR(6437, -11362)), OP(madd_epi16)(pairs[3], PAIR(2261, 9633))),
        OP(add_epi32)(OP(madd_epi16)(pairs[2], PAIR(2260, -6436)), OP(madd_epi16)(pairs[3], PAIR(9633, -11363))),
    };
    for (int k = 0; k < 4; k++) {
        out[k] = OP(srai_epi32)(OP(add_epi32)(even[k], odd[k]), shift);
        out[SIDE - 1 - k] = OP(srai_epi32)(OP(sub_epi32)(even[k], odd[k]), shift);
    }
}

/* One pass over 8 inputs of 8 columns in each lane, which is one of a block. */
INLINE TARGET void NAME(pass)(V v[SIDE], int shift) {
    static const int first[4] = {0, 2, 1, 5}, second[4] = {4, 6, 3, 7};
    V low[4], high[4], left[SIDE], right[SIDE];
    for (int k = 0; k < 4; k++) {
        low[k] = OP(unpacklo_epi16)(v[first[k]], v[second[k]]);
        high[k] = OP(unpackhi_epi16)(v[first[k]], v[second[k]]);
    }
    NAME(half_pass)(low, shift, left);
    NAME(half_pass)(high, shift, right);
    for (int k = 0; k < SIDE; k++) v[k] = OP(packs_epi32)(left[k], right[k]);
}

/* 8 x 8 numbers of 16 bits in each lane: three rounds that each interleave row k with row k + 4. */
INLINE TARGET void NAME(transpose)(V v[SIDE]) {
    for (int round = 0; round < 3; round++) {
        V u[SIDE];
        for (int k = 0; k < 4; k++) {
            u[2 * k] = OP(unpacklo_epi16)(v[k], v[k + 4]);
            u[2 * k + 1] = OP(unpackhi_epi16)(v[k], v[k + 4]);
        }
        for (int k = 0; k < SIDE; k++) v[k] = u[k];
    }
}

/* Bits that are set where a number has more than SAFE_BITS. */
INLINE TARGET V NAME(unsafe)(V numbers) {
    return XOR(OP(srai_epi16)(numbers, SAFE_BITS), OP(srai_epi16)(numbers, 15));
}

TARGET static int NAME(blocks_to_pixels)(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t count,
                                         uint8_t *out, size_t stride) {
    V wrong = OP(set1_epi16)(0), most = wrong, least = wrong;
    for (size_t block = 0; block < count; block += LANES, coefficients += LANES * BLOCK, out += LANES * SIDE) {
        V v[SIDE];
        for (int k = 0; k < SIDE; k++) {
            V numbers = NAME(load_lanes)(coefficients + SIDE * k, BLOCK * sizeof *coefficients);
            V step = IN_ALL(_mm_loadu_si128((const __m128i *)(quantisation + SIDE * k)));
            v[k] = OP(mullo_epi16)(numbers, step);
            wrong = OR(wrong, XOR(OP(mulhi_epi16)(numbers, step), OP(srai_epi16)(v[k], SAFE_BITS)));
        }
        NAME(pass)(v, FIRST_SHIFT);
        for (int k = 0; k < SIDE; k++) wrong = OR(wrong, NAME(unsafe)(v[k]));
        NAME(transpose)(v);
        NAME(pass)(v, SECOND_SHIFT);
        for (int k = 0; k < SIDE; k++) {
            most = OP(max_epi16)(most, v[k]);
            least = OP(min_epi16)(least, v[k]);
        }
        NAME(transpose)(v);
        for (int k = 0; k < SIDE; k += 2) {
            V rows = EVEN_THEN_ODD(XOR(OP(packs_epi16)(v[k], v[k + 1]), OP(set1_epi8)((char)0x80)));
            STORE_HALF(out + stride * (size_t)k, FIRST_HALF(rows));
            STORE_HALF(out + stride * (size_t)(k + 1), SECOND_HALF(rows));
        }
    }
    /* Modulo 16 bits: what is beyond -LIMIT .. LIMIT - 1 has a bit above those, shifted by LIMIT. */
    const V limit = OP(set1_epi16)(LIMIT), above = OP(set1_epi16)((short)~(2 * LIMIT - 1));
    wrong = OR(wrong, AND(OR(OP(add_epi16)(most, limit), OP(add_epi16)(least, limit)), above));
    return NONE(wrong);
}

INLINE TARGET V NAME(wide)(const uint8_t *bytes) {
    return OP(cvtepu8_epi16)(LOAD_HALF(bytes));
}

INLINE TARGET V NAME(thrice)(V numbers) {
    return OP(add_epi16)(numbers, OP(add_epi16)(numbers, numbers));
}

TARGET static void NAME(widen)(const uint8_t *row, const uint8_t *other, size_t count, int16_t *sums, uint8_t *out) {
    const int shift = other ? 4 : 2;
    const V before = OP(set1_epi16)(other ? 8 : 1), behind = OP(set1_epi16)(other ? 7 : 2);
    int16_t *at = sums + 1;
    for (size_t j = 0; j < count; j += BYTES / 2) {
        V sum = NAME(wide)(row + j);
        if (other) sum = OP(add_epi16)(NAME(thrice)(sum), NAME(wide)(other + j));
        STORE(at + j, sum);
    }
    at[-1] = at[0];
    at[count] = at[count - 1];
    for (size_t j = 0; j < count; j += BYTES / 2) {
        V near = NAME(thrice)(LOAD(at + j)), last = LOAD(at + j - 1), next = LOAD(at + j + 1);
        V even = OP(srli_epi16)(OP(add_epi16)(OP(add_epi16)(near, last), before), shift);
        V odd = OP(srli_epi16)(OP(add_epi16)(OP(add_epi16)(near, next), behind), shift);
        STORE(out + 2 * j, OR(even, OP(slli_epi16)(odd, 8)));
    }
}

/* (number * factor + half) >> 16 of 32 bits, rounded in two steps that come to the same. */
INLINE TARGET V NAME(times)(V number, int factor) {
    V twice = OP(mulhi_epi16)(OP(add_epi16)(number, number), OP(set1_epi16)((short)factor));
    return OP(srai_epi16)(OP(add_epi16)(twice, OP(set1_epi16)(1)), 1);
}

/* Of 16 bits each; cb and cr less 128. R = y + 1.402 cr, G = y - 0.34414 cb - 0.71414 cr, B = y + 1.772 cb, in 16 bits
 * behind the point; whole parts of the factors are added, as the rest must fit a signed number. */
INLINE TARGET void NAME(to_rgb_16)(V y, V cb, V cr, V rgb[3]) {
    const V factors = PAIR(-22554, 18734), half = OP(set1_epi32)(1 << 15);
    V low = OP(madd_epi16)(OP(unpacklo_epi16)(cb, cr), factors);
    V high = OP(madd_epi16)(OP(unpackhi_epi16)(cb, cr), factors);
    V green = OP(packs_epi32)(OP(srai_epi32)(OP(add_epi32)(low, half), 16), OP(srai_epi32)(OP(add_epi32)(high, half), 16));
    rgb[0] = OP(add_epi16)(OP(add_epi16)(y, cr), NAME(times)(cr, 26345));
    rgb[1] = OP(add_epi16)(OP(sub_epi16)(y, cr), green);
    rgb[2] = OP(add_epi16)(OP(add_epi16)(y, OP(add_epi16)(cb, cb)), NAME(times)(cb, -14942));
}

/* 48 bytes of each lane's 16 pixels. Byte p of the part k of 16 bytes is of the colour (k + p) % 3, and one shuffle brings
 * each of a colour to its place, modulo 16. */
INLINE TARGET void NAME(store_rgb)(const V colours[3], uint8_t *out) {
    V placed[3];
    for (int c = 0; c < 3; c++)
        placed[c] = OP(shuffle_epi8)(colours[c], IN_ALL(_mm_loadu_si128((const __m128i *)PLACES_OF[c])));
    for (int k = 0; k < 3; k++) {
        V second = IN_ALL(_mm_loadu_si128((const __m128i *)(EVERY_THIRD + k)));
        V third = IN_ALL(_mm_loadu_si128((const __m128i *)(EVERY_THIRD + k + 2)));
        NAME(store_lanes)(out + 16 * k, 48, CHOSEN(CHOSEN(placed[0], placed[1], second), placed[2], third));
    }
}

INLINE TARGET void NAME(to_rgb_some)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *out) {
    const V zero = OP(set1_epi16)(0), middle = OP(set1_epi16)(128);
    V in[3] = {LOAD(y), LOAD(cb), LOAD(cr)}, low[3], high[3], colours[3];
    NAME(to_rgb_16)(OP(unpacklo_epi8)(in[0], zero), OP(sub_epi16)(OP(unpacklo_epi8)(in[1], zero), middle),
                    OP(sub_epi16)(OP(unpacklo_epi8)(in[2], zero), middle), low);
    NAME(to_rgb_16)(OP(unpackhi_epi8)(in[0], zero), OP(sub_epi16)(OP(unpackhi_epi8)(in[1], zero), middle),
                    OP(sub_epi16)(OP(unpackhi_epi8)(in[2], zero), middle), high);
    for (int c = 0; c < 3; c++) colours[c] = OP(packus_epi16)(low[c], high[c]);
    NAME(store_rgb)(colours, out);
}

TARGET static void NAME(to_rgb)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, size_t count, uint8_t *out) {
    size_t j = 0;
    for (; j + BYTES <= count; j += BYTES) NAME(to_rgb_some)(y + j, cb + j, cr + j, out + 3 * j);
    if (j == count) return;
    uint8_t rest[3 * BYTES];
    NAME(to_rgb_some)(y + j, cb + j, cr + j, rest);
    memcpy(out + 3 * j, rest, 3 * (count - j));
}

static const Pixels NAME(PIXELS) = {REGISTERS, NAME(blocks_to_pixels), NAME(widen), NAME(to_rgb)};

#undef TARGET
#undef NAME
#undef REGISTERS
#undef OP
#undef V
#undef LOAD
#undef LOAD_HALF
#undef STORE
#undef STORE_HALF
#undef FIRST_HALF
#undef SECOND_HALF
#undef IN_ALL
#undef OR
#undef AND
#undef XOR
#undef NONE
#undef CHOSEN
#undef EVEN_THEN_ODD
#undef ADD_LANE
#undef TAKE_LANE
#undef BYTES
#undef PAIR
