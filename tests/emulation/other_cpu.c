/* Programs believe that this x86-64 CPU is another one, and compute as on that, if they run with this library preloaded.
 *
 * It takes a CPU with AVX2. CPUID and XGETBV cannot be made to trap: programs have the reserved opcodes 0F 0A and 0F 04 90
 * instead, which are as long (other_cpu.py writes such copies), and get the answer from here. A program that asks Linux
 * reads another /proc/cpuinfo, and gets the permission that AMX takes.
 * What the other CPU has and this one has not are instructions with a VEX prefix, which raise SIGILL: those of AVX-VNNI,
 * AVX-VNNI-INT8, AVX-NE-CONVERT and AMX. The handler decodes the instruction (Intel SDM, volume 2, chapters 2.1 to 2.3), and
 * puts a jump in its place that leads to a function with the same effect on all registers, so each place in the code traps
 * once.
 *
 * OTHER_CPU_BITS: what leaf 7 of CPUID answers otherwise than this CPU, 16 hexadecimal numbers: for EAX, EBX, ECX and EDX
 *     of part 0, then of part 1, the bits to clear and the bits to set.
 * OTHER_CPU_CPUINFO: the file that opens instead of /proc/cpuinfo.
 * OTHER_CPU_REPORT: gets a line per process that used any of this, "instructions computed, traps, answers".
 *
 * Threads may run the same code for the first time at once: while a jump is written, its place holds the opcode 06, which
 * 64-bit code does not have, and who meets that tries again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "answers.h"
#include "instructions.h"
#include "tiles.h"

/* A jump reaches 2 GiB, which it takes to get past the libraries of a large program. */
enum { POOLS = 4096, POOL_SIZE = 1 << 20, REACH = INT32_MAX - POOL_SIZE, RED_ZONE = 128 };
enum { BUSY = 0x06, JUMP = 0xe9 };

/* What a stub leaves on the stack, upwards. General registers are numbered as in instructions. */
typedef struct {
    uint64_t general[16], flags;
    const uint8_t *slot_after_call;
} frame;

static _Atomic uint64_t computed, traps, answers;
static struct sigaction previous;
static int (*next_sigaction)(int, const struct sigaction *, struct sigaction *);

/* ---- patching ---- */

/* A slot: code that steps over the red zone, calls the stub, steps back and jumps behind the instruction. */
typedef struct {
    uint8_t to_stub[11], back[13];
    uint64_t stub;
    instruction what;
} __attribute__((packed)) slot;

__attribute__((used)) static void stub_compute(frame *saved, vector *vectors) {
    const slot *from = (const slot *)(saved->slot_after_call - sizeof from->to_stub);
    saved->general[RSP] = (uint64_t)(saved + 1) + RED_ZONE;
    instruction what = from->what;
    if (what.what < LOAD_CONFIG)
        compute(&what, saved->general, vectors);
    else
        compute_tiles(&what, saved->general);
    computed++;
}

/* Both save all registers that a program can have in use, and MXCSR: without AVX-512 and with it. */
void stub_ymm(void);
void stub_zmm(void);
__asm__(
    ".text\n"
    ".altmacro\n"
    ".macro save kind number\n  vmovups %\\kind\\number, 64*\\number(%rsp)\n  .endm\n"
    ".macro restore kind number\n  vmovups 64*\\number(%rsp), %\\kind\\number\n  .endm\n"
    ".macro save_mask number\n  kmovq %k\\number, 2048+8*\\number(%rsp)\n  .endm\n"
    ".macro restore_mask number\n  kmovq 2048+8*\\number(%rsp), %k\\number\n  .endm\n"
    ".macro each action:req, kind:req\n"
    "  .irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  \\action \\kind \\number\n  .endr\n"
    "  .ifc \\kind, zmm\n"
    "  .irp number, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n  \\action \\kind \\number\n  .endr\n"
    "  .irp number, 0,1,2,3,4,5,6,7\n  \\action\\()_mask \\number\n  .endr\n"
    "  .endif\n"
    "  .endm\n"
    ".macro stub kind\n"
    "stub_\\kind:\n"
    "  pushfq\n"
    "  push %r15; push %r14; push %r13; push %r12; push %r11; push %r10; push %r9; push %r8\n"
    "  push %rdi; push %rsi; push %rbp; push %rsp; push %rbx; push %rdx; push %rcx; push %rax\n"
    "  mov %rsp, %rbp\n"
    "  mov %rsp, %rdi\n"
    "  sub $2176, %rsp\n"
    "  and $-64, %rsp\n"
    "  mov %rsp, %rsi\n"
    "  each save \\kind\n"
    "  stmxcsr 2112(%rsp)\n"
    "  ldmxcsr nearest_without_denormals(%rip)\n"
    "  cld\n"
    "  vzeroupper\n"
    "  call stub_compute\n"
    "  ldmxcsr 2112(%rsp)\n"
    "  each restore \\kind\n"
    "  mov %rbp, %rsp\n"
    "  pop %rax; pop %rcx; pop %rdx; pop %rbx; add $8, %rsp; pop %rbp; pop %rsi; pop %rdi\n"
    "  pop %r8; pop %r9; pop %r10; pop %r11; pop %r12; pop %r13; pop %r14; pop %r15\n"
    "  popfq\n"
    "  ret\n"
    "  .endm\n"
    "stub ymm\n"
    "stub zmm\n"
    ".balign 4\n"
    "nearest_without_denormals: .long 0x9fc0\n");

/* Say why the program will end, and return 0; signal handlers may not print otherwise. */
static int say(const char *why) {
    if (write(STDERR_FILENO, why, strlen(why)) < 0) abort();
    return 0;
}

/* Return new room for slots near code; address space only, until it is written. */
static uint8_t *map_pool(const uint8_t *code) {
    for (int64_t away = POOL_SIZE; away < REACH - POOL_SIZE; away += POOL_SIZE)
        for (int sign = -1; sign <= 1; sign += 2) {
            void *wish = (void *)(((uintptr_t)code & ~(uintptr_t)(POOL_SIZE - 1)) + (uintptr_t)(sign * away));
            void *got = mmap(wish, POOL_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
            if (got == wish) return got;
        }
    return NULL;
}

/* Return room for a slot that a jump at code can reach. */
static slot *take_slot(const uint8_t *code) {
    static uint8_t *pools[POOLS], *ends[POOLS]; /* where each goes on, and ends */
    const size_t size = (sizeof(slot) + 15) & ~(size_t)15;
    int number = 0;
    while (number < POOLS && pools[number] && (pools[number] + size > ends[number] || llabs(pools[number] - code) > REACH))
        number++;
    if (number == POOLS) return NULL;
    if (!pools[number]) {
        if (!(pools[number] = map_pool(code))) return NULL;
        ends[number] = pools[number] + POOL_SIZE;
    }
    slot *taken = (slot *)pools[number];
    pools[number] += size;
    return taken;
}

static void write_jump(uint8_t *at, const uint8_t *target) {
    int32_t distance = (int32_t)(target - (at + 5));
    __atomic_store_n(at, BUSY, __ATOMIC_SEQ_CST);
    memcpy(at + 1, &distance, 4);
    __atomic_store_n(at, JUMP, __ATOMIC_SEQ_CST);
}

static int write_slot(uint8_t *code, const instruction *what) {
    slot *room = take_slot(code);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)code & ~(page - 1);
    if (!room) return say("There is no room for a jump's target within 2 GiB of an emulated instruction.\n");
    if (mprotect((void *)start, (uintptr_t)code + 5 - start, PROT_READ | PROT_WRITE | PROT_EXEC))
        return say("The code of an emulated instruction cannot be made writable.\n");
    /* lea -128(%rsp), %rsp; call *stub(%rip) */
    static const uint8_t enter[11] = {0x48, 0x8d, 0x64, 0x24, 0x80, 0xff, 0x15, sizeof room->back, 0, 0, 0};
    /* lea 128(%rsp), %rsp */
    static const uint8_t leave[8] = {0x48, 0x8d, 0xa4, 0x24, RED_ZONE, 0, 0, 0};
    memcpy(room->to_stub, enter, sizeof enter);
    memcpy(room->back, leave, sizeof leave);
    write_jump(room->back + sizeof leave, code + what->size);
    room->stub = (uint64_t)(has_avx512() ? stub_zmm : stub_ymm);
    room->what = *what;
    write_jump(code, (const uint8_t *)room);
    traps++;
    return 1;
}

/* Return whether the code at this place can be tried again. */
static int patch(uint8_t *code) {
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    instruction what;
    while (atomic_flag_test_and_set(&busy)) sched_yield();
    /* another thread may have been first */
    int done = code[0] == JUMP || code[0] == BUSY || (decode(&what, code) && write_slot(code, &what));
    atomic_flag_clear(&busy);
    return done;
}

/* Answer CPUID or XGETBV, if the code is what stands for them. */
static int answer(greg_t *registers, const uint8_t *code) {
    if (code[0] != 0x0f || (code[1] != 0x0a && code[1] != 0x04)) return 0;
    if (code[1] == 0x0a) {
        static const int order[4] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX};
        uint32_t of[4];
        ask_cpuid((uint32_t)registers[REG_RAX], (uint32_t)registers[REG_RCX], of);
        for (int number = 0; number < 4; number++) registers[order[number]] = of[number];
    } else {
        uint64_t enabled = enabled_registers((uint32_t)registers[REG_RCX]);
        registers[REG_RAX] = (uint32_t)enabled;
        registers[REG_RDX] = (greg_t)(enabled >> 32);
    }
    registers[REG_RIP] += code[1] == 0x0a ? 2 : 3;
    answers++;
    return 1;
}

static void handle(int number, siginfo_t *info, void *pointer) {
    ucontext_t *context = pointer;
    uint8_t *code = (uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    (void)info;
    if (answer(context->uc_mcontext.gregs, code) || patch(code)) return;
    int halves = code[0] == 0x62 && ((code[1] & 7) == 5 || (code[1] & 7) == 6); /* EVEX, map 5 or 6 */
    if (halves) say("An instruction of AVX512-FP16 is not emulated.\n");
    next_sigaction(number, &previous, NULL); /* not ours: the instruction traps again, for whoever waits for it */
}

/* ---- preloading ---- */

/* Others, such as Python's faulthandler, may wait for what is left of SIGILL. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (!next_sigaction) next_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (number != SIGILL) return next_sigaction(number, action, old);
    if (old) *old = previous;
    if (action) previous = *action;
    return 0;
}

long syscall(long number, ...) {
    static long (*_Atomic next)(long, ...);
    long of[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) of[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_arch_prctl && answer_arch_prctl(of[0], (unsigned long)of[1])) return 0;
    if (!next) next = dlsym(RTLD_NEXT, "syscall");
    return next(number, of[0], of[1], of[2], of[3], of[4], of[5]);
}

static const char *replaced(const char *path) {
    const char *other = strcmp(path, "/proc/cpuinfo") ? NULL : getenv("OTHER_CPU_CPUINFO");
    return other ? other : path;
}

static int open_next(const char *name, const char *path, int flags, mode_t mode) {
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    return next(replaced(path), flags, mode);
}

#define OPEN(name)                                                                \
    int name(const char *path, int flags, ...) {                                  \
        va_list rest;                                                             \
        va_start(rest, flags);                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                             \
        return open_next(#name, path, flags, mode);                               \
    }
OPEN(open)
OPEN(open64)

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    next_sigaction = dlsym(RTLD_NEXT, "sigaction");
    sigemptyset(&action.sa_mask);
    next_sigaction(SIGILL, &action, &previous);
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("OTHER_CPU_REPORT");
    FILE *file = path && answers + computed ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%llu %llu %llu\n", (unsigned long long)computed, (unsigned long long)traps,
            (unsigned long long)answers);
    fclose(file);
}
