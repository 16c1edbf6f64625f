// Runs the row ops on random shapes, with every buffer on the heap at its exact size, and compares
// them with sums in double. Part of native_fuzz.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "native_fuzz_numbers.h"
#include "rows.h"

extern "C" int64_t quire_best_instruction_set();
extern "C" int quire_norm(const quire::NormCall*);
extern "C" int quire_rope(const quire::RopeCall*);
extern "C" int quire_activation(const quire::ActivationCall*);
extern "C" int quire_embedding(const quire::EmbeddingCall*);
extern "C" int quire_bitmask(const quire::BitmaskCall*);
extern "C" int quire_sampling(const quire::SamplingCall*);

namespace {

using namespace quire;

bool norm_is_right(int64_t set, int64_t type) {
    const int64_t rows = draw(0, 1) ? draw(0, 9) : 200, columns = draw(1, 300);
    Numbers x(type, rows * columns), residual(type, rows * columns), weight(type, columns);
    Numbers bias(type, columns), out(type, rows * columns), sum(type, rows * columns);
    const bool has_residual = draw(0, 1), has_bias = draw(0, 1);
    NormCall call{};
    call.x = x.data(), call.residual = has_residual ? residual.data() : nullptr;
    call.weight = weight.data(), call.out = out.data(), call.sum = sum.data();
    call.rows = rows, call.columns = columns, call.type = type, call.kind = draw(0, 2);
    call.bias = has_bias && call.kind == LAYER ? bias.data() : nullptr;
    call.threads = draw(1, 3), call.instruction_set = set;
    call.epsilon = 0.01, call.weight_offset = call.kind == LAYER ? 0 : double(draw(0, 1));
    if (quire_norm(&call) != OK) return false;
    for (int64_t r = 0; r < rows; r++) {
        auto at = [&](int64_t i) {
            const size_t place = size_t(r * columns + i);
            if (!has_residual) return x.at(place);
            return sum.at(place);
        };
        double mean = 0, square = 0;
        for (int64_t i = 0; i < columns; i++) mean += at(i) / double(columns);
        if (call.kind != LAYER) mean = 0;
        for (int64_t i = 0; i < columns; i++) square += std::pow(at(i) - mean, 2) / double(columns);
        const int64_t i = draw(0, columns - 1);
        double wanted = (at(i) - mean) / std::sqrt(square + 0.01);
        wanted = wanted * (weight.at(i) + call.weight_offset) + (call.bias ? bias.at(i) : 0);
        if (!is_near("norm", set, type, out.at(r * columns + i), wanted)) return false;
    }
    return true;
}

bool rope_is_right(int64_t set, int64_t type, int64_t cache_type) {
    RopeCall call{};
    call.tokens = draw(0, 1) ? draw(0, 5) : 150;
    call.heads = draw(0, 4), call.kv_heads = draw(1, 3), call.head_dim = 2 * draw(1, 70);
    call.page_size = draw(1, 20), call.pages = call.tokens + 1;
    call.rotary_dim = draw(0, 2) ? 2 * draw(1, call.head_dim / 2) : 0, call.max_positions = 9;
    const int64_t columns = (call.heads + 2 * call.kv_heads) * call.head_dim;
    call.row_stride = columns + draw(0, 3);
    Numbers qkv(type, call.tokens * call.row_stride), angles(FLOAT32, 9 * call.rotary_dim);
    Numbers q(type, call.tokens * call.heads * call.head_dim);
    const size_t cached = size_t(call.pages * call.kv_heads * call.page_size * call.head_dim);
    Numbers k(cache_type, cached), v(cache_type, cached);
    call.is_q_norm_whole = draw(0, 1), call.is_k_norm_whole = draw(0, 1);
    Numbers q_norm(type, (call.is_q_norm_whole ? call.heads : 1) * call.head_dim);
    Numbers k_norm(type, (call.is_k_norm_whole ? call.kv_heads : 1) * call.head_dim);
    std::vector<int32_t> positions;
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < call.tokens; i++) {
        positions.push_back(int32_t(draw(0, 8)));
        slots.push_back(i * call.page_size + draw(0, call.page_size - 1));
    }
    const bool has_norms = draw(0, 1);
    call.qkv = qkv.data(), call.cos_sin = reinterpret_cast<const float*>(angles.data());
    call.q_out = q.data(), call.k_cache = k.data(), call.v_cache = v.data();
    call.q_norm = has_norms ? q_norm.data() : nullptr;
    call.k_norm = has_norms ? k_norm.data() : nullptr;
    call.positions = positions.data(), call.slots = slots.data();
    call.is_interleaved = draw(0, 1), call.is_rounded_once = draw(0, 1);
    call.type = type, call.cache_type = cache_type, call.threads = draw(1, 3);
    call.instruction_set = set;
    call.epsilon = 1e-5, call.k_scale = call.v_scale = cache_type == type ? 1 : 0.5;
    if (quire_rope(&call) != OK) return false;
    for (int64_t token = 0; token < call.tokens && cache_type == type; token++) {
        const int64_t line = slots[token] / call.page_size * call.kv_heads * call.page_size +
                             slots[token] % call.page_size;
        const int64_t i = draw(0, call.head_dim - 1);
        const int64_t from = (call.heads + call.kv_heads) * call.head_dim;
        const double value = qkv.at(token * call.row_stride + from + i);
        if (v.at(line * call.head_dim + i) != value) return false;
        if (has_norms || i < call.rotary_dim || call.heads == 0) continue;
        const double query = qkv.at(token * call.row_stride + i);
        if (q.at(token * call.heads * call.head_dim + i) != query) return false;
    }
    if (call.tokens == 0) return true;
    slots[0] = draw(0, 1) ? -1 : call.pages * call.page_size;
    return quire_rope(&call) == BAD_BATCH;
}

bool activation_is_right(int64_t set, int64_t type) {
    const int64_t rows = draw(0, 9), columns = draw(1, 200), is_gated = draw(0, 1);
    const int64_t width = is_gated ? 2 * columns : columns;
    Numbers x(type, rows * width), out(type, rows * columns);
    ActivationCall call{x.data(), out.data(), rows, columns, type, 0, is_gated, draw(1, 3), set};
    for (call.kind = 0; call.kind < NUM_ACTIVATIONS; call.kind++) {
        if (quire_activation(&call) != OK) return false;
        if (rows == 0 || (call.kind != SILU && call.kind != TANH)) continue;
        const int64_t r = draw(0, rows - 1), i = draw(0, columns - 1);
        const double gate = x.at(r * width + i);
        double wanted = call.kind == TANH ? std::tanh(gate) : gate / (1 + std::exp(-gate));
        if (is_gated) wanted *= x.at(r * width + columns + i);
        if (!is_near("activation", set, type, out.at(r * columns + i), wanted)) return false;
    }
    return true;
}

bool embedding_is_right(int64_t set, int64_t type) {
    const int64_t count = draw(0, 9), vocabulary = draw(1, 20), columns = draw(1, 99);
    Numbers weight(type, vocabulary * columns), out(type, count * columns);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; i++) tokens.push_back(int32_t(draw(0, vocabulary - 1)));
    EmbeddingCall call{tokens.data(), weight.data(), out.data(), count, vocabulary, columns,
                       type, 0, draw(1, 3), set, draw(0, 1) ? 1.0 : 0.5};
    if (quire_embedding(&call) != OK) return false;
    for (int64_t i = 0; i < count * columns; i++) {
        const double row = weight.at(tokens[i / columns] * columns + i % columns);
        if (out.at(i) != row * call.scale) return false;
    }
    if (count > 0) tokens[0] = int32_t(draw(0, 1) ? -1 : vocabulary);
    return quire_embedding(&call) == (count > 0 ? BAD_BATCH : OK);
}

bool bitmask_is_right(int64_t set) {
    const int64_t rows = draw(0, 4), vocabulary = draw(1, 300), words = draw(0, 10);
    Numbers logits(FLOAT32, rows * vocabulary), before = logits;
    std::vector<int32_t> bits;
    for (int64_t i = 0; i < rows * words; i++)
        bits.push_back(draw(0, 2) ? int32_t(generator()) : -int32_t(draw(0, 1)));
    BitmaskCall call{reinterpret_cast<float*>(logits.data()), bits.data(), nullptr, rows,
                     vocabulary, words, -1, draw(1, 3), set};
    if (quire_bitmask(&call) != OK) return false;
    for (int64_t i = 0; i < rows * vocabulary; i++) {
        const int64_t r = i / vocabulary, token = i % vocabulary;
        const bool is_allowed =
            token / 32 < words && (uint32_t(bits[r * words + token / 32]) >> (token % 32) & 1);
        if (logits.at(i) != (is_allowed ? before.at(i) : -INFINITY)) return false;
    }
    return true;
}

bool sampling_is_right(int64_t set) {
    const int64_t rows = draw(0, 5), vocabulary = draw(0, 1) ? draw(1, 100) : draw(1000, 3000);
    Numbers logits(FLOAT32, rows * vocabulary);
    std::vector<float> temperatures, top_ps, limits;
    std::vector<int32_t> top_ks, choices(rows, 1), positions(rows, 2), tokens(rows);
    std::vector<int64_t> seeds(rows, int64_t(draw(0, INT64_MAX)));
    for (int64_t i = 0; i < rows; i++) {
        temperatures.push_back(float(draw(0, 4)) / 2);
        top_ps.push_back(draw(0, 1) ? 1.0f : float(draw(1, 99)) / 100);
        limits.push_back(draw(0, 1) ? INFINITY : float(draw(0, 9)));
        top_ks.push_back(int32_t(draw(-1, 60)));
        const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f};
        if (draw(0, 4) == 0)
            for (int64_t j = 0; j < vocabulary; j += draw(1, 9))
                std::memcpy(&logits.bytes[size_t(i * vocabulary + j) * 4], &odd[draw(0, 3)], 4);
    }
    SamplingCall call{reinterpret_cast<const float*>(logits.data()), temperatures.data(),
                      top_ks.data(), top_ps.data(), limits.data(), seeds.data(), choices.data(),
                      positions.data(), tokens.data(), rows, vocabulary, draw(1, 3), set};
    if (quire_sampling(&call) != OK) return false;
    for (int32_t token : tokens)
        if (token < -1 || token >= vocabulary) return false;
    return true;
}

uint32_t mixed(uint32_t word) {
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
}

// Noise and masses are as near to the true ones as the margins ask.
bool functions_are_near(const SamplingPasses& passes) {
    for (int i = 0; i < 4000; i++) {
        const int32_t token = int32_t(generator());
        const float distance = 0;
        const Race race = passes.race(&distance, nullptr, &token, 1, 1.0f, {5, 7});
        const uint32_t word = mixed(mixed(uint32_t(token) * 0x9e3779b9u + 5) ^ 7) >> 8;
        const double noise = -std::log(-std::log(std::max(word * 0x1p-24, 0x1p-25)));
        if (!(std::fabs(race.best - noise) < SCORE_MARGIN / 8)) return false;
        const float far = float(i) / 50;
        float mass;
        const double total = passes.masses(&far, 1, &mass), wanted = std::exp(-double(far));
        if (total != mass || !(std::fabs(mass / wanted - 1) < MASS_MARGIN / 8)) return false;
    }
    return true;
}

const SamplingPasses& passes_of(int64_t set) {
#ifdef QUIRE_X86_VARIANTS
    if (set == AVX2) return AVX2_ROWS.sampling;
    if (set >= AVX512) return AVX512_ROWS.sampling;
#endif
    return GENERIC_ROWS.sampling;
}

bool is_right(int64_t set) {
    for (int64_t type : {FLOAT32, BFLOAT16}) {
        if (!norm_is_right(set, type) || !activation_is_right(set, type)) return false;
        if (!embedding_is_right(set, type) || !rope_is_right(set, type, type)) return false;
        if (!rope_is_right(set, type, FLOAT8_E4M3)) return false;
    }
    return bitmask_is_right(set) && sampling_is_right(set);
}

}  // namespace

bool fuzz_rows(int rounds) {
    for (int64_t set = 0; set <= quire_best_instruction_set(); set++) {
        if (!functions_are_near(passes_of(set))) {
            std::printf("set %d: noise or masses are not near enough\n", int(set));
            return false;
        }
        for (int round = 0; round < rounds; round++)
            if (!is_right(set)) {
                std::printf("a row op of set %d is wrong\n", int(set));
                return false;
            }
    }
    return true;
}
