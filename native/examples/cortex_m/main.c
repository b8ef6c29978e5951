// The same on a board and on a host: encode a prompt, go on with it by the likeliest tokens and by drawn ones, and print the
// ids, a digest of all logits, and the memory that was used.
#include <stdarg.h>
#include <string.h>

#include "console.h"
#include "model.h"
#include "qslm.h"

#ifndef TOKENS
#define TOKENS 64
#endif
#define PROMPT "The river runs"
enum { PROMPT_SIZE = sizeof PROMPT - 1, SEED = 7 };

static uint8_t memory[MODEL_MEMORY + MODEL_TOKENIZER_MEMORY];
static float logits[MODEL_VOCABULARY];
static int32_t order[MODEL_VOCABULARY];
static uint32_t ids[PROMPT_SIZE], scratch[6 * PROMPT_SIZE]; // qslm_tokenizer_scratch

static void print(const char *format, ...) QSLM_PRINTF(1, 2);

static void print(const char *format, ...) {
    char text[128];
    va_list values;
    va_start(values, format);
    qslm_print_list(text, sizeof text, format, values);
    va_end(values);
    console_write(text);
}

static int fail(const char *problem) {
    print("FAILED: %s\n", problem);
    return 1;
}

// FNV-1a of the bits of all logits.
static uint64_t add_logits(uint64_t digest) {
    for (size_t i = 0; i < MODEL_VOCABULARY; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        digest = (digest ^ bits) * 0x100000001b3u;
    }
    return digest;
}

static bool generate(const char *name, qslm_model *model, size_t count, qslm_sampler sampler, qslm_error *error) {
    uint64_t digest = 0xcbf29ce484222325u;
    qslm_reset(model);
    if (!qslm_advance(model, (const int32_t *)ids, count, logits, error)) return false; // ids are below 2^31
    print("%s", name);
    for (int i = 0; i < TOKENS; i++) {
        digest = add_logits(digest);
        const int32_t token = qslm_draw(&sampler, logits, order, MODEL_VOCABULARY);
        print(" %ld", (long)token);
        if (!qslm_advance(model, &token, 1, logits, error)) return false;
    }
    print("\n%s logits %llx\n", name, (unsigned long long)add_logits(digest));
    return true;
}

int main(void) {
    qslm_error error;
    qslm_tokenizer words;
    size_t count;
    qslm_arena arena = {memory, sizeof memory, 0};
    qslm_model *model = qslm_load(model_file(model_image), model_config(model_image), 1, &arena, &error);
    if (model == NULL || !qslm_load_tokenizer(&words, model_tokenizer(model_image), &arena, &error) ||
        !qslm_tokenizer_encode(&words, PROMPT, PROMPT_SIZE, scratch, ids, &count, &error)) {
        return fail(error.text);
    }
    print("prompt");
    for (size_t i = 0; i < count; i++) print(" %lu", (unsigned long)ids[i]);
    print("\n");
    if (!generate("likeliest", model, count, (qslm_sampler){0.0f, 1.0f, 0}, &error) ||
        !generate("drawn", model, count, (qslm_sampler){0.8f, 0.95f, SEED}, &error)) {
        return fail(error.text);
    }
    print("memory %zu of %zu\n", arena.used, sizeof memory);
    if (stack_size() > 0) print("stack %zu of %zu\n", stack_used(), stack_size());
    return 0;
}
