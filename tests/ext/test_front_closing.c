/*
 * test_front_closing.c - the listener closes without losing anybody, by no right that an ordinary user has not got; and where
 * the kernel does not let new handshakes be stopped, it says so and still closes.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_closing.c ext/{http,front}/?*.c -pthread && ./a.out [NAME]
 */
#include "rig.h"

#include <grp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define GET(target) "GET " target " HTTP/1.1\r\nHost: x\r\n\r\n"

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62
#endif

/* Takes the C library's place.  What the binding to no interface comes to: an errno value, -1: success without effect (as in
 * a kernel that ignores options it does not know), 0: what the kernel says. */
static atomic_int binding;

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    int how = level == SOL_SOCKET && name == SO_BINDTOIFINDEX ? atomic_load(&binding) : 0;

    if (how == -1)
        return 0;
    if (how > 0) {
        errno = how;
        return -1;
    }
    return (int)syscall(SYS_setsockopt, fd, level, name, value, len);
}

/* As what the image runs as; an ordinary user has no capability anyway. */
static void become_nobody(void)
{
    if (geteuid() != 0)
        return;
    REQUIRE(setgroups(0, NULL) == 0 && setresgid(65532, 65532, 65532) == 0 && setresuid(65532, 65532, 65532) == 0);
    REQUIRE(prctl(PR_SET_DUMPABLE, 1) == 0); /* the leak checker looks as a debugger does */
}

/* One-shot clients without a pause, until they are refused. */
typedef struct {
    rig *r;
    pthread_t thread;
    int answered, lost;
} knocker;

static void *knock(void *arg)
{
    knocker *k = arg;

    for (;;) {
        client c = {.fd = dial_address(&k->r->address)};
        if (c.fd < 0) {
            REQUIRE(c.fd == -ECONNREFUSED || c.fd == -ETIMEDOUT || c.fd == -ECONNRESET, "%s", strerror(-c.fd));
            return NULL;
        }
        if (send(c.fd, GET("/echo"), strlen(GET("/echo")), MSG_NOSIGNAL) == -1) { /* reset already */
            k->lost++;
        } else {
            reply a = hear(&c);
            k->answered += a.status == 200 && !a.cut;
            k->lost += a.status != 200 || a.cut;
        }
        hang_up(&c);
    }
}

/* How many a storm of connections loses; what front_close_fault() says then is `fault`. */
static int lost_in_a_storm(int fault)
{
    enum { N = 12 };
    rig r;
    knocker k[N];
    int lost = 0, answered = 0;

    rig_start(&r, NULL, 3);
    for (int i = 0; i < N; i++) {
        k[i] = (knocker){.r = &r};
        REQUIRE(pthread_create(&k[i].thread, NULL, knock, &k[i]) == 0);
    }
    EVENTUALLY(rig_count(&r).served > 200);
    front_advance(r.f, FRONT_DRAINING);
    usleep(20000);
    REQUIRE(front_close_fault(r.f) == 0);
    front_advance(r.f, FRONT_CLOSING);
    EVENTUALLY(atomic_load(&r.loop_ended));
    for (int i = 0; i < N; i++) {
        pthread_join(k[i].thread, NULL);
        answered += k[i].answered;
        lost += k[i].lost;
    }
    REQUIRE(front_close_fault(r.f) == fault, "%s", strerror(front_close_fault(r.f)));
    REQUIRE(rig_count(&r).served == (uint64_t)answered && rig_count(&r).aborted == 0);
    rig_join(&r);
    return lost;
}

static void nobody_is_lost_without_a_capability(void)
{
    become_nobody();
    for (int round = 0; round < 5; round++)
        REQUIRE(lost_in_a_storm(0) == 0);
}

static void refused_it_closes_all_the_same(void)
{
    atomic_store(&binding, EPERM);
    REQUIRE(lost_in_a_storm(EPERM) <= 12); /* those whose connection was made at the very end */
}

static void ignored_it_closes_all_the_same(void)
{
    atomic_store(&binding, -1);
    REQUIRE(lost_in_a_storm(EOPNOTSUPP) <= 12);
}

/* Without anybody who connects, the listener is gone after the quiet time, not after the longest. */
static void quiet_it_closes_soon(void)
{
    for (int how = 0; how < 2; how++) {
        rig r;
        int fd;

        atomic_store(&binding, how ? ENOPROTOOPT : 0);
        rig_start(&r, NULL, 1);
        rig_hold(&r, true);
        client held;
        dial(&r, &held);
        say(&held, GET("/hold"));
        EVENTUALLY(atomic_load(&r.holding) == 1);
        front_advance(r.f, FRONT_CLOSING);
        EVENTUALLY((fd = dial_address(&r.address)) == -ECONNREFUSED || (usleep(20000), fd >= 0 && close(fd) == 0 && false));
        rig_hold(&r, false);
        REQUIRE(hear(&held).status == 200);
        hang_up(&held);
        EVENTUALLY(atomic_load(&r.loop_ended));
        REQUIRE(front_close_fault(r.f) == (how ? ENOPROTOOPT : 0));
        rig_join(&r);
    }
}

static const test tests[] = {
    {"nobody_is_lost_without_a_capability", nobody_is_lost_without_a_capability, ALONE},
    {"refused_it_closes_all_the_same", refused_it_closes_all_the_same, 0},
    {"ignored_it_closes_all_the_same", ignored_it_closes_all_the_same, 0},
    {"quiet_it_closes_soon", quiet_it_closes_soon, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
