// Noise as a keyed function: `NoiseKey` of src/noise.rs on a GPU, operation by operation.
//
// Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller; logarithm, sine and cosine are the polynomials of Cephes.
#pragma once
#include "block.cuh"

// One draw of a pass. `Draw::words` of launch.rs has the same fields in the same order.
struct Draw {
    unsigned key[2];
    unsigned counter[2];  // upper half of the counter
    unsigned number;      // of the draw among those of its image
    unsigned image;       // its position in x_start
    float signal;         // sqrt(alphas_cumprod[t])
    float spread;         // sqrt(1 - alphas_cumprod[t])
};

struct Words {
    unsigned at[4];
};

struct Normals {
    float at[4];
};

DEVICE unsigned bits_of(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

DEVICE float float_of(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE Words philox4x32_10(Words counter, unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long first = 0xD2511F53ull * counter.at[0];
        const unsigned long long second = 0xCD9E8D57ull * counter.at[2];
        counter = {unsigned(second >> 32) ^ counter.at[1] ^ key0, unsigned(second),
                   unsigned(first >> 32) ^ counter.at[3] ^ key1, unsigned(first)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// The upper 23 bits as a value in (0, 1), exactly.
DEVICE float unit(unsigned word) {
    return (float(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

DEVICE float natural_log(float x) {
    const unsigned bits = bits_of(x);
    const float raw_mantissa = float_of((bits & 0x007fffffu) | 0x3f000000u);
    const bool below = raw_mantissa < 0.707106781186547524f;
    const float exponent = float(int(bits >> 23) - 126 - int(below));
    const float m = below ? raw_mantissa + raw_mantissa - 1.0f : raw_mantissa - 1.0f;
    const float squared = m * m;
    float p = 7.0376836e-2f;
    p = fmaf(p, m, -1.151461e-1f);
    p = fmaf(p, m, 1.1676999e-1f);
    p = fmaf(p, m, -1.2420141e-1f);
    p = fmaf(p, m, 1.4249323e-1f);
    p = fmaf(p, m, -1.6668058e-1f);
    p = fmaf(p, m, 2.0000715e-1f);
    p = fmaf(p, m, -2.4999994e-1f);
    p = fmaf(p, m, 3.333333e-1f);
    float y = fmaf(exponent, -2.1219444e-4f, p * m * squared);
    y = fmaf(-0.5f, squared, y);
    return fmaf(exponent, 0.6933594f, m + y);
}

// Sine and cosine of 2 pi word / 2^32; the quadrant is taken from the word by integer arithmetic, exactly.
DEVICE void sine_cosine(unsigned word, float& sine, float& cosine) {
    const unsigned quadrant = (word + (1u << 29)) >> 30;
    const int offset = int(word - (quadrant << 30));
    // 2 pi / 2^26, for an offset of 24 significant bits.
    const float x = float(offset >> 6) * 9.362676e-8f;
    const float squared = x * x;
    float p = fmaf(fmaf(-1.9515296e-4f, squared, 8.332161e-3f), squared, -1.6666655e-1f);
    const float s = fmaf(p * squared, x, x);
    p = fmaf(fmaf(2.4433157e-5f, squared, -1.3887316e-3f), squared, 4.1666646e-2f);
    const float c = fmaf(p * squared, squared, fmaf(-0.5f, squared, 1.0f));
    const bool odd = quadrant & 1, is_upper_half = quadrant & 2;
    sine = odd ? c : s;
    cosine = odd ? -s : c;
    if (is_upper_half) {
        sine = -sine;
        cosine = -cosine;
    }
}

// Standard normal values 4 quad .. 4 quad + 4 of a draw.
DEVICE Normals normals(const Draw& draw, unsigned quad) {
    const Words words = philox4x32_10({{quad, draw.number, draw.counter[0], draw.counter[1]}}, draw.key[0], draw.key[1]);
    Normals noise;
    for (int pair = 0; pair < 2; ++pair) {
        const float radius = sqrtf(-2.0f * natural_log(unit(words.at[2 * pair])));
        float sine, cosine;
        sine_cosine(words.at[2 * pair + 1], sine, cosine);
        noise.at[2 * pair] = radius * cosine;
        noise.at[2 * pair + 1] = radius * sine;
    }
    return noise;
}
