// The variant for processors with AVX2 and FMA.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace quire {
namespace {

#include "avx2.h"

constexpr int MAX_ROWS = 6, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

// Eight stored weights as float32.
INLINE Floats widened(const Bf16* from) {
    __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE Floats widened(const int8_t* from) {
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

INLINE Ints widened_pairs(const int8_t* from) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return bits_as<Ints>(_mm256_cvtepi8_epi16(bytes));
}

INLINE Ints multiply_pairs(Ints a, Ints b) {
    return bits_as<Ints>(_mm256_madd_epi16(bits_as<__m256i>(a), bits_as<__m256i>(b)));
}

struct Float32Products;
using Bf16Products = Float32Products;

#include "linear_int8.h"

#include "int8_pairs.h"

#include "linear_tile.h"

}  // namespace

const LinearVariant AVX2_LINEAR = {layout, pack_rows, run};

}  // namespace quire
#endif
