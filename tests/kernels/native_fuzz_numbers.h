// Random numbers for the fuzz of row ops and of mixtures, and what is near them.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "library.h"

namespace {

using namespace quire;

std::mt19937 generator(3);

int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// Numbers of a data type, which all have few bits; float8 is only written to.
struct Numbers {
    int64_t type;
    std::vector<uint8_t> bytes;

    Numbers(int64_t type, size_t count) : type(type), bytes(count * width()) {
        for (size_t i = 0; i < count && type != FLOAT8_E4M3; i++) {
            float value = float(draw(-127, 127)) / 64;
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            std::memcpy(&bytes[i * width()], reinterpret_cast<char*>(&bits) + 4 - width(), width());
        }
    }
    size_t width() const { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }
    double at(size_t i) const {
        uint32_t bits = 0;
        std::memcpy(reinterpret_cast<char*>(&bits) + 4 - width(), &bytes[i * width()], width());
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    void* data() { return bytes.data(); }
};

bool is_near(const char* op, int64_t set, int64_t type, double found, double wanted) {
    const double tolerance = type == FLOAT32 ? 1e-5 : 1.0 / 64;
    if (std::fabs(found - wanted) <= tolerance * (1 + std::fabs(wanted))) return true;
    std::printf("%s, set %d, type %d: %g is not %g\n", op, int(set), int(type), found, wanted);
    return false;
}

}  // namespace
