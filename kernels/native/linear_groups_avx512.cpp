// Weights in groups, for processors with AVX-512.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

struct Float32Numbers;
using Bf16Numbers = Float32Numbers;

#include "linear_groups.h"

}  // namespace

const LinearVariant AVX512_GROUPS = {layout, pack_rows, run};

}  // namespace quire
#endif
