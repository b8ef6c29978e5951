// Bindings of recurrence.h: (batch, tokens, channels) arrays of float or double, all of one type.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <new>
#include <optional>

extern "C" {
#include "training/memory.h"
#include "training/recurrence.h"
}

namespace nb = nanobind;

template <typename Real, int rank>
using Array = nb::ndarray<Real, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;

template <typename Real>
qslm_shape shape_of(const Array<const Real, 3> &array) {
    return {(int64_t)array.shape(0), (int64_t)array.shape(1), (int64_t)array.shape(2)};
}

template <typename Left, typename Right>
void same_shape(const Left &left, const Right &right, const char *name) {
    bool same = left.ndim() == right.ndim();
    for (size_t i = 0; same && i < left.ndim(); i++) same = left.shape(i) == right.shape(i);
    if (!same) throw nb::value_error(name);
}

template <typename Array>
void has_shape(const Array &array, std::initializer_list<int64_t> sizes, const char *name) {
    size_t i = 0;
    bool same = array.ndim() == sizes.size();
    for (int64_t size : sizes) same = same && (int64_t)array.shape(i++) == size;
    if (!same) throw nb::value_error(name);
}

void check(int status) {
    if (status != 0) throw std::bad_alloc();
}

// Never converted: an output that were copied to another type would be written in vain.
#define EXACT(name) nb::arg(name).noconvert()

#define BIND(REAL, SUFFIX)                                                                                            \
    m.def(                                                                                                            \
        "wkv_forward",                                                                                                \
        [](Array<const REAL, 1> w, Array<const REAL, 1> u, Array<const REAL, 3> k, Array<const REAL, 3> v,            \
           Array<REAL, 3> state, Array<REAL, 3> y, int threads) {                                                     \
            qslm_shape s = shape_of<REAL>(k);                                                                         \
            has_shape(w, {s.channels}, "w: (channels)");                                                              \
            has_shape(u, {s.channels}, "u: (channels)");                                                              \
            same_shape(k, v, "v: the shape of k");                                                                    \
            same_shape(k, y, "y: the shape of k");                                                                    \
            has_shape(state, {s.batch, 3, s.channels}, "state: (batch, 3, channels)");                                \
            nb::gil_scoped_release release;                                                                           \
            check(qslm_wkv_forward_##SUFFIX(s, w.data(), u.data(), k.data(), v.data(), state.data(), y.data(),        \
                                            threads));                                                                \
        },                                                                                                            \
        EXACT("w"), EXACT("u"), EXACT("k"), EXACT("v"), EXACT("state"), EXACT("y"), nb::arg("threads"));              \
    m.def("wkv_backward", [](Array<const REAL, 1> w, Array<const REAL, 1> u, Array<const REAL, 3> k,                  \
                             Array<const REAL, 3> v, Array<const REAL, 3> gy, Array<REAL, 2> gw, Array<REAL, 2> gu,   \
                             Array<REAL, 3> gk, Array<REAL, 3> gv, int threads) {                                     \
        qslm_shape s = shape_of<REAL>(k);                                                                             \
        has_shape(w, {s.channels}, "w: (channels)");                                                                  \
        has_shape(u, {s.channels}, "u: (channels)");                                                                  \
        same_shape(k, v, "v: the shape of k");                                                                        \
        same_shape(k, gy, "gy: the shape of k");                                                                      \
        same_shape(k, gk, "gk: the shape of k");                                                                      \
        same_shape(k, gv, "gv: the shape of k");                                                                      \
        has_shape(gw, {s.batch, s.channels}, "gw: (batch, channels)");                                                \
        has_shape(gu, {s.batch, s.channels}, "gu: (batch, channels)");                                                \
        nb::gil_scoped_release release;                                                                               \
        check(qslm_wkv_backward_##SUFFIX(s, w.data(), u.data(), k.data(), v.data(), gy.data(), gw.data(), gu.data(),  \
                                         gk.data(), gv.data(), threads));                                             \
    }, EXACT("w"), EXACT("u"), EXACT("k"), EXACT("v"), EXACT("gy"), EXACT("gw"), EXACT("gu"), EXACT("gk"),            \
       EXACT("gv"), nb::arg("threads"));                                                                              \
    m.def(                                                                                                            \
        "lif_forward",                                                                                                \
        [](Array<const REAL, 3> x, std::optional<Array<const REAL, 3>> forced, Array<REAL, 2> v,                      \
           Array<REAL, 3> spikes, std::optional<Array<REAL, 3>> h, int threads) {                                     \
            qslm_shape s = shape_of<REAL>(x);                                                                         \
            has_shape(v, {s.batch, s.channels}, "v: (batch, channels)");                                              \
            same_shape(x, spikes, "spikes: the shape of x");                                                          \
            if (forced) same_shape(x, *forced, "forced: the shape of x");                                             \
            if (h) same_shape(x, *h, "h: the shape of x");                                                            \
            nb::gil_scoped_release release;                                                                           \
            check(qslm_lif_forward_##SUFFIX(s, x.data(), forced ? forced->data() : nullptr, v.data(), spikes.data(),  \
                                            h ? h->data() : nullptr, threads));                                       \
        },                                                                                                            \
        EXACT("x"), EXACT("forced").none(), EXACT("v"), EXACT("spikes"), EXACT("h").none(), nb::arg("threads"));      \
    m.def("lif_backward", [](Array<const REAL, 3> x, Array<const REAL, 3> gspikes, double alpha, Array<REAL, 3> gx,   \
                             int threads) {                                                                           \
        qslm_shape s = shape_of<REAL>(x);                                                                             \
        same_shape(x, gspikes, "gspikes: the shape of x");                                                            \
        same_shape(x, gx, "gx: the shape of x");                                                                      \
        nb::gil_scoped_release release;                                                                               \
        check(qslm_lif_backward_##SUFFIX(s, x.data(), gspikes.data(), alpha, gx.data(), threads));                    \
    }, EXACT("x"), EXACT("gspikes"), nb::arg("alpha"), EXACT("gx"), nb::arg("threads"));

void bind_recurrence(nb::module_ &m) {
    m.def("keep_freed_memory", &qslm_keep_freed_memory,
          "Ask the C library to keep freed memory for the next allocation; training then spends no time on new pages.");
    m.def("return_freed_memory", [](size_t least) { return qslm_return_freed_memory(least) != 0; }, nb::arg("least"),
          "Give freed memory back where the process grew by more than `least` bytes since; says whether it did.");
    BIND(float, f32)
    BIND(double, f64)
}
