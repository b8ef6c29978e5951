// The Python face of the C kernels: plain buffers in and out, checked for shape and type here.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_recurrence(nb::module_ &m);
void bind_packing(nb::module_ &m);
void bind_gptq(nb::module_ &m);
void bind_matrix(nb::module_ &m);
void bind_file(nb::module_ &m);
void bind_engine(nb::module_ &m);
void bind_tokenizer(nb::module_ &m);

NB_MODULE(_native, m) {
    m.doc() = "Compiled kernels of qslm.";
    bind_recurrence(m);
    bind_packing(m);
    bind_gptq(m);
    bind_matrix(m);
    bind_file(m);
    bind_engine(m);
    bind_tokenizer(m);
}
