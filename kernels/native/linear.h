// What the parts of the linear layer share: its weights, the pieces of a call, the variants.
//
// Weights lie in panels of neighbouring columns (output features), a panel one stretch of memory
// from the first input feature to the last. An element of y is one sum over the input features in
// their order, whatever computes it: a row's bits depend on neither the other rows nor the threads.
#pragma once

#include "library.h"

namespace quire {

constexpr int64_t AMX_BF16 = NUM_SETS;  // an instruction set that only the linear layer knows

constexpr int CHUNK_STEPS = 128;  // steps over K between which sums rest in memory
constexpr int LONG_CHUNK_STEPS = 768;  // of many rows, with weights of one scale over K
constexpr int BLOCK_ROWS = 192;   // rows that share a read of the weights
constexpr int MAX_COLUMNS = 32;   // of a panel, in every variant
constexpr int MAX_STEP = 64;      // input features of a step, in every variant
constexpr int64_t MAX_INT8_FEATURES = 1 << 17;  // whose products of int8 an int32 can sum
constexpr int MAX_GROUP_ROWS = 32;  // that are multiplied together, in every variant

// As packed by Python: 8-byte fields only, so that there is no padding to agree on.
struct LinearWeights {
    void* packed;
    const void* bias;     // [out_features] of `type`, or null
    // [groups, out_features], of weights that are whole numbers. Those of weights in groups are
    // packed with them: then whether there are offsets is all that is still asked.
    const float* scales;
    const float* offsets;  // added to what the scales give, or null
    int64_t out_features, in_features;
    int64_t type;             // of x, y and bias: FLOAT32 or BFLOAT16
    int64_t weight_type;      // `type`, INT8 or INT4
    int64_t activation_type;  // `type`, or INT8: that x is multiplied in
    int64_t group_size;       // input features with the same scale
    int64_t instruction_set;
};

// Weights whose scales are not one for all input features (linear_groups.h). They are stored in
// words of 32 bits, each of neighbouring input features, the first in the lowest bits.
inline bool is_grouped(const LinearWeights& weights) {
    return weights.weight_type == INT4 ||
           (weights.weight_type == INT8 &&
            (weights.group_size != weights.in_features || weights.offsets != nullptr));
}

// Layers of equal sizes and types, each on its own rows.
struct GroupedLinearCall {
    const LinearWeights* weights;  // [count]
    const void* x;
    void* y;
    const int32_t* starts;  // [count + 1] rows of the groups, or null: all rows for each layer
    const int32_t* ids;     // [count] layer of each group; negative: its rows of y become zero
    const int32_t* order;   // [rows] row m is that of x order[m] / top_k; null: x has them in order
    int64_t count, rows, x_rows, top_k;
    int64_t x_stride, y_stride;  // elements from a row to the next
    int64_t x_step;              // without groups: from a layer's first row of x to the next one's
    int64_t threads;
};

// How a variant computes with weights.
struct LinearLayout {
    int columns;       // of a panel
    int max_rows;      // that it multiplies together
    int step;          // input features of one step
    int element_size;  // in bytes, as stored
    int words;         // of 32 bits, that a step of a row of x takes
    int (*place)(int feature, int column);  // of an element among those of its step
    int64_t side_words = 0;  // of a row of x, beside those of its steps
    uint8_t flipped = 0;     // bits that are turned over in each byte of the weights, as packed
    int together = 1;        // panels of a tile: a multiple of it, but for the last
    int per_element = 1;     // input features
    int64_t side_bytes = 0;  // of a panel, beside those of its elements

    int64_t steps(int64_t in_features) const { return (in_features + step - 1) / step; }
    int64_t panel_bytes(int64_t in_features) const {
        return steps(in_features) * step / per_element * columns * element_size + side_bytes;
    }
    int64_t row_words(int64_t in_features) const { return steps(in_features) * words + side_words; }
    int64_t panels(int64_t out_features) const { return (out_features + columns - 1) / columns; }
};

// Panels times the rows of a block; x as `pack_rows` has laid out its groups of rows (`RowGroups`).
struct LinearTile {
    const uint32_t* x;  // of `first_row`
    void* y;            // [rows, y_stride], of them out_features used
    int64_t first_row, rows;
    int64_t first_panel, panels;
    const char* next;   // weights to fetch ahead, when those of the tile are
    int64_t y_stride;   // elements from a row of y to the next
};

struct LinearVariant {
    LinearLayout (*layout)(const LinearWeights&);
    // `count` rows of x, each [in_features], in the order in which `run` reads them.
    void (*pack_rows)(const LinearWeights&, const void* const* rows, int count, uint32_t* to);
    void (*run)(const LinearWeights&, const LinearTile&);
};

// A block's rows in groups that are multiplied together: equal shares of at most `most` rows.
inline int64_t row_groups(int64_t rows, int most) { return (rows + most - 1) / most; }

struct RowGroups {
    int64_t rows, groups;

    RowGroups(int64_t rows, int most) : rows(rows), groups(row_groups(rows, most)) {}
    int64_t first(int64_t group) const { return rows * group / groups; }
    int count(int64_t group) const { return int(first(group + 1) - first(group)); }
};

// Of weights in groups; null: the processor lacks the instructions.
const LinearVariant* groups_variant_of(int64_t instruction_set);

// Whether the sizes can be: groups of whole words and of no less than 16 features, but for one.
bool has_groups(const LinearWeights&);

// Lays out a panel of weights in groups, `from` as they are stored.
void pack_groups(const LinearWeights&, const LinearLayout&, const uint32_t* from, int64_t panel);

extern const LinearVariant GENERIC_LINEAR, GENERIC_GROUPS;
#ifdef QUIRE_X86_VARIANTS
extern const LinearVariant AVX2_LINEAR, AVX512_LINEAR, AVX512_VNNI_LINEAR, AVX512_BF16_LINEAR;
extern const LinearVariant AVX2_GROUPS, AVX512_GROUPS, AVX512_BF16_GROUPS;
#if __GNUC__ >= 11 && defined(__linux__)
#define QUIRE_AMX_VARIANT 1
extern const LinearVariant AMX_BF16_LINEAR;

// Whether this processor has tiles of bfloat16, and the kernel lets this process use them.
bool has_tiles();
#endif
#endif

}  // namespace quire
