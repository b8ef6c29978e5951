// Packed matrices for Python: the buffers of a stored site, times tokens. Sizes are checked here.
#include "products/matrix.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "system/bandwidth.h"
#include "packing/packing.h"
#include "graphs/spikes.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T> using Input1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T> using Input2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T> using Output1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T> using Output2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool fits, const std::string &what) {
    if (!fits) {
        throw std::invalid_argument(what);
    }
}

class Threads {
public:
    explicit Threads(unsigned count) : pool(qslm_start_threads(count)) {}
    ~Threads() { qslm_stop_threads(pool); }
    Threads(const Threads &) = delete;
    Threads &operator=(const Threads &) = delete;
    qslm_threads *pool;
};

size_t scale_bytes(qslm_scale_type type) {
    return type == QSLM_SCALE_FLOAT32 ? 4 : type == QSLM_SCALE_FLOAT16 ? 2 : 1;
}

class Matrix {
public:
    // kind and scale_type: the numbers of qslm_kind and qslm_scale_type.
    Matrix(int kind, unsigned bits, bool symmetric, bool by_columns, int scale_type, size_t rows, size_t columns,
           size_t group, bool one_scale, Bytes codes, Bytes scales, Bytes zeros, Bytes step)
        : held{codes, scales, zeros, step} {
        matrix.kind = static_cast<qslm_kind>(kind);
        matrix.bits = bits;
        matrix.symmetric = symmetric;
        matrix.layout = by_columns ? QSLM_BY_COLUMNS : QSLM_BY_TILES;
        matrix.scale_type = static_cast<qslm_scale_type>(scale_type);
        matrix.rows = rows;
        matrix.columns = columns;
        matrix.group = group;
        matrix.one_scale = one_scale;
        matrix.codes = codes.data();
        matrix.scales = scales.data();
        matrix.zeros = symmetric ? nullptr : zeros.data();
        matrix.step = step.data();
        check();
    }

    void multiply(Input2<int8_t> codes, Input1<float> scales, Output2<float> y, const Threads *threads) const {
        const size_t count = codes.shape(0);
        require(codes.shape(1) >= matrix.columns && codes.shape(1) % 64 == 0, "the stride of the tokens is too short");
        require(scales.shape(0) == count && y.shape(0) == count && y.shape(1) == matrix.rows, "the shapes differ");
        require(matrix.kind == QSLM_INTEGER || matrix.kind == QSLM_SIGN, "a matrix of floats takes floats");
        const qslm_tokens tokens = {codes.data(), codes.shape(1), scales.data(), count};
        nb::gil_scoped_release release;
        const qslm_product product = {&matrix, &tokens, nullptr, count, y.data()};
        qslm_multiply(&product, 1, threads ? threads->pool : nullptr);
    }

    void multiply_floats(Input2<float> tokens, Output2<float> y, const Threads *threads) const {
        require(tokens.shape(1) == matrix.columns && y.shape(0) == tokens.shape(0) && y.shape(1) == matrix.rows,
                "the shapes differ");
        nb::gil_scoped_release release;
        const qslm_product product = {&matrix, nullptr, tokens.data(), tokens.shape(0), y.data()};
        qslm_multiply(&product, 1, threads ? threads->pool : nullptr);
    }

    // One token of floats, rounded to integers of its own here.
    void multiply_token(const float *x, int8_t *codes, size_t stride, float *y, qslm_threads *pool) const {
        const float scale = qslm_round_token(x, matrix.columns, stride, codes);
        const qslm_tokens tokens = {codes, stride, &scale, 1};
        const qslm_product product = {&matrix, &tokens, x, 1, y};
        qslm_multiply(&product, 1, pool);
    }

    bool has_shape(size_t rows, size_t columns) const { return matrix.rows == rows && matrix.columns == columns; }

    void read_row(size_t row, Output1<float> values) const {
        require(row < matrix.rows && values.shape(0) == matrix.columns, "there is no such row");
        qslm_read_row(&matrix, row, values.data());
    }

private:
    void check() const {
        const size_t count = matrix.rows * matrix.columns;
        require(matrix.columns > 0 && matrix.columns <= QSLM_MOST_COLUMNS, "too many columns");
        require(matrix.kind <= QSLM_BFLOAT16 && matrix.scale_type <= QSLM_SCALE_SHIFTS, "no such kind");
        if (matrix.kind >= QSLM_FLOAT32) {
            require(held[0].size() == count * (matrix.kind == QSLM_FLOAT32 ? 4 : 2), "the values have another size");
            return;
        }
        require(matrix.bits >= 1 && matrix.bits <= 8, "bits is not 1 to 8");
        require(held[0].size() == qslm_packed_size(count, matrix.bits), "the codes have another size");
        if (matrix.kind == QSLM_SIGN) {
            require(matrix.bits == 1 && matrix.group == matrix.columns, "signs have one bit and no groups");
            return;
        }
        require(matrix.group == matrix.columns || (matrix.group >= 32 && matrix.group % 32 == 0), "odd groups");
        const size_t groups = (matrix.columns + matrix.group - 1) / matrix.group;
        const size_t grid = matrix.one_scale ? 1 : matrix.rows * groups;
        require(held[1].size() == grid * scale_bytes(matrix.scale_type), "the scales have another size");
        require(matrix.symmetric || held[2].size() == qslm_packed_size(grid, matrix.bits), "odd zero points");
        const size_t steps = matrix.scale_type == QSLM_SCALE_STEPS    ? 1
                             : matrix.scale_type == QSLM_SCALE_SHIFTS ? matrix.rows
                                                                      : 0;
        require(held[3].size() == 4 * steps, "the steps have another size");
    }

    qslm_matrix matrix{};
    Bytes held[4]; // codes, scales, zeros, step
};

// Products y (matrices, rows) of one token x (columns,), one after the other.
void multiply_in_turn(const std::vector<const Matrix *> &matrices, Input1<float> x, Output2<float> y,
                      const Threads *threads) {
    require(y.shape(0) == matrices.size(), "the shapes differ");
    for (const Matrix *one : matrices) {
        require(one->has_shape(y.shape(1), x.shape(0)), "the shapes differ");
    }
    std::vector<int8_t> codes((x.shape(0) + 63) / 64 * 64);
    nb::gil_scoped_release release;
    for (size_t i = 0; i < matrices.size(); i++) {
        matrices[i]->multiply_token(x.data(), codes.data(), codes.size(), y.data() + i * y.shape(1),
                                    threads ? threads->pool : nullptr);
    }
}

float round_token(Input1<float> x, Output1<int8_t> codes) {
    require(codes.shape(0) >= x.shape(0), "the codes are too few");
    return qslm_round_token(x.data(), x.shape(0), codes.shape(0), codes.data());
}

// (step, exponent) of the spike counts of a token; threshold: a modified z-score, or center and reach of a static one.
std::tuple<float, unsigned> encode_spikes(Input1<float> x, unsigned bits, unsigned salient_bits, float clip,
                                          double threshold, std::optional<std::tuple<float, float>> saliency,
                                          Output1<int8_t> codes, Output1<int8_t> massive) {
    require(bits >= 2 && bits <= 8 && salient_bits >= bits && salient_bits <= 8, "bits are not 2 to 8");
    require(codes.shape(0) >= x.shape(0) && massive.shape(0) == codes.shape(0), "the codes are too few");
    qslm_spiking_input input = {salient_bits, clip, static_cast<float>(threshold / 0.6745), false, 0, 0};
    if (saliency) {
        input.is_static = true;
        std::tie(input.center, input.reach) = *saliency;
    }
    unsigned exponent = 0;
    const float step = qslm_encode_spikes(&input, bits, x.data(), x.shape(0), codes.shape(0), codes.data(),
                                          massive.data(), &exponent);
    return {step, exponent};
}

std::vector<std::string> kernels() {
    std::vector<std::string> names;
    for (const char *const *name = qslm_kernel_names(); *name != nullptr; name++) {
        names.emplace_back(*name);
    }
    return names;
}

void choose_kernels(std::optional<std::string> name) {
    require(qslm_choose_kernels(name ? name->c_str() : nullptr), "no such kernels on this machine");
}

uint64_t sum_words(Input1<uint64_t> words, const Threads *threads) {
    nb::gil_scoped_release release;
    return qslm_sum_words(words.data(), words.shape(0), threads ? threads->pool : nullptr);
}

}  // namespace

void bind_matrix(nb::module_ &m) {
    nb::class_<Threads>(m, "Threads", "A pool of threads that share the rows of a product.")
        .def(nb::init<unsigned>(), nb::arg("count"));
    nb::class_<Matrix>(m, "Matrix", "A packed matrix (rows, columns).")
        .def(nb::init<int, unsigned, bool, bool, int, size_t, size_t, size_t, bool, Bytes, Bytes, Bytes, Bytes>(),
             nb::kw_only(), nb::arg("kind"), nb::arg("bits"), nb::arg("symmetric"), nb::arg("by_columns"),
             nb::arg("scale_type"), nb::arg("rows"), nb::arg("columns"), nb::arg("group"), nb::arg("one_scale"),
             nb::arg("codes"), nb::arg("scales"), nb::arg("zeros"), nb::arg("step"))
        .def("multiply", &Matrix::multiply, nb::arg("codes").noconvert(), nb::arg("scales").noconvert(),
             nb::arg("y").noconvert(), nb::arg("threads").none() = nb::none(),
             "Products y (tokens, rows) of int8 tokens (tokens, stride) with scales (tokens,).")
        .def("multiply_floats", &Matrix::multiply_floats, nb::arg("tokens").noconvert(), nb::arg("y").noconvert(),
             nb::arg("threads").none() = nb::none(), "Products y (tokens, rows) of float tokens (tokens, columns).")
        .def("read_row", &Matrix::read_row, nb::arg("row"), nb::arg("values").noconvert(), "One row as floats.");
    m.def("multiply_in_turn", multiply_in_turn, nb::arg("matrices"), nb::arg("x").noconvert(), nb::arg("y").noconvert(),
          nb::arg("threads").none() = nb::none(),
          "Products y (matrices, rows) of one token x (columns,), which is rounded anew for each.");
    m.def("round_token", round_token, nb::arg("x").noconvert(), nb::arg("codes").noconvert(),
          "Round a token to int8; returns its scale.");
    m.def("encode_spikes", encode_spikes, nb::arg("x").noconvert(), nb::arg("bits"), nb::arg("salient_bits"),
          nb::arg("clip"), nb::arg("threshold"), nb::arg("saliency").none(), nb::arg("codes").noconvert(),
          nb::arg("massive").noconvert(), "The spike counts of a token; returns the step and the exponent.");
    m.def("kernels", kernels, "The names of the kernels that this machine can run, best first.");
    m.def("choose_kernels", choose_kernels, nb::arg("name").none(), "Use these kernels; None: the best.");
    m.def("sum_words", sum_words, nb::arg("words").noconvert(), nb::arg("threads").none() = nb::none(),
          "The sum of 64-bit words, read on all threads: how fast memory is.");
}
