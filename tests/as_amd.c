// Makes a processor of Intel report itself as one of AMD without AVX-512 (Linux on x86-64; LD_PRELOAD).
//
//   cc -shared -fPIC -o as_amd.so as_amd.c && LD_PRELOAD=./as_amd.so lora-exp ...
//
// The kernel lets the instruction CPUID fault; the handler runs it and changes what tells the maker. Only what is
// asked before this library is loaded, by the dynamic linker, still sees Intel.
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012

static struct sigaction others;  // a handler that the program sets comes second

static long allow_cpuid(long on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void as_amd(unsigned leaf, unsigned part, unsigned r[4]) {  // r: EAX, EBX, ECX, EDX
    if (leaf == 0 || leaf == 0x80000000) {
        r[0] = leaf ? 0x80000023 : 0x10;
        memcpy(&r[1], "Auth", 4), memcpy(&r[3], "enti", 4), memcpy(&r[2], "cAMD", 4);
    } else if (leaf == 1 || leaf == 0x80000001) {
        r[0] = 0x00A00F11;  // Zen 3
    } else if (leaf == 7) {
        r[0] = 0;
        r[1] &= part ? 0 : ~0xDC230000u, r[2] &= part ? 0 : ~0x5842u, r[3] &= part ? 0 : ~0x03C0010Cu;  // AVX-512, AMX
    } else if (leaf == 0x8000001D) {  // L1 data, L1 instructions, L2, L3
        static const unsigned caches[4][4] = {{0x4121, 0x01C0003F, 63, 0}, {0x4122, 0x01C0003F, 63, 0},
                                              {0x4143, 0x01C0003F, 1023, 2}, {0x3C163, 0x03C0003F, 0x7FFF, 1}};
        memset(r, 0, 16);
        if (part < 4) memcpy(r, caches[part], 16);
    } else if (leaf == 2 || leaf == 4 || (leaf >= 0x0A && leaf <= 0x20 && leaf != 0x0B && leaf != 0x0D)) {
        memset(r, 0, 16);  // AMD has none of these
    }
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] == 0x0F && code[1] == 0xA2) {  // CPUID
        unsigned r[4], leaf = registers[REG_RAX], part = registers[REG_RCX];
        allow_cpuid(1);
        __cpuid_count(leaf, part, r[0], r[1], r[2], r[3]);
        allow_cpuid(0);
        as_amd(leaf, part, r);
        registers[REG_RAX] = r[0], registers[REG_RBX] = r[1], registers[REG_RCX] = r[2], registers[REG_RDX] = r[3];
        registers[REG_RIP] += 2;
    } else if (others.sa_flags & SA_SIGINFO) {
        others.sa_sigaction(number, info, context);
    } else {
        signal(SIGSEGV, SIG_DFL);
    }
}

static int set_action(int number, const struct sigaction *new, struct sigaction *old) {
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    return next(number, new, old);
}

int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    if (number != SIGSEGV) return set_action(number, new, old);
    if (old) *old = others;
    if (new) others = *new;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction own = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    set_action(SIGSEGV, &own, 0);
    if (allow_cpuid(0)) _exit(77);  // this processor or kernel can't
}
