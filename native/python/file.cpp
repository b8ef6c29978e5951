// The reader of packed models for Python's tests: what it finds in a file.
#include "formats/file.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace nb = nanobind;

namespace {

nb::object place(const qslm_file &file, const uint8_t *at) {
    return at == nullptr ? nb::none() : nb::object(nb::int_(at - file.content.start));
}

// The sites of a file by name, each with the fields of its matrix and the places of its parts in bytes.
nb::dict read_file(nb::bytes content) {
    const qslm_bytes bytes = {static_cast<const uint8_t *>(content.data()), content.size()};
    std::vector<uint8_t> memory(qslm_file_memory(bytes));
    qslm_arena arena = {memory.data(), memory.size(), 0};
    qslm_file file{};
    qslm_error error{};
    if (!qslm_read_file(bytes, &arena, &file, &error) || !qslm_check_numbers(&file, &error)) {
        throw std::invalid_argument(error.text);
    }
    nb::dict sites;
    for (size_t i = 0; i < file.count; i++) {
        const qslm_site &site = file.sites[i];
        const qslm_matrix &matrix = site.matrix;
        nb::dict one;
        one["kind"] = static_cast<int>(matrix.kind);
        one["bits"] = matrix.bits;
        one["symmetric"] = matrix.symmetric;
        one["activations"] = matrix.activations;
        one["by_columns"] = matrix.layout == QSLM_BY_COLUMNS;
        one["scale_type"] = static_cast<int>(matrix.scale_type);
        one["rows"] = matrix.rows;
        one["columns"] = matrix.columns;
        one["group"] = matrix.group;
        one["one_scale"] = matrix.one_scale;
        one["codes"] = place(file, matrix.codes);
        one["scales"] = place(file, matrix.scales);
        one["zeros"] = place(file, matrix.zeros);
        one["step"] = place(file, matrix.step);
        sites[nb::str(site.name, site.name_size)] = one;
    }
    return sites;
}

}  // namespace

void bind_file(nb::module_ &m) {
    m.def("read_file", read_file, nb::arg("content"), "The sites of a packed model, as the engine reads it.");
}
