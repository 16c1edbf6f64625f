// The variant for processors with tiles of bfloat16 and of int8 (AMX).
//
// A tile of sums takes the products of a step of 32 input features (int8: 64), in pairs and in their
// order, for each of its rows alike: how many rows it has changes none of them.
#include "linear.h"

#ifdef QUIRE_AMX_VARIANT
#include <immintrin.h>
#ifdef QUIRE_TILES  // a model of the tiles in software, for tests
#include QUIRE_TILES
#else
#include "amx_tiles.h"
#endif
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")

namespace quire {
namespace {

#include "avx512.h"

constexpr int TILE_ROWS = 16, MAX_ROWS = 2 * TILE_ROWS, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

#include "pairs_avx512.h"

#include "linear_int8.h"

#include "linear_finish.h"

static_assert(MAX_ROWS <= MAX_GROUP_ROWS, "the most of all variants");

constexpr int WORDS = 16;                    // of a row of x in a step
constexpr int STEP_WORDS = WORDS * COLUMNS;  // of the weights
constexpr int READY_STEPS = 16;              // that int8 are made ready for at a time

struct Bf16Tiles {
    static constexpr int FEATURES = 2 * WORDS, SIDES = 0;
    template <int SUMS, int A, int B>
    INLINE void multiply() {
        multiply_tiles<SUMS, A, B>();
    }
    template <class Stored>
    static int place(int feature, int column) {
        return feature / 2 * 2 * COLUMNS + place_of_pair<Stored>(feature % 2, column);
    }
};

struct Int8Tiles {
    static constexpr int FEATURES = 4 * WORDS, SIDES = SIDE_WORDS;
    template <int SUMS, int A, int B>
    INLINE void multiply() {
        multiply_int8_tiles<SUMS, A, B>();
    }
    template <class Stored>
    static int place(int feature, int column) {
        return feature / 4 * 4 * COLUMNS + 4 * column + feature % 4;
    }
};

// Tiles 0 to 3: sums, by rows and then columns. 4, 5: rows of x. 6, 7: columns of weights.
struct Shapes {
    TileConfig config{};
    int rows = 0;

    void set(int count) {
        if (count == rows) return;
        rows = count;
        const int high = count < TILE_ROWS ? count : TILE_ROWS;
        const int by_tile[8] = {high, high, count - high, count - high,
                                high, count - high, WORDS, WORDS};
        config.palette = 1;
        for (int tile = 0; tile < 8; tile++) {
            config.rows[tile] = uint8_t(by_tile[tile]);
            config.bytes[tile] = by_tile[tile] ? 64 : 0;
        }
        load_config(config);
    }
};

// sums[rows][COLUMNS] += x[rows][steps] * weights[steps][WORDS][COLUMNS]; `stride` of x in words
template <class Tiles, bool IS_HIGH>
static void multiply(const uint32_t* x, int64_t stride, const uint32_t* weights, float* sums,
                     int64_t steps) {
    constexpr int WIDE = COLUMNS * 4;
    float* lower = sums + TILE_ROWS * COLUMNS;
    load_tile<0>(sums, WIDE), load_tile<1>(sums + LANES, WIDE);
    if (IS_HIGH) load_tile<2>(lower, WIDE), load_tile<3>(lower + LANES, WIDE);
    for (int64_t step = 0; step < steps; step++) {
        load_tile<6>(weights, WIDE), load_tile<7>(weights + LANES, WIDE);
        load_tile<4>(x, stride * 4);
        Tiles::template multiply<0, 4, 6>(), Tiles::template multiply<1, 4, 7>();
        if (IS_HIGH) {
            load_tile<5>(x + TILE_ROWS * stride, stride * 4);
            Tiles::template multiply<2, 5, 6>(), Tiles::template multiply<3, 5, 7>();
        }
        x += WORDS;
        weights += STEP_WORDS;
    }
    store_tile<0>(sums, WIDE), store_tile<1>(sums + LANES, WIDE);
    if (IS_HIGH) store_tile<2>(lower, WIDE), store_tile<3>(lower + LANES, WIDE);
}

template <class Tiles, class Stored>
struct Linear {
    static constexpr int FEATURES = Tiles::FEATURES;
    static constexpr bool IS_PLAIN = sizeof(Stored) * FEATURES == 4 * WORDS;

    static LinearLayout layout() {
        return {COLUMNS, MAX_ROWS, FEATURES, int(sizeof(Stored)), WORDS,
                Tiles::template place<Stored>, Tiles::SIDES};
    }

    static void pack_rows(const LinearWeights& weights, const void* const* rows, int count,
                          uint32_t* to) {
        const int64_t width = weights.in_features, words = layout().steps(width) * WORDS;
        const int64_t stride = words + Tiles::SIDES;
        if constexpr (Tiles::SIDES > 0)
            quantize_rows<Bf16>(weights, layout(), rows, count, to + words, stride,
                                [&](int r, int64_t start, const int8_t* numbers, int steps) {
                                    __builtin_memcpy(to + r * stride + start * WORDS, numbers,
                                                     steps * FEATURES);
                                });
        else
            for (int r = 0; r < count; r++, to += stride) {
                __builtin_memset(to + width / 2, 0, (words - width / 2) * 4);
                __builtin_memcpy(to, rows[r], width * sizeof(Bf16));
            }
    }

    static void run(const LinearWeights& weights, const LinearTile& tile) {
        const int64_t steps = layout().steps(weights.in_features);
        alignas(64) float sums[BLOCK_ROWS * COLUMNS];
        alignas(64) uint32_t ready[IS_PLAIN ? 1 : READY_STEPS * STEP_WORDS];
        const Stored* from = static_cast<const Stored*>(weights.packed) +
                             tile.first_panel * steps * FEATURES * COLUMNS;
        Shapes shapes;
        for (int64_t panel = 0; panel < tile.panels; panel++) {
            __builtin_memset(sums, 0, tile.rows * COLUMNS * sizeof(float));
            const int64_t most = IS_PLAIN ? steps : READY_STEPS;
            for (int64_t start = 0; start < steps; start += most) {
                const int64_t count = smaller(most, steps - start);
                const uint32_t* chunk = reinterpret_cast<const uint32_t*>(from);
                if constexpr (!IS_PLAIN) {
                    for (int64_t pair = 0; pair < count * WORDS; pair++) {
                        Ints column[VECTORS];
                        read_pairs(from + pair * 2 * COLUMNS, column);
                        store(ready + pair * COLUMNS, column[0]);
                        store(ready + pair * COLUMNS + LANES, column[1]);
                    }
                    chunk = ready;
                }
                multiply_groups(tile, shapes, chunk, sums, start, count, steps);
                from += count * FEATURES * COLUMNS;
            }
            if constexpr (Tiles::SIDES > 0) {
                const int64_t words = steps * WORDS;
                scale_sums(tile.x + words, words + Tiles::SIDES, tile.rows, sums);
            }
            finish<Bf16>(weights, tile, (tile.first_panel + panel) * COLUMNS, sums);
        }
        release_tiles();
    }

    static void multiply_groups(const LinearTile& tile, Shapes& shapes, const uint32_t* chunk,
                                float* sums, int64_t start, int64_t count, int64_t steps) {
        const RowGroups groups(tile.rows, MAX_ROWS);
        for (int64_t group = 0; group < groups.groups; group++) {
            const int64_t first = groups.first(group), stride = steps * WORDS + Tiles::SIDES;
            shapes.set(groups.count(group));
            auto run = shapes.rows > TILE_ROWS ? multiply<Tiles, true> : multiply<Tiles, false>;
            run(tile.x + first * stride + start * WORDS, stride, chunk, sums + first * COLUMNS,
                count);
        }
    }
};

// Calls `use` with the Linear of the weights' types.
template <class Use>
INLINE auto with_types(const LinearWeights& weights, Use use) {
    if (weights.activation_type == INT8) return use(Linear<Int8Tiles, int8_t>());
    return weights.weight_type == INT8 ? use(Linear<Bf16Tiles, int8_t>())
                                       : use(Linear<Bf16Tiles, Bf16>());
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

}  // namespace

const LinearVariant AMX_BF16_LINEAR = {layout, pack_rows, run};

bool has_tiles() { return has_instructions(AVX512_BF16) && may_use_tiles(); }

}  // namespace quire
#endif
