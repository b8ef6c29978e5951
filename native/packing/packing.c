// Bit packing through a 64-bit word that is filled and drained 32 bits at a time.
#include "packing/packing.h"

size_t qslm_packed_size(size_t count, unsigned bits) {
    return count / 8 * bits + (count % 8 * bits + 7) / 8;
}

// Byte by byte, so that every machine writes the same file; compilers make one store or load of it.
static inline void store_u32(uint8_t *to, uint32_t word) {
    to[0] = (uint8_t)word;
    to[1] = (uint8_t)(word >> 8);
    to[2] = (uint8_t)(word >> 16);
    to[3] = (uint8_t)(word >> 24);
}

static inline uint32_t load_u32(const uint8_t *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

// At most 31 bits wait in `word` when a code of up to 16 bits is added: 47 of 64.
#define DEFINE_PACK(NAME, TYPE)                                                         \
    bool NAME(const TYPE *codes, size_t count, unsigned bits, uint8_t *packed) {        \
        const uint32_t mask = ((uint32_t)1 << bits) - 1;                                \
        uint64_t word = 0;                                                              \
        unsigned filled = 0;                                                            \
        uint32_t seen = 0;                                                              \
        for (size_t i = 0; i < count; i++) {                                            \
            const uint32_t code = codes[i];                                             \
            seen |= code;                                                               \
            word |= (uint64_t)(code & mask) << filled;                                  \
            filled += bits;                                                             \
            if (filled >= 32) {                                                         \
                store_u32(packed, (uint32_t)word);                                      \
                packed += 4;                                                            \
                word >>= 32;                                                            \
                filled -= 32;                                                           \
            }                                                                           \
        }                                                                               \
        for (; filled > 0; filled = filled > 8 ? filled - 8 : 0) {                      \
            *packed++ = (uint8_t)word;                                                  \
            word >>= 8;                                                                 \
        }                                                                               \
        return (seen & ~mask) == 0;                                                     \
    }

DEFINE_PACK(qslm_pack_u8, uint8_t)
DEFINE_PACK(qslm_pack_u16, uint16_t)
DEFINE_PACK(qslm_pack_u32, uint32_t)

// Fewer than `bits` (16 at most) bits wait in `word` when up to 32 more are added: 47 of 64.
#define DEFINE_UNPACK(NAME, TYPE)                                                       \
    void NAME(const uint8_t *packed, size_t count, unsigned bits, TYPE *codes) {        \
        const uint32_t mask = ((uint32_t)1 << bits) - 1;                                \
        const uint8_t *end = packed + qslm_packed_size(count, bits);                    \
        uint64_t word = 0;                                                              \
        unsigned filled = 0;                                                            \
        for (size_t i = 0; i < count; i++) {                                            \
            if (filled < bits && end - packed >= 4) {                                   \
                word |= (uint64_t)load_u32(packed) << filled;                           \
                packed += 4;                                                            \
                filled += 32;                                                           \
            }                                                                           \
            while (filled < bits) {                                                     \
                word |= (uint64_t)*packed++ << filled;                                  \
                filled += 8;                                                            \
            }                                                                           \
            codes[i] = (TYPE)(word & mask);                                             \
            word >>= bits;                                                              \
            filled -= bits;                                                             \
        }                                                                               \
    }

DEFINE_UNPACK(qslm_unpack_u8, uint8_t)
DEFINE_UNPACK(qslm_unpack_u16, uint16_t)
DEFINE_UNPACK(qslm_unpack_u32, uint32_t)
