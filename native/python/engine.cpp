// A packed model for Python: the file is mapped, the engine's memory is one block.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "formats/mapping.h"
#include "graphs/hadamard.h"
#include "graphs/model.h"
#include "graphs/rotary.h"
#include "graphs/sampling.h"

namespace nb = nanobind;

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AllLogits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Spikes = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>; // (tokens, neurons, width)

class Engine {
public:
    Engine(const std::string &path, const std::string &config_json, size_t chunk, unsigned threads)
        : config(config_json) {
        qslm_error error{};
        if (!qslm_map_file(path.c_str(), &content, &error)) {
            throw std::runtime_error(error.text);
        }
        const qslm_bytes described = {reinterpret_cast<const uint8_t *>(config.data()), config.size()};
        const size_t size = qslm_model_memory(content, described, chunk, &error);
        memory.reset(new uint8_t[size]); // left as it is: pages of a cache that is not used cost nothing
        arena = {memory.get(), size, 0};
        model = size ? qslm_load(content, described, chunk, &arena, &error) : nullptr;
        if (model == nullptr) {
            qslm_unmap_file(content);
            throw std::runtime_error(error.text);
        }
        pool = qslm_start_threads(threads);
        qslm_use_threads(model, pool);
    }
    ~Engine() {
        qslm_stop_threads(pool);
        qslm_unmap_file(content);
    }
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    void advance(Ids ids, Logits logits) {
        require(logits.shape(0) == qslm_sizes_of(model)->vocabulary);
        call([&](qslm_error *error) { return qslm_advance(model, ids.data(), ids.shape(0), logits.data(), error); });
    }
    void advance_all(Ids ids, AllLogits logits) {
        require(logits.shape(0) == ids.shape(0) && logits.shape(1) == qslm_sizes_of(model)->vocabulary);
        call([&](qslm_error *error) { return qslm_advance_all(model, ids.data(), ids.shape(0), logits.data(), error); });
    }
    void classify(Ids ids, Logits logits) {
        require(logits.shape(0) == qslm_sizes_of(model)->classes);
        call([&](qslm_error *error) { return qslm_classify(model, ids.data(), ids.shape(0), logits.data(), error); });
    }
    void reset() {
        alone([&] { qslm_reset(model); });
    }
    nb::bytes save() {
        std::vector<uint8_t> state(qslm_state_bytes(model));
        alone([&] { qslm_save_state(model, state.data()); });
        return nb::bytes(state.data(), state.size());
    }
    bool restore(nb::bytes state) {
        const void *from = state.data();
        const size_t size = state.size();
        bool done = false;
        alone([&] { done = qslm_restore_state(model, from, size); });
        return done;
    }
    void use_floats(bool floats) {
        alone([&] { qslm_use_floats(model, floats); });
    }
    // The arrays must live until they are traced no more.
    void trace(std::optional<Spikes> forced, std::optional<Spikes> potentials) {
        const float *spikes = forced ? forced->data() : nullptr;
        float *to = potentials ? potentials->data() : nullptr;
        alone([&] { qslm_trace(model, spikes, to); });
    }
    nb::dict sizes() const {
        const qslm_sizes *found = qslm_sizes_of(model);
        nb::dict sizes;
        sizes["vocabulary_size"] = found->vocabulary;
        sizes["width"] = found->width;
        sizes["layers"] = found->layers;
        sizes["ffn_width"] = found->ffn_width;
        sizes["context_length"] = found->context;
        sizes["classes"] = found->classes;
        return sizes;
    }
    size_t weight_bytes() const { return qslm_weight_bytes(model); }
    size_t memory_bytes() const { return arena.used; }
    size_t arena_bytes() const { return arena.size; }
    size_t state_bytes() const { return qslm_state_bytes(model); }

private:
    static void require(bool fits) {
        if (!fits) {
            throw std::invalid_argument("the logits have another shape");
        }
    }
    // A model belongs to one thread at a time, and so do its threads: those of Python wait for each other, without the
    // interpreter's lock, which the one that works may want.
    template <typename Work> void alone(Work work) {
        nb::gil_scoped_release release;
        std::lock_guard<std::mutex> lock(working);
        work();
    }
    template <typename Work> void call(Work work) {
        qslm_error error{};
        bool done = false;
        alone([&] { done = work(&error); });
        if (!done) {
            throw std::invalid_argument(error.text);
        }
    }

    std::mutex working;
    std::string config;
    qslm_bytes content{};
    std::unique_ptr<uint8_t[]> memory;
    qslm_arena arena{};
    qslm_model *model = nullptr;
    qslm_threads *pool = nullptr;
};

// A token drawn from logits, which are overwritten, and the state of the generator after it.
std::tuple<int32_t, uint64_t> draw(Logits logits, float temperature, float top_p, uint64_t random) {
    std::vector<int32_t> order(logits.shape(0));
    qslm_sampler sampler = {temperature, top_p, random};
    const int32_t token = qslm_draw(&sampler, logits.data(), order.data(), order.size());
    return {token, sampler.random};
}

std::tuple<double, double> turn(double x) {
    double cosine, sine;
    qslm_turn(x, &cosine, &sine);
    return {cosine, sine};
}

// x turned in place by the Hadamard matrix of its width.
void rotate(Logits x) {
    qslm_error error{};
    qslm_rotation rotation = qslm_rotation_of(x.shape(0));
    std::vector<uint8_t> memory(rotation.base * rotation.base + 64);
    qslm_arena arena = {memory.data(), memory.size(), 0};
    if (!qslm_prepare_rotation(&rotation, &arena, &error)) {
        throw std::runtime_error(error.text);
    }
    qslm_rotate(&rotation, x.data());
}

void fill_angles(double theta, AllLogits cosines, AllLogits sines) {
    if (cosines.shape(0) != sines.shape(0) || cosines.shape(1) != sines.shape(1)) {
        throw std::invalid_argument("cosines and sines have different shapes");
    }
    std::vector<float> frequencies(cosines.shape(1));
    qslm_fill_frequencies(theta, 2 * frequencies.size(), frequencies.data());
    qslm_fill_angles(frequencies.data(), frequencies.size(), 0, cosines.shape(0), cosines.data(), sines.data());
}

}  // namespace

void bind_engine(nb::module_ &m) {
    nb::class_<Engine>(m, "Engine", "A packed model that runs where it lies.")
        .def(nb::init<const std::string &, const std::string &, size_t, unsigned>(), nb::arg("path"),
             nb::arg("config"), nb::arg("chunk"), nb::arg("threads"))
        .def("advance", &Engine::advance, nb::arg("ids").noconvert(), nb::arg("logits").noconvert())
        .def("advance_all", &Engine::advance_all, nb::arg("ids").noconvert(), nb::arg("logits").noconvert())
        .def("classify", &Engine::classify, nb::arg("ids").noconvert(), nb::arg("logits").noconvert())
        .def("reset", &Engine::reset)
        .def("save", &Engine::save)
        .def("restore", &Engine::restore, nb::arg("state"))
        .def("use_floats", &Engine::use_floats, nb::arg("floats"))
        .def("trace", &Engine::trace, nb::arg("forced").none(), nb::arg("potentials").none())
        .def_prop_ro("sizes", &Engine::sizes)
        .def_prop_ro("weight_bytes", &Engine::weight_bytes)
        .def_prop_ro("memory_bytes", &Engine::memory_bytes)
        .def_prop_ro("arena_bytes", &Engine::arena_bytes)
        .def_prop_ro("state_bytes", &Engine::state_bytes);
    m.def("turn", turn, nb::arg("x"), "Cosine and sine, as rotary embeddings have them.");
    m.def("power", qslm_power, nb::arg("base"), nb::arg("exponent"), "base^exponent, as rotary embeddings have it.");
    m.def("rotate", rotate, nb::arg("x").noconvert(), "Turns x in place by the Hadamard matrix of its width.");
    m.def("fill_angles", fill_angles, nb::arg("theta"), nb::arg("cosines").noconvert(), nb::arg("sines").noconvert(),
          "Cosines and sines (context, width / 2) of a rotary embedding.");
    m.def("draw", draw, nb::arg("logits").noconvert(), nb::arg("temperature"), nb::arg("top_p"), nb::arg("random"));
}
