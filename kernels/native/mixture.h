// Ops around the experts of a mixture: their choice, their gate, the sum of what they give.
//
// Included once per variant, after row_math.h. The formulas are those of the references of
// kernels/moe_router, kernels/grouped_matmul_ragged and kernels/moe_combine.

// In the order of the numbers; NaN is as -inf, and zeros of both signs are equal.
INLINE Ints ranks_of(Floats value) {
    value = value == value ? value : all(-__builtin_inff());
    Ints bits = bits_as<Ints>(value == 0.0f ? Floats{} : value);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
INLINE int32_t rank_of(float value) { return ranks_of(all(value))[0]; }

// Lower than all ranks.
constexpr int32_t TAKEN = INT32_MIN;

constexpr int64_t PADDED = MAX_ROUTED_EXPERTS + LANES;  // so that the last vector may be whole

// The place of the greatest, the first one of equals, which is then taken.
INLINE int take_greatest(int32_t* ranks, int64_t count) {
    Ints most = load<Ints>(ranks);
    for (int64_t i = LANES; i < count; i += LANES) {
        Ints some = load<Ints>(ranks + i);
        most = some > most ? some : most;
    }
    int32_t greatest = most[0];
    for (int i = 1; i < LANES; i++) greatest = most[i] > greatest ? most[i] : greatest;
    int64_t place = 0;
    while (!any_of(load<Ints>(ranks + place) == all(greatest))) place += LANES;
    while (ranks[place] != greatest) place++;
    ranks[place] = TAKEN;
    return int(place);
}

INLINE void softmax(float* values, int64_t count) {
    float highest = -__builtin_inff();
    for (int64_t i = 0; i < count; i++) highest = larger(values[i], highest);
    each_vector(count, [&] VECTOR_OF(i, part) {
        narrow(values + i, exp_of(widened(values + i, part) - highest), part);
    });
    const float sum = row_sum(count, [&] VECTOR_OF(i, part) { return widened(values + i, part); });
    each_vector(count, [&] VECTOR_OF(i, part) {
        narrow(values + i, widened(values + i, part) / sum, part);
    });
}

// What a group is compared by: the rank of its best expert, or of the sum of its two best.
INLINE int32_t rank_of_group(const RouterCall& call, const int32_t* ranks, const float* biased,
                             int64_t size) {
    if (!call.sums_two) {
        int32_t best = TAKEN;
        for (int64_t i = 0; i < size; i++) best = ranks[i] > best ? ranks[i] : best;
        return best;
    }
    float first = -__builtin_inff(), second = first;
    for (int64_t i = 0; i < size; i++) {
        const float value = biased[i];
        second = value > first ? first : larger(value, second);
        first = larger(value, first);
    }
    return rank_of(first + second);
}

// Takes the experts of all groups but the best.
INLINE void bar_groups(const RouterCall& call, int32_t* ranks, const float* biased) {
    const int64_t size = call.experts / call.groups;
    int32_t of_groups[PADDED];
    for (int64_t i = 0; i < call.groups + LANES; i++) of_groups[i] = TAKEN;
    for (int64_t group = 0; group < call.groups; group++)
        of_groups[group] = rank_of_group(call, ranks + group * size, biased + group * size, size);
    for (int64_t i = 0; i < call.top_groups; i++) take_greatest(of_groups, call.groups);
    for (int64_t group = 0; group < call.groups; group++)
        for (int64_t i = 0; of_groups[group] != TAKEN && i < size; i++)
            ranks[group * size + i] = TAKEN;
}

template <class T>
static void route_rows(const RouterCall& call, int64_t first, int64_t end) {
    const int64_t experts = call.experts;
    float scores[PADDED], biased[PADDED];
    int32_t ranks[PADDED];
    for (int64_t r = first; r < end; r++) {
        const T* logits = static_cast<const T*>(call.logits) + r * experts;
        each_vector(experts, [&] VECTOR_OF(i, count) {
            Floats value = widened(logits + i, count);
            narrow(scores + i, call.scoring == SIGMOID_SCORES ? sigmoid_of(value) : value, count);
        });
        if (call.scoring == SOFTMAX) softmax(scores, experts);
        each_vector(experts, [&] VECTOR_OF(i, count) {
            Floats value = widened(scores + i, count);
            if (call.bias != nullptr) value += widened(call.bias + i, count);
            narrow(biased + i, value, count);
            Floats choice = call.bias != nullptr ? value : widened(logits + i, count);
            store(ranks + i, ranks_of(choice));
        });
        for (int64_t i = experts; i < experts + LANES && i < PADDED; i++) ranks[i] = TAKEN;
        if (call.groups > 1) bar_groups(call, ranks, biased);

        float* weights = call.weights + r * call.top_k;
        int32_t* chosen = call.chosen + r * call.top_k;
        for (int64_t k = 0; k < call.top_k; k++) {
            chosen[k] = take_greatest(ranks, experts);
            weights[k] = scores[chosen[k]];
        }
        if (call.scoring == SOFTMAX_TOP_K) softmax(weights, call.top_k);
        float sum = 0;
        for (int64_t k = 0; k < call.top_k; k++) sum += weights[k];
        for (int64_t k = 0; k < call.top_k; k++) {
            if (call.renormalize) weights[k] /= sum + 1e-20f;
            weights[k] *= float(call.scaling);
        }
    }
}

static void route(const RouterCall& call, int64_t first, int64_t end) {
    call.type == FLOAT32 ? route_rows<float>(call, first, end) : route_rows<Bf16>(call, first, end);
}

// Numbers at even places, and those at odd ones.
INLINE void part_pairs(const Bf16* from, Floats& even, Floats& odd) {
    Words pairs = load<Words>(from);
    even = bits_as<Floats>(pairs << 16), odd = bits_as<Floats>(pairs & 0xffff0000);
}
INLINE void part_pairs(const float* from, Floats& even, Floats& odd) {
    for (int lane = 0; lane < LANES; lane++)
        even[lane] = from[2 * lane], odd[lane] = from[2 * lane + 1];
}

template <class T>
static void gate_rows(const GateCall& call, int64_t first, int64_t end) {
    const int64_t columns = call.columns;
    const float limit = float(call.limit), alpha = float(-call.alpha), offset = float(call.offset);
    for (int64_t r = first; r < end; r++) {
        const T* row = static_cast<const T*>(call.x) + r * 2 * columns;
        T* out = static_cast<T*>(call.out) + r * columns;
        each_vector(columns, [&] VECTOR_OF(i, count) {
            Floats gate, up;
            if (call.is_interleaved) {
                T both[2 * LANES] = {};
                if (count < LANES) __builtin_memcpy(both, row + 2 * i, 2 * count * BYTES<T>);
                part_pairs(count < LANES ? both : row + 2 * i, gate, up);
            } else {
                gate = widened(row + i, count), up = widened(row + columns + i, count);
            }
            gate = gate > limit ? all(limit) : gate;
            up = up > limit ? all(limit) : up;
            up = up < -limit ? all(-limit) : up;
            narrow(out + i, gate / (exp_of(gate * alpha) + 1.0f) * (up + offset), count);
        });
    }
}

static void gate(const GateCall& call, int64_t first, int64_t end) {
    call.type == FLOAT32 ? gate_rows<float>(call, first, end) : gate_rows<Bf16>(call, first, end);
}

template <class T>
static void combine_rows(const CombineCall& call, int64_t first, int64_t end) {
    const T* rows = static_cast<const T*>(call.x);
    for (int64_t r = first; r < end; r++) {
        const int32_t* places = call.places + r * call.top_k;
        const float* weights = call.weights + r * call.top_k;
        T* out = static_cast<T*>(call.out) + r * call.columns;
        each_vector(call.columns, [&] VECTOR_OF(i, count) {
            Floats sum = {};
            for (int64_t k = 0; k < call.top_k; k++)
                sum += widened(rows + places[k] * call.columns + i, count) * weights[k];
            narrow(out + i, sum, count);
        });
    }
}

static void combine(const CombineCall& call, int64_t first, int64_t end) {
    call.type == FLOAT32 ? combine_rows<float>(call, first, end)
                         : combine_rows<Bf16>(call, first, end);
}
