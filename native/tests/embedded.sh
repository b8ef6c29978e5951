#!/bin/sh
# An exported model (the folder of qslm export) on a host, on 64-bit ARM with and without dot product, and on bare-metal
# Cortex-M4 and M7, all under QEMU: the same tokens and the same bits of all logits. Prints flash and RAM. Needs Debian's
# gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user, gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm.
#
#     sh native/tests/embedded.sh EXPORT
#
# Emulation is slow: where only a detail differs from a target before, a quarter of the tokens must do. It takes about 40
# seconds on two cores.
set -eu
export=$(cd "$1" && pwd)
tokens=64
few=16
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
engine="graphs/*.c formats/file.c formats/format.c formats/json.c formats/decimal.c products/*.c packing/*.c text/*.c
    system/error.c system/print.c system/threads.c"
flags="-std=gnu11 -Wall -Wextra -Wpedantic -Werror -O2 -ffp-contract=off -I. -I$export"
hosted="examples/cortex_m/main.c examples/cortex_m/host.c $export/model.S"

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# What a program printed, but for its memory, against what the host did with as many tokens.
compare() { # name, tokens
    grep -v '^memory\|^stack' "$folder/$1.out" >"$folder/$1.same" || fail "$1 printed nothing"
    cmp -s "$folder/host-$2" "$folder/$1.same" || { cat "$folder/$1.out" >&2; fail "$1 differs from the host"; }
}

compile_engine() { # folder, compiler
    objects=$1
    shift
    mkdir "$objects"
    for source in $engine; do "$@" $flags -c "$source" -o "$objects/$(echo "$source" | tr / -).o"; done
}

# ---- a host -------------------------------------------------------------------------------------------------------

compile_engine "$folder/host.o" ${CC:-cc} -DQSLM_ONE_TARGET
for count in $few $tokens; do
    ${CC:-cc} $flags -DTOKENS=$count $hosted "$folder"/host.o/* -lm -pthread -o "$folder/host"
    "$folder/host" >"$folder/host.out"
    grep -v '^memory' "$folder/host.out" >"$folder/host-$count"
done
cat "$folder/host-$tokens"
${CC:-cc} $flags examples/ten_lines.c "$export/model.S" "$folder"/host.o/* -lm -pthread -o "$folder/ten_lines"
echo "ten lines: $("$folder/ten_lines")"

# ---- 64-bit ARM ---------------------------------------------------------------------------------------------------

arm64() { # processor, tokens
    aarch64-linux-gnu-gcc $flags -DTOKENS=$2 -static $hosted "$folder"/arm64.o/* -lm -pthread -o "$folder/arm64-$1"
    qemu-aarch64 -cpu "$1" "$folder/arm64-$1" >"$folder/$1.out" || fail "$1"
}

# ---- boards -------------------------------------------------------------------------------------------------------

board() { # name, tokens
    CC= sh examples/cortex_m/build.sh "$export" "$1" "$folder/$1" -DTOKENS="$2"
    if arm-none-eabi-nm "$folder/$1" | grep -E ' _?_?(sbrk|s?brk_r|malloc|malloc_r|calloc|realloc|free|free_r|printf|vsnprintf)$'; then
        fail "$1 has a heap"
    fi
    # What semihosting writes comes out of QEMU as errors.
    timeout 300 qemu-system-arm -M "$1" -nographic -monitor none -serial none -semihosting-config enable=on,target=native \
        -kernel "$folder/$1" >"$folder/$1.out" 2>&1 || fail "$1 $(cat "$folder/$1.out")"
}

# The check checks: a program that allocates does not link, for want of _sbrk.
cat >"$folder/heap.c" <<'END'
#include <stdlib.h>
int main(void) { return malloc(64) == NULL; }
END
if CC= sh examples/cortex_m/build.sh "$export" mps2-an386 "$folder/heap" -O0 "$folder/heap.c" 2>"$folder/heap.log"; then
    fail "a program with a heap links"
fi
grep -q _sbrk "$folder/heap.log" || fail "a program with a heap does not link for another reason: $(cat "$folder/heap.log")"

bytes() { # of sections of a program
    program=$1
    shift
    arm-none-eabi-size -A "$folder/$program" | awk -v wanted=" $* " 'index(wanted, " " $1 " ") { sum += $2 } END { print sum }'
}

report() { # board, tokens
    compare "$1" "$2"
    code=$(($(bytes "$1" .text .ARM.exidx .data)))
    echo "$1: the same $2 tokens and logits; flash $((code + $(bytes "$1" .model))) bytes ($code of them code), RAM" \
        "$(bytes "$1" .data .bss .stack) bytes, no heap; $(grep '^memory' "$folder/$1.out"), $(grep '^stack' "$folder/$1.out")"
}

start=$(date +%s)
board mps2-an386 $tokens &
board=$!
compile_engine "$folder/arm64.o" aarch64-linux-gnu-gcc
arm64 max $tokens
arm64 cortex-a72 $few
board mps2-an500 $few
wait $board
compare max $tokens
compare cortex-a72 $few
echo "aarch64: the same $tokens tokens and logits, and without dot product the same $few"
report mps2-an386 $tokens
report mps2-an500 $few
echo "as many likeliest as drawn tokens, under emulation, in $(($(date +%s) - start)) s"
