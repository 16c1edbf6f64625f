// Pairs of input features side by side, for dot products of bfloat16.

// The bytes of the bfloat16 0 .. 127.
struct Bf16Table {
    alignas(64) uint8_t low[128], high[128];

    constexpr Bf16Table() : low(), high() {
        for (int size = 1; size < 128; size++) {
            int exponent = 0;
            while (size >> exponent > 1) exponent++;
            int bits = (127 + exponent) << 7 | (size << (7 - exponent) & 0x7f);
            low[size] = uint8_t(bits & 0xff);
            high[size] = uint8_t(bits >> 8);
        }
    }
};

constexpr Bf16Table TABLE;

// int8 are bfloat16 as they are: two bytes from a table by size and the sign.
// The table has no place for 128, whose low byte is that of 0.
INLINE void bytes_of_bf16(__m512i bytes, __m512i& low, __m512i& high) {
    __m512i sizes = _mm512_abs_epi8(bytes);
    low = _mm512_permutex2var_epi8(load<__m512i>(TABLE.low), sizes, load<__m512i>(TABLE.low + 64));
    high = _mm512_permutex2var_epi8(load<__m512i>(TABLE.high), sizes,
                                    load<__m512i>(TABLE.high + 64));
    high = _mm512_mask_mov_epi8(high, _mm512_movepi8_mask(sizes), _mm512_set1_epi8(0x43));
    // high | (bytes & 0x80)
    high = _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8(-128), 0xf8);
}

// A step of 32 columns.
INLINE void read_pairs(const int8_t* from, Ints* to) {
    __m512i low, high;
    bytes_of_bf16(_mm512_loadu_si512(from), low, high);
    to[0] = bits_as<Ints>(_mm512_unpacklo_epi8(low, high));
    to[1] = bits_as<Ints>(_mm512_unpackhi_epi8(low, high));
}

// Of an element of a step; int8 are in the order in which `read_pairs` interleaves their bytes.
template <class Stored>
static int place_of_pair(int feature, int column) {
    if (sizeof(Stored) == 2) return 2 * column + feature;
    return column % 16 / 4 * 16 + column / 16 * 8 + column % 4 * 2 + feature;
}
