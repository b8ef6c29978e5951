// Bit packing: `count` codes of `bits` bits each become one little-endian bit stream without gaps.
#ifndef QSLM_PACKING_H
#define QSLM_PACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QSLM_PACKING_MAX_BITS 16

// Bytes that `count` codes take; cannot overflow.
size_t qslm_packed_size(size_t count, unsigned bits);

// Code i goes to bits [i * bits, (i + 1) * bits) of `packed`, which holds qslm_packed_size(count, bits) bytes;
// bit k of the stream is bit k % 8 of byte k / 8, and the unused bits of the last byte are zero.
// bits is 1 to 16. Returns false when a code needs more than `bits` bits (its high bits were dropped).
bool qslm_pack_u8(const uint8_t *codes, size_t count, unsigned bits, uint8_t *packed);
bool qslm_pack_u16(const uint16_t *codes, size_t count, unsigned bits, uint8_t *packed);
bool qslm_pack_u32(const uint32_t *codes, size_t count, unsigned bits, uint8_t *packed);

// The inverse. Reads no byte beyond qslm_packed_size(count, bits). qslm_unpack_u8 wants bits <= 8.
void qslm_unpack_u8(const uint8_t *packed, size_t count, unsigned bits, uint8_t *codes);
void qslm_unpack_u16(const uint8_t *packed, size_t count, unsigned bits, uint16_t *codes);
void qslm_unpack_u32(const uint8_t *packed, size_t count, unsigned bits, uint32_t *codes);

#ifdef __cplusplus
}
#endif

#endif
