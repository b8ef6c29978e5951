#include "text/tokenizer_tables.h"

#include <string.h>

#include "system/utf8.h"

uint32_t qslm_places(uint32_t count) {
    uint32_t places = 16;
    while (places / 2 < count) places *= 2;
    return places;
}

// ---- names ---------------------------------------------------------------------------------------------------------

// GPT-2 gives the bytes that print in Latin-1 their own code points; the other 68 follow from U+0100 in order.
static int byte_of(uint32_t point) {
    if ((point >= '!' && point <= '~') || (point >= 0xA1 && point <= 0xFF && point != 0xAD)) return (int)point;
    if (point < 0x100 || point >= 0x100 + 68) return -1;
    const int place = (int)point - 0x100;
    return place < 33 ? place : place < 67 ? place - 33 + 0x7F : 0xAD;
}

bool qslm_name_to_bytes(char *name, size_t *size) {
    size_t bytes = 0;
    uint32_t point = 0;
    for (size_t at = 0, length; at < *size; at += length) {
        length = qslm_utf8_read(name + at, *size - at, &point);
        const int byte = length ? byte_of(point) : -1;
        if (byte < 0) return false;
        name[bytes++] = (char)byte;
    }
    *size = bytes;
    return true;
}

// ---- tables --------------------------------------------------------------------------------------------------------

static uint32_t hash_bytes(const char *bytes, size_t size) { // FNV-1a
    uint32_t hash = 0x811C9DC5u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x01000193u;
    return hash ^ hash >> 15;
}

uint32_t *qslm_token_place(const qslm_tokenizer *tokenizer, const char *bytes, size_t size, bool byte_level) {
    const uint32_t home = hash_bytes(bytes, size);
    for (uint32_t probe = 0; probe < QSLM_LONGEST_PROBE; probe++) {
        uint32_t *const place = tokenizer->places + ((home + probe) & tokenizer->place_mask);
        if (*place == QSLM_NO_TOKEN) return place;
        const qslm_token *const token = tokenizer->tokens + *place;
        if (token->size != size || token->byte_level != byte_level) continue;
        if (!memcmp(tokenizer->text + token->start, bytes, size)) return place;
    }
    return NULL;
}

uint32_t qslm_token_named(const qslm_tokenizer *tokenizer, const char *bytes, size_t size, bool byte_level) {
    const uint32_t *const place = qslm_token_place(tokenizer, bytes, size, byte_level);
    return place ? *place : QSLM_NO_TOKEN;
}

qslm_pair *qslm_pair_place(const qslm_tokenizer *tokenizer, uint32_t left, uint32_t right) {
    const uint64_t key = (uint64_t)left << 32 | right;
    const uint32_t home = (uint32_t)(key * 0x9E3779B97F4A7C15u >> 32);
    for (uint32_t probe = 0; probe < QSLM_LONGEST_PROBE; probe++) {
        qslm_pair *const pair = tokenizer->pairs + ((home + probe) & tokenizer->pair_mask);
        if (pair->rank == QSLM_NO_TOKEN || (pair->left == left && pair->right == right)) return pair;
    }
    return NULL;
}
