#include <nanobind/nanobind.h>
namespace nb = nanobind;
void bind_packing(nb::module_ &m) { (void)m; }
