/* What CPUID, XGETBV and Linux answer of the other CPU: as OTHER_CPU_BITS says, see other_cpu.c. */
#pragma once

#include <cpuid.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

enum { EBX = 1, EDX = 3 };
enum { AVX512_BIT = 16, TILE_BIT = 24, MAX_LEAF = 0x1e, TILE_CONFIG = 17, TILE_DATA = 18 };
/* What programs ask arch_prctl of the registers that a CPU has, that they may use, and for permission. */
enum { GET_SUPPORTED = 0x1021, GET_PERMITTED = 0x1022, REQUEST = 0x1023 };

/* Put the bits of one register into it: those to clear, then those to set. */
static uint32_t changed(uint32_t answer, const char **bits) {
    char *rest;
    uint32_t clear = (uint32_t)strtoul(*bits, &rest, 16), set = (uint32_t)strtoul(rest, &rest, 16);
    *bits = rest;
    return (answer & ~clear) | set;
}

/* One register of part 0 of leaf 7, of this CPU and of the other. */
static void of_leaf_7(int number, uint32_t *here, uint32_t *other) {
    const char *bits = getenv("OTHER_CPU_BITS");
    uint32_t answer[4];
    __cpuid_count(7, 0, answer[0], answer[1], answer[2], answer[3]);
    *here = *other = answer[number];
    for (int of = 0; bits && of <= number; of++) *other = changed(answer[of], &bits);
}

static int has_avx512(void) {
    uint32_t here, other;
    of_leaf_7(EBX, &here, &other);
    return other >> AVX512_BIT & 1;
}

/* Whether the other CPU has AMX and this one has not. */
static int lacks_tiles(void) {
    uint32_t here, other;
    of_leaf_7(EDX, &here, &other);
    return (other & ~here) >> TILE_BIT & 1;
}

static uint64_t enabled_registers(uint32_t which) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(which));
    uint64_t tiles = which == 0 && lacks_tiles() ? 1 << TILE_CONFIG | 1 << TILE_DATA : 0;
    return (uint64_t)high << 32 | low | tiles;
}

/* The leaves that tell of tiles: 8 of 16 rows of 64 bytes, and products of up to 16 rows by 64 bytes. */
static void answer_of_tiles(uint32_t leaf, uint32_t part, uint32_t *answer) {
    static const uint32_t palettes[2][4] = {{1}, {TILES * sizeof(tile) | sizeof(tile) << 16, ROW_BYTES | TILES << 16, ROWS}};
    static const uint32_t products[4] = {0, ROWS | ROW_BYTES << 8};
    if (leaf == 0 && answer[0] < MAX_LEAF) answer[0] = MAX_LEAF;
    if (leaf == 0x1d && part < 2) memcpy(answer, palettes[part], sizeof palettes[part]);
    if (leaf == 0x1e && part == 0) memcpy(answer, products, sizeof products);
}

/* Answer with EAX, EBX, ECX and EDX. */
static void ask_cpuid(uint32_t leaf, uint32_t part, uint32_t *answer) {
    __cpuid_count(leaf, part, answer[0], answer[1], answer[2], answer[3]);
    const char *bits = leaf == 7 ? getenv("OTHER_CPU_BITS") : NULL;
    if (bits && part == 0 && answer[0] == 0) answer[0] = 1; /* there is a part 1 */
    if (bits && part <= 1)
        for (uint32_t of = 0; of <= part; of++)
            for (int number = 0; number < 4; number++) {
                uint32_t other = changed(answer[number], &bits);
                if (of == part) answer[number] = other;
            }
    if (lacks_tiles()) answer_of_tiles(leaf, part, answer);
}

/* Linux lets a process use the data of tiles only after it asked for it. Return whether this was such a question. */
static int answer_arch_prctl(long code, unsigned long argument) {
    static _Atomic uint64_t permitted;
    uint64_t data = (uint64_t)1 << TILE_DATA;
    if (!lacks_tiles() || (code == REQUEST && argument != TILE_DATA)) return 0;
    if (code == REQUEST) permitted = data;
    if (code == GET_SUPPORTED) *(uint64_t *)argument = enabled_registers(0);
    if (code == GET_PERMITTED) *(uint64_t *)argument = (enabled_registers(0) & ~data) | permitted;
    return code == REQUEST || code == GET_SUPPORTED || code == GET_PERMITTED;
}
