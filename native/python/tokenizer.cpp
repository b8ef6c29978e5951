// The tokenizer for Python: bytes in, ids out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace nb = nanobind;

namespace {

// Raises ValueError; a message that was cut within a character, or shows bytes of a file, is still shown.
[[noreturn]] void raise(const qslm_error &error) {
    nb::object text = nb::steal(PyUnicode_DecodeUTF8(error.text, (Py_ssize_t)strlen(error.text), "replace"));
    PyErr_SetObject(PyExc_ValueError, text.ptr());
    throw nb::python_error();
}

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename T> using Memory = std::unique_ptr<T[], Free>;

// Memory that is not touched here: a text works with little of what its longest word could want.
template <typename T> Memory<T> allocate(size_t count) {
    Memory<T> made(static_cast<T *>(std::malloc(count * sizeof(T) + 1)));
    if (!made) throw std::bad_alloc();
    return made;
}

class Tokenizer {
public:
    explicit Tokenizer(nb::bytes json) {
        qslm_error error;
        qslm_tokenizer_plan plan;
        if (!qslm_tokenizer_read(&plan, json.c_str(), json.size(), &error)) raise(error);
        bytes_ = plan.arena_bytes;
        arena_ = allocate<char>(bytes_);
        if (!qslm_tokenizer_load(&tokenizer_, &plan, arena_.get(), &error)) raise(error);
    }

    nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>> encode(nb::bytes text) const {
        const size_t size = text.size();
        Memory<uint32_t> scratch = allocate<uint32_t>(qslm_tokenizer_scratch(size)), ids = allocate<uint32_t>(size);
        size_t count = 0;
        qslm_error error;
        bool encoded;
        {
            nb::gil_scoped_release release;
            encoded = qslm_tokenizer_encode(&tokenizer_, text.c_str(), size, scratch.get(), ids.get(), &count, &error);
        }
        if (!encoded) raise(error);
        if (void *shorter = std::realloc(ids.get(), count * sizeof(uint32_t) + 1)) {
            ids.release();
            ids.reset(static_cast<uint32_t *>(shorter));
        }
        nb::capsule owner(ids.get(), [](void *memory) noexcept { std::free(memory); });
        return {ids.release(), {count}, owner};
    }

    nb::bytes decode(const std::vector<uint32_t> &ids, bool skip_special_tokens) const {
        std::string decoded;
        for (const uint32_t id : ids) {
            size_t size;
            const char *bytes = qslm_tokenizer_decode(&tokenizer_, id, &size);
            if (!bytes) throw nb::value_error(("There is no token " + std::to_string(id) + ".").c_str());
            if (!skip_special_tokens || !tokenizer_.tokens[id].special) decoded.append(bytes, size);
        }
        return nb::bytes(decoded.data(), decoded.size());
    }

    std::optional<uint32_t> find(const std::string &name) const {
        const uint32_t id = qslm_tokenizer_find(&tokenizer_, name.data(), name.size());
        return id == QSLM_NO_TOKEN ? std::nullopt : std::optional<uint32_t>(id);
    }

    size_t size() const { return tokenizer_.token_count; }
    size_t arena_bytes() const { return bytes_; }

private:
    Memory<char> arena_;
    size_t bytes_ = 0;
    qslm_tokenizer tokenizer_;
};

}  // namespace

void bind_tokenizer(nb::module_ &m) {
    nb::class_<Tokenizer>(m, "Tokenizer", "Byte-level BPE out of the bytes of a tokenizer.json.")
        .def(nb::init<nb::bytes>(), nb::arg("json"))
        .def("encode", &Tokenizer::encode, nb::arg("text"), "Ids (tokens,) of UTF-8 text.")
        .def("decode", &Tokenizer::decode, nb::arg("ids"), nb::arg("skip_special_tokens") = true,
             "The bytes of tokens.")
        .def("find", &Tokenizer::find, nb::arg("name"), "The id of the token of this name, or None.")
        .def("__len__", &Tokenizer::size)
        .def_prop_ro("arena_bytes", &Tokenizer::arena_bytes, "Bytes of memory that it takes.");
}
