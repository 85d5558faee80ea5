/* A draw from a posterior of which mean and deviation are known, normalised. */
#include "resample.h"

void draw(const float *restrict mean, const float *restrict deviation, float *restrict z, float shift, float scale,
          size_t n) {
    for (size_t j = 0; j < n; j++) z[j] = (mean[j] + deviation[j] * z[j] - shift) * scale;
}
