// Runs the ops of a mixture on random shapes, with every buffer on the heap at its exact size:
// grouped layers against each layer alone, the others against sums in double. Part of
// native_fuzz.cpp.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "linear.h"
#include "native_fuzz_numbers.h"
#include "rows.h"

extern "C" int64_t quire_best_instruction_set();
extern "C" int64_t quire_linear_instruction_set();
extern "C" int64_t quire_linear_bytes(const quire::LinearWeights*);
extern "C" int quire_linear_pack(const quire::LinearWeights*, const void*, int64_t);
extern "C" int quire_linear(const quire::LinearWeights*, const void*, void*, int64_t, int64_t);
extern "C" int quire_grouped_linear(const quire::GroupedLinearCall*);
extern "C" int quire_router(const quire::RouterCall*);
extern "C" int quire_indices(const quire::IndicesCall*);
extern "C" int quire_gate(const quire::GateCall*);
extern "C" int quire_combine(const quire::CombineCall*);

namespace {

using namespace quire;

struct Indices {
    std::vector<int32_t> ids, order, starts, restore, experts, stats;

    Indices(int64_t pairs, int64_t count)
        : ids(pairs), order(pairs), starts(count + 1), restore(pairs), experts(count), stats(2) {
        const int64_t few = draw(-1, count);
        for (int32_t& id : ids) id = int32_t(draw(0, 1) ? draw(-1, count) : few);
        IndicesCall call{ids.data(),     order.data(),   starts.data(), restore.data(),
                         experts.data(), stats.data(), pairs,         count};
        quire_indices(&call);
    }

    bool are_right() const {
        for (size_t pair = 0; pair < ids.size(); pair++)
            if (order[restore[pair]] != int32_t(pair)) return false;
        int32_t before = -1;
        for (size_t group = 0; group < experts.size(); group++)
            for (int32_t m = starts[group]; experts[group] >= 0 && m < starts[group + 1]; m++) {
                if (ids[order[m]] != experts[group] || experts[group] <= before) return false;
                if (m + 1 == starts[group + 1]) before = experts[group];
            }
        return true;
    }
};

bool grouped_is_right(int64_t set, int64_t type, int64_t weight_type) {
    const int64_t count = draw(1, 7), top_k = draw(1, 3), width = draw(1, 90);
    const int64_t tokens = draw(0, 3) ? draw(0, 20) : draw(150, 250), depth = draw(1, 200);
    const int64_t rows = tokens * top_k;
    const size_t item = type == FLOAT32 ? 4 : 2, stored = weight_type == INT8 ? 1 : item;
    std::vector<std::vector<uint8_t>> packed(count);
    Numbers scales(FLOAT32, width), bias(type, width), x(type, tokens * depth);
    std::vector<LinearWeights> weights(count);
    for (int64_t i = 0; i < count; i++) {
        Numbers numbers(type, width * depth);
        for (uint8_t& byte : numbers.bytes)
            if (stored == 1) byte = uint8_t(draw(1, 255) - 128);
        weights[i] = {nullptr, bias.data(), reinterpret_cast<const float*>(scales.data()), nullptr,
                      width,   depth,       type, weight_type, type, depth, set};
        packed[i].resize(quire_linear_bytes(&weights[i]));
        weights[i].packed = packed[i].data();
        if (quire_linear_pack(&weights[i], numbers.data(), 1) != OK) return false;
    }
    const Indices groups(rows, count);
    if (!groups.are_right()) return false;
    Numbers y(type, rows * width), expected(type, width);
    GroupedLinearCall call{weights.data(), x.data(), y.data(), groups.starts.data(),
                           groups.experts.data(), groups.order.data(), count, rows, tokens, top_k,
                           depth, width, 0, draw(1, 3)};
    if (quire_grouped_linear(&call) != OK) return false;
    for (int64_t m = 0; m < rows; m++) {
        const int32_t pair = groups.order[m], expert = groups.ids[pair];
        std::vector<uint8_t> row(width * item);
        if (expert >= 0 && expert < count)
            quire_linear(&weights[expert], &x.bytes[pair / top_k * depth * item], row.data(), 1, 1);
        if (std::memcmp(&y.bytes[m * row.size()], row.data(), row.size())) {
            std::printf("set %d, types %d %d: row %d of %d groups is not as alone\n", int(set),
                        int(type), int(weight_type), int(m), int(count));
            return false;
        }
    }
    // Each layer on its part of all rows.
    const int64_t wide = count * depth;
    Numbers parts(type, tokens * wide), all(type, tokens * count * width);
    GroupedLinearCall layers{weights.data(), parts.data(), all.data(), nullptr, nullptr, nullptr,
                             count, tokens, tokens, 1, wide, count * width, depth, draw(1, 3)};
    if (quire_grouped_linear(&layers) != OK) return false;
    for (int64_t i = 0; i < tokens * count; i++) {
        std::vector<uint8_t> row(width * item);
        quire_linear(&weights[i % count], &parts.bytes[i * depth * item], row.data(), 1, 1);
        if (std::memcmp(&all.bytes[i * row.size()], row.data(), row.size())) return false;
    }
    return true;
}

bool routing_is_right(int64_t set, int64_t type) {
    const int64_t groups = draw(0, 1) ? 1 : draw(1, 20), size = draw(2, 25), rows = draw(0, 5);
    const int64_t top_groups = draw(1, groups), top_k = draw(1, top_groups * size);
    Numbers logits(type, rows * groups * size), bias(FLOAT32, groups * size);
    std::vector<float> weights(rows * top_k);
    std::vector<int32_t> chosen(rows * top_k);
    RouterCall call{};
    call.logits = logits.data(), call.weights = weights.data(), call.chosen = chosen.data();
    call.bias = draw(0, 1) ? reinterpret_cast<const float*>(bias.data()) : nullptr;
    call.rows = rows, call.experts = groups * size, call.top_k = top_k, call.type = type;
    call.scoring = draw(0, 2), call.renormalize = 1, call.groups = groups;
    call.top_groups = top_groups, call.sums_two = draw(0, 1), call.scaling = 1;
    call.threads = draw(1, 3), call.instruction_set = set;
    if (quire_router(&call) != OK) return false;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        std::vector<bool> is_taken(groups * size), is_open(groups);
        int64_t open = 0;
        for (int64_t k = r * top_k; k < (r + 1) * top_k; k++) {
            if (chosen[k] < 0 || chosen[k] >= groups * size || is_taken[chosen[k]]) return false;
            is_taken[chosen[k]] = true;
            open += !is_open[chosen[k] / size];
            is_open[chosen[k] / size] = true;
            sum += weights[k];
        }
        if (open > top_groups || !is_near("router", set, type, sum, 1)) return false;
    }
    return true;
}

bool gate_is_right(int64_t set, int64_t type) {
    const int64_t rows = draw(0, 5), columns = draw(1, 60), is_interleaved = draw(0, 1);
    Numbers x(type, rows * 2 * columns), out(type, rows * columns);
    GateCall call{x.data(), out.data(), rows, columns, type, is_interleaved, draw(1, 2), set,
                  1.702,    1.5,        1};
    if (quire_gate(&call) != OK) return false;
    for (int64_t i = 0; i < rows * columns; i++) {
        const int64_t row = i / columns * 2 * columns, column = i % columns;
        double gate = x.at(row + (is_interleaved ? 2 * column : column));
        double up = x.at(row + (is_interleaved ? 2 * column + 1 : columns + column));
        gate = gate > 1.5 ? 1.5 : gate;
        up = up > 1.5 ? 1.5 : up < -1.5 ? -1.5 : up;
        const double wanted = gate / (1 + std::exp(-1.702 * gate)) * (up + 1);
        if (!is_near("gate", set, type, out.at(i), wanted)) return false;
    }
    return true;
}

bool combine_is_right(int64_t set, int64_t type) {
    const int64_t rows = draw(0, 5), top_k = draw(1, 4), columns = draw(1, 60);
    Numbers x(type, rows * top_k * columns), weights(FLOAT32, rows * top_k);
    Numbers out(type, rows * columns);
    std::vector<int32_t> places(rows * top_k);
    for (int32_t& place : places) place = int32_t(draw(0, rows * top_k - 1));
    CombineCall call{x.data(),   places.data(), reinterpret_cast<const float*>(weights.data()),
                     out.data(), rows, top_k, columns, type, draw(1, 2), set};
    if (quire_combine(&call) != OK) return false;
    for (int64_t i = 0; i < rows * columns; i++) {
        double wanted = 0;
        for (int64_t k = 0; k < top_k; k++) {
            const int64_t pair = i / columns * top_k + k;
            wanted += weights.at(pair) * x.at(places[pair] * columns + i % columns);
        }
        if (!is_near("combine", set, type, out.at(i), wanted)) return false;
    }
    return true;
}

}  // namespace

bool fuzz_mixture(int rounds) {
    for (int round = 0; round < rounds; round++)
        for (int64_t type : {FLOAT32, BFLOAT16}) {
            for (int64_t set = 0; set <= quire_linear_instruction_set(); set++)
                for (int64_t weight_type : {type, int64_t(INT8)})
                    if (!grouped_is_right(set, type, weight_type)) return false;
            for (int64_t set = 0; set <= quire_best_instruction_set(); set++)
                if (!routing_is_right(set, type) || !gate_is_right(set, type) ||
                    !combine_is_right(set, type))
                    return false;
        }
    return true;
}
