// The first pass over a tokenizer.json: its settings, and how much there is of everything.
#include <string.h>

#include "text/tokenizer_file.h"
#include "text/tokenizer_tables.h"

enum { LARGEST_FILE = 1 << 26, MOST_ENTRIES = 1 << 20 };

// ---- settings ------------------------------------------------------------------------------------------------------

// Refuses a setting, and shows what it is.
static bool refuse(qslm_json *json, const char *setting, qslm_json_span found) {
    if (!json->failed) {
        const int shown = found.size > 80 ? 80 : (int)found.size;
        qslm_fail(json->error, "The tokenizer's %s is not supported: %.*s.", setting, shown, found.text);
    }
    json->failed = true;
    return false;
}

// Whether a value, as it stands in the text, is one of the texts in `allowed`.
static bool skip_allowed(qslm_json *json, const char *setting, const char *const *allowed) {
    qslm_json_span found;
    if (!qslm_json_skip(json, &found)) return false;
    for (; *allowed; allowed++) {
        if (strlen(*allowed) == found.size && !memcmp(*allowed, found.text, found.size)) return true;
    }
    return refuse(json, setting, found);
}

static bool skip_false(qslm_json *json, const char *setting) {
    static const char *const allowed[] = {"false", NULL};
    return skip_allowed(json, setting, allowed);
}

static bool skip_absent(qslm_json *json, const char *setting) {
    static const char *const allowed[] = {"null", "\"\"", "0", "0.0", NULL};
    return skip_allowed(json, setting, allowed);
}

static bool skip_true(qslm_json *json, const char *setting) {
    static const char *const allowed[] = {"true", NULL};
    return skip_allowed(json, setting, allowed);
}

// A key that stands twice would be read twice.
static bool once(qslm_json *json, bool seen) {
    return !seen || qslm_json_fail(json, "A key that stands there twice");
}

// ---- parts that only have settings ----------------------------------------------------------------------------------

// One pre-tokenizer: Digits may stand before ByteLevel, which is the last.
static bool read_pre_tokenizer(qslm_json *json, qslm_tokenizer_plan *plan, bool *byte_level) {
    qslm_json_span key, type = {"", 0}, whole;
    bool single = false, prefix = false;
    qslm_json ahead = *json;
    if (!qslm_json_skip(&ahead, &whole)) return qslm_json_skip(json, NULL);
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "type")) qslm_json_string(json, &type);
        else if (qslm_json_equals(key, "individual_digits")) qslm_json_bool(json, &single);
        else if (qslm_json_equals(key, "add_prefix_space")) qslm_json_bool(json, &prefix);
        else if (qslm_json_equals(key, "use_regex")) skip_true(json, "pre-tokenizer without use_regex");
        else qslm_json_skip(json, NULL);
    }
    if (*byte_level || prefix) return refuse(json, "pre-tokenizer", whole);
    *byte_level = qslm_json_equals(type, "ByteLevel");
    if (*byte_level) return !json->failed;
    if (!qslm_json_equals(type, "Digits") || plan->digits) return refuse(json, "pre-tokenizer", whole);
    plan->digits = single ? QSLM_DIGITS_SINGLE : QSLM_DIGITS_RUNS;
    return !json->failed;
}

// Whether an object has `key`, an array of which is then to be read from `inside`.
static bool has_list(const qslm_json *json, const char *wanted, qslm_json *inside) {
    qslm_json_span key;
    *inside = *json;
    inside->error = NULL;
    if (!qslm_json_enter_object(inside)) return false;
    while (qslm_json_next_member(inside, &key)) {
        if (qslm_json_equals(key, wanted)) return true;
        qslm_json_skip(inside, NULL);
    }
    return false;
}

static bool read_pre_tokenizers(qslm_json *json, qslm_tokenizer_plan *plan, bool *seen) {
    bool byte_level = false;
    qslm_json inside;
    if (!once(json, *seen)) return false;
    *seen = true;
    if (has_list(json, "pretokenizers", &inside)) {
        inside.error = json->error;
        qslm_json_enter_array(&inside);
        while (qslm_json_next_element(&inside)) read_pre_tokenizer(&inside, plan, &byte_level);
        json->failed |= inside.failed;
        qslm_json_skip(json, NULL);
    } else {
        read_pre_tokenizer(json, plan, &byte_level);
    }
    return byte_level || qslm_json_fail(json, "No ByteLevel pre-tokenizer");
}

// None, or NFC.
static bool read_normalizer(qslm_json *json, qslm_tokenizer_plan *plan) {
    qslm_json_span key, type = {"", 0}, whole;
    if (!once(json, plan->nfc)) return false;
    if (qslm_json_peek(json) == QSLM_JSON_NULL) return qslm_json_null(json);
    qslm_json ahead = *json;
    if (!qslm_json_skip(&ahead, &whole)) return qslm_json_skip(json, NULL);
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "type")) qslm_json_string(json, &type);
        else qslm_json_skip(json, NULL);
    }
    plan->nfc = qslm_json_equals(type, "NFC");
    return plan->nfc || refuse(json, "normalizer", whole);
}

static bool read_decoder(qslm_json *json, bool *seen) {
    qslm_json_span key, type = {"", 0};
    if (!once(json, *seen)) return false;
    *seen = true;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "type")) qslm_json_string(json, &type);
        else qslm_json_skip(json, NULL);
    }
    return !json->failed && (qslm_json_equals(type, "ByteLevel") || refuse(json, "decoder", type));
}

// ---- tokens --------------------------------------------------------------------------------------------------------

bool qslm_read_added(qslm_json *json, qslm_added *added) {
    qslm_json_span key;
    *added = (qslm_added){.content = {"", 0}, .id = -1};
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "id")) qslm_json_int64(json, &added->id);
        else if (qslm_json_equals(key, "content")) qslm_json_string(json, &added->content);
        else if (qslm_json_equals(key, "special")) qslm_json_bool(json, &added->special);
        else if (qslm_json_equals(key, "normalized")) qslm_json_bool(json, &added->normalized);
        else if (qslm_json_equals(key, "single_word")) skip_false(json, "added token with single_word");
        else if (qslm_json_equals(key, "lstrip")) skip_false(json, "added token with lstrip");
        else if (qslm_json_equals(key, "rstrip")) skip_false(json, "added token with rstrip");
        else qslm_json_skip(json, NULL);
    }
    return !json->failed && (added->content.size || qslm_json_fail(json, "An added token without content"));
}

static bool count(qslm_json *json, uint32_t *entries) {
    if (*entries == MOST_ENTRIES) return qslm_json_fail(json, "More than 1,048,576 entries");
    ++*entries;
    return true;
}

static bool count_added(qslm_json *json, qslm_tokenizer_plan *plan) {
    qslm_added added;
    if (!once(json, plan->added.text)) return false;
    plan->added.text = json->next;
    qslm_json_enter_array(json);
    while (qslm_json_next_element(json) && qslm_read_added(json, &added) && count(json, &plan->added_count)) {
        plan->added_bytes += added.content.size;
    }
    plan->added.size = (size_t)(json->next - plan->added.text);
    return !json->failed;
}

static bool count_vocabulary(qslm_json *json, qslm_tokenizer_plan *plan) {
    qslm_json_span name;
    int64_t id;
    if (!once(json, plan->vocabulary.text)) return false;
    plan->vocabulary.text = json->next;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &name) && qslm_json_int64(json, &id) && count(json, &plan->vocabulary_count)) {
        plan->text_bytes += name.size;
    }
    plan->vocabulary.size = (size_t)(json->next - plan->vocabulary.text);
    return !json->failed;
}

static bool count_merges(qslm_json *json, qslm_tokenizer_plan *plan) {
    qslm_json_span pair;
    size_t longest = 0;
    if (!once(json, plan->merges.text)) return false;
    plan->merges.text = json->next;
    qslm_json_enter_array(json);
    while (qslm_json_next_element(json) && qslm_json_skip(json, &pair) && count(json, &plan->merge_count)) {
        if (pair.size > longest) longest = pair.size;
    }
    plan->merges.size = (size_t)(json->next - plan->merges.text);
    plan->text_bytes += longest;
    return !json->failed;
}

// ---- the file ------------------------------------------------------------------------------------------------------

static bool read_model(qslm_json *json, qslm_tokenizer_plan *plan) {
    static const char *const kinds[] = {"\"BPE\"", NULL};
    qslm_json_span key;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "type")) skip_allowed(json, "model", kinds);
        else if (qslm_json_equals(key, "vocab")) count_vocabulary(json, plan);
        else if (qslm_json_equals(key, "merges")) count_merges(json, plan);
        else if (qslm_json_equals(key, "dropout")) skip_absent(json, "dropout");
        else if (qslm_json_equals(key, "unk_token")) skip_absent(json, "unk_token");
        else if (qslm_json_equals(key, "continuing_subword_prefix")) skip_absent(json, "continuing_subword_prefix");
        else if (qslm_json_equals(key, "end_of_word_suffix")) skip_absent(json, "end_of_word_suffix");
        else if (qslm_json_equals(key, "byte_fallback")) skip_false(json, "byte_fallback");
        else if (qslm_json_equals(key, "ignore_merges")) skip_false(json, "ignore_merges");
        else qslm_json_skip(json, NULL);
    }
    return !json->failed;
}

static bool read_file(qslm_json *json, qslm_tokenizer_plan *plan) {
    qslm_json_span key;
    bool pre_tokenizer = false, decoder = false;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "added_tokens")) count_added(json, plan);
        else if (qslm_json_equals(key, "normalizer")) read_normalizer(json, plan);
        else if (qslm_json_equals(key, "pre_tokenizer")) read_pre_tokenizers(json, plan, &pre_tokenizer);
        else if (qslm_json_equals(key, "decoder")) read_decoder(json, &decoder);
        else if (qslm_json_equals(key, "model")) read_model(json, plan);
        else qslm_json_skip(json, NULL); // what cuts and pads, and what is put around a text
    }
    if (!qslm_json_close(json)) return false;
    if (!plan->vocabulary.text || !plan->merges.text) return qslm_json_fail(json, "No model with vocab and merges");
    return (pre_tokenizer && decoder) || qslm_json_fail(json, "No ByteLevel pre-tokenizer, or no such decoder");
}

static size_t arena_bytes(const qslm_tokenizer_plan *plan) {
    const uint32_t tokens = plan->vocabulary_count + plan->added_count;
    return tokens * sizeof(qslm_token) + plan->merge_count * sizeof(uint32_t) +
           qslm_places(tokens) * sizeof(uint32_t) + qslm_places(plan->merge_count) * sizeof(qslm_pair) +
           (plan->added_bytes + 2) * sizeof(qslm_branch) + plan->text_bytes;
}

bool qslm_tokenizer_read(qslm_tokenizer_plan *plan, const char *json, size_t size, qslm_error *error) {
    *plan = (qslm_tokenizer_plan){.json = json, .size = size};
    if (size > LARGEST_FILE) return qslm_fail(error, "A tokenizer of %zu bytes; 67,108,864 are the most.", size);
    qslm_json cursor = qslm_json_open(json, size, error);
    if (!read_file(&cursor, plan)) return false;
    plan->text_bytes += 2 * plan->added_bytes; // bytes and name of the last one lie there together
    plan->arena_bytes = arena_bytes(plan);
    return true;
}
