/*
 * test_front_many.c - the front with thousands of connections: what one costs, and that slow ones change nothing for others.
 * The figures are judged without sanitizers only, which have costs of their own.
 *
 *     cc -O2 -Iext tests/ext/test_front_many.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PLAIN 0
#else
#define PLAIN 1
#endif

/* A process that holds `n` connections; says so when all are open, and goes when it is told. */
static pid_t crowd_of(rig *r, int n, bool dribbling, int ready, int until)
{
    pid_t pid = fork();

    REQUIRE(pid != -1);
    if (pid != 0)
        return pid;
    int *fd = calloc((size_t)n, sizeof *fd);
    REQUIRE(fd != NULL);
    for (int i = 0; i < n; i++) {
        client c;
        dial(r, &c);
        fd[i] = c.fd;
        if (!dribbling) { /* idle after a request */
            say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
            REQUIRE(hear(&c).status == 200);
        } else {
            say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\nA: ");
        }
    }
    REQUIRE(write(ready, "r", 1) == 1);
    for (int i = 0;; i++) {
        struct pollfd p = {.fd = until, .events = POLLIN};
        if (poll(&p, 1, i % 40 == 0 ? 10 : 0) == 1) /* at most 4,000 bytes a second over all */
            _exit(0);
        if (dribbling)
            (void)!send(fd[i % n], "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

static void with_crowd(rig *r, int n, bool dribbling, void (*then)(rig *, int n))
{
    int ready[2], until[2], status;
    char x;

    REQUIRE(pipe(ready) == 0 && pipe(until) == 0);
    pid_t pid = crowd_of(r, n, dribbling, ready[1], until[0]);
    close(ready[1]);
    REQUIRE(read(ready[0], &x, 1) == 1);
    EVENTUALLY(rig_count(r).connections >= (uint64_t)n);
    then(r, n);
    REQUIRE(write(until[1], "x", 1) == 1);
    REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
    close(ready[0]);
    close(until[0]);
    close(until[1]);
}

static long memory_before;

static void weigh(rig *r, int n)
{
    double each = (double)(resident() - memory_before) * 1024 / n;

    REQUIRE(rig_count(r).connections >= (uint64_t)n);
    printf("     %d connections, %.0f bytes each\n", n, each);
    REQUIRE(!PLAIN || each < 5 * 1024, "%.0f bytes", each);
}

static void memory(int n, bool dribbling)
{
    front_limits limits = rig_limits();
    rig r;

    limits.header_timeout = 300 * SEC;
    rig_start(&r, &limits, 2);
    memory_before = resident();
    with_crowd(&r, n, dribbling, weigh);
    rig_stop(&r);
}

static void memory_of_idle_connections(void) { memory(2000, false); }
static void memory_of_slow_heads(void) { memory(2000, true); }
static void memory_of_ten_thousand(void) { memory(9900, false); }

static int by_time(const void *a, const void *b)
{
    return (*(const int64_t *)a > *(const int64_t *)b) - (*(const int64_t *)a < *(const int64_t *)b);
}

/* Probes by one client, requests by another: how many a second, and how late the probes are; alone and beside a crowd. */
static double rate[2], p99[2];
static int crowded;
static atomic_bool measuring;

static void *request_on_and_on(void *arg)
{
    rig *r = arg;
    client c;
    uintptr_t n = 0;

    dial(r, &c);
    for (; atomic_load(&measuring); n++) {
        say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
        REQUIRE(hear(&c).status == 200);
    }
    hang_up(&c);
    return (void *)n;
}

static void measure(rig *r, int n)
{
    enum { PROBES = 4000 };
    static int64_t took[PROBES];
    client c;
    pthread_t thread;
    void *requests;

    (void)n;
    dial(r, &c);
    atomic_store(&measuring, true);
    int64_t begin = front_now();
    REQUIRE(pthread_create(&thread, NULL, request_on_and_on, r) == 0);
    for (int i = 0; i < PROBES; i++) {
        int64_t at = front_now();
        say(&c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        REQUIRE(hear(&c).status == 200);
        took[i] = front_now() - at;
        usleep(1000);
    }
    atomic_store(&measuring, false);
    pthread_join(thread, &requests);
    rate[crowded] = (double)(uintptr_t)requests / ((double)(front_now() - begin) / 1e9);
    qsort(took, PROBES, sizeof took[0], by_time);
    p99[crowded] = (double)took[PROBES * 99 / 100] / 1e6;
    hang_up(&c);
}

static void ten_thousand_slow_clients(void)
{
    front_limits limits = rig_limits();
    rig r;

    limits.header_timeout = 300 * SEC;
    rig_start(&r, &limits, 2);
    rig_publish(&r);
    crowded = 0;
    measure(&r, 0);
    crowded = 1;
    with_crowd(&r, 9900, true, measure);
    printf("     alone %.0f requests a second, probes p99 %.2f ms; beside 9,900 slow clients %.0f, %.2f ms\n", rate[0], p99[0],
           rate[1], p99[1]);
    REQUIRE(!PLAIN || p99[1] < 25 + 4 * p99[0]);
    REQUIRE(!PLAIN || rate[1] > rate[0] * 0.5); /* wide: the crowd itself takes from the same cores */
    rig_stop(&r);
}

static const test tests[] = {
    {"memory_of_idle_connections", memory_of_idle_connections, ALONE},
    {"memory_of_slow_heads", memory_of_slow_heads, ALONE},
    {"memory_of_ten_thousand", memory_of_ten_thousand, SLOW | ALONE},
    {"ten_thousand_slow_clients", ten_thousand_slow_clients, SLOW | ALONE},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
