/* What the parts of the JPEG decoder share. Built for x86-64 with GCC or Clang: nowhere else was it measured. */
#ifndef LATENTMILL_JPEG_H
#define LATENTMILL_JPEG_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_JPEG

#define BLOCK 64              /* coefficients, or the pixels of 8 x 8 */
#define SIDE 8
#define MOST_COMPONENTS 3
#define MOST_HALVINGS 3
#define LOOKUP_BITS 10        /* codes of more bits are found one length after the other */
#define LONGEST_CODE 16
#define TABLES 4              /* of each kind: ITU T.81, B.2.4 */
#define ROW_PAD 64            /* bytes that may be read or written behind a row */

/* fast: what the next LOOKUP_BITS bits begin with, a symbol and its number, and the symbol behind them where its code
 * lies within those bits too; in bytes from the lowest on: the bits that all this takes; where the first number begins,
 * 63 less its bits, how far it moves on among the coefficients; the bits that the first takes alone; and of the second
 * where it begins, 63 less its bits, how far it moves on, 0 without one. 0 in all: ask `symbol_of`. */
typedef struct {
    int defined;
    uint64_t fast[1 << LOOKUP_BITS];
    int32_t beyond[LONGEST_CODE + 1]; /* codes of a length are below it, as 16 bits */
    int32_t offset[LONGEST_CODE + 1]; /* from a code of a length to its place in `symbols` */
    uint8_t symbols[256];
} Huffman;

typedef struct {
    int identifier, across, down;   /* blocks of it in an MCU */
    int side;                       /* of a block's pixels: SIDE, or less at reduced scale */
    int quantisation, dc, ac;       /* numbers of its tables */
    int32_t predicted;              /* the last block's DC */
    size_t blocks;                  /* in a row of them, with at least one that takes what lies behind the last */
    int16_t *coefficients;          /* of a row of MCUs: `down` rows of blocks, each in natural order */
    uint8_t *rows;                  /* its pixels: the last row of the MCUs before, then side * down rows */
    size_t stride;
} Component;

#define SEGMENT_ROOM (1 << 15)  /* bytes of coded data that are at hand */
#define SEGMENT_PAD 2048        /* more than an MCU takes: six blocks of 64 numbers, each of up to 27 bits */

/* Coded data of a scan without its stuffed bytes. */
typedef struct {
    const uint8_t *next, *end;      /* what was not copied yet */
    uint8_t *bytes, *at, *filled;   /* copied; not taken yet; behind the last */
    uint64_t bits;                  /* the next ones, from the highest on */
    uint32_t count;                 /* of those that are counted as taken from `bytes`, modulo 64 */
    int marker;                     /* that ended it, 0 until then, -1 where it cannot be told */
} Segment;

typedef struct {
    int32_t height, width;
    int components, most_across, most_down; /* of blocks of a component in an MCU */
    int halvings;                           /* of both sides, 0 to MOST_HALVINGS */
    int32_t restart_interval;               /* in MCUs; 0: none */
    uint16_t quantisation[TABLES][BLOCK];   /* in natural order; 0 first: not defined */
    Huffman dc[TABLES], ac[TABLES];
    Component component[MOST_COMPONENTS];
    Segment segment;
} Jpeg;

/* Where in a block, row by row, the coefficient number k of a file lies. */
int natural_place(int k);

/* Fills in a table from its counts by length (from 1 on) and its symbols. 0 where no such table is possible, or it has
 * symbols that 8-bit baseline JPEGs do not have. */
int huffman_build(Huffman *table, const uint8_t counts[LONGEST_CODE], const uint8_t *symbols, int is_dc);

/* Coefficients of the next row of MCUs, `first` of the scan's. 0 where anything is out of order. */
int scan_row(Jpeg *jpeg, int32_t first, int32_t count);

/* Whether the coded data ends here, as it must, in this marker. */
int segment_ends(Segment *segment, int marker);
void segment_begin(Segment *segment);

#define MOST_LANES 4 /* blocks that are transformed together */

/* From coefficients to RGB, in registers of 32 or 64 bytes. */
typedef struct {
    const char *name;
    /* Pixels of `count` blocks, up to a multiple of MOST_LANES, side by side, as libjpeg's accurate inverse DCT gives them.
     * 0 where a number is beyond what can lie in a JPEG of 8 bits, so that implementations differ. */
    int (*blocks_to_pixels)(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t count, uint8_t *out,
                            size_t stride);
    /* A row of colours, `count` of them, to twice as many, of which each is three parts of the nearest and one of the
     * next; `other`: the next row in height, which takes a quarter likewise, or NULL where the height stays. `sums`: room
     * for count + ROW_PAD numbers. May write ROW_PAD bytes too many. */
    void (*widen)(const uint8_t *row, const uint8_t *other, size_t count, int16_t *sums, uint8_t *out);
    /* Y, Cb and Cr of a row to its RGB pixels; writes no byte behind them, reads up to ROW_PAD. */
    void (*to_rgb)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, size_t count, uint8_t *out);
} Pixels;

/* Those that are used: of 64 bytes where the processor has AVX-512 and `wide` was asked for last. */
const Pixels *pixels_here(void);
void pixels_use(int wide);

/* As blocks_to_pixels, of `count` blocks at reduced scale, up to an even number of them, to `side` x `side` pixels each:
 * 4, 2 or 1, from fewer coefficients. */
int blocks_to_fewer_pixels(const int16_t *coefficients, const uint16_t quantisation[BLOCK], size_t count, int side,
                           uint8_t *out, size_t stride);

enum { JPEG_NO_MEMORY = -1, JPEG_OTHER, JPEG_DECODED };

/* The pixels of a whole JPEG of a size, (height, width, channels) of them: 3 for Y, Cb and Cr as RGB, 1 for grey; with
 * `halvings`, of each side divided by two so often, without a rest. JPEG_OTHER where it is of another size or kind, or
 * anything in it is unusual: `out` may then hold a part. */
int jpeg_decode(const uint8_t *data, size_t length, uint8_t *out, int32_t height, int32_t width, int channels,
                int halvings);

#endif
#endif
