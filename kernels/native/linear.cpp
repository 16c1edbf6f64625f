// Lays out the weights of a linear layer, and finds out which instructions compute it.
#include <cstring>
#ifdef __linux__
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#endif

#include "linear_call.h"
#include "linear_pack.h"
#include "threads.h"

extern "C" {
int64_t quire_best_instruction_set();
int64_t quire_linear_instruction_set();
int64_t quire_linear_bytes(const quire::LinearWeights*);
int quire_linear_pack(const quire::LinearWeights*, const void* from, int64_t threads);
int quire_linear_pack_rows(const quire::LinearWeights*, const void* from, int64_t first,
                           int64_t rows, int64_t threads);
int quire_linear_rows(const quire::LinearWeights*, const int32_t* numbers, int64_t count, void* to,
                      int64_t threads);
int quire_linear(const quire::LinearWeights*, const void* x, void* y, int64_t rows,
                 int64_t threads);
}

namespace quire {

const LinearVariant* variant_of(const LinearWeights& weights) {
    if (is_grouped(weights)) return groups_variant_of(weights.instruction_set);
    int64_t instruction_set = weights.instruction_set;
#ifdef QUIRE_AMX_VARIANT
    static const bool may_use_amx = has_tiles();
    if (instruction_set == AMX_BF16 && may_use_amx) {
        if (weights.type == BFLOAT16) return &AMX_BF16_LINEAR;
        instruction_set = AVX512_BF16;
    }
#endif
    if (!has_instructions(instruction_set)) return nullptr;
#ifdef QUIRE_X86_VARIANTS
    if (instruction_set == AVX2) return &AVX2_LINEAR;
    if (instruction_set == AVX512) return &AVX512_LINEAR;
    if (instruction_set == AVX512_VNNI) return &AVX512_VNNI_LINEAR;
    if (instruction_set == AVX512_BF16) return &AVX512_BF16_LINEAR;
#endif
    return &GENERIC_LINEAR;
}

bool is_sound(const LinearWeights& weights) {
    bool has_type = weights.type == FLOAT32 || weights.type == BFLOAT16;
    bool has_weights = weights.weight_type == weights.type || weights.weight_type == INT8 ||
                       weights.weight_type == INT4;
    bool has_sizes = weights.out_features > 0 && weights.in_features > 0;
    bool has_activations = weights.activation_type == weights.type;
    if (is_grouped(weights))
        return has_type && has_weights && has_sizes && has_activations && has_groups(weights);
    if (weights.activation_type == INT8)
        has_activations = weights.weight_type == INT8 && weights.in_features <= MAX_INT8_FEATURES;
    bool is_plain = weights.offsets == nullptr && weights.group_size == weights.in_features;
    return has_type && has_weights && has_sizes && has_activations && is_plain;
}

namespace {

constexpr uintptr_t HUGE_PAGE_BYTES = 1 << 21;

// A few entries of the processor's page table instead of thousands.
void use_huge_pages(void* start, int64_t bytes) {
#ifdef __linux__
    uintptr_t first = (uintptr_t(start) + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1);
    uintptr_t end = (uintptr_t(start) + bytes) & ~(HUGE_PAGE_BYTES - 1);
    // Where the kernel refuses, pages stay small.
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// Small whole numbers, whose products and sums every variant computes without rounding.
struct Sample {
    static constexpr int ROWS = 37, WIDTH = 70, DEPTH = 133;
    uint16_t x[ROWS * DEPTH], y[2][ROWS * WIDTH];
    uint32_t packed[(WIDTH + MAX_COLUMNS) * (DEPTH + MAX_STEP)];

    bool run(int64_t instruction_set) {
        static uint16_t from[WIDTH * DEPTH];
        static int8_t small[WIDTH * DEPTH];
        static float scales[WIDTH];
        for (int i = 0; i < ROWS * DEPTH; i++) x[i] = whole(i * 7 % 17);
        for (int i = 0; i < WIDTH * DEPTH; i++) from[i] = whole(small[i] = i * 5 % 13);
        for (float& scale : scales) scale = 1;
        LinearWeights weights{packed,   nullptr,  scales,   nullptr, WIDTH, DEPTH,
                              BFLOAT16, BFLOAT16, BFLOAT16, DEPTH,   instruction_set};
        if (!run(weights, from, y[0])) return false;
        weights.weight_type = weights.activation_type = INT8;
        return run(weights, small, y[1]);
    }

    bool run(const LinearWeights& weights, const void* from, uint16_t* to) {
        return quire_linear_bytes(&weights) > 0 && quire_linear_pack(&weights, from, 1) == OK &&
               quire_linear(&weights, x, to, ROWS, 1) == OK;
    }

    static uint16_t whole(int number) {
        float value = float(number - 6);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        return uint16_t(bits >> 16);
    }
};

#ifdef QUIRE_AMX_VARIANT
sigjmp_buf after_fault;

// Whether tiles compute as they should here. Virtual machines exist on which they do not.
bool are_tiles_right() {
    static Sample sample, expected;
    struct sigaction escape {}, old_illegal, old_fault;
    escape.sa_handler = [](int) { siglongjmp(after_fault, 1); };
    sigaction(SIGILL, &escape, &old_illegal);
    sigaction(SIGSEGV, &escape, &old_fault);
    bool is_right = sigsetjmp(after_fault, 1) == 0 && sample.run(AMX_BF16);
    sigaction(SIGILL, &old_illegal, nullptr);
    sigaction(SIGSEGV, &old_fault, nullptr);
    return is_right && expected.run(AVX512_BF16) &&
           std::memcmp(sample.y, expected.y, sizeof(sample.y)) == 0;
}
#else
bool are_tiles_right() { return false; }
#endif

}  // namespace
}  // namespace quire

using namespace quire;

EXPORT int64_t quire_linear_instruction_set() {
    static const bool has_amx = are_tiles_right();
    return has_amx ? int64_t(AMX_BF16) : quire_best_instruction_set();
}

EXPORT int64_t quire_linear_bytes(const LinearWeights* weights) {
    const LinearVariant* variant = variant_of(*weights);
    if (variant == nullptr || !is_sound(*weights)) return 0;
    LinearLayout layout = variant->layout(*weights);
    return layout.panels(weights->out_features) * layout.panel_bytes(weights->in_features);
}

EXPORT int quire_linear_pack_rows(const LinearWeights* weights, const void* from, int64_t first,
                                  int64_t rows, int64_t threads) {
    const LinearVariant* variant = variant_of(*weights);
    const bool is_inside = first >= 0 && rows > 0 && first + rows <= weights->out_features;
    if (variant == nullptr || !is_sound(*weights) || is_grouped(*weights) || !is_inside)
        return BAD_CALL;
    const LinearLayout layout = variant->layout(*weights);
    const int64_t begin = first / layout.columns, end = layout.panels(first + rows);
    const StoredRows stored{from, first, rows};
    if (first == 0) use_huge_pages(weights->packed, quire_linear_bytes(weights));
    const Places places(layout);
    run_pieces(threads, end - begin, [&](int64_t number) {
        Panel(*weights, layout, places, stored, begin + number).pack();
    });
    return OK;
}

EXPORT int quire_linear_pack(const LinearWeights* weights, const void* from, int64_t threads) {
    if (!is_grouped(*weights))
        return quire_linear_pack_rows(weights, from, 0, weights->out_features, threads);
    const LinearVariant* variant = variant_of(*weights);
    if (variant == nullptr || !is_sound(*weights)) return BAD_CALL;
    LinearLayout layout = variant->layout(*weights);
    use_huge_pages(weights->packed, quire_linear_bytes(weights));
    run_pieces(threads, layout.panels(weights->out_features), [&](int64_t panel) {
        pack_groups(*weights, layout, static_cast<const uint32_t*>(from), panel);
    });
    return OK;
}

EXPORT int quire_linear_rows(const LinearWeights* weights, const int32_t* numbers, int64_t count,
                             void* to, int64_t threads) {
    const LinearVariant* variant = variant_of(*weights);
    if (variant == nullptr || !is_sound(*weights) || weights->weight_type != weights->type)
        return BAD_CALL;
    for (int64_t i = 0; i < count; i++)
        if (numbers[i] < 0 || numbers[i] >= weights->out_features) return BAD_BATCH;
    const LinearLayout layout = variant->layout(*weights);
    const Places places(layout);
    const int64_t bytes = weights->in_features * layout.element_size;
    if (count * weights->in_features < SMALL_PRODUCTS) threads = 1;
    run_pieces(threads, count, [&](int64_t i) {
        char* row = static_cast<char*>(to) + i * bytes;
        if (places.run * layout.element_size == 4)
            read_row<uint32_t>(*weights, layout, places, numbers[i], row);
        else
            read_row<uint16_t>(*weights, layout, places, numbers[i], row);
    });
    return OK;
}

EXPORT int quire_linear(const LinearWeights* given, const void* x, void* y, int64_t rows,
                        int64_t threads) {
    const LinearWeights& weights = *given;
    const LinearVariant* variant = variant_of(weights);
    if (variant == nullptr || !is_sound(weights) || rows < 0 || threads < 1) return BAD_CALL;
    if (rows == 0) return OK;
    Part parts[2] = {{given, static_cast<const char*>(x), nullptr, y, rows}, {}};
    Call call{*variant, variant->layout(weights), parts, 1, weights.in_features,
              weights.in_features * width_of(weights.type), weights.out_features, 1};
    return call.run(threads);
}
