// The JSON reader: what it takes, what it refuses and why, and the values that it reads.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/decimal.h"
#include "formats/json.h"

static void check(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

// A cursor over a copy on the heap of exact size, so that the address sanitizer sees a byte too much.
static bool reads(const char *text, size_t size, qslm_error *error) {
    char *copy = malloc(size ? size : 1);
    check(copy != NULL, "memory");
    memcpy(copy, text, size);
    qslm_json json = qslm_json_open(copy, size, error);
    const bool whole = qslm_json_skip(&json, NULL) && qslm_json_close(&json);
    free(copy);
    return whole;
}

static void test_takes_json(void) {
    static const char *const texts[] = {
        "0", "-0.5e+3", " [ ] ", "{}", "[1,[2,{\"a\":[]}],null,true,false]", "\"\\u00e9\\ud83d\\ude00\"",
        "\"\xC3\xA9\xF0\x9F\x98\x80\"", "{\"a\":1,\"a\":2}", "\t\r\n1\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check(reads(texts[i], strlen(texts[i]), NULL), texts[i]);
}

static void test_refuses_the_rest(void) {
    static const char *const texts[][2] = {
        {"", "No value"}, {"[", "No value"}, {"[1", "Neither a comma nor ]"}, {"[1,]", "No value"},
        {"[,1]", "No value"},
        {"{\"a\"}", "No colon"}, {"{\"a\":}", "No value"}, {"{\"a\":1,}", "No string"}, {"{a:1}", "No string"},
        {"[1}", "Neither a comma nor ]"}, {"{\"a\":1]", "Neither a comma nor }"}, {"1 2", "More text"},
        {"01", "begins with 0"}, {"1.", "after its point"}, {"1e", "exponent"}, {"-", "No number"}, {"+1", "No value"},
        {"nul", "No null"}, {"truex", "More text"}, {"\"a", "without an end"}, {"\"\\x\"", "wrong escape"},
        {"\"\\", "wrong escape"}, {"\"\\u12g4\"", "wrong escape"}, {"\"\\ud800\"", "wrong escape"},
        {"\"\\udc00\"", "wrong escape"}, {"\"\\ud800\\u0041\"", "wrong escape"}, {"\"\n\"", "control character"},
        {"\"\xC0\x80\"", "not UTF-8"}, {"\"\xED\xA0\x80\"", "not UTF-8"}, {"\"\xF4\x90\x80\x80\"", "not UTF-8"},
        {"\"\xE2\x82\"", "not UTF-8"}, {"\"\xFF\"", "not UTF-8"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        qslm_error error = {{0}};
        check(!reads(texts[i][0], strlen(texts[i][0]), &error), texts[i][0]);
        check(strstr(error.text, texts[i][1]) != NULL, error.text);
    }
}

static void test_limits_depth(void) {
    char text[4 * QSLM_JSON_DEPTH];
    for (size_t depth = QSLM_JSON_DEPTH; depth <= QSLM_JSON_DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        qslm_error error = {{0}};
        check(reads(text, 2 * depth, &error) == (depth == QSLM_JSON_DEPTH), "depth");
        check(depth == QSLM_JSON_DEPTH || strstr(error.text, "Nesting") != NULL, error.text);
    }
}

static bool reads_int64(const char *text, int64_t *value) {
    qslm_json json = qslm_json_open(text, strlen(text), NULL);
    return qslm_json_int64(&json, value) && qslm_json_close(&json);
}

static bool reads_double(const char *text, double *value) {
    qslm_json json = qslm_json_open(text, strlen(text), NULL);
    return qslm_json_double(&json, value) && qslm_json_close(&json);
}

static void test_numbers(void) {
    int64_t whole = 0;
    check(reads_int64("-9223372036854775808", &whole) && whole == INT64_MIN, "the smallest integer");
    check(reads_int64("9223372036854775807", &whole) && whole == INT64_MAX, "the largest integer");
    check(!reads_int64("9223372036854775808", &whole) && !reads_int64("-9223372036854775809", &whole), "65 bits");
    check(!reads_int64("1.0", &whole) && !reads_int64("1e2", &whole) && !reads_int64("\"1\"", &whole), "no integers");
    double value = 0;
    check(reads_double("0.041666666666666664", &value) && value == 0.041666666666666664, "a fraction");
    check(reads_double("-1e-05", &value) && value == -1e-05 && reads_double("7", &value) && value == 7, "doubles");
    check(!reads_double("1e999", &value) && !reads_double("null", &value), "what is no double");
}

static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Against the C library, which rounds to the nearest as well.
static void check_decimal(const char *text) {
    double value = 0;
    const double wanted = strtod(text, NULL);
    const bool finite = qslm_read_decimal(text, strlen(text), &value);
    check(finite == (wanted - wanted == 0), text);
    check(!finite || bits_of(value) == bits_of(wanted), text);
}

static uint64_t next_random(uint64_t *state) { // splitmix64
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void test_decimals(void) {
    static const char *const texts[] = {
        "0", "-0", "0e999999999999", "5e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "1e-400", "1e-99999999",
        "2.2250738585072011e-308", "2.2250738585072014e-308", "1.7976931348623157e308", "1.7976931348623158e308",
        "1.7976931348623159e308", "1e310", "1e99999999", "9007199254740993", "9007199254740992.99999999999999", "1E+2",
        "0.0000000000000000000000000000000000000000000000000000001e55",
        "12345678901234567890123456789012345678901234567890123456789e249", "4503599627370496.5", "4503599627370497.5"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check_decimal(texts[i]);
    uint64_t state = 1;
    for (int i = 0; i < 4000; i++) { // of all exponents, short and long, and halfway between two
        char text[64];
        double value;
        const uint64_t bits = next_random(&state) & ~((uint64_t)1 << 62 >> i % 2);
        memcpy(&value, &bits, sizeof value);
        if (!(value - value == 0)) continue;
        snprintf(text, sizeof text, "%.*e", (int)(next_random(&state) % 50), value);
        check_decimal(text);
    }
}

static void test_members(void) {
    static const char text[] = "{\"n\\u0061me\": \"a\\n\\u20ac\", \"skipped\": [{\"x\": [1, 2]}, \"]\"], "
                               "\"sizes\": [3, 4], \"on\": true}";
    qslm_json json = qslm_json_open(text, sizeof text - 1, NULL);
    qslm_json_span key, name = {NULL, 0}, skipped = {NULL, 0};
    int64_t size = 0, sum = 0;
    bool on = false;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "name")) qslm_json_string(&json, &name);
        else if (qslm_json_equals(key, "on")) qslm_json_bool(&json, &on);
        else if (qslm_json_equals(key, "sizes")) {
            qslm_json_enter_array(&json);
            while (qslm_json_next_element(&json) && qslm_json_int64(&json, &size)) sum += size;
        } else qslm_json_skip(&json, &skipped);
    }
    check(qslm_json_close(&json) && on && sum == 7, "members");
    check(skipped.size == 20 && !memcmp(skipped.text, "[{\"x\": [1, 2]}, \"]\"]", 20), "what was skipped");
    char decoded[5];
    size_t length = 0;
    check(qslm_json_decode(name, decoded, 5, &length) && length == 5, "the length of a decoded string");
    check(!memcmp(decoded, "a\n\xE2\x82\xAC", 5), "a decoded string");
    check(!qslm_json_decode(name, decoded, 4, &length), "a buffer that is too small");
}

static void test_failures_stick(void) {
    qslm_error error = {{0}};
    qslm_json json = qslm_json_open("[1, x, 3]", 9, &error);
    int64_t value = 0, count = 0;
    qslm_json_enter_array(&json);
    while (qslm_json_next_element(&json)) count += qslm_json_int64(&json, &value);
    check(count == 1 && !qslm_json_close(&json) && !qslm_json_skip(&json, NULL), "a failure sticks");
    check(!strcmp(error.text, "No number at byte 4 of the JSON."), error.text);
    json = qslm_json_open("{\"width\": 1.5}", 14, &error);
    qslm_json_span key;
    qslm_json_enter_object(&json);
    check(qslm_json_next_member(&json, &key) && !qslm_json_int64(&json, &value), "a fraction is no integer");
    check(strstr(error.text, "behind the key width.") != NULL, error.text);
}

int main(void) {
    test_takes_json();
    test_refuses_the_rest();
    test_limits_depth();
    test_numbers();
    test_decimals();
    test_members();
    test_failures_stick();
    puts("JSON: read as told, refused with a reason");
    return 0;
}
