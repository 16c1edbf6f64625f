// Rows of queries, keys and values: heads normed, turned, and written to q and to the cache.
//
// Included once per variant, after norm.h.

// The float8_e4m3fn of a value: clamped to +-448, rounded to nearest even.
INLINE uint8_t fp8_bits(float value) {
    const uint32_t given = bits_as<uint32_t>(value);
    float size = bits_as<float>(given & 0x7fffffff);
    size = size > 448.0f ? 448.0f : size;
    const uint32_t bits = bits_as<uint32_t>(size);
    // 23 bits of mantissa to 3, the exponent's bias from 127 to 7.
    const uint32_t normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
    // The last place of 2 ** 14 is the least number, 2 ** -9: the addition rounds to it.
    const uint32_t subnormal = bits_as<uint32_t>(size + 16384.0f) - 0x46800000;
    uint32_t code = size < 0.015625f ? subnormal : normal;
    code = (given & 0x7fffffff) > 0x7f800000 ? 0x7f : code;
    return uint8_t(code | ((given >> 24) & 0x80));
}

template <class To>
INLINE void store_head(To* to, const float* head, int64_t dim, float scale) {
    if constexpr (__is_same(To, Fp8)) {
        for (int64_t i = 0; i < dim; i++) to[i].bits = fp8_bits(head[i] / scale);
    } else {
        each_vector(dim, [&] VECTOR_OF(i, count) {
            narrow(to + i, load<Floats>(head + i), count);
        });
    }
}

template <class T>
INLINE float head_squares(const T* heads, int64_t count) {
    return row_sum(count, [&] VECTOR_OF(i, lanes) {
        Floats value = widened(heads + i, lanes);
        return value * value;
    });
}

template <class T, class Cache>
struct Rope {
    const RopeCall& call;
    const T* row;
    const float* cosines;
    int64_t dim, half;
    // Whole vectors may be loaded and stored behind a head's last element.
    alignas(64) float head[MAX_ROPE_DIM + LANES], turned[MAX_ROPE_DIM + LANES];

    explicit Rope(const RopeCall& call)
        : call(call), dim(call.head_dim), half(call.rotary_dim / 2) {}

    void widen_head(const T* from) {
        each_vector(dim, [&] VECTOR_OF(i, count) {
            store(head + i, widened(from + i, count));
        });
    }

    void norm_head(const T* weight, float inverse) {
        const float offset = float(call.weight_offset);
        const bool is_rounded_once = call.is_rounded_once != 0;
        each_vector(dim, [&] VECTOR_OF(i, count) {
            Floats normed = load<Floats>(head + i) * inverse;
            Floats factor = widened(weight + i, count);
            store(head + i, rounded<T>(weighted<T>(normed, factor, offset, is_rounded_once)));
        });
    }

    // The head with its first pairs turned; -ffp-contract=off keeps products and sums apart.
    const float* turn() {
        if (half == 0) return head;
        const float* sines = cosines + half;
        if (call.is_interleaved) {
            for (int64_t i = 0; i < half; i++) {
                const float left = head[2 * i], right = head[2 * i + 1];
                turned[2 * i] = left * cosines[i] - right * sines[i];
                turned[2 * i + 1] = right * cosines[i] + left * sines[i];
            }
        } else {
            for (int64_t i = 0; i < half; i++) {
                const float left = head[i], right = head[half + i];
                turned[i] = left * cosines[i] - right * sines[i];
                turned[half + i] = right * cosines[i] + left * sines[i];
            }
        }
        for (int64_t i = 2 * half; i < dim; i++) turned[i] = head[i];
        return turned;
    }

    // Heads `first` .. `first + heads` of the row, each as `write(head, values)` takes it.
    template <class Write>
    void each_head(int64_t first, int64_t heads, const void* norm, bool is_whole,
                   Write write) {
        const T* from = row + first * dim;
        const T* weight = static_cast<const T*>(norm);
        float inverse = 0;
        if (weight != nullptr && is_whole)
            inverse = inverse_root(head_squares(from, heads * dim), heads * dim, call.epsilon);
        for (int64_t h = 0; h < heads; h++, from += dim) {
            widen_head(from);
            if (weight != nullptr) {
                if (!is_whole) inverse = inverse_root(head_squares(from, dim), dim, call.epsilon);
                norm_head(weight + (is_whole ? h * dim : 0), inverse);
            }
            write(h, turn());
        }
    }

    void run(int64_t token) {
        row = static_cast<const T*>(call.qkv) + token * call.row_stride;
        if (half > 0) cosines = call.cos_sin + call.positions[token] * call.rotary_dim;
        const int64_t slot = call.slots[token];
        const int64_t page = slot / call.page_size, place = slot % call.page_size;
        auto in_cache = [&](void* cache, int64_t h) {
            int64_t line = (page * call.kv_heads + h) * call.page_size + place;
            return static_cast<Cache*>(cache) + line * dim;
        };
        T* q_out = static_cast<T*>(call.q_out) + token * call.heads * dim;
        each_head(0, call.heads, call.q_norm, call.is_q_norm_whole != 0,
                  [&](int64_t h, const float* values) {
                      store_head(q_out + h * dim, values, dim, 1.0f);
                  });
        each_head(call.heads, call.kv_heads, call.k_norm, call.is_k_norm_whole != 0,
                  [&](int64_t h, const float* values) {
                      store_head(in_cache(call.k_cache, h), values, dim, float(call.k_scale));
                  });
        const T* values = row + (call.heads + call.kv_heads) * dim;
        for (int64_t h = 0; h < call.kv_heads; h++, values += dim) {
            Cache* to = in_cache(call.v_cache, h);
            if constexpr (__is_same(T, Cache)) {
                __builtin_memcpy(to, values, dim * BYTES<T>);
            } else {
                widen_head(values);
                store_head(to, head, dim, float(call.v_scale));
            }
        }
    }
};

template <class T, class Cache>
static void rope_rows(const RopeCall& call, int64_t first, int64_t end) {
    Rope<T, Cache> rope(call);
    for (int64_t token = first; token < end; token++) rope.run(token);
}

static void rope(const RopeCall& call, int64_t first, int64_t end) {
    const bool is_fp8 = call.cache_type == FLOAT8_E4M3;
    if (call.type == FLOAT32)
        is_fp8 ? rope_rows<float, Fp8>(call, first, end)
               : rope_rows<float, float>(call, first, end);
    else
        is_fp8 ? rope_rows<Bf16, Fp8>(call, first, end) : rope_rows<Bf16, Bf16>(call, first, end);
}
