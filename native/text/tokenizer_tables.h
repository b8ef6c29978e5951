// Within the tokenizer: names of tokens and the two hash tables. Both have twice the places that they need; a search
// ends after QSLM_LONGEST_PROBE places, so that a file that is made to crowd them costs no time: it is refused.
#ifndef QSLM_TOKENIZER_TABLES_H
#define QSLM_TOKENIZER_TABLES_H

#include "text/tokenizer.h"

#define QSLM_LONGEST_PROBE 1024

// Places that a table for `count` entries has: a power of two.
uint32_t qslm_places(uint32_t count);

// Turns the name of a token into its bytes, in place, where each of its characters stands for a byte (as GPT-2 names
// them: a space is U+0120). Where one does not it returns false, and what it has turned is to be read anew.
bool qslm_name_to_bytes(char *name, size_t *size);

// The place of a name, which is empty (QSLM_NO_TOKEN) where no token has it; NULL where the table is crowded.
uint32_t *qslm_token_place(const qslm_tokenizer *tokenizer, const char *bytes, size_t size, bool byte_level);

// The id of that name, or QSLM_NO_TOKEN.
uint32_t qslm_token_named(const qslm_tokenizer *tokenizer, const char *bytes, size_t size, bool byte_level);

// The place of a pair, which is empty (rank QSLM_NO_TOKEN) where it does not merge; NULL where the table is crowded.
qslm_pair *qslm_pair_place(const qslm_tokenizer *tokenizer, uint32_t left, uint32_t right);

#endif
