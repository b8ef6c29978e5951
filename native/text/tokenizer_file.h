// Within the tokenizer: what both passes over a tokenizer.json read.
#ifndef QSLM_TOKENIZER_FILE_H
#define QSLM_TOKENIZER_FILE_H

#include "text/tokenizer.h"

typedef struct {
    qslm_json_span content;
    int64_t id;
    bool special;
    bool normalized; // looked for in the normalized text, after the others
} qslm_added;

// Reads one of "added_tokens". Refuses those that are words of their own, or take white space with them.
bool qslm_read_added(qslm_json *json, qslm_added *added);

#endif
