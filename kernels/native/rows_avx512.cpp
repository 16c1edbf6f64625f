// The row ops for processors with AVX-512.
#include "rows.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace quire {
namespace {

#include "avx512.h"

inline __attribute__((always_inline)) float max_of(__m512 vector) {
    return _mm512_reduce_max_ps(vector);
}

// Numbers of 16 bits to 32 bits and back.
typedef __m256i Halves;
typedef __m512i WideWords;
inline __attribute__((always_inline)) __m512i wide_words(__m256i halves) {
    return _mm512_cvtepu16_epi32(halves);
}
inline __attribute__((always_inline)) __m256i low_halves(__m512i words) {
    return _mm512_cvtepi32_epi16(words);
}

template <class Ints>
inline __attribute__((always_inline)) bool any_of(Ints lanes) {
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
}

#include "rows_ops.h"

}  // namespace

const RowVariant AVX512_ROWS = ROW_VARIANT;

}  // namespace quire
#endif
