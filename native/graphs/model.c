// Loading, running by chunks, and the state; the networks themselves are graphs.
#include "graphs/model.h"

#include <string.h>

#include "products/matrix_inside.h"
#include "graphs/model_inside.h"
#include "system/portable.h"

enum { MOST_CHUNK = 4096, LINE = 64 };
#define MAGIC 0x716d6c73u // "qslm" turned round

static const qslm_graph *const GRAPHS[] = {&qslm_spikegpt, &qslm_llama};

// What a saved state begins with.
typedef struct {
    uint32_t magic, reserved;
    uint64_t bytes, tokens;
} state_header;

// ---- config.json --------------------------------------------------------------------------------------------------

static bool read_architecture(qslm_bytes config, qslm_json_span *architecture, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)config.start, config.size, error);
    qslm_json_span key;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "architecture")) qslm_json_string(&json, architecture);
        else qslm_json_skip(&json, NULL);
    }
    return qslm_json_close(&json);
}

// Whether no size of what a graph takes can go beyond the integers of the target, which matters where they have 32 bits:
// a row of `widest` floats for everything that a layer, a token of the chunk or a place of the context has, and the scores
// of attention.
static bool is_addressable(const qslm_model *model) {
    enum { ROWS = 64, SCORES = 16 * 1024 }; // of a layer or a token, and of a place: more than any graph takes
    const uint64_t places = model->graph->limited ? (uint64_t)model->sizes.context : 0;
    const uint64_t rows = (model->sizes.layers + (uint64_t)1) * (ROWS + 2 * places) + ROWS * (uint64_t)model->chunk;
    const size_t most = SIZE_MAX / 4 / sizeof(float);
    return rows <= most / model->widest && places <= most / SCORES;
}

static bool read_config(qslm_bytes config, size_t chunk, qslm_model *model, qslm_error *error) {
    qslm_json_span architecture = {"", 0};
    if (chunk < 1 || chunk > MOST_CHUNK) return qslm_fail(error, "A chunk has 1 to %d tokens.", MOST_CHUNK);
    if (!read_architecture(config, &architecture, error)) return false;
    for (size_t i = 0; i < sizeof GRAPHS / sizeof *GRAPHS; i++) {
        if (qslm_json_equals(architecture, GRAPHS[i]->name)) model->graph = GRAPHS[i];
    }
    if (model->graph == NULL) {
        return qslm_fail(error, "The engine does not run the architecture %.*s.",
                         (int)(architecture.size < 80 ? architecture.size : 80), architecture.text);
    }
    model->chunk = chunk;
    model->config = config;
    if (!model->graph->configure(model, config, error)) return false;
    size_t widest = model->widest > model->sizes.width ? model->widest : model->sizes.width;
    if (model->sizes.ffn_width > widest) widest = model->sizes.ffn_width;
    model->widest = (widest + LINE - 1) / LINE * LINE;
    return is_addressable(model) ||
           qslm_fail(error, "A network of %zu layers, %zu wide, may take more memory than %d bits can address.",
                     model->sizes.layers, model->widest, (int)(8 * sizeof(size_t)));
}

// ---- loading ------------------------------------------------------------------------------------------------------

bool qslm_check_limits(const qslm_limit *limits, size_t count, qslm_error *error) {
    for (size_t i = 0; i < count; i++) {
        if (limits[i].value > 0 && limits[i].value <= limits[i].most) continue;
        return qslm_fail(error, "config.json says %lld for %s, which is none of 1 to %lld.", (long long)limits[i].value,
                         limits[i].name, (long long)limits[i].most);
    }
    return true;
}

size_t qslm_codes_of_token(const qslm_model *model) {
    const size_t together = QSLM_MOST_TOGETHER * ((model->sizes.width + LINE - 1) / LINE * LINE);
    return together > model->widest ? together : model->widest;
}

static size_t buffer_memory(const qslm_model *model) {
    return qslm_room(model->chunk * model->sizes.width, sizeof(float)) +
           qslm_room(model->chunk, qslm_codes_of_token(model)) +
           qslm_room(QSLM_MOST_TOGETHER * model->chunk, sizeof(float)) + qslm_room(model->sizes.width, sizeof(float));
}

size_t qslm_model_memory(qslm_bytes file, qslm_bytes config, size_t chunk, qslm_error *error) {
    qslm_model model = {0};
    const size_t file_memory = qslm_file_memory(file), scratch = qslm_file_scratch(file);
    if (!read_config(config, chunk, &model, error)) return 0;
    if (file_memory == 0) {
        qslm_fail(error, "The model file of %zu bytes is too short for its header.", file.size);
        return 0;
    }
    const size_t more = buffer_memory(&model) + model.graph->memory(&model); // they lie where the file's scratch was
    return LINE + qslm_room(1, sizeof model) + file_memory - scratch + (more > scratch ? more : scratch);
}

const qslm_matrix *qslm_matrix_of(const qslm_model *model, const char *name, size_t rows, size_t columns,
                                  qslm_error *error) {
    const qslm_site *site = qslm_find_site(&model->file, name, error);
    if (site == NULL) return NULL;
    if (site->matrix.rows != rows || site->matrix.columns != columns) {
        qslm_fail(error, "%s is (%zu, %zu) in the file, config.json makes (%zu, %zu).", name, site->matrix.rows,
                  site->matrix.columns, rows, columns);
        return NULL;
    }
    return &site->matrix;
}

const float *qslm_vector_of(qslm_model *model, const char *name, size_t width, qslm_error *error) {
    const qslm_site *site = qslm_find_site(&model->file, name, error);
    if (site == NULL) return NULL;
    const qslm_matrix *matrix = &site->matrix;
    if (matrix->rows * matrix->columns != width || matrix->kind == QSLM_INTEGER || matrix->kind == QSLM_SIGN) {
        qslm_fail(error, "%s has %zu numbers, config.json makes %zu, in a float format.", name,
                  matrix->rows * matrix->columns, width);
        return NULL;
    }
    float *values = qslm_take(model->arena, width * sizeof *values, error);
    for (size_t i = 0; values != NULL && i < width; i++) values[i] = qslm_value_at(matrix, i);
    return values;
}

size_t qslm_state_memory(size_t size) {
    return qslm_room(1, sizeof(state_header) + size);
}

void *qslm_take_state(qslm_model *model, size_t size, qslm_error *error) {
    model->state_bytes = sizeof(state_header) + size;
    model->state = qslm_take(model->arena, model->state_bytes, error);
    if (model->state == NULL) return NULL;
    const state_header header = {MAGIC, 0, model->state_bytes, 0};
    memcpy(model->state, &header, sizeof header);
    return model->state + sizeof header;
}

static bool prepare(qslm_model *model, qslm_bytes file, qslm_error *error) {
    if (!qslm_read_file(file, model->arena, &model->file, error)) return false;
    if (!qslm_check_numbers(&model->file, error)) return false;
    model->stream = qslm_take(model->arena, model->chunk * model->sizes.width * sizeof(float), error);
    model->codes = qslm_take(model->arena, model->chunk * qslm_codes_of_token(model), error);
    model->scales = qslm_take(model->arena, QSLM_MOST_TOGETHER * model->chunk * sizeof(float), error);
    model->pooled = qslm_take(model->arena, model->sizes.width * sizeof(float), error);
    if (!model->stream || !model->codes || !model->scales || !model->pooled) return false;
    return model->graph->prepare(model, error);
}

qslm_model *qslm_load(qslm_bytes file, qslm_bytes config, size_t chunk, qslm_arena *arena, qslm_error *error) {
    qslm_model read = {.arena = arena};
    if (!read_config(config, chunk, &read, error)) return NULL;
    qslm_model *model = qslm_take(arena, sizeof *model, error);
    if (model == NULL) return NULL;
    *model = read;
    if (!prepare(model, file, error)) return NULL;
    qslm_reset(model);
    return model;
}

// ---- running ------------------------------------------------------------------------------------------------------

static state_header *header_of(const qslm_model *model) {
    return (state_header *)(void *)model->state; // at a multiple of 64
}

size_t qslm_tokens_seen(const qslm_model *model) {
    return (size_t)header_of(model)->tokens;
}

static bool check_ids(const qslm_model *model, const int32_t *ids, size_t count, qslm_error *error) {
    if (count == 0) return qslm_fail(error, "There are no tokens to go on by.");
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= model->sizes.vocabulary) {
            return qslm_fail(error, "The id %ld is none of %zu tokens.", (long)ids[i], model->sizes.vocabulary);
        }
    }
    return true;
}

static void run(qslm_model *model, const int32_t *ids, size_t count) {
    model->graph->run(model, ids, count);
    header_of(model)->tokens += count;
    const size_t traced = 2 * model->sizes.layers * model->sizes.width * count;
    if (model->forced) model->forced += traced;
    if (model->potentials) model->potentials += traced;
}

static void read_out(qslm_model *model, const float *x, size_t count, float *logits) {
    const qslm_linear head = {model->readout, NULL, NULL};
    qslm_run_linear(model, &head, x, count, logits);
}

static bool advance(qslm_model *model, const int32_t *ids, size_t count, bool all, float *logits, qslm_error *error) {
    if (model->sizes.classes > 0) return qslm_fail(error, "A classifier does not predict tokens.");
    if (!check_ids(model, ids, count, error)) return false;
    if (model->graph->limited && count > model->sizes.context - qslm_tokens_seen(model)) {
        return qslm_fail(error, "The context of %zu tokens is full: %zu were seen, %zu are to come.", model->sizes.context,
                         qslm_tokens_seen(model), count);
    }
    for (size_t done = 0; done < count; done += model->chunk) {
        const size_t piece = count - done < model->chunk ? count - done : model->chunk;
        run(model, ids + done, piece);
        if (logits == NULL || (!all && done + piece < count)) continue;
        const size_t first = all ? 0 : piece - 1;
        read_out(model, model->stream + first * model->sizes.width, piece - first,
                 logits + (all ? done * model->sizes.vocabulary : 0));
    }
    return true;
}

bool qslm_advance(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error) {
    return advance(model, ids, count, false, logits, error);
}

bool qslm_advance_all(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error) {
    return advance(model, ids, count, true, logits, error);
}

bool qslm_classify(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error) {
    const size_t width = model->sizes.width;
    if (model->sizes.classes == 0) return qslm_fail(error, "A language model does not classify.");
    if (!check_ids(model, ids, count, error)) return false;
    qslm_reset(model);
    float *sum = model->pooled;
    memset(sum, 0, width * sizeof *sum);
    for (size_t done = 0; done < count; done += model->chunk) {
        const size_t piece = count - done < model->chunk ? count - done : model->chunk;
        run(model, ids + done, piece);
        for (size_t i = 0; i < piece; i++) {
            for (size_t j = 0; j < width; j++) sum[j] += model->stream[i * width + j];
        }
    }
    for (size_t j = 0; j < width; j++) sum[j] /= (float)count;
    read_out(model, sum, 1, logits);
    return true;
}

// ---- state and settings -------------------------------------------------------------------------------------------

void qslm_reset(qslm_model *model) {
    header_of(model)->tokens = 0;
    model->graph->reset(model);
}

size_t qslm_state_bytes(const qslm_model *model) {
    return model->state_bytes;
}

void qslm_save_state(const qslm_model *model, void *state) {
    memcpy(state, model->state, model->state_bytes);
}

bool qslm_restore_state(qslm_model *model, const void *state, size_t size) {
    state_header header;
    if (size != model->state_bytes) return false;
    memcpy(&header, state, sizeof header);
    if (header.magic != MAGIC || header.bytes != size) return false;
    if (model->graph->limited && header.tokens > model->sizes.context) return false;
    memcpy(model->state, state, size);
    return true;
}

const qslm_sizes *qslm_sizes_of(const qslm_model *model) {
    return &model->sizes;
}

const qslm_file *qslm_file_of(const qslm_model *model) {
    return &model->file;
}

size_t qslm_weight_bytes(const qslm_model *model) {
    return model->file.data_bytes;
}

int32_t qslm_likeliest(const float *logits, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return (int32_t)best;
}

void qslm_use_threads(qslm_model *model, qslm_threads *threads) {
    model->threads = threads;
}

void qslm_use_floats(qslm_model *model, bool floats) {
    model->floats = floats;
}

void qslm_trace(qslm_model *model, const float *forced, float *potentials) {
    model->forced = forced;
    model->potentials = potentials;
}
