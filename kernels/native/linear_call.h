// A call of linear layers: cut into tiles, and given to threads.
#pragma once

#include <atomic>
#include <cstdlib>
#include <thread>

#include "linear.h"
#include "threads.h"

namespace quire {

constexpr int64_t TILE_BYTES = 1 << 16;      // weights of a tile, at least
constexpr int64_t SMALL_PRODUCTS = 1 << 16;  // below it a thread would take longer to wake
constexpr int SPINS = 10000;                 // before a thread gives up its processor

const LinearVariant* variant_of(const LinearWeights&);  // or null, without its instructions
bool is_sound(const LinearWeights&);

inline int64_t width_of(int64_t type) { return type == FLOAT32 ? 4 : 2; }

// Rows that are multiplied with the same weights: first those of the call, then its numbering.
struct Part {
    const LinearWeights* weights;
    const char* x;         // its first row; with `order` that of all parts
    const int32_t* order;  // of each row of the part: `per_row` times that of x, or null
    void* y;               // its first row
    int64_t rows;
    int64_t first_row, first_group, first_tile;  // among those of all parts

    int64_t blocks() const { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }
};

// Linear layers of equal layout, each on its own rows: their tiles in one job, so that threads that
// are done with one help with the next.
struct Call {
    const LinearVariant& variant;
    const LinearLayout layout;
    Part* parts;  // `count` with rows, and one behind them that has the totals
    int64_t count, in_features, x_stride, y_stride;  // strides in bytes of x, in elements of y
    int64_t per_row;
    uint32_t* packed_x = nullptr;
    int64_t panels = 0, panel_bytes = 0, together = 0, runs = 0;
    std::atomic<int64_t> next_group{0}, groups_packed{0}, next_tile{0};

    const Part& totals() const { return parts[count]; }

    // Numbers the rows, the groups in which they are packed, and the tiles of all parts.
    void plan(int64_t out_features, int64_t threads) {
        panels = layout.panels(out_features);
        panel_bytes = layout.panel_bytes(in_features);
        int64_t blocks = 0, row = 0, group = 0;
        for (Part* part = parts; part <= parts + count; part++) {
            part->first_row = row, part->first_group = group, part->first_tile = blocks;
            row += part->rows, blocks += part->blocks();
            group += part->rows / BLOCK_ROWS * row_groups(BLOCK_ROWS, layout.max_rows) +
                     row_groups(part->rows % BLOCK_ROWS, layout.max_rows);
        }
        together = (TILE_BYTES + panel_bytes - 1) / panel_bytes;
        int64_t most = panels * blocks / (4 * threads);
        if (together > most) together = most > 1 ? most : 1;
        together = (together + layout.together - 1) / layout.together * layout.together;
        runs = (panels + together - 1) / together;
        for (Part* part = parts; part <= parts + count; part++) part->first_tile *= runs;
    }

    // All rows of x, by the threads that are here by then: one that wakes late holds up none.
    void pack_rows() {
        const int64_t row_words = layout.row_words(in_features);
        const int64_t in_block = row_groups(BLOCK_ROWS, layout.max_rows);
        const Part* part = parts;
        for (int64_t number = next_group++; number < totals().first_group; number = next_group++) {
            while (number >= part[1].first_group) part++;
            const int64_t group = number - part->first_group;
            const int64_t block = group / in_block * BLOCK_ROWS, left = part->rows - block;
            RowGroups rows(left < BLOCK_ROWS ? left : BLOCK_ROWS, layout.max_rows);
            const int64_t first = block + rows.first(group % in_block);
            const int count = rows.count(group % in_block);
            const void* from[MAX_GROUP_ROWS];
            for (int r = 0; r < count; r++)
                from[r] = part->x + x_stride * (part->order == nullptr
                                                    ? first + r
                                                    : part->order[first + r] / per_row);
            variant.pack_rows(*part->weights, from, count,
                              packed_x + (part->first_row + first) * row_words);
            groups_packed++;
        }
        for (int spins = 0; groups_packed < totals().first_group; spins++)
            if (spins > SPINS) std::this_thread::yield();
    }

    const char* weights_of(const Part& part, int64_t number) const {
        return static_cast<const char*>(part.weights->packed) +
               (number - part.first_tile) % runs * together * panel_bytes;
    }

    LinearTile tile_of(const Part& part, int64_t number) const {
        const int64_t tile = number - part.first_tile, row = tile / runs * BLOCK_ROWS;
        const int64_t panel = tile % runs * together, left = part.rows - row;
        return {packed_x + (part.first_row + row) * layout.row_words(in_features), part.y, row,
                left < BLOCK_ROWS ? left : BLOCK_ROWS, panel,
                panels - panel < together ? panels - panel : together, nullptr, y_stride};
    }

    void run_tiles() {
        const int64_t size = totals().first_tile;
        const Part* part = parts;
        // A thread knows its next tile before it computes one, to fetch the weights ahead.
        for (int64_t number = next_tile++, next; number < size; number = next) {
            next = next_tile++;
            while (number >= part[1].first_tile) part++;
            const Part* ahead = part;
            const int64_t following = next < size ? next : number;
            while (following >= ahead[1].first_tile) ahead++;
            LinearTile tile = tile_of(*part, number);
            tile.next = weights_of(*ahead, following);
            variant.run(*part->weights, tile);
        }
    }

    int run(int64_t threads) {
        const LinearWeights& weights = *parts->weights;
        int64_t rows = 0;
        for (int64_t i = 0; i < count; i++) rows += parts[i].rows;
        if (rows * weights.out_features * in_features < SMALL_PRODUCTS) threads = 1;
        plan(weights.out_features, threads);
        const size_t words = size_t(rows) * layout.row_words(in_features);
        packed_x = static_cast<uint32_t*>(std::malloc(words * sizeof(uint32_t)));
        if (packed_x == nullptr) return NO_MEMORY;
        if (threads > totals().first_tile) threads = totals().first_tile;
        run_together(threads, [this] {
            pack_rows();
            run_tiles();
        });
        std::free(packed_x);
        return OK;
    }
};

}  // namespace quire
