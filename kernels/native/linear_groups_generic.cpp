// Weights in groups, for any processor: 128-bit vectors as the compiler lowers them.
#include "linear.h"

namespace quire {
namespace {

#define LANES 4
constexpr int MAX_ROWS = 4, VECTORS = 2, COLUMNS = VECTORS * LANES;

typedef float Quad __attribute__((vector_size(LANES * 4)));

// Two roundings: not every processor has a fused instruction.
inline Quad fma(Quad a, Quad b, Quad c) { return a * b + c; }

#include "vectors.h"

struct Float32Numbers;
using Bf16Numbers = Float32Numbers;

#include "linear_groups.h"

}  // namespace

const LinearVariant GENERIC_GROUPS = {layout, pack_rows, run};

}  // namespace quire
