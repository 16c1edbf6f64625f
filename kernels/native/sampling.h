// Choosing tokens from rows of logits: the call, and the passes over a row's numbers.
//
// The tokens are those of kernels/sampling/reference.py. Logarithms and exponentials here may
// differ from torch's in the last bits, so a row counts as chosen only where no such difference
// could change its token; the others, one in tens of thousands, are left to torch.
#pragma once

#include "library.h"

namespace quire {

constexpr int64_t MAX_VOCABULARY = 1 << 20;
constexpr float NOISE_RANGE = 20.0f;  // as in kernels/sampling/noise.py
// Two scores that are computed twice, here and by torch, differ from themselves by less than half
// of it: 2 units in the last place of 17, the greatest noise, and one of rounding the difference.
constexpr float SCORE_MARGIN = 4e-5f;
// As a share: masses of tokens here and in torch differ by a few units in the last place.
constexpr double MASS_MARGIN = 4e-6;

constexpr int64_t BLOCK = 64;  // distances, of which the least is kept

inline int64_t blocks_of(int64_t count) { return (count + BLOCK - 1) / BLOCK; }

// Numbers that `draw` works with for a vocabulary.
inline int64_t scratch_size(int64_t vocabulary) {
    return 5 * vocabulary + 2 * blocks_of(vocabulary);
}

// Per row: temperature 0 is greedy, top_k below 1 and top_p 1 are off, and `limits` is the
// greatest distance that min_p keeps.
struct SamplingCall {
    const float* logits;  // [rows, vocabulary]
    const float* temperatures;
    const int32_t* top_ks;
    const float* top_ps;
    const float* limits;
    const int64_t* seeds;
    const int32_t* choices;
    const int32_t* positions;
    int32_t* tokens;  // [rows]; -1 where the last bits of a logarithm or a mass would decide
    int64_t rows, vocabulary, threads, instruction_set;
};

// What `apply_penalty_rows` does to one row.
struct PenaltyCall {
    float* logits;             // [vocabulary]
    const int32_t* prompt;     // [prompt_length]
    const int32_t* generated;  // [generated_length]
    int64_t vocabulary, prompt_length, generated_length;
    double frequency, presence, repetition;
};

struct Keys {
    uint32_t first, second;
};

// The greatest sum of noise minus distance, and the next one, of the tokens up to a distance.
struct Race {
    float best, second, distance;
    int32_t token;
};

struct SamplingPasses {
    // The greatest, and the first place that has it; NaN is never greatest.
    int32_t (*first_greatest)(const float* values, int64_t count);
    // to[i] = (greatest - values[i]) / temperature, and the least of each BLOCK of them.
    void (*distances)(const float* values, int64_t count, float greatest, float temperature,
                      float* to, float* least);
    // The distances up to a limit, and their places, ascending; returns how many.
    int64_t (*collect)(const float* distances, const float* least, int64_t count, float limit,
                       float* near, int32_t* places);
    // to[i] = e ** -distances[i]; returns their sum.
    double (*masses)(const float* distances, int64_t count, float* to);
    // Tokens are `places`, or 0 .. count if that is null; `least` may be null too.
    Race (*race)(const float* distances, const float* least, const int32_t* places, int64_t count,
                 float limit, Keys keys);
};

// The token of a row that is not greedy, or -1; `numbers`: room for `scratch_size`.
int32_t draw(const SamplingCall& call, const SamplingPasses& passes, int64_t row, float* numbers);

}  // namespace quire
