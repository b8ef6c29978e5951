// Bit packing for Python: flat, contiguous CPU buffers (NumPy arrays or PyTorch tensors), sizes checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "packing/layout.h"
#include "packing/packing.h"

namespace nb = nanobind;

namespace {

template <typename T> using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T> using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InputMatrix = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutputMatrix = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(unsigned bits, unsigned widest, size_t count, size_t packed) {
    if (bits < 1 || bits > widest) {
        throw std::invalid_argument("bits is " + std::to_string(bits) + ", not 1 to " + std::to_string(widest));
    }
    const size_t wanted = qslm_packed_size(count, bits);
    if (packed != wanted) {
        throw std::invalid_argument(std::to_string(count) + " codes of " + std::to_string(bits) + " bits take " +
                                    std::to_string(wanted) + " bytes, the buffer has " + std::to_string(packed));
    }
}

template <typename T> using PackKernel = bool (*)(const T *, size_t, unsigned, uint8_t *);

template <typename T, PackKernel<T> kernel>
void pack(Input<T> codes, unsigned bits, Output<uint8_t> packed) {
    check(bits, QSLM_PACKING_MAX_BITS, codes.shape(0), packed.shape(0));
    bool fits;
    {
        nb::gil_scoped_release release;
        fits = kernel(codes.data(), codes.shape(0), bits, packed.data());
    }
    if (!fits) {
        throw std::invalid_argument("a code needs more than " + std::to_string(bits) + " bits");
    }
}

template <typename T> using UnpackKernel = void (*)(const uint8_t *, size_t, unsigned, T *);

template <typename T, UnpackKernel<T> kernel>
void unpack(Input<uint8_t> packed, unsigned bits, Output<T> codes) {
    check(bits, sizeof(T) == 1 ? 8 : QSLM_PACKING_MAX_BITS, codes.shape(0), packed.shape(0));
    nb::gil_scoped_release release;
    kernel(packed.data(), codes.shape(0), bits, codes.data());
}

qslm_layout layout_of(bool by_columns) {
    return by_columns ? QSLM_BY_COLUMNS : QSLM_BY_TILES;
}

void pack_matrix(InputMatrix codes, unsigned bits, bool by_columns, Output<uint8_t> packed) {
    check(bits, 8, codes.size(), packed.shape(0));
    bool fits;
    {
        nb::gil_scoped_release release;
        fits = qslm_pack_matrix(codes.data(), codes.shape(0), codes.shape(1), bits, layout_of(by_columns),
                                packed.data());
    }
    if (!fits) {
        throw std::invalid_argument("a code needs more than " + std::to_string(bits) + " bits");
    }
}

void unpack_matrix(Input<uint8_t> packed, unsigned bits, bool by_columns, OutputMatrix codes) {
    check(bits, 8, codes.size(), packed.shape(0));
    nb::gil_scoped_release release;
    qslm_unpack_matrix(packed.data(), codes.shape(0), codes.shape(1), bits, layout_of(by_columns), codes.data());
}

}  // namespace

void bind_packing(nb::module_ &m) {
    constexpr const char *pack_doc = "Write codes (count,) as a bit stream into packed (bytes,).";
    m.def("pack", pack<uint8_t, qslm_pack_u8>, nb::arg("codes").noconvert(), nb::arg("bits"),
          nb::arg("packed").noconvert(), pack_doc);
    m.def("pack", pack<uint16_t, qslm_pack_u16>, nb::arg("codes").noconvert(), nb::arg("bits"),
          nb::arg("packed").noconvert(), pack_doc);
    m.def("pack", pack<uint32_t, qslm_pack_u32>, nb::arg("codes").noconvert(), nb::arg("bits"),
          nb::arg("packed").noconvert(), pack_doc);

    constexpr const char *unpack_doc = "Read codes (count,) out of the bit stream packed (bytes,).";
    m.def("unpack", unpack<uint8_t, qslm_unpack_u8>, nb::arg("packed").noconvert(), nb::arg("bits"),
          nb::arg("codes").noconvert(), unpack_doc);
    m.def("unpack", unpack<uint16_t, qslm_unpack_u16>, nb::arg("packed").noconvert(), nb::arg("bits"),
          nb::arg("codes").noconvert(), unpack_doc);
    m.def("unpack", unpack<uint32_t, qslm_unpack_u32>, nb::arg("packed").noconvert(), nb::arg("bits"),
          nb::arg("codes").noconvert(), unpack_doc);

    m.def("pack_matrix", pack_matrix, nb::arg("codes").noconvert(), nb::arg("bits"), nb::arg("by_columns"),
          nb::arg("packed").noconvert(), "Write codes (rows, columns) into packed (bytes,) as the kernels read them.");
    m.def("unpack_matrix", unpack_matrix, nb::arg("packed").noconvert(), nb::arg("bits"), nb::arg("by_columns"),
          nb::arg("codes").noconvert(), "The inverse of pack_matrix.");
}
