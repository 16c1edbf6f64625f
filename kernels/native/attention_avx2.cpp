// The variant for processors with AVX2 and FMA.
#include "attention.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace quire {
namespace {

#include "avx2.h"

constexpr int MAX_ROWS = 6, MAX_VECTORS = 2;

inline __attribute__((always_inline)) float max_of(__m256 vector) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

#include "vectors.h"

#include "attention_steps.h"

using Bf16Steps = Float32Steps;

// Rows of 8 columns to columns of 8 rows.
INLINE void transpose8(const uint32_t* const* rows, int64_t column, uint32_t* to,
                       int64_t stride) {
    __m256 row[8], pair[8], quad[8];
    for (int i = 0; i < 8; i++) row[i] = load<__m256>(rows[i] + column);
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            quad[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0x44);
            quad[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0xee);
        }
    }
    for (int i = 0; i < 4; i++) {
        store(to + i * stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
        store(to + (i + 4) * stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
}

// `count` rows of `columns`, both multiples of 8.
INLINE void transpose(const uint32_t* const* rows, int count, int64_t columns, uint32_t* to,
                      int64_t stride) {
    for (int64_t column = 0; column < columns; column += 8)
        for (int row = 0; row < count; row += 8)
            transpose8(rows + row, column, to + column * stride + row, stride);
}

#include "multiply.h"

#include "attention_tile.h"

}  // namespace

const Variant AVX2_VARIANT = {attend, merge};

}  // namespace quire
#endif
