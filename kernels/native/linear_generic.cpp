// The variant for any processor: 128-bit vectors as the compiler lowers them.
#include "linear.h"

#include "quad.h"

namespace quire {
namespace {

constexpr int MAX_ROWS = 4, VECTORS = 2, COLUMNS = VECTORS * LANES;

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

typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));

INLINE Ints widened_pairs(const int8_t* from) {
    Shorts result;
    for (int i = 0; i < 2 * LANES; i++) result[i] = from[i];
    return bits_as<Ints>(result);
}

// A product of two int8 fits an int16.
INLINE Ints multiply_pairs(Ints a, Ints b) {
    Ints products = bits_as<Ints>(bits_as<Shorts>(a) * bits_as<Shorts>(b));
    return (products << 16 >> 16) + (products >> 16);
}

struct Float32Products;
using Bf16Products = Float32Products;

#include "linear_int8.h"

#include "int8_pairs.h"

#include "linear_tile.h"

}  // namespace

const LinearVariant GENERIC_LINEAR = {layout, pack_rows, run};

}  // namespace quire
