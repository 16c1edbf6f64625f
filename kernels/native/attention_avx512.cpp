// The variant for processors with AVX-512.
#include "attention.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 6, MAX_VECTORS = 4;

inline __attribute__((always_inline)) float max_of(__m512 vector) {
    return _mm512_reduce_max_ps(vector);
}

#include "vectors.h"

#include "attention_steps.h"

using Bf16Steps = Float32Steps;

#include "transpose_avx512.h"

#include "multiply.h"

#include "attention_tile.h"

}  // namespace

const Variant AVX512_VARIANT = {attend, merge};

}  // namespace quire
#endif
