// The tokenizer on any bytes: files that it takes encode texts to ids that decode to their bytes; others have a reason.
// The part of the input after the first byte 0 is the text.
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *exactly(size_t bytes) { // so that the address sanitizer tells a byte too much
    void *const memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

// Bytes without a token are dropped: what is decoded is a subsequence of the text.
static void check(const qslm_tokenizer *tokenizer, const uint32_t *ids, size_t count, const char *text, size_t size) {
    const char *at = text, *const end = text + size;
    for (size_t i = 0; i < count; i++) {
        size_t length;
        const char *const bytes = qslm_tokenizer_decode(tokenizer, ids[i], &length);
        if (!bytes) abort();
        for (size_t k = 0; k < length; k++) {
            while (at < end && *at != bytes[k]) at++;
            if (at == end) return; // an added token whose characters stand for other bytes
            at++;
        }
    }
}

static void encode(const qslm_tokenizer *tokenizer, const char *text, size_t size) {
    uint32_t *const scratch = exactly(qslm_tokenizer_scratch(size) * sizeof *scratch);
    uint32_t *const ids = exactly(size * sizeof *ids);
    size_t count = 0;
    qslm_error error = {{0}};
    const bool taken = qslm_tokenizer_encode(tokenizer, text, size, scratch, ids, &count, &error);
    if (taken != !error.text[0] || count > size) abort();
    check(tokenizer, ids, count, text, size);
    free(ids);
    free(scratch);
}

static void load(const char *json, size_t size, const char *text, size_t text_size) {
    qslm_error error = {{0}};
    qslm_tokenizer_plan plan;
    qslm_tokenizer tokenizer;
    bool taken = qslm_tokenizer_read(&plan, json, size, &error);
    if (taken) {
        void *const arena = exactly(plan.arena_bytes);
        taken = qslm_tokenizer_load(&tokenizer, &plan, arena, &error);
        if (taken) encode(&tokenizer, text, text_size);
        if (taken) qslm_tokenizer_find(&tokenizer, text, text_size);
        free(arena);
    }
    if (taken != !error.text[0]) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *const cut = size ? memchr(data, 0, size) : NULL;
    const size_t json_size = cut ? (size_t)(cut - data) : size, text_size = cut ? size - json_size - 1 : 0;
    char *const json = exactly(json_size), *const text = exactly(text_size);
    if (json_size) memcpy(json, data, json_size);
    if (text_size) memcpy(text, cut + 1, text_size);
    load(json, json_size, text, text_size);
    free(text);
    free(json);
    return 0;
}
