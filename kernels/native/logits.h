// What is done to logits between the last matmul and sampling.
//
// Included once per variant, after row_math.h.

static void widen(const void* from, float* to, int64_t count) {
    each_vector(count, [&] VECTOR_OF(i, lanes) {
        narrow(to + i, widened(static_cast<const Bf16*>(from) + i, lanes), lanes);
    });
}

// Whether there is NaN or +inf, or nothing but -inf.
static bool is_invalid(const float* logits, int64_t vocabulary) {
    const Floats infinite = all(__builtin_inff());
    Floats greatest = -infinite;
    Ints is_wrong = {};
    each_vector(vocabulary, [&] VECTOR_OF(i, lanes) {
        Floats value = widened(logits + i, lanes);
        if (lanes < LANES) value = in_range(0, 0, int(lanes)) ? value : -infinite;
        // NaN is less than nothing.
        is_wrong |= ~(value < infinite);
        greatest = value > greatest ? value : greatest;
    });
    return any_of(is_wrong) || max_of(greatest) == -__builtin_inff();
}

// The logits whose bits are 0 become -inf: bit i % 32 of word i / 32, least first.
static void mask(const BitmaskCall& call, int64_t row) {
    float* logits = call.logits + row * call.vocabulary;
    const int32_t* words = call.words + row * call.num_words;
    const Floats masked = all(-__builtin_inff());
    Ints bit;
    for (int i = 0; i < LANES; i++) bit[i] = int32_t(1u << i);
    int64_t first = 0, word = 0;
    for (; word < call.num_words && first + 32 <= call.vocabulary; word++, first += 32) {
        const uint32_t allowed = uint32_t(words[word]);
        if (allowed == 0xffffffff) continue;
        for (int part = 0; part < 32; part += LANES) {
            float* place = logits + first + part;
            Ints is_masked = (all(int32_t(allowed >> part)) & bit) == 0;
            store(place, is_masked ? masked : load<Floats>(place));
        }
    }
    for (; first < call.vocabulary; first++) {
        const bool is_covered = first / 32 < call.num_words;
        const uint32_t allowed = is_covered ? uint32_t(words[first / 32]) : 0;
        if (!(allowed >> (first % 32) & 1)) logits[first] = -__builtin_inff();
    }
}
