// Activations of rows, plain and gated: the formulas of kernels/activations/reference.py.
//
// Included once per variant, after row_math.h.

// Polynomials of kernels/activations/coefficients.py, highest power first.
constexpr float TANH_TERMS[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                1.33314422036e-1f, -3.33332819422e-1f};
constexpr float ERFC_TERMS[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f,
                                0.27886807f,  -0.18628806f, 0.09678418f, 0.37409196f,
                                1.00002368f,  -1.26551223f};

template <int N>
INLINE Floats polynomial(Floats x, const float (&terms)[N]) {
    Floats result = all(terms[0]);
    for (int i = 1; i < N; i++) result = result * x + terms[i];
    return result;
}

INLINE Floats sigmoid_of(Floats x) { return 1.0f / (exp_of(-x) + 1.0f); }

INLINE Floats tanh_by_parts(Floats x) {
    Floats size = bits_as<Floats>(bits_as<Ints>(x) & 0x7fffffff);
    Floats square = x * x;
    Floats near = polynomial(square, TANH_TERMS) * square * x + x;
    Floats far = 1.0f - 2.0f / (exp_of(size * 2.0f) + 1.0f);
    far = bits_as<Floats>(bits_as<Ints>(far) | (bits_as<Ints>(x) & INT32_MIN));
    return size < 0.625f ? near : far;
}

INLINE Floats gelu_of(Floats x) {
    Floats z = bits_as<Floats>(bits_as<Ints>(x) & 0x7fffffff) * 0.7071067811865476f;
    Floats t = 1.0f / (z * 0.5f + 1.0f);
    Floats tail = t * exp_of(polynomial(t, ERFC_TERMS) - z * z);
    return x * 0.5f * (x > 0.0f ? 2.0f - tail : tail);
}

template <int64_t KIND>
INLINE Floats activated(Floats x) {
    constexpr float DOUBLE = float(2.0 * 0.7978845608028654), CUBE = 0.044715f;
    if constexpr (KIND == SILU) return x * sigmoid_of(x);
    if constexpr (KIND == GELU) return gelu_of(x);
    if constexpr (KIND == GELU_TANH) return x * sigmoid_of((x + (x * x * x) * CUBE) * DOUBLE);
    if constexpr (KIND == GELU_QUICK) return x * sigmoid_of(x * 1.702f);
    if constexpr (KIND == TANH) return tanh_by_parts(x);
    if constexpr (KIND == SIGMOID) return sigmoid_of(x);
    Floats positive = x < 0.0f ? Floats{} : x;
    return KIND == RELU2 ? positive * positive : positive;
}

template <int64_t KIND, class T>
static void activate_rows(const ActivationCall& call, int64_t first, int64_t end) {
    const int64_t columns = call.columns, width = call.is_gated ? 2 * columns : columns;
    for (int64_t r = first; r < end; r++) {
        const T* row = static_cast<const T*>(call.x) + r * width;
        T* out = static_cast<T*>(call.out) + r * columns;
        each_vector(columns, [&] VECTOR_OF(i, count) {
            Floats value = activated<KIND>(widened(row + i, count));
            if (call.is_gated) value *= widened(row + columns + i, count);
            narrow(out + i, value, count);
        });
    }
}

template <int64_t KIND = 0>
static void activate(const ActivationCall& call, int64_t first, int64_t end) {
    if (call.kind != KIND) {
        if constexpr (KIND + 1 < NUM_ACTIVATIONS) activate<KIND + 1>(call, first, end);
    } else if (call.type == FLOAT32) {
        activate_rows<KIND, float>(call, first, end);
    } else {
        activate_rows<KIND, Bf16>(call, first, end);
    }
}
