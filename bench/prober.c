/*
 * prober.c - clients that wrk does not have: probes on a fixed schedule, and many connections that do almost nothing.
 *
 *     prober probe PORT PATH INTERVAL_US SECONDS TIMEOUT
 *         Sends one GET on a new connection every INTERVAL_US, even if earlier ones have got no response, as probers
 *         do.  Latency is measured from the scheduled time, so that a stall is not hidden by sending fewer probes
 *         (coordinated omission).  Prints one line for each probe: scheduled time (us since the start), latency (us),
 *         status; status 0: connection refused or cut, -1: no response within TIMEOUT seconds.
 *
 *     prober slow PORT COUNT OPENING SECONDS
 *         Keeps COUNT connections open, each of which sends one byte of a request head per second and never completes it.
 *         Connections that the server closes are opened again.  Prints "ready N" when all are open, or after OPENING
 *         seconds, and after SECONDS more the total number of opened connections.
 *
 *     prober idle PORT PATH COUNT OPENING SECONDS
 *         Opens COUNT connections, completes one GET on each, and keeps them open.  Prints "ready N" as above.
 *
 * It is not a load generator: it measures latency and holds connections, in one thread, a few thousand events a second.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000LL /* times are microseconds */

typedef struct {
    int fd;
    int status; /* of a probe: 0 so far */
    int64_t due, latency;
    size_t sent; /* slow: bytes of the head */
    char head[16];
    size_t got;
} client;

static int epoll_fd;
static struct sockaddr_in address;
static char request[512];
static size_t request_len;

static int64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec / 1000;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *allocate(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (p == NULL)
        die("calloc");
    return p;
}

static void set_request(const char *path, const char *more)
{
    request_len = (size_t)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", path, more);
}

/* Starts a connection and watches it; -1 if that fails. */
static int start_connection(uint32_t id, uint32_t events)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event ev = {.events = events, .data.u32 = id};

    if (fd == -1)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == -1 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) == -1)
        die("epoll_ctl");
    return fd;
}

/* ---------------------------------------------------------------------- probe */

static void probe_done(client *c, int status, int64_t now)
{
    close(c->fd);
    c->fd = -1;
    c->status = status;
    c->latency = now - c->due;
}

static void probe_event(client *c, uint32_t events)
{
    char rest[4096];
    ssize_t n;

    if ((events & EPOLLOUT) && c->sent == 0) {
        n = send(c->fd, request, request_len, MSG_NOSIGNAL);
        if (n != (ssize_t)request_len) {
            probe_done(c, 0, now_us());
            return;
        }
        c->sent = request_len;
    }
    while ((n = recv(c->fd, rest, sizeof rest, 0)) > 0) {
        size_t room = sizeof c->head - 1 - c->got, part = (size_t)n < room ? (size_t)n : room;
        memcpy(c->head + c->got, rest, part);
        c->got += part;
        /* "HTTP/1.1 200": such a short response arrives in one piece, so its status is enough. */
        if (c->got >= 12) {
            probe_done(c, atoi(c->head + 9), now_us());
            return;
        }
    }
    if (n == 0 || (errno != EAGAIN && errno != ENOTCONN))
        probe_done(c, 0, now_us());
}

static int probe(const char *path, int64_t interval, int64_t seconds, int64_t timeout)
{
    size_t count = (size_t)(seconds * SECOND / interval), started = 0, oldest = 0;
    client *clients = allocate(count, sizeof *clients);
    struct epoll_event events[256];
    int64_t begin = now_us() + 1000;

    set_request(path, "User-Agent: kube-probe/1.29\r\nAccept: */*\r\nConnection: close\r\n");
    timeout *= SECOND;
    while (oldest < count) {
        int64_t now = now_us();
        while (started < count && begin + (int64_t)started * interval <= now) {
            client *c = &clients[started];
            c->due = begin + (int64_t)started * interval;
            c->fd = start_connection((uint32_t)started, EPOLLIN | EPOLLOUT | EPOLLET);
            if (c->fd == -1)
                c->latency = now - c->due;
            started++;
        }
        for (; oldest < started && (clients[oldest].fd == -1 || now - clients[oldest].due > timeout); oldest++)
            if (clients[oldest].fd != -1)
                probe_done(&clients[oldest], -1, clients[oldest].due + timeout);
        int64_t next = started < count ? begin + (int64_t)started * interval : now + SECOND / 20;
        int64_t wait = next - now_us();
        struct timespec until = {.tv_sec = 0, .tv_nsec = wait > 0 ? (wait < SECOND ? wait : SECOND - 1) * 1000 : 0};
        int n = epoll_pwait2(epoll_fd, events, 256, &until, NULL);
        for (int i = 0; i < n; i++) {
            client *c = &clients[events[i].data.u32];
            if (c->fd != -1)
                probe_event(c, events[i].events);
        }
    }
    for (size_t i = 0; i < count; i++)
        printf("%lld %lld %d\n", (long long)(clients[i].due - begin), (long long)clients[i].latency, clients[i].status);
    return 0;
}

/* ---------------------------------------------------------------- slow and idle */

/* Opens at most this many at once: a burst beyond the server's backlog would wait a second for a retransmitted SYN. */
#define BURST 100

static int crowd(bool slow, size_t count, int64_t patience, int64_t seconds)
{
    client *clients = allocate(count, sizeof *clients);
    uint32_t *closed = allocate(count, sizeof *closed);
    size_t n_closed = count, n_connecting = 0, n_settled = 0, opened = 0;
    struct epoll_event events[256];
    int64_t end = 0, opening = now_us() + patience * SECOND;
    bool ready = false;
    size_t cursor = 0;
    int64_t last = now_us();

    for (size_t i = 0; i < count; i++) {
        clients[i].fd = -1;
        closed[i] = (uint32_t)(count - 1 - i);
    }
    for (;;) {
        int64_t now = now_us();
        if (!ready && (n_settled == count || now > opening)) {
            printf("ready %zu\n", n_settled);
            fflush(stdout);
            ready = true;
            end = now + seconds * SECOND;
        }
        if (ready && now > end)
            break;
        while (n_closed > 0 && n_connecting < BURST) {
            uint32_t i = closed[n_closed - 1];
            int fd = start_connection(i, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP);
            if (fd == -1)
                break;
            clients[i] = (client){.fd = fd, .status = -1};
            n_closed--;
            n_connecting++;
            opened++;
        }
        int n = epoll_wait(epoll_fd, events, 256, 10);
        for (int k = 0; k < n; k++) {
            uint32_t i = events[k].data.u32;
            client *c = &clients[i];
            char buf[4096];
            bool gone = (events[k].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) != 0;
            ssize_t got = 0;
            if (c->fd == -1)
                continue;
            if (!gone && (events[k].events & EPOLLOUT) && c->sent == 0) {
                size_t first = slow ? 24 : request_len;
                c->sent = send(c->fd, request, first, MSG_NOSIGNAL) == (ssize_t)first ? first : 0;
                if (slow && c->status == -1) {
                    c->status = 0;
                    n_connecting--;
                    n_settled++;
                }
            }
            while ((got = recv(c->fd, buf, sizeof buf, 0)) > 0)
                if (!slow && c->status == -1) {
                    c->status = 0;
                    n_connecting--;
                    n_settled++;
                }
            if (gone || got == 0 || (errno != EAGAIN && errno != ENOTCONN)) {
                close(c->fd);
                c->fd = -1;
                if (c->status == -1)
                    n_connecting--;
                else
                    n_settled--;
                closed[n_closed++] = i;
            }
        }
        /* One byte per second on each, spread evenly. */
        now = now_us();
        for (size_t due = slow ? (size_t)((now - last) * (int64_t)count / SECOND) : 0; due > 0; due--) {
            client *c = &clients[cursor];
            cursor = (cursor + 1) % count;
            if (c->fd != -1 && c->status == 0)
                (void)!send(c->fd, "x", 1, MSG_NOSIGNAL);
            last += SECOND / (int64_t)count;
        }
    }
    printf("opened %zu\n", opened);
    return 0;
}

int main(int argc, char **argv)
{
    struct rlimit files;

    prctl(PR_SET_TIMERSLACK, 1000UL);
    /* It shares a core with wrk, and waiting for wrk is not the server's latency.  Without the permission it waits. */
    (void)sched_setscheduler(0, SCHED_RR, &(struct sched_param){.sched_priority = 1});
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (argc > 2)
        address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                       .sin_port = htons((uint16_t)atoi(argv[2]))};
    if (argc == 7 && strcmp(argv[1], "probe") == 0)
        return probe(argv[3], atoll(argv[4]), atoll(argv[5]), atoll(argv[6]));
    if (argc == 6 && strcmp(argv[1], "slow") == 0) {
        set_request("/", "X-Slow: x");
        return crowd(true, (size_t)atoll(argv[3]), atoll(argv[4]), atoll(argv[5]));
    }
    if (argc == 7 && strcmp(argv[1], "idle") == 0) {
        set_request(argv[3], "");
        return crowd(false, (size_t)atoll(argv[4]), atoll(argv[5]), atoll(argv[6]));
    }
    fprintf(stderr, "usage: prober probe PORT PATH INTERVAL_US SECONDS TIMEOUT\n"
                    "       prober slow PORT COUNT OPENING SECONDS\n"
                    "       prober idle PORT PATH COUNT OPENING SECONDS\n");
    return 2;
}
