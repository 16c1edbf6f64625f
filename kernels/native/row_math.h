// Rows as vectors of float32, whatever they are stored as, and functions of such vectors.
//
// Included once per variant, after vectors.h, wide_words and low_halves. Every function is
// elementwise: an element's bits do not depend on its lane.

typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

template <class T>
constexpr int BYTES = int(sizeof(T));

INLINE Floats widened(const float* from) { return load<Floats>(from); }
INLINE Floats widened(const Bf16* from) {
    return bits_as<Floats>(bits_as<Words>(wide_words(load<Halves>(from))) << 16);
}

// The bits of the nearest bfloat16, in the low halves.
INLINE Words nearest_bf16(Floats value) {
    Words bits = bits_as<Words>(value);
    Words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words not_a_number = 0x7fc0 | (bits >> 16);
    return value != value ? not_a_number : nearest;
}

INLINE void narrow(float* to, Floats value) { store(to, value); }
INLINE void narrow(Bf16* to, Floats value) {
    store(to, low_halves(bits_as<WideWords>(nearest_bf16(value))));
}

// The value that a T would keep.
template <class T>
INLINE Floats rounded(Floats value) {
    if constexpr (__is_same(T, float)) return value;
    return bits_as<Floats>(nearest_bf16(value) << 16);
}

// The first `count` < LANES elements, zero behind them.
template <class T>
INLINE Floats widened_part(const T* from, int64_t count) {
    T whole[LANES] = {};
    __builtin_memcpy(whole, from, count * BYTES<T>);
    return widened(whole);
}

template <class T>
INLINE void narrow_part(T* to, Floats value, int64_t count) {
    T whole[LANES];
    narrow(whole, value);
    __builtin_memcpy(to, whole, count * BYTES<T>);
}

// `count` elements at once: all lanes, or the last of a row.
template <class T>
INLINE Floats widened(const T* from, int64_t count) {
    return count == LANES ? widened(from) : widened_part(from, count);
}
template <class T>
INLINE void narrow(T* to, Floats value, int64_t count) {
    count == LANES ? narrow(to, value) : narrow_part(to, value, count);
}

// The first lanes, zero behind them.
INLINE Floats first_lanes(Floats value, int64_t count) {
    return bits_as<Floats>(bits_as<Ints>(value) & in_range(0, 0, int(count)));
}

// Calls `apply(first, count)` for the vectors of a row.
template <class Apply>
INLINE void each_vector(int64_t columns, Apply apply) {
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) apply(i, LANES);
    if (i < columns) apply(i, columns - i);
}

// The sum of `value(first, count)` over the vectors of a row, in an order that its length decides.
template <class Value>
INLINE float row_sum(int64_t columns, Value value) {
    Floats sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= columns; i += 4 * LANES)
        for (int part = 0; part < 4; part++) sums[part] += value(i + part * LANES, LANES);
    for (; i + LANES <= columns; i += LANES) sums[0] += value(i, LANES);
    if (i < columns) sums[0] += value(i, columns - i);
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

#define VECTOR_OF(i, count) (int64_t i, int64_t count) __attribute__((always_inline))

// e ** x (Cephes expf).
INLINE Floats exp_of(Floats x) {
    const Floats lowest = all(-104.0f), highest = all(89.0f), magic = all(12582912.0f);
    Floats clamped = x < lowest ? lowest : x;
    clamped = clamped > highest ? highest : clamped;
    Floats shifted = fma(clamped, all(1.44269504088896341f), magic);
    Floats power = shifted - magic;
    Floats rest = fma(power, all(-0.693359375f), clamped);
    rest = fma(power, all(2.12194440e-4f), rest);
    Floats result = all(1.9875691500e-4f);
    result = fma(result, rest, all(1.3981999507e-3f));
    result = fma(result, rest, all(8.3334519073e-3f));
    result = fma(result, rest, all(4.1665795894e-2f));
    result = fma(result, rest, all(1.6666665459e-1f));
    result = fma(result, rest, all(5.0000001201e-1f));
    result = fma(result, rest * rest, rest) + 1.0f;
    // Twice a root of 2 ** exponent, which need not be a normal number itself.
    Ints exponent = bits_as<Ints>(shifted) - bits_as<Ints>(magic);
    Ints half = exponent >> 1;
    result = result * bits_as<Floats>((half + 127) << 23);
    return result * bits_as<Floats>((exponent - half + 127) << 23);
}

// The natural logarithm of a normal number above 0 (Cephes logf).
INLINE Floats log_of(Floats x) {
    const int32_t root = 0x3f3504f3;  // of 1/2: mantissas from there to the root of 2
    Ints bits = bits_as<Ints>(x) - root;
    Floats power = __builtin_convertvector(bits >> 23, Floats);
    Floats part = bits_as<Floats>((bits & 0x7fffff) + root) - 1.0f;
    Floats square = part * part;
    Floats result = all(7.0376836292e-2f);
    result = fma(result, part, all(-1.1514610310e-1f));
    result = fma(result, part, all(1.1676998740e-1f));
    result = fma(result, part, all(-1.2420140846e-1f));
    result = fma(result, part, all(1.4249322787e-1f));
    result = fma(result, part, all(-1.6668057665e-1f));
    result = fma(result, part, all(2.0000714765e-1f));
    result = fma(result, part, all(-2.4999993993e-1f));
    result = fma(result, part, all(3.3333331174e-1f));
    result = result * part * square;
    result = fma(power, all(-2.12194440e-4f), result);
    result = fma(square, all(-0.5f), result);
    return fma(power, all(0.693359375f), part + result);
}
