#include "text/nfc.h"

#include <stdbool.h>

#include "text/unicode_nfc.h"
#include "system/utf8.h"

enum { RANGES = sizeof QSLM_NOT_SURELY_NFC / sizeof QSLM_NOT_SURELY_NFC[0] };

static bool is_in_doubt(uint32_t point) {
    if (point < QSLM_NOT_SURELY_NFC[0][0]) return false;
    size_t low = 0, high = RANGES; // the last range that starts at or before `point` is in [low, high)
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (QSLM_NOT_SURELY_NFC[middle][0] <= point) low = middle;
        else high = middle;
    }
    return point <= QSLM_NOT_SURELY_NFC[low][1];
}

size_t qslm_nfc_doubt(const char *text, size_t size) {
    uint32_t point = 0;
    for (size_t at = 0, length; at < size; at += length) {
        length = qslm_utf8_read(text + at, size - at, &point);
        if (is_in_doubt(point)) return at;
    }
    return size;
}
