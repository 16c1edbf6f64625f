// The variant for processors with AVX-512 and its int8 dot products.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

#include "transpose_avx512.h"

#include "widen_avx512.h"

struct Float32Products;
using Bf16Products = Float32Products;

#include "linear_int8.h"

#include "int8_quads_avx512.h"

#include "linear_tile.h"

}  // namespace

const LinearVariant AVX512_VNNI_LINEAR = {layout, pack_rows, run};

}  // namespace quire
#endif
