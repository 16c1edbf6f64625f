// The variant for any processor: 128-bit vectors as the compiler lowers them.
#include "linear.h"

namespace quire {
namespace {

#define LANES 4
constexpr int MAX_ROWS = 4, VECTORS = 2, COLUMNS = VECTORS * LANES;

typedef float Quad __attribute__((vector_size(LANES * 4)));

// Two roundings: not every processor has a fused instruction.
inline Quad fma(Quad a, Quad b, Quad c) { return a * b + c; }

#include "vectors.h"

// Four stored weights as float32.
template <class Stored>
INLINE Floats widened(const Stored* from) {
    Floats result;
    for (int i = 0; i < LANES; i++) {
        float value;
        convert(value, from[i]);
        result[i] = value;
    }
    return result;
}

struct Float32Products;
using Bf16Products = Float32Products;

#include "linear_tile.h"

}  // namespace

const LinearVariant GENERIC_LINEAR = {layout, pack_rows, run};

}  // namespace quire
