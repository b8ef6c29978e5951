// The second pass over a tokenizer.json: its tokens and merges, into the arena.
#include <string.h>

#include "text/nfc.h"
#include "text/tokenizer_file.h"
#include "text/tokenizer_tables.h"

typedef struct {
    qslm_tokenizer *tokenizer;
    const qslm_tokenizer_plan *plan;
    qslm_json json;
    size_t text_used;
    uint32_t branches_used;
} loader;

// ---- the arena -----------------------------------------------------------------------------------------------------

// All that is in it holds numbers of 32 bits or bytes, and the bytes are last: everything is aligned.
static void lay_out(qslm_tokenizer *tokenizer, const qslm_tokenizer_plan *plan, void *arena) {
    const uint32_t tokens = plan->vocabulary_count + plan->added_count;
    const uint32_t places = qslm_places(tokens), pairs = qslm_places(plan->merge_count);
    tokenizer->digits = plan->digits;
    tokenizer->nfc = plan->nfc;
    tokenizer->token_count = plan->vocabulary_count;
    tokenizer->merge_count = plan->merge_count;
    tokenizer->place_mask = places - 1;
    tokenizer->pair_mask = pairs - 1;
    tokenizer->tokens = arena;
    tokenizer->branches = (qslm_branch *)(tokenizer->tokens + tokens);
    tokenizer->pairs = (qslm_pair *)(tokenizer->branches + plan->added_bytes + 2);
    tokenizer->places = (uint32_t *)(tokenizer->pairs + pairs);
    tokenizer->merged = tokenizer->places + places;
    tokenizer->text = (char *)(tokenizer->merged + plan->merge_count);
}

static void clear(qslm_tokenizer *tokenizer, const qslm_tokenizer_plan *plan) {
    for (uint32_t i = 0; i < plan->vocabulary_count; i++) tokenizer->tokens[i].start = QSLM_NO_TOKEN;
    for (uint32_t i = 0; i <= tokenizer->place_mask; i++) tokenizer->places[i] = QSLM_NO_TOKEN;
    for (uint32_t i = 0; i <= tokenizer->pair_mask; i++) tokenizer->pairs[i].rank = QSLM_NO_TOKEN;
    for (uint32_t i = 0; i < 2; i++) tokenizer->branches[i] = (qslm_branch){.token = QSLM_NO_TOKEN};
    memset(tokenizer->added_starts, 0, sizeof tokenizer->added_starts);
}

// Moves the cursor to a part of the file.
static void turn_to(loader *loader, qslm_json_span part) {
    loader->json.next = part.text;
    loader->json.end = part.text + part.size;
}

// ---- tokens --------------------------------------------------------------------------------------------------------

// Bytes of a name as it stands in the file, put where the plan has room for it.
static size_t decode(const loader *loader, qslm_json_span name, char *to) {
    size_t size = 0;
    qslm_json_decode(name, to, loader->plan->text_bytes - (size_t)(to - loader->tokenizer->text), &size);
    return size;
}

// Reads a name to the end of the text in the arena, where there is room for it. Returns whether it is byte-level.
static bool read_name(loader *loader, qslm_json_span name, char **bytes, size_t *size) {
    *bytes = loader->tokenizer->text + loader->text_used;
    *size = decode(loader, name, *bytes);
    if (qslm_name_to_bytes(*bytes, size)) return true;
    *size = decode(loader, name, *bytes);
    return false;
}

// Gives `id` a name that no other token has.
static bool add_token(loader *loader, qslm_json_span name, uint32_t id, bool special) {
    qslm_tokenizer *const tokenizer = loader->tokenizer;
    char *bytes;
    size_t size;
    const bool byte_level = read_name(loader, name, &bytes, &size);
    uint32_t *const place = qslm_token_place(tokenizer, bytes, size, byte_level);
    if (!place) return qslm_json_fail(&loader->json, "Names that are made to crowd the hash table");
    if (*place != QSLM_NO_TOKEN) return qslm_json_fail(&loader->json, "A token that stands there twice");
    tokenizer->tokens[id] = (qslm_token){(uint32_t)loader->text_used, (uint32_t)size, byte_level, special};
    loader->text_used += size;
    *place = id;
    return true;
}

static bool load_vocabulary(loader *loader) {
    qslm_json *const json = &loader->json;
    qslm_json_span name;
    int64_t id;
    turn_to(loader, loader->plan->vocabulary);
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &name) && qslm_json_int64(json, &id)) {
        if (id < 0 || id >= loader->plan->vocabulary_count) {
            return qslm_json_fail(json, "A token whose id is not below the number of tokens");
        }
        if (loader->tokenizer->tokens[id].start != QSLM_NO_TOKEN) return qslm_json_fail(json, "Two tokens of one id");
        if (!add_token(loader, name, (uint32_t)id, false)) return false;
    }
    return !json->failed;
}

static void find_bytes(qslm_tokenizer *tokenizer) {
    for (unsigned value = 0; value < 256; value++) {
        const char byte = (char)value;
        tokenizer->byte_token[value] = qslm_token_named(tokenizer, &byte, 1, true);
    }
}

// ---- added tokens --------------------------------------------------------------------------------------------------

// The branch of `byte` below `parent`, made where there is none.
static uint32_t grow(loader *loader, uint32_t parent, uint8_t byte) {
    qslm_branch *const branches = loader->tokenizer->branches;
    for (uint32_t at = branches[parent].child; at; at = branches[at].sibling) {
        if (branches[at].byte == byte) return at;
    }
    const uint32_t made = loader->branches_used++;
    branches[made] = (qslm_branch){.token = QSLM_NO_TOKEN, .sibling = branches[parent].child, .byte = byte};
    branches[parent].child = made;
    return made;
}

static bool plant(loader *loader, const char *content, size_t size, bool normalized, uint32_t id) {
    uint32_t at = normalized;
    loader->tokenizer->added_starts[normalized][(unsigned char)*content] = true;
    for (size_t i = 0; i < size; i++) at = grow(loader, at, (uint8_t)content[i]);
    uint32_t *const token = &loader->tokenizer->branches[at].token;
    if (*token != QSLM_NO_TOKEN) return qslm_json_fail(&loader->json, "An added token that stands there twice");
    *token = id;
    return true;
}

// An added token has the id of its name in the vocabulary, or the next that is free.
static bool name_added(loader *loader, const qslm_added *added) {
    qslm_tokenizer *const tokenizer = loader->tokenizer;
    char *bytes;
    size_t size;
    const bool byte_level = read_name(loader, added->content, &bytes, &size);
    uint32_t id = qslm_token_named(tokenizer, bytes, size, byte_level);
    if (id == QSLM_NO_TOKEN) {
        id = tokenizer->token_count++;
        if (!add_token(loader, added->content, id, added->special)) return false;
    }
    tokenizer->tokens[id].special = added->special;
    return added->id == id || qslm_json_fail(&loader->json, "An added token whose id is neither known nor the next");
}

static bool load_added(loader *loader) {
    qslm_added added;
    turn_to(loader, loader->plan->added);
    qslm_json_enter_array(&loader->json);
    while (qslm_json_next_element(&loader->json) && qslm_read_added(&loader->json, &added)) {
        if (!name_added(loader, &added)) return false;
        char *const content = loader->tokenizer->text + loader->text_used; // what comes next goes over it
        const size_t size = decode(loader, added.content, content);
        if (added.normalized && loader->plan->nfc && qslm_nfc_doubt(content, size) < size) {
            return qslm_json_fail(&loader->json, "An added token that may not be in NFC");
        }
        if (!plant(loader, content, size, added.normalized, (uint32_t)added.id)) return false;
    }
    return !loader->json.failed;
}

// ---- merges --------------------------------------------------------------------------------------------------------

// Reads the two names of a merge, one after the other, to the end of the text in the arena: ["a", "b"], or "a b" as in
// older files. `left` is the size of the first, `size` that of both.
static bool read_merge(loader *loader, char **bytes, size_t *left, size_t *size) {
    qslm_json *const json = &loader->json;
    qslm_json_span name;
    *bytes = loader->tokenizer->text + loader->text_used;
    if (qslm_json_peek(json) == QSLM_JSON_STRING) {
        qslm_json_string(json, &name);
        *size = decode(loader, name, *bytes);
        char *const space = memchr(*bytes, ' ', *size);
        if (!space) return qslm_json_fail(json, "A merge that is not of two names");
        *left = (size_t)(space - *bytes);
        *size -= 1;
        memmove(space, space + 1, *size - *left);
    } else {
        unsigned names = 0;
        *size = 0;
        for (qslm_json_enter_array(json); qslm_json_next_element(json) && names < 2; names++) {
            if (!qslm_json_string(json, &name)) return false;
            *left = *size;
            *size += decode(loader, name, *bytes + *left);
        }
        if (names != 2 || json->depth != 1) return qslm_json_fail(json, "A merge that is not of two names");
    }
    return !json->failed;
}

// Turns both names into bytes.
static bool merge_to_bytes(char *bytes, size_t *left, size_t *size) {
    size_t first = *left, second = *size - *left;
    if (!qslm_name_to_bytes(bytes, &first) || !qslm_name_to_bytes(bytes + *left, &second)) return false;
    memmove(bytes + first, bytes + *left, second);
    *left = first;
    *size = first + second;
    return true;
}

// The id of a merged name. Files list merges and what they give in the same order, so the next id is tried first: that
// needs no search.
static uint32_t merged_named(const qslm_tokenizer *tokenizer, uint32_t rank, const char *bytes, size_t size) {
    const uint32_t next = rank ? tokenizer->merged[rank - 1] + 1 : 0;
    if (next < tokenizer->token_count) {
        const qslm_token *const token = tokenizer->tokens + next;
        const char *const name = tokenizer->text + token->start;
        if (token->byte_level && token->size == size && !memcmp(name, bytes, size)) return next;
    }
    return qslm_token_named(tokenizer, bytes, size, true);
}

static bool load_merge(loader *loader, uint32_t rank) {
    qslm_tokenizer *const tokenizer = loader->tokenizer;
    qslm_json *const json = &loader->json;
    char *bytes;
    size_t left = 0, size = 0;
    if (!read_merge(loader, &bytes, &left, &size)) return false;
    if (!merge_to_bytes(bytes, &left, &size)) return qslm_json_fail(json, "A merge of names that are not byte-level");
    const uint32_t one = qslm_token_named(tokenizer, bytes, left, true);
    const uint32_t other = qslm_token_named(tokenizer, bytes + left, size - left, true);
    const uint32_t both = merged_named(tokenizer, rank, bytes, size);
    if (one == QSLM_NO_TOKEN || other == QSLM_NO_TOKEN || both == QSLM_NO_TOKEN) {
        return qslm_json_fail(json, "A merge with a name that no token has");
    }
    qslm_pair *const pair = qslm_pair_place(tokenizer, one, other);
    if (!pair) return qslm_json_fail(json, "Merges that are made to crowd the hash table");
    if (pair->rank != QSLM_NO_TOKEN) return qslm_json_fail(json, "A merge that stands there twice");
    *pair = (qslm_pair){one, other, rank};
    tokenizer->merged[rank] = both;
    return true;
}

static bool load_merges(loader *loader) {
    turn_to(loader, loader->plan->merges);
    qslm_json_enter_array(&loader->json);
    for (uint32_t rank = 0; qslm_json_next_element(&loader->json); rank++) {
        if (!load_merge(loader, rank)) return false;
    }
    return !loader->json.failed;
}

bool qslm_tokenizer_load(qslm_tokenizer *tokenizer, const qslm_tokenizer_plan *plan, void *arena, qslm_error *error) {
    loader loader = {.tokenizer = tokenizer, .plan = plan, .json = qslm_json_open(plan->json, plan->size, error),
                     .branches_used = 2};
    lay_out(tokenizer, plan, arena);
    clear(tokenizer, plan);
    if (!load_vocabulary(&loader)) return false;
    find_bytes(tokenizer);
    // Merges make tokens of the vocabulary: the added ones are not there yet.
    return load_merges(&loader) && (!plan->added.text || load_added(&loader));
}
