// The variant for processors with AVX-512 and its bfloat16 dot products.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bf16")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

#include "transpose_avx512.h"

#include "widen_avx512.h"

#include "pairs_avx512.h"

// Dot products of pairs of bfloat16, summed in float32.
struct Bf16Products {
    typedef Floats Sums;
    static constexpr int STEP = 2, SIDES = 0, FLIPPED = 0;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(a), bits_as<__m512bh>(b));
    }
    INLINE void read(const int8_t* from, Ints* to) { read_pairs(from, to); }
    template <class Stored>
    static int place(int feature, int column) {
        return place_of_pair<Stored>(feature, column);
    }
    INLINE uint32_t pack(const Bf16* row, int64_t step, int64_t width) {
        if (2 * step + 1 < width) return load<uint32_t>(row + 2 * step);
        return row[2 * step].bits;
    }
};

#include "linear_int8.h"

#include "int8_quads_avx512.h"

#include "linear_tile.h"

}  // namespace

const LinearVariant AVX512_BF16_LINEAR = {layout, pack_rows, run};

}  // namespace quire
#endif
