// Sums of Taylor's series, on ranges so small that what is left out is below the last bit.
#include "graphs/rotary.h"

#include <math.h>

// Of pi / 2: 27, 27 and 53 bits. A number of quarter turns has 24, so that the first two products are exact.
#define QUARTER_HIGH 0x1.921fb54p+0
#define QUARTER_MIDDLE 0x1.10b461p-30
#define QUARTER_LOW 0x1.a62633145c06ep-58
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define LN2_HIGH 0x1.62e42feep-1 // 32 bits, then 53
#define LN2_LOW 0x1.a39ef35793c76p-33
#define LOG2_E 0x1.71547652b82fep+0
#define HALF_ROOT 0x1.6a09e667f3bcdp-1 // sqrt(1 / 2)

static double nearest(double x) { // |x| < 2^51
    const double bias = 0x1.8p+52;
    return (x + bias) - bias;
}

// The terms of a series by their quotients, the last first.
static double sine_of(double r) { // |r| <= pi / 4
    const double square = r * r;
    double sum = 1.0;
    for (int i = 18; i >= 2; i -= 2) sum = 1.0 - square / (i * (i + 1)) * sum;
    return r * sum;
}

static double cosine_of(double r) {
    const double square = r * r;
    double sum = 1.0;
    for (int i = 19; i >= 1; i -= 2) sum = 1.0 - square / (i * (i + 1)) * sum;
    return sum;
}

void qslm_turn(double x, double *cosine, double *sine) {
    const double quarters = nearest(x * TWO_OVER_PI);
    const double r = ((x - quarters * QUARTER_HIGH) - quarters * QUARTER_MIDDLE) - quarters * QUARTER_LOW;
    const double c = cosine_of(r), s = sine_of(r);
    switch ((long)quarters & 3) {
    case 0: *cosine = c, *sine = s; break;
    case 1: *cosine = -s, *sine = c; break;
    case 2: *cosine = -c, *sine = -s; break;
    default: *cosine = s, *sine = -c;
    }
}

static double logarithm(double x) { // x >= 1
    int exponent;
    double mantissa = frexp(x, &exponent); // 1/2 to 1
    if (mantissa < HALF_ROOT) mantissa *= 2.0, exponent--;
    const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s; // |s| < 0.172
    double sum = 1.0 / 23;
    for (int i = 21; i >= 1; i -= 2) sum = sum * square + 1.0 / i;
    return exponent * LN2_HIGH + (exponent * LN2_LOW + 2.0 * s * sum);
}

double qslm_power(double base, double exponent) {
    const double x = exponent * logarithm(base), n = nearest(x * LOG2_E); // at most 40
    const double r = (x - n * LN2_HIGH) - n * LN2_LOW;
    double sum = 1.0;
    for (int i = 15; i >= 1; i--) sum = 1.0 + r / i * sum;
    return ldexp(sum, (int)n);
}

void qslm_fill_frequencies(double theta, size_t width, float *frequencies) {
    for (size_t i = 0; i < width / 2; i++) {
        const float exponent = (float)(2 * i) / (float)width;
        frequencies[i] = 1.0f / (float)qslm_power(theta, exponent);
    }
}

void qslm_fill_angles(const float *frequencies, size_t half, size_t first, size_t count, float *cosines, float *sines) {
    for (size_t token = 0; token < count; token++) {
        for (size_t i = 0; i < half; i++) {
            double cosine, sine;
            qslm_turn((float)(first + token) * frequencies[i], &cosine, &sine);
            cosines[token * half + i] = (float)cosine;
            sines[token * half + i] = (float)sine;
        }
    }
}
