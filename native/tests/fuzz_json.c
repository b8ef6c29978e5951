// The JSON reader on any bytes: it must not read or write where it may not, and its ways over a text must agree.
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Reads strings and numbers by value. A decoded string takes no more room than it has in the text.
static void read_value(qslm_json *json) {
    qslm_json_span string = {"", 0};
    double real;
    if (qslm_json_peek(json) == QSLM_JSON_NUMBER) {
        qslm_json whole = *json;
        int64_t integer;
        whole.error = NULL;
        qslm_json_int64(&whole, &integer);
        qslm_json_double(json, &real);
    } else if (qslm_json_peek(json) != QSLM_JSON_STRING) {
        qslm_json_skip(json, NULL);
    } else if (qslm_json_string(json, &string)) {
        char *const buffer = malloc(string.size + 1);
        size_t size = 0;
        if (!buffer || !qslm_json_decode(string, buffer, string.size, &size) || size > string.size) abort();
        qslm_json_equals(string, "key");
        free(buffer);
    }
}

// Goes into containers, one level after the other.
static void walk(qslm_json *json) {
    qslm_json_span key;
    const qslm_json_kind kind = qslm_json_peek(json);
    if (kind == QSLM_JSON_OBJECT) {
        qslm_json_enter_object(json);
        while (qslm_json_next_member(json, &key)) walk(json);
    } else if (kind == QSLM_JSON_ARRAY) {
        qslm_json_enter_array(json);
        while (qslm_json_next_element(json)) walk(json);
    } else {
        read_value(json);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *const text = malloc(size + 1); // of its own, so that a byte before or after it is told
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    qslm_error error = {{0}};
    qslm_json skipping = qslm_json_open(text, size, &error), walking = qslm_json_open(text, size, NULL);
    const bool taken = qslm_json_skip(&skipping, NULL) && qslm_json_close(&skipping);
    if (taken != !error.text[0]) abort(); // a reason where it is refused, and only there
    walk(&walking);
    // Numbers may be refused that are too long for a double; nothing else may differ.
    if (qslm_json_close(&walking) && !taken) abort();
    free(text);
    return 0;
}
