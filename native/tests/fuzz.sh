#!/bin/sh
# Fuzz what reads files, QSLM_FUZZ_SECONDS (10) each, from the corpora beside this; where clang has no libFuzzer the
# corpora alone are read, by a build of the compiler CC with the same sanitizers. Says which of the two was done.
set -eu
cd "$(dirname "$0")/.."
seconds=${QSLM_FUZZ_SECONDS:-10}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
flags="-DQSLM_ONE_TARGET -std=c11 -Wall -Wextra -Wpedantic -Werror -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -I."
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long s) { return d && s ? 0 : 0; }' >"$folder/probe.c"
fuzzer=
if clang -fsanitize=fuzzer,address "$folder/probe.c" -o "$folder/probe" 2>/dev/null; then fuzzer=clang; fi

fuzz() { # name, sources
    name=$1
    shift
    if [ -n "$fuzzer" ]; then
        clang $flags -fsanitize=fuzzer,address,undefined "tests/fuzz_$name.c" "$@" -lm -o "$folder/$name"
        mkdir "$folder/$name-found"
        # What fails is left in fuzz-found/, to become a file of the corpus.
        mkdir -p ../fuzz-found
        "$folder/$name" -max_total_time="$seconds" -max_len=32768 -timeout=10 -artifact_prefix="../fuzz-found/$name-" \
            "$folder/$name-found" "tests/corpus/$name" >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
        rmdir ../fuzz-found 2>/dev/null || true
        echo "$name: $(grep '^Done' "$folder/log")"
    else
        ${CC:-cc} $flags -fsanitize=address,undefined "tests/fuzz_$name.c" tests/run_corpus.c "$@" \
            -lm -o "$folder/$name"
        echo "$name: no libFuzzer, the corpus alone: $("$folder/$name" tests/corpus/"$name"/*)"
    fi
}

packed="packing/*.c system/error.c system/print.c system/threads.c formats/json.c formats/decimal.c"
fuzz json formats/json.c formats/decimal.c system/error.c system/print.c
fuzz tokenizer text/*.c formats/json.c formats/decimal.c system/error.c system/print.c
fuzz file $packed formats/file.c formats/format.c products/*.c graphs/*.c
