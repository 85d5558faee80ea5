/* Planes of RGB pixels from the stored blocks of a PNG (RFC 1951, 3.2.4), in one pass over them. */
#include "resample.h"

#include <stdlib.h>
#include <string.h>

/* Whether the header at `at` is that of a block of `left` bytes, or of as many as a block holds: the length, and its
 * complement, each with the low byte first. */
static int starts_block(const uint8_t *at, uint64_t left) {
    uint32_t size = (uint32_t)(left < STORED_BLOCK ? left : STORED_BLOCK), other = size ^ 0xFFFF;
    return at[0] == (left <= STORED_BLOCK) && at[1] == (size & 0xFF) && at[2] == size >> 8 && at[3] == (other & 0xFF) &&
           at[4] == other >> 8;
}

uint64_t stored_length(uint64_t height, uint64_t width) {
    uint64_t size = height * (1 + CHANNELS * width);
    return size + STORED_HEADER * ((size + STORED_BLOCK - 1) / STORED_BLOCK);
}

/* A row that blocks divide, joined; 0 where one of them does not start as it must. */
static int join(const uint8_t *blocks, uint64_t at, uint64_t size, uint64_t left, uint8_t *row) {
    for (uint64_t done = 0; done < size;) {
        uint64_t block = (at + done) / STORED_BLOCK, inside = (at + done) % STORED_BLOCK;
        uint64_t count = STORED_BLOCK - inside < size - done ? STORED_BLOCK - inside : size - done;
        const uint8_t *header = blocks + block * (STORED_BLOCK + STORED_HEADER);
        if (inside == 0 && !starts_block(header, left - done)) return 0;
        memcpy(row + done, header + STORED_HEADER + inside, count);
        done += count;
    }
    return 1;
}

int stored_planes(const uint8_t *blocks, uint64_t height, uint64_t width, uint8_t *out) {
    uint64_t size = 1 + CHANNELS * width, all = height * size, plane = height * width;
    uint8_t *joined = malloc(size);
    int valid = joined != NULL;
    if (!valid) return -1;
    for (uint64_t y = 0; valid && y < height; y++, out += width) {
        uint64_t at = y * size, inside = at % STORED_BLOCK;
        const uint8_t *row = blocks + at / STORED_BLOCK * (STORED_BLOCK + STORED_HEADER) + STORED_HEADER + inside;
        if (inside == 0 || inside + size > STORED_BLOCK) {
            valid = join(blocks, at, size, all - at, joined);
            row = joined;
        }
        valid = valid && row[0] == 0; /* the filter: none */
        if (valid) kernels->split(row + 1, out, out + plane, out + 2 * plane, width);
    }
    free(joined);
    return valid;
}
