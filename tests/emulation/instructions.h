/* The instructions that other_cpu.c emulates: what their code says, and what those on vectors compute. */
#pragma once

#include <stdint.h>
#include <string.h>

enum { LANES = 8, TILES = 8, NONE = -1, RSP = 4 };
enum { VEX3 = 0xc4 };
enum { PREFIX_NONE, PREFIX_66, PREFIX_F3, PREFIX_F2 };
/* What an instruction does: sums of products, conversions of 16-bit floats, and all that is done with tiles. */
typedef enum {
    DOT_BYTES, DOT_WORDS, WIDEN, BROADCAST, NARROW,
    LOAD_CONFIG, STORE_CONFIG, RELEASE, ZERO_TILE, LOAD_TILE, STORE_TILE, DOT_TILES_BYTES, DOT_TILES_BFLOAT16
} action;

/* A ymm register, and zeros where instructions with a VEX prefix put them into its zmm register. */
typedef union {
    uint8_t zmm[64];
    uint8_t u8[4 * LANES];
    int8_t s8[4 * LANES];
    uint16_t u16[2 * LANES];
    int16_t s16[2 * LANES];
    int32_t s32[LANES];
    uint32_t u32[LANES];
} vector;

/* An instruction: target, left and right are registers, vectors or tiles; without a right one it reads or writes memory
 * at base + (index << shift) + displacement. */
typedef struct {
    action what;
    int left_signed, right_signed, saturate; /* of sums of products */
    int odd, half;                           /* of conversions: which elements, and whether these are IEEE halves */
    int lanes, target, left, right, base, index, shift;
    int64_t displacement;
    size_t size;
} instruction;

/* ---- decoding ---- */

static void decode_memory(instruction *found, const uint8_t **code, int mode, int rm, int x, int b) {
    int relative = 0, wide = mode == 2;
    found->base = rm | b << 3;
    if (rm == 4) { /* a SIB byte follows */
        int sib = *(*code)++;
        found->shift = sib >> 6;
        found->index = (sib >> 3 & 7) | x << 3;
        if (found->index == RSP) found->index = NONE;
        found->base = (sib & 7) | b << 3;
        if ((sib & 7) == 5 && mode == 0) found->base = NONE;
    } else if (rm == 5 && mode == 0) {
        found->base = NONE;
        relative = 1;
    }
    wide |= found->base == NONE;
    if (wide) {
        int32_t displacement;
        memcpy(&displacement, *code, 4);
        *code += 4;
        found->displacement = displacement;
    } else if (mode == 1) {
        found->displacement = (int8_t)*(*code)++;
    }
    if (relative) found->displacement += (int64_t)*code;
}

/* Tell what the opcode after the prefix does; 0 if it is none of the instructions that are emulated. */
static int decode_opcode(instruction *found, int opcode, int prefix) {
    switch (opcode) {
    case 0x50: /* VPDPBUSD with 66; VPDPBSSD, VPDPBSUD and VPDPBUUD with F2, F3 and none */
    case 0x51: /* the same with saturation */
        found->what = DOT_BYTES;
        found->left_signed = prefix == PREFIX_F2 || prefix == PREFIX_F3;
        found->right_signed = prefix == PREFIX_F2 || prefix == PREFIX_66;
        found->saturate = opcode & 1;
        return 1;
    case 0x52: /* VPDPWSSD */
    case 0x53: /* VPDPWSSDS */
        found->what = DOT_WORDS;
        found->saturate = opcode & 1;
        return prefix == PREFIX_66;
    case 0xb0: /* VCVTNEEBF162PS, VCVTNEOBF162PS, VCVTNEEPH2PS and VCVTNEOPH2PS with F3, F2, 66 and none */
        found->what = WIDEN;
        found->odd = prefix == PREFIX_F2 || prefix == PREFIX_NONE;
        found->half = prefix == PREFIX_66 || prefix == PREFIX_NONE;
        return 1;
    case 0xb1: /* VBCSTNEBF162PS and VBCSTNESH2PS with F3 and 66 */
        found->what = BROADCAST;
        found->half = prefix == PREFIX_66;
        return prefix == PREFIX_F3 || prefix == PREFIX_66;
    case 0x72: /* VCVTNEPS2BF16 */
        found->what = NARROW;
        return prefix == PREFIX_F3;
    default:
        return 0;
    }
}

/* The same for the instructions on tiles, by the byte after the opcode too. */
static int decode_tiles(instruction *found, int opcode, int prefix, int modrm) {
    int registers = modrm >= 0xc0, reg = modrm >> 3 & 7, rm = modrm & 7;
    switch (opcode) {
    case 0x49: /* LDTILECFG and STTILECFG with none and 66; of registers TILERELEASE and TILEZERO with none and F2 */
        if (registers) {
            found->what = prefix == PREFIX_F2 ? ZERO_TILE : RELEASE;
            return rm == 0 && (prefix == PREFIX_F2 || (prefix == PREFIX_NONE && reg == 0));
        }
        found->what = prefix == PREFIX_66 ? STORE_CONFIG : LOAD_CONFIG;
        return reg == 0 && (prefix == PREFIX_66 || prefix == PREFIX_NONE);
    case 0x4b: /* TILELOADD, TILELOADDT1 and TILESTORED with F2, 66 and F3, with a SIB byte */
        found->what = prefix == PREFIX_F3 ? STORE_TILE : LOAD_TILE;
        return !registers && rm == 4 && prefix != PREFIX_NONE;
    case 0x5c: /* TDPBF16PS */
        found->what = DOT_TILES_BFLOAT16;
        return registers && prefix == PREFIX_F3;
    case 0x5e: /* TDPBSSD, TDPBSUD, TDPBUSD and TDPBUUD with F2, F3, 66 and none */
        found->what = DOT_TILES_BYTES;
        found->left_signed = prefix == PREFIX_F2 || prefix == PREFIX_F3;
        found->right_signed = prefix == PREFIX_F2 || prefix == PREFIX_66;
        return registers;
    default:
        return 0;
    }
}

static int decode(instruction *found, const uint8_t *code) {
    const uint8_t *start = code;
    /* three-byte VEX, map 0F38, W0 */
    if (code[0] != VEX3 || (code[1] & 0x1f) != 2 || (code[2] & 0x80)) return 0;
    int r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20), mode = code[4] >> 6, rm = code[4] & 7;
    *found = (instruction){.right = NONE, .base = NONE, .index = NONE};
    int wide = code[2] & 4, tiles = !wide && decode_tiles(found, code[3], code[2] & 3, code[4]);
    if (!tiles && !decode_opcode(found, code[3], code[2] & 3)) return 0;
    found->lanes = wide ? LANES : LANES / 2;
    found->left = ~(code[2] >> 3) & 15;
    found->target = (code[4] >> 3 & 7) | r << 3;
    code += 5;
    if (mode == 3)
        found->right = rm | b << 3;
    else
        decode_memory(found, &code, mode, rm, x, b);
    found->size = (size_t)(code - start);
    int product = found->what == DOT_TILES_BYTES || found->what == DOT_TILES_BFLOAT16;
    if (product) { /* of tiles it is the right one that the prefix names */
        int right = found->left;
        found->left = found->right;
        found->right = right;
    }
    if (!tiles) return 1;
    return found->target < TILES && found->left < TILES && found->right < TILES && (product || found->left == 0);
}

/* ---- computing ---- */

static int32_t add(int32_t sum, int64_t products, const instruction *what) {
    int64_t total = (int64_t)sum + products;
    if (!what->saturate) return (int32_t)(uint32_t)total;
    if (what->what == DOT_BYTES && !what->left_signed && !what->right_signed) { /* the only ones whose sums are unsigned */
        total = (int64_t)(uint32_t)sum + products;
        return (int32_t)(total > UINT32_MAX ? UINT32_MAX : (uint32_t)total);
    }
    return total > INT32_MAX ? INT32_MAX : total < INT32_MIN ? INT32_MIN : (int32_t)total;
}

static int64_t products(const instruction *what, const vector *left, const vector *right, int lane) {
    int64_t total = 0;
    for (int i = 2 * lane; i < 2 * lane + 2 && what->what == DOT_WORDS; i++) total += left->s16[i] * right->s16[i];
    for (int i = 4 * lane; i < 4 * lane + 4 && what->what == DOT_BYTES; i++)
        total += (what->left_signed ? left->s8[i] : left->u8[i]) * (what->right_signed ? right->s8[i] : right->u8[i]);
    return total;
}

static uint32_t float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
    if (exponent) return sign | (exponent + 112) << 23 | fraction << 13;
    if (!fraction) return sign;
    for (exponent = 113; !(fraction & 0x400); exponent--) fraction <<= 1; /* a denormal half is a normal float */
    return sign | exponent << 23 | (fraction & 0x3ff) << 13;
}

/* A denormal bfloat16 is zero to these instructions, and NaNs become quiet. */
static uint32_t float_of_bfloat16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    if (!(bits & 0x7f800000)) return bits & 0x80000000;
    return bits | ((bits & 0x7fffffff) > 0x7f800000 ? 0x400000 : 0);
}

/* Rounds to nearest, halves to even. */
static uint16_t bfloat16_of_float(uint32_t bits) {
    if (!(bits & 0x7f800000)) return (uint16_t)(bits >> 16 & 0x8000);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static size_t bytes_read(const instruction *what) {
    return what->what == BROADCAST ? 2 : 4 * (size_t)what->lanes;
}

static uint64_t address_of(const instruction *what, const uint64_t *general) {
    uint64_t address = (uint64_t)what->displacement;
    if (what->base != NONE) address += general[what->base];
    if (what->index != NONE) address += general[what->index] << what->shift;
    return address;
}

/* Change the target among the vector registers; the general registers are those of addresses, in instructions' order. */
static void compute(const instruction *what, const uint64_t *general, vector *vectors) {
    vector right = {{0}}, result = {{0}}, *target = &vectors[what->target];
    if (what->right != NONE) {
        right = vectors[what->right];
    } else {
        memcpy(right.u8, (const void *)address_of(what, general), bytes_read(what));
    }
    for (int lane = 0; lane < what->lanes; lane++) {
        uint16_t narrow = right.u16[what->what == BROADCAST ? 0 : 2 * lane + what->odd];
        if (what->what == NARROW)
            result.u16[lane] = bfloat16_of_float(right.u32[lane]);
        else if (what->what == WIDEN || what->what == BROADCAST)
            result.u32[lane] = what->half ? float_of_half(narrow) : float_of_bfloat16(narrow);
        else
            result.s32[lane] = add(target->s32[lane], products(what, &vectors[what->left], &right, lane), what);
    }
    *target = result;
}
