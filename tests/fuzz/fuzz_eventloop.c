/*
 * fuzz_eventloop.c - the front under libFuzzer as in fuzz_front.c, with an event loop in place of the workers, which waits for
 * no client.  The inputs and what must be true are the same, and besides:
 *
 *   - a connection that the event loop waits for is returned by front_moved() once, and none that it has given back;
 *   - whatever it does between two waits, or how late it comes back: nobody is forgotten.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_eventloop.c ext/{http,front}/?*.c -pthread
 *     ./a.out tests/fuzz/corpus/front
 */
#define SERVE turn
#define SERVERS 1
#define SPOOL_SIZE 0 /* it reads bodies as they arrive; a file could have to be waited for */
#include "fuzz_front.c"

#include <sys/epoll.h>
#include <sys/eventfd.h>

/* A task of the event loop.  Each is allocated by itself, so that ASan sees a tag that has outlived its request. */
typedef struct task {
    struct task *prev, *next;
    job j;
    enum { READING, SENDING } phase;
    bool is_told; /* front_await() has said that front_moved() will return it */
} task;

static task *first;
static atomic_bool stops;
static int poke; /* an eventfd that it watches as well, and writes to itself now and then */
static uint32_t choices = 1; /* what the event loop does where it may do several things; the hash of what has arrived */

static unsigned choose(unsigned n)
{
    choices = choices * 1664525u + 1013904223u; /* Numerical Recipes, ch. 7.1 */
    return (choices >> 16) % n;
}

static void end(task *t, int rv)
{
    job_end(&t->j, rv);
    if (t->prev != NULL)
        t->prev->next = t->next;
    else
        first = t->next;
    if (t->next != NULL)
        t->next->prev = t->prev;
    free(t);
}

static bool awaits(task *t, unsigned what)
{
    if (choose(16) == 0)
        usleep(choose(3) * 1000); /* so that the front's own thread sees an event in between */
    int rv = front_await(the_front, t->j.conn, what, t);
    CHECK(rv == FRONT_OK || rv == FRONT_AGAIN);
    t->is_told = t->is_told || rv == FRONT_AGAIN;
    return rv == FRONT_AGAIN;
}

/* Does as much as can be done without waiting. */
static void go_on(task *t)
{
    /* Sometimes it waits for several things at a time, as other tasks of the application do with the same request. */
    if (choose(4) == 0)
        awaits(t, FRONT_LEFT);
    while (t->phase == READING) {
        if (job_read(&t->j, false) == 0) {
            job_prepare(&t->j);
            t->phase = SENDING;
        } else if (awaits(t, choose(4) == 0 ? FRONT_READABLE | FRONT_LEFT : FRONT_READABLE)) {
            return;
        }
    }
    for (;;) {
        int rv = job_send(&t->j, choose(2) == 0 ? SIZE_MAX : 0, false);
        if (rv != FRONT_AGAIN) {
            end(t, rv);
            return;
        }
        if (awaits(t, FRONT_WRITABLE))
            return;
    }
}

static void accept_some(void)
{
    front_request q;

    for (unsigned i = choose(4) + 1; i > 0 && front_take(the_front, &q, 0) == FRONT_OK; i--) {
        task *t = calloc(1, sizeof *t);
        CHECK(t != NULL);
        job_begin(&t->j, &q);
        for (const char *c = t->j.target; *c != '\0'; c++)
            choices = choices * 31 + (unsigned char)*c;
        t->next = first;
        if (first != NULL)
            first->prev = t;
        first = t;
        go_on(t);
    }
}

__attribute__((constructor)) static void open_poke(void)
{
    poke = eventfd(0, EFD_NONBLOCK);
    CHECK(poke != -1);
}

#ifdef ELSEWHERE /* fuzz_reader.c: it waits with a poll() of its own */
static int descriptor;
static bool settles = true;

static void open_loop(void)
{
    descriptor = front_serve_by_reader(the_front);
    CHECK(descriptor >= 0);
}

static void close_loop(void)
{
    settles = true;
}

static unsigned wait_for_news(void)
{
    struct pollfd p[] = {{.fd = descriptor, .events = POLLIN}, {.fd = poke, .events = POLLIN}};
    unsigned news = 0;

    if (settles)
        news = front_settle(the_front);
    else if (poll(p, 2, choose(4) == 0 ? (int)choose(3) : -1) > 0 && p[0].revents != 0)
        news = front_look(the_front);
    settles = news != 0;
    return news;
}
#else
static int outer;

static void open_loop(void)
{
    struct epoll_event ev = {.events = EPOLLIN};

    outer = epoll_create1(0);
    CHECK(outer != -1 && poke != -1 && epoll_ctl(outer, EPOLL_CTL_ADD, poke, &ev) == 0);
    CHECK(front_serve_by_eventloop(the_front, outer) == FRONT_OK);
}

static void close_loop(void)
{
    close(outer);
}

static unsigned wait_for_news(void)
{
    if (choose(16) == 0)
        (void)!write(poke, &(uint64_t){1}, sizeof(uint64_t));
    unsigned news = front_wait(the_front, choose(4) == 0 ? choose(2000) * 1000LL : choose(8) == 0 ? 0 : -1);
    if (news & FRONT_OTHERS)
        (void)!read(poke, &(uint64_t){0}, sizeof(uint64_t));
    return news;
}
#endif

static void *turn(void *unused)
{
    (void)unused;
    open_loop();
    (void)!read(poke, &(uint64_t){0}, sizeof(uint64_t)); /* of the one before */
    while (!atomic_load(&stops)) {
        unsigned news = wait_for_news();
        task *t;
        while (news != 0 && (t = front_moved(the_front)) != NULL) {
            CHECK(t->is_told);
            t->is_told = false;
            go_on(t);
        }
        if (first != NULL && choose(4) == 0) /* a task tries although nothing has happened */
            go_on(first);
        if (choose(16) == 0)
            usleep(choose(8) == 0 ? 3000 : 200); /* the application computes */
        if (news != 0)
            accept_some();
    }
    CHECK(first == NULL);
    close_loop();
    return NULL;
}

static void end_servers(void)
{
    atomic_store(&stops, true);
    CHECK(write(poke, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t));
    pthread_join(threads[1], NULL);
    n_threads = 1;
    atomic_store(&stops, false);
}
