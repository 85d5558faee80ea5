/* A baseline JPEG to pixels, equal to libjpeg-turbo's: those that cameras and ImageNet's makers write. Whatever is
 * another kind, or not in perfect order, is left to libjpeg-turbo. */
#include "jpeg.h"

#ifdef HAS_JPEG

#include <stdlib.h>
#include <string.h>

enum { SOF0 = 0xC0, DHT = 0xC4, SOI = 0xD8, EOI, SOS, DQT, DRI = 0xDD, APP0 = 0xE0, APP15 = 0xEF, COM = 0xFE };

#define LEAST_SIDE 16   /* libjpeg widens the colours of the narrowest in another way */
#define MOST_SIDE 65500 /* libjpeg's limit */

static size_t word(const uint8_t *at) {
    return (size_t)at[0] << 8 | at[1];
}

static int take_quantisation(Jpeg *jpeg, const uint8_t *at, size_t left) {
    for (; left; at += 1 + BLOCK, left -= 1 + BLOCK) {
        if (left < 1 + BLOCK || at[0] >= TABLES) return 0; /* the upper half: 16 bits */
        for (int k = 0; k < BLOCK; k++) {
            if (at[1 + k] == 0) return 0;
            jpeg->quantisation[at[0]][natural_place(k)] = at[1 + k];
        }
    }
    return 1;
}

static int take_huffman(Jpeg *jpeg, const uint8_t *at, size_t left) {
    while (left) {
        size_t count = 0;
        if (left < 1 + LONGEST_CODE || (at[0] & 15) >= TABLES || at[0] >> 4 > 1) return 0;
        for (int k = 1; k <= LONGEST_CODE; k++) count += at[k];
        if (count > 256 || left < 1 + LONGEST_CODE + count) return 0;
        int is_dc = at[0] >> 4 == 0;
        Huffman *table = (is_dc ? jpeg->dc : jpeg->ac) + (at[0] & 15);
        if (!huffman_build(table, at + 1, at + 1 + LONGEST_CODE, is_dc)) return 0;
        at += 1 + LONGEST_CODE + count;
        left -= 1 + LONGEST_CODE + count;
    }
    return 1;
}

/* Grey, or Y, Cb and Cr, whose colours lie together in an MCU with one, two or four blocks of Y. */
static int take_frame(Jpeg *jpeg, const uint8_t *at, size_t left) {
    if (jpeg->components || left < 6 || at[0] != 8) return 0;
    jpeg->height = (int32_t)word(at + 1);
    jpeg->width = (int32_t)word(at + 3);
    jpeg->components = at[5];
    if ((at[5] != 1 && at[5] != MOST_COMPONENTS) || left != 6 + 3 * (size_t)at[5]) return 0;
    for (int c = 0; c < jpeg->components; c++) {
        const uint8_t *told = at + 6 + 3 * c;
        Component *component = &jpeg->component[c];
        component->identifier = told[0];
        component->across = told[1] >> 4;
        component->down = told[1] & 15;
        component->quantisation = told[2];
        if (told[2] >= TABLES) return 0;
        for (int other = 0; other < c; other++)
            if (jpeg->component[other].identifier == told[0]) return 0;
        if (c && told[1] != 0x11) return 0;
    }
    jpeg->most_across = jpeg->component[0].across;
    jpeg->most_down = jpeg->component[0].down;
    int sampling = jpeg->most_across << 4 | jpeg->most_down;
    return sampling == 0x11 || (jpeg->components > 1 && (sampling == 0x21 || sampling == 0x22));
}

/* One scan of all components, whole: of a baseline JPEG nothing else is expected. */
static int take_scan(Jpeg *jpeg, const uint8_t *at, size_t left) {
    size_t count = (size_t)jpeg->components;
    if (!count || left != 4 + 2 * count || at[0] != count) return 0;
    const uint8_t *tail = at + 1 + 2 * count;
    if (tail[0] != 0 || tail[1] != BLOCK - 1 || tail[2] != 0) return 0;
    for (int c = 0; c < jpeg->components; c++) {
        const uint8_t *told = at + 1 + 2 * c;
        Component *component = &jpeg->component[c];
        component->dc = told[1] >> 4;
        component->ac = told[1] & 15;
        if (told[0] != component->identifier || component->dc >= TABLES || component->ac >= TABLES) return 0;
        if (!jpeg->dc[component->dc].defined || !jpeg->ac[component->ac].defined) return 0;
        if (!jpeg->quantisation[component->quantisation][0]) return 0;
    }
    return 1;
}

static int take_segment(Jpeg *jpeg, int marker, const uint8_t *at, size_t left) {
    if (marker == DQT) return take_quantisation(jpeg, at, left);
    if (marker == DHT) return take_huffman(jpeg, at, left);
    if (marker == SOF0) return take_frame(jpeg, at, left);
    if (marker == SOS) return take_scan(jpeg, at, left);
    if (marker == DRI && left == 2) {
        jpeg->restart_interval = (int32_t)word(at);
        return 1;
    }
    return (marker >= APP0 && marker <= APP15) || marker == COM;
}

/* All before the coded data, which the segment then begins with. */
static int take_headers(Jpeg *jpeg, const uint8_t *data, size_t length) {
    size_t at = 2;
    if (length < 4 || data[0] != 0xFF || data[1] != SOI) return 0;
    for (int marker = 0; marker != SOS;) {
        if (length - at < 4 || data[at] != 0xFF) return 0;
        marker = data[at + 1];
        size_t told = word(data + at + 2);
        if (told < 2 || told > length - at - 2) return 0;
        if (!take_segment(jpeg, marker, data + at + 4, told - 2)) return 0;
        at += 2 + told;
    }
    jpeg->segment.next = data + at;
    jpeg->segment.end = data + length;
    return 1;
}

static size_t up(size_t number, size_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

/* Rows of colours as wide as the picture, and what `widen` needs. */
typedef struct {
    uint8_t *cb, *cr;
    int16_t *sums;
} Scratch;

/* Lays what a row of MCUs needs out in `memory`, which may be NULL; gives its size. */
static size_t lay_out(Jpeg *jpeg, Scratch *scratch, int32_t mcus, uint8_t *memory) {
    size_t used = 0, wide = up((size_t)mcus * SIDE * (size_t)jpeg->most_across, ROW_PAD) + ROW_PAD;
#define PART(bytes) (used += (bytes), memory ? memory + used - (bytes) : NULL)
    for (int c = 0; c < jpeg->components; c++) {
        Component *component = &jpeg->component[c];
        size_t down = (size_t)component->down, blocks = up((size_t)mcus * (size_t)component->across + 1, MOST_LANES);
        component->blocks = blocks;
        component->coefficients = (int16_t *)PART(blocks * down * BLOCK * sizeof(int16_t));
        component->stride = up(SIDE * blocks, ROW_PAD) + ROW_PAD;
        component->rows = PART(component->stride * (1 + (size_t)component->side * down));
    }
    scratch->cb = PART(wide);
    scratch->cr = PART(wide);
    scratch->sums = (int16_t *)PART(2 * wide);
    jpeg->segment.bytes = PART((size_t)(SEGMENT_ROOM + SEGMENT_PAD));
#undef PART
    return used;
}

static int row_to_pixels(Jpeg *jpeg, int32_t mcus) {
    for (int c = 0; c < jpeg->components; c++) {
        Component *component = &jpeg->component[c];
        const uint16_t *steps = jpeg->quantisation[component->quantisation];
        size_t last = (size_t)mcus * (size_t)component->across, side = (size_t)component->side;
        for (size_t y = 0; y < (size_t)component->down; y++) {
            int16_t *coefficients = component->coefficients + y * component->blocks * BLOCK;
            uint8_t *out = component->rows + (1 + side * y) * component->stride;
            coefficients[last * BLOCK] = 0; /* where ends of blocks are written */
            int sound = side == SIDE ? pixels_here()->blocks_to_pixels(coefficients, steps, last, out, component->stride)
                                     : blocks_to_fewer_pixels(coefficients, steps, last, component->side, out,
                                                              component->stride);
            if (!sound) return 0;
        }
    }
    return 1;
}

/* Row number y of component c: of those that the last row of MCUs, number `mcu_row`, gave, or the one before them. */
static const uint8_t *row_of(const Jpeg *jpeg, int c, int32_t y, int32_t mcu_row) {
    const Component *component = &jpeg->component[c];
    int32_t first = mcu_row * component->side * component->down;
    return component->rows + (size_t)(1 + y - first) * component->stride;
}

/* Colours for row y of the picture, which are fewer than its pixels, from rows of which all are there. */
static const uint8_t *widened(const Jpeg *jpeg, const Scratch *scratch, int c, int32_t y, int32_t mcu_row) {
    int32_t here = y / jpeg->most_down, last = (jpeg->height + jpeg->most_down - 1) / jpeg->most_down - 1;
    const uint8_t *row = row_of(jpeg, c, here, mcu_row), *other = NULL;
    uint8_t *wide = c == 1 ? scratch->cb : scratch->cr;
    if (jpeg->most_down == 2) {
        int32_t beside = y & 1 ? here + 1 : here - 1;
        other = row_of(jpeg, c, beside < 0 ? 0 : beside > last ? last : beside, mcu_row);
    }
    pixels_here()->widen(row, other, ((size_t)jpeg->width + 1) / 2, scratch->sums, wide);
    return wide;
}

/* Row y of the picture. At reduced scale there are as many colours as pixels. */
static void write_row(const Jpeg *jpeg, const Scratch *scratch, int32_t y, int32_t mcu_row, uint8_t *out) {
    size_t width = (size_t)(jpeg->width >> jpeg->halvings);
    const uint8_t *rows[MOST_COMPONENTS];
    int fewer = jpeg->most_across == 2 && !jpeg->halvings;
    for (int c = 0; c < jpeg->components; c++)
        rows[c] = c && fewer ? widened(jpeg, scratch, c, y, mcu_row) : row_of(jpeg, c, y, mcu_row);
    if (jpeg->components == 1) memcpy(out, rows[0], width);
    else pixels_here()->to_rgb(rows[0], rows[1], rows[2], width, out);
}

static int decode_rows(Jpeg *jpeg, const Scratch *scratch, int32_t mcus, uint8_t *out) {
    int32_t tall = SIDE * jpeg->most_down, rows = (jpeg->height + tall - 1) / tall, done = 0;
    int32_t height = jpeg->height >> jpeg->halvings;
    size_t bytes = (size_t)(jpeg->width >> jpeg->halvings) * (size_t)jpeg->components;
    segment_begin(&jpeg->segment);
    for (int32_t row = 0; row < rows; row++) {
        if (!scan_row(jpeg, row * mcus, mcus)) return JPEG_OTHER;
        for (int c = 0; c < jpeg->components; c++) {
            Component *component = &jpeg->component[c];
            size_t last = component->stride * (size_t)(component->side * component->down);
            memcpy(component->rows, component->rows + last, component->stride);
        }
        if (!row_to_pixels(jpeg, mcus)) return JPEG_OTHER;
        int32_t end = (row + 1) * tall >> jpeg->halvings;
        if (jpeg->most_down == 2 && !jpeg->halvings) end--; /* the last row of colours needs the one behind it */
        if (row == rows - 1) end = height;
        for (; done < end; done++) write_row(jpeg, scratch, done, row, out + (size_t)done * bytes);
    }
    return segment_ends(&jpeg->segment, EOI) ? JPEG_DECODED : JPEG_OTHER;
}

/* As libjpeg does it, colours of which there are fewer in both directions keep twice the side: none are widened then. */
static int reduce(Jpeg *jpeg) {
    int least = (1 << jpeg->halvings) - 1;
    if (jpeg->halvings && ((jpeg->height | jpeg->width) & least || jpeg->most_across != jpeg->most_down)) return 0;
    for (int c = 0; c < jpeg->components; c++) {
        int twice = jpeg->halvings && c && jpeg->most_down == 2;
        jpeg->component[c].side = (SIDE >> jpeg->halvings) << twice;
    }
    return 1;
}

/* Whether the headers tell of a JPEG as it was said to be, of a kind that is decoded here. */
static int fits(Jpeg *jpeg, int32_t height, int32_t width, int channels) {
    return jpeg->height == height && jpeg->width == width && jpeg->components == channels && height >= LEAST_SIDE &&
           width >= LEAST_SIDE && height <= MOST_SIDE && width <= MOST_SIDE && reduce(jpeg);
}

int jpeg_decode(const uint8_t *data, size_t length, uint8_t *out, int32_t height, int32_t width, int channels,
                int halvings) {
    Jpeg *jpeg = calloc(1, sizeof *jpeg);
    Scratch scratch;
    uint8_t *memory = NULL;
    int found = JPEG_NO_MEMORY;
    if (jpeg == NULL) return found;
    jpeg->halvings = halvings;
    if (!take_headers(jpeg, data, length) || !fits(jpeg, height, width, channels)) {
        found = JPEG_OTHER;
    } else {
        int32_t wide = SIDE * jpeg->most_across, mcus = (width + wide - 1) / wide;
        memory = calloc(1, lay_out(jpeg, &scratch, mcus, NULL));
        if (memory) {
            lay_out(jpeg, &scratch, mcus, memory);
            found = decode_rows(jpeg, &scratch, mcus, out);
        }
    }
    free(memory);
    free(jpeg);
    return found;
}

#endif
