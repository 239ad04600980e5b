/* Compares the emulated instructions on tiles with plain arithmetic, in shapes and strides of all kinds, from several
 * threads, and all that they must leave alone: vectors, masks, general registers, flags, MXCSR and the red zone.
 *
 * Prints what CPUID, XGETBV and Linux say of tiles, how many comparisons there were and how many differed.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 250, ROWS = 16, ROW_BYTES = 64, PITCH = 72, GUARD = 0xa5 };

/* What instructions on tiles must not change; RUN knows the offsets. */
typedef struct {
    uint8_t vectors[32][64];
    uint64_t masks[8], general[6], red_zone[16], flags;
    uint32_t mxcsr, usual_mxcsr;
} registers;

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} configuration;

typedef struct {
    uint8_t bytes[ROWS][PITCH];
} matrix;

typedef struct {
    uint64_t state;
    long compared, wrong;
    registers before, after;
} check;

static uint32_t random_bits(check *of) {
    of->state = of->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(of->state >> 32);
}

static void expect(check *of, int right) {
    of->compared++;
    of->wrong += !right;
}

#define EACH_VECTOR "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#define EACH_GENERAL(take) take(0, r10) take(1, r11) take(2, r12) take(3, r13) take(4, r14) take(5, r15)
#define GET(number, name) "mov 2112+8*" #number "(%%r8), %%" #name "\n"
#define PUT(number, name) "mov %%" #name ", 2112+8*" #number "(%%r9)\n"

/* Run one instruction, whose memory is at rdi with rsi as stride, with registers that hold what is in before. Flags are
 * all those of arithmetic and the one of direction; MXCSR rounds to zero and keeps denormals. */
#define RUN(code, address, stride)                                                                                  \
    do {                                                                                                             \
        register void *rdi __asm__("rdi") = (void *)(address);                                                       \
        register uint64_t rsi __asm__("rsi") = (uint64_t)(stride);                                                   \
        register registers *r8 __asm__("r8") = &of->before, *r9 __asm__("r9") = &of->after;                          \
        memset(r9, 0, sizeof *r9);                                                                                   \
        __asm__ volatile(".irp number," EACH_VECTOR "\n vmovdqu64 64*\\number(%%r8), %%zmm\\number\n .endr\n"        \
                         ".irp number,0,1,2,3,4,5,6,7\n kmovq 2048+8*\\number(%%r8), %%k\\number\n .endr\n"          \
                         "ldmxcsr 2296(%%r8)\n pushq 2288(%%r8)\n popfq\n"                                           \
                         ".irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                       \
                         "mov 2160+8*\\number(%%r8), %%rax\n mov %%rax, -128+8*\\number(%%rsp)\n .endr\n"            \
                         EACH_GENERAL(GET) code "\n" EACH_GENERAL(PUT)                                               \
                         ".irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                       \
                         "mov -128+8*\\number(%%rsp), %%rax\n mov %%rax, 2160+8*\\number(%%r9)\n .endr\n"            \
                         "pushfq\n popq 2288(%%r9)\n cld\n stmxcsr 2296(%%r9)\n ldmxcsr 2300(%%r8)\n"                \
                         ".irp number," EACH_VECTOR "\n vmovdqu64 %%zmm\\number, 64*\\number(%%r9)\n .endr\n"        \
                         ".irp number,0,1,2,3,4,5,6,7\n kmovq %%k\\number, 2048+8*\\number(%%r9)\n .endr\n"          \
                         "vzeroupper\n"                                                                              \
                         : "+r"(rdi), "+r"(rsi), "+r"(r8), "+r"(r9)                                                  \
                         :                                                                                           \
                         : "rax", "r10", "r11", "r12", "r13", "r14", "r15", "cc", "memory", "xmm0", "xmm1", "xmm2",  \
                           "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",        \
                           "xmm13", "xmm14", "xmm15");                                                               \
        r9->usual_mxcsr = r8->usual_mxcsr;                                                                           \
        expect(of, rdi == (void *)(address) && rsi == (uint64_t)(stride) && !memcmp(r8, r9, sizeof *r8));            \
    } while (0)

static void fill(check *of, matrix *with, int kind) {
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < PITCH; i += 2) {
            uint16_t bits = (uint16_t)(random_bits(of) >> 8);
            /* kinds: any, bfloat16 from 2^-7 to 2^5, bfloat16 whose products are about the least normal float, and sums of that size */
            if (kind == 1) bits = (uint16_t)((bits & 0x80ff) | (0x3c00 + (bits & 0x0500)));
            if (kind == 2) bits = (uint16_t)((bits & 0x807f) | (0x1f00 + (bits & 0x0180)));
            if (kind == 3) bits &= 0x81ff;
            memcpy(&with->bytes[row][i], &bits, 2);
        }
}

/* The tile was stored with stride PITCH over GUARDs: it has rows from first on, of source, zeros before, and no more. */
static void expect_stored(check *of, const matrix *found, const matrix *source, int first, int rows, int bytes) {
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < PITCH; i++) {
            int inside = row < rows && i < bytes, loaded = source && row >= first;
            expect(of, found->bytes[row][i] == (inside ? (loaded ? source->bytes[row][i] : 0) : GUARD));
        }
}

static uint32_t number_at(const matrix *in, int row, int column) {
    uint32_t value;
    memcpy(&value, &in->bytes[row][4 * column], 4);
    return value;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value;
}

static float normal(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value; }

static int same(float a, float b) { return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b); }

/* SS: signed bytes of both, SU: signed ones of left, and so on; BF: bfloat16. */
typedef enum { SS, SU, US, UU, BF } product;

static void expect_product(check *of, product kind, const matrix *found, const matrix *sums, const matrix *left,
                           const matrix *right, int m, int n, int depth) {
    int64_t total = (int32_t)number_at(sums, m, n);
    float even = 0, odd = 0;
    for (int k = 0; k < depth; k++) {
        for (int i = 0; i < 4; i++) {
            uint8_t a = left->bytes[m][4 * k + i], b = right->bytes[k][4 * n + i];
            total += (int64_t)(kind == SS || kind == SU ? (int8_t)a : a) * (kind == SS || kind == US ? (int8_t)b : b);
        }
        uint32_t a = number_at(left, m, k), b = number_at(right, k, n);
        even = normal(fmaf(float_of(a << 16), float_of(b << 16), even));
        odd = normal(fmaf(float_of(a & 0xffff0000), float_of(b & 0xffff0000), odd));
    }
    uint32_t bits = number_at(found, m, n);
    float sum = normal(float_of(number_at(sums, m, n)) + normal(even + odd)), value;
    memcpy(&value, &bits, 4);
    expect(of, kind == BF ? same(value, sum) : bits == (uint32_t)total);
}

/* AT&T's order: right, left, sums; tiles have the numbers in their names. */
#define PRODUCT(kind, name, right_tile, left_tile, sums_tile)                                                        \
    do {                                                                                                             \
        matrix found;                                                                                                \
        RUN("tileloadd (%%rdi,%%rsi), %%tmm" #sums_tile, &sums, PITCH);                                              \
        RUN(name " %%tmm" #right_tile ", %%tmm" #left_tile ", %%tmm" #sums_tile, NULL, 0);                           \
        memset(&found, GUARD, sizeof found);                                                                         \
        RUN("tilestored %%tmm" #sums_tile ", (%%rdi,%%rsi)", &found, PITCH);                                         \
        for (int m = 0; m < rows; m++)                                                                               \
            for (int n = 0; n < columns; n++) expect_product(of, kind, &found, &sums, &left, &right, m, n, depth);   \
        for (int m = 0; m < ROWS; m++)                                                                               \
            for (int i = m < rows ? 4 * columns : 0; i < PITCH; i++) expect(of, found.bytes[m][i] == GUARD);         \
    } while (0)

#define STORED(tile, source, first, rows, bytes)                                  \
    do {                                                                          \
        matrix found;                                                             \
        memset(&found, GUARD, sizeof found);                                      \
        RUN("tilestored %%tmm" #tile ", (%%rdi,%%rsi,8)", &found, PITCH / 8);     \
        expect_stored(of, &found, source, first, rows, bytes);                    \
    } while (0)

__attribute__((noinline)) static void run_round(check *of, int kind) {
    int rows = 1 + random_bits(of) % 16, columns = 1 + random_bits(of) % 16, depth = 1 + random_bits(of) % 16;
    configuration shape = {.palette = 1, .start_row = (uint8_t)(random_bits(of) % 4)}, seen;
    static const int sums_tiles[2] = {0, 7}, left_tiles[2] = {1, 3}, right_tiles[2] = {2, 5};
    int first = shape.start_row;
    for (int i = 0; i < 2; i++) {
        shape.rows[sums_tiles[i]] = shape.rows[left_tiles[i]] = (uint8_t)rows;
        shape.rows[right_tiles[i]] = (uint8_t)depth;
        shape.row_bytes[left_tiles[i]] = (uint16_t)(4 * depth);
        shape.row_bytes[sums_tiles[i]] = shape.row_bytes[right_tiles[i]] = (uint16_t)(4 * columns);
    }
    shape.rows[6] = (uint8_t)depth;
    shape.row_bytes[6] = 63;
    matrix sums, left, right, backwards;
    fill(of, &sums, 0);
    fill(of, &left, kind);
    fill(of, &right, kind);
    RUN("ldtilecfg (%%rdi)", &shape, 0);
    RUN("sttilecfg 64(%%rdi)", (uintptr_t)&seen - 64, 0);
    expect(of, !memcmp(&seen, &shape, sizeof seen));
    RUN("tileloadd (%%rdi,%%rsi), %%tmm6", &left, PITCH); /* this one only begins at start_row */
    RUN("sttilecfg (%%rdi)", &seen, 0);
    expect(of, seen.start_row == 0);
    STORED(6, &left, first, depth, 63);
    STORED(0, NULL, 0, rows, 4 * columns); /* a new configuration has cleared all */
    RUN("tileloadd 24(%%rdi,%%rsi,4), %%tmm1", (uintptr_t)&left - 24, PITCH / 4);
    STORED(1, &left, 0, rows, 4 * depth);
    RUN("tileloaddt1 (%%rdi,%%rsi), %%tmm2", &right, PITCH);
    STORED(2, &right, 0, depth, 4 * columns);
    for (int row = 0; row < ROWS; row++) memcpy(backwards.bytes[ROWS - 1 - row], left.bytes[row], PITCH);
    RUN("mov %%rdi, %%r13\n tileloadd (%%r13,%%rsi), %%tmm3\n mov 2136(%%r8), %%r13", &backwards.bytes[ROWS - 1], -PITCH);
    STORED(3, &left, 0, rows, 4 * depth);
    for (int row = 0; row < ROWS; row++) memcpy(backwards.bytes[row], right.bytes[0], PITCH);
    RUN("tileloadd (%%rdi), %%tmm5", &right, 3); /* without an index the stride is zero */
    STORED(5, &backwards, 0, depth, 4 * columns);
    RUN("tileloaddt1 -1000(%%rdi,%%rsi,2), %%tmm5", (uintptr_t)&right + 1000, PITCH / 2);
    PRODUCT(SS, "tdpbssd", 2, 1, 0);
    PRODUCT(SU, "tdpbsud", 2, 1, 0);
    PRODUCT(US, "tdpbusd", 2, 1, 0);
    PRODUCT(UU, "tdpbuud", 2, 1, 0);
    PRODUCT(SU, "tdpbsud", 5, 3, 7);
    if (kind) fill(of, &sums, kind == 2 ? 3 : kind);
    PRODUCT(BF, "tdpbf16ps", 2, 1, 0);
    PRODUCT(BF, "tdpbf16ps", 5, 3, 7);
    RUN("tilezero %%tmm7", NULL, 0);
    STORED(7, NULL, 0, rows, 4 * columns);
    shape = (configuration){0};
    if (kind)
        RUN("tilerelease", NULL, 0);
    else
        RUN("ldtilecfg (%%rdi)", &shape, 0);
    RUN("sttilecfg (%%rdi)", &seen, 0);
    expect(of, !memcmp(&seen, &shape, sizeof seen));
}

static void *run(void *argument) {
    check *of = argument;
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < sizeof of->before; i++) ((uint8_t *)&of->before)[i] = (uint8_t)(random_bits(of) >> 24);
        of->before.flags = 0xed7;
        of->before.mxcsr = 0x7f80;
        of->before.usual_mxcsr = 0x1f80;
        run_round(of, round % 3);
    }
    return NULL;
}

static void ask_cpuid(uint32_t leaf, uint32_t part, uint32_t *answer) {
    __asm__ volatile(".byte 0x0f, 0x0a"
                     : "=a"(answer[0]), "=b"(answer[1]), "=c"(answer[2]), "=d"(answer[3])
                     : "0"(leaf), "2"(part));
}

static void ask(void) {
    static const uint32_t leaves[3][2] = {{0x1d, 0}, {0x1d, 1}, {0x1e, 0}};
    uint32_t answer[4], low, high;
    uint64_t supported = 0, before = 0, after = 0;
    for (int i = 0; i < 3; i++) {
        ask_cpuid(leaves[i][0], leaves[i][1], answer);
        printf("%x.%u: %x %x %x\n", leaves[i][0], leaves[i][1], answer[0], answer[1], answer[2]);
    }
    ask_cpuid(0, 0, answer);
    printf("up to %x, ", answer[0]);
    ask_cpuid(7, 0, answer);
    printf("bits %x\n", answer[3] >> 22 & 15);
    __asm__ volatile(".byte 0x0f, 0x04, 0x90" : "=a"(low), "=d"(high) : "c"(0));
    long asked = syscall(SYS_arch_prctl, 0x1021, &supported) | syscall(SYS_arch_prctl, 0x1022, &before) |
                 syscall(SYS_arch_prctl, 0x1023, 18) | syscall(SYS_arch_prctl, 0x1022, &after);
    printf("registers %x %x, permitted %x %x, errors %ld\n", low >> 16, (unsigned)supported >> 16, (unsigned)before >> 16,
           (unsigned)after >> 16, asked);
    long failed = syscall(SYS_close, -1);
    printf("other calls: %d\n", syscall(SYS_getpid) == getpid() && failed == -1 && errno == EBADF);
}

int main(void) {
    static check checks[THREADS];
    pthread_t threads[THREADS];
    long compared = 0, wrong = 0;
    ask();
    for (int i = 0; i < THREADS; i++) {
        checks[i].state = (uint64_t)i + 1;
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
