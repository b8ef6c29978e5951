// Binding of gptq.h: contiguous CPU arrays, shapes and the places of the scales checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cmath>
#include <new>

#include "training/gptq.h"

namespace nb = nanobind;

namespace {

template <typename T, int rank> using Array = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;

void require(bool right, const char *what) {
    if (!right) throw nb::value_error(what);
}

void gptq(Array<const float, 2> weight, Array<const float, 2> factor, Array<const float, 2> scales,
          Array<const float, 2> zeros, Array<const int32_t, 1> group, int lowest, int highest, Array<int32_t, 2> codes,
          int threads) {
    const size_t rows = weight.shape(0), columns = weight.shape(1), groups = scales.shape(1);
    require(factor.shape(0) == columns && factor.shape(1) == columns, "factor: (columns, columns)");
    require(scales.shape(0) == rows && zeros.shape(0) == rows && zeros.shape(1) == groups, "scales, zeros: (rows, groups)");
    require(group.shape(0) == columns, "group: (columns,)");
    require(codes.shape(0) == rows && codes.shape(1) == columns, "codes: the shape of weight");
    require(lowest < highest && threads > 0, "lowest < highest, and one thread or more");
    for (size_t j = 0; j < columns; j++) {
        require(group.data()[j] >= 0 && (size_t)group.data()[j] < groups, "group: below the groups of scales");
        require(factor.data()[j * columns + j] > 0, "factor: a diagonal above 0");
    }
    for (size_t i = 0; i < rows * groups; i++) require(scales.data()[i] > 0, "scales: above 0");
    nb::gil_scoped_release release;
    if (!qslm_gptq(weight.data(), factor.data(), scales.data(), zeros.data(), group.data(), rows, columns, groups,
                   (float)lowest, (float)highest, codes.data(), threads)) {
        throw std::bad_alloc();
    }
}

}  // namespace

void bind_gptq(nb::module_ &m) {
    m.def("gptq", gptq, nb::arg("weight").noconvert(), nb::arg("factor").noconvert(), nb::arg("scales").noconvert(),
          nb::arg("zeros").noconvert(), nb::arg("group").noconvert(), nb::arg("lowest"), nb::arg("highest"),
          nb::arg("codes").noconvert(), nb::arg("threads"),
          "Round weight (rows, columns) column by column into codes; see gptq.h.");
}
