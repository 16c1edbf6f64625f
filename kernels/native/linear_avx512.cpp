// The variant for processors with AVX-512.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

#include "transpose_avx512.h"

#include "widen_avx512.h"

INLINE Ints widened_pairs(const int8_t* from) {
    __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return bits_as<Ints>(_mm512_cvtepi8_epi16(bytes));
}

INLINE Ints multiply_pairs(Ints a, Ints b) {
    return bits_as<Ints>(_mm512_madd_epi16(bits_as<__m512i>(a), bits_as<__m512i>(b)));
}

struct Float32Products;
using Bf16Products = Float32Products;

#include "linear_int8.h"

#include "int8_pairs.h"

#include "linear_tile.h"

}  // namespace

const LinearVariant AVX512_LINEAR = {layout, pack_rows, run};

}  // namespace quire
#endif
