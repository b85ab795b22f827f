/*
 * fuzz_front.c - the front under libFuzzer: real connections, a real loop, a real worker.  The input says what up to three
 * clients send, where it is cut, when they pause, half-close, reset, or read, and what the worker does.  Whatever it is:
 *
 *   - a refused request is the last of its connection: nothing after it reaches a worker or is answered;
 *   - each connection's responses come in the order of its requests, whole, one for each;
 *   - a worker is handed exactly the requests that a parser finds in the same bytes, in one piece;
 *   - nothing can be written behind a response whose end is with the loop;
 *   - a drain that begins at any step loses none of them, and ends;
 *   - afterwards no connection, buffer or request is left, and each has been counted once.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_front.c ext/{http,front}/?*.c -pthread
 *     ./a.out tests/fuzz/corpus/front
 *
 * An input is a list of steps, a byte each that says what (see run()), some with bytes after them.  It is mutated by steps and
 * by whole requests (steps.h).
 */
#define _GNU_SOURCE
#include "front/exchange.h"
#include "front/front.h"
#include "steps.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

#define SECOND 1000000000LL
#define CLIENTS 3
#define SENT_MAX 65536
#define HEARD_MAX (64 << 20)
#ifndef SPOOL_SIZE /* fuzz_eventloop.c has its own */
#define SPOOL_SIZE 3000 /* not for each body: what finds no room is read as it arrives */
#endif
#define PADDING 20000 /* bytes of a large response, which the buffer of the server's sockets does not hold */

static front *the_front;
static int listening;
static pthread_t threads[3];
static unsigned n_threads;
static enum front_stage stage;  /* that the input has asked for */
static int64_t closing;         /* since when; 0: it is not */
static struct sockaddr_in address;
static const http1_limits HEADS = {.max_head_size = 4096, .max_target_size = 200, .max_headers = 8};
static const front_limits LIMITS = {
    .max_header_size = 4096, /* these three as in HEADS */
    .max_target_size = 200,
    .max_headers = 8,
    .max_connections = 100,
    .max_queue = 100,
    .max_body_size = 5000,
    .body_buffer_size = 1000,
    .body_spool = "/tmp",
    .body_spool_size = SPOOL_SIZE,
    .response_buffer_size = 1 << 20,
    .buffer_size = 32 << 20,
    .min_body_rate = 1,
    .header_timeout = 5 * SECOND,
    .body_timeout = 5 * SECOND,
    .idle_timeout = 5 * SECOND,
    .write_timeout = 5 * SECOND,
    .queue_timeout = 5 * SECOND,
    .linger_timeout = 5 * SECOND,
};

/* ------------------------------------------------------------------------------------------------ the server */

/* A request in the hands of whoever serves it. */
typedef struct {
    front_conn *conn;
    char method[32], target[64], mode;
    bool keep_alive;
    unsigned status, sum;
    ssize_t total;
    char out[512 + PADDING]; /* the response */
    size_t out_len, sent;
} job;

/* The first byte of a target after the slash chooses what is done; the response says what was received. */
static void job_begin(job *j, const front_request *q)
{
    const http1_head *h = q->head;

    *j = (job){.conn = q->conn, .keep_alive = h->keep_alive, .status = 200};
    snprintf(j->method, sizeof j->method, "%.*s", h->method.len < 20 ? (int)h->method.len : 20, q->data + h->method.pos);
    snprintf(j->target, sizeof j->target, "%.*s", h->target.len < 40 ? (int)h->target.len : 40, q->data + h->target.pos);
    j->mode = h->target.len > 1 ? j->target[1] : 'r';
}

/* Reads the body, or a part of it.  0: done; or the error of front_read(), which a client's mistake is not. */
static int job_read(job *j, bool wait)
{
    static _Thread_local char buf[700];
    ssize_t n;

    if (j->mode == 'i') /* ignores the body */
        return 0;
    while ((n = front_read(the_front, j->conn, buf, j->mode == 's' ? 7 : sizeof buf, wait)) > 0) {
        for (ssize_t i = 0; i < n; i++)
            j->sum = j->sum * 31 + (unsigned char)buf[i];
        j->total += n;
    }
    if (n == -EAGAIN)
        return -EAGAIN;
    if (n < 0) {
        j->status = 400;
        j->keep_alive = false;
        j->total = -1;
        j->sum = 0;
    }
    return 0;
}

static void job_prepare(job *j)
{
    char body[256];

    if (j->mode == 'c' || front_stage_now(the_front) != FRONT_SERVING || !front_begin_response(the_front, j->conn))
        j->keep_alive = false;
    int body_len = snprintf(body, sizeof body, "%s %s %zd %x", j->method, j->target, j->total, j->sum);
    int padding = j->mode == 'w' ? PADDING : 0; /* 'w': a large response */
    int len = snprintf(j->out, sizeof j->out, "HTTP/1.1 %u W\r\nContent-Length: %d\r\n%s\r\n%s", j->status, body_len + padding,
                       j->keep_alive ? "" : "Connection: close\r\n", body);
    memset(j->out + len, 'w', (size_t)padding);
    j->out_len = (size_t)(len + padding);
}

static int job_send(job *j, size_t keep, bool wait)
{
    struct iovec iov = {.iov_base = j->out + j->sent, .iov_len = j->out_len - j->sent};
    int rv = front_send(the_front, j->conn, &iov, 1, keep, wait);

    j->sent = j->out_len - iov.iov_len;
    return rv;
}

/* `rv`: what job_send() has returned. */
static void job_end(job *j, int rv)
{
    struct iovec iov = {.iov_base = j->out, .iov_len = 0};
    int state = front_send(the_front, j->conn, &iov, 1, 0, false);

    CHECK(state == (rv == FRONT_OK ? state == -EALREADY ? -EALREADY : FRONT_OK : -EPIPE));
    if (state != FRONT_OK) {
        iov.iov_len = 1;
        CHECK(front_send(the_front, j->conn, &iov, 1, SIZE_MAX, false) == state);
    }
    front_finish(the_front, j->conn, j->keep_alive, rv != FRONT_OK, rv == FRONT_OK ? j->status : 0);
}

#ifndef SERVE /* fuzz_eventloop.c has its own */
#define SERVE work
#define SERVERS 2

static void *work(void *unused)
{
    front_request q;
    job j;

    (void)unused;
    while (front_take(the_front, &q, -1) == FRONT_OK) {
        job_begin(&j, &q);
        job_read(&j, true);
        job_prepare(&j);
        job_end(&j, job_send(&j, SIZE_MAX, true));
    }
    return NULL;
}
static void end_servers(void)
{
}
#else
static void *SERVE(void *);
static void end_servers(void); /* the front has stopped */
#endif

static void *loop(void *unused)
{
    (void)unused;
    CHECK(front_run(the_front) == FRONT_CLOSED);
    return NULL;
}

static void spawn(void *(*run)(void *))
{
    CHECK(pthread_create(&threads[n_threads++], NULL, run, NULL) == 0);
}

static void start(void)
{
    static char headers[] = "Content-Length: 2\r\n";
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    pages *t = pages_new(1);

    signal(SIGPIPE, SIG_IGN);
    listening = fd;
    address = (struct sockaddr_in){0};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4096) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &len) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){8192}, sizeof(int)) == 0); /* connections inherit it */
    CHECK(front_open(&the_front, &(front_listen){.fd = fd, .pages = true, .requests = true}, 1, &LIMITS) == FRONT_OK);
    CHECK(pages_add(t, "/healthz", 8, 0) == 0);
    for (unsigned k = 0; k < PAGES_FORMATS; k++)
        for (unsigned s = 0; s < 2; s++)
            CHECK(pages_set_answer(t, 0, (enum pages_set)s, (enum pages_format)k, 200, headers, sizeof headers - 1, "ok", 2) == 0);
    front_publish(the_front, t);
    spawn(loop);
    for (int i = 0; i < SERVERS; i++)
        spawn(SERVE);
}

static void drain(enum front_stage to)
{
    if (to <= stage)
        return;
    stage = to;
    if (to == FRONT_CLOSING)
        closing = front_now();
    front_advance(the_front, to);
}

/* After a drain: the front stops by itself, and the next input gets another one. */
static void restart(void)
{
    drain(FRONT_CLOSING);
    pthread_join(threads[0], NULL);
    end_servers();
    for (unsigned i = 1; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    front_close(the_front);
    close(listening);
    n_threads = 0;
    stage = FRONT_SERVING;
    closing = 0;
    start();
}

/* ------------------------------------------------------------------------------------------------ the clients */

typedef struct {
    int fd;
    bool shut, broken; /* said FIN; reset by either side: what was not heard is lost */
    bool late;         /* has said something when the server may have given up idle connections */
    char *sent, *heard;
    size_t n_sent, n_heard;
} client;

static void dial(client *c)
{
    /* From ever another address: the ports of one would run out, a closed connection keeps its own for a minute. */
    static uint32_t n;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + n++ % 60000)};
    int rv;

    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(c->fd != -1);
    CHECK(setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int)) == 0);
    CHECK(bind(c->fd, (struct sockaddr *)&own, sizeof own) == 0);
    while ((rv = connect(c->fd, (struct sockaddr *)&address, sizeof address)) == -1 && errno == EINTR)
        ; /* libFuzzer's alarm; Linux goes on waiting */
    CHECK(rv == 0 || (closing != 0 && errno == ECONNREFUSED));
    c->broken = rv != 0;
    c->shut = c->late = false;
    c->n_sent = c->n_heard = 0;
}

static void hear(client *c, int milliseconds)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};

    while (!c->broken && c->n_heard < HEARD_MAX && poll(&p, 1, milliseconds) == 1) {
        ssize_t n = recv(c->fd, c->heard + c->n_heard, HEARD_MAX - c->n_heard, MSG_DONTWAIT);
        if (n <= 0) {
            c->broken = c->broken || n == -1;
            return;
        }
        c->n_heard += (size_t)n;
        milliseconds = 0;
    }
}

static void say(client *c, const char *bytes, size_t len)
{
    if (c->shut || c->broken || len > SENT_MAX - c->n_sent)
        return;
    while (len > 0) {
        ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n == -1 && errno == EAGAIN) {
            hear(c, 1);
            continue;
        }
        if (n == -1) { /* closed and reset: no more will be heard either */
            c->broken = true;
            return;
        }
        c->late = c->late || (closing != 0 && front_now() - closing > SECOND / 2);
        memcpy(c->sent + c->n_sent, bytes, (size_t)n);
        c->n_sent += (size_t)n;
        bytes += n;
        len -= (size_t)n;
    }
}

/* What the server should have made of the bytes: walks over requests and responses side by side. */
static void judge(client *c, bool ended)
{
    static http1_head h;
    const char *p = c->sent, *end = p + c->n_sent, *a = c->heard, *a_end = a + c->n_heard;

    while (a < a_end) {
        /* One response. */
        const char *blank = memmem(a, (size_t)(a_end - a), "\r\n\r\n", 4);
        if (blank == NULL) {
            CHECK(!ended || c->broken); /* cut short */
            return;
        }
        unsigned status = 0;
        CHECK(sscanf(a, "HTTP/1.1 %3u ", &status) == 1);
        if (status == 100) {
            a = blank + 4;
            continue;
        }
        const char *length = memmem(a, (size_t)(blank + 2 - a), "Content-Length: ", 16);
        CHECK(length != NULL);
        size_t body_len = strtoul(length + 16, NULL, 10);
        const bool close = memmem(a, (size_t)(blank + 2 - a), "\r\nConnection: close\r\n", 21) != NULL;
        const bool by_worker = memmem(a, (size_t)(blank + 2 - a), " W\r\n", 4) != NULL;

        /* Its request. */
        int n = http1_parse_head(p, (size_t)(end - p), 0, &HEADS, &h);
        const bool parsed = n > 0;
        if (h.method_id == HTTP1_HEAD && !by_worker)
            body_len = 0;
        const char *body = blank + 4;
        if ((size_t)(a_end - body) < body_len) {
            CHECK(!ended || c->broken);
            return;
        }
        a = body + body_len;
        if (by_worker) {
            char want[256];
            unsigned sum = 0;
            size_t total = 0;
            const char *next = p + n;
            CHECK(parsed); /* no request without a valid head */
            const char *target = p + h.target.pos;
            const bool ignored = h.target.len > 1 && target[1] == 'i';
            if (h.chunked) {
                http1_chunked d;
                size_t in = (size_t)(end - next);
                char *decoded = malloc(in + 1);
                http1_chunked_init(&d);
                int rv = http1_chunked_decode(&d, next, &in, decoded, &total);
                next = rv == 1 ? next + in : NULL;
                for (size_t i = 0; i < total; i++)
                    sum = sum * 31 + (unsigned char)decoded[i];
                free(decoded);
                if (total > LIMITS.max_body_size)
                    next = NULL;
            } else {
                total = (size_t)h.content_length;
                if (total > (size_t)(end - next)) {
                    next = NULL;
                } else {
                    for (size_t i = 0; i < total; i++)
                        sum = sum * 31 + (unsigned char)next[i];
                    next += total;
                }
            }
            /* An event loop has left the rest of the body: if that never comes, the connection ends after all. */
            if (ignored && !close && next == NULL) {
                CHECK(a == a_end && SERVERS == 1);
                return;
            }
            if (next == NULL) /* never complete: unless that was ignored it failed, and all ended there */
                CHECK(close && (ignored || status == 400));
            if (status == 200) {
                int m = snprintf(want, sizeof want, "%.*s %.*s %zu %x", h.method.len < 20 ? (int)h.method.len : 20, p + h.method.pos,
                                 h.target.len < 40 ? (int)h.target.len : 40, target, ignored ? 0 : total, ignored ? 0 : sum);
                size_t padding = h.target.len > 1 && target[1] == 'w' ? PADDING : 0;
                CHECK((size_t)m + padding == body_len && memcmp(body, want, (size_t)m) == 0);
                for (size_t i = 0; i < padding; i++)
                    CHECK(body[(size_t)m + i] == 'w');
            }
            if (next != NULL)
                p = next;
            CHECK(close || next != NULL);
        } else if (status == 200 || status == 405) { /* a page, or OPTIONS * */
            CHECK(parsed);
            CHECK(close || (!h.chunked && h.content_length == 0));
            p += n;
        } else { /* a refusal */
            CHECK(close);
        }
        if (close) {
            CHECK(a == a_end); /* nothing after it */
            return;
        }
    }
    if (ended && !c->broken && !c->late) { /* all was heard, and it ended: then nothing that could be served is left */
        int n = http1_parse_head(p, (size_t)(end - p), 0, &HEADS, &h);
        CHECK(n <= 0 || h.chunked || h.content_length > (uint64_t)(end - p - n));
        CHECK(n >= 0);
    }
}

/* -------------------------------------------------------------------------------------------------- one input */

static const char *const phrases[] = {
    "GET /r HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /r HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789",
    "POST /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "POST /r HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "400\r\n",
    "0\r\n\r\n",
    "POST /i HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n",
    "POST /r HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n",
    "GET /c HTTP/1.1\r\nHost: x\r\n\r\n",
    "HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "GET /r HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "Transfer-Encoding: chunked\r\n",
    "\r\n",
};

static const char *const more_phrases[] = {
    "GET /w HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /w HTTP/1.1\r\nHost: x\r\n\r\nGET /w HTTP/1.1\r\nHost: x\r\n\r\nGET /w HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /r\xc3\xa4?\xe2\x82\xac HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /w HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\nExpect: 100-continue\r\n\r\n",
};

static void run(client *c, const uint8_t *data, size_t size)
{
    static char block[2048];
    size_t who = 0;

    memset(block, 'b', sizeof block);
    for (size_t i = 0, n; i < size; i += n) {
        uint8_t op = data[i];
        n = step_size(data + i, size - i);
        if (c[who].fd == -1)
            dial(&c[who]);
        if (op < STEP_PHRASE) { /* so many of the bytes that follow */
            say(&c[who], (const char *)data + i + 1, n - 1);
        } else if (op < STEP_BLOCK) { /* a phrase; the second half of the codes say it in two parts */
            const char *text = phrases[(op - STEP_PHRASE) % 16];
            size_t len = strlen(text), cut = op < STEP_CUT_PHRASE ? len : n == 2 ? data[i + 1] % (len + 1) : 0;
            say(&c[who], text, cut);
            if (cut < len) {
                sched_yield();
                usleep(op < 0x90 ? 0 : 300);
                say(&c[who], text + cut, len - cut);
            }
        } else if (op < 0xb0) { /* a block */
            say(&c[who], block, (size_t)(op - 0x9f) * 128);
        } else if (op < 0xc0) { /* wait */
            usleep((useconds_t)(op - 0xb0) * 30);
        } else if (op < 0xd0) { /* hear what is there */
            hear(&c[who], op & 1);
        } else if (op < 0xe0) { /* the other client */
            who = op % CLIENTS;
        } else if (op < 0xe8 && !c[who].shut) {
            shutdown(c[who].fd, SHUT_WR);
            c[who].shut = true;
        } else if (op >= 0xe8 && op < 0xf8) {
            say(&c[who], more_phrases[op % 4], strlen(more_phrases[op % 4]));
        } else if (op >= 0xfe) {
            drain(op == 0xfe ? FRONT_DRAINING : FRONT_CLOSING);
        } else if (op >= 0xf8) { /* reset, and a new one */
            struct linger now = {.l_onoff = 1, .l_linger = 0};
            setsockopt(c[who].fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
            hear(&c[who], 0);
            close(c[who].fd);
            c[who].fd = -1;
            judge(&c[who], false);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static client c[CLIENTS];
    front_counters n;

    if (the_front == NULL) {
        start();
        for (int i = 0; i < CLIENTS; i++) {
            c[i].sent = malloc(SENT_MAX);
            c[i].heard = malloc(HEARD_MAX);
            CHECK(c[i].sent != NULL && c[i].heard != NULL);
        }
    }
    for (int i = 0; i < CLIENTS; i++)
        c[i].fd = -1;
    run(c, data, size);
    for (int i = 0; i < CLIENTS; i++) /* all, before one is waited for: two that keep back their bodies hold both workers */
        if (c[i].fd != -1 && !c[i].shut) /* what is complete is answered, then the server ends */
            shutdown(c[i].fd, SHUT_WR);
    for (int i = 0; i < CLIENTS; i++) {
        if (c[i].fd == -1)
            continue;
        int64_t until = front_now() + 4 * SECOND;
        for (;;) {
            struct pollfd p = {.fd = c[i].fd, .events = POLLIN};
            size_t before = c[i].n_heard;
            if (poll(&p, 1, 100) == 1) {
                hear(&c[i], 0);
                if (c[i].broken || c[i].n_heard == before)
                    break;
            }
            CHECK(front_now() < until); /* somebody has been forgotten */
        }
        judge(&c[i], true);
        struct linger now = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c[i].fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(c[i].fd);
    }
    int64_t until = front_now() + 4 * SECOND;
    while (front_count(the_front, &n), n.connections != 0 || n.in_flight != 0 || n.queued != 0 || n.buffered != 0 || n.spool_bytes != 0 ||
                                           n.accepted != n.closed || n.requests != n.served + n.aborted || n.requests != n.finished) {
        if (front_now() > until)
            fprintf(stderr,
                    "left: connections %llu, in flight %llu, queued %llu, buffered %llu; accepted %llu, closed %llu; "
                    "requests %llu, finished %llu, served %llu, aborted %llu\n",
                    (unsigned long long)n.connections, (unsigned long long)n.in_flight, (unsigned long long)n.queued,
                    (unsigned long long)n.buffered, (unsigned long long)n.accepted, (unsigned long long)n.closed,
                    (unsigned long long)n.requests, (unsigned long long)n.finished, (unsigned long long)n.served,
                    (unsigned long long)n.aborted);
        CHECK(front_now() < until);
        usleep(20);
    }
    if (stage != FRONT_SERVING)
        restart();
    return 0;
}
