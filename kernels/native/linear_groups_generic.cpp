// Weights in groups, for any processor: 128-bit vectors as the compiler lowers them.
#include "linear.h"

#include "quad.h"

namespace quire {
namespace {

constexpr int MAX_ROWS = 4, VECTORS = 2, COLUMNS = VECTORS * LANES;

#include "vectors.h"

struct Float32Numbers;
using Bf16Numbers = Float32Numbers;

#include "linear_groups.h"

}  // namespace

const LinearVariant GENERIC_GROUPS = {layout, pack_rows, run};

}  // namespace quire
