/*
 * test_front_frozen.c - the front after time in which the process was frozen: a clock that jumps stands for it.  (A real
 * SIGSTOP is in tests/system/test_frozen.py.)
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_frozen.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#include <sys/syscall.h>

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"
#define REST "x: y\r\n\r\n"

static _Atomic int64_t passed; /* nanoseconds of the clock in which nothing has run */

int clock_gettime(clockid_t which, struct timespec *out) /* for everybody in this program */
{
    int rv = (int)syscall(SYS_clock_gettime, which, out);

    if (which == CLOCK_MONOTONIC) {
        out->tv_nsec += (long)(atomic_load(&passed) % SEC);
        out->tv_sec += (time_t)(atomic_load(&passed) / SEC + out->tv_nsec / SEC);
        out->tv_nsec %= SEC;
    }
    return rv;
}

static reply ask(client *c, const char *request)
{
    say(c, request);
    return hear(c);
}

static void freeze(rig *r, int64_t length)
{
    int64_t before = front_frozen(r->f);

    atomic_fetch_add(&passed, length);
    EVENTUALLY(front_frozen(r->f) > before); /* within the second that the loop sleeps at most */
}

static void liveness_has_its_time_and_readiness_none(void)
{
    rig r;
    client c;
    reply a;

    rig_start(&r, NULL, 1);
    rig_publish(&r);
    front_renew(r.f, 0, 30 * SEC);
    dial(&r, &c);
    REQUIRE(ask(&c, GET("/healthz")).status == 200);
    int64_t before = front_clock(r.f);
    freeze(&r, 1000 * SEC);
    REQUIRE(front_clock(r.f) - before < 60 * SEC);
    REQUIRE(ask(&c, GET("/healthz")).status == 200);
    a = ask(&c, GET("/readyz"));
    REQUIRE(a.status == 503 && strcmp(a.body, "stale") == 0, "%s", a.body);
    front_renew(r.f, 1, 30 * SEC);
    REQUIRE(ask(&c, GET("/readyz")).status == 200);

    freeze(&r, 1000 * SEC); /* nobody has renewed it since: what is left of the 30 s ends soon */
    EVENTUALLY(ask(&c, GET("/healthz")).status == 503);
    front_renew(r.f, 0, 30 * SEC);
    REQUIRE(ask(&c, GET("/healthz")).status == 200);
    freeze(&r, 1000 * SEC);
    REQUIRE(ask(&c, GET("/healthz")).status == 200);
    hang_up(&c);
    rig_stop(&r);
}

static void liveness_ends_under_throttling(void)
{
    rig r;
    client c;
    int n = 0;

    rig_start(&r, NULL, 1);
    rig_publish(&r);
    front_renew(r.f, 0, 30 * SEC);
    dial(&r, &c);
    while (ask(&c, GET("/healthz")).status == 200) {
        REQUIRE(n++ < 30, "never");
        freeze(&r, 4 * SEC);
    }
    REQUIRE(n > 7, "%d", n); /* 30 s of its own, and as much on top */
    hang_up(&c);
    rig_stop(&r);
}

static void who_waits_gets_the_time_on_top(void)
{
    front_limits limits = rig_limits();
    rig r;
    client idle, head, body, held, queued;

    limits.body_buffer_size = 1 << 20;
    rig_start(&r, &limits, 1);
    rig_publish(&r);
    rig_hold(&r, true);
    dial(&r, &held);
    say(&held, GET("/hold"));
    EVENTUALLY(atomic_load(&r.holding) == 1);
    dial(&r, &queued);
    say(&queued, GET("/queued"));
    EVENTUALLY(rig_count(&r).queued == 1);
    dial(&r, &idle);
    REQUIRE(ask(&idle, GET("/healthz")).status == 200);
    dial(&r, &head);
    say(&head, "GET /head HTTP/1.1\r\nHost: x\r\n");
    dial(&r, &body);
    say(&body, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab");
    wait_read(&r, rig_count(&r).bytes_in);
    EVENTUALLY(rig_count(&r).connections == 5);
    usleep(200000); /* all of it has been read, most likely; if not, less is tested */

    freeze(&r, 1000 * SEC);
    usleep(50000);
    REQUIRE(rig_count(&r).timeouts == 0);
    rig_hold(&r, false);
    REQUIRE(hear(&held).status == 200);
    REQUIRE(hear(&queued).status == 200);
    REQUIRE(ask(&idle, GET("/healthz")).status == 200);
    REQUIRE(ask(&head, REST).status == 200);
    REQUIRE(ask(&body, "c").status == 200);
    REQUIRE(rig_count(&r).timeouts == 0);
    hang_up(&idle), hang_up(&head), hang_up(&body), hang_up(&held), hang_up(&queued);
    rig_stop(&r);
}

static void a_body_that_a_worker_reads(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c;

    limits.body_buffer_size = 1024;
    limits.stream_bodies = true;
    rig_start(&r, &limits, 1);
    rig_publish(&r);
    dial(&r, &c);
    say(&c, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n");
    for (int i = 0; i < 30; i++)
        say(&c, "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789");
    EVENTUALLY(atomic_load(&r.handled) == 1);
    usleep(200000);
    freeze(&r, 1000 * SEC);
    usleep(250000); /* the worker has looked by now */
    for (int i = 0; i < 10; i++)
        say(&c, "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789");
    REQUIRE(hear(&c).status == 200);
    hang_up(&c);
    rig_stop(&r);
}

static const test tests[] = {
    {"liveness_has_its_time_and_readiness_none", liveness_has_its_time_and_readiness_none, 0},
    {"liveness_ends_under_throttling", liveness_ends_under_throttling, 0},
    {"who_waits_gets_the_time_on_top", who_waits_gets_the_time_on_top, 0},
    {"a_body_that_a_worker_reads", a_body_that_a_worker_reads, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
