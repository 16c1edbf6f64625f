// Vectors of four float32, which the compiler lowers for any processor.
#pragma once

#ifdef __aarch64__
#include <arm_neon.h>
#endif

#define LANES 4

namespace quire {
namespace {

typedef float Quad __attribute__((vector_size(LANES * 4)));

#ifdef __aarch64__
inline Quad fma(Quad a, Quad b, Quad c) { return Quad(vfmaq_f32(c, a, b)); }
#else
// Two roundings: not every processor has a fused instruction.
inline Quad fma(Quad a, Quad b, Quad c) { return a * b + c; }
#endif

}  // namespace
}  // namespace quire
