// Multiply-accumulate in float32; the operand is one value.
struct Float32Steps {
    using Element = float;
    static constexpr int KEYS = 1;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return fma(bits_as<Floats>(a), bits_as<Floats>(b), sum);
    }
    // Rows of values, one step each.
    INLINE void pack_values(const float* rows, int row_stride, int dim, uint32_t* to, int stride) {
        for (int key = 0; key < GROUP_KEYS; key++)
            __builtin_memcpy(to + key * stride, rows + int64_t(key) * row_stride, dim * 4);
    }
    INLINE void store_weights(uint32_t* to, int key, Floats weights) { store(to + key, weights); }
};
