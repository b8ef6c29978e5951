#include "formats/json.h"

#include <string.h>

#include "formats/decimal.h"
#include "system/utf8.h"

enum { KEY_LONGEST = 255, KEY_TOLD = 64 };

bool qslm_json_fail(qslm_json *json, const char *problem) {
    const size_t byte = (size_t)(json->next - json->start);
    const qslm_json_span key = json->key;
    if (json->failed) return false;
    json->failed = true;
    if (key.size == 0 || key.size > KEY_TOLD) return qslm_fail(json->error, "%s at byte %zu of the JSON.", problem, byte);
    return qslm_fail(json->error, "%s at byte %zu of the JSON, behind the key %.*s.", problem, byte, (int)key.size, key.text);
}

// ---- characters ----------------------------------------------------------------------------------------------------

// The next byte that is not white space, 0 at the end and after a failure.
static char peek(qslm_json *json) {
    if (json->failed) return 0;
    while (json->next < json->end) {
        const char c = *json->next;
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return c;
        json->next++;
    }
    return 0;
}

static bool take(qslm_json *json, char wanted) {
    if (peek(json) != wanted) return false;
    json->next++;
    return true;
}

static bool take_word(qslm_json *json, const char *word) {
    const size_t size = strlen(word);
    if (peek(json) != *word || (size_t)(json->end - json->next) < size || memcmp(json->next, word, size)) return false;
    json->next += size;
    json->fresh = false;
    return true;
}

static bool is_digit(const char *at, const char *end) {
    return at < end && *at >= '0' && *at <= '9';
}

// ---- open and close ------------------------------------------------------------------------------------------------

qslm_json qslm_json_open(const char *text, size_t size, qslm_error *error) {
    return (qslm_json){.start = text, .next = text, .end = text + size, .error = error};
}

bool qslm_json_close(qslm_json *json) {
    if (json->failed) return false;
    peek(json);
    if (json->depth) return qslm_json_fail(json, "A container was left open");
    return json->next == json->end || qslm_json_fail(json, "More text after the value");
}

qslm_json_kind qslm_json_peek(qslm_json *json) {
    const char c = peek(json);
    switch (c) {
    case '{': return QSLM_JSON_OBJECT;
    case '[': return QSLM_JSON_ARRAY;
    case '"': return QSLM_JSON_STRING;
    case 't':
    case 'f': return QSLM_JSON_BOOL;
    case 'n': return QSLM_JSON_NULL;
    default: return c == '-' || (c >= '0' && c <= '9') ? QSLM_JSON_NUMBER : QSLM_JSON_NOTHING;
    }
}

// ---- containers ----------------------------------------------------------------------------------------------------

static bool enter(qslm_json *json, char bracket, const char *problem) {
    if (!take(json, bracket)) return qslm_json_fail(json, problem);
    if (json->depth == QSLM_JSON_DEPTH) return qslm_json_fail(json, "Nesting of more than 64 containers");
    const uint64_t bit = (uint64_t)1 << json->depth++;
    json->objects = bracket == '{' ? json->objects | bit : json->objects & ~bit;
    json->fresh = true;
    return true;
}

static bool in_object(const qslm_json *json) {
    return json->depth && json->objects >> (json->depth - 1) & 1;
}

// Whether another entry follows; reads the comma before it, or the bracket that closes the container.
static bool next(qslm_json *json) {
    const bool object = in_object(json);
    if (take(json, object ? '}' : ']')) {
        json->depth--;
        json->fresh = false;
        return false;
    }
    if (!json->fresh && !take(json, ',')) {
        return qslm_json_fail(json, object ? "Neither a comma nor }" : "Neither a comma nor ]");
    }
    json->fresh = false;
    return !json->failed;
}

bool qslm_json_enter_object(qslm_json *json) {
    return enter(json, '{', "No object");
}

bool qslm_json_enter_array(qslm_json *json) {
    return enter(json, '[', "No array");
}

bool qslm_json_next_element(qslm_json *json) {
    if (!json->depth || in_object(json)) return qslm_json_fail(json, "No array is open");
    return next(json);
}

bool qslm_json_next_member(qslm_json *json, qslm_json_span *key) {
    if (!in_object(json)) return qslm_json_fail(json, "No object is open");
    if (!next(json) || !qslm_json_string(json, key)) return false;
    json->key = *key;
    return take(json, ':') || qslm_json_fail(json, "No colon after a key");
}

// ---- words and numbers ---------------------------------------------------------------------------------------------

bool qslm_json_null(qslm_json *json) {
    return take_word(json, "null") || qslm_json_fail(json, "No null");
}

bool qslm_json_bool(qslm_json *json, bool *value) {
    *value = take_word(json, "true");
    return *value || take_word(json, "false") || qslm_json_fail(json, "Neither true nor false");
}

// Reads a number by the grammar of JSON; `whole` tells that it has neither fraction nor exponent.
static bool read_number(qslm_json *json, qslm_json_span *number, bool *whole) {
    peek(json);
    const char *at = json->next, *const end = json->end;
    if (at < end && *at == '-') at++;
    if (json->failed || !is_digit(at, end)) return qslm_json_fail(json, "No number");
    if (*at == '0' && is_digit(at + 1, end)) return qslm_json_fail(json, "A number that begins with 0");
    while (is_digit(at, end)) at++;
    const char *const integer = at;
    if (at < end && *at == '.') {
        if (!is_digit(++at, end)) return qslm_json_fail(json, "A number without digits after its point");
        while (is_digit(at, end)) at++;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        if (++at < end && (*at == '+' || *at == '-')) at++;
        if (!is_digit(at, end)) return qslm_json_fail(json, "A number without digits in its exponent");
        while (is_digit(at, end)) at++;
    }
    *whole = at == integer;
    *number = (qslm_json_span){json->next, (size_t)(at - json->next)};
    json->next = at;
    json->fresh = false;
    return true;
}

bool qslm_json_int64(qslm_json *json, int64_t *value) {
    qslm_json_span number;
    bool whole;
    if (!read_number(json, &number, &whole)) return false;
    if (!whole) return qslm_json_fail(json, "A number that is not written as an integer");
    const bool negative = *number.text == '-';
    const uint64_t most = negative ? (uint64_t)INT64_MAX + 1 : INT64_MAX;
    uint64_t size = 0;
    for (size_t i = negative; i < number.size; i++) {
        const unsigned digit = (unsigned)(number.text[i] - '0');
        if (size > (most - digit) / 10) return qslm_json_fail(json, "An integer of more than 64 bits");
        size = size * 10 + digit;
    }
    *value = !negative ? (int64_t)size : size == most ? INT64_MIN : -(int64_t)size;
    return true;
}

bool qslm_json_double(qslm_json *json, double *value) {
    qslm_json_span number;
    bool whole;
    if (!read_number(json, &number, &whole)) return false;
    if (number.size > QSLM_DECIMAL_LONGEST) return qslm_json_fail(json, "A number of more than 63 characters");
    return qslm_read_decimal(number.text, number.size, value) ||
           qslm_json_fail(json, "A number that is not finite in double precision");
}

// ---- strings -------------------------------------------------------------------------------------------------------

static int hexadecimal(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// The 16 bits of \uXXXX at `at`, or -1.
static int32_t read_unit(const char *at, const char *end) {
    if (end - at < 6 || at[0] != '\\' || at[1] != 'u') return -1;
    int32_t unit = 0;
    for (int i = 2; i < 6; i++) {
        const int digit = hexadecimal(at[i]);
        if (digit < 0) return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

// Bytes of the \u escape at `at`, two of them for a pair of surrogates; 0 where it is none.
static size_t read_unicode_escape(const char *at, const char *end, uint32_t *point) {
    const int32_t first = read_unit(at, end);
    if (first < 0 || (first & 0xFC00) == 0xDC00) return 0;
    *point = (uint32_t)first;
    if ((first & 0xFC00) != 0xD800) return 6;
    const int32_t second = read_unit(at + 6, end);
    if (second < 0 || (second & 0xFC00) != 0xDC00) return 0;
    *point = 0x10000 + ((uint32_t)(first & 0x3FF) << 10 | (uint32_t)(second & 0x3FF));
    return 12;
}

// Bytes of the escape that the backslash at `at` begins, 0 where it is none.
static size_t read_escape(const char *at, const char *end, uint32_t *point) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (end - at < 2) return 0;
    const char *const name = at[1] ? strchr(names, at[1]) : NULL;
    if (!name) return read_unicode_escape(at, end, point);
    *point = (unsigned char)values[name - names];
    return 2;
}

// Bytes of the character of a string that `at` points at; 0, and a failure there, where it is none.
static size_t read_character(qslm_json *json, const char *at) {
    const unsigned char byte = (unsigned char)*at;
    uint32_t point;
    if (byte >= 0x20 && byte < 0x80 && byte != '\\') return 1;
    const size_t left = (size_t)(json->end - at);
    const size_t size = byte == '\\' ? read_escape(at, json->end, &point) : qslm_utf8_read(at, left, &point);
    if (byte >= 0x20 && size) return size;
    json->next = at;
    qslm_json_fail(json, byte < 0x20    ? "A control character in a string"
                         : byte == '\\' ? "A wrong escape"
                                        : "Bytes that are not UTF-8");
    return 0;
}

bool qslm_json_string(qslm_json *json, qslm_json_span *value) {
    if (!take(json, '"')) return qslm_json_fail(json, "No string");
    const char *const start = json->next, *at = start;
    while (at < json->end && *at != '"') {
        const size_t size = read_character(json, at);
        if (!size) return false;
        at += size;
    }
    json->next = at;
    *value = (qslm_json_span){start, (size_t)(at - start)};
    json->fresh = false;
    return take(json, '"') || qslm_json_fail(json, "A string without an end");
}

bool qslm_json_decode(qslm_json_span string, char *buffer, size_t capacity, size_t *size) {
    const char *at = string.text, *const end = at + string.size;
    size_t filled = 0;
    while (at < end) {
        char piece[QSLM_UTF8_LONGEST] = {*at};
        uint32_t point = 0;
        const bool escaped = *at == '\\';
        const size_t taken = escaped ? read_escape(at, end, &point) : 1;
        const size_t length = escaped ? qslm_utf8_write(point, piece) : 1;
        if (!taken || capacity - filled < length) return false;
        for (size_t i = 0; i < length; i++) buffer[filled++] = piece[i];
        at += taken;
    }
    *size = filled;
    return true;
}

bool qslm_json_equals(qslm_json_span string, const char *text) {
    char decoded[KEY_LONGEST];
    size_t size;
    if (!qslm_json_decode(string, decoded, sizeof decoded, &size)) return false;
    return size == strlen(text) && !memcmp(decoded, text, size);
}

// ---- any value -----------------------------------------------------------------------------------------------------

// Reads a value that is no container.
static bool skip_scalar(qslm_json *json) {
    qslm_json_span ignored;
    bool flag;
    switch (qslm_json_peek(json)) {
    case QSLM_JSON_STRING: return qslm_json_string(json, &ignored);
    case QSLM_JSON_NUMBER: return read_number(json, &ignored, &flag);
    case QSLM_JSON_BOOL: return qslm_json_bool(json, &flag);
    case QSLM_JSON_NULL: return qslm_json_null(json);
    default: return qslm_json_fail(json, "No value");
    }
}

bool qslm_json_skip(qslm_json *json, qslm_json_span *value) {
    const unsigned outside = json->depth;
    qslm_json_span key;
    peek(json);
    const char *const start = json->next;
    do {
        const qslm_json_kind kind = qslm_json_peek(json);
        if (kind == QSLM_JSON_OBJECT) qslm_json_enter_object(json);
        else if (kind == QSLM_JSON_ARRAY) qslm_json_enter_array(json);
        else skip_scalar(json);
        // Close what ends here; stop where a value follows.
        while (json->depth > outside && !(in_object(json) ? qslm_json_next_member(json, &key) : next(json))) {
            if (json->failed) return false;
        }
    } while (json->depth > outside);
    if (value) *value = (qslm_json_span){start, (size_t)(json->next - start)};
    return !json->failed;
}
