// Cuts text into the words within which byte pairs merge: the regular expression of GPT-2,
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
#ifndef QSLM_WORDS_H
#define QSLM_WORDS_H

#include <stddef.h>

// What is done with numbers first: nothing, or they are cut off, as runs or one by one.
typedef enum { QSLM_DIGITS_KEPT, QSLM_DIGITS_RUNS, QSLM_DIGITS_SINGLE } qslm_digits;

// Bytes of the part of `text` (valid UTF-8, size > 0) that the rule for numbers cuts off first. Words lie within parts.
size_t qslm_part(const char *text, size_t size, qslm_digits digits);

// Bytes of the first word of `text` (valid UTF-8, size > 0); the end of `text` counts as the end of what is matched.
size_t qslm_word(const char *text, size_t size);

#endif
