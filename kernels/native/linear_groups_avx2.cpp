// Weights in groups, for processors with AVX2 and FMA.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace quire {
namespace {

#include "avx2.h"

constexpr int MAX_ROWS = 6, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

struct Float32Numbers;
using Bf16Numbers = Float32Numbers;

#include "linear_groups.h"

}  // namespace

const LinearVariant AVX2_GROUPS = {layout, pack_rows, run};

}  // namespace quire
#endif
