// Products of int8: rows of x are quantized, each with a scale of its own, and sums are whole.
//
// Included once per variant, after vectors.h. A row's scale is its greatest magnitude / 127, its
// numbers x / scale, rounded to nearest even. Sums are exact, and so are the same for every
// instruction set. A row that is not finite gives NaN, and no other does.

constexpr int SIDE_WORDS = 2;  // of a quantized row: its scale, and what is added to its sums
constexpr int QUANTIZED_TOGETHER = 512;  // features, a multiple of every step

// Whole sums times the scale of their row: `sides` of `rows`.
INLINE void scale_sums(const uint32_t* sides, int64_t stride, int64_t rows, float* sums) {
    for (int64_t r = 0; r < rows; r++, sides += stride, sums += COLUMNS) {
        const Floats scale = all(bits_as<float>(sides[0]));
        const Ints first = all(int32_t(sides[1]));
        for (int v = 0; v < COLUMNS; v += LANES) {
            Ints sum = load<Ints>(sums + v) + first;
            store(sums + v, __builtin_convertvector(sum, Floats) * scale);
        }
    }
}

// A row's scale; NaN of a row that is not finite.
template <class T>
INLINE float scale_of(const T* row, int64_t width) {
    int32_t greatest = 0;  // as bits of a float32, which are in order
    for (int64_t k = 0; k < width; k++) {
        float value;
        convert(value, row[k]);
        int32_t size = bits_as<int32_t>(value) & 0x7fffffff;
        greatest = size > greatest ? size : greatest;
    }
    if (greatest >= 0x7f800000) return __builtin_nanf("");
    // The smallest normal: a quotient by it is finite, and zeros stay zeros.
    return larger(bits_as<float>(greatest) / 127.0f, 0x1p-126f);
}

// x / scale of `count` features, their sum added to `sum`; zeros up to a whole number of `step`.
template <class T>
INLINE void quantize(const T* x, float scale, int count, int8_t* to, uint32_t& sum) {
    const float magic = 12582912.0f;  // to it only whole numbers can be added
    uint32_t total = 0;
    for (int k = 0; k < count; k++) {
        float value;
        convert(value, x[k]);
        uint32_t number = bits_as<uint32_t>(value / scale + magic) - bits_as<uint32_t>(magic);
        to[k] = int8_t(number);
        total += number;
    }
    sum += total;
}

// Rows [in_features] by `put(row, first step, its numbers, count of them)`, then their sides.
template <class T, class Put>
INLINE void quantize_rows(const LinearWeights& weights, const LinearLayout& layout,
                          const void* const* rows, int row_count, uint32_t* sides, int64_t stride,
                          Put put) {
    const int64_t width = weights.in_features;
    for (int r = 0; r < row_count; r++, sides += stride) {
        const T* from = static_cast<const T*>(rows[r]);
        const float scale = scale_of(from, width);
        uint32_t sum = 0;
        for (int64_t start = 0; start < width; start += QUANTIZED_TOGETHER) {
            alignas(64) int8_t numbers[QUANTIZED_TOGETHER] = {};
            const int count = int(smaller(width - start, QUANTIZED_TOGETHER));
            if (scale == scale) quantize(from + start, scale, count, numbers, sum);
            put(r, start / layout.step, numbers, int(layout.steps(count)));
        }
        sides[0] = bits_as<uint32_t>(scale);
        sides[1] = -uint32_t(layout.flipped) * sum;
    }
}
