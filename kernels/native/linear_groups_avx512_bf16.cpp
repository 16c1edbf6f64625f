// Weights in groups, for processors with AVX-512 and its bfloat16 dot products.
#include "linear.h"

#ifdef QUIRE_X86_VARIANTS
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")

namespace quire {
namespace {

#include "avx512.h"

constexpr int MAX_ROWS = 12, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

#include "pairs_avx512.h"

// The bfloat16 -8 .. 7 by their four bits, twice: what is above these is not looked at.
struct Bf16Nibbles {
    alignas(64) uint16_t bits[32];

    constexpr Bf16Nibbles() : bits() {
        for (int i = 0; i < 32; i++) {
            const int number = i % 16 < 8 ? i % 16 : i % 16 - 16, size = number < 0 ? -number : number;
            bits[i] = uint16_t(TABLE.low[size] | TABLE.high[size] << 8 | (number < 0) << 15);
        }
    }
};

constexpr Bf16Nibbles NIBBLES;

// Dot products of pairs of bfloat16, summed in float32. The half words of a word hold the features
// of its pairs: those in the lower half meet, one by one, those in the upper.
struct Bf16Numbers {
    static constexpr int STEP = 2;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(a), bits_as<__m512bh>(b));
    }
    template <int BITS>
    INLINE Ints of_words(Ints words, int step) {
        if constexpr (BITS == 4) {
            __m512i bits = _mm512_srli_epi16(bits_as<__m512i>(words), unsigned(4 * step));
            return bits_as<Ints>(_mm512_permutexvar_epi16(bits, load<__m512i>(NIBBLES.bits)));
        }
        return of_bytes(bits_as<__m512i>(words), step);
    }
    INLINE Ints of_bytes(__m512i bytes, int step) {
        constexpr uint64_t EVEN = 0x5555555555555555;
        __m512i low, high;
        bytes_of_bf16(bytes, low, high);
        if (step == 0)
            return bits_as<Ints>(_mm512_mask_mov_epi8(_mm512_slli_epi16(high, 8), EVEN, low));
        return bits_as<Ints>(_mm512_mask_mov_epi8(high, EVEN, _mm512_srli_epi16(low, 8)));
    }
    INLINE uint32_t pack(const Bf16* inputs, int step, int half) {
        return inputs[step].bits | uint32_t(inputs[step + half].bits) << 16;
    }
};

#include "linear_groups.h"

}  // namespace

const LinearVariant AVX512_BF16_GROUPS = {layout, pack_rows, run};

}  // namespace quire
#endif
