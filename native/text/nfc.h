// Whether text is in Unicode's normalization form C, where normalizing changes nothing.
#ifndef QSLM_NFC_H
#define QSLM_NFC_H

#include <stddef.h>

// The first byte of `text` (valid UTF-8) at which it may not be in NFC; `size` where it surely is. A character that may
// combine with the one before it is in doubt, also where it stands as NFC wants it.
size_t qslm_nfc_doubt(const char *text, size_t size);

#endif
