// A model in software of the tile registers (kernels/native/amx_tiles.h), for processors without:
// it aborts on what a processor would refuse, and on reading a tile that was never loaded.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace quire {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as ldtilecfg reads it");

struct Tile {
    int rows = 0, bytes = 0;
    bool is_loaded = false;
    float sums[16][16];
};

thread_local Tile tiles[8];

inline void expect(bool is_so, const char* what) {
    if (is_so) return;
    std::printf("tiles: %s\n", what);
    std::fflush(stdout);
    std::abort();
}

inline void load_config(const TileConfig& config) {
    expect(config.palette == 1 && config.start_row == 0, "palette");
    for (uint8_t byte : config.reserved) expect(byte == 0, "reserved bytes");
    for (int i = 8; i < 16; i++) expect(config.bytes[i] == 0 && config.rows[i] == 0, "tile number");
    for (int i = 0; i < 8; i++) {
        expect(config.bytes[i] <= 64 && config.rows[i] <= 16, "size");
        expect((config.bytes[i] == 0) == (config.rows[i] == 0), "half a size");
        tiles[i] = Tile{};
        tiles[i].rows = config.rows[i], tiles[i].bytes = config.bytes[i];
    }
}

inline void release_tiles() {
    for (Tile& tile : tiles) tile = Tile{};
}

template <int TILE>
void load_tile(const void* from, int64_t stride) {
    expect(tiles[TILE].rows > 0, "load without a configuration");
    for (int row = 0; row < tiles[TILE].rows; row++)
        std::memcpy(tiles[TILE].sums[row], static_cast<const char*>(from) + row * stride,
                    tiles[TILE].bytes);
    tiles[TILE].is_loaded = true;
}

template <int TILE>
void store_tile(void* to, int64_t stride) {
    expect(tiles[TILE].is_loaded, "store of nothing");
    for (int row = 0; row < tiles[TILE].rows; row++)
        std::memcpy(static_cast<char*>(to) + row * stride, tiles[TILE].sums[row],
                    tiles[TILE].bytes);
}

inline float half_of(float pair, int which) {
    uint32_t bits;
    std::memcpy(&bits, &pair, 4);
    bits = which ? bits & 0xffff0000 : bits << 16;
    std::memcpy(&pair, &bits, 4);
    return pair;
}

template <int SUMS, int A, int B>
void multiply_tiles() {
    Tile &sums = tiles[SUMS], &a = tiles[A], &b = tiles[B];
    expect(sums.is_loaded && a.is_loaded && b.is_loaded, "product of nothing");
    expect(sums.rows == a.rows && sums.bytes == b.bytes && a.bytes == b.rows * 4, "sizes differ");
    for (int row = 0; row < sums.rows; row++)
        for (int pair = 0; pair < b.rows; pair++)
            for (int column = 0; column < b.bytes / 4; column++)
                for (int which = 0; which < 2; which++)
                    sums.sums[row][column] +=
                        half_of(a.sums[row][pair], which) * half_of(b.sums[pair][column], which);
}

template <int SUMS, int A, int B>
void multiply_int8_tiles() {
    Tile &sums = tiles[SUMS], &a = tiles[A], &b = tiles[B];
    expect(sums.is_loaded && a.is_loaded && b.is_loaded, "product of nothing");
    expect(sums.rows == a.rows && sums.bytes == b.bytes && a.bytes == b.rows * 4, "sizes differ");
    for (int row = 0; row < sums.rows; row++)
        for (int word = 0; word < b.rows; word++)
            for (int column = 0; column < b.bytes / 4; column++) {
                int8_t left[4], right[4];
                std::memcpy(left, &a.sums[row][word], 4);
                std::memcpy(right, &b.sums[word][column], 4);
                int32_t sum;
                std::memcpy(&sum, &sums.sums[row][column], 4);
                for (int which = 0; which < 4; which++) sum += left[which] * right[which];
                std::memcpy(&sums.sums[row][column], &sum, 4);
            }
}

inline bool may_use_tiles() { return true; }

}  // namespace
}  // namespace quire
