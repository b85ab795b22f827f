/*
 * test_front_spool.c - bodies that no buffer holds: many at once, with a disk that fails, and when everything ends.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_spool.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#include <sys/syscall.h>

#define LONGEST 400000

static atomic_int disk_fails; /* one of so many writes; 0: none */
static atomic_uint writes;
static atomic_bool disk_blocks, blocked;

/* Takes the C library's place.  Every other write of those that succeed is a short one. */
ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    int rate = atomic_load(&disk_fails);
    unsigned n = atomic_fetch_add(&writes, 1);

    while (atomic_load(&disk_blocks)) {
        atomic_store(&blocked, true);
        usleep(1000);
    }
    if (rate > 0 && n % (unsigned)rate == 0) {
        errno = n % 3 == 0 ? EINTR : n % 3 == 1 ? ENOSPC : EIO;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, buf, rate > 0 && n % 2 == 0 && len > 1 ? len / 2 : len, offset);
}

static char body[LONGEST];

typedef struct {
    rig *r;
    pthread_t thread;
    unsigned seed, rounds, slow, whole, refused;
} uploader;

/* Uploads with and without a length, in parts of any size, one after another on a connection. */
static void *upload(void *arg)
{
    uploader *u = arg;
    client c = {.fd = -1};
    char line[128];

    for (unsigned i = 0; i < u->rounds; i++) {
        bool chunked = rand_r(&u->seed) % 2;
        size_t len = (size_t)rand_r(&u->seed) % LONGEST, at = 0;
        if (c.fd == -1)
            dial(u->r, &c);
        if (chunked)
            snprintf(line, sizeof line, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        else
            snprintf(line, sizeof line, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", len);
        say(&c, line);
        while (at < len) {
            size_t part = 1 + (size_t)rand_r(&u->seed) % 100000;
            if (part > len - at)
                part = len - at;
            if (chunked) {
                snprintf(line, sizeof line, "%zx\r\n", part);
                say(&c, line);
            }
            say_bytes(&c, body + at, part);
            if (chunked)
                say(&c, "\r\n");
            at += part;
            if (u->slow && rand_r(&u->seed) % u->slow == 0)
                usleep((unsigned)rand_r(&u->seed) % 20000);
        }
        if (chunked)
            say(&c, "0\r\n\r\n");
        reply a = hear(&c);
        if (a.status == 200) {
            snprintf(line, sizeof line, "POST /echo %zu %016llx\n", len, (unsigned long long)rig_hash(RIG_HASH, body, len));
            REQUIRE(strcmp(a.body, line) == 0, "%s instead of %s", a.body, line);
            u->whole++;
        } else {
            REQUIRE(chunked && a.status == 503, "%d for %zu %s", a.status, len, chunked ? "in chunks" : "with a length");
            u->refused++;
        }
        if (a.close || a.cut)
            hang_up(&c);
    }
    if (c.fd != -1)
        hang_up(&c);
    return NULL;
}

static void uploads(front_limits *limits, int workers, unsigned rounds, unsigned slow, bool may_refuse)
{
    enum { N = 12 };
    uploader u[N];
    unsigned whole = 0, refused = 0;
    rig r;

    rig_start(&r, limits, workers);
    for (unsigned i = 0; i < N; i++) {
        u[i] = (uploader){.r = &r, .seed = 1 + i, .rounds = rounds, .slow = slow};
        REQUIRE(pthread_create(&u[i].thread, NULL, upload, &u[i]) == 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(u[i].thread, NULL);
        whole += u[i].whole;
        refused += u[i].refused;
    }
    front_counters n = rig_count(&r);
    REQUIRE(whole > 0 && n.spooled > 0, "%u whole, %u spooled", whole, (unsigned)n.spooled);
    REQUIRE(may_refuse ? refused > 0 && n.spool_failures > 0 : refused == 0, "%u refused", refused);
    EVENTUALLY(rig_count(&r).connections == 0);
    REQUIRE(rig_count(&r).spool_bytes == 0 && rig_count(&r).buffered == 0);
    rig_stop(&r);
}

static void many_at_once(void)
{
    front_limits limits = rig_limits();

    uploads(&limits, 2, 20, 3, false);
    limits.buffer_size = 1 << 20; /* few gather */
    uploads(&limits, 2, 20, 3, false);
    limits.body_spool = NULL;
    limits.buffer_size = 32 << 20;
    limits.body_buffer_size = 1024;
    uploads(&limits, 2, 20, 3, false);
}

static void little_room(void)
{
    front_limits limits = rig_limits();

    limits.body_spool_size = 300000;
    limits.buffer_size = 1 << 20;
    uploads(&limits, 4, 20, 0, true);
}

static void a_disk_that_fails(void)
{
    front_limits limits = rig_limits();

    limits.buffer_size = 1 << 20;
    atomic_store(&disk_fails, 7);
    uploads(&limits, 4, 20, 0, true);
    atomic_store(&disk_fails, 0);
}

/* Bytes in the socket are looked for after a second, and go on to the file. */
static void a_client_that_stops_gathering(void)
{
    rig r;
    client c;
    char line[128];

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n");
    say_bytes(&c, body, 150000);
    EVENTUALLY(rig_count(&r).spool_bytes == 150000);
    REQUIRE(rig_count(&r).in_flight == 0 && atomic_load(&r.handled) == 0);
    say_bytes(&c, body + 150000, 150000);
    reply a = hear(&c);
    snprintf(line, sizeof line, "POST /echo 300000 %016llx\n", (unsigned long long)rig_hash(RIG_HASH, body, 300000));
    REQUIRE(strcmp(a.body, line) == 0, "%s instead of %s", a.body, line);
    say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"); /* a byte is enough again */
    REQUIRE(hear(&c).status == 200);
    REQUIRE(rig_count(&r).spooled == 1);
    hang_up(&c);
    rig_stop(&r);
}

static void the_end_in_the_middle(void)
{
    enum { N = 8 };

    for (int round = 0; round < 10; round++) {
        rig r;
        client c[N];
        rig_start(&r, NULL, 2);
        for (int i = 0; i < N; i++) {
            dial(&r, &c[i]);
            say(&c[i], i % 2 ? "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n40000\r\n"
                             : "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n");
            say_bytes(&c[i], body, 100000);
        }
        usleep((unsigned)round * 1000);
        front_advance(r.f, FRONT_STOPPED);
        rig_join(&r);
        for (int i = 0; i < N; i++)
            hang_up(&c[i]);
    }
}

/* The end does not wait for it. */
static void a_disk_that_blocks(void)
{
    static rig r; /* the front is left to the end of the process */
    client c;

    atomic_store(&disk_blocks, true);
    rig_start(&r, NULL, 1);
    dial(&r, &c);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n40000\r\n");
    say_bytes(&c, body, 200000);
    EVENTUALLY(atomic_load(&blocked));
    int64_t begin = front_now();
    front_advance(r.f, FRONT_STOPPED);
    rig_join(&r);
    REQUIRE(front_now() - begin < 10 * SEC);
    hang_up(&c);
    atomic_store(&disk_blocks, false);
}

static const test tests[] = {
    {"many_at_once", many_at_once, 0},
    {"little_room", little_room, 0},
    {"a_disk_that_fails", a_disk_that_fails, ALONE},
    {"a_disk_that_blocks", a_disk_that_blocks, ALONE},
    {"a_client_that_stops_gathering", a_client_that_stops_gathering, 0},
    {"the_end_in_the_middle", the_end_in_the_middle, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = rig_byte(i);
    return rig_main(tests, argc, argv);
}
