// Gives every named file to a fuzz target: what stands in for libFuzzer where the compiler has none.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run(const char *path) {
    FILE *const file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        fprintf(stderr, "FAILED: %s cannot be read\n", path);
        exit(1);
    }
    const long size = ftell(file);
    uint8_t *const data = malloc(size > 0 ? (size_t)size : 1);
    rewind(file);
    if (size < 0 || !data || fread(data, 1, (size_t)size, file) != (size_t)size) exit(1);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    fclose(file);
}

int main(int count, char **paths) {
    for (int i = 1; i < count; i++) run(paths[i]);
    printf("%d files\n", count - 1);
    return count > 1 ? 0 : 1;
}
