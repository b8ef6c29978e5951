#!/bin/sh
# Other processors under emulation: the kernels of 64-bit ARM against their definition (Debian's gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user), and what reads files on 32 bits (gcc-arm-none-eabi, libnewlib-arm-none-eabi).
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
warnings="-std=gnu11 -Wall -Wextra -Werror -ffp-contract=off"

# Whether the tools of a part are there; says what is skipped where they are not.
have() { # part, tools
    part=$1
    shift
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        echo "$part: skipped, for there is no $tool"
        return 1
    done
}

if have aarch64 aarch64-linux-gnu-gcc qemu-aarch64; then
    aarch64-linux-gnu-gcc $warnings -Wpedantic -O3 -static -I. tests/test_matrix.c packing/*.c products/*.c system/threads.c \
        -o "$folder/matrix" -pthread
    qemu-aarch64 -cpu max "$folder/matrix" 300
    qemu-aarch64 -cpu cortex-a72 "$folder/matrix" 300  # without dot product
fi

build() { # name, sources
    name=$1
    shift
    # A program of newlib, which reads files of the host by semihosting.
    arm-none-eabi-gcc $warnings -O2 -DQSLM_NO_THREADS --specs=rdimon.specs -I. "$@" -lm -o "$folder/$name"
}

corpus() { # name: one file at a time, for a command line is short there
    for file in tests/corpus/"$1"/*; do qemu-arm "$folder/$1" "$file" >"$folder/log" || { echo "FAILED: $file" >&2; exit 1; }; done
    echo "$1: the corpus on 32 bits"
}

if have "32 bits" arm-none-eabi-gcc qemu-arm; then
    json="formats/json.c formats/decimal.c system/error.c system/print.c"
    engine="$json packing/*.c system/threads.c formats/file.c formats/format.c products/*.c graphs/*.c"
    build json-values tests/test_json.c $json
    build sizes tests/test_sizes.c $engine
    build matrix tests/test_matrix.c packing/*.c products/*.c system/threads.c
    build file tests/fuzz_file.c tests/run_corpus.c $engine
    build tokenizer tests/fuzz_tokenizer.c tests/run_corpus.c text/*.c $json
    qemu-arm "$folder/json-values"
    qemu-arm "$folder/sizes"
    qemu-arm "$folder/matrix" 50
    corpus file
    corpus tokenizer
fi
