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
sources="tests/test_kernels.c training/*.c packing/*.c"
checks="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
$CC $warnings -Wpedantic $checks -I. tests/test_json.c formats/json.c formats/decimal.c system/error.c system/print.c -o "$folder/json"
"$folder/json"
$CC $warnings -Wno-format-truncation $checks -I. tests/test_print.c system/print.c -o "$folder/print"
"$folder/print"
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

$CC $warnings -Wpedantic $checks -DQSLM_ONE_TARGET -I. tests/test_sizes.c packing/*.c system/error.c system/print.c \
    system/threads.c formats/json.c formats/decimal.c formats/file.c formats/format.c products/*.c graphs/*.c -lm \
    -o "$folder/sizes" -pthread
"$folder/sizes"

# Every kernel that multiplies, against its definition.
products="tests/test_matrix.c products/*.c packing/*.c system/threads.c"
$CC $warnings $checks -D_DEFAULT_SOURCE -I. $products -o "$folder/products-checked" -pthread &
checked=$!
$CC $warnings -O3 -D_DEFAULT_SOURCE -I. $products -o "$folder/products" -pthread &
shipped=$!
wait $checked
wait $shipped
"$folder/products-checked" 300
"$folder/products" 1000
sh tests/cross.sh &
cross=$!
sh tests/fuzz.sh &
fuzz=$!
wait $cross
wait $fuzz
