// The row ops for any processor: 128-bit vectors as the compiler lowers them.
#include "rows.h"

#include "quad.h"

namespace quire {
namespace {

typedef int32_t IntQuad __attribute__((vector_size(LANES * 4)));

inline float max_of(Quad vector) {
    float result = vector[0];
    for (int i = 1; i < LANES; i++) result = result > vector[i] ? result : vector[i];
    return result;
}

// Numbers of 16 bits to 32 bits and back.
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t WideWords __attribute__((vector_size(LANES * 4)));
inline WideWords wide_words(Halves halves) { return __builtin_convertvector(halves, WideWords); }
inline Halves low_halves(WideWords words) { return __builtin_convertvector(words, Halves); }

inline bool any_of(IntQuad lanes) { return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0; }

#include "rows_ops.h"

}  // namespace

const RowVariant GENERIC_ROWS = ROW_VARIANT;

}  // namespace quire
