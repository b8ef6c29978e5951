// Tests of the recurrences for one REAL type; test_kernels.c includes this file once for float and once for double.
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)

static REAL *FN(values)(size_t count, double low, double high) {
    REAL *out = exactly(count * sizeof(REAL));
    for (size_t i = 0; i < count; i++) out[i] = (REAL)uniform(low, high);
    return out;
}

static REAL *FN(copy)(const REAL *values, size_t count) {
    REAL *out = exactly(count * sizeof(REAL));
    memcpy(out, values, count * sizeof(REAL));
    return out;
}

static void FN(same)(const char *what, const REAL *found, const REAL *expected, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!(found[i] == expected[i])) fail(what, (double)found[i], (double)expected[i]);
    }
}

// LIF, both ways, against loops over one channel at a time.
static void FN(lif_naive)(qslm_shape s, const REAL *x, const REAL *forced, REAL *v, REAL *spikes, REAL *h) {
    for (int64_t b = 0; b < s.batch; b++) {
        for (int64_t c = 0; c < s.channels; c++) {
            REAL membrane = v[b * s.channels + c];
            for (int64_t t = 0; t < s.tokens; t++) {
                const int64_t at = (b * s.tokens + t) * s.channels + c;
                h[at] = membrane + (x[at] - membrane) * (REAL)0.5;
                spikes[at] = forced ? forced[at] : (REAL)(h[at] >= 1);
                membrane = spikes[at] != 0 ? 0 : h[at];
            }
            v[b * s.channels + c] = membrane;
        }
    }
}

static void FN(lif_backward_naive)(qslm_shape s, const REAL *h, const REAL *gspikes, double alpha, double *gx) {
    for (int64_t b = 0; b < s.batch; b++) {
        for (int64_t c = 0; c < s.channels; c++) {
            double gv = 0;
            for (int64_t t = s.tokens - 1; t >= 0; t--) {
                const int64_t at = (b * s.tokens + t) * s.channels + c;
                const double scaled = acos(-1) / 2 * alpha * ((double)h[at] - 1);
                const double surrogate = alpha / 2 / (1 + scaled * scaled);
                // d(h (1 - s))/dh = (1 - s) - h ds/dh
                const double gh = (double)gspikes[at] * surrogate + gv * ((h[at] < 1) - (double)h[at] * surrogate);
                gx[at] = gv = gh / 2;
            }
        }
    }
}

// An infinite current: its own gradient is 0, and no other one is hurt.
static void FN(test_lif_infinite)(void) {
    const qslm_shape s = {1, 3, 1};
    const REAL x[] = {(REAL)3, INFINITY, (REAL)1.5}, finite[] = {(REAL)3, (REAL)3, (REAL)1.5}, gspikes[] = {1, 1, 1};
    REAL gx[3], expected[3];
    if (FN(qslm_lif_backward)(s, x, gspikes, 2.0, gx, 1)) fail("memory", 1, 0);
    if (FN(qslm_lif_backward)(s, finite, gspikes, 2.0, expected, 1)) fail("memory", 1, 0);
    if (gx[1] != 0) fail("LIF gradient at an infinite current", (double)gx[1], 0);
    FN(same)("LIF gradient after an infinite current", gx + 2, expected + 2, 1);
    if (!isfinite(gx[0])) fail("LIF gradient before an infinite current", (double)gx[0], 0);
}

static void FN(test_lif)(qslm_shape s) {
    const size_t flat = (size_t)(s.batch * s.channels), count = flat * (size_t)s.tokens;
    REAL *x = FN(values)(count, -3, 6), *v = FN(values)(flat, -1, 1), *gspikes = FN(values)(count, -1, 1);
    REAL *forced = FN(values)(count, 0, 1);
    for (size_t i = 0; i < count; i++) forced[i] = forced[i] < (REAL)0.3;
    for (size_t i = 0; i < count; i += 5) x[i] = 2; // h is exactly at the threshold when v is 0
    REAL *spikes = exactly(count * sizeof(REAL)), *h = exactly(count * sizeof(REAL));
    REAL *naive_spikes = exactly(count * sizeof(REAL)), *naive_h = exactly(count * sizeof(REAL));
    for (int variant = 0; variant < 4; variant++) {
        const int threads = 1 + variant / 2;
        const REAL *told = variant % 2 ? forced : NULL;
        REAL *after = FN(copy)(v, flat), *naive_after = FN(copy)(v, flat);
        if (FN(qslm_lif_forward)(s, x, told, after, spikes, variant == 3 ? NULL : h, threads)) fail("memory", 1, 0);
        FN(lif_naive)(s, x, told, naive_after, naive_spikes, naive_h);
        FN(same)("LIF spikes", spikes, naive_spikes, count);
        if (variant != 3) FN(same)("LIF potentials", h, naive_h, count);
        FN(same)("LIF membrane", after, naive_after, flat);
        add_to_digest(spikes, count * sizeof(REAL)), add_to_digest(after, flat * sizeof(REAL));
        free(after), free(naive_after);
    }
    REAL *zeros = exactly(flat * sizeof(REAL)), *gx = exactly(count * sizeof(REAL));
    double *naive_gx = exactly(count * sizeof(double));
    for (size_t i = 0; i < flat; i++) zeros[i] = 0;
    FN(lif_naive)(s, x, NULL, zeros, naive_spikes, naive_h);
    FN(lif_backward_naive)(s, naive_h, gspikes, 2.0, naive_gx);
    if (FN(qslm_lif_backward)(s, x, gspikes, 2.0, gx, 2)) fail("memory", 1, 0);
    for (size_t i = 0; i < count; i++) near("LIF gradient", (double)gx[i], naive_gx[i], TOLERANCE);
    add_to_digest(gx, count * sizeof(REAL));
    free(x), free(v), free(gspikes), free(forced), free(spikes), free(h), free(naive_spikes), free(naive_h);
    free(zeros), free(gx), free(naive_gx);
}

// WKV by its definition, unstabilized, in double; u and k at `at` of one channel.
static double FN(wkv_naive)(qslm_shape s, int64_t b, int64_t c, int64_t t, const double *w, const double *u,
                            const double *k, const double *v) {
    const double *kc = k + b * s.tokens * s.channels + c, *vc = v + b * s.tokens * s.channels + c;
    double numerator = exp(u[c] + kc[t * s.channels]) * vc[t * s.channels], denominator = exp(u[c] + kc[t * s.channels]);
    for (int64_t i = 0; i < t; i++) {
        const double share = exp((double)(t - 1 - i) * w[c] + kc[i * s.channels]);
        numerator += share * vc[i * s.channels];
        denominator += share;
    }
    return numerator / denominator;
}

static double *FN(widened)(const REAL *values, size_t count) {
    double *out = exactly(count * sizeof(double));
    for (size_t i = 0; i < count; i++) out[i] = (double)values[i];
    return out;
}

// sum of gy * wkv over the tokens of one channel: what the gradients are the gradients of.
static double FN(wkv_sum)(qslm_shape s, int64_t b, int64_t c, const double *w, const double *u, const double *k,
                          const double *v, const double *gy) {
    double sum = 0;
    for (int64_t t = 0; t < s.tokens; t++) {
        sum += gy[(b * s.tokens + t) * s.channels + c] * FN(wkv_naive)(s, b, c, t, w, u, k, v);
    }
    return sum;
}

static double FN(wkv_difference)(qslm_shape s, int64_t b, int64_t c, double *w, double *u, double *k, double *v,
                                 const double *gy, double *moved) {
    const double at = *moved, step = 1e-5;
    *moved = at + step;
    const double above = FN(wkv_sum)(s, b, c, w, u, k, v, gy);
    *moved = at - step;
    const double below = FN(wkv_sum)(s, b, c, w, u, k, v, gy);
    *moved = at;
    return (above - below) / (2 * step);
}

static void FN(test_wkv)(qslm_shape s) {
    const size_t channels = (size_t)s.channels, flat = (size_t)s.batch * channels, count = flat * (size_t)s.tokens;
    REAL *w = FN(values)(channels, -4, -0.01), *u = FN(values)(channels, -2, 2), *k = FN(values)(count, -3, 3);
    REAL *v = FN(values)(count, -2, 2), *gy = FN(values)(count, -1, 1);
    REAL *y = exactly(count * sizeof(REAL)), *state = exactly(3 * flat * sizeof(REAL));
    for (size_t b = 0; b < (size_t)s.batch; b++) {
        for (size_t c = 0; c < channels; c++) {
            state[3 * b * channels + c] = state[(3 * b + 1) * channels + c] = 0;
            state[(3 * b + 2) * channels + c] = (REAL)-1e38;
        }
    }
    double *wd = FN(widened)(w, channels), *ud = FN(widened)(u, channels), *kd = FN(widened)(k, count);
    double *vd = FN(widened)(v, count), *gyd = FN(widened)(gy, count);
    if (FN(qslm_wkv_forward)(s, w, u, k, v, state, y, 2)) fail("memory", 1, 0);
    REAL *gw = exactly(flat * sizeof(REAL)), *gu = exactly(flat * sizeof(REAL));
    REAL *gk = exactly(count * sizeof(REAL)), *gv = exactly(count * sizeof(REAL));
    if (FN(qslm_wkv_backward)(s, w, u, k, v, gy, gw, gu, gk, gv, 2)) fail("memory", 1, 0);
    add_to_digest(y, count * sizeof(REAL)), add_to_digest(gw, flat * sizeof(REAL));
    add_to_digest(gk, count * sizeof(REAL)), add_to_digest(gv, count * sizeof(REAL));
    const double slack = fmax(TOLERANCE, 1e-8) * 10; // of the finite differences
    for (int64_t b = 0; b < s.batch; b++) {
        for (int64_t c = 0; c < s.channels; c++) {
            const int64_t at = b * s.channels + c;
            for (int64_t t = 0; t < s.tokens; t++) {
                const int64_t i = (b * s.tokens + t) * s.channels + c;
                near("WKV", (double)y[i], FN(wkv_naive)(s, b, c, t, wd, ud, kd, vd), TOLERANCE);
                if (t % 4) continue; // the differences are slow: some of them
                near("WKV gk", (double)gk[i], FN(wkv_difference)(s, b, c, wd, ud, kd, vd, gyd, kd + i), slack);
                near("WKV gv", (double)gv[i], FN(wkv_difference)(s, b, c, wd, ud, kd, vd, gyd, vd + i), slack);
            }
            near("WKV gw", (double)gw[at], FN(wkv_difference)(s, b, c, wd, ud, kd, vd, gyd, wd + c), slack);
            near("WKV gu", (double)gu[at], FN(wkv_difference)(s, b, c, wd, ud, kd, vd, gyd, ud + c), slack);
        }
    }
    free(w), free(u), free(k), free(v), free(gy), free(y), free(state), free(wd), free(ud), free(kd), free(vd);
    free(gyd), free(gw), free(gu), free(gk), free(gv);
}

// Keys of +-80: nothing overflows, each output is a mean of values, and one channel a thread or two is the same.
static void FN(test_wkv_extremes)(void) {
    const qslm_shape s = {2, 50, 70};
    const size_t channels = 70, flat = 140, count = 7000;
    REAL *w = FN(values)(channels, -60, -1e-6), *u = FN(values)(channels, -80, 80), *k = FN(values)(count, -80, 80);
    REAL *v = FN(values)(count, -1, 1), *y[2], *grads[2][4];
    for (int threads = 1; threads <= 2; threads++) {
        REAL *state = exactly(3 * flat * sizeof(REAL));
        for (size_t i = 0; i < 3 * flat; i++) state[i] = i / channels % 3 == 2 ? (REAL)-1e38 : (REAL)0;
        REAL **g = grads[threads - 1], *out = y[threads - 1] = exactly(count * sizeof(REAL));
        for (int i = 0; i < 4; i++) g[i] = exactly((i < 2 ? flat : count) * sizeof(REAL));
        if (FN(qslm_wkv_forward)(s, w, u, k, v, state, out, threads)) fail("memory", 1, 0);
        if (FN(qslm_wkv_backward)(s, w, u, k, v, v, g[0], g[1], g[2], g[3], threads)) fail("memory", 1, 0);
        for (size_t i = 0; i < count; i++) {
            if (!(fabs((double)out[i]) <= 1.0001)) fail("WKV is no mean of its values", (double)out[i], 1);
            if (!isfinite(g[2][i]) || !isfinite(g[3][i])) fail("WKV gradient", (double)g[2][i], 0);
        }
        for (size_t i = 0; i < flat; i++) {
            if (!isfinite(g[0][i]) || !isfinite(g[1][i])) fail("WKV gradient", (double)g[0][i], 0);
        }
        free(state);
    }
    FN(same)("WKV with two threads", y[0], y[1], count);
    for (int i = 0; i < 4; i++) {
        FN(same)("WKV gradient with two threads", grads[0][i], grads[1][i], i < 2 ? flat : count);
        free(grads[0][i]), free(grads[1][i]);
    }
    free(w), free(u), free(k), free(v), free(y[0]), free(y[1]);
}

#undef FN
#undef JOIN
#undef JOIN_
