// Ops on the rows of a step beside its matmuls and its attention: the calls and the variants.
//
// A row's bits are a function of that row alone: threads share out whole rows.
#pragma once

#include "library.h"
#include "sampling.h"

namespace quire {

enum NormKind : int64_t { RMS = 0, RMS_ROUNDED_ONCE = 1, LAYER = 2 };
enum Activation : int64_t {
    SILU = 0, GELU, GELU_TANH, GELU_QUICK, RELU, RELU2, TANH, SIGMOID, NUM_ACTIVATIONS
};

enum Scoring : int64_t { SOFTMAX = 0, SOFTMAX_TOP_K = 1, SIGMOID_SCORES = 2 };

constexpr int64_t MAX_ROPE_DIM = 512;        // elements of a head
constexpr int64_t MAX_ROUTED_EXPERTS = 512;  // that a token is routed to some of

inline int64_t token_of(const void* tokens, int64_t place, bool is_int64) {
    return is_int64 ? static_cast<const int64_t*>(tokens)[place]
                    : static_cast<const int32_t*>(tokens)[place];
}

// As packed by Python: 8-byte fields only, so that there is no padding to agree on.
struct NormCall {
    const void* x;         // [rows, columns]
    const void* residual;  // as x, or null
    const void* weight;    // [columns]
    const void* bias;      // [columns] or null
    void* out;             // as x
    void* sum;             // x + residual, as x; null without a residual
    int64_t rows, columns, type, kind, threads, instruction_set;
    double epsilon, weight_offset;
};

struct RopeCall {
    const void* qkv;       // [tokens, row_stride], of them (heads + 2 kv_heads) * head_dim used
    const float* cos_sin;  // [max_positions, rotary_dim]
    void* q_out;           // [tokens, heads, head_dim]
    void* k_cache;         // [pages, kv_heads, page_size, head_dim]
    void* v_cache;
    const void* q_norm;    // weights, or null
    const void* k_norm;
    const int32_t* positions;  // [tokens]; not read where rotary_dim is 0
    const int64_t* slots;      // [tokens]
    int64_t tokens, row_stride, heads, kv_heads, head_dim, pages, page_size;
    int64_t rotary_dim, max_positions;
    int64_t is_interleaved, is_q_norm_whole, is_k_norm_whole, is_rounded_once;
    int64_t type, cache_type, threads, instruction_set;
    double epsilon, weight_offset, k_scale, v_scale;
};

struct ActivationCall {
    const void* x;  // [rows, columns], gated: [rows, 2 * columns]
    void* out;      // [rows, columns]
    int64_t rows, columns, type, kind, is_gated, threads, instruction_set;
};

struct EmbeddingCall {
    const void* tokens;  // [count] of int32, or of int64
    const void* weight;  // [vocabulary, columns]
    void* out;           // [count, columns]
    int64_t count, vocabulary, columns, type, is_int64, threads, instruction_set;
    double scale;
};

struct BitmaskCall {
    float* logits;         // [rows, vocabulary]
    const int32_t* words;  // [rows, num_words]
    const int32_t* only;   // [count] rows to mask; all of them if count is negative
    int64_t rows, vocabulary, num_words, count, threads, instruction_set;
};

struct RouterCall {
    const void* logits;  // [rows, experts]
    const float* bias;   // [experts], or null
    float* weights;      // [rows, top_k]
    int32_t* chosen;     // [rows, top_k]
    int64_t rows, experts, top_k, type, scoring, renormalize, groups, top_groups, sums_two;
    int64_t threads, instruction_set;
    double scaling;
};

// Results as of `moe_create_indices`.
struct IndicesCall {
    const int32_t* ids;  // [pairs]
    int32_t* order;
    int32_t* starts;
    int32_t* restore;
    int32_t* expert_ids;
    int32_t* stats;
    int64_t pairs, experts;
};

struct GateCall {
    const void* x;  // [rows, 2 * columns]
    void* out;      // [rows, columns]
    int64_t rows, columns, type, is_interleaved, threads, instruction_set;
    double alpha, limit, offset;  // without a limit: infinity
};

struct CombineCall {
    const void* x;          // [rows * top_k, columns]
    const int32_t* places;  // [rows, top_k] rows of x
    const float* weights;   // [rows, top_k]
    void* out;              // [rows, columns]
    int64_t rows, top_k, columns, type, threads, instruction_set;
};

struct LogitsCall {
    const void* from;  // [rows, vocabulary] of bfloat16
    float* logits;     // as `from`
    uint8_t* invalid;  // [rows]
    int64_t rows, vocabulary, threads, instruction_set;
};

// Each does rows first .. end.
struct RowVariant {
    void (*norm)(const NormCall&, int64_t first, int64_t end);
    void (*rope)(const RopeCall&, int64_t first, int64_t end);
    void (*activate)(const ActivationCall&, int64_t first, int64_t end);
    void (*embed)(const EmbeddingCall&, int64_t first, int64_t end);
    void (*mask)(const BitmaskCall&, int64_t row);
    void (*route)(const RouterCall&, int64_t first, int64_t end);
    void (*gate)(const GateCall&, int64_t first, int64_t end);
    void (*combine)(const CombineCall&, int64_t first, int64_t end);
    void (*widen)(const void* from, float* to, int64_t count);
    bool (*is_invalid)(const float* logits, int64_t vocabulary);
    SamplingPasses sampling;
};

extern const RowVariant GENERIC_ROWS;
#ifdef QUIRE_X86_VARIANTS
extern const RowVariant AVX2_ROWS, AVX512_ROWS;
#endif

}  // namespace quire
