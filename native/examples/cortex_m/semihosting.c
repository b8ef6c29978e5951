// Start of an ARMv7-M processor with a floating-point unit, and a console by semihosting: a debugger, or QEMU, writes.
#include <stdint.h>
#include <string.h>

#include "console.h"

enum { WRITE = 0x04, EXIT = 0x18, ENDED = 0x20026, FAILED = 0x20023 }; // ARM's Semihosting for AArch32
#define COPROCESSORS (*(volatile uint32_t *)0xE000ED88)                // CPACR
#define STACK_PAINT 0x5AA55AA5u

extern uint32_t data_image[], data_start[], data_end[], zero_start[], zero_end[], stack_low[], stack_top[]; // link.ld

int main(void);

static void semihosting(uint32_t operation, uintptr_t argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register uintptr_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void console_write(const char *text) {
    semihosting(WRITE, (uintptr_t)text);
}

size_t stack_used(void) {
    const uint32_t *low = stack_low;
    while (low < stack_top && *low == STACK_PAINT) low++;
    return (size_t)((uintptr_t)stack_top - (uintptr_t)low);
}

size_t stack_size(void) {
    return (size_t)((uintptr_t)stack_top - (uintptr_t)stack_low);
}

_Noreturn static void end(int status) {
    semihosting(EXIT, status == 0 ? ENDED : FAILED);
    for (;;) {}
}

static void fault(void) {
    console_write("FAILED: a fault of the processor\n");
    end(1);
}

void start(void);

void start(void) {
    COPROCESSORS |= 0xFu << 20; // the floating-point unit
    __asm__ volatile("dsb\n isb" ::: "memory");
    memcpy(data_start, data_image, (size_t)((uintptr_t)data_end - (uintptr_t)data_start));
    memset(zero_start, 0, (size_t)((uintptr_t)zero_end - (uintptr_t)zero_start));
    uint32_t *here = __builtin_frame_address(0);
    for (uint32_t *low = stack_low; low < here - 64; low++) *low = STACK_PAINT;
    end(main());
}

// The first 16 entries: where the stack begins, reset, faults; no interrupt is used.
typedef struct {
    void *stack;
    void (*handlers[15])(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table vectors = {
    stack_top, {start, fault, fault, fault, fault, fault, NULL, NULL, NULL, NULL, fault, fault, NULL, fault, fault}};
