// A tile of y = x W^T + b, W of whole numbers whose groups of input features share scales.
//
// An element is the sum over the groups, in their order, of scale * (the products of the group) +
// offset * (the inputs of the group); each of the three is one sum in order, in float32.
//
// Included once per variant, after vectors.h, sizes and the variant's Bf16Numbers (products of
// bfloat16 activations).

#include "linear_finish.h"

constexpr int64_t ROW_BYTES = COLUMNS * 4;  // of words, or of scales, of a panel

// Products of float32; also of bfloat16 where a processor has no instruction for these.
struct Float32Numbers {
    static constexpr int STEP = 1;
    INLINE Floats multiply_add(Ints a, Ints b, Floats sum) {
        return fma(bits_as<Floats>(a), bits_as<Floats>(b), sum);
    }
    // The numbers of a step of words, as they are multiplied.
    template <int BITS>
    INLINE Ints of_words(Ints words, int step) {
        Ints numbers = (words << (32 - BITS - step * BITS)) >> (32 - BITS);
        return bits_as<Ints>(__builtin_convertvector(numbers, Floats));
    }
    // Of the inputs that meet a word.
    template <class T>
    INLINE uint32_t pack(const T* inputs, int step, int) {
        float value;
        convert(value, inputs[step]);
        return bits_as<uint32_t>(value);
    }
};

// Groups that are multiplied together, or a part of a long one.
struct Chunk {
    const char* from;
    int64_t ahead;            // bytes from there to what is read next
    int64_t word, group;      // the first
    int groups, words;        // words of each group
    bool is_first, is_last;   // part of its groups
    bool has_offsets;
    int64_t panel_bytes;

    int64_t side_bytes() const { return is_last ? ROW_BYTES * (1 + has_offsets) : 0; }
    int64_t bytes() const { return groups * (words * ROW_BYTES + side_bytes()); }
};

// Rows of x that are multiplied together, and their sums in the first of the panels.
struct Inputs {
    const uint32_t* x;
    const float* totals;  // of each group of each row
    float* sums;          // [rows][COLUMNS]
    float* open;          // as sums: of a group, between its parts
};

// With fewer chains of products a processor would wait for the last one of each: two panels have
// twice as many.
constexpr int PAIR_ROWS = 2;
constexpr int64_t PANEL_SUMS = BLOCK_ROWS * COLUMNS;

INLINE void fetch_ahead(const char* from, int64_t ahead, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(uintptr_t(from) + ahead + byte), 0, 2);
}

// In a register: the compiler would read words from memory again for each of their steps.
INLINE Ints held(Ints words) {
#ifdef QUIRE_X86_VARIANTS
    asm("" : "+v"(words));
#endif
    return words;
}

template <class Numbers, class T, int BITS>
struct GroupLinear {
    static constexpr int PER_WORD = 32 / BITS;
    static constexpr int WORD_STEPS = PER_WORD / Numbers::STEP;
    static constexpr int CHUNK_WORDS = CHUNK_STEPS / WORD_STEPS;

    static LinearLayout layout(const LinearWeights& weights) {
        const bool has_offsets = weights.offsets != nullptr;
        const int64_t groups = weights.in_features / weights.group_size;
        LinearLayout layout{COLUMNS, MAX_ROWS, PER_WORD, 4, WORD_STEPS, nullptr};
        layout.side_words = has_offsets ? groups : 0;
        layout.per_element = PER_WORD;
        layout.together = 2;
        layout.side_bytes = groups * ROW_BYTES * (1 + has_offsets);
        return layout;
    }

    static float total(const T* inputs, int64_t count) {
        float lanes[LANES] = {};
        for (int64_t k = 0; k < count; k += LANES)
            for (int64_t i = 0; i < smaller(count - k, LANES); i++) {
                float value;
                convert(value, inputs[k + i]);
                lanes[i] += value;
            }
        return sum_of(load<Floats>(lanes));
    }

    static void pack_rows(const LinearWeights& weights, const void* const* rows, int count,
                          uint32_t* to) {
        const int64_t width = weights.in_features, size = weights.group_size;
        for (int64_t word = 0; word < width; word += PER_WORD)
            for (int step = 0; step < WORD_STEPS; step++)
                for (int r = 0; r < count; r++)
                    *to++ = Numbers::pack(static_cast<const T*>(rows[r]) + word, step, WORD_STEPS);
        if (weights.offsets == nullptr) return;
        for (int64_t start = 0; start < width; start += size)
            for (int r = 0; r < count; r++)
                *to++ = bits_as<uint32_t>(total(static_cast<const T*>(rows[r]) + start, size));
    }

    static void run(const LinearWeights& weights, const LinearTile& tile) {
        const int64_t panel_bytes = layout(weights).panel_bytes(weights.in_features);
        const char* from = static_cast<const char*>(weights.packed) +
                           tile.first_panel * panel_bytes;
        LinearWeights scaled = weights;  // as their sums are when they are finished
        scaled.weight_type = weights.type;
        alignas(64) float sums[2 * PANEL_SUMS];
        for (int64_t panel = 0, panels; panel < tile.panels; panel += panels) {
            panels = tile.rows <= PAIR_ROWS && panel + 1 < tile.panels ? 2 : 1;
            for (int64_t p = 0; p < panels; p++)
                __builtin_memset(sums + p * PANEL_SUMS, 0, tile.rows * ROW_BYTES);
            const char* after = from + panels * panel_bytes;
            multiply_panels(weights, tile, panels, from,
                            panel + panels == tile.panels ? tile.next : after, sums);
            for (int64_t p = 0; p < panels; p++)
                finish<T>(scaled, tile, (tile.first_panel + panel + p) * COLUMNS,
                          sums + p * PANEL_SUMS);
            from = after;
        }
    }

    static void multiply_panels(const LinearWeights& weights, const LinearTile& tile,
                                int64_t panels, const char* from, const char* next, float* sums) {
        alignas(64) float open[2 * PANEL_SUMS];
        const int64_t words = weights.group_size / PER_WORD;
        const int64_t groups = weights.in_features / weights.group_size;
        Chunk chunk{};
        chunk.has_offsets = weights.offsets != nullptr;
        chunk.panel_bytes = layout(weights).panel_bytes(weights.in_features);
        const char* end = from + chunk.panel_bytes;
        for (chunk.from = from; chunk.from < end; chunk.from += chunk.bytes()) {
            set_chunk(chunk, groups, words);
            const bool is_end = chunk.from + chunk.bytes() == end;
            chunk.ahead = is_end ? int64_t(uintptr_t(next) - uintptr_t(chunk.from))
                                 : chunk.bytes();
            multiply_chunk(weights, tile, chunk, panels, sums, open);
            chunk.word += chunk.words * chunk.groups;
            chunk.group += chunk.is_last ? chunk.groups : 0;
        }
    }

    // Whole groups, or the next part of one, from where the chunk begins.
    INLINE void set_chunk(Chunk& chunk, int64_t groups, int64_t words) {
        const int64_t begun = chunk.word - chunk.group * words;
        chunk.is_first = begun == 0;
        chunk.words = int(smaller(words - begun, CHUNK_WORDS));
        chunk.is_last = begun + chunk.words == words;
        const int64_t most = words > CHUNK_WORDS ? 1 : CHUNK_WORDS / words;
        chunk.groups = int(smaller(groups - chunk.group, most));
    }

    // Many rows share numbers that are made ready for them once.
    static void multiply_chunk(const LinearWeights& weights, const LinearTile& tile,
                               const Chunk& chunk, int64_t panels, float* sums, float* open) {
        alignas(64) uint32_t ready[CHUNK_STEPS * COLUMNS];
        const RowGroups groups(tile.rows, MAX_ROWS);
        const bool is_ready = groups.groups > 1;
        if (is_ready) make_ready(chunk, ready);
        const int64_t row_words = layout(weights).row_words(weights.in_features);
        const int64_t x_words = weights.in_features / Numbers::STEP;
        for (int64_t group = 0; group < groups.groups; group++) {
            const int64_t first = groups.first(group);
            const int rows = groups.count(group);
            const uint32_t* x = tile.x + first * row_words;
            const float* totals = reinterpret_cast<const float*>(x + x_words * rows);
            const Inputs inputs = {x + chunk.word * WORD_STEPS * rows, totals + chunk.group * rows,
                                   sums + first * COLUMNS, open + first * COLUMNS};
            if (panels == 2)
                multiply_any<false, 2, PAIR_ROWS>(rows, inputs, ready, chunk);
            else if (is_ready)
                multiply_any<true, 1, MAX_ROWS>(rows, inputs, ready, chunk);
            else
                multiply_any<false, 1, MAX_ROWS>(rows, inputs, ready, chunk);
        }
    }

    INLINE void make_ready(const Chunk& chunk, uint32_t* ready) {
        const char* from = chunk.from;
        for (int group = 0; group < chunk.groups; group++, from += chunk.side_bytes())
            for (int word = 0; word < chunk.words; word++, from += ROW_BYTES)
                for (int v = 0; v < VECTORS; v++) {
                    Ints words = held(load<Ints>(from + v * sizeof(Ints)));
                    for (int step = 0; step < WORD_STEPS; step++)
                        store(ready + ((group * chunk.words + word) * WORD_STEPS + step) * COLUMNS +
                                  v * LANES,
                              Numbers::template of_words<BITS>(words, step));
                }
    }

    template <bool IS_READY, int PANELS, int R>
    INLINE void multiply_any(int rows, const Inputs& inputs, const uint32_t* ready,
                             const Chunk& chunk) {
        if constexpr (R == 1)
            multiply<IS_READY, PANELS, 1>(inputs, ready, chunk);
        else if (rows == R)
            multiply<IS_READY, PANELS, R>(inputs, ready, chunk);
        else
            multiply_any<IS_READY, PANELS, R - 1>(rows, inputs, ready, chunk);
    }

    // The place of a vector among sums.
    INLINE int64_t place(int row, int v) {
        return v / VECTORS * PANEL_SUMS + row * COLUMNS + v % VECTORS * LANES;
    }

    // dot += the inputs of a word of each column * its numbers, from step FIRST on
    template <bool IS_READY, int R, int WIDE, int FIRST = 0>
    INLINE void multiply_word(const uint32_t* x, const Ints (&words)[WIDE], const uint32_t* ready,
                              Floats (&dot)[R][WIDE]) {
        Ints column[WIDE];
        for (int v = 0; v < WIDE; v++)
            column[v] = IS_READY ? load<Ints>(ready + FIRST * COLUMNS + v * LANES)
                                 : Numbers::template of_words<BITS>(words[v], FIRST);
        for (int r = 0; r < R; r++) {
            Ints value = all(int32_t(x[FIRST * R + r]));
            for (int v = 0; v < WIDE; v++)
                dot[r][v] = Numbers::multiply_add(value, column[v], dot[r][v]);
        }
        if constexpr (FIRST + 1 < WORD_STEPS)
            multiply_word<IS_READY, R, WIDE, FIRST + 1>(x, words, ready, dot);
    }

    template <bool IS_READY, int PANELS, int R>
    static __attribute__((noinline)) void multiply(Inputs inputs, const uint32_t* ready,
                                                   Chunk chunk) {
        constexpr int WIDE = PANELS * VECTORS;
        const char* from = chunk.from;
        Floats dot[R][WIDE];
        for (int group = 0; group < chunk.groups; group++) {
            for (int r = 0; r < R; r++)
                for (int v = 0; v < WIDE; v++)
                    dot[r][v] = chunk.is_first ? Floats{} : load<Floats>(inputs.open + place(r, v));
            for (int word = 0; word < chunk.words; word++) {
                Ints words[WIDE] = {};
                if (!IS_READY)
                    for (int v = 0; v < WIDE; v++) {
                        const char* vector = from + v / VECTORS * chunk.panel_bytes +
                                             v % VECTORS * sizeof(Ints);
                        words[v] = held(load<Ints>(vector));
                        if (v % VECTORS == 0) fetch_ahead(vector, chunk.ahead, ROW_BYTES);
                    }
                multiply_word<IS_READY>(inputs.x, words, ready, dot);
                from += ROW_BYTES;
                ready += WORD_STEPS * COLUMNS;
                inputs.x += WORD_STEPS * R;
            }
            if (!chunk.is_last) {
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < WIDE; v++) store(inputs.open + place(r, v), dot[r][v]);
                return;
            }
            if (!IS_READY)
                for (int p = 0; p < PANELS; p++)
                    fetch_ahead(from + p * chunk.panel_bytes, chunk.ahead, chunk.side_bytes());
            Floats scale[WIDE], offset[WIDE];
            for (int v = 0; v < WIDE; v++) {
                const char* side = from + v / VECTORS * chunk.panel_bytes +
                                   v % VECTORS * sizeof(Floats);
                scale[v] = load<Floats>(side);
                offset[v] = chunk.has_offsets ? load<Floats>(side + ROW_BYTES) : Floats{};
            }
            if (chunk.has_offsets)
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < WIDE; v++) {
                        float* sum = inputs.sums + place(r, v);
                        Floats scaled = fma(scale[v], dot[r][v], load<Floats>(sum));
                        store(sum, fma(offset[v], all(inputs.totals[r]), scaled));
                    }
            else
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < WIDE; v++) {
                        float* sum = inputs.sums + place(r, v);
                        store(sum, fma(scale[v], dot[r][v], load<Floats>(sum)));
                    }
            inputs.totals += R;
            from += chunk.side_bytes();
        }
    }
};

// Calls `use` with the GroupLinear of the weights' types.
template <class Use>
INLINE auto with_types(const LinearWeights& weights, Use use) {
    if (weights.type == BFLOAT16)
        return weights.weight_type == INT4 ? use(GroupLinear<Bf16Numbers, Bf16, 4>())
                                           : use(GroupLinear<Bf16Numbers, Bf16, 8>());
    return weights.weight_type == INT4 ? use(GroupLinear<Float32Numbers, float, 4>())
                                       : use(GroupLinear<Float32Numbers, float, 8>());
}

static LinearLayout layout(const LinearWeights& weights) {
    return with_types(weights, [&](auto linear) { return linear.layout(weights); });
}

static void pack_rows(const LinearWeights& weights, const void* const* rows, int count,
                      uint32_t* to) {
    with_types(weights, [&](auto linear) { linear.pack_rows(weights, rows, count, to); });
}

static void run(const LinearWeights& weights, const LinearTile& tile) {
    with_types(weights, [&](auto linear) { linear.run(weights, tile); });
}
