// The reader of packed models, a model and its first tokens. The first two bytes say where config.json begins.
#include <stdlib.h>
#include <string.h>

#include "graphs/model.h"

static void run(qslm_bytes file, qslm_bytes config, uint8_t *memory, size_t size) {
    qslm_error error;
    qslm_arena arena = {memory, size, 0};
    qslm_model *model = qslm_load(file, config, 2, &arena, &error);
    const int32_t ids[3] = {0, 1, 0};
    if (model == NULL) return;
    const qslm_sizes *sizes = qslm_sizes_of(model);
    float *logits = malloc((sizes->vocabulary + sizes->classes) * sizeof *logits);
    if (sizes->classes > 0) qslm_classify(model, ids, 3, logits, &error);
    else qslm_advance(model, ids, 3, logits, &error);
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    qslm_error error;
    if (size < 2) return 0;
    const size_t length = size - 2, cut = (size_t)data[0] | (size_t)data[1] << 8, at = cut < length ? cut : length;
    uint8_t *file = malloc(at + 1), *config = malloc(length - at + 1); // of their own, so that reading beyond is seen
    memcpy(file, data + 2, at);
    memcpy(config, data + 2 + at, length - at);
    const qslm_bytes model = {file, at}, described = {config, length - at};
    const size_t wanted = qslm_model_memory(model, described, 2, &error);
    if (wanted > 0 && wanted < (size_t)1 << 28) {
        uint8_t *memory = malloc(wanted);
        run(model, described, memory, wanted);
        free(memory);
    }
    free(file), free(config);
    return 0;
}
