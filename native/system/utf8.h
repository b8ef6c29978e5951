// UTF-8, one code point at a time.
#ifndef QSLM_UTF8_H
#define QSLM_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define QSLM_UTF8_LONGEST 4 // bytes of a code point

// Bytes of the code point that `text` of `size` bytes begins with, 0 where it begins with none: no surrogates, nothing
// over U+10FFFF, no code point in more bytes than it needs.
static inline size_t qslm_utf8_read(const char *text, size_t size, uint32_t *point) {
    const unsigned char *byte = (const unsigned char *)text;
    if (size == 0) return 0;
    if (byte[0] < 0x80) {
        *point = byte[0];
        return 1;
    }
    const size_t length = byte[0] >= 0xF0 ? 4 : byte[0] >= 0xE0 ? 3 : 2;
    if (byte[0] < 0xC2 || byte[0] > 0xF4 || length > size) return 0;
    uint32_t value = byte[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((byte[i] & 0xC0) != 0x80) return 0;
        value = value << 6 | (byte[i] & 0x3F);
    }
    if (length == 3 && (value < 0x800 || (value >> 11) == 0x1B)) return 0;
    if (length == 4 && (value < 0x10000 || value > 0x10FFFF)) return 0;
    *point = value;
    return length;
}

// Writes a code point that is not over U+10FFFF; returns its bytes.
static inline size_t qslm_utf8_write(uint32_t point, char text[QSLM_UTF8_LONGEST]) {
    const size_t length = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0x00, 0xC0, 0xE0, 0xF0};
    for (size_t i = length; i-- > 1; point >>= 6) text[i] = (char)(0x80 | (point & 0x3F));
    text[0] = (char)(first[length] | point);
    return length;
}

#endif
