// The metadata say which sites there are; from them follows every entry of the header, and both are compared.
#include "formats/file.h"

#include <math.h>
#include <string.h>

#include "formats/json.h"
#include "products/matrix_inside.h"
#include "packing/packing.h"

#define MOST_NUMBERS ((uint64_t)1 << 48) // in one tensor
enum { MOST_AXES = 8, VERSION = 2, MOST_STORED = 4 };

// Bytes of a header. On targets of 32 bits so few that no number of sites times their size in memory goes beyond 2^31.
#define LARGEST_HEADER (SIZE_MAX / 256 < 100000000 ? SIZE_MAX / 256 : 100000000)

// One tensor of the file.
typedef struct {
    const qslm_site *site;
    const char *suffix, *type;
    unsigned size; // bytes of a number
    uint64_t shape[MOST_AXES];
    unsigned axes;
    uint64_t bytes;
    const uint8_t **place; // where its address goes
} stored_tensor;

// What a file is read with.
typedef struct {
    qslm_bytes content;
    qslm_json_span header, metadata;
    qslm_arena *arena;
    qslm_error *error;
    qslm_site *sites;
    size_t count;
    qslm_alias *aliases;
    size_t alias_count;
    stored_tensor *stored;
    size_t stored_count;
} reading;

void *qslm_take(qslm_arena *arena, size_t size, qslm_error *error) {
    const size_t odd = (size_t)((uintptr_t)(arena->start + arena->used) % 64), gap = odd ? 64 - odd : 0;
    if (arena->size - arena->used < gap || arena->size - arena->used - gap < size) {
        qslm_fail(error, "There are %zu bytes of memory left, %zu are wanted: give more.", arena->size - arena->used,
                  size + gap);
        return NULL;
    }
    void *start = arena->start + arena->used + gap;
    arena->used += gap + size;
    return start;
}

static int shown(size_t size) { // of a name in a message
    return size < 80 ? (int)size : 80;
}

// ---- header and metadata ------------------------------------------------------------------------------------------

static bool header_size(qslm_bytes content, size_t *size) {
    if (content.size < 8) return false;
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | content.start[i];
    if (length > content.size - 8 || length > LARGEST_HEADER) return false;
    *size = (size_t)length;
    return true;
}

// Sites and aliases that the metadata have at most: each has two strings, whose quotes the header escapes.
static size_t count_names(qslm_bytes content, size_t header) {
    size_t quotes = 0;
    for (size_t i = 0; i + 1 < header; i++) quotes += content.start[8 + i] == '\\' && content.start[9 + i] == '"';
    return quotes / 4 + 1;
}

size_t qslm_file_memory(qslm_bytes content) {
    size_t header;
    if (!header_size(content, &header)) return 0;
    return header + count_names(content, header) * sizeof(qslm_site) + qslm_file_scratch(content) + 4 * 64;
}

size_t qslm_file_scratch(qslm_bytes content) {
    size_t header;
    if (!header_size(content, &header)) return 0;
    return count_names(content, header) * MOST_STORED * sizeof(stored_tensor);
}

// The text of the metadata, decoded into the arena.
static bool find_metadata(reading *state) {
    qslm_json json = qslm_json_open(state->header.text, state->header.size, state->error);
    qslm_json_span key, text = {NULL, 0};
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (!qslm_json_equals(key, "__metadata__") || text.text != NULL) {
            qslm_json_skip(&json, NULL);
            continue;
        }
        qslm_json_enter_object(&json);
        while (qslm_json_next_member(&json, &key)) {
            if (qslm_json_equals(key, "qslm")) qslm_json_string(&json, &text);
            else qslm_json_skip(&json, NULL);
        }
    }
    if (!qslm_json_close(&json)) return false;
    if (text.text == NULL) return qslm_fail(state->error, "The header has no metadata of qslm.");
    char *decoded = qslm_take(state->arena, text.size, state->error);
    if (decoded == NULL) return false;
    state->metadata.text = decoded;
    return qslm_json_decode(text, decoded, text.size, &state->metadata.size) ||
           qslm_fail(state->error, "The metadata of the header cannot be decoded.");
}

// ---- sites --------------------------------------------------------------------------------------------------------

static bool read_shape(qslm_json *json, uint64_t *shape, unsigned *axes) {
    uint64_t numbers = 1;
    *axes = 0;
    qslm_json_enter_array(json);
    while (qslm_json_next_element(json)) {
        int64_t size = 0;
        if (!qslm_json_int64(json, &size)) return false;
        if (*axes == MOST_AXES || size < 0) return qslm_json_fail(json, "a shape is not one");
        const uint64_t least = size > 0 ? (uint64_t)size : 1;
        if (least > MOST_NUMBERS / numbers) return qslm_json_fail(json, "a shape is too large");
        numbers *= least;
        shape[(*axes)++] = (uint64_t)size;
    }
    return !json->failed;
}

// (out, in): the first axis against all others.
static void flatten(const uint64_t *shape, unsigned axes, uint64_t *rows, uint64_t *columns) {
    *rows = axes > 1 ? shape[0] : 1;
    *columns = 1;
    for (unsigned i = axes > 1; i < axes; i++) *columns *= shape[i];
}

static void add_stored(reading *state, const qslm_site *site, const char *suffix, const char *type, unsigned size,
                       uint64_t numbers, const uint8_t **place) {
    stored_tensor *one = &state->stored[state->stored_count++];
    *one = (stored_tensor){site, suffix, type, size, {numbers}, 1, numbers * size, place};
}

// What the file holds of a site; the same rules as `stored_tensors` in Python.
static void expect_stored(reading *state, qslm_site *site, const uint64_t *shape, unsigned axes) {
    qslm_matrix *matrix = &site->matrix;
    const uint64_t numbers = (uint64_t)matrix->rows * matrix->columns;
    if (matrix->kind != QSLM_INTEGER && matrix->kind != QSLM_SIGN) {
        const char *type = matrix->kind == QSLM_FLOAT32 ? "F32" : matrix->kind == QSLM_FLOAT16 ? "F16" : "BF16";
        add_stored(state, site, "", type, matrix->bits / 8, numbers, &matrix->codes);
        stored_tensor *one = &state->stored[state->stored_count - 1];
        memcpy(one->shape, shape, sizeof one->shape);
        one->axes = axes;
        return;
    }
    const uint64_t packed = qslm_packed_size((size_t)numbers, matrix->bits);
    add_stored(state, site, matrix->kind == QSLM_SIGN ? ".signs" : ".codes", "U8", 1, packed, &matrix->codes);
    if (matrix->kind == QSLM_SIGN) return;
    const uint64_t grid = matrix->one_scale ? 1 : (uint64_t)matrix->rows * qslm_groups(matrix);
    const bool wide = matrix->scale_type == QSLM_SCALE_FLOAT32, half = matrix->scale_type == QSLM_SCALE_FLOAT16;
    add_stored(state, site, ".scales", wide ? "F32" : half ? "F16" : "U8", wide ? 4 : half ? 2 : 1, grid,
               &matrix->scales);
    if (!wide && !half) {
        add_stored(state, site, ".step", "F32", 4, 1, &matrix->step);
        if (matrix->scale_type == QSLM_SCALE_SHIFTS) {
            stored_tensor *step = &state->stored[state->stored_count - 1];
            step->shape[0] = matrix->rows, step->shape[1] = 1, step->axes = 2, step->bytes = 4 * (uint64_t)matrix->rows;
        }
    }
    if (!matrix->symmetric) {
        add_stored(state, site, ".zeros", "U8", 1, qslm_packed_size((size_t)grid, matrix->bits), &matrix->zeros);
    }
}

// [format, shape] of a site.
static bool read_site(reading *state, qslm_json *json, qslm_site *site) {
    qslm_json_span format = {NULL, 0};
    uint64_t shape[MOST_AXES] = {0}, rows, columns;
    unsigned axes = 0;
    qslm_json_enter_array(json);
    if (!qslm_json_next_element(json)) return qslm_json_fail(json, "a site has no format");
    if (!qslm_json_string(json, &format)) return false;
    if (!qslm_read_format(format.text, format.size, &site->matrix)) {
        return qslm_fail(state->error, "The engine does not run %.*s in %.*s: pack it with at most 8 bits.",
                         shown(site->name_size), site->name, shown(format.size), format.text);
    }
    if (!qslm_json_next_element(json)) return qslm_json_fail(json, "a site has no shape");
    if (!read_shape(json, shape, &axes)) return false;
    if (qslm_json_next_element(json)) return qslm_json_fail(json, "a site has more than a format and a shape");
    flatten(shape, axes, &rows, &columns);
    const bool coded = site->matrix.kind == QSLM_INTEGER || site->matrix.kind == QSLM_SIGN;
    if (rows * columns > SIZE_MAX / 64 || (coded && (columns > QSLM_MOST_COLUMNS || rows * columns == 0))) {
        return qslm_fail(state->error, "%.*s has %llu columns, the engine runs 1 to %d.", shown(site->name_size),
                         site->name, (unsigned long long)columns, QSLM_MOST_COLUMNS);
    }
    site->matrix.rows = (size_t)rows;
    site->matrix.columns = (size_t)columns;
    if (site->matrix.group == 0) site->matrix.group = (size_t)(columns > 0 ? columns : 1);
    expect_stored(state, site, shape, axes);
    return !json->failed;
}

static int compare(const char *name, size_t size, const char *other, size_t other_size) {
    const int order = memcmp(name, other, size < other_size ? size : other_size);
    return order != 0 ? order : size < other_size ? -1 : size > other_size;
}

static bool is_plain(qslm_json_span name) {
    for (size_t i = 0; i < name.size; i++) {
        if (name.text[i] == '\\' || (unsigned char)name.text[i] >= 127) return false;
    }
    return true;
}

static bool read_sites(reading *state, qslm_json json) {
    qslm_json_span name;
    size_t at = 0;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &name)) {
        if (at == state->count) return qslm_json_fail(&json, "the sites changed");
        qslm_site *site = &state->sites[at];
        site->name = name.text, site->name_size = name.size;
        if (!is_plain(name)) {
            return qslm_fail(state->error, "The name of the site %.*s is not plain ASCII.", shown(name.size), name.text);
        }
        if (at > 0 && compare(site[-1].name, site[-1].name_size, name.text, name.size) >= 0) {
            return qslm_fail(state->error, "The site %.*s is not in order.", shown(name.size), name.text);
        }
        if (!read_site(state, &json, site)) return false;
        at++;
    }
    return !json.failed;
}

static const qslm_site *site_of(const qslm_site *sites, size_t count, const char *name, size_t size) {
    for (size_t first = 0, last = count; first < last;) {
        const size_t middle = first + (last - first) / 2;
        const int order = compare(name, size, sites[middle].name, sites[middle].name_size);
        if (order == 0) return &sites[middle];
        if (order < 0) last = middle;
        else first = middle + 1;
    }
    return NULL;
}

static bool read_by_columns(reading *state, qslm_json json) {
    qslm_json_span name, before = {"", 0};
    qslm_json_enter_array(&json);
    for (; qslm_json_next_element(&json); before = name) {
        if (!qslm_json_string(&json, &name)) return false;
        if (compare(before.text, before.size, name.text, name.size) >= 0) {
            return qslm_fail(state->error, "%.*s is not in order among what is stored by columns.", shown(name.size),
                             name.text);
        }
        const qslm_site *site = site_of(state->sites, state->count, name.text, name.size);
        if (site == NULL || (site->matrix.kind != QSLM_INTEGER && site->matrix.kind != QSLM_SIGN)) {
            return qslm_fail(state->error, "%.*s cannot be stored by columns.", shown(name.size), name.text);
        }
        state->sites[site - state->sites].matrix.layout = QSLM_BY_COLUMNS;
    }
    return !json.failed;
}

static bool read_aliases(reading *state, qslm_json json) {
    qslm_json_span name, target;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &name)) {
        if (!qslm_json_string(&json, &target)) return false;
        if (site_of(state->sites, state->count, target.text, target.size) == NULL) {
            return qslm_fail(state->error, "The alias %.*s stands for no site.", shown(name.size), name.text);
        }
        state->aliases[state->alias_count++] = (qslm_alias){name.text, target.text, name.size, target.size};
    }
    return !json.failed;
}

// How many members an object has, or elements an array.
static size_t count_in(qslm_json json) {
    qslm_json_span key;
    size_t count = 0;
    qslm_json_enter_object(&json);
    for (; qslm_json_next_member(&json, &key); count++) qslm_json_skip(&json, NULL);
    return count;
}

static bool read_metadata(reading *state) {
    qslm_json json = qslm_json_open(state->metadata.text, state->metadata.size, state->error);
    qslm_json sites = json, aliases = json, by_columns = json; // cursors that stand at the values
    bool has_sites = false, has_aliases = false, has_columns = false;
    int64_t version = 0;
    qslm_json_span key;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "version")) {
            qslm_json_int64(&json, &version);
            continue;
        }
        if (qslm_json_equals(key, "sites")) sites = json, has_sites = true;
        else if (qslm_json_equals(key, "aliases")) aliases = json, has_aliases = true;
        else if (qslm_json_equals(key, "by_columns")) by_columns = json, has_columns = true;
        else if (!qslm_json_equals(key, "quantizer")) { // it may tell how to read the others
            return qslm_fail(state->error, "The metadata have %.*s, which is nothing that version %d writes.",
                             shown(key.size), key.text, VERSION);
        }
        qslm_json_skip(&json, NULL);
    }
    if (!qslm_json_close(&json)) return false;
    if (version != VERSION || !has_sites || !has_aliases) {
        return qslm_fail(state->error, "The file is of version %lld, this engine reads version %d: pack the model again.",
                         (long long)version, VERSION);
    }
    state->count = count_in(sites);
    state->sites = qslm_take(state->arena, state->count * sizeof *state->sites, state->error);
    state->aliases = qslm_take(state->arena, count_in(aliases) * sizeof *state->aliases, state->error);
    if (state->sites == NULL || state->aliases == NULL) return false;
    state->stored = qslm_take(state->arena, state->count * MOST_STORED * sizeof *state->stored, state->error);
    return state->stored != NULL && read_sites(state, sites) && (!has_columns || read_by_columns(state, by_columns)) &&
           read_aliases(state, aliases);
}

// ---- places -------------------------------------------------------------------------------------------------------

static char character(const stored_tensor *one, size_t i) { // 0 behind the last
    const size_t size = one->site->name_size;
    return i < size ? one->site->name[i] : one->suffix[i - size];
}

static bool comes_before(const stored_tensor *one, const stored_tensor *other) {
    const bool odd = one->bytes % 64 > 0, other_odd = other->bytes % 64 > 0;
    if (odd != other_odd) return other_odd;
    if (one->size != other->size) return one->size > other->size;
    for (size_t i = 0;; i++) {
        const char here = character(one, i), there = character(other, i);
        if (here != there || here == 0) return here < there;
    }
}

static void sift(stored_tensor *heap, size_t root, size_t count) {
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && comes_before(&heap[child], &heap[child + 1])) child++;
        if (!comes_before(&heap[root], &heap[child])) return;
        const stored_tensor moved = heap[root];
        heap[root] = heap[child];
        heap[child] = moved;
    }
}

// A heap sort: in place, and never slow.
static void put_in_order(stored_tensor *tensors, size_t count) {
    for (size_t root = count / 2; root-- > 0;) sift(tensors, root, count);
    for (size_t last = count; last-- > 1;) {
        const stored_tensor moved = tensors[0];
        tensors[0] = tensors[last];
        tensors[last] = moved;
        sift(tensors, 0, last);
    }
}

static bool is_named(const stored_tensor *one, qslm_json_span key) {
    const size_t size = one->site->name_size, more = strlen(one->suffix);
    return key.size == size + more && memcmp(key.text, one->site->name, size) == 0 &&
           memcmp(key.text + size, one->suffix, more) == 0;
}

// Whether an entry says what is expected, with its data at `offset`.
static bool entry_fits(qslm_json *json, const stored_tensor *one, uint64_t offset) {
    qslm_json_span key, type = {"", 0};
    uint64_t shape[MOST_AXES];
    int64_t begin = -1, end = -1;
    unsigned axes = MOST_AXES + 1;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "dtype")) {
            qslm_json_string(json, &type);
        } else if (qslm_json_equals(key, "shape")) {
            if (!read_shape(json, shape, &axes)) return false;
        } else if (qslm_json_equals(key, "data_offsets")) {
            qslm_json_enter_array(json);
            if (!qslm_json_next_element(json) || !qslm_json_int64(json, &begin)) return false;
            if (!qslm_json_next_element(json) || !qslm_json_int64(json, &end)) return false;
            if (qslm_json_next_element(json)) return false;
        } else {
            return false;
        }
    }
    return !json->failed && qslm_json_equals(type, one->type) && axes == one->axes &&
           memcmp(shape, one->shape, axes * sizeof *shape) == 0 && begin >= 0 && (uint64_t)begin == offset && end >= 0 &&
           (uint64_t)end == offset + one->bytes;
}

// Compare the header's entries with the expected ones, in the order of the file, and tell every site its places.
static bool find_places(reading *state, const uint8_t *data, size_t *data_bytes) {
    qslm_json json = qslm_json_open(state->header.text, state->header.size, state->error);
    qslm_json_span key;
    uint64_t offset = 0;
    const uint64_t size = (uint64_t)(state->content.start + state->content.size - data);
    size_t at = 0;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "__metadata__")) {
            qslm_json_skip(&json, NULL);
            continue;
        }
        const stored_tensor *one = at < state->stored_count ? &state->stored[at++] : NULL;
        if (one != NULL && is_named(one, key) && one->bytes > size - offset) {
            return qslm_fail(state->error, "The file ends within %.*s: of its %llu bytes %llu are there.",
                             shown(key.size), key.text, (unsigned long long)one->bytes,
                             (unsigned long long)(size - offset));
        }
        if (one == NULL || !is_named(one, key) || !entry_fits(&json, one, offset)) {
            return qslm_fail(state->error, "The entry %.*s of the header does not follow from the metadata.",
                             shown(key.size), key.text);
        }
        *one->place = data + offset;
        offset += one->bytes;
    }
    if (!qslm_json_close(&json)) return false;
    if (at != state->stored_count || offset != size) {
        return qslm_fail(state->error, "The file has %zu of %zu tensors, and %llu bytes of data where they take %llu.", at,
                         state->stored_count, (unsigned long long)size, (unsigned long long)offset);
    }
    *data_bytes = (size_t)offset;
    return true;
}

static bool stream_ends_in_zeros(const uint8_t *stream, uint64_t count, unsigned bits) {
    const unsigned used = (unsigned)(count % 8 * bits % 8);
    return used == 0 || stream[qslm_packed_size((size_t)count, bits) - 1] >> used == 0;
}

static bool check_unused_bits(const reading *state) {
    for (size_t i = 0; i < state->count; i++) {
        const qslm_matrix *matrix = &state->sites[i].matrix;
        if (matrix->kind != QSLM_INTEGER && matrix->kind != QSLM_SIGN) continue;
        const uint64_t grid = matrix->one_scale ? 1 : (uint64_t)matrix->rows * qslm_groups(matrix);
        if (!stream_ends_in_zeros(matrix->codes, (uint64_t)matrix->rows * matrix->columns, matrix->bits) ||
            (matrix->zeros != NULL && !stream_ends_in_zeros(matrix->zeros, grid, matrix->bits))) {
            return qslm_fail(state->error, "%.*s has unused bits that are not zero.", shown(state->sites[i].name_size),
                             state->sites[i].name);
        }
    }
    return true;
}

bool qslm_read_file(qslm_bytes content, qslm_arena *arena, qslm_file *file, qslm_error *error) {
    reading state = {.content = content, .arena = arena, .error = error};
    if (!header_size(content, &state.header.size)) {
        return qslm_fail(error, "The file of %zu bytes is too short for its header.", content.size);
    }
    state.header.text = (const char *)content.start + 8;
    if (!find_metadata(&state) || !read_metadata(&state)) return false;
    put_in_order(state.stored, state.stored_count);
    if (!find_places(&state, content.start + 8 + state.header.size, &file->data_bytes)) return false;
    arena->used = (size_t)((uint8_t *)state.stored - arena->start); // the list of tensors was needed only here
    file->content = content;
    file->sites = state.sites, file->count = state.count;
    file->aliases = state.aliases, file->alias_count = state.alias_count;
    return check_unused_bits(&state);
}

const qslm_site *qslm_find_site(const qslm_file *file, const char *name, qslm_error *error) {
    const size_t size = strlen(name);
    const qslm_site *site = site_of(file->sites, file->count, name, size);
    for (size_t i = 0; site == NULL && i < file->alias_count; i++) {
        const qslm_alias *alias = &file->aliases[i];
        if (compare(name, size, alias->name, alias->name_size) == 0) {
            site = site_of(file->sites, file->count, alias->stands_for, alias->stands_for_size);
        }
    }
    if (site == NULL) qslm_fail(error, "The file has no %s.", name);
    return site;
}

// ---- numbers ------------------------------------------------------------------------------------------------------

static size_t count_scales(const qslm_matrix *matrix) {
    return matrix->one_scale ? 1 : matrix->rows * qslm_groups(matrix);
}

// As bits: positive numbers that are finite are the integers from 1 to below infinity.
static bool halves_are_fit(const uint8_t *scales, size_t count) {
    bool fit = true;
    for (size_t i = 0; i < count; i++) {
        const unsigned bits = (unsigned)scales[2 * i] | (unsigned)scales[2 * i + 1] << 8;
        fit &= bits - 1 < 0x7c00 - 1;
    }
    return fit;
}

static bool singles_are_fit(const uint8_t *scales, size_t count, float span) {
    for (size_t i = 0; i < count; i++) {
        const float scale = qslm_single(scales + 4 * i);
        if (!(scale > 0.0f && scale * span < INFINITY)) return false;
    }
    return true;
}

static bool bytes_are_fit(const uint8_t *scales, size_t count, unsigned least, unsigned most) {
    bool fit = true;
    for (size_t i = 0; i < count; i++) fit &= scales[i] >= least && scales[i] <= most;
    return fit;
}

static bool scales_are_fit(const qslm_matrix *matrix) {
    const size_t count = count_scales(matrix);
    const float span = (float)((1 << matrix->bits) - 1);
    switch (matrix->scale_type) {
    case QSLM_SCALE_FLOAT16:
        return halves_are_fit(matrix->scales, count);
    case QSLM_SCALE_FLOAT32:
        return singles_are_fit(matrix->scales, count, span);
    case QSLM_SCALE_STEPS:
        return bytes_are_fit(matrix->scales, count, 1, 255) && singles_are_fit(matrix->step, 1, 255.0f * span);
    default:
        return bytes_are_fit(matrix->scales, count, 0, 8 - matrix->bits) &&
               singles_are_fit(matrix->step, matrix->rows, 255.0f);
    }
}

static bool values_are_finite(const qslm_matrix *matrix) {
    const size_t count = matrix->rows * matrix->columns;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(qslm_value_at(matrix, i))) return false;
    }
    return true;
}

bool qslm_check_numbers(const qslm_file *file, qslm_error *error) {
    for (size_t i = 0; i < file->count; i++) {
        const qslm_site *site = &file->sites[i];
        const qslm_kind kind = site->matrix.kind;
        if (kind == QSLM_SIGN) continue;
        if (kind == QSLM_INTEGER ? !scales_are_fit(&site->matrix) : !values_are_finite(&site->matrix)) {
            return qslm_fail(error, "%.*s has a scale that is not positive, or a number that is not finite.",
                             shown(site->name_size), site->name);
        }
    }
    return true;
}
