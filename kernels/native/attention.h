// What the parts of the attention kernel share: the call, its pieces of work, the variants.
#pragma once

#include "library.h"

namespace quire {

constexpr int GROUP_KEYS = 16;    // keys that are packed at once; never more than a page
constexpr int BLOCK_KEYS = 128;   // keys in one step of the online softmax
constexpr int SPLIT_KEYS = 512;   // keys in one softmax state; states are merged in key order
constexpr int TILE_ROWS = 64;     // rows (token, query head of one kv head) that share packed keys
constexpr int MAX_HEAD_DIM = 640;  // that of latents, each with its rotated key
constexpr int MAX_LANES = 16;

// As packed by Python: 8-byte fields only, so that there is no padding to agree on.
struct AttentionCall {
    const void* q;                 // [tokens, heads, head_dim]
    const void* k_cache;           // [pages, kv_heads, page_size, head_dim]
    const void* v_cache;
    void* out;                     // as q
    const int32_t* offsets;        // [contexts + 1]
    const int32_t* cache_lengths;  // [contexts]
    const int32_t* lookup_table;   // [contexts, lookup_stride]
    const float* sinks;            // [heads] or null
    int64_t tokens, contexts, lookup_stride, pages, heads, kv_heads, head_dim, page_size;
    int64_t q_type, cache_type;
    int64_t window;                // 0: none
    int64_t threads, instruction_set;
    double scale, soft_cap /* 0: none */, k_scale, v_scale;
};

// Rows first_row .. first_row + rows of a context and kv head; row = token * group + query head.
struct Tile {
    int64_t context, kv_head, first_row;
    int rows;
    int64_t split;       // the split to store as a partial state; -1: all of them, to the end
    float* partial;      // states [tokens * heads, splits, padded head_dim + 2], or null
    int64_t num_splits;  // of `partial`
    const Tile* next;    // the thread's next one, whose first rows are fetched ahead, or null
};

// What a thread computes with: it runs one tile at a time, in one variant.
struct Scratch {
    alignas(64) uint32_t q[TILE_ROWS * MAX_HEAD_DIM];
    alignas(64) uint32_t keys[MAX_HEAD_DIM * BLOCK_KEYS];    // [steps][BLOCK_KEYS]
    alignas(64) uint32_t values[BLOCK_KEYS * MAX_HEAD_DIM];  // [steps][padded]
    alignas(64) uint32_t stage[GROUP_KEYS * MAX_HEAD_DIM];
    alignas(64) float scores[TILE_ROWS * BLOCK_KEYS];
    alignas(64) uint32_t weights[TILE_ROWS * BLOCK_KEYS];
    alignas(64) float sums[TILE_ROWS * MAX_LANES];
    alignas(64) float acc[TILE_ROWS * MAX_HEAD_DIM];
    alignas(64) float total_acc[TILE_ROWS * MAX_HEAD_DIM];
    // Of a vector of rows at once, whose last need not be rows of the tile.
    float maxima[TILE_ROWS + MAX_LANES], tops[TILE_ROWS + MAX_LANES];
    float decays[TILE_ROWS + MAX_LANES], total_max[TILE_ROWS], total_sum[TILE_ROWS];
    int64_t low[TILE_ROWS], high[TILE_ROWS];  // visible keys of each row
};

Scratch& scratch_of_thread();

struct Variant {
    void (*attend)(const AttentionCall&, const Tile&);
    void (*merge)(const AttentionCall&, const Tile&);  // partial states of a tile to its output
};

inline int64_t padded_dim(const AttentionCall& call) { return (call.head_dim + 15) / 16 * 16; }

extern const Variant GENERIC_VARIANT;
#ifdef QUIRE_X86_VARIANTS
extern const Variant AVX2_VARIANT, AVX512_VARIANT, AVX512_BF16_VARIANT;
#endif

}  // namespace quire
