/* Tables of weights, by Pillow's arithmetic: in double, normalised, then rounded to 22 bits, halves away from zero.
 *
 * Output i looks at the inputs around its centre (i + 1/2) * scale, by a filter that is stretched by the scale where
 * the picture shrinks. This file is to be compiled without contraction of a * b + c into one rounding. */
#include "resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

static double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys' cubic convolution with a = -1/2. */
static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= PI;
    return sin(x) / x;
}

static double lanczos(double x) {
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

static const struct {
    double (*at)(double);
    double support;
} KINDS[FILTERS] = {{box, 0.5}, {bilinear, 1.0}, {bicubic, 2.0}, {lanczos, 3.0}};

static int32_t fixed(double weight) {
    double scaled = weight * (1 << WEIGHT_BITS);
    return (int32_t)(weight < 0.0 ? scaled - 0.5 : scaled + 0.5);
}

/* The normalised weights of one output in fixed point, zeros at the ends left out; gives their number. */
static int32_t weights_of(const Table *table, int filter, int32_t number, double *exact, int32_t *fixed_out,
                          int32_t *start) {
    double scale = (double)table->size_in / table->size_out, stretch = scale < 1.0 ? 1.0 : scale;
    double centre = (number + 0.5) * scale, support = KINDS[filter].support * stretch, inverse = 1.0 / stretch;
    int32_t from = (int32_t)(centre - support + 0.5), to = (int32_t)(centre + support + 0.5), length, k;
    double sum = 0.0;
    if (from < 0) from = 0;
    if (to > table->size_in) to = table->size_in;
    length = to - from;
    for (k = 0; k < length; k++) sum += exact[k] = KINDS[filter].at((k + from - centre + 0.5) * inverse);
    for (k = 0; k < length; k++) fixed_out[k] = fixed(sum != 0.0 ? exact[k] / sum : exact[k]);
    while (length > 1 && fixed_out[length - 1] == 0) length--;
    for (k = 0; length > 1 && fixed_out[k] == 0; k++, length--) from++;
    memmove(fixed_out, fixed_out + k, (size_t)length * sizeof *fixed_out);
    *start = from;
    return length;
}

static void fill_pairs(Table *table) {
    for (int32_t i = table->count - 1; i >= 0; i--) {
        const int32_t *weights = table->weights + (size_t)i * table->taps;
        int follows = i + 1 < table->count && table->start[i + 1] == table->start[i] + 2;
        table->pairs[i] = 0;
        if (table->length[i] == 2 && weights[0] == HALF && weights[1] == HALF)
            table->pairs[i] = 1 + (follows ? table->pairs[i + 1] : 0);
    }
}

static int fill(Table *table, int filter, int32_t most) {
    double *exact = malloc((size_t)most * sizeof *exact);
    int32_t *weights = malloc((size_t)most * sizeof *weights);
    int held = exact != NULL && weights != NULL;
    table->low = table->size_in;
    for (int32_t i = 0; held && i < table->count; i++) {
        int32_t length = weights_of(table, filter, table->first + i, exact, weights, &table->start[i]);
        memcpy(table->weights + (size_t)i * table->taps, weights, (size_t)length * sizeof *weights);
        table->length[i] = length;
        if (length > table->longest) table->longest = length;
        if (table->start[i] < table->low) table->low = table->start[i];
        if (table->start[i] + length > table->high) table->high = table->start[i] + length;
    }
    free(exact);
    free(weights);
    return held;
}

Table *table_new(int32_t size_in, int32_t size_out, int filter, int32_t first, int32_t last) {
    double scale = (double)size_in / size_out;
    double reach = ceil(KINDS[filter].support * (scale < 1.0 ? 1.0 : scale)) * 2 + 1;
    int32_t most = reach < size_in ? (int32_t)reach : size_in;
    Table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->size_in = size_in;
    table->size_out = size_out;
    table->first = first;
    table->count = last - first;
    table->taps = most;
    size_t count = (size_t)table->count, total = count * (size_t)table->taps;
    table->start = calloc(count, sizeof(int32_t));
    table->length = calloc(count, sizeof(int32_t));
    table->pairs = calloc(count, sizeof(int32_t));
    table->weights = calloc(total, sizeof(int32_t));
    if (!table->start || !table->length || !table->pairs || !table->weights ||
        !fill(table, filter, most)) {
        table_free(table);
        return NULL;
    }
    fill_pairs(table);
    return table;
}

void table_free(Table *table) {
    if (table == NULL) return;
    free(table->start);
    free(table->length);
    free(table->pairs);
    free(table->weights);
    free(table);
}
