// Products of packed matrices, of 32-bit elements that a Steps type multiplies and sums.
//
// Included once per variant, after vectors.h. An element of c is one sum over the steps in their
// order, however many rows and vectors are computed together.

struct Matrix {
    uint32_t* data;
    int stride;
};

// c[R][V vectors] (+)= a[R][steps] * b[steps][V vectors]
template <class Steps, int R, int V, bool FROM_ZERO>
INLINE void multiply(Matrix a, Matrix b, float* c, int c_stride, int steps) {
    Floats sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            sum[r][v] = FROM_ZERO ? Floats{} : load<Floats>(c + r * c_stride + v * LANES);
    for (int step = 0; step < steps; step++) {
        Ints column[V];
        for (int v = 0; v < V; v++) column[v] = load<Ints>(b.data + step * b.stride + v * LANES);
        for (int r = 0; r < R; r++) {
            Ints value = all(int32_t(a.data[r * a.stride + step]));
            for (int v = 0; v < V; v++)
                sum[r][v] = Steps::multiply_add(value, column[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + r * c_stride + v * LANES, sum[r][v]);
}

template <class Steps, int R, bool FROM_ZERO>
static void multiply_rows(Matrix a, Matrix b, float* c, int c_stride, int steps, int vectors) {
    for (; vectors >= MAX_VECTORS; vectors -= MAX_VECTORS) {
        multiply<Steps, R, MAX_VECTORS, FROM_ZERO>(a, b, c, c_stride, steps);
        b.data += MAX_VECTORS * LANES;
        c += MAX_VECTORS * LANES;
    }
    for (; vectors > 0; vectors--) {
        multiply<Steps, R, 1, FROM_ZERO>(a, b, c, c_stride, steps);
        b.data += LANES;
        c += LANES;
    }
}

template <class Steps, bool FROM_ZERO, int R = MAX_ROWS>
INLINE void multiply_any(int rows, Matrix a, Matrix b, float* c, int c_stride, int steps,
                         int vectors) {
    if constexpr (R == 1) {
        multiply_rows<Steps, 1, FROM_ZERO>(a, b, c, c_stride, steps, vectors);
    } else if (rows == R) {
        multiply_rows<Steps, R, FROM_ZERO>(a, b, c, c_stride, steps, vectors);
    } else {
        multiply_any<Steps, FROM_ZERO, R - 1>(rows, a, b, c, c_stride, steps, vectors);
    }
}

// The next rows to multiply together, when `left` are left: equal shares of at most MAX_ROWS.
INLINE int next_rows(int left) {
    int parts = (left + MAX_ROWS - 1) / MAX_ROWS;
    return (left + parts - 1) / parts;
}
