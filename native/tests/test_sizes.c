// Sizes that no target of 32 bits can address are refused there, and on 64 bits come out as they are.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphs/model.h"

static void check(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static const bool narrow = sizeof(size_t) == 4;

// A header without an entry.
static const uint8_t file[] = "\x10\0\0\0\0\0\0\0{\"__metadata__\":";

static size_t memory_of(const char *config, size_t chunk, qslm_error *error) {
    const qslm_bytes text = {(const uint8_t *)config, strlen(config)};
    return qslm_model_memory((qslm_bytes){file, sizeof file - 1}, text, chunk, error);
}

static void check_refused(const char *config, size_t chunk) {
    qslm_error error = {{0}};
    const size_t memory = memory_of(config, chunk, &error);
    check(narrow ? memory == 0 : memory > UINT32_MAX, config);
    check(!narrow || strstr(error.text, "more memory than 32 bits can address") != NULL, error.text);
}

static void test_networks(void) {
    static const char large[] = "{\"architecture\":\"spikegpt\",\"vocabulary_size\":9,\"width\":65536,\"layers\":4096,"
                                "\"ffn_width\":65536}";
    static const char many[] = "{\"architecture\":\"transformers\",\"context_length\":16777216,\"network\":{\"model_type\":\"llama\","
                               "\"vocab_size\":9,\"hidden_size\":512,\"num_hidden_layers\":8,\"intermediate_size\":512,"
                               "\"num_attention_heads\":8}}";
    static const char mini[] = "{\"architecture\":\"spikegpt\",\"vocabulary_size\":4096,\"width\":256,\"layers\":6,"
                               "\"ffn_width\":1024}";
    qslm_error error = {{0}};
    check_refused(large, 1);
    check_refused(many, 1);
    check(memory_of(mini, 1, &error) > 100000, error.text);
    check(memory_of(mini, 4096, &error) < 100000000, error.text);
}

static void test_header(void) {
    static const uint8_t beyond[16] = {8, 0, 0, 0, 1}; // a header of 2^32 + 8 bytes
    check(qslm_file_memory((qslm_bytes){beyond, sizeof beyond}) == 0, "a header of more than 32 bits");
    check(qslm_file_memory((qslm_bytes){file, 7}) == 0, "less than a length");
}

static void test_arena(void) {
    static uint8_t memory[256];
    qslm_error error;
    qslm_arena arena = {memory, sizeof memory, 0};
    check(qslm_take(&arena, 100, &error) != NULL, "memory that is there");
    for (size_t size = SIZE_MAX; size > SIZE_MAX - 200; size--) {
        check(qslm_take(&arena, size, &error) == NULL, "more than there is");
    }
}

int main(void) {
    test_networks();
    test_header();
    test_arena();
    printf("sizes: refused where %d bits cannot address them\n", (int)(8 * sizeof(size_t)));
    return 0;
}
