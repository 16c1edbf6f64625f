// RMS norm and layer norm of rows, after the addition of a residual.
//
// Included once per variant, after row_math.h.

// The first columns of a row as they are after the addition, which is also stored.
template <class T>
INLINE Floats summed(const NormCall& call, int64_t place, int64_t count) {
    Floats value = widened(static_cast<const T*>(call.x) + place, count);
    if (call.residual == nullptr) return value;
    value += widened(static_cast<const T*>(call.residual) + place, count);
    narrow(static_cast<T*>(call.sum) + place, value, count);
    return rounded<T>(value);
}

INLINE float inverse_root(float sum_of_squares, int64_t count, double epsilon) {
    return 1.0f / __builtin_sqrtf(sum_of_squares / float(count) + float(epsilon));
}

// The normed value times weight and offset: rounded before that too, or only afterwards.
template <class T>
INLINE Floats weighted(Floats normed, Floats weight, float offset, bool is_rounded_once) {
    if (!is_rounded_once) normed = rounded<T>(normed);
    return normed * (weight + offset);
}

template <class T>
static void rms_norm_row(const NormCall& call, const T* row, T* out, float inverse) {
    const T* weight = static_cast<const T*>(call.weight);
    const float offset = float(call.weight_offset);
    const bool is_rounded_once = call.kind == RMS_ROUNDED_ONCE;
    each_vector(call.columns, [&] VECTOR_OF(i, count) {
        Floats normed = widened(row + i, count) * inverse;
        Floats factor = widened(weight + i, count);
        narrow(out + i, weighted<T>(normed, factor, offset, is_rounded_once), count);
    });
}

template <class T>
static void layer_norm_row(const NormCall& call, const T* row, T* out, float sum) {
    const T* weight = static_cast<const T*>(call.weight);
    const T* bias = static_cast<const T*>(call.bias);
    const float mean = sum / float(call.columns);
    float squares = row_sum(call.columns, [&] VECTOR_OF(i, count) {
        Floats centered = widened(row + i, count) - mean;
        if (count < LANES) centered = first_lanes(centered, count);
        return centered * centered;
    });
    const float inverse = inverse_root(squares, call.columns, call.epsilon);
    each_vector(call.columns, [&] VECTOR_OF(i, count) {
        Floats normed = (widened(row + i, count) - mean) * inverse * widened(weight + i, count);
        if (bias != nullptr) normed += widened(bias + i, count);
        narrow(out + i, normed, count);
    });
}

template <class T>
static void norm_rows(const NormCall& call, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; r++) {
        const int64_t start = r * call.columns;
        const bool is_layer = call.kind == LAYER;
        float sum = row_sum(call.columns, [&] VECTOR_OF(i, count) {
            Floats value = summed<T>(call, start + i, count);
            return is_layer ? value : value * value;
        });
        const void* summed_rows = call.residual == nullptr ? call.x : call.sum;
        const T* row = static_cast<const T*>(summed_rows) + start;
        T* out = static_cast<T*>(call.out) + start;
        if (is_layer)
            layer_norm_row(call, row, out, sum);
        else
            rms_norm_row(call, row, out, inverse_root(sum, call.columns, call.epsilon));
    }
}

static void norm(const NormCall& call, int64_t first, int64_t end) {
    call.type == FLOAT32 ? norm_rows<float>(call, first, end) : norm_rows<Bf16>(call, first, end);
}
