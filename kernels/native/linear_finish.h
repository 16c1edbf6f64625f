// The end of a panel's sums: scales, bias, and the one rounding.
//
// Included once per variant, after vectors.h and COLUMNS.

static_assert(COLUMNS <= MAX_COLUMNS, "scratch is sized for all variants");

template <class T>
static void finish(const LinearWeights& weights, const LinearTile& tile, int64_t column,
                   float* sums) {
    const int64_t width = weights.out_features;
    const int count = int(smaller(width - column, COLUMNS));
    float bias[COLUMNS] = {}, scale[COLUMNS] = {};
    if (weights.bias != nullptr)
        convert_row(bias, static_cast<const T*>(weights.bias) + column, count);
    if (weights.weight_type == INT8)
        __builtin_memcpy(scale, weights.scales + column, count * sizeof(float));
    T* y = static_cast<T*>(tile.y) + tile.first_row * tile.y_stride + column;
    for (int64_t row = 0; row < tile.rows; row++, sums += COLUMNS, y += tile.y_stride) {
        if (weights.weight_type == INT8)
            for (int i = 0; i < COLUMNS; i++) sums[i] *= scale[i];
        if (weights.bias != nullptr)
            for (int i = 0; i < COLUMNS; i++) sums[i] += bias[i];
        convert_row(y, sums, count);
    }
}
