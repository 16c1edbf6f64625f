// Vector arithmetic that is the same source for every instruction set.
//
// Included once per variant, inside a namespace of its own that defines LANES, fma and max_of: code
// compiled for one instruction set must never be linked in place of another's, so that nothing
// here is shared.

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

#define INLINE static inline __attribute__((always_inline))

template <class To, class From>
INLINE To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To result;
    __builtin_memcpy(&result, &value, sizeof(result));
    return result;
}

template <class Vector, class T>
INLINE Vector load(const T* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof(vector));
    return vector;
}

template <class Vector, class T>
INLINE void store(T* to, Vector vector) {
    __builtin_memcpy(to, &vector, sizeof(vector));
}

INLINE Floats all(float value) { return value - Floats{}; }
INLINE Ints all(int32_t value) { return value - Ints{}; }

INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 2 ** x for x <= 0 (Cephes exp2f; NaN stays NaN, 2 ** 0 is 1, below 2 ** -126 is 0).
INLINE Floats exp2_of(Floats x) {
    const Floats lowest = all(-126.0f), magic = all(12582912.0f);
    Floats clamped = x < lowest ? lowest : x;
    Floats shifted = clamped + magic;
    Floats part = clamped - (shifted - magic);
    Floats result = all(1.535336188319500e-4f);
    result = fma(result, part, all(1.339887440266574e-3f));
    result = fma(result, part, all(9.618437357674640e-3f));
    result = fma(result, part, all(5.550332471162809e-2f));
    result = fma(result, part, all(2.402264791363012e-1f));
    result = fma(result, part, all(6.931472028550421e-1f));
    result = fma(result, part, all(1.0f));
    Ints exponent = (bits_as<Ints>(shifted) - bits_as<Ints>(magic) + 127) << 23;
    result = result * bits_as<Floats>(exponent);
    return x < lowest ? Floats{} : result;
}

INLINE float exp2_of(float x) { return exp2_of(all(x))[0]; }

// Cephes tanhf.
INLINE Floats tanh_of(Floats x) {
    Floats size = bits_as<Floats>(bits_as<Ints>(x) & 0x7fffffff);
    Floats square = x * x;
    Floats near = all(-5.70498872745e-3f);
    near = fma(near, square, all(2.06390887954e-2f));
    near = fma(near, square, all(-5.37397155531e-2f));
    near = fma(near, square, all(1.33314422036e-1f));
    near = fma(near, square, all(-3.33332819422e-1f));
    near = fma(near * square, x, x);
    Floats small = exp2_of(size * -2.885390081777927f);  // e ** (-2 |x|)
    Floats far = (1.0f - small) / (1.0f + small);
    far = bits_as<Floats>(bits_as<Ints>(far) | (bits_as<Ints>(x) & INT32_MIN));
    return size < 0.625f ? near : far;
}

// Lanes of a vector of keys first .. first + LANES that are in [low, high).
INLINE Ints in_range(int first, int low, int high) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (lane >= low - first) & (lane < high - first);
}

INLINE float sum_of(Floats vector) {
    float lane[LANES];
    store(lane, vector);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

struct Bf16 {
    uint16_t bits;
};
struct Fp8 {
    uint8_t bits;
};

INLINE uint16_t bf16_bits(float value) {
    uint32_t bits = bits_as<uint32_t>(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return uint16_t(value != value ? 0x7fc0 | (bits >> 16) : rounded);
}

// The bfloat16 with the value of a float8_e4m3fn: every one is exact.
INLINE uint16_t bf16_bits(Fp8 value) {
    uint32_t size = value.bits & 0x7f;
    uint32_t subnormal = bits_as<uint32_t>(float(int32_t(size)) * 0x1p-9f) >> 16;
    uint32_t bits = size < 8 ? subnormal : (size << 4) + (120 << 7);
    bits = size == 0x7f ? 0x7fc0 : bits;
    return uint16_t(bits | (value.bits & 0x80u) << 8);
}

INLINE void convert(float& to, float from) { to = from; }
INLINE void convert(float& to, int8_t from) { to = from; }
INLINE void convert(float& to, Bf16 from) { to = bits_as<float>(uint32_t(from.bits) << 16); }
INLINE void convert(float& to, Fp8 from) { to = bits_as<float>(uint32_t(bf16_bits(from)) << 16); }
INLINE void convert(Bf16& to, Bf16 from) { to = from; }
INLINE void convert(Bf16& to, Fp8 from) { to.bits = bf16_bits(from); }
INLINE void convert(Bf16& to, float from) { to.bits = bf16_bits(from); }

template <class To, class From>
INLINE void convert_row(To* to, const From* from, int count) {
    for (int i = 0; i < count; i++) convert(to[i], from[i]);
}
