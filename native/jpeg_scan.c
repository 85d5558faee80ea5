/* Coefficients from the coded data of a baseline JPEG (ITU T.81, F.2.2).
 *
 * Bits are taken from 64 at a time, which are filled up without a branch; a symbol and its number are one look into a
 * table. Whatever a sound file does not have ends it: libjpeg-turbo then decodes, and has the last word. */
#include "jpeg.h"

#ifdef HAS_JPEG

#include <string.h>

#define END_OF_BLOCK 0x00
#define SIXTEEN_ZEROS 0xF0
#define BEHIND 128       /* an end of block moves on so far, which no number does */
#define MOST_DC_BITS 11
#define MOST_AC_BITS 10
#define BMI2 __attribute__((target("bmi2")))
#define INLINE static inline __attribute__((always_inline)) BMI2
#define LIKELY(x) __builtin_expect(!!(x), 1)

/* Natural places by place in the file; all behind the last: one behind the block, whose content nobody reads. */
static const uint8_t PLACES[2 * BEHIND] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
    7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46,
    53, 60, 61, 54, 47, 55, 62, 63, [BLOCK ... 2 * BEHIND - 1] = BLOCK,
};

int natural_place(int k) {
    return PLACES[k];
}

static uint64_t entry(int symbol, int length, int is_dc) {
    uint64_t bits = symbol & 15, moves = is_dc ? 0 : symbol == END_OF_BLOCK ? BEHIND : (symbol >> 4) + 1;
    uint64_t all = (uint64_t)length + bits;
    return all | (uint64_t)length << 8 | (63 - bits) << 16 | moves << 24 | all << 32 | (uint64_t)63 << 48;
}

/* Both in one, where the code of the second lies within the bits that were looked up. */
static uint64_t joined(uint64_t first, uint64_t second) {
    uint64_t alone = first >> 32 & 0xFF, length = second >> 8 & 0xFF, all = second >> 32 & 0xFF;
    if (!second || alone + length > LOOKUP_BITS) return first;
    return (first & 0xFFFFFFFF00) | (alone + all) | (alone + length) << 40 | (second >> 16 & 0xFFFF) << 48;
}

static void join_all(uint64_t fast[1 << LOOKUP_BITS]) {
    for (int i = 0; i < 1 << LOOKUP_BITS; i++) {
        int alone = fast[i] >> 32 & 0xFF, ends = (fast[i] >> 24 & 0xFF) >= BEHIND;
        if (alone < LOOKUP_BITS && !ends) fast[i] = joined(fast[i], fast[i << alone & ((1 << LOOKUP_BITS) - 1)]);
    }
}

static int is_known(int symbol, int is_dc) {
    int bits = symbol & 15;
    if (is_dc) return symbol <= MOST_DC_BITS;
    return bits ? bits <= MOST_AC_BITS : symbol == END_OF_BLOCK || symbol == SIXTEEN_ZEROS;
}

int huffman_build(Huffman *table, const uint8_t counts[LONGEST_CODE], const uint8_t *symbols, int is_dc) {
    int32_t code = 0, number = 0;
    memset(table->fast, 0, sizeof table->fast);
    for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
        table->offset[length] = number - code;
        if (code + counts[length - 1] >= 1 << length) return 0; /* a code of ones alone may not be, nor any beyond it */
        for (int k = 0; k < counts[length - 1]; k++, code++, number++) {
            if (number > 255 || !is_known(symbols[number], is_dc)) return 0;
            table->symbols[number] = symbols[number];
            if (length > LOOKUP_BITS) continue;
            uint64_t found = entry(symbols[number], length, is_dc);
            int same = 1 << (LOOKUP_BITS - length);
            for (int j = 0; j < same; j++) table->fast[(code << (LOOKUP_BITS - length)) + j] = found;
        }
        table->beyond[length] = code << (LONGEST_CODE - length);
    }
    if (!is_dc) join_all(table->fast);
    return table->defined = 1;
}

/* The symbol of a code of more than LOOKUP_BITS, | the length of the code << 8; -1 where there is none. */
static __attribute__((noinline)) int symbol_of(const Huffman *table, uint64_t bits) {
    int32_t top = (int32_t)(bits >> (64 - LONGEST_CODE));
    for (int length = LOOKUP_BITS + 1; length <= LONGEST_CODE; length++)
        if (top < table->beyond[length])
            return table->symbols[(top >> (LONGEST_CODE - length)) + table->offset[length]] | length << 8;
    return -1;
}

/* Fills up, as far as there is room and no marker. What is left is moved to the front. */
static void top_up(Segment *segment) {
    size_t left = (size_t)(segment->filled - segment->at);
    memmove(segment->bytes, segment->at, left);
    segment->at = segment->bytes;
    segment->filled = segment->bytes + left;
    size_t room = SEGMENT_ROOM - left;
    while (room && !segment->marker) {
        size_t count = (size_t)(segment->end - segment->next);
        if (count > room) count = room;
        const uint8_t *found = memchr(segment->next, 0xFF, count);
        size_t plain = found ? (size_t)(found - segment->next) : count;
        memcpy(segment->filled, segment->next, plain);
        segment->filled += plain;
        segment->next += plain;
        room -= plain;
        if (segment->end - segment->next < 2) {
            segment->marker = -1;
        } else if (found) {
            segment->marker = segment->next[1];
            segment->next += 2;
            if (segment->marker) break;
            *segment->filled++ = 0xFF;
            room--;
        }
    }
    memset(segment->filled, 0, SEGMENT_PAD);
}

void segment_begin(Segment *segment) {
    segment->at = segment->filled = segment->bytes;
    segment->bits = 0;
    segment->count = 0;
    segment->marker = 0;
    top_up(segment);
}

int segment_ends(Segment *segment, int marker) {
    if (!segment->marker) top_up(segment);
    ptrdiff_t left = SIDE * (segment->filled - segment->at) + (ptrdiff_t)(segment->count & 63);
    return segment->marker == marker && left >= 0 && left < SIDE;
}

INLINE uint64_t eight_bytes(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

/* The number that the bits begin with (T.81, F.12): of a first bit of 0 it is negative. `size` may be 0. */
INLINE int32_t number_of(uint64_t bits, int size) {
    if (size == 0) return 0;
    int32_t number = (int32_t)(bits >> (64 - size));
    return number >> (size - 1) ? number : number - (1 << size) + 1;
}

typedef struct {
    uint64_t bits;
    uint32_t count; /* only its low 6 bits mean something: higher ones are left to overflow */
    const uint8_t *at;
} Bits;

#define FILL(b) \
    do { \
        (b).bits |= eight_bytes((b).at) >> ((b).count & 63); \
        (b).at += ~(b).count >> 3 & 7; \
        (b).count |= 56; \
    } while (0)

INLINE void drop(Bits *b, uint64_t count) {
    b->bits <<= count & 63;
    b->count -= (uint32_t)count;
}

/* The number of an entry: what the bits hold from `begins` on, less `shift` of 63; 0 of no bits. */
INLINE int16_t number_at(uint64_t bits, uint64_t begins, uint64_t shift) {
    uint64_t number = bits << (begins & 63);
    int64_t flip = ~((int64_t)number >> 63);
    int32_t size = (int32_t)((number ^ (uint64_t)flip) >> 1 >> (shift & 63));
    return (int16_t)((size + (int32_t)flip) ^ (int32_t)flip);
}

/* The long way, of one symbol and its number. */
static __attribute__((noinline)) BMI2 uint32_t take_one(Bits *b, const Huffman *table, int16_t *block, uint32_t k) {
    int symbol = symbol_of(table, b->bits);
    if (symbol < 0) return BLOCK;
    drop(b, (uint64_t)symbol >> 8);
    symbol &= 0xFF;
    if (symbol == END_OF_BLOCK) return BEHIND;
    k += (uint32_t)(symbol >> 4) + 1;
    if (k >= BLOCK) return BLOCK;
    block[PLACES[k]] = (int16_t)number_of(b->bits, symbol & 15);
    drop(b, (uint64_t)symbol & 15);
    return k;
}

/* What `take` looked up last, in which bits, and where its first number went; 0 after the long way. */
typedef struct {
    uint64_t found, bits;
    uint32_t count, first;
} Taken;

/* One or two numbers of a block. Gives the place that it has moved on to: BEHIND or more at the end, less but BLOCK or
 * more where something is wrong. */
INLINE uint32_t take(Bits *b, const Huffman *table, int16_t *block, uint32_t k, Taken *taken) {
    uint64_t found = table->fast[b->bits >> (64 - LOOKUP_BITS)];
    if (!LIKELY(found)) {
        Bits other = *b; /* so that the usual ones stay in registers */
        taken->first = 0;
        k = take_one(&other, table, block, k);
        *b = other;
        return k;
    }
    uint32_t first = k + (uint8_t)(found >> 24), second = first + (uint32_t)(found >> 56);
    *taken = (Taken){found, b->bits, b->count, first};
    block[PLACES[second]] = number_at(b->bits, found >> 40, found >> 48);
    block[PLACES[first]] = number_at(b->bits, found >> 8, found >> 16); /* last, for it lies there too if it is alone */
    drop(b, found);
    return second;
}

INLINE int take_block(Bits *b, const Huffman *dc, const Huffman *ac, int32_t *predicted, int16_t *block) {
    FILL(*b);
    uint64_t found = dc->fast[b->bits >> (64 - LOOKUP_BITS)];
    if (LIKELY(found)) {
        *predicted += number_at(b->bits, found >> 8, found >> 16);
        drop(b, found);
    } else {
        int symbol = symbol_of(dc, b->bits);
        if (symbol < 0) return 0;
        drop(b, (uint64_t)symbol >> 8);
        *predicted += number_of(b->bits, symbol & 15);
        drop(b, (uint64_t)symbol & 15);
    }
    block[0] = (int16_t)*predicted;
    uint32_t k = 0;
    Taken taken = {0};
    do {
        FILL(*b);
        k = take(b, ac, block, k, &taken);
        if (k >= BLOCK - 1) break;
        k = take(b, ac, block, k, &taken);
    } while (k < BLOCK - 1);
    /* If the first was the last, what lies behind it is another block's. Without a branch: nothing foretells it. */
    uint64_t undo = -(uint64_t)(taken.first >= BLOCK - 1), alone = taken.found >> 32;
    b->bits = (b->bits & ~undo) | (taken.bits << (alone & 63) & undo);
    b->count = (b->count & (uint32_t)~undo) | ((taken.count - (uint32_t)alone) & (uint32_t)undo);
    k = (k & (uint32_t)~undo) | (taken.first & (uint32_t)undo);
    return (k == BLOCK - 1 || k >= BEHIND) && *predicted == (int16_t)*predicted;
}

static int restart(Jpeg *jpeg, int32_t mcu) {
    int number = (mcu / jpeg->restart_interval - 1) & 7;
    if (!segment_ends(&jpeg->segment, 0xD0 + number)) return 0;
    segment_begin(&jpeg->segment);
    for (int c = 0; c < jpeg->components; c++) jpeg->component[c].predicted = 0;
    return 1;
}

/* One MCU, number `column` of its row. */
INLINE int take_mcu(Jpeg *jpeg, Bits *b, int32_t column) {
    for (int c = 0; c < jpeg->components; c++) {
        Component *component = &jpeg->component[c];
        const Huffman *dc = &jpeg->dc[component->dc], *ac = &jpeg->ac[component->ac];
        for (int y = 0; y < component->down; y++) {
            size_t first = (size_t)y * component->blocks + (size_t)column * (size_t)component->across;
            for (int x = 0; x < component->across; x++)
                if (!take_block(b, dc, ac, &component->predicted, component->coefficients + (first + (size_t)x) * BLOCK))
                    return 0;
        }
    }
    return 1;
}

BMI2 int scan_row(Jpeg *jpeg, int32_t first, int32_t count) {
    Segment *segment = &jpeg->segment;
    Bits b = {segment->bits, segment->count, segment->at};
    for (int c = 0; c < jpeg->components; c++) {
        Component *component = &jpeg->component[c];
        memset(component->coefficients, 0, component->blocks * (size_t)component->down * BLOCK * sizeof(int16_t));
    }
    for (int32_t column = 0; column < count; column++) {
        int32_t mcu = first + column;
        int restarts = jpeg->restart_interval && mcu && mcu % jpeg->restart_interval == 0;
        if (restarts || segment->filled - b.at < SEGMENT_PAD) {
            segment->bits = b.bits;
            segment->count = b.count;
            if (b.at - segment->filled > SIDE) return 0;
            segment->at = (uint8_t *)b.at;
            if (restarts && !restart(jpeg, mcu)) return 0;
            if (!restarts && !segment->marker) top_up(segment);
            b = (Bits){segment->bits, segment->count, segment->at};
        }
        if (!take_mcu(jpeg, &b, column)) return 0;
    }
    segment->bits = b.bits;
    segment->count = b.count;
    segment->at = (uint8_t *)b.at;
    return b.at - segment->filled <= SIDE; /* zeros that stand ready to be taken */
}

#endif
