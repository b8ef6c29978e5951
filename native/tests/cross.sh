#!/bin/sh
# The kernels of 64-bit ARM against their definition, under emulation: Debian's gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user.
set -eu
cd "$(dirname "$0")/.."
CC=${CC:-aarch64-linux-gnu-gcc}
EMULATOR=${EMULATOR:-qemu-aarch64}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$CC -std=gnu11 -O3 -Wall -Wextra -Wpedantic -Werror -ffp-contract=off -static -I. tests/test_matrix.c packing/*.c products/*.c \
    system/threads.c -o "$folder/matrix" -pthread
"$EMULATOR" -cpu max "$folder/matrix" 300
"$EMULATOR" -cpu cortex-a72 "$folder/matrix" 300  # without dot product
