// The tile registers of AMX. Unlike the compiler's own functions these tell it that memory is read.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace quire {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];  // of a row of each tile
    uint8_t rows[16];
};

inline __attribute__((always_inline)) void load_config(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config));
}

inline __attribute__((always_inline)) void release_tiles() { asm volatile("tilerelease"); }

template <int TILE>
inline __attribute__((always_inline)) void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline __attribute__((always_inline)) void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

// sums += a * b, of pairs of bfloat16
template <int SUMS, int A, int B>
inline __attribute__((always_inline)) void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

// sums += a * b, of four int8
template <int SUMS, int A, int B>
inline __attribute__((always_inline)) void multiply_int8_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

// Whether processor and kernel keep tiles, which the kernel does for a process that asks.
inline bool may_use_tiles() {
    constexpr unsigned HAS_XGETBV = 1u << 27, HAS_BF16 = 1u << 22, HAS_TILES = 1u << 24,
                       HAS_INT8 = 1u << 25;
    constexpr unsigned TILE_STATES = 3u << 17;
    constexpr long ASK_FOR_STATE = 0x1023, TILE_DATA = 18;  // asm/prctl.h
    unsigned a, b, c, d, states, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & HAS_XGETBV)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & HAS_BF16) || !(d & HAS_TILES) ||
        !(d & HAS_INT8))
        return false;
    asm volatile("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
    return (states & TILE_STATES) == TILE_STATES &&
           syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
}

}  // namespace
}  // namespace quire
