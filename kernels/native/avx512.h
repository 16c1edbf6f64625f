// Vectors of 16 float32 in a register of AVX-512.
//
// Included once per variant, after its target, within its namespace.

#define LANES 16

inline __attribute__((always_inline)) __m512 fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}
