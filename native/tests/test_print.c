// Text by a format: the same as the C library's, cut where it is too long.
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "system/print.h"

#define CHECK(SIZE, ...)                                                                     \
    do {                                                                                     \
        char found[SIZE], wanted[SIZE];                                                      \
        const int used = qslm_print(found, sizeof found, __VA_ARGS__);                       \
        const int whole = snprintf(wanted, sizeof wanted, __VA_ARGS__);                      \
        if (strcmp(found, wanted) != 0 || used != (whole < SIZE ? whole : SIZE - 1)) {       \
            fprintf(stderr, "FAILED: \"%s\", not \"%s\"\n", found, wanted);                  \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

int main(void) {
    CHECK(64, "%s", "");
    CHECK(64, "no value, 100 %%");
    CHECK(64, "%s of %.*s, %.*s", "text", 3, "counted", 9, "short");
    CHECK(64, "%d %d %d", 0, INT_MIN, INT_MAX);
    CHECK(64, "%ld %lld %zd", LONG_MIN, LLONG_MIN, (ptrdiff_t)-1);
    CHECK(64, "%u %lu", UINT_MAX, ULONG_MAX);
    CHECK(64, "%llu %zu", ULLONG_MAX, SIZE_MAX);
    CHECK(64, "%x %llx", 0u, 0x1234567890abcdefull);
    CHECK(8, "%s", "1234567");
    CHECK(8, "%s", "12345678");
    CHECK(8, "%d%%", INT_MIN);
    CHECK(1, "%s", "nothing");
    puts("printing: as the C library");
    return 0;
}
