/* What the instructions on tiles (AMX) compute: Intel SDM, volume 1, chapter 18, and each instruction in volume 2.
 *
 * Each thread has its own tiles. What lies outside of the rows and bytes that the configuration gives a tile is zero. MXCSR
 * must be 0x9fc0: rounding to nearest, halves to even, denormals read and written as zero, no exceptions. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "instructions.h"

enum { ROWS = 16, ROW_BYTES = 64, COLUMNS = ROW_BYTES / 4 };
#define AVX512 __attribute__((target("avx512f,avx512bw,fma")))

typedef union {
    uint8_t u8[ROWS][ROW_BYTES];
    int8_t s8[ROWS][ROW_BYTES];
    int32_t s32[ROWS][COLUMNS];
    uint32_t u32[ROWS][COLUMNS];
    float f32[ROWS][COLUMNS];
} tile;

/* As LDTILECFG reads it: palette 0 has no tiles. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[2 * TILES];
    uint8_t rows[2 * TILES];
} configuration;

typedef struct {
    configuration shape;
    tile tiles[TILES];
} tile_state;

static _Thread_local __attribute__((tls_model("initial-exec"))) tile_state state;

/* Where a CPU raises an exception, for which the engines have no handler, the program ends. */
static void refuse(const char *what, const char *why) {
    fprintf(stderr, "%s %s.\n", what, why);
    abort();
}

static void load_configuration(const void *address) {
    static const uint8_t zeros[14];
    configuration shape;
    memcpy(&shape, address, sizeof shape);
    if (shape.palette > 1) refuse("LDTILECFG", "knows the palettes 0 and 1 only");
    memset(&state, 0, sizeof state);
    if (shape.palette == 0) return;
    int valid = !memcmp(shape.reserved, zeros, sizeof shape.reserved);
    for (int i = 0; i < 2 * TILES; i++) {
        int rows = shape.rows[i], bytes = shape.row_bytes[i];
        valid &= rows <= (i < TILES ? ROWS : 0) && bytes <= (i < TILES ? ROW_BYTES : 0) && !rows == !bytes;
    }
    if (!valid) refuse("LDTILECFG", "takes up to 16 rows of up to 64 bytes for each of 8 tiles, and zeros elsewhere");
    state.shape = shape;
}

static tile *valid_tile(int number) {
    if (!state.shape.rows[number]) refuse("An instruction", "takes a tile that is not configured");
    return &state.tiles[number];
}

/* Rows from start_row on, which is where an interrupted transfer goes on. */
static void transfer(const instruction *what, const uint64_t *general) {
    tile *held = valid_tile(what->target);
    size_t bytes = state.shape.row_bytes[what->target];
    uint64_t stride = what->index == NONE ? 0 : general[what->index] << what->shift;
    uint64_t first = address_of(what, general) - stride;
    for (int row = state.shape.start_row; row < state.shape.rows[what->target]; row++) {
        void *memory = (void *)(first + (uint64_t)row * stride);
        memcpy(what->what == LOAD_TILE ? held->u8[row] : memory, what->what == LOAD_TILE ? memory : held->u8[row], bytes);
    }
}

/* Sums of products of four bytes each, without saturation. */
AVX512 static void dot_bytes(const instruction *what, tile *sums, const tile *left, const tile *right, int rows, int depth,
                             int columns) {
    typedef uint32_t row __attribute__((vector_size(ROW_BYTES)));
    row factors[4 * ROWS];
    for (int k = 0; k < 4 * depth; k++)
        for (int n = 0; n < COLUMNS; n++) {
            uint32_t byte = right->u32[k / 4][n] >> 8 * (k % 4) & 0xff;
            factors[k][n] = what->right_signed ? (uint32_t)(int8_t)byte : byte;
        }
    for (int m = 0; m < rows; m++) {
        row sum = {0};
        for (int k = 0; k < 4 * depth; k++)
            sum += factors[k] * (what->left_signed ? (uint32_t)left->s8[m][k] : left->u8[m][k]);
        for (int n = 0; n < columns; n++) sums->u32[m][n] += sum[n];
    }
}

AVX512 static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Of pairs of bfloat16, low and high ones are summed apart, in order of depth, then added, then added to what was there. */
AVX512 static void dot_bfloat16(tile *sums, const tile *left, const tile *right, int rows, int depth, int columns) {
    float low[ROWS][COLUMNS], high[ROWS][COLUMNS];
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < COLUMNS; n++) {
            low[k][n] = of_bits(right->u32[k][n] << 16);
            high[k][n] = of_bits(right->u32[k][n] & 0xffff0000);
        }
    for (int m = 0; m < rows; m++) {
        float low_sum[COLUMNS] = {0}, high_sum[COLUMNS] = {0};
        for (int k = 0; k < depth; k++) {
            float low_factor = of_bits(left->u32[m][k] << 16), high_factor = of_bits(left->u32[m][k] & 0xffff0000);
            for (int n = 0; n < COLUMNS; n++) {
                low_sum[n] = fmaf(low_factor, low[k][n], low_sum[n]);
                high_sum[n] = fmaf(high_factor, high[k][n], high_sum[n]);
            }
        }
        for (int n = 0; n < columns; n++) sums->f32[m][n] += low_sum[n] + high_sum[n];
    }
}

static void multiply(const instruction *what) {
    tile *sums = valid_tile(what->target);
    const tile *left = valid_tile(what->left), *right = valid_tile(what->right);
    const uint8_t *rows = state.shape.rows;
    const uint16_t *bytes = state.shape.row_bytes;
    if (sums == left || sums == right || left == right) refuse("A product of tiles", "takes three different tiles");
    if (rows[what->target] != rows[what->left] || bytes[what->target] != bytes[what->right] ||
        bytes[what->left] != 4 * rows[what->right] || bytes[what->target] % 4)
        refuse("A product of tiles", "takes sums (m, 4n bytes), left (m, 4k bytes) and right (k, 4n bytes)");
    int columns = bytes[what->target] / 4;
    if (what->what == DOT_TILES_BYTES)
        dot_bytes(what, sums, left, right, rows[what->target], rows[what->right], columns);
    else
        dot_bfloat16(sums, left, right, rows[what->target], rows[what->right], columns);
}

/* Do what an instruction on tiles does; the general registers are those of addresses. */
static void compute_tiles(const instruction *what, const uint64_t *general) {
    switch (what->what) {
    case LOAD_CONFIG:
        load_configuration((const void *)address_of(what, general));
        return;
    case STORE_CONFIG:
        memcpy((void *)address_of(what, general), &state.shape, sizeof state.shape);
        return;
    case RELEASE:
        memset(&state, 0, sizeof state);
        return;
    case ZERO_TILE:
        memset(valid_tile(what->target), 0, sizeof(tile));
        break;
    case LOAD_TILE:
    case STORE_TILE:
        transfer(what, general);
        break;
    default:
        multiply(what);
    }
    state.shape.start_row = 0;
}
