// y (N T, D) = norm(x) (1 + scale) + shift, mean and variance over D; shift and scale have a row for each image, `stride`
// values apart, or one row for all (stride 0).
//
// Sixteen threads share a token and add by the lanes of the twin, in two passes; the first of them adds up the lanes, by halves.
// Grid: (tokens of all images / 8, 1).
// Twin: `kernels::modulated_norm` (normalize.rs), `sum` and `fold_lanes` of slices.rs.
#include "lanes.cuh"

constexpr float NORM_EPS = 1e-6f;

// What one lane adds up; values past the last full set of lanes are left to `sum_of_lanes`.
template <class Term>
DEVICE float sum_of_lane(const float* x, unsigned count, unsigned lane, Term term) {
    float sum = 0.0f;
    for (unsigned i = lane; i < count / LANES * LANES; i += LANES) {
        sum += term(x[i]);
    }
    return sum;
}

template <class Term>
DEVICE float sum_of_lanes(const float* lanes, const float* x, unsigned count, Term term) {
    float sums[LANES], rest = 0.0f;
    for (unsigned lane = 0; lane < LANES; ++lane) {
        sums[lane] = lanes[lane];
    }
    for (unsigned half = LANES / 2; half > 0; half /= 2) {
        for (unsigned lane = 0; lane < half; ++lane) {
            sums[lane] += sums[lane + half];
        }
    }
    for (unsigned i = count / LANES * LANES; i < count; ++i) {
        rest += term(x[i]);
    }
    return sums[0] + rest;
}

KERNEL modulated_norm(const float* x, const float* shift, const float* scale, float* y, unsigned rows, unsigned tokens,
                      unsigned hidden, unsigned stride) {
    SHARED float lanes[THREADS];
    SHARED float means[BLOCK_SUMS];
    SHARED float reciprocals[BLOCK_SUMS];
    const auto value = [](float value) { return value; };
    EACH_THREAD(thread) {
        const unsigned row = blockIdx.x * BLOCK_SUMS + thread / LANES;
        if (row < rows) {
            lanes[thread] = sum_of_lane(x + size_t(row) * hidden, hidden, thread % LANES, value);
        }
    }
    EACH_THREAD(thread) {
        const unsigned row = blockIdx.x * BLOCK_SUMS + thread / LANES;
        if (row < rows && thread % LANES == 0) {
            means[thread / LANES] = sum_of_lanes(lanes + thread, x + size_t(row) * hidden, hidden, value) / float(hidden);
        }
    }
    EACH_THREAD(thread) {
        const unsigned row = blockIdx.x * BLOCK_SUMS + thread / LANES;
        const float mean = means[thread / LANES];
        const auto square = [mean](float value) { return (value - mean) * (value - mean); };
        if (row < rows) {
            lanes[thread] = sum_of_lane(x + size_t(row) * hidden, hidden, thread % LANES, square);
        }
    }
    EACH_THREAD(thread) {
        const unsigned row = blockIdx.x * BLOCK_SUMS + thread / LANES;
        const float mean = means[thread / LANES];
        const auto square = [mean](float value) { return (value - mean) * (value - mean); };
        if (row < rows && thread % LANES == 0) {
            const float variance = sum_of_lanes(lanes + thread, x + size_t(row) * hidden, hidden, square) / float(hidden);
            reciprocals[thread / LANES] = 1.0f / sqrtf(variance + NORM_EPS);
        }
    }
    EACH_THREAD(thread) {
        const unsigned row = blockIdx.x * BLOCK_SUMS + thread / LANES;
        if (row < rows) {
            const float mean = means[thread / LANES], reciprocal = reciprocals[thread / LANES];
            const size_t modulation = size_t(row / tokens) * stride;
            for (unsigned i = thread % LANES; i < hidden; i += LANES) {
                const size_t at = size_t(row) * hidden + i;
                y[at] = fmaf((x[at] - mean) * reciprocal, 1.0f + scale[modulation + i], shift[modulation + i]);
            }
        }
    }
}
