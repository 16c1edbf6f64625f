// Runs the linear layer on random shapes, with every buffer on the heap at its exact size, and
// compares it with sums in double. Part of native_fuzz.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "linear.h"

extern "C" int64_t quire_linear_instruction_set();
extern "C" int64_t quire_linear_bytes(const quire::LinearWeights*);
extern "C" int quire_linear_pack(const quire::LinearWeights*, const void*, int64_t);
extern "C" int quire_linear_pack_rows(const quire::LinearWeights*, const void*, int64_t, int64_t,
                                      int64_t);
extern "C" int quire_linear(const quire::LinearWeights*, const void*, void*, int64_t, int64_t);

namespace {

using namespace quire;

std::mt19937 generator(2);

int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// Numbers of a data type, which all have few bits.
struct Numbers {
    int64_t type;
    std::vector<uint8_t> bytes;

    Numbers(int64_t type, size_t count) : type(type), bytes(count * width()) {
        for (size_t i = 0; i < count; i++) {
            float value = float(draw(-128, 127)) / (type == INT8 ? 1 : 128);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            uint16_t high = uint16_t(bits >> 16);
            int8_t small = int8_t(value);
            const void* from = &bits;
            if (type == BFLOAT16) from = &high;
            if (type == INT8) from = &small;
            std::memcpy(&bytes[i * width()], from, width());
        }
    }
    size_t width() const { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }
    double at(size_t i) const {
        if (type == INT8) return int8_t(bytes[i]);
        uint32_t bits = 0;
        std::memcpy(reinterpret_cast<char*>(&bits) + 4 - width(), &bytes[i * width()], width());
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

// A layer of whole numbers in groups, of which each word of 32 bits holds some.
struct Groups {
    int64_t bits, size, count, depth, width;
    std::vector<uint32_t> words;
    Numbers scales, offsets;
    bool has_offsets = draw(0, 1);

    Groups(int64_t bits, int64_t width)
        : bits(bits), size(16 * draw(1, draw(0, 1) ? 4 : 24)), count(draw(1, 6)),
          depth(size * count), width(width), words(width * depth * bits / 32),
          scales(FLOAT32, width * count), offsets(FLOAT32, width * count) {
        if (count == 1 && bits == 8) has_offsets = true;
        for (uint32_t& word : words) word = uint32_t(generator());
    }
    double at(int64_t row, int64_t k) const {
        const int64_t bit = (row * depth + k) * bits;
        const int32_t number = int32_t(words[bit / 32] << (32 - bits - bit % 32)) >> (32 - bits);
        const int64_t side = k / size * width + row;
        return number * scales.at(side) + (has_offsets ? offsets.at(side) : 0);
    }
};

bool is_right_in_groups(int64_t set, int64_t type, int64_t bits) {
    const int64_t rows = draw(0, 1) ? draw(0, 30) : draw(150, 420);
    Groups groups(bits, draw(1, 90));
    const int64_t width = groups.width, depth = groups.depth;
    Numbers x(type, rows * depth), y(type, rows * width);
    LinearWeights weights{};
    weights.scales = reinterpret_cast<const float*>(groups.scales.bytes.data());
    if (groups.has_offsets)
        weights.offsets = reinterpret_cast<const float*>(groups.offsets.bytes.data());
    weights.out_features = width, weights.in_features = depth, weights.instruction_set = set;
    weights.type = weights.activation_type = type, weights.weight_type = bits == 4 ? INT4 : INT8;
    weights.group_size = groups.size;
    std::vector<uint8_t> packed(quire_linear_bytes(&weights));
    weights.packed = packed.data();
    if (quire_linear_pack(&weights, groups.words.data(), draw(1, 2)) != OK) return false;
    // Whether there are offsets is all that is still asked.
    weights.scales = reinterpret_cast<const float*>(packed.data());
    if (groups.has_offsets) weights.offsets = weights.scales;
    if (quire_linear(&weights, x.bytes.data(), y.bytes.data(), rows, draw(1, 3)) != OK)
        return false;
    for (int i = 0; i < (rows ? 5 : 0); i++) {
        int64_t row = draw(0, rows - 1), column = draw(0, width - 1);
        double wanted = 0, size = 0, found = y.at(row * width + column);
        for (int64_t k = 0; k < depth; k++) {
            const double product = x.at(row * depth + k) * groups.at(column, k);
            wanted += product, size += std::fabs(product);
        }
        double tolerance = type == FLOAT32 ? 1e-5 : 1.0 / 128;
        if (!(std::fabs(found - wanted) <= 1e-5 * size + tolerance * std::fabs(wanted))) {
            std::printf("set %d, type %d, %d bits: %g is not %g\n", int(set), int(type),
                        int(bits), found, wanted);
            return false;
        }
        Numbers alone(type, width);
        size_t bytes = depth * x.width();
        quire_linear(&weights, x.bytes.data() + row * bytes, alone.bytes.data(), 1, 1);
        if (std::memcmp(&y.bytes[row * alone.bytes.size()], alone.bytes.data(),
                        alone.bytes.size())) {
            std::printf("set %d, type %d, %d bits: row %d of %d is not as alone\n", int(set),
                        int(type), int(bits), int(row), int(rows));
            return false;
        }
    }
    return true;
}

// As the layer sees them: of a row in int8, its numbers times their scale.
std::vector<double> seen(const Numbers& x, int64_t row, int64_t depth, bool is_int8) {
    std::vector<double> values(depth);
    float greatest = 0;
    for (int64_t k = 0; k < depth; k++) {
        values[k] = x.at(row * depth + k);
        greatest = std::fmax(greatest, float(std::fabs(values[k])));
    }
    const float scale = std::fmax(greatest / 127, 0x1p-126f);
    if (is_int8)
        for (double& value : values) value = double(std::nearbyint(float(value) / scale)) * scale;
    return values;
}

bool is_right(int64_t set, int64_t type, int64_t weight_type, int64_t activation_type) {
    const int64_t rows = draw(0, 1) ? draw(0, 30) : draw(150, 420);
    // More than one of the longest chunks of K, by some of the variants.
    const bool is_deep = rows <= 30 && draw(0, 3) == 0;
    const int64_t width = draw(1, 90);
    const int64_t depth = is_deep ? draw(800, 3300) : draw(0, 1) ? draw(1, 40) : draw(120, 600);
    Numbers x(type, rows * depth), from(weight_type, width * depth), bias(type, width);
    Numbers scales(FLOAT32, width), y(type, rows * width);
    LinearWeights weights{};
    weights.bias = draw(0, 1) ? bias.bytes.data() : nullptr;
    weights.scales = reinterpret_cast<const float*>(scales.bytes.data());
    weights.out_features = width, weights.in_features = depth;
    weights.type = type, weights.weight_type = weight_type, weights.instruction_set = set;
    weights.activation_type = activation_type, weights.group_size = depth;
    std::vector<uint8_t> packed(quire_linear_bytes(&weights));
    weights.packed = packed.data();
    const int64_t cut = draw(1, width), row_bytes = depth * from.width();
    if (quire_linear_pack(&weights, from.bytes.data(), draw(1, 2)) != OK) return false;
    const std::vector<uint8_t> whole = packed;
    std::fill(packed.begin(), packed.end(), uint8_t(0xff));
    for (int64_t first = 0; first < width; first += cut) {
        const int64_t rows = std::min(cut, width - first);
        const uint8_t* part = from.bytes.data() + first * row_bytes;
        if (quire_linear_pack_rows(&weights, part, first, rows, draw(1, 2)) != OK) return false;
    }
    if (packed != whole) {
        std::printf("set %d, types %d %d: packed by %d rows it differs\n", int(set), int(type),
                    int(weight_type), int(cut));
        return false;
    }
    void* to = y.bytes.data();
    if (quire_linear(&weights, x.bytes.data(), to, rows, draw(1, 3)) != OK) return false;
    if (rows > 0) {
        Numbers row(type, width);
        size_t bytes = depth * x.width(), place = draw(0, rows - 1);
        quire_linear(&weights, x.bytes.data() + place * bytes, row.bytes.data(), 1, 1);
        if (std::memcmp(&y.bytes[place * row.bytes.size()], row.bytes.data(), row.bytes.size())) {
            std::printf("set %d, types %d %d: row %d of %d is not as alone\n", int(set), int(type),
                        int(weight_type), int(place), int(rows));
            return false;
        }
    }
    for (int64_t i = 0; i < (rows ? 300 : 0); i++) {
        int64_t row = draw(0, rows - 1), column = draw(0, width - 1);
        double wanted = 0, found = y.at(row * width + column);
        const std::vector<double> values = seen(x, row, depth, activation_type == INT8);
        for (int64_t k = 0; k < depth; k++) wanted += values[k] * from.at(column * depth + k);
        if (weight_type == INT8) wanted *= scales.at(column);
        if (weights.bias != nullptr) wanted += bias.at(column);
        double tolerance = type == FLOAT32 ? 1e-5 : 1.0 / 128;
        if (!(std::fabs(found - wanted) <= 1e-4 + tolerance * std::fabs(wanted))) {
            std::printf("set %d, types %d %d: %g is not %g\n", int(set), int(type),
                        int(weight_type), found, wanted);
            return false;
        }
    }
    return true;
}

}  // namespace

bool fuzz_linear(int rounds) {
#ifdef QUIRE_TILES
    if (quire_linear_instruction_set() != AMX_BF16) return false;
#endif
    for (int round = 0; round < rounds; round++)
        for (int64_t set = 0; set <= quire_linear_instruction_set(); set++)
            for (int64_t type : {FLOAT32, BFLOAT16}) {
                for (int64_t weight_type : {type, int64_t(INT8)})
                    for (int64_t activation_type : {type, weight_type})
                        if (!is_right(set, type, weight_type, activation_type)) return false;
                for (int64_t bits : {4, 8})
                    if (!is_right_in_groups(set, type, bits)) return false;
            }
    return true;
}
