// The variant for processors with AVX-512 and its bfloat16 dot products.
#include "attention.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 6, MAX_VECTORS = 4;

inline __attribute__((always_inline)) float max_of(__m512 vector) {
    return _mm512_reduce_max_ps(vector);
}

#include "vectors.h"

#include "attention_steps.h"

// Dot products of pairs of bfloat16, summed in float32; the weights are rounded to bfloat16.
struct Bf16Steps {
    using Element = Bf16;
    static constexpr int KEYS = 2;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(a), bits_as<__m512bh>(b));
    }
    // Pairs of keys, interleaved by column.
    INLINE void pack_values(const Bf16* rows, int row_stride, int dim, uint32_t* to, int stride) {
        __m512i low, high;
        for (int i = 0; i < 32; i++) {
            int place = i / 2 + i % 2 * 32;
            reinterpret_cast<short*>(&low)[i] = short(place);
            reinterpret_cast<short*>(&high)[i] = short(place + 16);
        }
        for (int pair = 0; pair < GROUP_KEYS / 2; pair++) {
            const Bf16* even = rows + 2 * pair * row_stride;
            const Bf16* odd = even + row_stride;
            for (int column = 0; column < dim; column += 32) {
                int width = dim - column < 32 ? dim - column : 32;
                __mmask32 mask = __mmask32((1ull << width) - 1);
                __m512i a = _mm512_maskz_loadu_epi16(mask, even + column);
                __m512i b = _mm512_maskz_loadu_epi16(mask, odd + column);
                uint32_t* packed = to + pair * stride + column;
                _mm512_storeu_si512(packed, _mm512_permutex2var_epi16(a, low, b));
                if (width > 16)
                    _mm512_storeu_si512(packed + 16, _mm512_permutex2var_epi16(a, high, b));
            }
        }
    }
    INLINE void store_weights(uint32_t* to, int key, Floats weights) {
        store(to + key / 2, _mm512_cvtneps_pbh(weights));
    }
};

#include "transpose_avx512.h"

#include "multiply.h"

#include "attention_tile.h"

}  // namespace

const Variant AVX512_BF16_VARIANT = {attend, merge};

}  // namespace quire
#endif
