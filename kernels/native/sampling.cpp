// Which tokens of a row the filters keep, by counting instead of sorting, and the draw among them.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace quire {
namespace {

constexpr int BUCKETS = 2048;
constexpr float INF = std::numeric_limits<float>::infinity();

uint32_t mixed(uint32_t word) {
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
}

uint32_t key_of(uint32_t key, const SamplingCall& call, int64_t row) {
    const uint64_t seed = uint64_t(call.seeds[row]);
    for (uint32_t part : {uint32_t(seed), uint32_t(seed >> 32), uint32_t(call.choices[row]),
                          uint32_t(call.positions[row])})
        key = mixed((key + 0x9e3779b9u) ^ part);
    return key;
}

// Distances up to `greatest`, laid into buckets in ascending order; sorted on demand.
class Buckets {
  public:
    Buckets(const float* distances, int64_t count, float greatest)
        : distances_(distances), count_(count),
          scale_(greatest > 0 ? std::min(float(BUCKETS) / greatest, 1e30f) : 0) {}

    int of(int64_t place) const {
        return int(std::min(distances_[place] * scale_, float(BUCKETS - 1)));
    }

    // Writes the places of the bucket's distances, ascending; returns how many.
    int64_t sorted(int bucket, int32_t* places) const {
        int64_t found = 0;
        for (int64_t i = 0; i < count_; i++) {
            places[found] = int32_t(i);
            found += of(i) == bucket;
        }
        std::sort(places, places + found, [this](int32_t one, int32_t other) {
            return distances_[one] < distances_[other];
        });
        return found;
    }

  private:
    const float* distances_;
    int64_t count_;
    float scale_;
};

// What `draw` works with.
struct Scratch {
    float *distances, *near, *masses, *least, *some_least;
    int32_t *places, *sorted;

    Scratch(float* numbers, int64_t count)
        : distances(numbers), near(distances + count), masses(near + count), least(masses + count),
          some_least(least + blocks_of(count)),
          places(reinterpret_cast<int32_t*>(some_least + blocks_of(count))),
          sorted(places + count) {}
};

// The candidates of a row: those up to some distance, ascending by place.
struct Candidates {
    const SamplingPasses& passes;
    Scratch& scratch;
    int64_t vocabulary, count;
    float greatest;

    void collect(float limit) {
        greatest = limit;
        count = passes.collect(scratch.distances, scratch.least, vocabulary, limit, scratch.near,
                               scratch.places);
    }

    void keep(float limit) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            scratch.near[kept] = scratch.near[i], scratch.places[kept] = scratch.places[i];
            kept += scratch.near[i] <= limit;
        }
        count = kept;
        greatest = limit;
    }

    // The `k` nearest, and all that are as near; all that are finite where there are no more.
    void collect_top(int64_t k) {
        // k blocks have one that is no farther than the k-th of their nearest.
        const int64_t blocks = blocks_of(vocabulary);
        float limit = std::numeric_limits<float>::max();
        if (k <= blocks) {
            std::copy(scratch.least, scratch.least + blocks, scratch.some_least);
            std::nth_element(scratch.some_least, scratch.some_least + k - 1,
                             scratch.some_least + blocks);
            limit = std::min(limit, scratch.some_least[k - 1]);
        }
        collect(limit);
        if (count <= k) return;
        if (limit > 1e3f) {  // Buckets of a width that tells usual distances apart.
            collect(NOISE_RANGE);
            if (count <= k) collect(limit);
        }
        keep(kth_smallest(k));
    }

    float kth_smallest(int64_t k) const {
        Buckets buckets(scratch.near, count, greatest);
        int32_t counts[BUCKETS] = {};
        for (int64_t i = 0; i < count; i++) counts[buckets.of(i)]++;
        int bucket = 0;
        for (; counts[bucket] < k; bucket++) k -= counts[bucket];
        buckets.sorted(bucket, scratch.sorted);
        return scratch.near[scratch.sorted[k - 1]];
    }

    // The distances at which the mass reaches `low` and `high`; infinite where it does not.
    void limits(double low, double high, float& low_limit, float& high_limit) const {
        Buckets buckets(scratch.near, count, greatest);
        double masses[BUCKETS] = {};
        for (int64_t i = 0; i < count; i++) masses[buckets.of(i)] += scratch.masses[i];
        low_limit = high_limit = INF;
        double mass = 0;
        for (int bucket = 0; bucket < BUCKETS && high_limit == INF; bucket++) {
            // Sums within a bucket and over it round differently: far less than the margin.
            const double next = low_limit == INF ? low : high;
            if (mass + masses[bucket] * (1 + MASS_MARGIN) < next) {
                mass += masses[bucket];
                continue;
            }
            const int64_t found = buckets.sorted(bucket, scratch.sorted);
            for (int64_t i = 0; i < found && high_limit == INF; i++) {
                const int32_t place = scratch.sorted[i];
                mass += scratch.masses[place];
                if (mass >= low) low_limit = std::min(low_limit, scratch.near[place]);
                if (mass >= high) high_limit = scratch.near[place];
            }
        }
    }
};

// The candidates that a row's filters leave, and what lies between `low` and `high`: their limit.
void filter(const SamplingCall& call, int64_t row, Candidates& candidates, float& low,
            float& high) {
    const int64_t count = call.vocabulary, top_k = call.top_ks[row];
    const double top_p = call.top_ps[row];
    const bool has_top_k = top_k > 0 && top_k < count;
    Scratch& scratch = candidates.scratch;
    double total = 0;
    if (has_top_k) {
        candidates.collect_top(top_k);
        low = high = std::min(high, candidates.greatest);
        if (top_p >= 1) return;
    } else {
        total = candidates.passes.masses(scratch.distances, count, scratch.masses);
        // Tokens with less than an equal share of what may be missing are not needed to reach it.
        const double missing = ((1 - top_p) * (1 - 2 * MASS_MARGIN) - 2 * MASS_MARGIN) * total;
        double enough = missing > 0 ? std::log(double(count) / missing) + 1e-3 : NOISE_RANGE;
        candidates.collect(float(std::min(std::max(enough, 1e-3), double(NOISE_RANGE))));
    }
    const double near = candidates.passes.masses(scratch.near, candidates.count, scratch.masses);
    const double wanted = top_p * (has_top_k ? near : total);
    float low_limit, high_limit;
    candidates.limits(wanted * (1 - MASS_MARGIN), wanted * (1 + MASS_MARGIN), low_limit,
                      high_limit);
    low = std::min(low, low_limit), high = std::min(high, high_limit);
}

}  // namespace

int32_t draw(const SamplingCall& call, const SamplingPasses& passes, int64_t row, float* numbers) {
    const int64_t count = call.vocabulary, top_k = call.top_ks[row];
    const float* logits = call.logits + row * count;
    Scratch scratch(numbers, count);
    const float greatest = logits[passes.first_greatest(logits, count)];
    if (!std::isfinite(greatest)) return 0;  // Any token: such a row fails.
    passes.distances(logits, count, greatest, call.temperatures[row], scratch.distances,
                     scratch.least);
    float low = std::min(NOISE_RANGE, call.limits[row]), high = low;
    const Keys keys = {key_of(0x243f6a88u, call, row), key_of(0xb7e15162u, call, row)};
    Race race;
    if ((top_k > 0 && top_k < count) || call.top_ps[row] < 1) {
        Candidates candidates{passes, scratch, count, 0, 0};
        filter(call, row, candidates, low, high);
        race = passes.race(scratch.near, nullptr, scratch.places, candidates.count, high, keys);
    } else {
        race = passes.race(scratch.distances, scratch.least, nullptr, count, high, keys);
    }
    const bool is_certain = race.second < race.best - SCORE_MARGIN && race.distance <= low;
    return is_certain ? race.token : -1;
}

}  // namespace quire
