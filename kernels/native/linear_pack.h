// Lays out rows of a linear layer's weights in panels, each thread some of them.
//
// Neighbouring features that stay neighbours (a run) move as one word. In most layouts a panel is its
// rows transposed, word by word; that is done in blocks of 16 bytes by as many rows, in registers.
#pragma once

#include <cstring>
#include <utility>

#include "linear.h"

namespace quire {

constexpr int STRETCH_BYTES = 512;  // of a row, that are laid out together: caches hold a panel's
constexpr int CACHE_LINE = 64;

// Rows of the weights [out_features, in_features], as they are stored.
struct StoredRows {
    const void* from;
    int64_t first, count;

    bool has(int64_t row) const { return first <= row && row < first + count; }
};

// The place of each element of a step, by columns.
struct Places {
    int step, run, of[MAX_COLUMNS * MAX_STEP];
    bool is_transposed = true;  // word by word: all columns of the first, then of the second, ...

    explicit Places(const LinearLayout& layout) : step(layout.step), run(layout.step) {
        const int size = step * layout.columns;
        for (int i = 0; i < size; i++) of[i] = layout.place(i % step, i / step);
        while (run * layout.element_size > 8 || !has_runs(size)) run /= 2;
        for (int i = 0; i < size; i += run)
            is_transposed &= of[i] == i % step * layout.columns + i / step * run;
    }

  private:
    bool has_runs(int size) const {
        for (int i = 0; i < size; i++)
            if (i % run && of[i] != of[i - 1] + 1) return false;
        return step % run == 0;
    }
};

template <class Word>
struct Block {
    static constexpr int SIZE = 16 / sizeof(Word);
    typedef Word Vector __attribute__((vector_size(16)));

    // a[0], b[0], a[1], b[1], ...: of the first halves, or of the second.
    template <int HALF, int... I>
    static Vector interleaved(Vector a, Vector b, std::integer_sequence<int, I...>) {
#ifdef __clang__
        return __builtin_shufflevector(a, b, (I % 2 * SIZE + HALF * SIZE / 2 + I / 2)...);
#else
        return __builtin_shuffle(a, b, Vector{Word(I % 2 * SIZE + HALF * SIZE / 2 + I / 2)...});
#endif
    }

    // SIZE words of each of SIZE rows, `stride` bytes apart, to SIZE columns; `flips` are turned over.
    static void transpose(const char* from, int64_t stride, char* to, int64_t to_stride,
                          Word flips) {
        constexpr std::make_integer_sequence<int, SIZE> all;
        Vector a[SIZE], b[SIZE];
        for (int i = 0; i < SIZE; i++) std::memcpy(&a[i], from + i * stride, sizeof(Vector));
        for (int round = 1; round < SIZE; round *= 2) {
            for (int i = 0; i < SIZE / 2; i++) {
                b[2 * i] = interleaved<0>(a[i], a[i + SIZE / 2], all);
                b[2 * i + 1] = interleaved<1>(a[i], a[i + SIZE / 2], all);
            }
            for (int i = 0; i < SIZE; i++) a[i] = b[i];
        }
        for (int i = 0; i < SIZE; i++) {
            a[i] ^= flips;
            std::memcpy(to + i * to_stride, &a[i], sizeof(Vector));
        }
    }
};

// The columns of one panel that are among some rows.
struct Panel {
    const LinearWeights& weights;
    const LinearLayout& layout;
    const Places& places;
    const StoredRows& rows;
    int64_t first;  // of its columns
    char* to;

    Panel(const LinearWeights& weights, const LinearLayout& layout, const Places& places,
          const StoredRows& rows, int64_t number)
        : weights(weights), layout(layout), places(places), rows(rows),
          first(number * layout.columns),
          to(static_cast<char*>(weights.packed) +
             number * layout.panel_bytes(weights.in_features)) {}

    void pack() const {
        switch (places.run * layout.element_size) {
            case 8: return pack_words<uint64_t>();
            case 4: return pack_words<uint32_t>();
            case 2: return pack_words<uint16_t>();
            default: return pack_words<uint8_t>();
        }
    }

  private:
    const char* row(int column) const {
        const int64_t bytes = weights.in_features * layout.element_size;
        return static_cast<const char*>(rows.from) + (first + column - rows.first) * bytes;
    }

    template <class Word>
    Word flips() const {
        return Word(Word(~Word(0)) / 0xff * layout.flipped);
    }

    template <class Word>
    void copy_flipped(const char* from, char* place) const {
        Word word;
        std::memcpy(&word, from, sizeof(Word));
        word ^= flips<Word>();
        std::memcpy(place, &word, sizeof(Word));
    }

    template <class Word>
    void pack_words() const {
        const int64_t words = weights.in_features / layout.step * layout.step / places.run;
        const int64_t most = STRETCH_BYTES / sizeof(Word);
        for (int64_t start = 0; start < words; start += most)
            pack_stretch<Word>(start, start + most < words ? start + most : words);
        pad(words * places.run);
    }

    template <class Word>
    void pack_stretch(int64_t start, int64_t end) const {
        constexpr int SIZE = Block<Word>::SIZE;
        for (int column = 0; column < layout.columns;) {
            const bool is_block = places.is_transposed && column % SIZE == 0 &&
                                  column + SIZE <= layout.columns && rows.has(first + column) &&
                                  rows.has(first + column + SIZE - 1);
            const int count = is_block ? SIZE : 1;
            int64_t word = start;
            if (is_block) {
                fetch_next(column, SIZE, end * sizeof(Word));
                for (; word + SIZE <= end; word += SIZE) move_block<Word>(column, word);
            }
            for (int i = 0; i < count; i++)
                if (rows.has(first + column + i)) move_words<Word>(column + i, word, end);
            column += count;
        }
    }

    template <class Word>
    void move_block(int column, int64_t word) const {
        const int64_t width = layout.columns * sizeof(Word);
        Block<Word>::transpose(row(column) + word * sizeof(Word),
                               weights.in_features * layout.element_size,
                               to + word * width + column * sizeof(Word), width, flips<Word>());
    }

    // Processors follow few rows by themselves.
    void fetch_next(int column, int count, int64_t offset) const {
        for (int i = 0; i < count; i++)
            for (int line = 0; line < STRETCH_BYTES; line += CACHE_LINE)
                __builtin_prefetch(row(column + i) + offset + line);
    }

    template <class Word>
    void move_words(int column, int64_t start, int64_t end) const {
        const int in_step = layout.step / places.run;
        const int64_t step_bytes = int64_t(layout.step) * layout.columns * layout.element_size;
        for (int i = 0; i < in_step; i++) {
            const int64_t first_step = (start - i + in_step - 1) / in_step;
            const int place = places.of[column * layout.step + i * places.run];
            const char* from = row(column) + (first_step * in_step + i) * sizeof(Word);
            char* at = to + first_step * step_bytes + place * layout.element_size;
            for (int64_t word = first_step * in_step + i; word < end; word += in_step) {
                copy_flipped<Word>(from, at);
                from += in_step * sizeof(Word);
                at += step_bytes;
            }
        }
    }

    // The last step where it is not full, and after the last row of all: elements, and zeros.
    void pad(int64_t begin) const {
        const bool has_last = rows.has(weights.out_features - 1);
        const int64_t width = weights.in_features, end = layout.steps(width) * layout.step;
        const int size = layout.element_size;
        for (int column = 0; column < layout.columns; column++) {
            const bool is_inside = rows.has(first + column);
            if (!is_inside && (!has_last || first + column < weights.out_features)) continue;
            for (int64_t k = is_inside ? begin : 0; k < end; k++) {
                const int place = places.of[column * layout.step + k % layout.step];
                char* element = to + (k / layout.step * layout.step * layout.columns + place) * size;
                if (is_inside && k < width)
                    for (int i = 0; i < size; i++)
                        copy_flipped<uint8_t>(row(column) + k * size + i, element + i);
                else
                    std::memset(element, 0, size);
            }
        }
    }
};

// Row `number` of the weights, as it was before it was laid out, to `to`.
template <class Word>
void read_row(const LinearWeights& weights, const LinearLayout& layout, const Places& places,
              int64_t number, char* to) {
    const int size = layout.element_size, in_step = layout.step / places.run;
    const int64_t width = weights.in_features, words = width / places.run;
    const int64_t step_bytes = int64_t(layout.step) * layout.columns * size;
    const int column = int(number % layout.columns);
    const char* panel = static_cast<const char*>(weights.packed) +
                        number / layout.columns * layout.panel_bytes(width);
    for (int i = 0; i < in_step; i++) {
        const char* from = panel + places.of[column * layout.step + i * places.run] * size;
        for (int64_t word = i; word < words; word += in_step, from += step_bytes)
            std::memcpy(to + word * sizeof(Word), from, sizeof(Word));
    }
    for (int64_t k = words * places.run; k < width; k++) {
        const int place = places.of[column * layout.step + k % layout.step];
        std::memcpy(to + k * size, panel + k / layout.step * step_bytes + place * size, size);
    }
}

}  // namespace quire
