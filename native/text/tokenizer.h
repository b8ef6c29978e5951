// Byte-level BPE, as a `tokenizer.json` of Hugging Face's tokenizers describes it: the same ids as that library gives.
//
//     qslm_tokenizer_plan plan;
//     qslm_tokenizer tokenizer;
//     if (!qslm_tokenizer_read(&plan, json, size, &error)) ...           // how much memory it takes
//     void *arena = malloc(plan.arena_bytes);
//     if (!qslm_tokenizer_load(&tokenizer, &plan, arena, &error)) ...    // `json` is not needed any more
//     uint32_t *scratch = malloc(qslm_tokenizer_scratch(text_size) * sizeof *scratch);
//     if (!qslm_tokenizer_encode(&tokenizer, text, text_size, scratch, ids, &count, &error)) ...
//
// Nothing here allocates. Added tokens are found in the text; nothing is put around it. What a file asks for beyond
// byte-level BPE (GPT-2's regular expression, with or without numbers cut off before) is refused by name.
#ifndef QSLM_TOKENIZER_H
#define QSLM_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "system/error.h"
#include "formats/json.h"
#include "text/words.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QSLM_NO_TOKEN UINT32_MAX

// What a file holds and the memory that it takes. It points into the file's text.
typedef struct {
    const char *json;
    size_t size;                                 // bytes of the file
    qslm_json_span vocabulary, merges, added;    // where they stand in it
    uint32_t vocabulary_count, merge_count, added_count;
    size_t text_bytes;                           // of all tokens, at most, and room to put two together
    size_t added_bytes;                          // of the added tokens, at most
    qslm_digits digits;
    bool nfc; // it normalizes text to NFC
    size_t arena_bytes;
} qslm_tokenizer_plan;

typedef struct {
    uint32_t start, size; // bytes that it decodes to, in `text`
    bool byte_level;      // its name in the file has a character a byte; otherwise the bytes are the name
    bool special;         // such as <|endoftext|>: left out where text is decoded for people
} qslm_token;

// Byte pairs: a hash table from two ids to the rank of their merge.
typedef struct {
    uint32_t left, right;
    uint32_t rank; // QSLM_NO_TOKEN: an empty place
} qslm_pair;

// Added tokens: a tree of their bytes.
typedef struct {
    uint32_t token;   // that ends here, QSLM_NO_TOKEN where none does
    uint32_t child, sibling; // 0: none
    uint8_t byte;
} qslm_branch;

typedef struct {
    uint32_t token_count, merge_count;
    qslm_digits digits;
    bool nfc;
    uint32_t byte_token[256];  // the token of each byte; a byte without one is dropped
    bool added_starts[2][256]; // which bytes an added token begins with
    // In the arena:
    qslm_token *tokens;        // (token_count)
    uint32_t *merged;          // (merge_count): what the merge of each rank gives
    char *text;
    uint32_t *places;          // hash table of the tokens' names: (place_mask + 1)
    uint32_t place_mask;
    qslm_pair *pairs;          // (pair_mask + 1)
    uint32_t pair_mask;
    qslm_branch *branches;     // 0 and 1 are the roots: of what is looked for first, and in what that leaves
} qslm_tokenizer;

// Reads everything of a file but its tokens. Refuses what is no tokenizer.json, or not of the kind above.
bool qslm_tokenizer_read(qslm_tokenizer_plan *plan, const char *json, size_t size, qslm_error *error);

// Fills `tokenizer`; `arena` has plan->arena_bytes, aligned as malloc does. Refuses tokens and merges that do not fit.
bool qslm_tokenizer_load(qslm_tokenizer *tokenizer, const qslm_tokenizer_plan *plan, void *arena, qslm_error *error);

// Numbers of 32 bits that encoding a text of `size` bytes works with.
size_t qslm_tokenizer_scratch(size_t size);

// Ids of UTF-8 text of less than 2^27 bytes (so that scratch memory takes less than 2^32): `ids` has room for `size` of
// them, `count` says how many there are. Refuses bytes that are not UTF-8, and where the file normalizes text to NFC, a
// text that this could change: nothing is normalized here.
bool qslm_tokenizer_encode(const qslm_tokenizer *tokenizer, const char *text, size_t size, uint32_t *scratch,
                           uint32_t *ids, size_t *count, qslm_error *error);

// The bytes of one token, NULL where there is no such id. Of several tokens: one after the other. A character may be
// spread over tokens. `size` is set in any case.
const char *qslm_tokenizer_decode(const qslm_tokenizer *tokenizer, uint32_t id, size_t *size);

// The id of the token that has a name of at most 256 bytes in the file, QSLM_NO_TOKEN where there is none.
uint32_t qslm_tokenizer_find(const qslm_tokenizer *tokenizer, const char *name, size_t size);

#ifdef __cplusplus
}
#endif

#endif
