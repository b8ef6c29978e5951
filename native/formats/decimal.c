// The number is a fraction of two large integers; its bits come off a long division.
#include "formats/decimal.h"

#include <stdint.h>
#include <string.h>

// The numerator is below 10^63 * 10^310, the denominator 10^400 at most, and each is doubled until it is as large as the
// other: below 2^1332.
enum { WORDS = 42, MOST_EXPONENT = 310, LEAST_EXPONENT = -400, EXPONENT_LIMIT = 100000 };
enum { MANTISSA = 53, LEAST_POWER = -1022, MOST_POWER = 1023 }; // of float64

typedef struct {
    uint32_t words[WORDS]; // the lowest first
} whole;

static void times_plus(whole *number, uint32_t factor, uint32_t more) {
    uint64_t carry = more;
    for (int i = 0; i < WORDS; i++) {
        carry += (uint64_t)number->words[i] * factor;
        number->words[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static int compare(const whole *one, const whole *other) {
    for (int i = WORDS; i-- > 0;) {
        if (one->words[i] != other->words[i]) return one->words[i] > other->words[i] ? 1 : -1;
    }
    return 0;
}

static void subtract(whole *from, const whole *number) {
    uint64_t borrow = 0;
    for (int i = 0; i < WORDS; i++) {
        const uint64_t left = (uint64_t)from->words[i] - number->words[i] - borrow;
        from->words[i] = (uint32_t)left;
        borrow = left >> 63;
    }
}

static bool is_zero(const whole *number) {
    const whole nothing = {{0}};
    return compare(number, &nothing) == 0;
}

// The digits as an integer, and the power of ten that it is to be multiplied by.
static int read_digits(const char *at, const char *end, whole *digits) {
    int exponent = 0, written = 0;
    bool fraction = false;
    for (; at < end && *at != 'e' && *at != 'E'; at++) {
        if (*at == '.') fraction = true;
        if (*at < '0' || *at > '9') continue;
        times_plus(digits, 10, (uint32_t)(*at - '0'));
        exponent -= fraction;
    }
    if (at == end) return exponent;
    const bool negative = *++at == '-';
    if (*at == '-' || *at == '+') at++;
    for (; at < end; at++) written = written < EXPONENT_LIMIT ? 10 * written + (*at - '0') : written;
    return exponent + (negative ? -written : written);
}

// numerator / denominator, neither of them zero, as the bits of a float64 without a sign; UINT64_MAX beyond the largest.
static uint64_t divide(whole *numerator, whole *denominator) {
    int power = 0; // numerator / denominator * 2^power, the quotient from 1 to below 2
    for (; compare(numerator, denominator) >= 0; power++) times_plus(denominator, 2, 0);
    for (; compare(numerator, denominator) < 0; power--) times_plus(numerator, 2, 0);
    if (power > MOST_POWER) return UINT64_MAX;
    const int bits = power >= LEAST_POWER ? MANTISSA : MANTISSA - (LEAST_POWER - power);
    if (bits < 0) return 0;
    uint64_t mantissa = 0;
    for (int i = 0; i < bits; i++) {
        const bool one = compare(numerator, denominator) >= 0;
        if (one) subtract(numerator, denominator);
        times_plus(numerator, 2, 0);
        mantissa = mantissa << 1 | one;
    }
    const int half = compare(numerator, denominator); // what is left against half of the last bit
    mantissa += half > 0 || (half == 0 && (mantissa & 1));
    // A normal number's highest bit adds 1 to the exponent; so does a carry.
    return power >= LEAST_POWER ? ((uint64_t)(power - LEAST_POWER) << (MANTISSA - 1)) + mantissa : mantissa;
}

bool qslm_read_decimal(const char *text, size_t size, double *value) {
    whole numerator = {{0}}, denominator = {{1}};
    const uint64_t infinity = (uint64_t)0x7ff << 52;
    if (size == 0 || size > QSLM_DECIMAL_LONGEST) return false;
    int exponent = read_digits(text, text + size, &numerator);
    uint64_t bits = 0;
    if (!is_zero(&numerator) && exponent >= LEAST_EXPONENT) { // else it is nearest to zero
        if (exponent > MOST_EXPONENT) return false;
        for (; exponent > 0; exponent--) times_plus(&numerator, 10, 0);
        for (; exponent < 0; exponent++) times_plus(&denominator, 10, 0);
        bits = divide(&numerator, &denominator);
    }
    if (bits >= infinity) return false;
    if (*text == '-') bits |= (uint64_t)1 << 63;
    memcpy(value, &bits, sizeof bits);
    return true;
}
