#!/bin/sh
# Build the example, or another program, with the engine and a model for a board that a linker script is here for:
#
#     qslm export MODEL --target mps2-an386 -o export
#     sh native/examples/cortex_m/build.sh export mps2-an386 program.elf [SOURCE or flag ...]
#     qemu-system-arm -M mps2-an386 -nographic -semihosting-config enable=on,target=native -kernel program.elf
#
# The C library gives memcpy and mathematics. Nothing defines _sbrk, so what wants a heap does not link.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
native=$here/../..
export=$1 board=$2 program=$3
shift 3
case "$board" in
    mps2-an386) processor="-mcpu=cortex-m4 -mfpu=fpv4-sp-d16" ;;
    mps2-an500) processor="-mcpu=cortex-m7 -mfpu=fpv5-d16" ;;
    *) echo "There is no board $board: write $board.ld, and its processor here." >&2; exit 2 ;;
esac
case " $* " in *.c\ *) ;; *) set -- "$@" "$here/main.c" ;; esac
${CC:-arm-none-eabi-gcc} -std=gnu11 -O2 -Wall -Wextra -Wpedantic -Werror -ffp-contract=off -DQSLM_NO_THREADS $processor \
    -mthumb -mfloat-abi=hard -ffunction-sections -fdata-sections -nostartfiles -Wl,--gc-sections \
    -L"$here" -T"$here/$board.ld" -I"$native" -I"$export" -I"$here" "$@" \
    "$here/semihosting.c" "$export/model.S" "$native"/graphs/*.c "$native"/formats/file.c "$native"/formats/format.c \
    "$native"/formats/json.c "$native"/formats/decimal.c "$native"/products/*.c "$native"/packing/*.c "$native"/text/*.c \
    "$native"/system/error.c "$native"/system/print.c "$native"/system/threads.c -lm -o "$program"
