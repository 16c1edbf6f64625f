// Vectors of 8 float32 in a register of AVX2.
//
// Included once per variant, after its target, within its namespace.

#define LANES 8

inline __attribute__((always_inline)) __m256 fma(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
}
