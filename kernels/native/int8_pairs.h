// Pairs of neighbouring input features as int16, for processors without dot products of int8.
//
// Included after linear_int8.h and the variant's `multiply_pairs` and `widened_pairs`.

struct Int8Products {
    typedef Ints Sums;
    static constexpr int STEP = 2, SIDES = SIDE_WORDS, FLIPPED = 0;
    INLINE Ints multiply_add(Ints a, Ints b, Ints sum) { return sum + multiply_pairs(a, b); }
    INLINE void read(const int8_t* from, Ints* to) {
        for (int v = 0; v < VECTORS; v++) to[v] = widened_pairs(from + v * STEP * LANES);
    }
    INLINE uint32_t word(const int8_t* numbers, int step) {
        return uint16_t(numbers[2 * step]) | uint32_t(uint16_t(numbers[2 * step + 1])) << 16;
    }
    template <class Stored>
    static int place(int feature, int column) {
        return STEP * column + feature;
    }
};
