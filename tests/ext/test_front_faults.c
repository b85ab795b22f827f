/*
 * test_front_faults.c - the front when system calls and allocations fail: it stays up, forgets nobody, mixes nothing up, and
 * afterwards is what it was before.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_faults.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>

/* These take the C library's place for everybody in this program, but fail only in threads of the server, and only while a
 * test wants it.  What the kernel never does is not done here: EAGAIN where there is something to read. */
static atomic_int fault_rate; /* one of so many calls fails; 0: none */
static atomic_ulong faults;

static bool fails(const int *errors, size_t n)
{
    static _Thread_local uint64_t x;
    int rate = rig_is_server ? atomic_load_explicit(&fault_rate, memory_order_relaxed) : 0;

    if (rate == 0)
        return false;
    if (x == 0)
        x = (uint64_t)front_now() | 1;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    if ((x >> 20) % (unsigned)rate != 0)
        return false;
    atomic_fetch_add_explicit(&faults, 1, memory_order_relaxed);
    errno = errors[(x >> 40) % n];
    return true;
}
#define FAILS(...) fails((const int[]){__VA_ARGS__}, sizeof((int[]){__VA_ARGS__}) / sizeof(int))

ssize_t recv(int fd, void *buf, size_t len, int flags)
{
    if (FAILS(EINTR, ECONNRESET, ENOMEM, ETIMEDOUT, EIO))
        return -1;
    return syscall(SYS_recvfrom, fd, buf, len, flags, NULL, NULL);
}

ssize_t send(int fd, const void *buf, size_t len, int flags)
{
    if (FAILS(EINTR, EPIPE, ECONNRESET, ENOBUFS, ENOMEM))
        return -1;
    return syscall(SYS_sendto, fd, buf, len, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    if (FAILS(EINTR, EPIPE, ECONNRESET, ENOBUFS, ENOMEM))
        return -1;
    return syscall(SYS_sendmsg, fd, m, flags);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t len)
{
    if (FAILS(EINTR, EIO, ENOMEM, ECONNRESET))
        return -1;
    return syscall(SYS_sendfile, out, in, offset, len);
}

int accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    if (FAILS(EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED, EINTR, EPROTO, EPERM, EAGAIN, ENETDOWN, EHOSTUNREACH))
        return -1;
    return (int)syscall(SYS_accept4, fd, address, len, flags);
}

int epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event)
{
    if (op != EPOLL_CTL_DEL && FAILS(ENOMEM, ENOSPC))
        return -1;
    return (int)syscall(SYS_epoll_ctl, epoll_fd, op, fd, event);
}

int epoll_wait(int epoll_fd, struct epoll_event *events, int n, int timeout)
{
    if (FAILS(EINTR))
        return -1;
    return (int)syscall(SYS_epoll_pwait, epoll_fd, events, n, timeout, NULL, 0);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    if (FAILS(EINTR, ENOSPC, EIO, EDQUOT))
        return -1;
    return syscall(SYS_pwrite64, fd, buf, len, offset);
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
    if (FAILS(EINTR, ENOMEM))
        return -1;
    /* ppoll: newer architectures, such as aarch64, have no poll. */
    struct timespec t = {.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000L};
    return (int)syscall(SYS_ppoll, fds, n, timeout < 0 ? NULL : &t, NULL, 0);
}

/* A sanitizer has allocators of its own. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t size);
void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
    return FAILS(ENOMEM) ? NULL : __libc_malloc(size);
}

void *realloc(void *p, size_t size)
{
    return FAILS(ENOMEM) ? NULL : __libc_realloc(p, size);
}
#endif

static int open_descriptors(void)
{
    int n = 0;

    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) != -1;
    return n;
}

typedef struct {
    rig *r;
    pthread_t thread;
    unsigned seed;
    int64_t until;
    uint64_t answered, broken;
} sufferer;

static void *suffer(void *arg)
{
    static const char *const requests[] = {
        "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "GET /big/300000 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /stream/300000 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /file/3000000 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        NULL, /* a body that no buffer holds */
        NULL, /* the same, in chunks */
    };
    static char body[100000];
    sufferer *s = arg;
    client c = {.fd = -1};

    while (front_now() < s->until) {
        unsigned i = (unsigned)rand_r(&s->seed) % 10;
        if (c.fd == -1)
            dial(s->r, &c);
        if (requests[i] != NULL) {
            say(&c, requests[i]);
        } else if (i == 8) {
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
            say_bytes(&c, body, sizeof body);
        } else {
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n");
            say_bytes(&c, body, sizeof body);
            say(&c, "\r\n0\r\n\r\n");
        }
        reply a = hear(&c); /* or the end: but one of both, in time */
        if (a.status >= 200 && !a.cut) {
            REQUIRE(a.status == 200 || a.status == 400 || a.status == 503, "%s", a.head);
            REQUIRE(a.status != 200 || a.body_len < 300000 || a.intact);
            REQUIRE(a.status != 200 || i != 2 || strncmp(a.body, "POST /echo 5 ", 13) == 0, "%s", a.body);
            REQUIRE(a.status != 200 || i != 1 || strcmp(a.body, "ok") == 0, "%s", a.body);
            s->answered++;
        } else {
            s->broken++;
        }
        if (a.status <= 0 || a.cut || a.close)
            hang_up(&c);
    }
    if (c.fd != -1)
        hang_up(&c);
    return NULL;
}

static void faulty(int rate, int64_t duration)
{
    enum { N = 6 };
    rig r;
    sufferer s[N];
    client c;
    uint64_t answered = 0, broken = 0;
    int before = open_descriptors();

    rig_start(&r, NULL, 4);
    rig_publish(&r);
    rig_file(&r, 3000000);
    dial(&r, &c); /* the pages have arrived */
    say(&c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(&c);
    hang_up(&c);
    atomic_store(&fault_rate, rate);
    for (int64_t end = front_now() + PATIENCE; atomic_load(&faults) <= 20 || answered <= 20 || broken == 0;) {
        REQUIRE(front_now() < end, "%lu failures; %llu answers, %llu broken off", atomic_load(&faults),
                (unsigned long long)answered, (unsigned long long)broken);
        for (int i = 0; i < N; i++) {
            s[i] = (sufferer){.r = &r, .seed = (unsigned)front_now() + (unsigned)i, .until = front_now() + duration};
            REQUIRE(pthread_create(&s[i].thread, NULL, suffer, &s[i]) == 0);
        }
        for (int i = 0; i < N; i++) {
            pthread_join(s[i].thread, NULL);
            answered += s[i].answered;
            broken += s[i].broken;
        }
    }
    atomic_store(&fault_rate, 0);
    printf("     %lu failures; %llu answers, %llu broken off\n", atomic_load(&faults), (unsigned long long)answered,
           (unsigned long long)broken);
    dial(&r, &c); /* as if nothing had been */
    for (int i = 0; i < 20; i++) {
        say(&c, i % 2 ? "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n" : "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        int64_t begin = front_now();
        REQUIRE(hear(&c).status == 200);
        REQUIRE(front_now() - begin < 900 * MS || i == 0);
    }
    hang_up(&c);
    rig_stop(&r);
    REQUIRE(open_descriptors() == before, "%d descriptors before, %d after", before, open_descriptors());
}

static void calls_fail_often(void) { faulty(8, 3 * SEC); }
static void calls_fail_at_times(void) { faulty(200, 3 * SEC); }
static void calls_fail_long(void) { faulty(40, 40 * SEC); }

static const test tests[] = {
    {"calls_fail_often", calls_fail_often, ALONE},
    {"calls_fail_at_times", calls_fail_at_times, ALONE},
    {"calls_fail_long", calls_fail_long, SLOW | ALONE},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
