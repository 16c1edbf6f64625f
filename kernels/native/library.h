// What every kernel of the library shares: interface, data types, statuses, processors.
#pragma once

#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QUIRE_X86_VARIANTS 1
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace quire {

constexpr int64_t INTERFACE = 6;  // goes up with every change that Python's side must know

enum DataType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT8_E4M3 = 2, INT8 = 3, INT4 = 4 };
enum Status : int { OK = 0, BAD_BATCH = 1, NO_MEMORY = 2, BAD_CALL = 3 };
enum InstructionSet : int64_t {
    GENERIC = 0,
    AVX2 = 1,
    AVX512 = 2,
    AVX512_VNNI = 3,
    AVX512_BF16 = 4,
    NUM_SETS = 5
};

// Whether this processor has the instructions.
inline bool has_instructions(int64_t set) {
#ifdef QUIRE_X86_VARIANTS
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
    if (set == AVX2) return has_avx2;
    bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
    if (set == AVX512) return has_avx512;
    if (set == AVX512_VNNI) return has_vnni;
    if (set == AVX512_BF16)
        return has_vnni && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512bf16");
#endif
    return set == GENERIC;
}

}  // namespace quire
