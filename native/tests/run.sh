#!/bin/sh
# Build the kernels alone and check them: once under the address and undefined-behaviour sanitizers, once as they ship
# (with SIMD clones), and the bits of both builds against each other.
set -eu
cd "$(dirname "$0")/.."
CC=${CC:-cc}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
warnings="-std=c11 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off"  # OpenMP is optional
openmp=
if echo 'int main(void) { return 0; }' | $CC -fopenmp -x c - -o "$folder/openmp" 2>/dev/null; then openmp=-fopenmp; fi
kernels="recurrence.c packing.c layout.c gptq.c memory.c"
engine="error.c json.c file.c format.c layout.c packing.c matrix.c matrix_scalar.c matrix_avx512.c matrix_avx512_columns.c threads.c"
sources="tests/test_kernels.c $kernels"
checks="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
$CC $warnings -Wpedantic $checks -I. tests/test_json.c json.c error.c -o "$folder/json"
"$folder/json"
# -D_DEFAULT_SOURCE: -std=c11 alone hides nothing that the kernels need, but some C libraries' mallopt.
$CC $warnings -O1 -g -D_DEFAULT_SOURCE -DQSLM_ONE_TARGET -fno-omit-frame-pointer \
    -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -I. $sources -lm -o "$folder/checked" &
checked=$!
$CC $warnings -O3 -D_DEFAULT_SOURCE $openmp -I. $sources -lm -o "$folder/shipped" &
shipped=$!
wait $checked
wait $shipped
"$folder/checked" all 2003
"$folder/shipped" all 61
one=$("$folder/checked" bits)
other=$("$folder/shipped" bits)
if [ "$one" != "$other" ]; then
    echo "FAILED: LIF or WKV differ between the scalar build ($one) and the SIMD build ($other)" >&2
    exit 1
fi
echo "LIF, WKV and GPTQ: the same bits, scalar and SIMD ($one)"
