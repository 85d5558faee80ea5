/* The inner loops: plain C that any compiler takes, and for x86-64 with GCC or Clang, AVX2 and AVX-512 where the
 * processor has them. All give the same bytes: 32-bit sums in fixed point, and single operations in float32. */
#include "normals.h"
#include "resample.h"

#include <string.h>

static uint8_t clipped(int32_t sum) {
    int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void weigh_plain(const uint8_t *const *rows, const Table *table, int32_t i, uint8_t *out, size_t n) {
    const int32_t *weights = table->weights + (size_t)i * table->taps;
    int32_t length = table->length[i];
    for (size_t at = 0; at < n; at += 64) {
        size_t width = n - at < 64 ? n - at : 64;
        int32_t sums[64];
        for (size_t j = 0; j < 64; j++) sums[j] = HALF;
        for (int32_t k = 0; k < length; k++) {
            const uint8_t *row = rows[k] + at;
            if (width == 64)
                for (size_t j = 0; j < 64; j++) sums[j] += weights[k] * row[j];
            else
                for (size_t j = 0; j < width; j++) sums[j] += weights[k] * row[j];
        }
        for (size_t j = 0; j < width; j++) out[at + j] = clipped(sums[j]);
    }
}

static void average_pairs_plain(const uint8_t *pixels, uint8_t *out, size_t count) {
    for (size_t j = 0; j < count; j++)
        for (size_t c = 0; c < CHANNELS; c++)
            out[CHANNELS * j + c] =
                (uint8_t)((pixels[2 * CHANNELS * j + c] + pixels[2 * CHANNELS * j + CHANNELS + c] + 1) >> 1);
}

static void average_plain(const uint8_t *a, const uint8_t *b, uint8_t *out, size_t n) {
    for (size_t j = 0; j < n; j++) out[j] = (uint8_t)((a[j] + b[j] + 1) >> 1);
}

static void to_columns_plain(const uint8_t *const *rows, uint8_t *out, size_t n) {
    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < LINES; r++) out[j * LINES + r] = rows[r][j];
}

static void to_rows_plain(const uint8_t *columns, uint8_t *const *rows, size_t n) {
    for (size_t r = 0; r < LINES; r++)
        for (size_t j = 0; j < n; j++) rows[r][j] = columns[j * LINES + r];
}

static void split_plain(const uint8_t *pixels, uint8_t *red, uint8_t *green, uint8_t *blue, size_t count) {
    for (size_t j = 0; j < count; j++) {
        red[j] = pixels[CHANNELS * j];
        green[j] = pixels[CHANNELS * j + 1];
        blue[j] = pixels[CHANNELS * j + 2];
    }
}

static void mirror_plain(const uint8_t *pixels, uint8_t *out, size_t count) {
    for (size_t j = 0; j < count; j++)
        for (size_t c = 0; c < CHANNELS; c++) out[CHANNELS * j + c] = pixels[CHANNELS * (count - 1 - j) + c];
}

static void normals_plain(uint64_t key, uint32_t block, float *out) {
    Words words;
    words_of(key, block * COUNTERS, words);
    normals_of(words, out);
}

static void place_plain(const float *mean, const float *deviation, const float *z, float shift, float scale, float *out,
                        size_t n) {
    place(mean, deviation, z, shift, scale, out, n);
}

static const Kernels PLAIN = {
    "plain",       weigh_plain,  average_pairs_plain, average_plain, to_columns_plain, to_rows_plain,
    split_plain,   mirror_plain, normals_plain,       place_plain,
};

#if defined(__x86_64__) && defined(__GNUC__)
#include "kernels_x86.h"
#else
const Kernels *const *kernels_here(void) {
    static const Kernels *const ALL[] = {&PLAIN, NULL};
    return ALL;
}
#endif
