// Rows of a table of embeddings, and masks over rows of logits.
//
// Included once per variant, after row_math.h.

template <class T>
static void embed_rows(const EmbeddingCall& call, int64_t first, int64_t end) {
    const float scale = float(call.scale);
    for (int64_t r = first; r < end; r++) {
        const int64_t token = token_of(call.tokens, r, call.is_int64 != 0);
        const T* row = static_cast<const T*>(call.weight) + token * call.columns;
        T* out = static_cast<T*>(call.out) + r * call.columns;
        if (scale == 1.0f) {
            __builtin_memcpy(out, row, call.columns * BYTES<T>);
            continue;
        }
        each_vector(call.columns, [&] VECTOR_OF(i, count) {
            narrow(out + i, widened(row + i, count) * scale, count);
        });
    }
}

static void embed(const EmbeddingCall& call, int64_t first, int64_t end) {
    call.type == FLOAT32 ? embed_rows<float>(call, first, end) : embed_rows<Bf16>(call, first, end);
}

// The logits whose bits are 0 become -inf: bit i % 32 of word i / 32, least first.
static void mask(const BitmaskCall& call, int64_t row) {
    float* logits = call.logits + row * call.vocabulary;
    const int32_t* words = call.words + row * call.num_words;
    const Floats masked = all(-__builtin_inff());
    Ints bit;
    for (int i = 0; i < LANES; i++) bit[i] = int32_t(1u << i);
    int64_t first = 0, word = 0;
    for (; word < call.num_words && first + 32 <= call.vocabulary; word++, first += 32) {
        const uint32_t allowed = uint32_t(words[word]);
        if (allowed == 0xffffffff) continue;
        for (int part = 0; part < 32; part += LANES) {
            float* place = logits + first + part;
            Ints is_masked = (all(int32_t(allowed >> part)) & bit) == 0;
            store(place, is_masked ? masked : load<Floats>(place));
        }
    }
    for (; first < call.vocabulary; first++) {
        const bool is_covered = first / 32 < call.num_words;
        const uint32_t allowed = is_covered ? uint32_t(words[first / 32]) : 0;
        if (!(allowed >> (first % 32) & 1)) logits[first] = -__builtin_inff();
    }
}
