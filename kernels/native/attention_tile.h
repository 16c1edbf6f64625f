// Attention of one tile of rows over paged keys and values.
//
// Included once per variant, after multiply.h. The bits of a row are a function of its query and
// its visible keys: every row takes the same steps in the same order whatever tile it is in.
// Scores are sums over the head's dimensions in ascending order; the keys of a context are cut
// at absolute positions into blocks and splits; a key outside a row's range is no operand of
// that row, so that stale or foreign memory, NaN included, cannot reach it.

INLINE Floats hidden() { return all(-__builtin_inff()); }  // the score of a key not to be seen

template <class Steps, class Query, class Cache>
struct Attention {
    using Element = typename Steps::Element;
    static constexpr bool IS_PACKED_DIRECTLY = __is_same(Element, Cache);

    const AttentionCall& call;
    const Tile& tile;
    Scratch& scratch;
    int dim, padded, steps, group, page_shift;
    int64_t kv_length;
    const int32_t* pages;
    float score_scale, cap_scale;

    Attention(const AttentionCall& call, const Tile& tile)
        : call(call), tile(tile), scratch(scratch_of_thread()) {
        constexpr double LOG2_E = 1.4426950408889634;
        dim = int(call.head_dim);
        padded = int(padded_dim(call));
        steps = dim / Steps::KEYS;
        group = int(call.heads / call.kv_heads);
        page_shift = __builtin_ctzll(uint64_t(call.page_size));
        pages = call.lookup_table + tile.context * call.lookup_stride;
        double scale = call.scale * call.k_scale;
        score_scale = float(call.soft_cap > 0 ? scale / call.soft_cap : scale * LOG2_E);
        cap_scale = float(call.soft_cap * LOG2_E);
        int64_t cached = call.cache_lengths[tile.context];
        int64_t tokens = call.offsets[tile.context + 1] - call.offsets[tile.context];
        kv_length = cached + tokens;
        for (int r = 0; r < tile.rows; r++) {
            int64_t high = cached + (tile.first_row + r) / group + 1;
            scratch.high[r] = high;
            scratch.low[r] = call.window > 0 ? larger(high - call.window, int64_t(0)) : 0;
        }
    }

    int64_t head_of(int row) const {
        return tile.kv_head * group + (tile.first_row + row) % group;
    }
    int64_t index_of(int row) const {
        int64_t token = call.offsets[tile.context] + (tile.first_row + row) / group;
        return token * call.heads + head_of(row);
    }
    float* partial_of(int row, int64_t split) const {
        return tile.partial + (index_of(row) * tile.num_splits + split) * (padded + 2);
    }
    bool sees(int row, int64_t start, int64_t end) const {
        return scratch.low[row] < end && scratch.high[row] > start;
    }

    void run() {
        int64_t split = tile.split >= 0 ? tile.split : first_split();
        Ahead ahead = rows_ahead(first_block(split));
        fetch(ahead, ahead.count * ahead.bytes / 64);
        const Query* q = static_cast<const Query*>(call.q);
        for (int r = 0; r < tile.rows; r++)
            convert_row(reinterpret_cast<Element*>(scratch.q + r * steps),
                        q + index_of(r) * dim, dim);
        if (padded != dim)
            __builtin_memset(scratch.values, 0, 4 * BLOCK_KEYS / Steps::KEYS * padded);
        if (tile.split >= 0) {
            attend_split(tile.split);
            for (int r = 0; r < tile.rows; r++)
                if (sees(r, tile.split * SPLIT_KEYS, (tile.split + 1) * SPLIT_KEYS))
                    store_partial(r);
            return;
        }
        for (; split <= last_split(); split++) {
            attend_split(split);
            for (int r = 0; r < tile.rows; r++)
                merge_state(r, split, scratch.maxima[r],
                            sum_of(load<Floats>(scratch.sums + r * LANES)),
                            scratch.acc + r * padded);
        }
        finish();
    }

    void merge() {
        for (int64_t split = first_split(); split <= last_split(); split++)
            for (int r = 0; r < tile.rows; r++) {
                const float* state = partial_of(r, split);
                merge_state(r, split, state[padded], state[padded + 1], state);
            }
        finish();
    }

    int64_t first_split() const { return scratch.low[0] / SPLIT_KEYS; }
    int64_t last_split() const { return (scratch.high[tile.rows - 1] - 1) / SPLIT_KEYS; }

    int64_t first_block(int64_t split) const {
        return larger(split * SPLIT_KEYS, scratch.low[0] / BLOCK_KEYS * BLOCK_KEYS);
    }

    void store_partial(int row) const {
        float* state = partial_of(row, tile.split);
        __builtin_memcpy(state, scratch.acc + row * padded, padded * 4);
        state[padded] = scratch.maxima[row];
        state[padded + 1] = sum_of(load<Floats>(scratch.sums + row * LANES));
    }

    void merge_state(int row, int64_t split, float maximum, float sum, const float* acc) {
        if (!sees(row, split * SPLIT_KEYS, (split + 1) * SPLIT_KEYS)) return;
        float* total = scratch.total_acc + row * padded;
        if (split == scratch.low[row] / SPLIT_KEYS) {
            __builtin_memcpy(total, acc, padded * 4);
            scratch.total_max[row] = maximum;
            scratch.total_sum[row] = sum;
            return;
        }
        float top = larger(scratch.total_max[row], maximum);
        float safe = top == -__builtin_inff() ? 0.0f : top;
        float old_scale = exp2_of(scratch.total_max[row] - safe);
        float new_scale = exp2_of(maximum - safe);
        for (int c = 0; c < padded; c += LANES)
            store(total + c,
                  load<Floats>(total + c) * old_scale + load<Floats>(acc + c) * new_scale);
        scratch.total_max[row] = top;
        scratch.total_sum[row] = scratch.total_sum[row] * old_scale + sum * new_scale;
    }

    void finish() {
        Query* out = static_cast<Query*>(call.out);
        for (int r = 0; r < tile.rows; r++) {
            float sum = scratch.total_sum[r], scale = 1.0f;
            if (call.sinks != nullptr) {
                float sink = call.sinks[head_of(r)] * 1.4426950408889634f;
                float top = larger(scratch.total_max[r], sink);
                scale = exp2_of(scratch.total_max[r] - top);
                sum = sum * scale + exp2_of(sink - top);
            }
            scale = scale * float(call.v_scale) / sum;
            float* total = scratch.total_acc + r * padded;
            for (int c = 0; c < padded; c += LANES)
                store(total + c, load<Floats>(total + c) * scale);
            convert_row(out + index_of(r) * dim, total, dim);
        }
    }

    void attend_split(int64_t split) {
        for (int r = 0; r < tile.rows; r++) scratch.maxima[r] = -__builtin_inff();
        __builtin_memset(scratch.sums, 0, sizeof(float) * tile.rows * LANES);
        __builtin_memset(scratch.acc, 0, sizeof(float) * tile.rows * padded);
        int64_t start = first_block(split);
        int64_t end = smaller((split + 1) * SPLIT_KEYS, scratch.high[tile.rows - 1]);
        for (; start < end; start += BLOCK_KEYS) attend_block(start);
    }

    // `first`, `last`: rows that see a key of the block; later rows see later keys.
    void attend_block(int64_t start) {
        int first = 0, last = tile.rows;
        while (scratch.high[first] <= start) first++;
        while (scratch.low[last - 1] >= start + BLOCK_KEYS) last--;
        int64_t low = larger(scratch.low[first], start) - start;
        int64_t high = smaller(scratch.high[last - 1] - start, BLOCK_KEYS);
        int key = int(low) / GROUP_KEYS * GROUP_KEYS;
        int end = (int(high) + GROUP_KEYS - 1) / GROUP_KEYS * GROUP_KEYS;
        Ahead ahead = rows_ahead(start + BLOCK_KEYS);
        const int lines = ahead.count * ahead.bytes / 64 / 16;
        for (int k = key; k < end; k += GROUP_KEYS) {
            fetch(ahead, lines);
            pack_keys(start, k);
        }
        for (int r = first, count; r < last; r += count) {
            count = next_rows(last - r);
            fetch(ahead, 4 * lines * count / (last - first));
            multiply_any<Steps, true>(count, {scratch.q + r * steps, steps},
                                      {scratch.keys + key, BLOCK_KEYS},
                                      scratch.scores + r * BLOCK_KEYS + key, BLOCK_KEYS, steps,
                                      (end - key) / LANES);
        }
        if (key == 0 && end == BLOCK_KEYS)
            weigh(first, last, start, 0, BLOCK_KEYS, ahead, 4 * lines / (last - first));
        else
            weigh(first, last, start, key, end, ahead, 4 * lines / (last - first));
        for (int k = key; k < end; k += GROUP_KEYS) {
            fetch(ahead, lines);
            pack_values(start, k);
        }
        for (int r = first, count; r < last; r += count) {
            count = next_rows(last - r);
            fetch(ahead, 1 + 4 * lines * count / (last - first));
            add_values(r, count, start);
        }
    }

    const Cache* group_at(const void* cache, int64_t position) const {
        return group_at(cache, pages, tile.kv_head, position);
    }

    const Cache* group_at(const void* cache, const int32_t* table, int64_t kv_head,
                          int64_t position) const {
        int64_t page = table[position >> page_shift];
        int64_t row = (page * call.kv_heads + kv_head) << page_shift;
        row += position & (call.page_size - 1);
        return static_cast<const Cache*>(cache) + row * dim;
    }

    // 16 rows of the cache at `position` as Elements; rows that no token has written are zero.
    const Element* group_rows(const void* cache, int64_t position) {
        const Cache* rows = group_at(cache, position);
        int written = int(smaller(kv_length - position, GROUP_KEYS));
        if constexpr (IS_PACKED_DIRECTLY)
            if (written == GROUP_KEYS) return rows;
        Element* stage = reinterpret_cast<Element*>(scratch.stage);
        convert_row(stage, rows, written * dim);
        __builtin_memset(stage + written * dim, 0, sizeof(Element) * (GROUP_KEYS - written) * dim);
        return stage;
    }

    // The next block's rows of the caches are fetched all through this block's work: a burst would
    // wait for the memory, and then leave it idle.
    struct Ahead {
        const char* groups[2 * BLOCK_KEYS / GROUP_KEYS];
        int count, bytes, group, offset;  // groups and bytes in each; what to fetch next
    };

    // Of the block at `start`, or of the next tile's first one where this tile has none there.
    Ahead rows_ahead(int64_t start) const {
        if (start >= scratch.high[tile.rows - 1] && tile.next != nullptr)
            return first_rows(*tile.next);
        return rows_of(tile, start, scratch.low[0], kv_length);
    }

    Ahead first_rows(const Tile& of) const {
        int64_t cached = call.cache_lengths[of.context];
        int64_t tokens = call.offsets[of.context + 1] - call.offsets[of.context];
        int64_t low = cached + of.first_row / group + 1 - call.window;
        low = call.window > 0 ? larger(low, int64_t(0)) : 0;
        int64_t start = larger(of.split * SPLIT_KEYS, low / BLOCK_KEYS * BLOCK_KEYS);
        return rows_of(of, start, low, cached + tokens);
    }

    Ahead rows_of(const Tile& of, int64_t start, int64_t low, int64_t end) const {
        Ahead ahead = {{}, 0, int(sizeof(Cache)) * GROUP_KEYS * dim, 0, 0};
        const int32_t* table = call.lookup_table + of.context * call.lookup_stride;
        for (const void* cache : {call.k_cache, call.v_cache})
            for (int64_t position = start; position < start + BLOCK_KEYS; position += GROUP_KEYS)
                if (position < end && position + GROUP_KEYS > low)
                    ahead.groups[ahead.count++] = reinterpret_cast<const char*>(
                        group_at(cache, table, of.kv_head, position));
        return ahead;
    }

    void fetch(Ahead& ahead, int lines) const {
        while (lines > 0 && ahead.group < ahead.count) {
            const char* group = ahead.groups[ahead.group];
            int end = ahead.offset + lines * 64;
            if (end > ahead.bytes) end = ahead.bytes;
            for (int i = ahead.offset; i < end; i += 64) __builtin_prefetch(group + i, 0, 2);
            lines -= (end - ahead.offset) / 64;
            ahead.offset = end < ahead.bytes ? end : 0;
            ahead.group += end == ahead.bytes;
        }
    }

    void pack_keys(int64_t start, int key) {
        const Element* rows = group_rows(call.k_cache, start + key);
        const uint32_t *first = reinterpret_cast<const uint32_t*>(rows), *row[GROUP_KEYS];
        for (int i = 0; i < GROUP_KEYS; i++) row[i] = first + i * steps;
        transpose(row, GROUP_KEYS, steps, scratch.keys + key, BLOCK_KEYS);
    }

    void pack_values(int64_t start, int key) {
        const Element* rows = group_rows(call.v_cache, start + key);
        Steps::pack_values(rows, dim, dim, scratch.values + key / Steps::KEYS * padded, padded);
    }

    // Scores of rows to weights; maxima and sums move on, accumulators are rescaled.
    __attribute__((always_inline)) void weigh(int first, int last, int64_t start, int key,
                                              int end, Ahead& ahead, int lines) {
        for (int r = first; r < last; r++) {
            fetch(ahead, lines);
            scratch.tops[r] = scale_scores(r, start, key, end);
        }
        store(scratch.tops + last, hidden());
        for (int r = first; r < last; r += LANES) {
            Floats before = load<Floats>(scratch.maxima + r), top = load<Floats>(scratch.tops + r);
            Floats maximum = before > top ? before : top;
            Floats safe = maximum == hidden() ? Floats{} : maximum;
            store(scratch.maxima + r, maximum);
            store(scratch.tops + r, safe);
            store(scratch.decays + r, exp2_of(before - safe));
        }
        for (int r = first; r < last; r++) {
            const float safe = scratch.tops[r], decay = scratch.decays[r];
            const float* scores = scratch.scores + r * BLOCK_KEYS;
            Floats sum = load<Floats>(scratch.sums + r * LANES) * decay;
            for (int k = key; k < end; k += LANES) {
                Floats weight = exp2_of(load<Floats>(scores + k) - safe);
                sum = sum + weight;
                Steps::store_weights(scratch.weights + r * BLOCK_KEYS / Steps::KEYS, k, weight);
            }
            store(scratch.sums + r * LANES, sum);
            float* acc = scratch.acc + r * padded;
            for (int c = 0; decay != 1.0f && c < padded; c += LANES)
                store(acc + c, load<Floats>(acc + c) * decay);
        }
    }

    // Scores of a row in powers of two, those it does not see -inf; returns the greatest.
    __attribute__((always_inline)) float scale_scores(int row, int64_t start, int key, int end) {
        float* scores = scratch.scores + row * BLOCK_KEYS;
        const int low = int(larger(scratch.low[row] - start, int64_t(0)));
        const int high = int(smaller(scratch.high[row] - start, BLOCK_KEYS));
        Floats top = hidden();
        for (int k = key; k < end; k += LANES) {
            Floats score = load<Floats>(scores + k) * score_scale;
            if (call.soft_cap > 0) score = tanh_of(score) * cap_scale;
            if (low > key || high < end) score = in_range(k, low, high) ? score : hidden();
            store(scores + k, score);
            top = top > score ? top : score;
        }
        return max_of(top);
    }

    void add_values(int first, int count, int64_t start) {
        // Steps that all rows see whole; each row's other steps come before and after, alone.
        int64_t low = larger(scratch.low[first + count - 1] - start, int64_t(0));
        int64_t high = smaller(scratch.high[first] - start, BLOCK_KEYS);
        int begin = int(low + Steps::KEYS - 1) / Steps::KEYS, end = int(high) / Steps::KEYS;
        if (begin >= end) begin = end = BLOCK_KEYS / Steps::KEYS;
        for (int r = first; r < first + count; r++) add_edges(r, start, 0, begin);
        int width = BLOCK_KEYS / Steps::KEYS;
        if (begin < end)
            multiply_any<Steps, false>(count, {scratch.weights + first * width + begin, width},
                                       {scratch.values + begin * padded, padded},
                                       scratch.acc + first * padded, padded, end - begin,
                                       padded / LANES);
        for (int r = first; r < first + count; r++) add_edges(r, start, end, width);
    }

    // Steps of one row in [begin, end), without the keys of a step that the row does not see.
    void add_edges(int row, int64_t start, int begin, int end) {
        int low = int(larger(scratch.low[row] - start, int64_t(0)));
        int high = int(smaller(scratch.high[row] - start, BLOCK_KEYS));
        if (begin < low / Steps::KEYS) begin = low / Steps::KEYS;
        if (end * Steps::KEYS > high) end = (high + Steps::KEYS - 1) / Steps::KEYS;
        const uint32_t* weights = scratch.weights + row * BLOCK_KEYS / Steps::KEYS;
        for (int step = begin; step < end; step++) {
            uint32_t seen = ~0u;
            if (Steps::KEYS * step < low) seen &= 0xffff0000u;
            if (Steps::KEYS * step + Steps::KEYS > high) seen &= 0x0000ffffu;
            float* acc = scratch.acc + row * padded;
            for (int c = 0; c < padded; c += LANES) {
                Ints value = load<Ints>(scratch.values + step * padded + c) & all(int32_t(seen));
                Ints weight = all(int32_t(weights[step]));
                store(acc + c, Steps::multiply_add(weight, value, load<Floats>(acc + c)));
            }
        }
    }
};

template <class Steps, class Query, class Cache>
static void run_typed(const AttentionCall& call, const Tile& tile, bool is_merge) {
    Attention<Steps, Query, Cache> attention(call, tile);
    if (is_merge)
        attention.merge();
    else
        attention.run();
}

static void run_any(const AttentionCall& call, const Tile& tile, bool is_merge) {
    bool is_fp8 = call.cache_type == FLOAT8_E4M3;
    if (call.q_type == BFLOAT16)
        (is_fp8 ? run_typed<Bf16Steps, Bf16, Fp8> : run_typed<Bf16Steps, Bf16, Bf16>)(
            call, tile, is_merge);
    else
        (is_fp8 ? run_typed<Float32Steps, float, Fp8> : run_typed<Float32Steps, float, float>)(
            call, tile, is_merge);
}

static void attend(const AttentionCall& call, const Tile& tile) { run_any(call, tile, false); }
static void merge(const AttentionCall& call, const Tile& tile) { run_any(call, tile, true); }
