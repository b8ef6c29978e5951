// qslm-run: a packed model goes on with a text.
#define _DEFAULT_SOURCE // for POSIX under -std=c11
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "formats/mapping.h"
#include "graphs/model.h"
#include "graphs/sampling.h"
#include "text/tokenizer.h"

enum { CHUNK = 32, MOST_PATH = 4096 };

static const char HELP[] =
    "Usage: qslm-run MODEL_FOLDER [options]\n"
    "\n"
    "Go on with a text by a packed model, which is mapped and runs where it lies.\n"
    "Example: qslm-run runs/demo/artifact --prompt \"The river\" --tokens 40 --stats\n"
    "\n"
    "  --prompt TEXT        the text to go on with (default: none)\n"
    "  --tokens N           tokens to generate (64)\n"
    "  --temperature X      0 takes the likeliest token (0.8)\n"
    "  --top-p X            draw from the likeliest tokens of this share (0.95)\n"
    "  --seed N             the same seed gives the same text (0)\n"
    "  --threads N          (the machine's processors)\n"
    "  --stats              print times and memory to the error output\n";

typedef struct {
    const char *folder, *prompt;
    long tokens, threads;
    unsigned long long seed;
    double temperature, top_p;
    bool stats;
} options;

static int fail(const char *problem) {
    fprintf(stderr, "qslm-run: %s\n", problem);
    return 1;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// ---- options ------------------------------------------------------------------------------------------------------

static bool read_number(const char *text, double low, double high, double *value) {
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    return errno == 0 && end != text && *end == 0 && *value >= low && *value <= high;
}

static bool read_whole(const char *text, unsigned long long most, unsigned long long *value) {
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == 0 && *value <= most;
}

// What a value must be; NULL where it is, and an empty text where no option has that name.
static const char *read_option(options *all, const char *name, const char *value) {
    unsigned long long whole;
    if (strcmp(name, "--prompt") == 0) {
        all->prompt = value;
        return NULL;
    }
    if (strcmp(name, "--tokens") == 0) {
        if (!read_whole(value, 1000000000, &whole)) return "a whole number of 0 to 1,000,000,000";
        all->tokens = (long)whole;
        return NULL;
    }
    if (strcmp(name, "--threads") == 0) {
        if (!read_whole(value, 1024, &whole) || whole == 0) return "a whole number of 1 to 1,024";
        all->threads = (long)whole;
        return NULL;
    }
    if (strcmp(name, "--seed") == 0) {
        return read_whole(value, UINT64_MAX, &all->seed) ? NULL : "a whole number of 0 to 2^64 - 1";
    }
    if (strcmp(name, "--temperature") == 0) {
        return read_number(value, 0, 1e6, &all->temperature) ? NULL : "a number of 0 to 1,000,000";
    }
    if (strcmp(name, "--top-p") == 0) return read_number(value, 1e-9, 1, &all->top_p) ? NULL : "a number over 0, up to 1";
    return "";
}

static bool take_option(options *all, const char *name, const char *value) {
    const char *wanted = read_option(all, name, value == NULL ? "" : value);
    if (wanted == NULL && value != NULL) return true;
    if (wanted != NULL && *wanted == 0) {
        fprintf(stderr, "qslm-run: There is no option %s. Try qslm-run --help.\n", name);
    } else if (value == NULL) {
        fprintf(stderr, "qslm-run: %s wants a value. Try qslm-run --help.\n", name);
    } else {
        fprintf(stderr, "qslm-run: %s is %s, and must be %s.\n", name, value, wanted);
    }
    return false;
}

static bool read_options(int count, char **arguments, options *all) {
    for (int i = 1; i < count; i++) {
        const char *one = arguments[i];
        if (strcmp(one, "--stats") == 0) {
            all->stats = true;
        } else if (one[0] == '-') {
            if (!take_option(all, one, arguments[i + 1])) return false; // NULL stands behind the last
            i++;
        } else if (all->folder == NULL) {
            all->folder = one;
        } else {
            fprintf(stderr, "qslm-run: there are two folders, %s and %s.\n", all->folder, one);
            return false;
        }
    }
    if (all->folder == NULL) fputs(HELP, stderr);
    return all->folder != NULL;
}

// ---- files --------------------------------------------------------------------------------------------------------

static bool map_in(const char *folder, const char *name, qslm_bytes *content, qslm_error *error) {
    char path[MOST_PATH];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
        return qslm_fail(error, "The path of %s is too long.", name);
    }
    return qslm_map_file(path, content, error);
}

static bool load_tokenizer(const char *folder, qslm_tokenizer *tokenizer, qslm_error *error) {
    qslm_bytes json;
    qslm_tokenizer_plan plan;
    if (!map_in(folder, "tokenizer.json", &json, error)) return false;
    bool loaded = qslm_tokenizer_read(&plan, (const char *)json.start, json.size, error);
    if (loaded) {
        void *arena = malloc(plan.arena_bytes > 0 ? plan.arena_bytes : 1); // until the program ends
        loaded = arena != NULL ? qslm_tokenizer_load(tokenizer, &plan, arena, error)
                               : qslm_fail(error, "There is no memory for the tokenizer.");
    }
    qslm_unmap_file(json);
    return loaded;
}

static qslm_model *load_model(const char *folder, qslm_error *error) {
    qslm_bytes file, config;
    if (!map_in(folder, "model.safetensors", &file, error) || !map_in(folder, "config.json", &config, error)) return NULL;
    const size_t size = qslm_model_memory(file, config, CHUNK, error);
    qslm_arena arena = {size > 0 ? malloc(size) : NULL, size, 0}; // until the program ends
    if (size == 0) return NULL;
    if (arena.start == NULL) {
        qslm_fail(error, "There are no %zu bytes of memory.", size);
        return NULL;
    }
    qslm_arena *kept = malloc(sizeof *kept);
    if (kept == NULL) {
        qslm_fail(error, "There is no memory.");
        return NULL;
    }
    *kept = arena;
    return qslm_load(file, config, CHUNK, kept, error);
}

// ---- generating ---------------------------------------------------------------------------------------------------

// The ids of the prompt, or the end-of-text token alone; NULL and an error where it cannot be encoded.
static int32_t *encode(const qslm_tokenizer *tokenizer, const char *text, size_t *count, qslm_error *error) {
    const size_t size = strlen(text);
    uint32_t *ids = malloc((size + 1) * sizeof *ids);
    uint32_t *scratch = malloc((qslm_tokenizer_scratch(size) + 1) * sizeof *scratch);
    bool encoded = ids != NULL && scratch != NULL;
    if (!encoded) qslm_fail(error, "There is no memory for a prompt of %zu bytes.", size);
    encoded = encoded && qslm_tokenizer_encode(tokenizer, text, size, scratch, ids, count, error);
    free(scratch);
    if (encoded && *count == 0) {
        const uint32_t end = qslm_tokenizer_find(tokenizer, "<|endoftext|>", 13);
        ids[0] = end == QSLM_NO_TOKEN ? 0 : end;
        *count = 1;
    }
    if (encoded) return (int32_t *)ids; // fewer than 2^31 tokens
    free(ids);
    return NULL;
}

// The most memory that was resident, in bytes. What the C library tells may be that of the program that started this one.
static double most_resident(void) {
    struct rusage usage;
    char line[128];
    long kilobytes = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && kilobytes == 0 && fgets(line, sizeof line, status) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) kilobytes = strtol(line + 6, NULL, 10);
    }
    if (status != NULL) fclose(status);
    getrusage(RUSAGE_SELF, &usage);
    return 1024.0 * (double)(kilobytes > 0 ? kilobytes : usage.ru_maxrss);
}

static void print_stats(const options *all, const qslm_model *model, double start, double loaded, double read, double end,
                        size_t prompt, long tokens) {
    fprintf(stderr, "loaded in %.1f ms; prompt: %zu tokens, %.0f tokens/s; generated: %ld tokens, %.0f tokens/s\n",
            1e3 * (loaded - start), prompt, (double)prompt / (read - loaded), tokens,
            tokens > 0 ? (double)tokens / (end - read) : 0.0);
    fprintf(stderr, "weights %.2f MB, resident at most %.2f MB, %ld threads\n", (double)qslm_weight_bytes(model) / 1e6,
            most_resident() / 1e6, all->threads);
}

static int generate(const options *all, qslm_model *model, const qslm_tokenizer *tokenizer, double start) {
    qslm_error error;
    const size_t words = qslm_sizes_of(model)->vocabulary;
    const double loaded = now();
    size_t count;
    int32_t *ids = encode(tokenizer, all->prompt, &count, &error);
    float *logits = malloc(words * sizeof *logits);
    int32_t *order = malloc(words * sizeof *order);
    if (ids == NULL) return fail(error.text);
    if (logits == NULL || order == NULL) return fail("There is no memory for the logits.");
    if (!qslm_advance(model, ids, count, logits, &error)) return fail(error.text);
    const double read = now();
    const uint32_t last = qslm_tokenizer_find(tokenizer, "<|endoftext|>", 13);
    qslm_sampler sampler = {(float)all->temperature, (float)all->top_p, all->seed};
    fputs(all->prompt, stdout);
    long made = 0;
    for (; made < all->tokens; made++) {
        const int32_t token = qslm_draw(&sampler, logits, order, words);
        size_t size;
        if ((uint32_t)token == last) break;
        const char *text = qslm_tokenizer_decode(tokenizer, (uint32_t)token, &size);
        fwrite(text == NULL ? "" : text, 1, size, stdout);
        fflush(stdout);
        if (!qslm_advance(model, &token, 1, logits, &error)) return fail(error.text);
    }
    fputs("\n", stdout);
    if (fflush(stdout) != 0 || ferror(stdout)) return fail("The text cannot be written.");
    if (all->stats) print_stats(all, model, start, loaded, read, now(), count, made);
    free(ids), free(logits), free(order);
    return 0;
}

int main(int count, char **arguments) {
    const double start = now();
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    options all = {NULL, "", 64, processors > 0 ? processors : 1, 0, 0.8, 0.95, false};
    qslm_tokenizer tokenizer;
    qslm_error error;
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--help") != 0 && strcmp(arguments[i], "-h") != 0) continue;
        fputs(HELP, stdout);
        return 0;
    }
    if (!read_options(count, arguments, &all)) return 2;
    qslm_model *model = load_model(all.folder, &error);
    if (model == NULL || !load_tokenizer(all.folder, &tokenizer, &error)) return fail(error.text);
    qslm_threads *threads = qslm_start_threads((unsigned)all.threads);
    qslm_use_threads(model, threads);
    const int status = generate(&all, model, &tokenizer, start);
    qslm_stop_threads(threads);
    return status;
}
