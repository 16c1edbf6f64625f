// Runs the ops of a program in turn, each with the buffers and the batch of the run.
#include "program.h"

#include <cstring>

#include "attention.h"
#include "linear.h"
#include "rows.h"

extern "C" {
int quire_norm(const quire::NormCall*);
int quire_linear(const quire::LinearWeights*, const void* x, void* y, int64_t rows,
                 int64_t threads);
int quire_rope(const quire::RopeCall*);
int quire_activation(const quire::ActivationCall*);
int quire_attention(const quire::AttentionCall*);
}

namespace quire {
namespace {

struct Run {
    const ProgramBatch& batch;
    void* const* buffers;
    const PageGroup* groups;
};

template <class Call>
Call call_of(const Op& op) {
    static_assert(sizeof(Call) <= CALL_BYTES, "an op has no room for this call");
    Call call;
    std::memcpy(&call, op.call, sizeof(call));
    return call;
}

int run_norm(const Op& op, const Run& run) {
    NormCall call = call_of<NormCall>(op);
    call.x = run.buffers[op.from];
    call.out = run.buffers[op.to];
    call.sum = op.residual < 0 ? nullptr : run.buffers[op.residual];
    call.residual = call.sum;
    call.rows = op.is_of_picked ? run.batch.num_picked : run.batch.tokens;
    call.threads = run.batch.threads;
    return quire_norm(&call);
}

int run_linear(const Op& op, const Run& run) {
    LinearWeights weights = call_of<LinearWeights>(op);
    return quire_linear(&weights, run.buffers[op.from], run.buffers[op.to], run.batch.tokens,
                        run.batch.threads);
}

int run_rope(const Op& op, const Run& run) {
    RopeCall call = call_of<RopeCall>(op);
    call.qkv = run.buffers[op.from];
    call.q_out = run.buffers[op.to];
    call.positions = run.batch.positions;
    call.slots = run.groups[op.group].slots;
    call.tokens = run.batch.tokens;
    call.threads = run.batch.threads;
    return quire_rope(&call);
}

int run_activation(const Op& op, const Run& run) {
    ActivationCall call = call_of<ActivationCall>(op);
    call.x = run.buffers[op.from];
    call.out = run.buffers[op.to];
    call.rows = run.batch.tokens;
    call.threads = run.batch.threads;
    return quire_activation(&call);
}

int run_attention(const Op& op, const Run& run) {
    AttentionCall call = call_of<AttentionCall>(op);
    call.q = run.buffers[op.from];
    call.out = run.buffers[op.to];
    call.offsets = run.batch.offsets;
    call.cache_lengths = run.batch.cache_lengths;
    call.lookup_table = run.groups[op.group].lookup_table;
    call.lookup_stride = run.groups[op.group].lookup_stride;
    call.tokens = run.batch.tokens;
    call.contexts = run.batch.contexts;
    call.threads = run.batch.threads;
    return quire_attention(&call);
}

// The picked rows of a buffer, in their order, into another.
int run_pick(const Op& op, const Run& run) {
    const int64_t bytes = call_of<PickCall>(op).row_bytes;
    const char* from = static_cast<const char*>(run.buffers[op.from]);
    char* to = static_cast<char*>(run.buffers[op.to]);
    for (int64_t i = 0; i < run.batch.num_picked; i++) {
        const int64_t row = run.batch.picked[i];
        if (row < 0 || row >= run.batch.tokens) return BAD_BATCH;
        std::memcpy(to + i * bytes, from + row * bytes, bytes);
    }
    return OK;
}

int run_op(const Op& op, const Run& run) {
    switch (op.kind) {
        case NORM_OP: return run_norm(op, run);
        case LINEAR_OP: return run_linear(op, run);
        case ROPE_OP: return run_rope(op, run);
        case ACTIVATION_OP: return run_activation(op, run);
        case ATTENTION_OP: return run_attention(op, run);
        case PICK_OP: return run_pick(op, run);
    }
    return BAD_CALL;
}

}  // namespace
}  // namespace quire

using namespace quire;

// The status of the first op that fails; those behind it are not run.
EXPORT int quire_program(const Op* ops, int64_t count, const ProgramBatch* batch,
                         void* const* buffers, const PageGroup* groups) {
    const Run run{*batch, buffers, groups};
    for (int64_t i = 0; i < count; i++)
        if (int status = run_op(ops[i], run)) return status;
    return OK;
}
