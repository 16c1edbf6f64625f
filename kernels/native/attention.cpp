// Cuts a call into tiles, and gives them to threads.
#include "attention.h"

#include <atomic>
#include <cstdlib>

#include "threads.h"

namespace quire {

Scratch& scratch_of_thread() {
    static thread_local Scratch scratch;
    return scratch;
}

namespace {

const Variant* variant_of(int64_t instruction_set) {
    if (!has_instructions(instruction_set)) return nullptr;
#ifdef QUIRE_X86_VARIANTS
    if (instruction_set == AVX2) return &AVX2_VARIANT;
    if (instruction_set == AVX512_BF16) return &AVX512_BF16_VARIANT;
    if (instruction_set >= AVX512) return &AVX512_VARIANT;
#endif
    return &GENERIC_VARIANT;
}

int64_t tokens_of(const AttentionCall& call, int64_t context) {
    return int64_t(call.offsets[context + 1]) - call.offsets[context];
}

// The first key that any token of the context sees, and the number of its keys.
void keys_of(const AttentionCall& call, int64_t context, int64_t& first, int64_t& end) {
    end = call.cache_lengths[context] + tokens_of(call, context);
    first = call.cache_lengths[context] + 1 - call.window;
    if (call.window == 0 || first < 0) first = 0;
}

bool is_sound(const AttentionCall& call) {
    return call.head_dim % 8 == 0 && call.head_dim >= 8 && call.head_dim <= MAX_HEAD_DIM &&
           call.kv_heads > 0 && call.heads % call.kv_heads == 0 &&
           call.page_size >= GROUP_KEYS && (call.page_size & (call.page_size - 1)) == 0 &&
           call.q_type != FLOAT8_E4M3 &&
           (call.cache_type == call.q_type || call.cache_type == FLOAT8_E4M3);
}

bool fits_tensors(const AttentionCall& call) {
    if (call.offsets[0] != 0 || call.offsets[call.contexts] != call.tokens) return false;
    for (int64_t context = 0; context < call.contexts; context++) {
        int64_t first, end;
        keys_of(call, context, first, end);
        if (call.cache_lengths[context] < 0 || tokens_of(call, context) < 0) return false;
        if (end > call.lookup_stride * call.page_size) return false;
        const int32_t* pages = call.lookup_table + context * call.lookup_stride;
        for (int64_t i = first / call.page_size; i * call.page_size < end; i++)
            if (pages[i] < 0 || pages[i] >= call.pages) return false;
    }
    return true;
}

// Every (context, kv head, tile, split) has a number; a context's follow each other.
class Work {
  public:
    explicit Work(const AttentionCall& call) : call_(call), group_(call.heads / call.kv_heads) {
        int64_t most_splits = 1;
        for (int64_t context = 0; context < call.contexts; context++) {
            tiles_ += tiles_of(context) * call.kv_heads;
            if (splits_of(context) > most_splits) most_splits = splits_of(context);
        }
        // Splits on their own keep all threads busy where tiles alone are too few.
        if (call.threads > 1 && most_splits > 1 && tiles_ < 4 * call.threads)
            num_splits_ = most_splits;
    }

    bool is_split() const { return num_splits_ > 0; }
    int64_t size() const { return tiles_ * (is_split() ? num_splits_ : 1); }
    int64_t num_tiles() const { return tiles_; }

    size_t partial_bytes() const {
        size_t states = size_t(call_.tokens) * call_.heads * num_splits_;
        return states * (padded_dim(call_) + 2) * sizeof(float);
    }

    // Moves `context` and `first`, the number of its first tile, on to the tile `number`.
    Tile tile(int64_t number, int64_t& context, int64_t& first, float* partial) const {
        while (number >= first + tiles_of(context) * call_.kv_heads) {
            first += tiles_of(context) * call_.kv_heads;
            context++;
        }
        int64_t tiles = tiles_of(context), rows = tokens_of(call_, context) * group_;
        // The last tile sees the most keys: it goes first, so that threads end together.
        int64_t first_row = (tiles - 1 - (number - first) % tiles) * TILE_ROWS;
        int64_t left = rows - first_row;
        return {context, (number - first) / tiles, first_row,
                int(left < TILE_ROWS ? left : TILE_ROWS), -1, partial, num_splits_, nullptr};
    }

    // Whether the tile sees a key of the split.
    bool has_split(const Tile& tile, int64_t split) const {
        int64_t cached = call_.cache_lengths[tile.context];
        int64_t first = cached + tile.first_row / group_ + 1 - call_.window;
        if (call_.window == 0 || first < 0) first = 0;
        int64_t last = cached + (tile.first_row + tile.rows - 1) / group_;
        return first < (split + 1) * SPLIT_KEYS && last >= split * SPLIT_KEYS;
    }

    int64_t num_splits() const { return num_splits_; }

  private:
    int64_t tiles_of(int64_t context) const {
        return (tokens_of(call_, context) * group_ + TILE_ROWS - 1) / TILE_ROWS;
    }
    int64_t splits_of(int64_t context) const {
        int64_t end = call_.cache_lengths[context] + tokens_of(call_, context);
        return (end + SPLIT_KEYS - 1) / SPLIT_KEYS;
    }

    const AttentionCall& call_;
    int64_t group_, tiles_ = 0, num_splits_ = 0;
};

void run_tiles(const AttentionCall& call, const Variant& variant, const Work& work,
               float* partial, bool is_merge, std::atomic<int64_t>& next) {
    int64_t context = 0, first = 0;
    int64_t splits = is_merge || !work.is_split() ? 1 : work.num_splits();
    int64_t size = work.num_tiles() * splits;
    auto tile_of = [&](int64_t number) {
        Tile tile = work.tile(number / splits, context, first, partial);
        if (!is_merge && work.is_split()) tile.split = number % splits;
        return tile;
    };
    int64_t number = next++;
    if (number >= size) return;
    // A thread knows its next tile before it computes one.
    for (Tile tile = tile_of(number), following; number < size; tile = following) {
        number = next++;
        if (number < size) following = tile_of(number);
        tile.next = number < size ? &following : nullptr;
        if (is_merge)
            variant.merge(call, tile);
        else if (tile.split < 0 || work.has_split(tile, tile.split))
            variant.attend(call, tile);
    }
}

}  // namespace
}  // namespace quire

using namespace quire;

EXPORT int64_t quire_interface() { return INTERFACE; }

EXPORT int64_t quire_best_instruction_set() {
    for (int64_t set = NUM_SETS - 1; set > GENERIC; set--)
        if (has_instructions(set)) return set;
    return GENERIC;
}

EXPORT int quire_attention(const AttentionCall* given) {
    const AttentionCall& call = *given;
    const Variant* variant = variant_of(call.instruction_set);
    if (variant == nullptr || !is_sound(call)) return BAD_CALL;
    if (!fits_tensors(call)) return BAD_BATCH;
    Work work(call);
    if (work.size() == 0) return OK;
    float* partial = nullptr;
    if (work.is_split()) {
        partial = static_cast<float*>(std::malloc(work.partial_bytes()));
        if (partial == nullptr) return NO_MEMORY;
    }
    std::atomic<int64_t> next{0}, next_merge{0};
    int threads = int(call.threads < work.size() ? call.threads : work.size());
    run_together(threads, [&] { run_tiles(call, *variant, work, partial, false, next); });
    if (work.is_split())
        run_together(threads, [&] { run_tiles(call, *variant, work, partial, true, next_merge); });
    std::free(partial);
    return OK;
}
