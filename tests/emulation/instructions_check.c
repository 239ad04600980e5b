/* Compares the emulated instructions with plain arithmetic, in every form an operand can have, from several threads.
 *
 * Prints how many comparisons there were and how many differed.
 */
#include <immintrin.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 2000, MEMORY = 40 };

typedef union {
    __m256i ymm;
    uint8_t u8[32];
    int8_t s8[32];
    int16_t s16[16];
    uint16_t u16[16];
    int32_t s32[8];
    float f32[8];
} vector;

typedef struct {
    uint64_t state;
    long compared, wrong;
} check;

static const vector constant = {.u8 = {255, 127, 128, 1, 0, 254, 129, 77, 255, 255, 255, 255, 3, 99, 200, 100}};

static void fill(check *from, vector *value) {
    for (int i = 0; i < 32; i++) {
        from->state = from->state * 6364136223846793005u + 1442695040888963407u;
        value->u8[i] = (uint8_t)(from->state >> 56);
    }
    if (from->state >> 40 & 1)
        for (int i = 0; i < 8; i++) value->s32[i] = value->s32[i] < 0 ? INT_MIN + (value->u8[4 * i] << 4) : INT_MAX;
}

/* BUSD: unsigned bytes of left, signed ones of right, and so on; WSSD: words. */
typedef enum { BUSD, BSSD, BSUD, BUUD, WSSD } product;

static int32_t dot(const vector *sums, const vector *left, const vector *right, int lane, product of, int saturate) {
    int64_t total = of == BUUD ? (int64_t)(uint32_t)sums->s32[lane] : sums->s32[lane];
    for (int i = 4 * lane; i < 4 * lane + 4; i++) {
        if (of == BUSD) total += left->u8[i] * right->s8[i];
        if (of == BSSD) total += left->s8[i] * right->s8[i];
        if (of == BSUD) total += left->s8[i] * right->u8[i];
        if (of == BUUD) total += left->u8[i] * right->u8[i];
    }
    for (int i = 2 * lane; i < 2 * lane + 2 && of == WSSD; i++) total += left->s16[i] * right->s16[i];
    if (!saturate) return (int32_t)(uint32_t)total;
    if (of == BUUD) return (int32_t)(total > UINT_MAX ? UINT_MAX : (uint32_t)total);
    return total > INT_MAX ? INT_MAX : total < INT_MIN ? INT_MIN : (int32_t)total;
}

static void expect(check *of, const vector *found, const vector *sums, const vector *left, const vector *right,
                   int lanes, product kind, int saturate) {
    for (int lane = 0; lane < 8; lane++) {
        of->compared++;
        of->wrong += found->s32[lane] != (lane < lanes ? dot(sums, left, right, lane, kind, saturate) : 0);
    }
}

static float bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value;
}

/* Whether both are the same number, or both no number. */
static int same(float a, float b) { return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b); }

/* The nearest bfloat16 of a float, the even one of two; found by its distance, not by its bits. */
static float nearest(float value) {
    if (fabsf(value) < 0x1p-126f) return copysignf(0, value);
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t below = (uint16_t)(bits >> 16), above = (uint16_t)(below + 1);
    if (!isfinite(value)) return isnan(value) ? value : bfloat16(below);
    double last = isfinite(bfloat16(above)) ? bfloat16(above) : copysign(0x1p128, value);
    double down = fabs((double)value - bfloat16(below)), up = fabs(last - (double)value);
    return down < up || (down == up && !(below & 1)) ? bfloat16(below) : bfloat16(above);
}

/* Sums in ymm12, left in ymm3, right in ymm14 or memory: registers above 7 take the other bits of the prefix. Flags and
 * the general registers must survive. */
#define RUN(before, code, lanes, kind, saturate, right, ...)                                                  \
    do {                                                                                                       \
        vector found = {{0}};                                                                                  \
        fill(of, &sums);                                                                                       \
        fill(of, &left);                                                                                       \
        __asm__ volatile(before "vmovdqu %1, %%ymm12\n vmovdqu %2, %%ymm3\n vmovdqu %3, %%ymm14\n"              \
                                "mov %%rsp, %%r11\n cmp $1, %%rsp\n"                                           \
                                "%{vex%} " code "\n"                                                             \
                                "jbe 1f\n cmp %%rsp, %%r11\n jne 1f\n vmovdqu %%ymm12, %0\n1:\n"                \
                         : "=m"(found)                                                                         \
                         : "m"(sums), "m"(left), "m"(memory[5]), __VA_ARGS__                                   \
                         : "ymm3", "ymm12", "ymm14", "r11", "r12", "r13", "cc", "memory");                     \
        expect(of, &found, &sums, &left, right, lanes, kind, saturate);                                       \
    } while (0)

#define CONVERT(code, from, conversion, count)                                                                 \
    do {                                                                                                       \
        vector found = {{0}};                                                                                  \
        fill(of, &sums); /* what the register held before must not show */                                     \
        __asm__ volatile("vmovdqu %1, %%ymm12\n vmovdqu %2, %%ymm14\n %{vex%} " code "\n vmovdqu %%ymm12, %0\n"   \
                         : "=m"(found)                                                                         \
                         : "m"(sums), "m"(*(from)), "r"(from)                                                  \
                         : "ymm12", "ymm14", "memory");                                                        \
        for (int lane = 0; lane < 8; lane++) {                                                                 \
            of->compared++;                                                                                    \
            of->wrong += lane < (count) ? !(conversion) : found.s32[lane] != 0;                                \
        }                                                                                                      \
    } while (0)

static void run_conversions(check *of, const vector *from) {
    vector sums;
    CONVERT("vcvtneebf162ps (%3), %%ymm12", from, same(found.f32[lane], bfloat16(from->u16[2 * lane])), 8);
    CONVERT("vcvtneobf162ps (%3), %%ymm12", from, same(found.f32[lane], bfloat16(from->u16[2 * lane + 1])), 8);
    CONVERT("vcvtneebf162ps (%3), %%xmm12", from, same(found.f32[lane], bfloat16(from->u16[2 * lane])), 4);
    CONVERT("vcvtneeph2ps (%3), %%ymm12", from, same(found.f32[lane], _cvtsh_ss(from->u16[2 * lane])), 8);
    CONVERT("vcvtneoph2ps (%3), %%ymm12", from, same(found.f32[lane], _cvtsh_ss(from->u16[2 * lane + 1])), 8);
    CONVERT("vbcstnebf162ps (%3), %%ymm12", from, same(found.f32[lane], bfloat16(from->u16[0])), 8);
    CONVERT("vbcstnesh2ps (%3), %%ymm12", from, same(found.f32[lane], _cvtsh_ss(from->u16[0])), 8);
    CONVERT("vcvtneps2bf16 %%ymm14, %%xmm12", from,
            same(bfloat16(found.u16[2 * lane]), nearest(from->f32[2 * lane])) &&
                same(bfloat16(found.u16[2 * lane + 1]), nearest(from->f32[2 * lane + 1])),
            4);
    CONVERT("vcvtneps2bf16x (%3), %%xmm12", from,
            same(bfloat16(found.u16[2 * lane]), nearest(from->f32[2 * lane])) &&
                same(bfloat16(found.u16[2 * lane + 1]), nearest(from->f32[2 * lane + 1])),
            2);
}

static void *run(void *argument) {
    check *of = argument;
    vector memory[MEMORY], sums, left;
    char *start = (char *)memory;
    uint64_t half = (uint64_t)memory / 2, two = 2, eight = 8;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MEMORY; i++) fill(of, &memory[i]);
        RUN("", "vpdpbusd %%ymm14, %%ymm3, %%ymm12", 8, BUSD, 0, &memory[5], "r"(start));
        RUN("", "vpdpbusds %%ymm14, %%ymm3, %%ymm12", 8, BUSD, 1, &memory[5], "r"(start));
        RUN("", "vpdpwssd %%ymm14, %%ymm3, %%ymm12", 8, WSSD, 0, &memory[5], "r"(start));
        RUN("", "vpdpwssds %%ymm14, %%ymm3, %%ymm12", 8, WSSD, 1, &memory[5], "r"(start));
        RUN("", "vpdpbssd %%ymm14, %%ymm3, %%ymm12", 8, BSSD, 0, &memory[5], "r"(start));
        RUN("", "vpdpbssds %%ymm14, %%ymm3, %%ymm12", 8, BSSD, 1, &memory[5], "r"(start));
        RUN("", "vpdpbsud %%ymm14, %%ymm3, %%ymm12", 8, BSUD, 0, &memory[5], "r"(start));
        RUN("", "vpdpbsuds %%ymm14, %%ymm3, %%ymm12", 8, BSUD, 1, &memory[5], "r"(start));
        RUN("", "vpdpbuud %%ymm14, %%ymm3, %%ymm12", 8, BUUD, 0, &memory[5], "r"(start));
        RUN("", "vpdpbuuds %%ymm14, %%ymm3, %%ymm12", 8, BUUD, 1, &memory[5], "r"(start));
        RUN("", "vpdpbusd %%xmm14, %%xmm3, %%xmm12", 4, BUSD, 0, &memory[5], "r"(start));
        RUN("", "vpdpbusd (%4), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[0], "r"(start));
        RUN("", "vpdpbusd 96(%4), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[3], "r"(start));
        RUN("", "vpdpbusd 1120(%4), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[35], "r"(start));
        RUN("", "vpdpbusd -32(%4,%5,8), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[1], "r"(start), "r"(eight));
        RUN("", "vpdpbusd 64(,%4,2), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[2], "r"(half));
        RUN("mov %4, %%r13\n mov %5, %%r12\n", "vpdpbusd (%%r13,%%r12,4), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[4],
            "r"(start), "r"(two << 4));
        RUN("mov %4, %%r12\n", "vpdpbusd (%%r12), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[0], "r"(start));
        RUN("", "vpdpbusd %4, %%ymm3, %%ymm12", 8, BUSD, 0, &constant, "m"(constant)); /* relative to RIP */
        RUN("mov %4, %%r12\n sub %%rsp, %%r12\n", "vpdpbusd (%%rsp,%%r12), %%ymm3, %%ymm12", 8, BUSD, 0, &memory[6],
            "r"(start + 192));
        run_conversions(of, &memory[7]);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    check checks[THREADS];
    long compared = 0, wrong = 0;
    for (int i = 0; i < THREADS; i++) {
        checks[i] = (check){.state = (uint64_t)i + 1};
        if (pthread_create(&threads[i], NULL, run, &checks[i])) return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        compared += checks[i].compared;
        wrong += checks[i].wrong;
    }
    printf("%ld compared, %ld wrong\n", compared, wrong);
    return 0;
}
