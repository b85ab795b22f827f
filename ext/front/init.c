/* init.c - see init.h. */
#define _GNU_SOURCE
#include "init.h"

#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAPS_SIZE (1 << 20) /* of /proc/self/maps; what a longer one lists beyond that is kept */
#define KEPT 16             /* ranges */
#define THREAD_BLOCK 65536  /* bytes before the thread's descriptor with the libraries' thread-local data, */
#define DESCRIPTOR 16384    /* and behind its start: 2.3 KB, and what it ends with */

/* Calls through pointers are bound when this library is loaded, not at the first call. */
static int (*const volatile wait_signal)(const sigset_t *restrict, siginfo_t *restrict) = sigwaitinfo;
static int (*const volatile wait_child)(idtype_t, id_t, siginfo_t *, int) = waitid;
static int (*const volatile send_signal)(pid_t, int) = kill;
static int (*const volatile give_back)(void *, size_t, int) = madvise;
static void (*const volatile leave)(int) = _exit;

/* --------------------------------------------------------------- memory to keep */

typedef struct {
    uintptr_t from, to;
} range;

typedef struct {
    uintptr_t page;
    size_t n;
    range kept[KEPT];
} memory;

static void keep(memory *m, uintptr_t from, uintptr_t to)
{
    if (m->n < KEPT)
        m->kept[m->n++] = (range){from & ~(m->page - 1), (to + m->page - 1) & ~(m->page - 1)};
}

/* The writable data of the libraries that are needed: this one, the C library, the dynamic linker. */
static int keep_library(struct dl_phdr_info *info, size_t size, void *arg)
{
    const uintptr_t needed[] = {(uintptr_t)&wait_signal, (uintptr_t)wait_signal, (uintptr_t)wait_child, (uintptr_t)send_signal,
                                (uintptr_t)give_back,    (uintptr_t)leave,       getauxval(AT_BASE)};
    bool is_needed = false;

    (void)size;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const ElfW(Phdr) *part = &info->dlpi_phdr[i];
            uintptr_t from = info->dlpi_addr + part->p_vaddr, to = from + part->p_memsz;
            if (part->p_type != PT_LOAD)
                continue;
            for (size_t k = 0; pass == 0 && k < sizeof needed / sizeof needed[0]; k++)
                is_needed = is_needed || (needed[k] >= from && needed[k] < to);
            if (pass == 1 && is_needed && part->p_flags & PF_W)
                keep(arg, from, to);
        }
    return 0;
}

static void give_back_range(const memory *m, uintptr_t from, uintptr_t to)
{
    for (size_t i = 0; i < m->n; i++)
        if (m->kept[i].from < to && m->kept[i].to > from) {
            if (from < m->kept[i].from)
                give_back_range(m, from, m->kept[i].from);
            if (m->kept[i].to < to)
                give_back_range(m, m->kept[i].to, to);
            return;
        }
    give_back((void *)from, to - from, MADV_DONTNEED);
}

/* A line of /proc/self/maps: `from-to rw-p offset device inode   name`.  Whether it is private, writable, and no stack. */
static bool is_memory(const char *line, range *r)
{
    uintptr_t ends[2] = {0, 0};
    const char *p = line;

    for (int i = 0; i < 2; i++, p++)
        for (; (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'f'); p++)
            ends[i] = ends[i] << 4 | (uintptr_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
    *r = (range){ends[0], ends[1]};
    const char *name = strchr(p, '[');
    return strncmp(p, "rw-p ", 5) == 0 &&
           (name == NULL || strchr(p, '/') != NULL || strcmp(name, "[heap]") == 0 || strncmp(name, "[anon", 5) == 0);
}

static void give_memory_back(void)
{
    memory m = {.page = (uintptr_t)sysconf(_SC_PAGESIZE)};
    uintptr_t self = (uintptr_t)pthread_self();
    char *text = mmap(NULL, MAPS_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    ssize_t got;

    if (text == MAP_FAILED || fd == -1) /* then nothing is unmapped */
        return;
    dl_iterate_phdr(keep_library, &m);
    keep(&m, self - THREAD_BLOCK, self + DESCRIPTOR);
    keep(&m, (uintptr_t)text, (uintptr_t)text + MAPS_SIZE);
    if (m.n == KEPT)
        return;
    while (len < MAPS_SIZE - 1 && (got = read(fd, text + len, MAPS_SIZE - 1 - len)) > 0)
        len += (size_t)got;
    close(fd);
    for (char *line = text, *next; (next = memchr(line, '\n', len - (size_t)(line - text))) != NULL; line = next + 1) {
        range r;
        *next = '\0';
        if (is_memory(line, &r))
            give_back_range(&m, r.from, r.to);
    }
    give_back(text, MAPS_SIZE, MADV_DONTNEED);
}

/* ----------------------------------------------------------------- the work */

/* Reaps processes that have ended.  Returns whether `child` is one of them, and its exit code. */
static bool reap(pid_t child, int *code)
{
    siginfo_t ended;

    for (;;) {
        ended.si_pid = 0;
        if (wait_child(P_ALL, 0, &ended, WEXITED | WNOHANG) == -1 || ended.si_pid == 0)
            return false;
        if (ended.si_pid == child) {
            *code = ended.si_code == CLD_EXITED ? ended.si_status : 128 + ended.si_status;
            return true;
        }
    }
}

_Noreturn void init_watch_over(pid_t child)
{
    sigset_t all;
    siginfo_t got;
    int code = 0;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    give_memory_back();
    while (!reap(child, &code)) {
        int number = wait_signal(&all, &got);
        /* The child has already got a signal from the terminal, as it is in the same process group. */
        if (number > 0 && number != SIGCHLD && got.si_code != SI_KERNEL)
            send_signal(child, number);
    }
    for (;;)
        leave(code);
}
