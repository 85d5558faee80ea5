/* What the parts of the compiled module share: tables of weights, inner loops, and a resize as a whole. */
#ifndef LATENTMILL_RESAMPLE_H
#define LATENTMILL_RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef _MSC_VER
#pragma fp_contract(off)         /* for other compilers, setup.py says so */
#endif

#define CHANNELS 3
#define WEIGHT_BITS 22           /* a weight of 1.0 is 1 << 22: Pillow's 32 - 8 - 2 */
#define HALF (1 << (WEIGHT_BITS - 1))
#define MAX_SIDE (1 << 24)       /* Pillow holds the sides in float32, exact up to here */
#define MOST_HALVED 3            /* inputs of an output of a halving */

/* The weights of the outputs first .. first + count of a resize of `size_in` pixels to `size_out`.
 * Output i is the sum of weights[i * taps + k] * input[start[i] + k], k below length[i]; the rest is 0. */
typedef struct {
    int32_t size_in, size_out, first, count;
    int32_t taps;                /* room for the weights of an output */
    int32_t longest;             /* of the lengths */
    int32_t low, high;           /* the inputs that any of the outputs needs */
    int32_t *start, *length;
    int32_t *pairs;              /* how many outputs from here on are plain averages of successive pairs */
    int32_t *weights;
} Table;

enum { BOX, BILINEAR, BICUBIC, LANCZOS, FILTERS };

/* NULL where memory does not suffice. Sizes are 1 .. MAX_SIDE, 0 <= first < last <= size_out. */
Table *table_new(int32_t size_in, int32_t size_out, int filter, int32_t first, int32_t last);
void table_free(Table *table);

#define LINES 32                 /* rows that are resized in width together */
#define MAX_HALVINGS 24          /* of MAX_SIDE */
#define NORMALS 256              /* normal numbers in a block */
#define PAD 64                   /* bytes that may be written behind a row of scratch memory */

/* Bytes are unsigned; `out` never overlaps what is read. */
typedef struct {
    const char *name;
    /* out[j] = the weighted sum number i of `table`, of rows[0][j], rows[1][j], ..., for j below n */
    void (*weigh)(const uint8_t *const *rows, const Table *table, int32_t i, uint8_t *out, size_t n);
    /* pixel j of out = the average, rounded up, of pixels 2j and 2j + 1; may write PAD bytes too many */
    void (*average_pairs)(const uint8_t *pixels, uint8_t *out, size_t count);
    /* out[j] = the average, rounded up, of a[j] and b[j] */
    void (*average)(const uint8_t *a, const uint8_t *b, uint8_t *out, size_t n);
    /* LINES rows of n bytes -> n rows of LINES bytes */
    void (*to_columns)(const uint8_t *const *rows, uint8_t *out, size_t n);
    /* n rows of LINES bytes -> LINES rows of n bytes; may write PAD bytes too many */
    void (*to_rows)(const uint8_t *columns, uint8_t *const *rows, size_t n);
    /* RGB pixels of one row -> its part of three planes */
    void (*split)(const uint8_t *pixels, uint8_t *red, uint8_t *green, uint8_t *blue, size_t count);
    /* pixels of one row in reverse order */
    void (*mirror)(const uint8_t *pixels, uint8_t *out, size_t count);
    /* block number `block` of a key's normal numbers, NORMALS of them */
    void (*normals)(uint64_t key, uint32_t block, float *out);
    /* out[j] = (mean[j] + deviation[j] * z[j] - shift) * scale, each step rounded to float32, for j below n */
    void (*place)(const float *mean, const float *deviation, const float *z, float shift, float scale, float *out,
                  size_t n);
} Kernels;

extern const Kernels *kernels; /* those in use: written before anything is computed */

/* The kernels that this processor has, the fastest first, NULL after the last; the last is plain C. */
const Kernels *const *kernels_here(void);

typedef struct {
    const Table *x, *y;
    int down_first;  /* whether the vertical pass comes before the horizontal one */
    int32_t left;    /* the first column that the stage before gives */
    uint8_t *input;  /* rows of the stage before: as many as a sum needs, if the vertical pass is first, else one */
    uint8_t *halves; /* rows after the first pass: one, else as many as a sum needs */
    size_t input_stride, stride;
} Halving;

typedef struct {
    const uint8_t *pixels;
    ptrdiff_t stride;
    int count;
    Halving halvings[MAX_HALVINGS];
    const Table *x, *y;         /* NULL where the size stays */
    int down_first;
    int32_t left, before;       /* the first column of the window, and of the rows that the halvings give */
    int32_t top, height, width; /* of the window */
    uint8_t *out;
} Job;

#define STORED_BLOCK 0xFFFF      /* bytes that a stored block holds, but for the last */
#define STORED_HEADER 5

/* Bytes of the stored blocks that hold the rows of a PNG, each after its filter. */
uint64_t stored_length(uint64_t height, uint64_t width);

/* `stored_length` bytes of blocks -> planes (3, height, width). 0 where they are no such blocks, or a row has a filter:
 * `out` then holds a part; -1 where memory does not suffice. */
int stored_planes(const uint8_t *blocks, uint64_t height, uint64_t width, uint8_t *out);

/* Writes the window; 0 where memory does not suffice. The tables must follow one another, and cover the window. */
int run_job(Job *job);

#endif
