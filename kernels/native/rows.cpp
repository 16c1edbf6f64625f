// Checks calls of the row ops and shares their rows out to threads.
#include "rows.h"

#include <atomic>
#include <cstdlib>

#include "threads.h"

namespace quire {
namespace {

// Bytes that are worth another thread: 6 to 9 us of work on a Zen 4, of which another that is awake
// takes half and one that sleeps nothing.
constexpr int64_t SHARE = 1 << 16;

const RowVariant* variant_of(int64_t instruction_set) {
    if (!has_instructions(instruction_set)) return nullptr;
#ifdef QUIRE_X86_VARIANTS
    if (instruction_set == AVX2) return &AVX2_ROWS;
    if (instruction_set >= AVX512) return &AVX512_ROWS;
#endif
    return &GENERIC_ROWS;
}

int threads_for(int64_t threads, int64_t rows, int64_t bytes) {
    int64_t shares = bytes / SHARE;
    if (shares < threads) threads = shares;
    if (rows < threads) threads = rows;
    return threads > 1 ? int(threads) : 1;
}

// Calls run(first, end) for all rows, in equal parts.
template <class Run>
void share_rows(int threads, int64_t rows, Run run) {
    run_pieces(threads, threads, [&](int64_t part) {
        run(rows * part / threads, rows * (part + 1) / threads);
    });
}

bool is_plain(int64_t type) { return type == FLOAT32 || type == BFLOAT16; }
int64_t width_of(int64_t type) { return type == FLOAT32 ? 4 : 2; }

// Numbers for one row at a time of a thread.
class Scratch {
  public:
    ~Scratch() { std::free(numbers_); }
    float* of(int64_t count) {
        if (count > count_) {
            std::free(numbers_);
            numbers_ = static_cast<float*>(std::malloc(size_t(count) * sizeof(float)));
            count_ = numbers_ == nullptr ? 0 : count;
        }
        return numbers_;
    }

  private:
    float* numbers_ = nullptr;
    int64_t count_ = 0;
};

thread_local Scratch thread_numbers;

}  // namespace
}  // namespace quire

using namespace quire;

EXPORT int quire_norm(const NormCall* given) {
    const NormCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_plain(call.type) || call.kind < RMS || call.kind > LAYER)
        return BAD_CALL;
    int64_t bytes = call.rows * call.columns * 4;
    share_rows(threads_for(call.threads, call.rows, bytes), call.rows,
               [&](int64_t first, int64_t end) { variant->norm(call, first, end); });
    return OK;
}

EXPORT int quire_rope(const RopeCall* given) {
    const RopeCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    const bool is_known = is_plain(call.type) &&
                          (call.cache_type == call.type || call.cache_type == FLOAT8_E4M3);
    if (variant == nullptr || !is_known || call.head_dim > MAX_ROPE_DIM || call.page_size < 1)
        return BAD_CALL;
    for (int64_t token = 0; token < call.tokens; token++) {
        const int64_t slot = call.slots[token];
        if (slot < 0 || slot >= call.pages * call.page_size) return BAD_BATCH;
        if (call.rotary_dim == 0) continue;
        if (call.positions[token] < 0 || call.positions[token] >= call.max_positions)
            return BAD_BATCH;
    }
    int64_t bytes = call.tokens * (call.heads + 2 * call.kv_heads) * call.head_dim * 4;
    share_rows(threads_for(call.threads, call.tokens, bytes), call.tokens,
               [&](int64_t first, int64_t end) { variant->rope(call, first, end); });
    return OK;
}

EXPORT int quire_activation(const ActivationCall* given) {
    const ActivationCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_plain(call.type) || call.kind < 0 ||
        call.kind >= NUM_ACTIVATIONS)
        return BAD_CALL;
    int64_t bytes = call.rows * call.columns * 8;
    share_rows(threads_for(call.threads, call.rows, bytes), call.rows,
               [&](int64_t first, int64_t end) { variant->activate(call, first, end); });
    return OK;
}

EXPORT int quire_embedding(const EmbeddingCall* given) {
    const EmbeddingCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_plain(call.type)) return BAD_CALL;
    for (int64_t i = 0; i < call.count; i++) {
        const int64_t token = token_of(call.tokens, i, call.is_int64 != 0);
        if (token < 0 || token >= call.vocabulary) return BAD_BATCH;
    }
    int64_t bytes = call.count * call.columns * width_of(call.type);
    share_rows(threads_for(call.threads, call.count, bytes), call.count,
               [&](int64_t first, int64_t end) { variant->embed(call, first, end); });
    return OK;
}

EXPORT int quire_bitmask(const BitmaskCall* given) {
    const BitmaskCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr) return BAD_CALL;
    const int64_t rows = call.count < 0 ? call.rows : call.count;
    share_rows(threads_for(call.threads, rows, rows * call.vocabulary * 4), rows,
               [&](int64_t first, int64_t end) {
                   for (int64_t i = first; i < end; i++) {
                       const int64_t row = call.count < 0 ? i : call.only[i];
                       if (row >= 0 && row < call.rows) variant->mask(call, row);
                   }
               });
    return OK;
}

EXPORT int quire_router(const RouterCall* given) {
    const RouterCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    const bool has_groups = call.groups > 0 && call.experts % call.groups == 0 &&
                            call.top_groups > 0 && call.top_groups <= call.groups;
    if (variant == nullptr || !is_plain(call.type) || call.experts > MAX_ROUTED_EXPERTS ||
        !has_groups || call.top_k > call.top_groups * (call.experts / call.groups))
        return BAD_CALL;
    share_rows(threads_for(call.threads, call.rows, call.rows * call.experts * 64), call.rows,
               [&](int64_t first, int64_t end) { variant->route(call, first, end); });
    return OK;
}

EXPORT int quire_indices(const IndicesCall* given) {
    const IndicesCall& call = *given;
    // Foreign pairs as one more expert, behind all others.
    auto expert_of = [&call](int64_t pair) {
        const int32_t id = call.ids[pair];
        return id >= 0 && id < call.experts ? int64_t(id) : call.experts;
    };
    int32_t* ends = static_cast<int32_t*>(std::calloc(size_t(call.experts) + 1, sizeof(int32_t)));
    if (ends == nullptr) return NO_MEMORY;
    for (int64_t pair = 0; pair < call.pairs; pair++) ends[expert_of(pair)]++;
    int32_t most = 0, active = 0, place = 0;
    for (int64_t expert = 0; expert <= call.experts; expert++) {
        const int32_t count = ends[expert];
        ends[expert] = place;
        if (expert == call.experts || count == 0) continue;
        call.starts[active] = place;
        call.expert_ids[active++] = int32_t(expert);
        place += count;
        most = count > most ? count : most;
    }
    for (int64_t group = active; group < call.experts; group++) call.expert_ids[group] = -1;
    // Foreign pairs are the group behind the last one.
    call.starts[active] = place;
    for (int64_t group = active + 1; group <= call.experts; group++)
        call.starts[group] = int32_t(call.pairs);
    for (int64_t pair = 0; pair < call.pairs; pair++) {
        const int32_t to = ends[expert_of(pair)]++;
        call.order[to] = int32_t(pair);
        call.restore[pair] = to;
    }
    call.stats[0] = most, call.stats[1] = active;
    std::free(ends);
    return OK;
}

EXPORT int quire_gate(const GateCall* given) {
    const GateCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_plain(call.type)) return BAD_CALL;
    share_rows(threads_for(call.threads, call.rows, call.rows * call.columns * 8), call.rows,
               [&](int64_t first, int64_t end) { variant->gate(call, first, end); });
    return OK;
}

EXPORT int quire_combine(const CombineCall* given) {
    const CombineCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_plain(call.type)) return BAD_CALL;
    const int64_t pairs = call.rows * call.top_k;
    for (int64_t pair = 0; pair < pairs; pair++)
        if (call.places[pair] < 0 || call.places[pair] >= pairs) return BAD_BATCH;
    const int64_t bytes = pairs * call.columns * width_of(call.type);
    share_rows(threads_for(call.threads, call.rows, bytes), call.rows,
               [&](int64_t first, int64_t end) { variant->combine(call, first, end); });
    return OK;
}

// `logits` from bfloat16.
EXPORT int quire_widen(const LogitsCall* given) {
    const LogitsCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr) return BAD_CALL;
    const int64_t count = call.rows * call.vocabulary;
    // Not rows: one alone may be worth all threads.
    share_rows(threads_for(call.threads, count, count * 6), count,
               [&](int64_t first, int64_t end) {
                   const uint16_t* from = static_cast<const uint16_t*>(call.from);
                   variant->widen(from + first, call.logits + first, end - first);
               });
    return OK;
}

// Which rows of `logits` no token can be sampled from.
EXPORT int quire_invalid_rows(const LogitsCall* given) {
    const LogitsCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr) return BAD_CALL;
    share_rows(threads_for(call.threads, call.rows, call.rows * call.vocabulary * 4), call.rows,
               [&](int64_t first, int64_t end) {
                   for (int64_t row = first; row < end; row++)
                       call.invalid[row] = variant->is_invalid(
                           call.logits + row * call.vocabulary, call.vocabulary);
               });
    return OK;
}

EXPORT int quire_sampling(const SamplingCall* given) {
    const SamplingCall& call = *given;
    const RowVariant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || call.vocabulary < 1 || call.vocabulary > MAX_VOCABULARY)
        return BAD_CALL;
    const SamplingPasses& passes = variant->sampling;
    const int threads = threads_for(call.threads, call.rows, call.rows * call.vocabulary * 4);
    std::atomic<int> status{OK};
    run_pieces(threads, call.rows, [&](int64_t row) {
        if (call.temperatures[row] == 0) {
            const float* logits = call.logits + row * call.vocabulary;
            call.tokens[row] = passes.first_greatest(logits, call.vocabulary);
            return;
        }
        float* numbers = thread_numbers.of(scratch_size(call.vocabulary));
        if (numbers == nullptr)
            status = NO_MEMORY;
        else
            call.tokens[row] = draw(call, passes, row, numbers);
    });
    return status;
}
