// gram (N, K, K) = <e_j, e_k> and cross (N, K) = <e_k, noise>, per element, of pred_noise (N, T, K, P); the noise of each
// draw is made again from its key, by tiles of tokens in shared memory.
//
// Sixteen threads share a pair of rows and add by the lanes of the twin, in f32; the first of them adds up, in f64, what
// is past the last full set of lanes in each token, and the lanes. So the sums depend neither on the grid nor on the tile.
// Grid: (pairs / 8, draws); the first K pairs are those with the noise.
// Twin: `kernels::gram_terms` (class_errors.rs) on `TrunkConfig::patches` of `NoiseKey::fill_normal`.
#include "lanes.cuh"
#include "noise.cuh"

// Values of a tile's noise: P is at most that (`launch.rs` checks it).
constexpr unsigned TILE_VALUES = 4096;

struct Pair {
    unsigned left, right;  // classes; `right` is K for the noise, `left` is K past the last pair
};

DEVICE Pair pair_at(unsigned index, unsigned classes) {
    if (index < classes) {
        return {index, classes};
    }
    unsigned left = 0, column = index - classes;
    while (left < classes && column >= classes - left) {
        column -= classes - left;
        ++left;
    }
    return {left, left + column};
}

KERNEL gram_terms(const float* pred_noise, const Draw* draws, double* gram, double* cross, unsigned classes, unsigned channels,
                  unsigned height, unsigned width, unsigned patch) {
    SHARED float noise[TILE_VALUES];
    SHARED float lanes[THREADS];
    SHARED double rests[BLOCK_SUMS];
    const unsigned columns = width / patch, tokens = columns * (height / patch), lines = channels * patch, values = lines * patch;
    const unsigned in_lanes = values / LANES * LANES, first_pair = blockIdx.x * BLOCK_SUMS;
    const Draw draw = draws[blockIdx.y];
    const float* predictions = pred_noise + size_t(blockIdx.y) * tokens * classes * values;
    EACH_THREAD(thread) {
        lanes[thread] = 0.0f;
        rests[thread / LANES] = 0.0;
    }
    const unsigned tile = TILE_VALUES / values;
    for (unsigned first = 0; first < tokens; first += tile) {
        const unsigned count = tokens - first < tile ? tokens - first : tile;
        EACH_THREAD(thread) {
            // Lines of `patch` neighbours in the image. Blocks without a pair with the noise need none.
            const unsigned needed = first_pair < classes ? count * lines : 0;
            for (unsigned line = thread; line < needed; line += THREADS) {
                const unsigned token = first + line / lines, channel = line / patch % channels;
                const unsigned y = token / columns * patch + line % patch;
                const unsigned start = (channel * height + y) * width + token % columns * patch;
                Normals four = normals(draw, start / 4);
                for (unsigned i = 0; i < patch; ++i) {
                    if (i > 0 && (start + i) % 4 == 0) {
                        four = normals(draw, (start + i) / 4);
                    }
                    noise[line * patch + i] = four.at[(start + i) % 4];
                }
            }
        }
        EACH_THREAD(thread) {
            const Pair pair = pair_at(first_pair + thread / LANES, classes);
            for (unsigned token = 0; pair.left < classes && token < count; ++token) {
                const float* of_token = predictions + size_t(first + token) * classes * values;
                const float* left = of_token + pair.left * values;
                const float* right = pair.right == classes ? noise + token * values : of_token + pair.right * values;
                for (unsigned i = thread % LANES; i < in_lanes; i += LANES) {
                    lanes[thread] = fmaf(left[i], right[i], lanes[thread]);
                }
                if (thread % LANES == 0) {
                    double rest = 0.0;
                    for (unsigned i = in_lanes; i < values; ++i) {
                        rest += double(left[i]) * double(right[i]);
                    }
                    rests[thread / LANES] += rest;
                }
            }
        }
    }
    EACH_THREAD(thread) {
        const Pair pair = pair_at(first_pair + thread / LANES, classes);
        if (pair.left == classes || thread % LANES != 0) {
            continue;
        }
        double sum = 0.0;
        for (unsigned lane = 0; lane < LANES; ++lane) {
            sum += double(lanes[thread + lane]);
        }
        const double term = (rests[thread / LANES] + sum) / double(tokens * values);
        if (pair.right == classes) {
            cross[size_t(blockIdx.y) * classes + pair.left] = term;
        } else {
            double* of_draw = gram + size_t(blockIdx.y) * classes * classes;
            of_draw[pair.left * classes + pair.right] = term;
            of_draw[pair.right * classes + pair.left] = term;
        }
    }
}
