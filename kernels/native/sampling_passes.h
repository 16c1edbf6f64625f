// The passes over a row's logits, distances and masses.
//
// Included once per variant, after row_math.h and any_of.

INLINE Ints lane_numbers() {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

// `count` elements, `other` behind them.
INLINE Floats loaded_or(const float* from, int64_t count, float other) {
    if (count >= LANES) return load<Floats>(from);
    return in_range(0, 0, int(count)) ? widened_part(from, count) : all(other);
}

static int32_t first_greatest(const float* values, int64_t count) {
    Floats best = all(-__builtin_inff());
    Ints who = all(int32_t(0)), lane = lane_numbers();
    for (int64_t i = 0; i < count; i += LANES) {
        Floats value = loaded_or(values + i, count - i, -__builtin_inff());
        Ints is_better = value > best;
        best = is_better ? value : best;
        who = is_better ? lane + int32_t(i) : who;
    }
    int32_t found = who[0];
    float greatest = best[0];
    for (int i = 1; i < LANES; i++)
        if (best[i] > greatest || (best[i] == greatest && who[i] < found))
            greatest = best[i], found = who[i];
    return found;
}

static void distances(const float* values, int64_t count, float greatest, float temperature,
                      float* to, float* least) {
    const Floats infinite = all(__builtin_inff());
    for (int64_t start = 0; start < count; start += BLOCK) {
        Floats nearest = infinite;
        for (int64_t i = start; i < smaller(start + BLOCK, count); i += LANES) {
            // Behind the row are numbers that no one is nearer than.
            Floats distance = (greatest - loaded_or(values + i, count - i, -__builtin_inff()));
            distance /= temperature;
            narrow(to + i, distance, smaller(count - i, LANES));
            nearest = distance < nearest ? distance : nearest;
        }
        least[start / BLOCK] = -max_of(-nearest);
    }
}

static int64_t collect(const float* distances, const float* least, int64_t count, float limit,
                       float* near, int32_t* places) {
    int64_t found = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        if (!(least[start / BLOCK] <= limit)) continue;
        for (int64_t i = start; i < smaller(start + BLOCK, count); i++) {
            near[found] = distances[i];
            places[found] = int32_t(i);
            found += distances[i] <= limit;
        }
    }
    return found;
}

static double masses(const float* distances, int64_t count, float* to) {
    typedef double Doubles __attribute__((vector_size(LANES * 8)));
    Doubles total{};
    for (int64_t i = 0; i < count;) {
        Floats sum{};
        for (int64_t end = smaller(i + 8 * LANES, count); i < end; i += LANES) {
            Floats mass = exp_of(-loaded_or(distances + i, count - i, __builtin_inff()));
            narrow(to + i, mass, smaller(count - i, LANES));
            sum += mass;
        }
        total += __builtin_convertvector(sum, Doubles);
    }
    double result = 0;
    for (int lane = 0; lane < LANES; lane++) result += total[lane];
    return result;
}

INLINE Words mixed(Words word) {
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
}

// The numbers of 24 bits up to which noise cannot bring tokens at these distances to `score`: as
// noise, -log(-log(u)), is at most -log(1 - u), 1 - u would be e ** -(score + distance) or less.
INLINE Ints insufficient(float score, Floats distance) {
    Floats most = exp_of(-(distance + score));
    Floats least = (1.0f - (most < 2.0f ? most : all(2.0f))) * 0x1p24f;
    return __builtin_convertvector(least, Ints) - 16;
}

static Race race(const float* distances, const float* least, const int32_t* places, int64_t count,
                 float limit, Keys keys) {
    const Floats none = all(-__builtin_inff());
    Floats best = none, second = none, distance_of_best{};
    Ints token_of_best = all(int32_t(0)), lane = lane_numbers(), bounds{};
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t block = start / BLOCK;
        if (block % LANES == 0) {
            const int64_t left = blocks_of(count) - block;
            Floats nearest = least == nullptr ? Floats{} : loaded_or(least + block, left, 0.0f);
            bounds = insufficient(max_of(best) - SCORE_MARGIN, nearest);
        }
        const int32_t bound = bounds[block % LANES];
        for (int64_t i = start; i < smaller(start + BLOCK, count); i += LANES) {
            Floats distance = loaded_or(distances + i, count - i, __builtin_inff());
            Ints is_running = distance <= limit;
            if (!any_of(is_running)) continue;
            Ints token = lane + int32_t(i);
            if (places != nullptr)
                __builtin_memcpy(&token, places + i, smaller(count - i, LANES) * 4);
            Words word = mixed(bits_as<Words>(token) * 0x9e3779b9u + keys.first);
            word = mixed(word ^ keys.second) >> 8;
            is_running &= bits_as<Ints>(word) > bound;
            if (!any_of(is_running)) continue;
            Floats uniform = __builtin_convertvector(bits_as<Ints>(word), Floats) * 0x1p-24f;
            uniform = uniform < 0x1p-25f ? all(0x1p-25f) : uniform;
            Floats score = -log_of(-log_of(uniform)) - distance;
            score = is_running ? score : none;
            Ints is_better = score > best;
            Floats loser = is_better ? best : score;
            second = loser > second ? loser : second;
            best = is_better ? score : best;
            distance_of_best = is_better ? distance : distance_of_best;
            token_of_best = is_better ? token : token_of_best;
        }
    }
    Race result{best[0], max_of(second), distance_of_best[0], token_of_best[0]};
    for (int i = 1; i < LANES; i++) {
        if (best[i] > result.best) {
            result.second = larger(result.second, result.best);
            result.best = best[i];
            result.distance = distance_of_best[i];
            result.token = token_of_best[i];
        } else {
            result.second = larger(result.second, best[i]);
        }
    }
    return result;
}
