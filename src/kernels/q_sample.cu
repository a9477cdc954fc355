// x_t (N, E) = signal x_start (images, E) + spread noise, for all N draws of a pass; the noise is made here and not stored.
//
// A thread takes four neighbours, the values of one counter. Grid: (quads of a draw, draws).
// Twin: `NoiseKey::fill_normal` (src/noise.rs), then `Schedule::q_sample` (src/diffusion/schedule.rs).
#include "noise.cuh"

KERNEL q_sample(const float* x_start, const Draw* draws, float* x_t, unsigned elements) {
    const Draw draw = draws[blockIdx.y];
    const float* source = x_start + size_t(draw.image) * elements;
    float* target = x_t + size_t(blockIdx.y) * elements;
    EACH_THREAD(thread) {
        const unsigned quad = blockIdx.x * THREADS + thread;
        const Normals noise = normals(draw, quad);
        for (unsigned lane = 0; lane < 4; ++lane) {
            const unsigned element = 4 * quad + lane;
            if (element < elements) {
                target[element] = fmaf(draw.spread, noise.at[lane], draw.signal * source[element]);
            }
        }
    }
}
