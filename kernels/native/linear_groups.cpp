// Chooses the variant for weights in groups, and lays these out.
#include "linear.h"

#include <cstring>

namespace quire {

const LinearVariant* groups_variant_of(int64_t instruction_set) {
#ifdef QUIRE_AMX_VARIANT
    // Tiles would have to be emptied at the end of each group.
    if (instruction_set == AMX_BF16 && has_tiles()) instruction_set = AVX512_BF16;
#endif
    if (!has_instructions(instruction_set)) return nullptr;
#ifdef QUIRE_X86_VARIANTS
    if (instruction_set == AVX2) return &AVX2_GROUPS;
    if (instruction_set == AVX512 || instruction_set == AVX512_VNNI) return &AVX512_GROUPS;
    if (instruction_set == AVX512_BF16) return &AVX512_BF16_GROUPS;
#endif
    return &GENERIC_GROUPS;
}

bool has_groups(const LinearWeights& weights) {
    const int64_t width = weights.in_features, size = weights.group_size;
    const int64_t whole = size == width ? 8 : 16;
    return size > 0 && size % whole == 0 && width % size == 0;
}

// Each group's words, row by row, then its scales and its offsets, so that all are one stream.
void pack_groups(const LinearWeights& weights, const LinearLayout& layout, const uint32_t* from,
                 int64_t panel) {
    const int64_t width = weights.in_features / layout.per_element, columns = layout.columns;
    const int64_t words = weights.group_size / layout.per_element;
    const int64_t first = panel * columns, left = weights.out_features - first;
    const int64_t inside = left < columns ? left : columns;
    uint32_t* to = static_cast<uint32_t*>(weights.packed) +
                   panel * layout.panel_bytes(weights.in_features) / 4;
    for (int64_t group = 0; group < width / words; group++) {
        std::memset(to, 0, words * columns * sizeof(uint32_t));
        for (int64_t column = 0; column < inside; column++) {
            const uint32_t* row = from + (first + column) * width + group * words;
            for (int64_t word = 0; word < words; word++) to[word * columns + column] = row[word];
        }
        to += words * columns;
        for (const float* side : {weights.scales, weights.offsets}) {
            if (side == nullptr) continue;
            std::memset(to, 0, columns * sizeof(float));
            std::memcpy(to, side + group * weights.out_features + first, inside * sizeof(float));
            to += columns;
        }
    }
}

}  // namespace quire
