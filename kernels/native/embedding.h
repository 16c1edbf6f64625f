// Rows of a table of embeddings.
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
