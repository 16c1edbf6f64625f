// Four neighbouring input features, for the dot products of int8 of AVX512-VNNI.
//
// The instruction multiplies unsigned by signed: weights are packed as number + 128, and every sum
// begins with -128 times the sum of its row of x. Sums wrap around, so that only the whole counts.
//
// Included after linear_int8.h.

struct Int8Products {
    typedef Ints Sums;
    static constexpr int STEP = 4, SIDES = SIDE_WORDS, FLIPPED = 0x80;
    INLINE Ints multiply_add(Ints a, Ints b, Ints sum) {
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, (__m512i)a);
    }
    INLINE uint32_t word(const int8_t* numbers, int step) {
        return load<uint32_t>(numbers + STEP * step);
    }
    template <class Stored>
    static int place(int feature, int column) {
        return STEP * column + feature;
    }
};
