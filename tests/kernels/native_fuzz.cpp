// Runs the compiled kernels, here attention, on random shapes, with every buffer on the heap at its
// exact size, and compares them with sums in double. Built with sanitizers by test_native.py;
// takes a number of rounds, prints "ok".
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attention.h"

extern "C" int quire_attention(const quire::AttentionCall*);
extern "C" int64_t quire_best_instruction_set();

bool fuzz_linear(int rounds);
bool fuzz_threads();
bool fuzz_rows(int rounds);
bool fuzz_mixture(int rounds);

namespace {

using namespace quire;

std::mt19937 generator(1);

int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

float normal() { return std::normal_distribution<float>()(generator); }

// A buffer of one of the data types; `at` gives the value as double.
struct Buffer {
    int64_t type;
    std::vector<uint8_t> bytes;

    Buffer(int64_t type, size_t count) : type(type), bytes(count * width()) {}
    size_t width() const { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }
    void set(size_t i, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (type == FLOAT32) std::memcpy(&bytes[i * 4], &bits, 4);
        uint16_t high = uint16_t(bits >> 16);
        if (type == BFLOAT16) std::memcpy(&bytes[i * 2], &high, 2);
        // Any float8 that is a number, and NaN for NaN.
        if (type == FLOAT8_E4M3) bytes[i] = uint8_t(value != value ? 0x7f : draw(0, 255) & 0xb7);
    }
    double at(size_t i) const {
        uint32_t bits = 0;
        if (type == FLOAT8_E4M3) {
            int exponent = bytes[i] >> 3 & 15, mantissa = bytes[i] & 7;
            double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : mantissa / 512.0;
            return bytes[i] & 0x80 ? -size : size;
        }
        char* place = reinterpret_cast<char*>(&bits) + (type == FLOAT32 ? 0 : 2);
        std::memcpy(place, &bytes[i * width()], width());
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

struct Problem {
    AttentionCall call{};
    std::vector<int32_t> offsets{0}, cached, lookup;
    std::vector<float> sinks;
    Buffer q, k, v, out;

    size_t row_of(int64_t context, int64_t key, int64_t head) const {
        int64_t page = lookup[context * call.lookup_stride + key / call.page_size];
        return (page * call.kv_heads + head) * call.page_size + key % call.page_size;
    }

    explicit Problem(int64_t q_type, int64_t cache_type)
        : q(q_type, 0), k(cache_type, 0), v(cache_type, 0), out(q_type, 0) {
        call.kv_heads = draw(1, 2);
        call.heads = call.kv_heads * draw(1, 9);
        call.head_dim = 8 * draw(1, 9);
        call.page_size = 16 << draw(0, 3);
        call.contexts = draw(1, 3);
        call.window = draw(0, 1) ? draw(1, 600) : 0;
        call.soft_cap = draw(0, 2) ? 0 : 3;
        call.threads = draw(1, 2);
        call.scale = 0.2, call.k_scale = 0.5, call.v_scale = 0.25;
        call.q_type = q_type, call.cache_type = cache_type;
        for (int64_t i = 0; i < call.contexts; i++) {
            cached.push_back(int32_t(draw(0, 1) ? draw(0, 40) : draw(400, 1100)));
            offsets.push_back(offsets.back() + int32_t(draw(0, 1) ? 1 : draw(1, 20)));
            int64_t keys = cached.back() + offsets[i + 1] - offsets[i];
            call.lookup_stride =
                std::max(call.lookup_stride, (keys + call.page_size - 1) / call.page_size);
        }
        call.tokens = offsets.back();
        call.pages = call.contexts * call.lookup_stride;
        for (int64_t i = 0; i < call.pages; i++) lookup.push_back(int32_t(i));
        std::shuffle(lookup.begin(), lookup.end(), generator);
        size_t rows = call.pages * call.kv_heads * call.page_size;
        q = Buffer(q_type, call.tokens * call.heads * call.head_dim);
        out = Buffer(q_type, call.tokens * call.heads * call.head_dim);
        k = v = Buffer(cache_type, rows * call.head_dim);
        for (size_t i = 0; i < rows * call.head_dim; i++)
            k.set(i, std::nanf("")), v.set(i, std::nanf(""));
        for (int64_t i = 0; i < call.tokens * call.heads * call.head_dim; i++) q.set(i, normal());
        for (int64_t c = 0; c < call.contexts; c++)
            for (int64_t key = 0; key < cached[c] + offsets[c + 1] - offsets[c]; key++)
                for (int64_t head = 0; head < call.kv_heads; head++)
                    for (int64_t d = 0; d < call.head_dim; d++) {
                        size_t i = row_of(c, key, head) * call.head_dim + d;
                        k.set(i, normal()), v.set(i, normal());
                    }
        for (int64_t i = 0; i < call.heads; i++) sinks.push_back(normal());
        call.q = q.bytes.data(), call.k_cache = k.bytes.data(), call.v_cache = v.bytes.data();
        call.out = out.bytes.data(), call.offsets = offsets.data();
        call.cache_lengths = cached.data(), call.lookup_table = lookup.data();
        call.sinks = draw(0, 1) ? sinks.data() : nullptr;
    }

    double expected(int64_t context, int64_t token, int64_t head, int64_t d) const {
        int64_t position = cached[context] + token - offsets[context];
        int64_t first = call.window ? std::max<int64_t>(0, position - call.window + 1) : 0;
        int64_t kv_head = head / (call.heads / call.kv_heads);
        double sum = call.sinks ? std::exp(double(sinks[head])) : 0, total = 0;
        for (int64_t key = first; key <= position; key++) {
            size_t row = row_of(context, key, kv_head) * call.head_dim;
            double score = 0;
            for (int64_t i = 0; i < call.head_dim; i++)
                score += q.at((token * call.heads + head) * call.head_dim + i) * k.at(row + i);
            score *= call.scale * call.k_scale;
            if (call.soft_cap > 0) score = call.soft_cap * std::tanh(score / call.soft_cap);
            sum += std::exp(score);
            total += std::exp(score) * v.at(row + d) * call.v_scale;
        }
        return total / sum;
    }

    bool check() {
        if (quire_attention(&call) != OK) return false;
        double tolerance = call.q_type == FLOAT32 ? 1e-4 : 3e-2;
        for (int64_t c = 0; c < call.contexts; c++)
            for (int64_t token = offsets[c]; token < offsets[c + 1]; token++) {
                int64_t head = draw(0, call.heads - 1), d = draw(0, call.head_dim - 1);
                double found = out.at((token * call.heads + head) * call.head_dim + d);
                double wanted = expected(c, token, head, d);
                if (!(std::fabs(found - wanted) <= tolerance * (1 + std::fabs(wanted)))) {
                    std::printf("set %d: %g is not %g\n", int(call.instruction_set), found, wanted);
                    return false;
                }
            }
        return true;
    }
};

}  // namespace

int main(int, char** arguments) {
    const int rounds = std::atoi(arguments[1]);
    for (int round = 0; round < rounds; round++)
        for (int64_t set = 0; set <= quire_best_instruction_set(); set++)
            for (int64_t q_type : {FLOAT32, BFLOAT16})
                for (int64_t cache_type : {q_type, int64_t(FLOAT8_E4M3)}) {
                    Problem problem(q_type, cache_type);
                    problem.call.instruction_set = set;
                    if (!problem.check()) return 1;
                }
    if (!fuzz_threads() || !fuzz_linear(rounds) || !fuzz_rows(2 * rounds)) return 1;
    if (!fuzz_mixture(rounds)) return 1;
    std::puts("ok");
    return 0;
}
