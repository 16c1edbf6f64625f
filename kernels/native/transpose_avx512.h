// Sixteen rows of `columns` (a multiple of 4) to columns of BLOCK_KEYS.
static void transpose(const uint32_t* rows, int columns, uint32_t* to) {
    for (int column = 0; column < columns; column += 16) {
        int width = columns - column < 16 ? columns - column : 16;
        __mmask16 mask = __mmask16((1u << width) - 1);
        __m512i a[16], b[16];
        for (int i = 0; i < 16; i++)
            a[i] = _mm512_maskz_loadu_epi32(mask, rows + i * columns + column);
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
            if (i < width) _mm512_storeu_si512(to + (column + i) * BLOCK_KEYS, a[i]);
    }
}
