// Every row op, once per variant: in a namespace that defines LANES, fma, max_of and any_of.

#include "vectors.h"

#include "row_math.h"

#include "norm.h"

#include "rope.h"

#include "activation.h"

#include "embedding.h"

#include "logits.h"

#include "mixture.h"

#include "sampling_passes.h"

#define ROW_VARIANT                                                          \
    {                                                                        \
        norm, rope, activate<>, embed, mask, route, gate, combine, widen,    \
        is_invalid, {                                                        \
            first_greatest, distances, collect, masses, race                 \
        }                                                                    \
    }
