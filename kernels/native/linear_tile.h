// A tile of y = x W^T + b: panels of weights times the rows of a block.
//
// Included once per variant, after vectors.h, `widened`, sizes and the variant's Bf16Products
// (products of bfloat16 activations) and Int8Products.

#include "linear_finish.h"

static_assert(MAX_ROWS <= MAX_GROUP_ROWS, "the most of all variants");

// Products of float32; also of bfloat16 where a processor has no instruction for these.
struct Float32Products {
    typedef Floats Sums;
    static constexpr int STEP = 1, SIDES = 0, FLIPPED = 0;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return fma(bits_as<Floats>(a), bits_as<Floats>(b), sum);
    }
    // The weights of a step, as they are multiplied.
    template <class Stored>
    INLINE void read(const Stored* from, Ints* to) {
        for (int v = 0; v < VECTORS; v++) to[v] = bits_as<Ints>(widened(from + v * LANES));
    }
    template <class T>
    INLINE uint32_t pack(const T* row, int64_t step, int64_t) {
        float value;
        convert(value, row[step]);
        return bits_as<uint32_t>(value);
    }
    template <class Stored>
    static int place(int, int column) {
        return column;
    }
};

// Where to fetch weights ahead, and how many bytes of them in each step.
struct Ahead {
    const char* from;
    int stride;
};

// The weights of a step; uint32_t are stored as they are multiplied.
template <class Products, class Stored>
INLINE void read_step(const Stored* from, Ints* to) {
    if constexpr (sizeof(Stored) == 4)
        for (int v = 0; v < VECTORS; v++) to[v] = load<Ints>(from + v * LANES);
    else
        Products::read(from, to);
}

// sums[R][COLUMNS] (+)= x[steps][R] * weights[steps][COLUMNS]
template <class Products, class Stored, int R, bool FROM_ZERO>
static __attribute__((noinline)) void multiply(const uint32_t* x, const Stored* weights,
                                               float* sums, int steps, Ahead ahead) {
    typedef typename Products::Sums Sums;
    Sums sum[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = FROM_ZERO ? Sums{} : load<Sums>(sums + r * COLUMNS + v * LANES);
    const int second = ahead.stride > 64 ? 64 : 0;
    for (int step = 0; step < steps; step++) {
        __builtin_prefetch(ahead.from, 0, 2);
        __builtin_prefetch(ahead.from + second, 0, 2);
        ahead.from += ahead.stride;
        Ints column[VECTORS];
        read_step<Products>(weights, column);
        for (int r = 0; r < R; r++) {
            Ints value = all(int32_t(x[r]));
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] = Products::multiply_add(value, column[v], sum[r][v]);
        }
        x += R;
        weights += sizeof(Stored) == 4 ? COLUMNS : Products::STEP * COLUMNS;
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(sums + r * COLUMNS + v * LANES, sum[r][v]);
}

template <class Products, bool FROM_ZERO, int R = MAX_ROWS, class Stored>
INLINE void multiply_any(int rows, const uint32_t* x, const Stored* weights, float* sums,
                         int steps, Ahead ahead) {
    if constexpr (R == 1) {
        multiply<Products, Stored, 1, FROM_ZERO>(x, weights, sums, steps, ahead);
    } else if (rows == R) {
        multiply<Products, Stored, R, FROM_ZERO>(x, weights, sums, steps, ahead);
    } else {
        multiply_any<Products, FROM_ZERO, R - 1>(rows, x, weights, sums, steps, ahead);
    }
}

template <class Products, class T, class Stored>
struct Linear {
    // Whether weights are stored as they are multiplied.
    static constexpr bool IS_PLAIN = sizeof(Stored) * Products::STEP == 4;
    static constexpr int STEP_BYTES = Products::STEP * COLUMNS * sizeof(Stored);

    static LinearLayout layout() {
        return {COLUMNS, MAX_ROWS, Products::STEP, int(sizeof(Stored)), 1,
                Products::template place<Stored>, Products::SIDES,
                Products::FLIPPED};
    }

    static void pack_rows(const LinearWeights& weights, const void* const* rows, int count,
                          uint32_t* to) {
        const int64_t width = weights.in_features, steps = layout().steps(width);
        if constexpr (Products::SIDES > 0)
            quantize_rows<T>(weights, layout(), rows, count, to + steps * count, Products::SIDES,
                             [&](int r, int64_t start, const int8_t* numbers, int packed) {
                                 for (int step = 0; step < packed; step++)
                                     to[(start + step) * count + r] = Products::word(numbers, step);
                             });
        else
            for (int64_t step = pack_words(rows, count, width, to); step < steps; step++)
                for (int r = 0; r < count; r++)
                    to[step * count + r] = Products::pack(static_cast<const T*>(rows[r]), step, width);
    }

    // The steps of which a row holds the words as they are multiplied; returns how many there are.
    static int64_t pack_words([[maybe_unused]] const void* const* rows, [[maybe_unused]] int count,
                              [[maybe_unused]] int64_t width, [[maybe_unused]] uint32_t* to) {
#if LANES == 16
        static_assert(MAX_ROWS <= LANES, "the rows of a group are transposed together");
        if (sizeof(T) * Products::STEP == 4 && count >= LANES / 4) {
            const uint32_t* words[MAX_ROWS];
            for (int r = 0; r < count; r++) words[r] = static_cast<const uint32_t*>(rows[r]);
            transpose(words, count, width / Products::STEP, to, count);
            return width / Products::STEP;
        }
#endif
        return 0;
    }

    static void run(const LinearWeights& weights, const LinearTile& tile) {
        const int64_t steps = layout().steps(weights.in_features);
        // Few rows wait for the memory, which is then asked a little ahead.
        const int64_t most = 2 * tile.rows <= MAX_ROWS ? CHUNK_STEPS : LONG_CHUNK_STEPS;
        const int64_t chunks = (steps + most - 1) / most;
        alignas(64) float sums[BLOCK_ROWS * COLUMNS];
        const char* from = static_cast<const char*>(weights.packed) +
                           tile.first_panel * steps * STEP_BYTES;
        for (int64_t panel = 0; panel < tile.panels; panel++) {
            T* y = static_cast<T*>(tile.y) + tile.first_row * tile.y_stride +
                   (tile.first_panel + panel) * COLUMNS;
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t start = steps * chunk / chunks;
                const int count = int(steps * (chunk + 1) / chunks - start);
                const char* after = from + count * STEP_BYTES;
                const bool is_end = chunk + 1 == chunks && panel + 1 == tile.panels;
                read_chunk(tile, from, sums, {start, count, steps, is_end ? tile.next : after, y});
                from = after;
            }
            if constexpr (Products::SIDES > 0) {
                const RowGroups groups(tile.rows, MAX_ROWS);
                for (int64_t group = 0; group < groups.groups; group++) {
                    const int64_t first = groups.first(group);
                    const int rows = groups.count(group);
                    const uint32_t* x = tile.x + first * (steps + Products::SIDES);
                    scale_sums(x + rows * steps, Products::SIDES, rows, sums + first * COLUMNS);
                }
            }
            finish<T>(weights, tile, (tile.first_panel + panel) * COLUMNS, sums);
        }
    }

    struct Chunk {
        int64_t start;
        int count;
        int64_t steps;     // of the panel
        const char* next;  // the weights after it
        const T* y;        // where the panel's results will be written
    };

    // Many rows share weights that are made ready for them once.
    INLINE void read_chunk(const LinearTile& tile, const char* from, float* sums, Chunk chunk) {
        if constexpr (IS_PLAIN) {
            multiply_chunk(tile, reinterpret_cast<const uint32_t*>(from), sums, chunk);
        } else {
            const Stored* stored = reinterpret_cast<const Stored*>(from);
            if (2 * tile.rows <= MAX_ROWS) return multiply_chunk(tile, stored, sums, chunk);
            alignas(64) uint32_t ready[LONG_CHUNK_STEPS * COLUMNS];
            for (int step = 0; step < chunk.count; step++) {
                Ints column[VECTORS];
                read_step<Products>(stored + step * Products::STEP * COLUMNS, column);
                for (int v = 0; v < VECTORS; v++)
                    store(ready + step * COLUMNS + v * LANES, column[v]);
            }
            multiply_chunk(tile, ready, sums, chunk);
        }
    }

    template <class Weight>
    INLINE void multiply_chunk(const LinearTile& tile, const Weight* weights, float* sums,
                               Chunk chunk) {
        const RowGroups groups(tile.rows, MAX_ROWS);
        Ahead ahead = {chunk.next, int((STEP_BYTES + groups.groups - 1) / groups.groups)};
        for (int64_t group = 0; group < groups.groups; group++) {
            const int64_t first = groups.first(group);
            const int rows = groups.count(group);
            const uint32_t* x =
                tile.x + first * (chunk.steps + Products::SIDES) + chunk.start * rows;
            // Lines of y that only then began to come would stop the writes.
            for (int r = 0; r < rows; r++)
                __builtin_prefetch(chunk.y + (first + r) * tile.y_stride, 1, 2);
            float* to = sums + first * COLUMNS;
            if (chunk.start == 0)
                multiply_any<Products, true>(rows, x, weights, to, chunk.count, ahead);
            else
                multiply_any<Products, false>(rows, x, weights, to, chunk.count, ahead);
            ahead.from += int64_t(chunk.count) * ahead.stride;
        }
    }
};

// Calls `use` with the Linear of the weights' types.
template <class Use>
INLINE auto with_types(const LinearWeights& weights, Use use) {
    if (weights.activation_type == INT8)
        return weights.type == BFLOAT16 ? use(Linear<Int8Products, Bf16, int8_t>())
                                        : use(Linear<Int8Products, float, int8_t>());
    if (weights.type == BFLOAT16)
        return weights.weight_type == INT8 ? use(Linear<Bf16Products, Bf16, int8_t>())
                                           : use(Linear<Bf16Products, Bf16, Bf16>());
    return weights.weight_type == INT8 ? use(Linear<Float32Products, float, int8_t>())
                                       : use(Linear<Float32Products, float, float>());
}

static LinearLayout layout(const LinearWeights& weights) {
    return with_types(weights, [](auto linear) { return linear.layout(); });
}

static void pack_rows(const LinearWeights& weights, const void* const* rows, int count,
                      uint32_t* to) {
    with_types(weights, [&](auto linear) { linear.pack_rows(weights, rows, count, to); });
}

static void run(const LinearWeights& weights, const LinearTile& tile) {
    with_types(weights, [&](auto linear) { linear.run(weights, tile); });
}
