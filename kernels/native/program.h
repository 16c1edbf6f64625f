// A list of ops that one call runs: the layers of a model without the caller's code between them.
#pragma once

#include "library.h"

namespace quire {

enum OpKind : int64_t { NORM_OP, LINEAR_OP, ROPE_OP, ACTIVATION_OP, ATTENTION_OP, PICK_OP };

struct PickCall {
    int64_t row_bytes;
};

constexpr int64_t CALL_BYTES = 256;  // of the longest call

// An op on numbered buffers, which have a row per token, or per picked row where these are more. As packed by Python.
struct Op {
    int64_t kind;
    int64_t from, to;
    int64_t residual;               // of a norm, which stores its sum there; -1: none
    int64_t group;                  // of pages
    int64_t is_of_picked;           // of a norm: whether it is of the rows that were picked
    alignas(8) char call[CALL_BYTES];  // the op's own, without what differs from run to run
};

// Where the tokens of a group of layers are.
struct PageGroup {
    const int32_t* lookup_table;  // [contexts, lookup_stride]
    const int64_t* slots;         // [tokens]
    int64_t lookup_stride;
};

// The tokens of a run. As packed by Python: 8-byte fields only.
struct ProgramBatch {
    const int32_t* offsets;        // [contexts + 1]
    const int32_t* cache_lengths;  // [contexts]
    const int32_t* positions;      // [tokens]
    const int64_t* picked;         // [num_picked] rows
    int64_t tokens, contexts, num_picked, threads;
};

}  // namespace quire
