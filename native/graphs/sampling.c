// The likeliest tokens come off a heap one by one, until they make up top_p: few of many words.
#include "graphs/sampling.h"

#include "graphs/model.h"
#include "system/portable.h"

// A number of [0, 1) (Steele, Lea and Flood, splitmix64).
static double next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

// The likelier first, the earlier of equals.
static int comes_first(const float *weights, int32_t one, int32_t other) {
    return weights[one] > weights[other] || (weights[one] == weights[other] && one < other);
}

static void sift(const float *weights, int32_t *heap, size_t root, size_t count) {
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && comes_first(weights, heap[child + 1], heap[child])) child++;
        if (!comes_first(weights, heap[child], heap[root])) return;
        const int32_t moved = heap[root];
        heap[root] = heap[child];
        heap[child] = moved;
    }
}

// Logits into weights, e^((x - largest) / temperature), and their sum.
static double weigh(float *logits, size_t count, float temperature) {
    const float largest = logits[qslm_likeliest(logits, count)];
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        logits[i] = qslm_expf((logits[i] - largest) / temperature);
        sum += logits[i];
    }
    return sum;
}

int32_t qslm_draw(qslm_sampler *sampler, float *logits, int32_t *order, size_t count) {
    if (!(sampler->temperature > 0.0f)) return qslm_likeliest(logits, count);
    const double share = weigh(logits, count, sampler->temperature) * sampler->top_p;
    for (size_t i = 0; i < count; i++) order[i] = (int32_t)i;
    for (size_t root = count / 2; root-- > 0;) sift(logits, order, root, count);
    size_t taken = 0; // they go to the end, the likeliest last
    double sum = 0.0;
    do {
        const int32_t best = order[0];
        order[0] = order[count - 1 - taken];
        order[count - 1 - taken] = best;
        sum += logits[best];
        taken++;
        sift(logits, order, 0, count - taken);
    } while (sum < share && taken < count);
    double drawn = next_random(&sampler->random) * sum;
    for (size_t i = 0; i + 1 < taken; i++) {
        const int32_t token = order[count - 1 - i];
        if (drawn < logits[token]) return token;
        drawn -= logits[token];
    }
    return order[count - taken];
}
