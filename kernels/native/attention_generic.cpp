// The variant for any processor: 128-bit vectors as the compiler lowers them.
#include "attention.h"

#include "quad.h"

namespace quire {
namespace {

constexpr int MAX_ROWS = 4, MAX_VECTORS = 2;

inline float max_of(Quad vector) {
    float result = vector[0];
    for (int i = 1; i < LANES; i++) result = result > vector[i] ? result : vector[i];
    return result;
}

#include "vectors.h"

#include "attention_steps.h"

using Bf16Steps = Float32Steps;

INLINE void transpose(const uint32_t* const* rows, int count, int64_t columns, uint32_t* to,
                      int64_t stride) {
    for (int64_t column = 0; column < columns; column++)
        for (int row = 0; row < count; row++) to[column * stride + row] = rows[row][column];
}

#include "multiply.h"

#include "attention_tile.h"

}  // namespace

const Variant GENERIC_VARIANT = {attend, merge};

}  // namespace quire
