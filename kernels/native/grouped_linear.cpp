// Linear layers of equal layout in one call: the experts of a mixture, the heads of an attention.
#include <cstdlib>
#include <cstring>

#include "linear_call.h"

extern "C" int quire_grouped_linear(const quire::GroupedLinearCall*);

namespace quire {
namespace {

// Whether one plan serves both.
bool are_alike(const LinearWeights& a, const LinearWeights& b) {
    return a.out_features == b.out_features && a.in_features == b.in_features &&
           a.type == b.type && a.weight_type == b.weight_type &&
           a.activation_type == b.activation_type && a.group_size == b.group_size &&
           a.instruction_set == b.instruction_set &&
           (a.offsets == nullptr) == (b.offsets == nullptr);
}

// Whether groups name rows and matrices that there are.
bool has_groups(const GroupedLinearCall& call) {
    if (call.starts == nullptr) return true;
    if (call.starts[0] != 0 || call.starts[call.count] > call.rows) return false;
    for (int64_t group = 0; group < call.count; group++)
        if (call.starts[group + 1] < call.starts[group] || call.ids[group] >= call.count)
            return false;
    if (call.order != nullptr)
        for (int64_t row = 0; row < call.rows; row++)
            if (call.order[row] < 0 || call.order[row] / call.top_k >= call.x_rows) return false;
    return true;
}

// Of the grouped order, `place` to `end`.
void clear_rows(const GroupedLinearCall& call, int64_t place, int64_t end) {
    const int64_t bytes = call.y_stride * width_of(call.weights->type);
    char* y = static_cast<char*>(call.y);
    if (place < end) std::memset(y + place * bytes, 0, (end - place) * bytes);
}

// The parts of the groups that have rows and a layer; rows without a layer become zero.
int64_t parts_of_groups(const GroupedLinearCall& call, Part* parts) {
    const int64_t width = width_of(call.weights->type);
    const int64_t x_bytes = call.x_stride * width, y_bytes = call.y_stride * width;
    const char* x = static_cast<const char*>(call.x);
    char* y = static_cast<char*>(call.y);
    int64_t count = 0, place = 0;
    for (int64_t group = 0; group < call.count; group++) {
        const int64_t start = call.starts[group], rows = call.starts[group + 1] - start;
        if (rows == 0 || call.ids[group] < 0) continue;
        clear_rows(call, place, start);
        place = start + rows;
        parts[count++] = {call.weights + call.ids[group],
                          call.order == nullptr ? x + start * x_bytes : x,
                          call.order == nullptr ? nullptr : call.order + start,
                          y + start * y_bytes, rows};
    }
    clear_rows(call, place, call.rows);
    return count;
}

// A part for each layer, of all rows.
int64_t parts_of_layers(const GroupedLinearCall& call, Part* parts) {
    const int64_t width = width_of(call.weights->type);
    if (call.rows == 0) return 0;
    for (int64_t i = 0; i < call.count; i++)
        parts[i] = {call.weights + i, static_cast<const char*>(call.x) + i * call.x_step * width,
                    nullptr,
                    static_cast<char*>(call.y) + i * call.weights->out_features * width, call.rows};
    return call.count;
}

}  // namespace
}  // namespace quire

using namespace quire;

EXPORT int quire_grouped_linear(const GroupedLinearCall* given) {
    const GroupedLinearCall& call = *given;
    const LinearWeights& first = *call.weights;
    const LinearVariant* variant = variant_of(first);
    if (variant == nullptr || call.threads < 1 || call.rows < 0 || call.count < 1 || call.top_k < 1)
        return BAD_CALL;
    for (int64_t i = 0; i < call.count; i++)
        if (!is_sound(call.weights[i]) || !are_alike(call.weights[i], first)) return BAD_CALL;
    if (!has_groups(call)) return BAD_BATCH;
    // Never empty: the last one has the totals.
    Part* parts = static_cast<Part*>(std::calloc(size_t(call.count) + 1, sizeof(Part)));
    if (parts == nullptr) return NO_MEMORY;
    const int64_t count =
        call.starts == nullptr ? parts_of_layers(call, parts) : parts_of_groups(call, parts);
    int status = OK;
    if (count > 0) {
        Call work{*variant, variant->layout(first), parts, count, first.in_features,
                  call.x_stride * width_of(first.type), call.y_stride, call.top_k};
        status = work.run(call.threads);
    }
    std::free(parts);
    return status;
}
