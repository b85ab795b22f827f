/*
 * test_front_eventloop.c - an event loop in place of workers: it waits for no client, is told when a connection can go on,
 * leads while it is idle, and is not waited for while it is blocked.  Most of it also for one that waits elsewhere.
 *
 *     cc -g -fsanitize=thread -Iext tests/ext/test_front_eventloop.c ext/{http,front}/?*.c -pthread && ./a.out [NAME]
 */
#include "rig.h"

#include "front/state.h" /* eventloop.lead_time, to see who leads */

#include <sys/epoll.h>
#include <sys/eventfd.h>

#define BIG (16u << 20) /* more than the sockets hold */

/* What an application does with a request, by its path:
 *   /echo    answers with the length and hash of the body
 *   /parts   answers each part of the body, as it comes, by its length: "<3>"
 *   /big     sends BIG bytes
 *   /watch   waits until the client has left
 *   /switch  becomes a connection of raw bytes, which come back; "." ends it
 *   /block/N blocks the event loop for N ms before it answers
 */
typedef struct task {
    struct task *prev, *next;
    front_conn *c;
    char path[64];
    uint64_t hash, length;
    size_t sent;
    bool began, keep_alive;
    char *bytes; /* of /switch, on their way back */
    size_t n_bytes;
} task;

static bool elsewhere; /* the event loop does not wait in front_wait(), but for a descriptor */

typedef struct {
    rig r;
    pthread_t thread;
    int outer, poke, watched; /* its epoll descriptor, and what it watches there */
    atomic_bool stops, fails;
    atomic_int tasks, left, pokes, turns, blocked, moves, parts, poke_blocks;
    task *first;
    char *big;
} host;

static void task_end(host *h, task *t, bool ok)
{
    front_finish(h->r.f, t->c, ok && t->keep_alive, !ok, ok ? 200 : 0);
    if (t->prev != NULL)
        t->prev->next = t->next;
    else
        h->first = t->next;
    if (t->next != NULL)
        t->next->prev = t->prev;
    free(t->bytes);
    free(t);
    atomic_fetch_sub(&h->tasks, 1);
}

/* Whether the event loop may go on with other tasks, as it will be told. */
static bool awaits(host *h, task *t, unsigned what)
{
    int rv = front_await(h->r.f, t->c, what, t);

    if (rv < 0)
        atomic_store(&h->fails, true);
    return rv == FRONT_AGAIN;
}

/* 1: all of it has been sent; 0: waits; -1: the client does not take it. */
static int put(host *h, task *t, const char *bytes, size_t len, size_t keep)
{
    while (t->sent < len) {
        struct iovec iov = {.iov_base = (char *)(uintptr_t)bytes + t->sent, .iov_len = len - t->sent};
        int rv = front_send(h->r.f, t->c, &iov, 1, keep, false);
        t->sent = len - iov.iov_len;
        if (rv == FRONT_OK)
            break;
        if (rv != FRONT_AGAIN)
            return -1;
        if (awaits(h, t, FRONT_WRITABLE))
            return 0;
    }
    t->sent = 0;
    return 1;
}

static void put_short(host *h, task *t, const char *bytes, size_t len)
{
    if (put(h, t, bytes, len, 0) == 0)
        atomic_store(&h->fails, true); /* there is room for so little; but the client may have left */
}

static void answer(host *h, task *t)
{
    char text[256], body[64];
    int n = snprintf(body, sizeof body, "%llu %016llx\n", (unsigned long long)t->length, (unsigned long long)t->hash);
    int len = snprintf(text, sizeof text, "HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%s", n, body);

    task_end(h, t, put(h, t, text, (size_t)len, SIZE_MAX) == 1);
}

static void switch_protocols(host *h, task *t)
{
    static const char head[] = "HTTP/1.1 101 X\r\n\r\n";
    bool ends = false;

    if (!t->began) {
        int rv = front_switch(h->r.f, t->c);
        if (rv == FRONT_OK)
            put_short(h, t, head, sizeof head - 1);
        if (rv != FRONT_OK || (t->bytes = malloc(65536)) == NULL) {
            answer(h, t);
            return;
        }
        t->began = true;
    }
    for (;;) {
        int rv = put(h, t, t->bytes, t->n_bytes, 0);
        if (rv == 0)
            return;
        ends = ends || (t->n_bytes > 0 && t->bytes[t->n_bytes - 1] == '.');
        t->n_bytes = 0;
        ssize_t n = rv == 1 && !ends ? front_read(h->r.f, t->c, t->bytes, 65536, false) : 0;
        if (n > 0) {
            t->n_bytes = (size_t)n;
        } else if (n != -EAGAIN) {
            task_end(h, t, rv == 1);
            return;
        }
        if ((n == -EAGAIN || front_is_dry(t->c)) && t->n_bytes == 0 && awaits(h, t, FRONT_READABLE | FRONT_LEFT))
            return;
    }
}

static void go_on(host *h, task *t)
{
    static char buf[65536];
    bool parts = strncmp(t->path, "/parts", 6) == 0;

    if (strcmp(t->path, "/big") == 0) {
        if (!t->began) {
            char head[128];
            int len = snprintf(head, sizeof head, "HTTP/1.1 200 X\r\nContent-Length: %u\r\n\r\n", BIG);
            put_short(h, t, head, (size_t)len);
            t->began = true;
        }
        int rv = put(h, t, h->big, BIG, 0);
        if (rv != 0)
            task_end(h, t, rv == 1);
        return;
    }
    if (strcmp(t->path, "/switch") == 0) {
        switch_protocols(h, t);
        return;
    }
    if (strcmp(t->path, "/watch") == 0) {
        if (awaits(h, t, FRONT_LEFT))
            return;
        atomic_fetch_add(&h->left, 1);
        task_end(h, t, false);
        return;
    }
    if (strncmp(t->path, "/block", 6) == 0) {
        atomic_fetch_add(&h->blocked, 1);
        usleep((useconds_t)strtoul(t->path + 7, NULL, 10) * 1000);
    }
    if (parts && !t->began) {
        static const char head[] = "HTTP/1.1 200 X\r\nConnection: close\r\n\r\n";
        put_short(h, t, head, sizeof head - 1);
        t->began = true;
        t->keep_alive = false;
    }
    for (;;) {
        ssize_t n = front_read(h->r.f, t->c, buf, sizeof buf, false);
        if (n > 0) {
            t->hash = rig_hash(t->hash, buf, (size_t)n);
            t->length += (uint64_t)n;
            if (parts) {
                char text[32];
                put_short(h, t, text, (size_t)snprintf(text, sizeof text, "<%zd>", n));
                atomic_fetch_add(&h->parts, 1);
            }
        } else if (n == 0 || n != -EAGAIN) {
            break;
        } else if (awaits(h, t, FRONT_READABLE)) {
            return;
        }
    }
    if (parts)
        task_end(h, t, true);
    else
        answer(h, t);
}

static void accept_requests(host *h)
{
    front_request q;

    for (int i = 0; i < 16 && front_take(h->r.f, &q, 0) == FRONT_OK; i++) {
        task *t = calloc(1, sizeof *t);
        REQUIRE(t != NULL);
        *t = (task){.next = h->first, .c = q.conn, .hash = RIG_HASH, .keep_alive = q.head->keep_alive};
        snprintf(t->path, sizeof t->path, "%.*s", (int)q.head->target.len, q.data + q.head->target.pos);
        if (h->first != NULL)
            h->first->prev = t;
        h->first = t;
        atomic_fetch_add(&h->tasks, 1);
        go_on(h, t);
    }
}

static void serve(host *h, unsigned news)
{
    if (news & FRONT_LATE)
        front_take_late(h->r.f);
    if (news & FRONT_MOVED)
        for (task *t; (t = front_moved(h->r.f)) != NULL;) {
            atomic_fetch_add(&h->moves, 1);
            go_on(h, t);
        }
    if (news & FRONT_REQUESTS)
        accept_requests(h);
}

static void *host_run_elsewhere(void *arg)
{
    host *h = arg;
    uint64_t n;

    rig_is_server = true;
    while (!atomic_load(&h->stops) || h->first != NULL) {
        struct epoll_event e;
        int waits = epoll_wait(h->outer, &e, 1, atomic_load(&h->stops) ? 10 : -1);
        atomic_fetch_add(&h->turns, 1);
        if (waits == 1 && e.data.fd == h->poke) {
            if (read(h->poke, &n, sizeof n) == sizeof n)
                atomic_fetch_add(&h->pokes, 1);
            usleep((useconds_t)atomic_exchange(&h->poke_blocks, 0) * 1000);
        } else if (waits == 1) {
            for (unsigned news = front_look(h->r.f); news != 0; news = front_settle(h->r.f))
                serve(h, news);
        }
    }
    return NULL;
}

static void *host_run(void *arg)
{
    host *h = arg;
    uint64_t n;

    rig_is_server = true;
    while (!atomic_load(&h->stops) || h->first != NULL) {
        unsigned news = front_wait(h->r.f, atomic_load(&h->stops) ? 10 * MS : -1);
        atomic_fetch_add(&h->turns, 1);
        serve(h, news);
        struct epoll_event e;
        if ((news & FRONT_OTHERS) && epoll_wait(h->outer, &e, 1, 0) == 1 && read(h->poke, &n, sizeof n) == sizeof n) {
            atomic_fetch_add(&h->pokes, 1);
            usleep((useconds_t)atomic_exchange(&h->poke_blocks, 0) * 1000);
        }
    }
    return NULL;
}

static void host_start(host *h, const front_limits *limits)
{
    struct epoll_event e = {.events = EPOLLIN};

    memset(h, 0, sizeof *h);
    h->outer = epoll_create1(EPOLL_CLOEXEC);
    h->poke = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    e.data.fd = h->poke;
    REQUIRE(epoll_ctl(h->outer, EPOLL_CTL_ADD, h->poke, &e) == 0);
    h->big = malloc(BIG);
    REQUIRE(h->big != NULL);
    for (size_t i = 0; i < BIG; i++)
        h->big[i] = rig_byte(i);
    rig_start(&h->r, limits, 0);
    rig_publish(&h->r);
    if (elsewhere) {
        e.data.fd = h->watched = front_serve_by_reader(h->r.f);
        REQUIRE(h->watched >= 0);
        REQUIRE(front_serve_by_reader(h->r.f) == -EALREADY);
        REQUIRE(front_settle(h->r.f) == 0);
        REQUIRE(epoll_ctl(h->outer, EPOLL_CTL_ADD, h->watched, &e) == 0);
    } else {
        REQUIRE(front_serve_by_eventloop(h->r.f, h->outer) == FRONT_OK);
        REQUIRE(front_serve_by_eventloop(h->r.f, h->outer) == -EALREADY);
    }
    REQUIRE(pthread_create(&h->thread, NULL, elsewhere ? host_run_elsewhere : host_run, h) == 0);
}

static void poke(host *h)
{
    REQUIRE(write(h->poke, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t));
}

static void host_end(host *h)
{
    atomic_store(&h->stops, true);
    poke(h);
    pthread_join(h->thread, NULL);
    REQUIRE(!atomic_load(&h->fails));
    REQUIRE(atomic_load(&h->tasks) == 0);
    front_advance(h->r.f, FRONT_STOPPED);
    rig_join(&h->r);
    close(h->outer);
    close(h->poke);
    free(h->big);
}

static reply ask(client *c, const char *path)
{
    sayf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return hear(c);
}

/* Lets the event loop become the leader: it is idle, and its last turn was short. */
static void let_it_lead(host *h, client *c)
{
    EVENTUALLY((ask(c, "/echo"), elsewhere ? atomic_load(&h->r.f->eventloop.may_lead)
                                           : atomic_load(&h->r.f->eventloop.state) == EVENTLOOP_LEADING));
}

/* ------------------------------------------------------------------------------- */

static void requests_are_answered(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    for (int i = 0; i < 200; i++)
        REQUIRE(ask(&c, "/echo").status == 200);
    for (int i = 0; i < 20; i++)
        say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < 20; i++)
        REQUIRE(hear(&c).status == 200);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    reply a = hear(&c);
    REQUIRE(strncmp(a.body, "3 ", 2) == 0, "%s", a.body);
    REQUIRE(strcmp(hear(&c).body, "ok") == 0);
    sayf(&c, "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    REQUIRE(hear(&c).status == 200);
    hear_end(&c);
    hang_up(&c);
    rig_settle(&h.r);
    REQUIRE(rig_count(&h.r).served == 222, "%llu", (unsigned long long)rig_count(&h.r).served);
    host_end(&h);
}

static void bodies_come_as_they_are_sent(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    for (int chunked = 0; chunked < 2; chunked++) {
        int before = atomic_load(&h.parts);
        dial(&h.r, &c);
        sayf(&c, "POST /parts HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", chunked ? "Transfer-Encoding: chunked" : "Content-Length: 30");
        for (int i = 1; i <= 10; i++) {
            say(&c, chunked ? "3\r\nabc\r\n" : "abc");
            EVENTUALLY(atomic_load(&h.parts) == before + i);
        }
        if (chunked)
            say(&c, "0\r\n\r\n");
        while (receive(&c, front_now() + PATIENCE) > 0)
            ;
        REQUIRE(strstr(c.buf, "<3><3><3><3><3><3><3><3><3><3>") != NULL, "%s", c.buf);
        hang_up(&c);
    }
    rig_settle(&h.r);
    host_end(&h);
}

static void a_body_longer_than_its_buffer(void)
{
    host h;
    client c;
    uint64_t hash = RIG_HASH;
    char text[64];

    host_start(&h, NULL);
    hash = rig_hash(hash, h.big, 4 << 20);
    dial(&h.r, &c);
    for (int i = 0; i < 3; i++) {
        sayf(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", 4 << 20);
        say_bytes(&c, h.big, 4 << 20);
        reply a = hear(&c);
        snprintf(text, sizeof text, "%d %016llx\n", 4 << 20, (unsigned long long)hash);
        REQUIRE(strcmp(a.body, text) == 0, "%s instead of %s", a.body, text);
    }
    REQUIRE(rig_count(&h.r).spooled == 0);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

static void continue_comes_with_the_first_read(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    for (int i = 0; i < 2; i++) {
        say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
        REQUIRE(hear(&c).status == 100);
        say(&c, "abc");
        REQUIRE(hear(&c).status == 200);
    }
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

static void a_slow_reader_delays_nobody(void)
{
    host h;
    client slow, c;

    host_start(&h, NULL);
    dial(&h.r, &slow);
    dial(&h.r, &c);
    say(&slow, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < 100; i++)
        REQUIRE(ask(&c, "/echo").status == 200);
    EVENTUALLY(atomic_load(&h.tasks) == 1); /* the last one may not have ended when its client has the response */
    reply a = hear(&slow);
    REQUIRE(a.intact && a.body_len == BIG);
    EVENTUALLY(atomic_load(&h.tasks) == 0);
    hang_up(&c);
    hang_up(&slow);
    rig_settle(&h.r);
    host_end(&h);
}

static void it_is_told_that_a_client_has_left(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    for (int by_reset = 0; by_reset < 2; by_reset++)
        for (int i = 0; i < 10; i++) {
            int before = atomic_load(&h.left);
            dial(&h.r, &c);
            say(&c, "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n");
            EVENTUALLY(atomic_load(&h.tasks) == 1);
            if (i % 2 == 0)
                usleep(3000); /* it has gone to sleep */
            if (by_reset)
                reset(&c);
            else
                hang_up(&c);
            EVENTUALLY(atomic_load(&h.left) == before + 1);
        }
    /* Before it has taken the request. */
    dial(&h.r, &c);
    client d;
    dial(&h.r, &d);
    say(&d, "GET /block/50 HTTP/1.1\r\nHost: x\r\n\r\n");
    EVENTUALLY(atomic_load(&h.blocked) == 1);
    say(&c, "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n");
    hang_up(&c);
    EVENTUALLY(atomic_load(&h.left) == 21);
    REQUIRE(hear(&d).status == 200);
    hang_up(&d);
    rig_settle(&h.r);
    host_end(&h);
}

static void a_half_closed_client_gets_its_response(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    say(&c, "POST /block/20 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    shutdown(c.fd, SHUT_WR);
    REQUIRE(hear(&c).status == 200);
    hear_end(&c);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* Its own events end its wait, whoever leads. */
static void its_own_events_reach_it(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    for (int i = 1; i <= 20; i++) {
        poke(&h);
        EVENTUALLY(atomic_load(&h.pokes) == i);
    }
    dial(&h.r, &c);
    let_it_lead(&h, &c);
    for (int i = 21; i <= 40; i++) {
        poke(&h);
        EVENTUALLY(atomic_load(&h.pokes) == i);
    }
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* A probe and a part of a head do not end the wait of the event loop that leads. */
static void probes_do_not_wake_it(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    let_it_lead(&h, &c);
    int before = atomic_load(&h.turns);
    for (int i = 0; i < 50; i++)
        REQUIRE(strcmp(ask(&c, "/healthz").body, "ok") == 0);
    uint64_t bytes_in = rig_count(&h.r).bytes_in;
    say(&c, "GET /echo HTTP/1.1\r\nHo");
    wait_read(&h.r, bytes_in + 1);
    REQUIRE(atomic_load(&h.turns) == before);
    say(&c, "st: x\r\n\r\n");
    REQUIRE(hear(&c).status == 200);
    REQUIRE(atomic_load(&h.turns) > before);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* While it is blocked the front's own thread leads, and what happened meanwhile is there when it comes back. */
static void probes_are_answered_while_it_is_blocked(void)
{
    host h;
    client blocks, probe, c;

    host_start(&h, NULL);
    dial(&h.r, &blocks);
    dial(&h.r, &probe);
    dial(&h.r, &c);
    let_it_lead(&h, &c);
    say(&blocks, "GET /block/1000 HTTP/1.1\r\nHost: x\r\n\r\n");
    EVENTUALLY(atomic_load(&h.blocked) == 1);
    say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < 20; i++)
        REQUIRE(strcmp(ask(&probe, "/healthz").body, "ok") == 0);
    REQUIRE(atomic_load(&h.tasks) == 1, "it was not blocked any more");
    REQUIRE(h.r.f->eventloop.lead_time >= 100 * MS, "%lld", (long long)h.r.f->eventloop.lead_time);
    REQUIRE(hear(&blocks).status == 200);
    REQUIRE(hear(&c).status == 200);
    usleep(150000);
    let_it_lead(&h, &c); /* again */
    hang_up(&blocks);
    hang_up(&probe);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* What front_watch_turns() has told. */
typedef struct {
    front *f;
    atomic_int told, ended, wrong;
    atomic_llong took;
} watcher;

static void *watch(void *arg)
{
    watcher *w = arg;
    front_turn turn;
    int rv;

    while ((rv = front_watch_turns(w->f, &turn)) == FRONT_OK)
        if (turn.took == 0) {
            if ((int64_t)turn.number != front_eventloop_looks(w->f) || front_eventloop_turn(w->f) < 100 * MS)
                atomic_fetch_add(&w->wrong, 1);
            atomic_fetch_add(&w->told, 1);
        } else {
            atomic_store(&w->took, turn.took);
            atomic_fetch_add(&w->ended, 1);
        }
    REQUIRE(rv == FRONT_CLOSED);
    return NULL;
}

/* Once for each turn that is longer than slow_callback_duration, while it lasts and at its end; all are counted. */
static void slow_turns_are_told(void)
{
    host h;
    client c, d;
    watcher w = {0};
    front_limits limits = rig_limits();
    tally_waits turns;
    pthread_t thread;

    limits.slow_callback_duration = 100 * MS;
    host_start(&h, &limits);
    w.f = h.r.f;
    REQUIRE(pthread_create(&thread, NULL, watch, &w) == 0);
    dial(&h.r, &c);
    dial(&h.r, &d);
    for (int i = 1; i <= 3; i++) {
        let_it_lead(&h, &c);
        REQUIRE(atomic_load(&w.told) == i - 1);
        say(&c, "GET /block/600 HTTP/1.1\r\nHost: x\r\n\r\n");
        EVENTUALLY(atomic_load(&w.told) == i);
        REQUIRE(atomic_load(&w.ended) == i - 1, "told only at the end");
        REQUIRE(front_eventloop_turn(h.r.f) >= 100 * MS);
        REQUIRE(hear(&c).status == 200);
        EVENTUALLY(atomic_load(&w.ended) == i);
        REQUIRE(atomic_load(&w.took) >= 600 * MS);
        EVENTUALLY(front_eventloop_turn(h.r.f) == 0);
    }
    REQUIRE(atomic_load(&w.wrong) == 0);
    front_turns(h.r.f, &turns);
    REQUIRE(turns.count[0] > 0 && turns.sum >= 1800u * MS);
    hang_up(&c);
    hang_up(&d);
    rig_settle(&h.r);
    front_advance(h.r.f, FRONT_STOPPED);
    pthread_join(thread, NULL);
    host_end(&h);
}

/* Its own event begins the turn, while the front's own thread leads and sleeps. */
static void a_slow_turn_of_its_own_is_told(void)
{
    host h;
    client c;
    watcher w = {0};
    front_limits limits = rig_limits();
    pthread_t thread;

    limits.slow_callback_duration = 100 * MS;
    host_start(&h, &limits);
    w.f = h.r.f;
    REQUIRE(pthread_create(&thread, NULL, watch, &w) == 0);
    dial(&h.r, &c);
    let_it_lead(&h, &c);
    /* On a busy machine the front's own thread may be too late to see that a turn is slow. */
    int64_t until = front_now() + PATIENCE;
    do {
        REQUIRE(front_now() < until && ask(&c, "/block/300").status == 200);
        for (int i = 0; i < 50 && atomic_load(&h.r.f->eventloop.state) != EVENTLOOP_ASLEEP; i++)
            usleep(1000);
    } while (atomic_load(&h.r.f->eventloop.state) != EVENTLOOP_ASLEEP);
    hang_up(&c);
    EVENTUALLY(atomic_load(&w.ended) == atomic_load(&w.told));
    usleep(20000); /* for the front's own thread to fall asleep as well */
    int told = atomic_load(&w.told);
    atomic_store(&h.poke_blocks, 1500);
    poke(&h);
    EVENTUALLY(atomic_load(&w.told) == told + 1);
    REQUIRE(atomic_load(&w.ended) == told, "told only at the end");
    EVENTUALLY(atomic_load(&w.ended) == told + 1);
    rig_settle(&h.r);
    front_advance(h.r.f, FRONT_STOPPED);
    pthread_join(thread, NULL);
    host_end(&h);
}

/* Turns of a few milliseconds make the front's own thread lead for longer and longer, not back and forth. */
static void it_does_not_lead_back_and_forth(void)
{
    host h;
    client c;
    int64_t begin = front_now();

    host_start(&h, NULL);
    dial(&h.r, &c);
    /* It is tried after 0, 100, 300 and 700 ms, and not every few milliseconds.  On a busy machine the first attempts may be
     * forgotten, as a second passes between two of them. */
    int64_t time, took;
    do {
        REQUIRE(ask(&c, "/block/4").status == 200);
        time = h.r.f->eventloop.lead_time;
        took = front_now() - begin;
    } while (took < 30000 * MS && (took < 1500 * MS || time < 200 * MS));
    REQUIRE(time >= 200 * MS && time <= 2 * took + 200 * MS, "%lld after %lld", (long long)time, (long long)took);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* After a load of long turns it leads again as soon as they are short, and not only when the time for that load is over. */
static void it_leads_soon_after_long_turns(void)
{
    host h;
    client c;
    int64_t until = front_now() + PATIENCE, begin, time = 0;

    host_start(&h, NULL);
    dial(&h.r, &c);
    do { /* on a busy machine short turns may be long as well */
        if (time >= 400 * MS)
            usleep(1100000); /* it is forgotten */
        do {
            time = h.r.f->eventloop.lead_time;
            while (h.r.f->eventloop.lead_time == time)
                REQUIRE(front_now() < until && ask(&c, "/block/4").status == 200);
            time = h.r.f->eventloop.lead_time;
        } while (time < 400 * MS);
        begin = front_now();
        let_it_lead(&h, &c);
    } while (front_now() - begin > time / 4 * 3);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* Those that wait for a client are told of the end of the front, and a request cut off by its deadline is left. */
static void the_end_is_told(void)
{
    host h;
    client c[3];
    front_limits limits = rig_limits();

    limits.request_timeout = 300 * MS;
    host_start(&h, &limits);
    dial(&h.r, &c[0]);
    say(&c[0], "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n");
    REQUIRE(hear(&c[0]).status == 504);
    EVENTUALLY(atomic_load(&h.left) == 1);
    hang_up(&c[0]);
    rig_settle(&h.r);
    host_end(&h);

    host_start(&h, NULL);
    for (int i = 0; i < 3; i++) {
        dial(&h.r, &c[i]);
        say(&c[i], i == 0 ? "GET /big HTTP/1.1\r\nHost: x\r\n\r\n" : i == 1 ? "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n"
                                    : "POST /parts HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
    }
    EVENTUALLY(atomic_load(&h.tasks) == 3 && atomic_load(&h.parts) == 1);
    front_advance(h.r.f, FRONT_STOPPED);
    EVENTUALLY(atomic_load(&h.tasks) == 0);
    EVENTUALLY(atomic_load(&h.r.loop_ended));
    REQUIRE(rig_count(&h.r).aborted == 3);
    poke(&h); /* it still serves what is its own */
    EVENTUALLY(atomic_load(&h.pokes) == 1);
    host_end(&h);
    for (int i = 0; i < 3; i++)
        hang_up(&c[i]);
}

/* Many clients at a time, some of which leave within their request; the event loop is blocked now and then. */
static void *many(void *arg)
{
    host *h = arg;
    client *c = malloc(sizeof *c);
    unsigned seed = (unsigned)(uintptr_t)&seed;

    REQUIRE(c != NULL);
    for (int round = 0; round < 10; round++) {
        dial(&h->r, c);
        for (int i = 0; i < 20; i++) {
            int what = rand_r(&seed) % 12;
            if (what == 0) {
                REQUIRE(ask(c, "/block/3").status == 200);
            } else if (what == 1) {
                say(c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
                usleep(rand_r(&seed) % 2000);
                say(c, "0\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
                REQUIRE(strncmp(hear(c).body, "5 ", 2) == 0);
                REQUIRE(hear(c).status == 200);
            } else if (what == 2) {
                REQUIRE(hear((say(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), c)).status == 200);
            } else {
                REQUIRE(ask(c, "/echo").status == 200);
            }
        }
        say(c, rand_r(&seed) % 2 == 0 ? "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n" : "GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
        usleep(rand_r(&seed) % 3000);
        if (rand_r(&seed) % 2 == 0)
            reset(c);
        else
            hang_up(c);
    }
    free(c);
    return NULL;
}

static void many_at_a_time(void)
{
    host h;
    pthread_t clients[8];

    host_start(&h, NULL);
    for (int i = 0; i < 8; i++)
        REQUIRE(pthread_create(&clients[i], NULL, many, &h) == 0);
    for (int i = 0; i < 8; i++)
        pthread_join(clients[i], NULL);
    rig_settle(&h.r);
    host_end(&h);
}

/* One that waits elsewhere leads while there is much to do, and only then. */
static void it_leads_while_it_is_loaded(void)
{
    host h;
    client c;

    elsewhere = true;
    host_start(&h, NULL);
    dial(&h.r, &c);
    for (int i = 0; i < 3; i++) {
        let_it_lead(&h, &c);
        EVENTUALLY(!atomic_load(&h.r.f->eventloop.may_lead));
        usleep(10000);
        int before = atomic_load(&h.turns);
        for (int j = 0; j < 50; j++)
            REQUIRE(strcmp(ask(&c, "/healthz").body, "ok") == 0);
        REQUIRE(atomic_load(&h.turns) == before);
    }
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

/* While one that waits elsewhere has a request, the front hears from it, also when it only has events of its own. */
static void a_silent_one_is_rung(void)
{
    host h;
    client c;
    watcher w = {0};
    front_limits limits = rig_limits();
    pthread_t thread;

    elsewhere = true;
    limits.slow_callback_duration = 100 * MS;
    host_start(&h, &limits);
    w.f = h.r.f;
    REQUIRE(pthread_create(&thread, NULL, watch, &w) == 0);
    dial(&h.r, &c);
    say(&c, "GET /watch HTTP/1.1\r\nHost: x\r\n\r\n");
    EVENTUALLY(atomic_load(&h.tasks) == 1);
    int64_t looks = (int64_t)atomic_load(&h.r.f->eventloop.looks);
    EVENTUALLY((int64_t)atomic_load(&h.r.f->eventloop.looks) > looks);
    REQUIRE(atomic_load(&w.told) == 0);
    atomic_store(&h.poke_blocks, 3000);
    poke(&h);
    EVENTUALLY(atomic_load(&w.told) == 1);
    REQUIRE(atomic_load(&w.ended) == 0, "told only at the end");
    EVENTUALLY(atomic_load(&w.ended) == 1);
    hang_up(&c);
    rig_settle(&h.r);
    front_advance(h.r.f, FRONT_STOPPED);
    pthread_join(thread, NULL);
    host_end(&h);
}

/* The same for one that waits elsewhere. */
#define ELSEWHERE(name) \
    static void name##_elsewhere(void) \
    { \
        elsewhere = true; \
        name(); \
    }
ELSEWHERE(requests_are_answered)
ELSEWHERE(bodies_come_as_they_are_sent)
ELSEWHERE(a_slow_reader_delays_nobody)
ELSEWHERE(it_is_told_that_a_client_has_left)
ELSEWHERE(its_own_events_reach_it)
ELSEWHERE(probes_are_answered_while_it_is_blocked)
ELSEWHERE(the_end_is_told)
ELSEWHERE(many_at_a_time)

/* ------------------------------------------------------------------------------- raw bytes after 101 */

static void hear_bytes(client *c, const char *expected)
{
    size_t len = strlen(expected);

    while (c->len < len)
        REQUIRE(receive(c, front_now() + PATIENCE) > 0);
    REQUIRE(memcmp(c->buf, expected, len) == 0, "%s", c->buf);
    take(c, len);
}

static void bytes_after_101_are_no_http(void)
{
    host h;
    client c;
    front_flight flights[2];

    host_start(&h, NULL);
    for (int i = 0; i < 20; i++) {
        dial(&h.r, &c);
        say(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\nGET /switch HTTP/1.1\r\nHost: x\r\n\r\n");
        say(&c, "GET /healthz HTTP/1.1\r\n\r\n"); /* before 101 */
        REQUIRE(hear(&c).status == 200);
        REQUIRE(hear_any(&c, true).status == 101);
        hear_bytes(&c, "GET /healthz HTTP/1.1\r\n\r\n");
        for (int k = 0; k < 20; k++) {
            say(&c, k % 2 ? "GET / HTTP/1.1\r\n\r\n" : "x");
            hear_bytes(&c, k % 2 ? "GET / HTTP/1.1\r\n\r\n" : "x");
        }
        front_counters n = rig_count(&h.r);
        REQUIRE(n.in_flight == 0 && n.websockets == 1 && n.buffered == 0);
        REQUIRE(front_requests(h.r.f, FRONT_TAKEN | FRONT_QUEUED, flights, 2) == 0);
        REQUIRE(front_requests(h.r.f, FRONT_SWITCHED, flights, 2) == 1 && strcmp(flights[0].target, "/switch") == 0);
        if (i % 4 == 0)
            reset(&c);
        else if (i % 4 == 1)
            shutdown(c.fd, SHUT_WR);
        else if (i % 4 == 2)
            say(&c, ".");
        if (i % 4 == 2)
            hear_bytes(&c, ".");
        if (i % 4 == 1 || i % 4 == 2)
            hear_end(&c);
        if (i % 4 != 0)
            hang_up(&c);
    }
    rig_settle(&h.r);
    REQUIRE(rig_count(&h.r).websockets == 0 && rig_count(&h.r).websockets_opened == 20);
    host_end(&h);
}

/* Much of it in both directions, also before 101; a client that sends and does not read yet delays nobody. */
static void much_after_101(void)
{
    enum { MUCH = 8 << 20 };
    host h;
    client c, d;
    static char got[65536];

    host_start(&h, NULL);
    dial(&h.r, &d);
    dial(&h.r, &c);
    say(&c, "GET /switch HTTP/1.1\r\nHost: x\r\n\r\n");
    size_t sent = 0, received = 0;
    while (received < MUCH) {
        ssize_t n = sent < MUCH ? send(c.fd, h.big + sent, MUCH - sent < 100000 ? MUCH - sent : 100000, MSG_NOSIGNAL | MSG_DONTWAIT) : -1;
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        if (received == 0 && c.len == 0) {
            REQUIRE(hear_any(&c, true).status == 101);
            REQUIRE(ask(&d, "/echo").status == 200);
        }
        size_t from = c.len;
        memcpy(got, c.buf, from);
        take(&c, from);
        if (from == 0) {
            n = recv(c.fd, got, sizeof got, 0);
            REQUIRE(n > 0);
            from = (size_t)n;
        }
        REQUIRE(memcmp(got, h.big + received, from) == 0);
        received += from;
    }
    REQUIRE(rig_count(&h.r).buffered == 0);
    hang_up(&c);
    hang_up(&d);
    rig_settle(&h.r);
    host_end(&h);
}

static void only_a_request_without_a_body_switches(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    say(&c, "POST /switch HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    REQUIRE(hear(&c).status == 200);
    say(&c, "POST /switch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    REQUIRE(hear(&c).status == 200);
    say(&c, "GET /switch HTTP/1.0\r\nHost: x\r\n\r\n");
    REQUIRE(hear(&c).status == 200);
    hang_up(&c);
    rig_settle(&h.r);
    REQUIRE(rig_count(&h.r).websockets_opened == 0);
    host_end(&h);
}

static void no_time_limit_ends_raw_bytes(void)
{
    host h;
    client c, d;
    front_limits limits = rig_limits();

    limits.request_timeout = limits.idle_timeout = limits.body_timeout = limits.write_timeout = 100 * MS;
    host_start(&h, &limits);
    dial(&h.r, &c);
    say(&c, "GET /switch HTTP/1.1\r\nHost: x\r\n\r\n");
    REQUIRE(hear_any(&c, true).status == 101);
    for (int i = 0; i < 3; i++) {
        usleep(200000);
        dial(&h.r, &d);
        REQUIRE(ask(&d, "/echo").status == 200);
        hang_up(&d);
    }
    say(&c, "x");
    hear_bytes(&c, "x");
    REQUIRE(rig_count(&h.r).request_timeouts == 0);
    hang_up(&c);
    rig_settle(&h.r);
    host_end(&h);
}

static void the_end_is_told_to_raw_bytes(void)
{
    host h;
    client c;

    host_start(&h, NULL);
    dial(&h.r, &c);
    say(&c, "GET /switch HTTP/1.1\r\nHost: x\r\n\r\n");
    REQUIRE(hear_any(&c, true).status == 101);
    front_advance(h.r.f, FRONT_STOPPED);
    EVENTUALLY(atomic_load(&h.tasks) == 0);
    REQUIRE(rig_count(&h.r).aborted == 1, "%llu", (unsigned long long)rig_count(&h.r).aborted);
    hang_up(&c);
    host_end(&h);
}

static const test tests[] = {
    {"requests_are_answered", requests_are_answered, 0},
    {"bodies_come_as_they_are_sent", bodies_come_as_they_are_sent, 0},
    {"a_body_longer_than_its_buffer", a_body_longer_than_its_buffer, 0},
    {"continue_comes_with_the_first_read", continue_comes_with_the_first_read, 0},
    {"a_slow_reader_delays_nobody", a_slow_reader_delays_nobody, 0},
    {"it_is_told_that_a_client_has_left", it_is_told_that_a_client_has_left, 0},
    {"a_half_closed_client_gets_its_response", a_half_closed_client_gets_its_response, 0},
    {"its_own_events_reach_it", its_own_events_reach_it, 0},
    {"probes_do_not_wake_it", probes_do_not_wake_it, 0},
    {"probes_are_answered_while_it_is_blocked", probes_are_answered_while_it_is_blocked, 0},
    {"slow_turns_are_told", slow_turns_are_told, 0},
    {"a_slow_turn_of_its_own_is_told", a_slow_turn_of_its_own_is_told, 0},
    {"it_does_not_lead_back_and_forth", it_does_not_lead_back_and_forth, 0},
    {"it_leads_soon_after_long_turns", it_leads_soon_after_long_turns, 0},
    {"the_end_is_told", the_end_is_told, 0},
    {"many_at_a_time", many_at_a_time, 0},
    {"it_leads_while_it_is_loaded", it_leads_while_it_is_loaded, 0},
    {"a_silent_one_is_rung", a_silent_one_is_rung, 0},
    {"requests_are_answered_elsewhere", requests_are_answered_elsewhere, 0},
    {"bodies_come_as_they_are_sent_elsewhere", bodies_come_as_they_are_sent_elsewhere, 0},
    {"a_slow_reader_delays_nobody_elsewhere", a_slow_reader_delays_nobody_elsewhere, 0},
    {"it_is_told_that_a_client_has_left_elsewhere", it_is_told_that_a_client_has_left_elsewhere, 0},
    {"its_own_events_reach_it_elsewhere", its_own_events_reach_it_elsewhere, 0},
    {"probes_are_answered_while_it_is_blocked_elsewhere", probes_are_answered_while_it_is_blocked_elsewhere, 0},
    {"the_end_is_told_elsewhere", the_end_is_told_elsewhere, 0},
    {"many_at_a_time_elsewhere", many_at_a_time_elsewhere, 0},
    {"bytes_after_101_are_no_http", bytes_after_101_are_no_http, 0},
    {"much_after_101", much_after_101, 0},
    {"only_a_request_without_a_body_switches", only_a_request_without_a_body_switches, 0},
    {"no_time_limit_ends_raw_bytes", no_time_limit_ends_raw_bytes, 0},
    {"the_end_is_told_to_raw_bytes", the_end_is_told_to_raw_bytes, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
