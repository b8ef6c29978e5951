// The engine in one header, for programs that embed it: a packed model that runs where it lies, in flash for example.
// `qslm export MODEL -o export` writes the image model.bin, model.S to link it, and model.h, which says what lies where and
// how much memory it takes. The rest is ten lines (examples/ten_lines.c is these, and says how it is built):
//
//     #include "model.h"
//     static uint8_t memory[MODEL_MEMORY];
//     static float logits[MODEL_VOCABULARY];
//
//     qslm_error error;
//     qslm_arena arena = {memory, sizeof memory, 0};
//     qslm_model *model = qslm_load(model_file(model_image), model_config(model_image), 1, &arena, &error);
//     if (model == NULL) return say(error.text);
//     int32_t token = 0; // that the text begins with
//     for (int i = 0; i < 20; i++) {
//         if (!qslm_advance(model, &token, 1, logits, &error)) return say(error.text);
//         token = qslm_likeliest(logits, MODEL_VOCABULARY);
//     }
//
// Nothing is allocated, and no file is opened: all memory is the caller's arena. The same tokens come on every target,
// as long as the compiler contracts nothing (-ffp-contract=off). Compile graphs/, formats/, products/, packing/, text/ and
// system/ with this folder as an include path; -DQSLM_NO_THREADS where there are none.
#ifndef QSLM_H
#define QSLM_H

#include "formats/file.h"
#include "graphs/model.h"
#include "graphs/sampling.h"
#include "system/error.h"
#include "system/threads.h"
#include "text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

// A tokenizer.json into an arena that has MODEL_TOKENIZER_MEMORY bytes left; false and an error where it is not fit. The
// text of the file is not needed any more.
static inline bool qslm_load_tokenizer(qslm_tokenizer *tokenizer, qslm_bytes json, qslm_arena *arena, qslm_error *error) {
    qslm_tokenizer_plan plan;
    if (!qslm_tokenizer_read(&plan, (const char *)json.start, json.size, error)) return false;
    void *memory = qslm_take(arena, plan.arena_bytes, error);
    return memory != NULL && qslm_tokenizer_load(tokenizer, &plan, memory, error);
}

#ifdef __cplusplus
}
#endif

#endif
