// A packed model goes on with a text. In the folder of the repository, for 64-bit ARM with another compiler:
//
//     qslm export MODEL -o export
//     cc -O3 -ffp-contract=off -Inative -Iexport native/examples/ten_lines.c export/model.S native/graphs/*.c
//         native/formats/*.c native/products/*.c native/packing/*.c native/text/*.c native/system/*.c -pthread -lm
#include <stdio.h>

#include "model.h"
#include "qslm.h"

static uint8_t memory[MODEL_MEMORY + MODEL_TOKENIZER_MEMORY];
static float logits[MODEL_VOCABULARY];

static int say(const char *problem) {
    fprintf(stderr, "%s\n", problem);
    return 1;
}

int main(void) {
    qslm_error error;
    qslm_tokenizer words;
    qslm_arena arena = {memory, sizeof memory, 0};
    qslm_model *model = qslm_load(model_file(model_image), model_config(model_image), 1, &arena, &error);
    if (model == NULL) return say(error.text);
    if (!qslm_load_tokenizer(&words, model_tokenizer(model_image), &arena, &error)) return say(error.text);
    int32_t token = 0; // that the text begins with
    for (int i = 0; i < 20; i++) {
        size_t size;
        if (!qslm_advance(model, &token, 1, logits, &error)) return say(error.text);
        token = qslm_likeliest(logits, MODEL_VOCABULARY);
        const char *text = qslm_tokenizer_decode(&words, (uint32_t)token, &size);
        fwrite(text, 1, size, stdout);
    }
    return puts("") < 0;
}
