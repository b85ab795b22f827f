/*
 * rig.h - a front with worker threads on a free port, and a client that says and hears exact bytes: what the tests of the
 * front share.  The application is a table of paths in rig_serve(); it is no example of how to write one.
 *
 * A failed REQUIRE ends the process: tests run in processes of their own.
 */
#ifndef RIG_H
#define RIG_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "front/exchange.h"
#include "front/front.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define SEC (1000 * MS)
/* How much slower everything may be: ThreadSanitizer's programs are, by ten times and more, and the machine is busy. */
#if defined(__SANITIZE_THREAD__)
#define SLOWNESS 6
#else
#define SLOWNESS 1
#endif
#define PATIENCE (20 * SLOWNESS * SEC) /* for what must come, on a machine that does other things as well */

static const char *rig_test = "?";

#define REQUIRE(condition, ...) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "FAIL %s, %s:%d: %s\n     ", rig_test, __FILE__, __LINE__, #condition); \
            fprintf(stderr, " " __VA_ARGS__); \
            fputc('\n', stderr); \
            _exit(1); \
        } \
    } while (0)

#define EVENTUALLY(condition, ...) \
    do { \
        int64_t until_ = front_now() + PATIENCE; \
        while (!(condition)) { \
            REQUIRE(front_now() < until_, "still not true: " #condition "  " __VA_ARGS__); \
            usleep(1000); \
        } \
    } while (0)

/* ------------------------------------------------------------------------------------------------ the server */

#define RIG_WORKERS 16

typedef struct {
    front *f;
    int listen_fd;
    atomic_int file;
    struct sockaddr_in address;
    front_limits limits;
    pthread_t loop, workers[RIG_WORKERS];
    int n_workers;
    int loop_result;
    atomic_bool loop_ended;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool held;          /* requests of /hold wait */
    atomic_int holding; /* how many do */
    atomic_int handled; /* requests that reached a worker */
    atomic_int gone;    /* whose client was found gone by front_is_gone */
    atomic_int last_read, last_send; /* result of the last front_read or front_send that was no success */
} rig;

static inline front_limits rig_limits(void)
{
    return (front_limits){
        .max_header_size = 32768,
        .max_target_size = 8192,
        .max_headers = 100,
        .max_connections = 10000,
        .max_queue = 1024,
        .max_body_size = 8 << 20,
        .body_buffer_size = 64 << 10,
        .body_spool = "/tmp",
        .body_spool_size = 64 << 20,
        .response_buffer_size = 1 << 20,
        .buffer_size = 32 << 20,
        .min_body_rate = 500,
        .header_timeout = 10 * SLOWNESS * SEC,
        .body_timeout = 30 * SLOWNESS * SEC,
        .idle_timeout = 75 * SEC,
        .write_timeout = 30 * SLOWNESS * SEC,
        .queue_timeout = 10 * SLOWNESS * SEC,
        .linger_timeout = 2 * SEC,
    };
}

static inline uint64_t rig_hash(uint64_t h, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)bytes[i]) * 1099511628211u;
    return h;
}
#define RIG_HASH 14695981039346656037u

/* The byte at a place of every large body. */
static inline char rig_byte(uint64_t at)
{
    return (char)('a' + (at + at / 26 + at / 1000) % 26);
}

static inline bool rig_send(rig *r, front_conn *c, const char *head, size_t head_len, const char *body, size_t body_len, size_t keep)
{
    struct iovec iov[2] = {{.iov_base = (char *)(uintptr_t)head, .iov_len = head_len},
                           {.iov_base = (char *)(uintptr_t)body, .iov_len = body_len}};
    int rv = front_send(r->f, c, iov, body_len > 0 ? 2 : 1, keep, false);

    if (rv == FRONT_AGAIN)
        rv = front_send(r->f, c, iov, body_len > 0 ? 2 : 1, keep, true);
    if (rv != FRONT_OK)
        atomic_store(&r->last_send, rv);
    return rv == FRONT_OK;
}

/* Reads the whole body; its length and hash, or a negative result. */
static inline ssize_t rig_body(rig *r, front_conn *c, uint64_t *hash, size_t step)
{
    static _Thread_local char buf[65536];
    ssize_t total = 0, n;

    *hash = RIG_HASH;
    for (;;) {
        n = front_read(r->f, c, buf, step, false);
        if (n == -EAGAIN)
            n = front_read(r->f, c, buf, step, true);
        if (n <= 0)
            break;
        *hash = rig_hash(*hash, buf, (size_t)n);
        total += n;
    }
    if (n < 0)
        atomic_store(&r->last_read, (int)n);
    return n < 0 ? n : total;
}

static inline size_t rig_number(const char *target)
{
    const char *slash = strchr(target + 1, '/');
    return slash != NULL ? strtoul(slash + 1, NULL, 10) : 0;
}

/* Until rig_hold(r, false), or until the client is found gone if `looks`. */
static inline void rig_wait(rig *r, front_conn *c, bool looks)
{
    pthread_mutex_lock(&r->mutex);
    atomic_fetch_add(&r->holding, 1);
    while (r->held && !(looks && front_is_gone(c))) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 5 * MS;
        t.tv_sec += t.tv_nsec / SEC;
        t.tv_nsec %= SEC;
        pthread_cond_timedwait(&r->cond, &r->mutex, &t);
    }
    atomic_fetch_sub(&r->holding, 1);
    pthread_mutex_unlock(&r->mutex);
}

static inline void rig_serve(rig *r, front_request *q)
{
    /* front_read() may move the head: what is needed of it is copied. */
    char target[1024], method[16], head[512], body[1536];
    front_conn *c = q->conn;
    const http1_head *h = q->head;
    bool keep_alive = h->keep_alive, is_head = h->method_id == HTTP1_HEAD, ok = true, abort_it = false;
    unsigned status = 200;
    size_t big = 0, len = 0;
    uint64_t hash = RIG_HASH;

    atomic_fetch_add(&r->handled, 1);
    snprintf(target, sizeof target, "%.*s", h->target.len < 1000 ? (int)h->target.len : 1000, q->data + h->target.pos);
    snprintf(method, sizeof method, "%.*s", (int)h->method.len, q->data + h->method.pos);
#define IS(prefix) (strncmp(target, prefix, sizeof prefix - 1) == 0)
    if (IS("/hold")) {
        rig_wait(r, c, true);
        if (front_is_gone(c))
            atomic_fetch_add(&r->gone, 1);
    } else if (IS("/late")) {
        usleep((useconds_t)rig_number(target) * 1000);
    }
    if (!IS("/ignore")) {
        ssize_t n = rig_body(r, c, &hash, IS("/small") ? 1 : 65536);
        if (n < 0) {
            keep_alive = false;
            status = n == FRONT_E_LATE ? 408 : n == FRONT_E_TOO_LARGE ? 413 : 400;
        }
        len = (size_t)snprintf(body, sizeof body, "%s %s %zd %016llx\n", method, target, n, (unsigned long long)hash);
    } else {
        len = (size_t)snprintf(body, sizeof body, "ignored\n");
    }
    if (IS("/big") || IS("/stream") || IS("/file") || IS("/cut"))
        big = rig_number(target);
    if (IS("/close"))
        keep_alive = false;
    keep_alive = keep_alive && front_begin_response(r->f, c) && front_stage_now(r->f) == FRONT_SERVING;
    int head_len = snprintf(head, sizeof head, "HTTP/1.1 %u X\r\nContent-Length: %zu\r\n%s\r\n", status, big != 0 ? big : len,
                            keep_alive ? "" : "Connection: close\r\n");
    if (IS("/begun")) {
        ok = rig_send(r, c, head, (size_t)head_len, "", 0, 0);
        rig_wait(r, c, false);
        ok = ok && rig_send(r, c, body, len, "", 0, 0);
    } else if (big == 0 || is_head) {
        ok = rig_send(r, c, head, (size_t)head_len, body, is_head ? 0 : len, SIZE_MAX);
    } else if (IS("/big") || IS("/cut")) {
        char *bytes = malloc(big);
        for (size_t i = 0; bytes != NULL && i < big; i++)
            bytes[i] = rig_byte(i);
        ok = bytes != NULL && rig_send(r, c, head, (size_t)head_len, bytes, IS("/cut") ? big / 2 : big, IS("/cut") ? 0 : SIZE_MAX);
        abort_it = IS("/cut");
        free(bytes);
    } else if (IS("/stream")) {
        char bytes[16384];
        ok = rig_send(r, c, head, (size_t)head_len, "", 0, 0);
        for (size_t at = 0; ok && at < big; at += sizeof bytes) {
            size_t part = big - at < sizeof bytes ? big - at : sizeof bytes;
            for (size_t i = 0; i < part; i++)
                bytes[i] = rig_byte(at + i);
            ok = rig_send(r, c, bytes, part, "", 0, 0);
        }
    } else {
        ok = rig_send(r, c, head, (size_t)head_len, "", 0, 0);
        if (ok) {
            int rv = front_send_file(r->f, c, r->file, 0, big, true);
            ok = rv == FRONT_OK;
            if (!ok)
                atomic_store(&r->last_send, rv);
        }
    }
#undef IS
    front_finish(r->f, c, keep_alive, !ok || abort_it, ok ? status : 0);
}

static _Thread_local bool rig_is_server; /* this thread is the front's, not a client's */

static void *rig_work(void *arg)
{
    rig *r = arg;
    rig_is_server = true;
    front_request q;
    int64_t came = 0;
    int rv;

    do { /* as in core.pyx, without an interpreter */
        rv = front_come(r->f, &q, 0, &came);
        if (rv == FRONT_TIMEOUT)
            rv = front_come(r->f, &q, -1, &came);
        if (rv == FRONT_OK)
            rig_serve(r, &q);
    } while (rv == FRONT_OK || rv == FRONT_TIMEOUT);
    REQUIRE(rv == FRONT_CLOSED, "front_come: %d", rv);
    return NULL;
}

static void *rig_loop(void *arg)
{
    rig *r = arg;

    rig_is_server = true;
    r->loop_result = front_run(r->f);
    atomic_store(&r->loop_ended, true);
    return NULL;
}

static inline void rig_listen(rig *r)
{
    socklen_t len = sizeof r->address;

    r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    r->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    REQUIRE(r->listen_fd != -1);
    setsockopt(r->listen_fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    REQUIRE(bind(r->listen_fd, (struct sockaddr *)&r->address, sizeof r->address) == 0);
    REQUIRE(listen(r->listen_fd, 4096) == 0);
    REQUIRE(getsockname(r->listen_fd, (struct sockaddr *)&r->address, &len) == 0);
}

/* `limits` NULL: the usual ones.  `more`: listeners after the first, which is the rig's own. */
static inline void rig_start_on(rig *r, const front_limits *limits, int n_workers, const front_listen *more, unsigned n_more)
{
    front_listen on[FRONT_MAX_LISTENERS];

    memset(r, 0, sizeof *r);
    signal(SIGPIPE, SIG_IGN); /* sendfile() has no MSG_NOSIGNAL */
    r->limits = limits != NULL ? *limits : rig_limits();
    r->file = -1;
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->cond, NULL);
    rig_listen(r);
    on[0] = (front_listen){.fd = r->listen_fd, .pages = true, .requests = true};
    for (unsigned i = 0; i < n_more; i++)
        on[i + 1] = more[i];
    REQUIRE(front_open(&r->f, on, n_more + 1, &r->limits) == FRONT_OK);
    r->n_workers = n_workers;
    REQUIRE(pthread_create(&r->loop, NULL, rig_loop, r) == 0);
    for (int i = 0; i < n_workers; i++)
        REQUIRE(pthread_create(&r->workers[i], NULL, rig_work, r) == 0);
}

static inline void rig_start(rig *r, const front_limits *limits, int n_workers)
{
    rig_start_on(r, limits, n_workers, NULL, 0);
}

/* Waits for the loop and the workers to return, and frees everything. */
static inline void rig_join(rig *r)
{
    pthread_join(r->loop, NULL);
    REQUIRE(r->loop_result == FRONT_CLOSED, "front_run: %d", r->loop_result);
    for (int i = 0; i < r->n_workers; i++)
        pthread_join(r->workers[i], NULL);
    front_close(r->f);
    close(r->listen_fd);
    if (r->file != -1)
        close(r->file);
    pthread_mutex_destroy(&r->mutex);
    pthread_cond_destroy(&r->cond);
}

static inline front_counters rig_count(rig *r)
{
    front_counters n;
    front_count(r->f, &n);
    return n;
}

/* All that clients have caused is gone once all but `connections` are gone. */
static inline void rig_settle_to(rig *r, uint64_t connections)
{
    front_counters n;

    EVENTUALLY((n = rig_count(r), n.connections == connections && n.in_flight == 0 && n.queued == 0 && n.buffered == 0 &&
                                      n.accepted == n.closed + n.connections),
               "connections %llu, in flight %llu, queued %llu, buffered %llu", (unsigned long long)n.connections,
               (unsigned long long)n.in_flight, (unsigned long long)n.queued, (unsigned long long)n.buffered);
}

static inline void rig_settle(rig *r)
{
    rig_settle_to(r, 0);
}

static inline void rig_stop(rig *r)
{
    rig_settle(r);
    front_advance(r->f, FRONT_STOPPED);
    rig_join(r);
}

static inline void rig_hold(rig *r, bool on)
{
    pthread_mutex_lock(&r->mutex);
    r->held = on;
    pthread_cond_broadcast(&r->cond);
    pthread_mutex_unlock(&r->mutex);
}

/* Publishes /healthz (slot 0, no draining answer), /readyz (slot 1) and /bare (slot 2, text alone), valid for an hour. */
static inline void rig_publish(rig *r)
{
    static const char *const sets[] = {"ok", "stale", "shutdown"};
    static const char *const formats[] = {"", " verbose", " json"};
    static const char *const paths[] = {"/healthz", "/readyz", "/bare"};
    pages *t = pages_new(3);

    REQUIRE(t != NULL);
    for (unsigned i = 0; i < 3; i++) {
        int n = pages_add(t, paths[i], strlen(paths[i]), i);
        REQUIRE(n >= 0);
        for (unsigned s = 0; s < (i == 1 ? 3u : 2u); s++)
            for (unsigned k = 0; k < (i == 2 ? 1u : 3u); k++) {
                char headers[64], body[64];
                int len = snprintf(body, sizeof body, "%s%s", sets[s], formats[k]);
                snprintf(headers, sizeof headers, "Content-Length: %d\r\n", len);
                REQUIRE(pages_set_answer(t, n, (enum pages_set)s, (enum pages_format)k, s == 0 ? 200 : 503, headers,
                                         strlen(headers), body, (size_t)len) == 0);
            }
    }
    front_publish(r->f, t);
    for (unsigned i = 0; i < 3; i++)
        front_renew(r->f, i, 3600 * SEC);
}

/* An unnamed file of `size` bytes for /file. */
static inline void rig_file(rig *r, size_t size)
{
    char block[65536];

    r->file = memfd_create("body", MFD_CLOEXEC);
    REQUIRE(r->file != -1);
    for (size_t at = 0; at < size;) {
        size_t n = size - at < sizeof block ? size - at : sizeof block;
        for (size_t i = 0; i < n; i++)
            block[i] = rig_byte(at + i);
        REQUIRE(write(r->file, block, n) == (ssize_t)n);
        at += n;
    }
}

/* ------------------------------------------------------------------------------------------------ the client */

typedef struct {
    int fd;
    char buf[65536]; /* received, not yet taken */
    size_t len;
} client;

typedef struct {
    int status; /* 0: the connection was closed, -1: it was reset, before a response began */
    char head[4096];
    char body[4096]; /* its first bytes */
    size_t body_len;
    bool close, cut; /* said Connection: close; ended before it was complete */
    bool intact;     /* a large body of rig_byte()s is what it should be */
} reply;

static inline int dial_address(const struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    REQUIRE(fd != -1, "%s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return fd;
}

static inline void dial(rig *r, client *c)
{
    c->len = 0;
    c->fd = dial_address(&r->address);
    REQUIRE(c->fd >= 0, "connect: %s", strerror(-c->fd));
}

static inline void say_bytes(client *c, const char *bytes, size_t len)
{
    while (len > 0) {
        struct pollfd p = {.fd = c->fd, .events = POLLOUT};
        REQUIRE(poll(&p, 1, (int)(PATIENCE / MS)) == 1, "the server does not read");
        ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n == -1 && errno == EAGAIN)
            continue;
        if (n == -1)
            return; /* closed by the server: hear() will say so */
        bytes += n;
        len -= (size_t)n;
    }
}

static inline void say(client *c, const char *text)
{
    say_bytes(c, text, strlen(text));
}

__attribute__((format(printf, 2, 3))) static inline void sayf(client *c, const char *format, ...)
{
    char text[8192];
    va_list arguments;

    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    REQUIRE(n >= 0 && (size_t)n < sizeof text);
    say_bytes(c, text, (size_t)n);
}

/* Receives what there is, waiting at most until `deadline`: bytes; 0 at the end, -1 after a reset, -2 too late. */
static inline ssize_t receive(client *c, int64_t deadline)
{
    for (;;) {
        int64_t left = deadline - front_now();
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        if (poll(&p, 1, left > 0 ? (int)(left / MS) + 1 : 0) == 0) {
            if (left <= 0)
                return -2;
            continue;
        }
        ssize_t n = recv(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len, MSG_DONTWAIT);
        if (n >= 0) {
            c->len += (size_t)n;
            return n;
        }
        if (errno != EAGAIN && errno != EINTR)
            return -1;
    }
}

static inline void take(client *c, size_t n)
{
    c->len -= n;
    memmove(c->buf, c->buf + n, c->len);
}

/* The next response; false if it does not begin before the deadline. */
static inline bool hear_by(client *c, reply *a, bool is_head, int64_t deadline)
{
    char *end;

    memset(a, 0, sizeof *a);
    while (c->buf[c->len] = '\0', (end = strstr(c->buf, "\r\n\r\n")) == NULL) {
        ssize_t n = receive(c, deadline);
        if (n == -2)
            return false;
        if (n <= 0) {
            a->status = (int)n;
            a->cut = c->len > 0;
            return true;
        }
    }
    size_t head_len = (size_t)(end - c->buf) + 4;
    REQUIRE(head_len < sizeof a->head, "%s", c->buf);
    memcpy(a->head, c->buf, head_len);
    take(c, head_len);
    REQUIRE(sscanf(a->head, "HTTP/1.1 %d ", &a->status) == 1, "no response: %s", a->head);
    a->close = strcasestr(a->head, "\r\nConnection: close\r\n") != NULL;
    if (a->status == 100 || is_head)
        return true;
    char *length = strcasestr(a->head, "\r\nContent-Length: ");
    REQUIRE(length != NULL, "no length: %s", a->head);
    size_t total = strtoul(length + 18, NULL, 10);
    a->intact = true;
    while (a->body_len < total) {
        if (c->len == 0 && receive(c, front_now() + PATIENCE) <= 0) {
            a->cut = true;
            return true;
        }
        size_t n = c->len < total - a->body_len ? c->len : total - a->body_len;
        for (size_t i = 0; i < n; i++) {
            if (a->body_len + i < sizeof a->body - 1)
                a->body[a->body_len + i] = c->buf[i];
            a->intact = a->intact && c->buf[i] == rig_byte(a->body_len + i);
        }
        a->body_len += n;
        take(c, n);
    }
    return true;
}

static inline reply hear_any(client *c, bool is_head)
{
    reply a;
    REQUIRE(hear_by(c, &a, is_head, front_now() + PATIENCE), "no response");
    return a;
}

static inline reply hear(client *c)
{
    return hear_any(c, false);
}

/* The connection ends, with FIN and nothing more. */
static inline void hear_end(client *c)
{
    ssize_t n = c->len > 0 ? 1 : receive(c, front_now() + PATIENCE);
    c->buf[c->len] = '\0';
    REQUIRE(n == 0, "instead of the end: %zd %s", n, c->buf);
}

static inline void hang_up(client *c)
{
    close(c->fd);
    c->fd = -1;
}

static inline void reset(client *c)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    hang_up(c);
}

/* The server has received all that was said before. */
static inline void wait_read(rig *r, uint64_t bytes_in)
{
    EVENTUALLY(rig_count(r).bytes_in >= bytes_in);
}

/* Resident memory of this process, KiB. */
static inline long resident(void)
{
    char text[4096], *line;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);

    close(fd);
    REQUIRE(n > 0);
    text[n] = '\0';
    line = strstr(text, "VmRSS:");
    REQUIRE(line != NULL);
    return strtol(line + 6, NULL, 10);
}

static inline double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ------------------------------------------------------------------------------------------------ the runner */

enum { ALONE = 1, SLOW = 2 }; /* measures time or CPU; left out unless --slow is given */

typedef struct {
    const char *name;
    void (*run)(void);
    int flags;
} test;

/* Each test in a process of its own, some at a time.  [--slow] [NAME ...] */
static inline int rig_main(const test *tests, int argc, char **argv)
{
    struct {
        pid_t pid;
        const char *name;
        int64_t begun;
    } running[4] = {0};
    int failed = 0, run = 0, n_running = 0;
    bool slow = argc > 1 && strcmp(argv[1], "--slow") == 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int pass = 0; pass < 2; pass++) { /* what measures comes last, and alone */
        const test *t = tests;
        while (t->name != NULL || n_running > 0) {
            bool start = t->name != NULL && !(t->flags & ALONE) == !pass && (argc > 1 && !slow ? false : slow == !!(t->flags & SLOW));
            for (int i = slow ? 2 : 1; t->name != NULL && i < argc; i++)
                start = start || (strcmp(argv[i], t->name) == 0 && !(t->flags & ALONE) == !pass);
            if (t->name != NULL && !start) {
                t++;
                continue;
            }
            if (t->name != NULL && n_running < (pass == 0 ? 4 : 1)) {
                int i = 0;
                while (running[i].pid != 0)
                    i++;
                running[i].name = t->name;
                running[i].begun = front_now();
                running[i].pid = fork();
                REQUIRE(running[i].pid != -1);
                if (running[i].pid == 0) {
                    rig_test = t->name;
                    signal(SIGALRM, SIG_DFL);
                    alarm((t->flags & SLOW ? 280 : 100) * SLOWNESS);
                    t->run();
                    exit(0); /* the leak checker looks now */
                }
                n_running++;
                run++;
                t++;
                continue;
            }
            int status;
            pid_t pid = wait(&status);
            for (int i = 0; i < 4; i++)
                if (running[i].pid == pid) {
                    running[i].pid = 0;
                    n_running--;
                    failed += status != 0;
                    printf("%s %-32s %6.2f s%s\n", status == 0 ? "ok  " : "FAIL", running[i].name,
                           (double)(front_now() - running[i].begun) / 1e9,
                           WIFSIGNALED(status) ? WTERMSIG(status) == SIGALRM ? "  (too long)" : "  (a signal)" : "");
                }
        }
    }
    printf("%d of %d failed\n", failed, run);
    return failed != 0 || run == 0;
}

#endif
