// Words of 16 or fewer rows to columns.

// The first `columns` words of `count` rows to `to`: `stride` words from a column to the next.
INLINE void transpose(const uint32_t* const* rows, int count, int64_t columns, uint32_t* to,
                      int64_t stride) {
    const __mmask16 used = __mmask16((1u << count) - 1);
    for (int64_t column = 0; column < columns; column += 16) {
        int width = columns - column < 16 ? int(columns - column) : 16;
        __mmask16 mask = __mmask16((1u << width) - 1);
        __m512i a[16], b[16];
        for (int i = 0; i < 16; i++)
            a[i] = i < count ? _mm512_maskz_loadu_epi32(mask, rows[i] + column)
                             : _mm512_setzero_si512();
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; j++) {
                a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
                a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
            }
        // a[4 * i + j]: columns j, j + 4, j + 8, j + 12 of rows 4 * i .. 4 * i + 3.
        for (int i = 0; i < 16; i += 8)
            for (int j = 0; j < 4; j++) {
                b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
                b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
            }
        for (int j = 0; j < 8; j++) {
            a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88);
            a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd);
        }
        for (int i = 0; i < 16; i++)
            if (i < width) _mm512_mask_storeu_epi32(to + (column + i) * stride, used, a[i]);
    }
}
