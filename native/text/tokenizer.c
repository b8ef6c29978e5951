#include "text/tokenizer.h"

#include <string.h>

#include "text/nfc.h"
#include "text/tokenizer_tables.h"
#include "system/utf8.h"

// What is being encoded; `ids` is where the next id goes.
typedef struct {
    const qslm_tokenizer *tokenizer;
    uint32_t *scratch, *ids;
} encoder;

// ---- merging -------------------------------------------------------------------------------------------------------

// Symbols of a word, in a list of those that are left, and over them a tournament: leaf i is the rank of the pair that
// symbol i is the left one of, each inner node is the lower of its two, so that node 1 is the pair that merges next.
typedef struct {
    uint32_t *ids, *next, *previous; // (count)
    uint32_t *ranks;                 // (2 * leaves)
    uint32_t count, leaves;
} word;

static uint32_t lower(uint32_t one, uint32_t other) {
    return one < other ? one : other;
}

static uint32_t rank_of(const qslm_tokenizer *tokenizer, uint32_t left, uint32_t right) {
    const qslm_pair *const pair = qslm_pair_place(tokenizer, left, right);
    return pair ? pair->rank : QSLM_NO_TOKEN;
}

static word start_word(const qslm_tokenizer *tokenizer, uint32_t *ids, uint32_t count, uint32_t *scratch) {
    uint32_t leaves = 1;
    while (leaves < count - 1) leaves *= 2;
    word made = {.ids = ids, .next = scratch, .previous = scratch + count, .ranks = scratch + 2 * (size_t)count,
                 .count = count, .leaves = leaves};
    for (uint32_t i = 0; i < count; i++) {
        made.next[i] = i + 1;
        made.previous[i] = i - 1; // of the first: not used
    }
    for (uint32_t i = 0; i < leaves; i++) {
        made.ranks[leaves + i] = i + 1 < count ? rank_of(tokenizer, ids[i], ids[i + 1]) : QSLM_NO_TOKEN;
    }
    for (uint32_t node = leaves; node-- > 1;) made.ranks[node] = lower(made.ranks[2 * node], made.ranks[2 * node + 1]);
    return made;
}

static void set_rank(const word *word, uint32_t symbol, uint32_t rank) {
    uint32_t node = word->leaves + symbol;
    word->ranks[node] = rank;
    while (node > 1) {
        node /= 2;
        const uint32_t best = lower(word->ranks[2 * node], word->ranks[2 * node + 1]);
        if (word->ranks[node] == best) break;
        word->ranks[node] = best;
    }
}

// The left symbol of the pair that merges next: of equal ranks the leftmost.
static uint32_t find_pair(const word *word) {
    uint32_t node = 1;
    while (node < word->leaves) node = 2 * node + (word->ranks[2 * node] != word->ranks[node]);
    return node - word->leaves;
}

static void merge(const qslm_tokenizer *tokenizer, const word *word, uint32_t left) {
    uint32_t *const ids = word->ids;
    const uint32_t right = word->next[left], after = word->next[right];
    ids[left] = tokenizer->merged[word->ranks[word->leaves + left]];
    word->next[left] = after;
    if (after < word->count) {
        word->previous[after] = left;
        set_rank(word, right, QSLM_NO_TOKEN);
        set_rank(word, left, rank_of(tokenizer, ids[left], ids[after]));
    } else {
        set_rank(word, left, QSLM_NO_TOKEN);
    }
    if (left > 0) {
        const uint32_t before = word->previous[left];
        set_rank(word, before, rank_of(tokenizer, ids[before], ids[left]));
    }
}

// Merges `count` symbols at `ids` in place; returns how many are left.
static uint32_t merge_all(const qslm_tokenizer *tokenizer, uint32_t *ids, uint32_t count, uint32_t *scratch) {
    if (count < 2) return count;
    const word word = start_word(tokenizer, ids, count, scratch);
    while (word.ranks[1] != QSLM_NO_TOKEN) merge(tokenizer, &word, find_pair(&word));
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i = word.next[i]) ids[kept++] = ids[i];
    return kept;
}

// ---- text ----------------------------------------------------------------------------------------------------------

static void encode_word(encoder *encoder, const char *text, size_t size) {
    uint32_t count = 0;
    for (size_t i = 0; i < size; i++) {
        const uint32_t id = encoder->tokenizer->byte_token[(unsigned char)text[i]];
        if (id != QSLM_NO_TOKEN) encoder->ids[count++] = id;
    }
    encoder->ids += merge_all(encoder->tokenizer, encoder->ids, count, encoder->scratch);
}

static void encode_words(encoder *encoder, const char *text, size_t size) {
    for (const char *const end = text + size; text < end;) {
        const char *const stop = text + qslm_part(text, (size_t)(end - text), encoder->tokenizer->digits);
        while (text < stop) {
            const size_t length = qslm_word(text, (size_t)(stop - text));
            encode_word(encoder, text, length);
            text += length;
        }
    }
}

// Bytes of the longest added token that `text` begins with, 0 where it begins with none.
static size_t match_added(const qslm_tokenizer *tokenizer, unsigned stage, const char *text, size_t size,
                          uint32_t *token) {
    size_t longest = 0;
    uint32_t at = stage;
    for (size_t i = 0; i < size; i++) {
        for (at = tokenizer->branches[at].child; at && tokenizer->branches[at].byte != (unsigned char)text[i];) {
            at = tokenizer->branches[at].sibling;
        }
        if (!at) break;
        if (tokenizer->branches[at].token == QSLM_NO_TOKEN) continue;
        *token = tokenizer->branches[at].token;
        longest = i + 1;
    }
    return longest;
}

// Stage 0 looks for added tokens that no normalizer touches, stage 1 for the others in what that leaves, 2 for words.
static void encode_stage(encoder *encoder, unsigned stage, const char *text, size_t size) {
    if (stage == 2) {
        encode_words(encoder, text, size);
        return;
    }
    size_t start = 0;
    for (size_t at = 0; at < size;) {
        uint32_t token = 0;
        size_t length = 0;
        if (encoder->tokenizer->added_starts[stage][(unsigned char)text[at]]) {
            length = match_added(encoder->tokenizer, stage, text + at, size - at, &token);
        }
        if (length) {
            encode_stage(encoder, stage + 1, text + start, at - start);
            *encoder->ids++ = token;
            start = at + length;
        }
        at += length ? length : 1;
    }
    encode_stage(encoder, stage + 1, text + start, size - start);
}

size_t qslm_tokenizer_scratch(size_t size) {
    return 6 * size; // next, previous, and at most 2 * 2 * (size - 2) ranks
}

bool qslm_tokenizer_encode(const qslm_tokenizer *tokenizer, const char *text, size_t size, uint32_t *scratch,
                           uint32_t *ids, size_t *count, qslm_error *error) {
    uint32_t point;
    if (size >= (size_t)1 << 27) return qslm_fail(error, "A text of %zu bytes; 134,217,727 are the most.", size);
    for (size_t at = 0; at < size;) {
        const size_t length = qslm_utf8_read(text + at, size - at, &point);
        if (!length) return qslm_fail(error, "The text is not UTF-8: byte %zu begins no character.", at);
        at += length;
    }
    const size_t doubt = tokenizer->nfc ? qslm_nfc_doubt(text, size) : size;
    if (doubt < size) {
        return qslm_fail(error, "The tokenizer normalizes text to NFC, which may change this one at byte %zu.", doubt);
    }
    encoder encoder = {tokenizer, scratch, ids};
    encode_stage(&encoder, 0, text, size);
    *count = (size_t)(encoder.ids - ids);
    return true;
}

const char *qslm_tokenizer_decode(const qslm_tokenizer *tokenizer, uint32_t id, size_t *size) {
    *size = id < tokenizer->token_count ? tokenizer->tokens[id].size : 0;
    return id < tokenizer->token_count ? tokenizer->text + tokenizer->tokens[id].start : NULL;
}

uint32_t qslm_tokenizer_find(const qslm_tokenizer *tokenizer, const char *name, size_t size) {
    char bytes[256];
    if (size > sizeof bytes) return QSLM_NO_TOKEN;
    memcpy(bytes, name, size);
    const bool byte_level = qslm_name_to_bytes(bytes, &size);
    if (!byte_level) memcpy(bytes, name, size);
    return qslm_token_named(tokenizer, bytes, size, byte_level);
}
