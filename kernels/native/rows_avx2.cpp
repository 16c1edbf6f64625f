// The row ops for processors with AVX2 and FMA.
#include "rows.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace quire {
namespace {

#include "avx2.h"

inline __attribute__((always_inline)) float max_of(__m256 vector) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// Numbers of 16 bits to 32 bits and back.
typedef __m128i Halves;
typedef __m256i WideWords;
inline __attribute__((always_inline)) __m256i wide_words(__m128i halves) {
    return _mm256_cvtepu16_epi32(halves);
}
inline __attribute__((always_inline)) __m128i low_halves(__m256i words) {
    __m256i twice = _mm256_packus_epi32(words, words);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(twice, 0x08));
}

template <class Ints>
inline __attribute__((always_inline)) bool any_of(Ints lanes) {
    return _mm256_movemask_epi8((__m256i)lanes) != 0;
}

#include "rows_ops.h"

}  // namespace

const RowVariant AVX2_ROWS = ROW_VARIANT;

}  // namespace quire
#endif
