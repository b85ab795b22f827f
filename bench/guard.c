/*
 * guard.c - preloaded into a service under callgrind, so that its instructions can be counted from outside.
 *
 *     cc -O2 -shared -fPIC -o guard.so bench/guard.c -pthread
 *     GUARD_SOCKET=/path LD_PRELOAD=guard.so valgrind --tool=callgrind --instr-atstart=no python -m pkg ...
 *
 * A thread of its own connects to the socket and obeys one byte at a time, each answered by the same byte; at the end of them the process ends:
 *
 *     s   counting starts
 *     d   what has been counted since the last `d` is written to callgrind's next file, and the count starts anew
 *
 * From `s` on it also takes the clock out of what is counted.  Under callgrind everything takes some fifty times as long,
 * and on a busy machine any multiple of that; how much is done by the clock between two requests (ticks, checks, naps,
 * whether requests count as short) would be a matter of chance.  So the clock that pkg._core sees goes on by a microsecond
 * each time it is read, and waits with a timeout last SLOWNESS times as long, as everything else does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#define SECOND   1000000000LL
#define STEP     1000LL /* nanoseconds; a request reads the clock a few times, so it is a short one */
#define SLOWNESS 64

static uintptr_t core_begin, core_end; /* where pkg._core is mapped; 0 before `s` */
static void *kept;                     /* GUARD_SHIFT bytes, behind which the heap begins */
static _Atomic int64_t ticks[2];       /* CLOCK_REALTIME, CLOCK_MONOTONIC */

static int find_core(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    if (strstr(info->dlpi_name, "/pkg/_core.") == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            core_begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            core_end = core_begin + info->dlpi_phdr[i].p_memsz;
        }
    return 1;
}

static int64_t real_now(clockid_t clock)
{
    struct timespec t;
    syscall(SYS_clock_gettime, clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);

    if (caller < core_begin || caller >= core_end || clock > CLOCK_MONOTONIC)
        return (int)syscall(SYS_clock_gettime, clock, out);
    int64_t now = atomic_fetch_add(&ticks[clock], STEP);
    out->tv_sec = now / SECOND;
    out->tv_nsec = now % SECOND;
    return 0;
}

static struct timespec in_time(int64_t time)
{
    return (struct timespec){.tv_sec = time / SECOND, .tv_nsec = time % SECOND};
}

static struct timespec longer(const struct timespec *length)
{
    return in_time((length->tv_sec * SECOND + length->tv_nsec) * (core_end != 0 ? SLOWNESS : 1));
}

static struct timespec later(clockid_t clock, const struct timespec *until)
{
    int64_t end = until->tv_sec * SECOND + until->tv_nsec, now = core_end != 0 ? real_now(clock) : end;

    return in_time(end > now ? now + (end - now) * SLOWNESS : end);
}

int nanosleep(const struct timespec *length, struct timespec *left)
{
    struct timespec t = longer(length);

    return (int)syscall(SYS_nanosleep, &t, left);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left)
{
    struct timespec t = flags & TIMER_ABSTIME ? later(clock, wanted) : longer(wanted);

    return syscall(SYS_clock_nanosleep, clock, flags, &t, left) == -1 ? errno : 0;
}

/* What Python's locks and conditions wait with: sem_clockwait(), or sem_timedwait() where that was not known. */
int sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *until)
{
    static int (*wait)(sem_t *, clockid_t, const struct timespec *);
    struct timespec t = later(clock, until);

    if (wait == NULL)
        wait = (int (*)(sem_t *, clockid_t, const struct timespec *))dlsym(RTLD_NEXT, "sem_clockwait");
    return wait(sem, clock, &t);
}

int sem_timedwait(sem_t *sem, const struct timespec *until)
{
    return sem_clockwait(sem, CLOCK_REALTIME, until);
}

static void *obey(void *socket)
{
    int fd = (int)(intptr_t)socket;
    char order;

    while (read(fd, &order, 1) == 1) {
        if (order == 's') {
            for (clockid_t clock = 0; clock < 2; clock++)
                ticks[clock] = real_now(clock);
            dl_iterate_phdr(find_core, NULL);
            CALLGRIND_START_INSTRUMENTATION;
        } else {
            CALLGRIND_DUMP_STATS;
        }
        if (write(fd, core_end != 0 ? &order : "?", 1) != 1)
            break;
    }
    _exit(0); /* whoever counts is gone */
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("GUARD_SOCKET"), *shift = getenv("GUARD_SHIFT");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    sigset_t all, former;
    pthread_t thread;
    int fd;

    if (!RUNNING_ON_VALGRIND) /* but in valgrind's own launcher */
        return;
    unsetenv("LD_PRELOAD"); /* not for processes that this one starts */
    if (shift != NULL && (kept = malloc((size_t)atol(shift))) == NULL)
        return;
    if (path == NULL || strlen(path) >= sizeof address.sun_path)
        return;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == -1)
        return;
    sigfillset(&all); /* signals are for the service's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &former);
    pthread_create(&thread, NULL, obey, (void *)(intptr_t)fd);
    pthread_sigmask(SIG_SETMASK, &former, NULL);
}
