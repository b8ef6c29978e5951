#include "system/print.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    char *text;
    size_t size, used;
} writer;

static void put(writer *to, char c) {
    if (to->used + 1 < to->size) to->text[to->used++] = c;
}

static void put_text(writer *to, const char *text, int most) {
    for (int i = 0; i != most && text[i] != 0; i++) put(to, text[i]);
}

static void put_number(writer *to, uint64_t number, unsigned base) {
    char digits[20];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number > 0);
    while (count > 0) put(to, digits[--count]);
}

static void put_signed(writer *to, int64_t number) {
    if (number < 0) put(to, '-');
    put_number(to, number < 0 ? 0 - (uint64_t)number : (uint64_t)number, 10);
}

// What stands between % and the letter that ends it.
typedef struct {
    int most; // characters of a text; -1: all
    enum { PLAIN, LONG, LONG_LONG, SIZE } length;
} options;

static const char *read_options(const char *at, options *found, bool *counted) {
    *found = (options){-1, PLAIN};
    *counted = at[0] == '.' && at[1] == '*';
    if (*counted) at += 2;
    if (*at == 'z') found->length = SIZE, at++;
    for (; *at == 'l'; at++) found->length = found->length == LONG ? LONG_LONG : LONG;
    return at;
}

int qslm_print_list(char *text, size_t size, const char *format, va_list values) {
    writer to = {text, size, 0};
    for (const char *at = format; *at != 0; at++) {
        options found;
        bool counted;
        if (*at != '%') {
            put(&to, *at);
            continue;
        }
        at = read_options(at + 1, &found, &counted);
        if (counted) found.most = va_arg(values, int);
        if (*at == 's') {
            put_text(&to, va_arg(values, const char *), found.most);
        } else if (*at == 'd') {
            put_signed(&to, found.length == SIZE        ? (int64_t)va_arg(values, size_t)
                            : found.length == LONG_LONG ? va_arg(values, long long)
                            : found.length == LONG      ? va_arg(values, long)
                                                        : va_arg(values, int));
        } else if (*at == 'u' || *at == 'x') {
            const uint64_t number = found.length == SIZE        ? va_arg(values, size_t)
                                    : found.length == LONG_LONG ? va_arg(values, unsigned long long)
                                    : found.length == LONG      ? va_arg(values, unsigned long)
                                                                : va_arg(values, unsigned);
            put_number(&to, number, *at == 'u' ? 10 : 16);
        } else if (*at == '%') {
            put(&to, '%');
        } else {
            break; // not known: what follows cannot be told
        }
    }
    to.text[to.used] = 0;
    return (int)to.used;
}

int qslm_print(char *text, size_t size, const char *format, ...) {
    va_list values;
    va_start(values, format);
    const int used = qslm_print_list(text, size, format, values);
    va_end(values);
    return used;
}
