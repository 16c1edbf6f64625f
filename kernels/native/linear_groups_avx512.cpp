// Weights in groups, for processors with AVX-512.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace quire {
namespace {

#define LANES 16
constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

inline __attribute__((always_inline)) __m512 fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}

#include "vectors.h"

struct Float32Numbers;
using Bf16Numbers = Float32Numbers;

#include "linear_groups.h"

}  // namespace

const LinearVariant AVX512_GROUPS = {layout, pack_rows, run};

}  // namespace quire
#endif
