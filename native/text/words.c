#include "text/words.h"

#include <stdbool.h>
#include <string.h>

#include "text/unicode_classes.h"
#include "system/utf8.h"

typedef enum { OTHER, LETTER, NUMBER, SPACE } class;

static inline class class_of(uint32_t point) {
    const uint64_t word = QSLM_CLASS_WORD[QSLM_CLASS_BLOCK[point >> 8] * 8 + (point >> 5) % 8];
    return (class)(word >> 2 * (point % 32) & 3);
}

// Reads one code point, which is known to be there.
static inline class read_class(const char *text, size_t size, size_t *length) {
    uint32_t point = 0;
    *length = qslm_utf8_read(text, size, &point);
    return class_of(point);
}

// Bytes of the code points at the start of `text` that are of one class; `last` is the length of the last of them.
static size_t run(const char *text, size_t size, class wanted, size_t *last) {
    size_t taken = 0, length;
    while (taken < size && read_class(text + taken, size - taken, &length) == wanted) {
        taken += length;
        *last = length;
    }
    return taken;
}

// 's|'t|'re|'ve|'m|'ll|'d after the apostrophe that `text` begins with; 0 where none follows.
static size_t contraction(const char *text, size_t size) {
    if (size > 1 && memchr("stmd", text[1], 4)) return 2;
    if (size < 3) return 0;
    const char *const two = text + 1;
    return !memcmp(two, "re", 2) || !memcmp(two, "ve", 2) || !memcmp(two, "ll", 2) ? 3 : 0;
}

// \s+(?!\S)|\s+: before a word its last character is left to the word, unless it is the only one.
static size_t white_space(const char *text, size_t size) {
    size_t last = 0;
    const size_t taken = run(text, size, SPACE, &last);
    return taken == size || taken == last ? taken : taken - last;
}

size_t qslm_word(const char *text, size_t size) {
    if (*text == '\'') {
        const size_t short_form = contraction(text, size);
        if (short_form) return short_form;
    }
    const size_t space = *text == ' ' && size > 1;
    size_t length;
    const class kind = read_class(text + space, size - space, &length);
    if (kind == SPACE) return white_space(text, size);
    return space + run(text + space, size - space, kind, &length);
}

// ---- numbers -------------------------------------------------------------------------------------------------------

static bool is_numeric(const char *text, size_t size, size_t *length) {
    uint32_t point = 0;
    *length = qslm_utf8_read(text, size, &point);
    bool found = class_of(point) == NUMBER;
    for (size_t i = 0; point >= QSLM_NEWER_NUMBERS[0][0] && i < sizeof QSLM_NEWER_NUMBERS / 8; i++) {
        found |= point >= QSLM_NEWER_NUMBERS[i][0] && point <= QSLM_NEWER_NUMBERS[i][1];
    }
    return found;
}

size_t qslm_part(const char *text, size_t size, qslm_digits digits) {
    if (digits == QSLM_DIGITS_KEPT) return size;
    size_t length;
    const bool numeric = is_numeric(text, size, &length);
    size_t taken = length;
    if (numeric && digits == QSLM_DIGITS_SINGLE) return taken;
    while (taken < size && is_numeric(text + taken, size - taken, &length) == numeric) taken += length;
    return taken;
}
