// Penalties on the tokens that a text has: repetition, then frequency and presence.
#include <cstdlib>

#include "sampling.h"

namespace quire {
namespace {

// How often a row has each token; all zero between calls.
class Counts {
  public:
    ~Counts() { std::free(counts_); }
    int32_t* of(int64_t vocabulary) {
        if (vocabulary > size_) {
            std::free(counts_);
            counts_ = static_cast<int32_t*>(std::calloc(size_t(vocabulary), sizeof(int32_t)));
            size_ = counts_ == nullptr ? 0 : vocabulary;
        }
        return counts_;
    }

  private:
    int32_t* counts_ = nullptr;
    int64_t size_ = 0;
};

thread_local Counts thread_counts;

bool are_in_vocabulary(const int32_t* tokens, int64_t count, int64_t vocabulary) {
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= vocabulary) return false;
    return true;
}

// Multiplies or divides the logits of tokens that are not yet marked, and marks them.
void repeat(const int32_t* tokens, int64_t count, float penalty, float* logits, int32_t* marks) {
    for (int64_t i = 0; i < count; i++) {
        if (marks[tokens[i]]++ > 0) continue;
        float& logit = logits[tokens[i]];
        logit = logit > 0 ? logit / penalty : logit * penalty;
    }
}

void clear(const int32_t* tokens, int64_t count, int32_t* marks) {
    for (int64_t i = 0; i < count; i++) marks[tokens[i]] = 0;
}

}  // namespace
}  // namespace quire

using namespace quire;

// BAD_BATCH, and nothing is written, if a token is not in the vocabulary.
EXPORT int quire_penalties(const PenaltyCall* given) {
    const PenaltyCall& call = *given;
    const bool has_repetition = call.repetition != 1;
    const int64_t prompt_length = has_repetition ? call.prompt_length : 0;
    if (!are_in_vocabulary(call.prompt, prompt_length, call.vocabulary) ||
        !are_in_vocabulary(call.generated, call.generated_length, call.vocabulary))
        return BAD_BATCH;
    int32_t* counts = thread_counts.of(call.vocabulary);
    if (counts == nullptr) return NO_MEMORY;
    if (has_repetition) {
        const float penalty = float(call.repetition);
        repeat(call.prompt, prompt_length, penalty, call.logits, counts);
        repeat(call.generated, call.generated_length, penalty, call.logits, counts);
        clear(call.prompt, prompt_length, counts);
        clear(call.generated, call.generated_length, counts);
    }
    for (int64_t i = 0; i < call.generated_length; i++) counts[call.generated[i]]++;
    for (int64_t i = 0; i < call.generated_length; i++) {
        int32_t& count = counts[call.generated[i]];
        if (count == 0) continue;
        call.logits[call.generated[i]] -= float(count * call.frequency + call.presence);
        count = 0;
    }
    return OK;
}
