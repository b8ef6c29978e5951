// The Python face of the C kernels: plain buffers in and out, checked for shape and type here.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_recurrence(nb::module_ &m);
void bind_packing(nb::module_ &m);
void bind_gptq(nb::module_ &m);
void bind_tokenizer(nb::module_ &m);

NB_MODULE(_native, m) {
    m.doc() = "Compiled kernels of qslm.";
    bind_recurrence(m);
    bind_packing(m);
    bind_gptq(m);
    bind_tokenizer(m);
}
