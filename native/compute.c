/* A resize from its tables: rows of the source in, rows of the window out.
 *
 * Rows pass through the halvings one by one, then LINES of them together through the horizontal resize (transposed, so
 * that its sums run along contiguous bytes), and through the vertical one as soon as the rows that an output needs are
 * there, or the other way round where Pillow does. So what lies between is small, and only what the window needs is
 * computed. */
#include "resample.h"

#include <stdlib.h>
#include <string.h>

const Kernels *kernels;

typedef struct {
    uint8_t *lines, *columns, *sums, *ring; /* rows; transposed; resized in width; rows again */
    const uint8_t **column, **held, **taps; /* of `columns` by pixel; of the ring; of one sum */
    size_t lines_stride, ring_stride, capacity;
    int32_t filled; /* the next row that the ring will take */
} Scratch;

static void halve_width(const Table *table, const uint8_t *pixels, int32_t left, uint8_t *out) {
    for (int32_t i = 0; i < table->count;) {
        const uint8_t *from = pixels + (size_t)CHANNELS * (table->start[i] - left);
        if (table->pairs[i]) {
            kernels->average_pairs(from, out + (size_t)CHANNELS * i, table->pairs[i]);
            i += table->pairs[i];
        } else {
            const uint8_t *taps[MOST_HALVED];
            for (int k = 0; k < table->length[i]; k++) taps[k] = from + CHANNELS * k;
            kernels->weigh(taps, table, i, out + (size_t)CHANNELS * i, CHANNELS);
            i++;
        }
    }
}

static void halve_height(const Table *table, int32_t i, const uint8_t *const *taps, uint8_t *out, size_t bytes) {
    if (table->pairs[i]) kernels->average(taps[0], taps[1], out, bytes);
    else kernels->weigh(taps, table, i, out, bytes);
}

/* Row y after the first `count` halvings: within the source, or written to `out`, with PAD bytes behind it. */
static const uint8_t *row_of(const Job *job, int count, int32_t y, uint8_t *out) {
    if (count == 0) return job->pixels + y * job->stride;
    const Halving *halving = &job->halvings[count - 1];
    const Table *across = halving->x, *down = halving->y;
    const uint8_t *taps[MOST_HALVED];
    int32_t i = y - down->first, length = down->length[i];
    for (int32_t k = 0; k < length; k++) {
        size_t number = halving->down_first ? (size_t)k : 0;
        taps[k] = row_of(job, count - 1, down->start[i] + k, halving->input + number * halving->input_stride);
        if (halving->down_first) continue;
        uint8_t *half = halving->halves + (size_t)k * halving->stride;
        halve_width(across, taps[k], halving->left, half);
        taps[k] = half;
    }
    if (!halving->down_first) {
        halve_height(down, i, taps, out, (size_t)CHANNELS * across->count);
        return out;
    }
    size_t skipped = (size_t)CHANNELS * (across->low - halving->left);
    for (int32_t k = 0; k < length; k++) taps[k] += skipped;
    halve_height(down, i, taps, halving->halves, (size_t)CHANNELS * (across->high - across->low));
    halve_width(across, halving->halves, across->low, out);
    return out;
}

/* `count` rows, from column x->low on, resized in width to `targets`, with PAD bytes behind each. Both have LINES. */
static void resize_width(const Job *job, Scratch *scratch, const uint8_t **rows, uint8_t **targets, int32_t count) {
    const Table *x = job->x;
    for (int32_t r = count; r < LINES; r++) {
        rows[r] = rows[count - 1];
        targets[r] = targets[count - 1];
    }
    kernels->to_columns(rows, scratch->columns, (size_t)CHANNELS * (x->high - x->low));
    for (int32_t i = 0; i < x->count; i++)
        kernels->weigh(scratch->column + (x->start[i] - x->low), x, i,
                       scratch->sums + (size_t)i * CHANNELS * LINES, CHANNELS * LINES);
    kernels->to_rows(scratch->sums, targets, (size_t)CHANNELS * x->count);
}

/* Up to LINES rows more into the ring, resized in width where that pass is first. `end`: of the rows needed. */
static void fill_ring(const Job *job, Scratch *scratch, int32_t end) {
    const uint8_t *rows[LINES];
    uint8_t *targets[LINES];
    int32_t count = end - scratch->filled < LINES ? end - scratch->filled : LINES;
    int across = job->x && !job->down_first;
    size_t skipped = (size_t)CHANNELS * ((job->x ? job->x->low : job->left) - job->before);
    for (int32_t r = 0; r < count; r++) {
        size_t slot = (size_t)(scratch->filled + r) % scratch->capacity;
        targets[r] = scratch->ring + slot * scratch->ring_stride;
        uint8_t *line = across ? scratch->lines + (size_t)r * scratch->lines_stride : targets[r];
        rows[r] = row_of(job, job->count, scratch->filled + r, line) + skipped;
        scratch->held[slot] = across ? targets[r] : rows[r];
    }
    scratch->filled += count;
    if (across) resize_width(job, scratch, rows, targets, count);
}

/* Row i of the window after the vertical pass, `bytes` of it; the ring is filled as far as that needs. */
static void resize_height(const Job *job, Scratch *scratch, int32_t i, uint8_t *out, size_t bytes) {
    const Table *y = job->y;
    int32_t from = y ? y->start[i] : job->top + i, length = y ? y->length[i] : 1;
    while (scratch->filled < from + length) fill_ring(job, scratch, y ? y->high : job->top + job->height);
    for (int32_t k = 0; k < length; k++) scratch->taps[k] = scratch->held[(size_t)(from + k) % scratch->capacity];
    if (y) kernels->weigh(scratch->taps, y, i, out, bytes);
    else memcpy(out, scratch->taps[0], bytes);
}

/* The vertical pass first: LINES rows of it at a time are resized in width. */
static void compute_down_first(const Job *job, Scratch *scratch) {
    size_t bytes = (size_t)CHANNELS * job->width, wide = (size_t)CHANNELS * (job->x->high - job->x->low);
    const uint8_t *rows[LINES];
    uint8_t *targets[LINES];
    for (int32_t done = 0; done < job->height; done += LINES) {
        int32_t count = job->height - done < LINES ? job->height - done : LINES;
        for (int32_t r = 0; r < count; r++) {
            uint8_t *line = scratch->lines + (size_t)r * scratch->lines_stride;
            resize_height(job, scratch, done + r, line, wide);
            rows[r] = line;
            targets[r] = line;
        }
        resize_width(job, scratch, rows, targets, count);
        for (int32_t r = 0; r < count; r++) memcpy(job->out + (size_t)(done + r) * bytes, targets[r], bytes);
    }
}

static void compute(const Job *job, Scratch *scratch) {
    size_t bytes = (size_t)CHANNELS * job->width;
    scratch->filled = job->y ? job->y->low : job->top;
    if (job->down_first) {
        compute_down_first(job, scratch);
        return;
    }
    for (int32_t i = 0; i < job->height; i++) resize_height(job, scratch, i, job->out + (size_t)i * bytes, bytes);
}

static size_t padded(size_t bytes) {
    return (bytes + PAD - 1) / PAD * PAD + PAD;
}

/* Where `bytes` more of a block begin, that has `*used` before them; within a block of NULL, nothing. */
static uint8_t *part(uint8_t *block, size_t *used, size_t bytes) {
    uint8_t *here = block ? block + *used : NULL;
    *used += padded(bytes);
    return here;
}

/* Lays the scratch memory out in `block`, which may be NULL; gives its size. */
static size_t lay_out(Job *job, Scratch *scratch, uint8_t *block) {
    size_t used = 0, pixels = job->x ? (size_t)(job->x->high - job->x->low) : 0;
    size_t row = (size_t)CHANNELS * job->width, line = 0, wide;
    for (int h = 0; h < job->count; h++) {
        Halving *halving = &job->halvings[h];
        size_t taps = (size_t)halving->y->longest;
        wide = (size_t)CHANNELS * (halving->x->high - halving->x->low);
        halving->input_stride = padded(line);
        halving->input = part(block, &used, halving->input_stride * (halving->down_first ? taps : 1));
        line = (size_t)CHANNELS * halving->x->count;
        halving->stride = padded(halving->down_first ? wide : line);
        halving->halves = part(block, &used, halving->stride * (halving->down_first ? 1 : taps));
    }
    wide = pixels * CHANNELS > row ? pixels * CHANNELS : row;
    scratch->lines_stride = padded(job->down_first ? wide : line);
    scratch->ring_stride = padded(job->x && !job->down_first ? row : line);
    scratch->capacity = (job->y ? (size_t)job->y->longest : 1) + LINES;
    scratch->lines = part(block, &used, job->x ? scratch->lines_stride * LINES : 0);
    scratch->columns = part(block, &used, pixels * CHANNELS * LINES);
    scratch->sums = part(block, &used, job->x ? (row + PAD) * LINES : 0);
    scratch->ring = part(block, &used, scratch->ring_stride * scratch->capacity);
    scratch->column = (const uint8_t **)part(block, &used, pixels * sizeof(uint8_t *));
    scratch->held = (const uint8_t **)part(block, &used, scratch->capacity * sizeof(uint8_t *));
    scratch->taps = (const uint8_t **)part(block, &used, scratch->capacity * sizeof(uint8_t *));
    for (size_t k = 0; block && k < pixels; k++) scratch->column[k] = scratch->columns + k * CHANNELS * LINES;
    return used;
}

int run_job(Job *job) {
    Scratch scratch;
    uint8_t *block = malloc(lay_out(job, &scratch, NULL));
    if (block == NULL) return 0;
    lay_out(job, &scratch, block);
    compute(job, &scratch);
    free(block);
    return 1;
}
