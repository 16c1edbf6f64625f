// Every row op, once per variant: in a namespace that defines LANES, fma, max_of and any_of.

#include "vectors.h"

#include "row_math.h"

#include "norm.h"

#include "rope.h"

#include "activation.h"

#include "embedding.h"

#include "mixture.h"

#include "sampling_passes.h"

#define ROW_VARIANT                                                    \
    {                                                                  \
        norm, rope, activate<>, embed, mask, route, gate, combine, {   \
            first_greatest, distances, collect, masses, race           \
        }                                                              \
    }
