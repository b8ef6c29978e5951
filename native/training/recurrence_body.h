// The recurrences for one REAL type; recurrence.c includes this file once for float and once for double.
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)

// One tile of channels of one sequence: arrays start at the tile, `stride` is the number of channels.
typedef struct {
    int64_t tokens, stride;
    int width;
} FN(tile);

// a = e^(x - max(x, y)), b = e^(y - max(x, y)): one of them is 1, so one exponential serves both.
static inline void FN(exp_pair)(REAL x, REAL y, REAL *a, REAL *b, REAL *largest) {
    REAL e = EXP(x > y ? y - x : x - y);
    *largest = x > y ? x : y;
    *a = x > y ? (REAL)1 : e;
    *b = x > y ? e : (REAL)1;
}

QSLM_SIMD static void FN(wkv_tile)(FN(tile) tile, const REAL *restrict w, const REAL *restrict u,
                                   const REAL *restrict k, const REAL *restrict v, REAL *restrict state,
                                   REAL *restrict y) {
    REAL p[TILE], q[TILE], o[TILE];
    for (int c = 0; c < tile.width; c++) {
        p[c] = state[c], q[c] = state[tile.stride + c], o[c] = state[2 * tile.stride + c];
    }
    for (int64_t t = 0; t < tile.tokens; t++) {
        const REAL *kt = k + t * tile.stride, *vt = v + t * tile.stride;
        REAL *yt = y + t * tile.stride;
        for (int c = 0; c < tile.width; c++) {
            REAL a, b, largest;
            FN(exp_pair)(o[c], u[c] + kt[c], &a, &b, &largest);
            yt[c] = (a * p[c] + b * vt[c]) / (a * q[c] + b);
            FN(exp_pair)(w[c] + o[c], kt[c], &a, &b, &largest);
            p[c] = a * p[c] + b * vt[c];
            q[c] = a * q[c] + b;
            o[c] = largest;
        }
    }
    for (int c = 0; c < tile.width; c++) {
        state[c] = p[c], state[tile.stride + c] = q[c], state[2 * tile.stride + c] = o[c];
    }
}

// First pass of the backward recurrence, forward in time: y, 1 / denominator and its exponent are kept in `scratch`
// (3, tokens, TILE), the gradients of w and u are complete at its end.
QSLM_SIMD static void FN(wkv_tile_forward_pass)(FN(tile) tile, const REAL *restrict w, const REAL *restrict u,
                                                const REAL *restrict k, const REAL *restrict v,
                                                const REAL *restrict gy, REAL *restrict gw, REAL *restrict gu,
                                                REAL *restrict scratch, REAL empty) {
    REAL p[TILE] = {0}, q[TILE] = {0}, o[TILE], dp[TILE] = {0}, dq[TILE] = {0}, sum_w[TILE] = {0}, sum_u[TILE] = {0};
    for (int c = 0; c < TILE; c++) o[c] = empty;
    for (int64_t t = 0; t < tile.tokens; t++) {
        const REAL *kt = k + t * tile.stride, *vt = v + t * tile.stride, *gyt = gy + t * tile.stride;
        REAL *y = scratch + t * TILE, *z = y + tile.tokens * TILE, *exponent = z + tile.tokens * TILE;
        for (int c = 0; c < tile.width; c++) {
            REAL a, b, largest;
            FN(exp_pair)(o[c], u[c] + kt[c], &a, &b, &largest);
            REAL inverse = (REAL)1 / (a * q[c] + b);
            y[c] = (a * p[c] + b * vt[c]) * inverse;
            z[c] = inverse;
            exponent[c] = largest;
            sum_w[c] += gyt[c] * (dp[c] - dq[c] * y[c]) * a * inverse;
            sum_u[c] += gyt[c] * (vt[c] - y[c]) * b * inverse;
            FN(exp_pair)(w[c] + o[c], kt[c], &a, &b, &largest);
            dp[c] = a * (p[c] + dp[c]); // d(numerator)/dw, scaled as p
            dq[c] = a * (q[c] + dq[c]);
            p[c] = a * p[c] + b * vt[c];
            q[c] = a * q[c] + b;
            o[c] = largest;
        }
    }
    for (int c = 0; c < tile.width; c++) gw[c] = sum_w[c], gu[c] = sum_u[c];
}

// Second pass, backward in time: gp and gq are the gradients of p and q, scaled by e^-o.
QSLM_SIMD static void FN(wkv_tile_backward_pass)(FN(tile) tile, const REAL *restrict w, const REAL *restrict u,
                                                 const REAL *restrict k, const REAL *restrict v,
                                                 const REAL *restrict gy, REAL *restrict gk, REAL *restrict gv,
                                                 const REAL *restrict scratch, REAL empty) {
    REAL gp[TILE] = {0}, gq[TILE] = {0}, o[TILE];
    for (int c = 0; c < TILE; c++) o[c] = empty;
    for (int64_t t = tile.tokens - 1; t >= 0; t--) {
        const int64_t row = t * tile.stride;
        const REAL *y = scratch + t * TILE, *z = y + tile.tokens * TILE, *exponent = z + tile.tokens * TILE;
        for (int c = 0; c < tile.width; c++) {
            REAL kt = k[row + c], vt = v[row + c], g = gy[row + c] * z[c];
            REAL direct = EXP(u[c] + kt - exponent[c]) * g;
            REAL later = EXP(kt + o[c]);
            gk[row + c] = direct * (vt - y[c]) + later * (gp[c] * vt + gq[c]);
            gv[row + c] = direct + later * gp[c];
            REAL a, b, largest;
            FN(exp_pair)(w[c] + o[c], -exponent[c], &a, &b, &largest);
            gp[c] = a * gp[c] + b * g;
            gq[c] = a * gq[c] - b * g * y[c];
            o[c] = largest;
        }
    }
}

QSLM_SIMD static void FN(lif_tile)(FN(tile) tile, const REAL *restrict x, const REAL *restrict forced,
                                   REAL *restrict membrane, REAL *restrict spikes, REAL *restrict h) {
    REAL v[TILE];
    for (int c = 0; c < tile.width; c++) v[c] = membrane[c];
    for (int64_t t = 0; t < tile.tokens; t++) {
        const int64_t row = t * tile.stride;
        REAL potential[TILE];
        for (int c = 0; c < tile.width; c++) potential[c] = v[c] + (x[row + c] - v[c]) * (REAL)0.5;
        if (h) memcpy(h + row, potential, (size_t)tile.width * sizeof(REAL));
        for (int c = 0; c < tile.width; c++) {
            REAL spike = potential[c] >= (REAL)1 ? (REAL)1 : (REAL)0;
            if (forced) spike = forced[row + c];
            spikes[row + c] = spike;
            v[c] = spike != (REAL)0 ? (REAL)0 : potential[c];
        }
    }
    for (int c = 0; c < tile.width; c++) membrane[c] = v[c];
}

QSLM_SIMD static void FN(lif_tile_backward)(FN(tile) tile, const REAL *restrict x, const REAL *restrict gspikes,
                                            REAL alpha, REAL *restrict gx, REAL *restrict scratch) {
    const REAL half_pi_alpha = (REAL)1.57079632679489662 * alpha;
    REAL v[TILE] = {0}, gv[TILE] = {0};
    for (int64_t t = 0; t < tile.tokens; t++) {
        REAL *h = scratch + t * TILE;
        for (int c = 0; c < tile.width; c++) {
            h[c] = v[c] + (x[t * tile.stride + c] - v[c]) * (REAL)0.5;
            v[c] = h[c] >= (REAL)1 ? (REAL)0 : h[c];
        }
    }
    for (int64_t t = tile.tokens - 1; t >= 0; t--) {
        const REAL *h = scratch + t * TILE;
        for (int c = 0; c < tile.width; c++) {
            REAL scaled = half_pi_alpha * (h[c] - (REAL)1);
            REAL surrogate = (REAL)0.5 * alpha / ((REAL)1 + scaled * scaled);
            REAL kept = h[c] >= (REAL)1 ? (REAL)0 : (REAL)1;
            REAL pull = isinf(h[c]) ? (REAL)0 : h[c] * surrogate; // its limit at infinity
            REAL gh = gspikes[t * tile.stride + c] * surrogate + gv[c] * (kept - pull);
            gv[c] = (REAL)0.5 * gh;
            gx[t * tile.stride + c] = (REAL)0.5 * gh;
        }
    }
}

static FN(tile) FN(tile_at)(qslm_shape shape, int64_t first_channel) {
    int64_t left = shape.channels - first_channel;
    return (FN(tile)){shape.tokens, shape.channels, (int)(left < TILE ? left : TILE)};
}

int FN(qslm_wkv_forward)(qslm_shape shape, const REAL *w, const REAL *u, const REAL *k, const REAL *v, REAL *state,
                         REAL *y, int threads) {
    (void)threads;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < shape.batch; b++) {
        for (int64_t c = 0; c < shape.channels; c += TILE) {
            const int64_t at = b * shape.tokens * shape.channels + c;
            FN(wkv_tile)(FN(tile_at)(shape, c), w + c, u + c, k + at, v + at, state + 3 * b * shape.channels + c,
                         y + at);
        }
    }
    return 0;
}

int FN(qslm_wkv_backward)(qslm_shape shape, const REAL *w, const REAL *u, const REAL *k, const REAL *v, const REAL *gy,
                          REAL *gw, REAL *gu, REAL *gk, REAL *gv, int threads) {
    (void)threads;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        REAL *scratch = malloc((size_t)shape.tokens * 3 * TILE * sizeof(REAL));
        failed = scratch == NULL;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < shape.batch; b++) {
            for (int64_t c = 0; c < shape.channels; c += TILE) {
                if (!scratch) continue;
                const int64_t at = b * shape.tokens * shape.channels + c, flat = b * shape.channels + c;
                const FN(tile) tile = FN(tile_at)(shape, c);
                FN(wkv_tile_forward_pass)(tile, w + c, u + c, k + at, v + at, gy + at, gw + flat, gu + flat, scratch,
                                          (REAL)-1e38);
                FN(wkv_tile_backward_pass)(tile, w + c, u + c, k + at, v + at, gy + at, gk + at, gv + at, scratch,
                                           (REAL)-1e38);
            }
        }
        free(scratch);
    }
    return failed ? -1 : 0;
}

int FN(qslm_lif_forward)(qslm_shape shape, const REAL *x, const REAL *forced, REAL *v, REAL *spikes, REAL *h,
                         int threads) {
    (void)threads;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < shape.batch; b++) {
        for (int64_t c = 0; c < shape.channels; c += TILE) {
            const int64_t at = b * shape.tokens * shape.channels + c;
            FN(lif_tile)(FN(tile_at)(shape, c), x + at, forced ? forced + at : NULL, v + b * shape.channels + c,
                         spikes + at, h ? h + at : NULL);
        }
    }
    return 0;
}

int FN(qslm_lif_backward)(qslm_shape shape, const REAL *x, const REAL *gspikes, double alpha, REAL *gx, int threads) {
    (void)threads;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        REAL *scratch = malloc((size_t)shape.tokens * TILE * sizeof(REAL));
        failed = scratch == NULL;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < shape.batch; b++) {
            for (int64_t c = 0; c < shape.channels; c += TILE) {
                if (!scratch) continue;
                const int64_t at = b * shape.tokens * shape.channels + c;
                FN(lif_tile_backward)(FN(tile_at)(shape, c), x + at, gspikes + at, (REAL)alpha, gx + at, scratch);
            }
        }
        free(scratch);
    }
    return failed ? -1 : 0;
}

#undef FN
#undef JOIN
#undef JOIN_
