/*
 * test_processes.c - worker processes behind a front: each is killed before each of its writes to the memory that it shares
 * with the front, and nobody must lose a request by it, or get a wrong response.
 *
 *     cc -g -fsanitize=address -Iext tests/ext/test_processes.c $(ls ext/{http,front}/?*.c | grep -v remote) -pthread && ./a.out
 */
static void step(void);
#define AREA_STEP() step()
#include "front/remote.c"

#include "front/carrier.h"
#include "rig.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#define LONG_BODY 300000 /* longer than the rings, so that both sides wait for each other */

/* ------------------------------------------------------------------------------------------------ a worker */

static int steps_left; /* of this process; 0: it is not killed */
static atomic_int *begun; /* shared: how often each request was begun, by the digit in its path */

static void step(void)
{
    if (steps_left > 0 && --steps_left == 0)
        kill(getpid(), SIGKILL);
}

static void count_begun(const front_request *q)
{
    const char *digit = memchr(q->data + q->head->target.pos, '?', q->head->target.len);

    if (digit != NULL)
        atomic_fetch_add(&begun[digit[1] - '0'], 1);
}

static void serve_by_thread(rig *r)
{
    front_request q;
    int64_t came = 0;

    for (int rv = FRONT_OK; rv == FRONT_OK || rv == FRONT_TIMEOUT;) { /* as in core.pyx */
        if ((rv = front_come(r->f, &q, 0, &came)) == FRONT_TIMEOUT)
            rv = front_come(r->f, &q, -1, &came);
        if (rv != FRONT_OK)
            continue;
        count_begun(&q);
        rig_serve(r, &q);
    }
}

/* One request of an event loop: reads all of the body, then answers with its length, or with so many bytes as the path says. */
typedef struct {
    front_conn *c;
    size_t got, big, n, at;
    char *bytes; /* NULL: it still reads */
    bool keep_alive;
} task;

/* Goes on with it until it has to wait. */
static void go_on(front *f, task *t)
{
    char part[4096];
    ssize_t n = 1;

    while (t->bytes == NULL) {
        while ((n = front_read(f, t->c, part, sizeof part, false)) > 0)
            t->got += (size_t)n;
        if (n == -EAGAIN && front_await(f, t->c, FRONT_READABLE, t) == FRONT_AGAIN)
            return;
        if (n == -EAGAIN)
            continue;
        REQUIRE((t->bytes = malloc(t->big + 256)) != NULL);
        t->keep_alive = front_begin_response(f, t->c) && n == 0;
        char text[32];
        int len = t->big != 0 ? 0 : snprintf(text, sizeof text, "%zu", t->got);
        t->n = (size_t)sprintf(t->bytes, "HTTP/1.1 200 X\r\nContent-Length: %zu\r\n\r\n", t->big != 0 ? t->big : (size_t)len);
        for (size_t i = 0; i < t->big; i++)
            t->bytes[t->n++] = rig_byte(i);
        memcpy(t->bytes + t->n, text, (size_t)len);
        t->n += (size_t)len;
    }
    while (t->at < t->n) {
        struct iovec iov = {.iov_base = t->bytes + t->at, .iov_len = t->n - t->at};
        int rv = front_send(f, t->c, &iov, 1, SIZE_MAX, false);
        t->at = t->n - iov.iov_len;
        if (rv == FRONT_AGAIN && front_await(f, t->c, FRONT_WRITABLE, t) == FRONT_AGAIN)
            return;
        if (rv < 0)
            t->n = t->at = 0;
    }
    front_finish(f, t->c, t->keep_alive, t->n == 0, 200);
    free(t->bytes);
    free(t);
}

static void serve_by_eventloop(front *f)
{
    int fd = front_serve_by_reader(f);
    task *t;

    REQUIRE(fd >= 0);
    for (unsigned news = front_settle(f);; news = front_look(f)) {
        while (news != 0) {
            front_request q;
            while ((t = front_moved(f)) != NULL)
                go_on(f, t);
            while (front_take(f, &q, 0) == FRONT_OK) {
                count_begun(&q);
                REQUIRE((t = calloc(1, sizeof *t)) != NULL);
                t->c = q.conn;
                char target[64];
                snprintf(target, sizeof target, "%.*s", q.head->target.len < 60 ? q.head->target.len : 60,
                         q.data + q.head->target.pos);
                t->big = rig_number(target);
                go_on(f, t);
            }
            news = front_settle(f);
        }
        if (front_stage_now(f) >= FRONT_CLOSING)
            return;
        poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 5);
    }
}

static _Noreturn void be_worker(int area_fd, int bell_fd, const int order[2])
{
    rig r = {.file = -1};
    front_limits limits = rig_limits();

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    steps_left = order[0];
    limits.body_spool = NULL;
    REQUIRE(front_open_remote(&r.f, area_fd, bell_fd, &limits) == FRONT_OK);
    close(area_fd);
    close(bell_fd);
    if (order[1])
        serve_by_eventloop(r.f);
    else
        serve_by_thread(&r);
    front_close(r.f);
    exit(0); /* the leak checker looks now */
}

/* Forks workers for the test, which has threads.  An order: two descriptors, then {steps, whether by an event loop}. */
static _Noreturn void be_template(int line)
{
    int fds[2], order[2], status;

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* when the test has failed */
    for (;;) {
        poll(&(struct pollfd){.fd = line, .events = POLLIN}, 1, -1);
        bool is_last = area_receive(line, fds) != FRONT_OK;
        while (waitpid(-1, &status, is_last ? 0 : WNOHANG) > 0)
            REQUIRE(status == 0 || status == SIGKILL, "a worker has ended with %x", (unsigned)status);
        if (is_last)
            _exit(0);
        REQUIRE(read(line, order, sizeof order) == sizeof order);
        pid_t pid = fork();
        if (pid == 0)
            be_worker(fds[0], fds[1], order);
        close(fds[0]);
        close(fds[1]);
        REQUIRE(write(line, &pid, sizeof pid) == sizeof pid);
    }
}

/* ------------------------------------------------------------------------------------------------ the front's process */

typedef struct {
    rig r;
    pthread_t carrier, undertaker;
    int line, bell_fd;
    bool by_eventloop;
    uint32_t room;
    atomic_int pid_fd;       /* of the only worker */
    _Atomic uint32_t number;
    atomic_int deaths, next_steps; /* of the next worker; 0 for all after it */
    atomic_bool stops;
} crew;

static void *carry(void *arg)
{
    crew *w = arg;
    REQUIRE(front_carry(w->r.f) == FRONT_CLOSED);
    return NULL;
}

static void hire(crew *w, int steps)
{
    uint32_t number;
    int order[2] = {steps, w->by_eventloop};
    pid_t pid;
    int fd = front_add_worker(w->r.f, w->room, w->by_eventloop, &number);

    REQUIRE(fd >= 0);
    REQUIRE(area_send(w->line, (int[]){fd, w->bell_fd}) == FRONT_OK);
    REQUIRE(write(w->line, order, sizeof order) == sizeof order);
    close(fd);
    REQUIRE(read(w->line, &pid, sizeof pid) == sizeof pid);
    int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    REQUIRE(pid_fd != -1);
    atomic_store(&w->number, number);
    atomic_store(&w->pid_fd, pid_fd);
    REQUIRE(front_admit_worker(w->r.f, number) == FRONT_OK);
}

/* Waits for the worker to end, and hires another one. */
static void *undertake(void *arg)
{
    crew *w = arg;
    front_loss losses[8];
    front_flight flights[8];

    while (!atomic_load(&w->stops)) {
        struct pollfd p = {.fd = atomic_load(&w->pid_fd), .events = POLLIN};
        if (p.fd == -1 || poll(&p, 1, 5) != 1) {
            ssize_t n = front_worker_requests(w->r.f, atomic_load(&w->number), flights, 8);
            for (ssize_t i = 0; i < n && i < 8; i++)
                REQUIRE(flights[i].method[0] != '\0' && flights[i].target[0] == '/' && flights[i].age >= 0);
            usleep(p.fd == -1 ? 500 : 0);
            continue;
        }
        close(p.fd);
        atomic_store(&w->pid_fd, -1);
        REQUIRE(front_lose_worker(w->r.f, atomic_load(&w->number), losses, 8) >= 0);
        atomic_fetch_add(&w->deaths, 1);
        if (!atomic_load(&w->stops))
            hire(w, atomic_exchange(&w->next_steps, 0));
    }
    return NULL;
}

static void crew_start(crew *w, bool by_eventloop, uint32_t room)
{
    int line[2];
    front_limits limits = rig_limits();

    memset(w, 0, sizeof *w);
    limits.retry_idempotent = true;
    begun = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(begun != MAP_FAILED && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) == 0);
    pid_t template = fork();
    REQUIRE(template != -1);
    if (template == 0) {
        close(line[0]);
        be_template(line[1]);
    }
    close(line[1]);
    rig_start(&w->r, &limits, 0);
    w->line = line[0];
    w->by_eventloop = by_eventloop;
    w->room = room;
    atomic_store(&w->pid_fd, -1);
    REQUIRE((w->bell_fd = front_open_workers(w->r.f)) >= 0);
    REQUIRE(pthread_create(&w->carrier, NULL, carry, w) == 0);
    REQUIRE(pthread_create(&w->undertaker, NULL, undertake, w) == 0);
}

static void crew_stop(crew *w)
{
    rig_settle(&w->r);
    atomic_store(&w->stops, true);
    pthread_join(w->undertaker, NULL);
    front_advance(w->r.f, FRONT_STOPPED);
    pthread_join(w->carrier, NULL);
    close(w->line);
    if (w->pid_fd != -1)
        close(w->pid_fd);
    rig_join(&w->r);
    int status;
    REQUIRE(wait(&status) != -1 && status == 0, "the template has ended with %x", (unsigned)status);
    munmap(begun, 4096);
}

/* What the client of one request may see. */
static void check(client *c, int digit, bool is_safe)
{
    reply a = hear(c);
    int n = atomic_exchange(&begun[digit], 0);

    REQUIRE(n <= (is_safe ? 2 : 1), "request %d was begun %d times", digit, n);
    if (a.cut)
        ; /* by the death, in the middle, which the client can tell */
    else if (a.status == 502)
        REQUIRE(!is_safe && a.close, "request %d", digit);
    else
        REQUIRE(a.status == 200 && (digit != 2 || (a.body_len == LONG_BODY && a.intact)), "request %d: %d", digit, a.status);
    hang_up(c);
}

/* The worker ends, and the next one is killed after so many steps. */
static void change_worker(crew *w, int steps)
{
    atomic_store(&w->next_steps, steps);
    /* It may just have died, after its last request. */
    EVENTUALLY(atomic_load(&w->next_steps) == 0 || (front_retire_worker(w->r.f, atomic_load(&w->number)), false));
    EVENTUALLY(atomic_load(&w->pid_fd) != -1);
}

/* Three requests at once: a short one, a long body, a long response. */
static void killed_at_each_step(bool by_eventloop)
{
    static char body[LONG_BODY];
    crew w;
    int n = 0, survived = 0;

    crew_start(&w, by_eventloop, 4);
    hire(&w, 0);
    while (survived < 3) { /* the steps are not always the same */
        change_worker(&w, n += SLOWNESS > 1 ? 3 : 1);
        int deaths = atomic_load(&w.deaths);
        client c[3];
        for (int i = 0; i < 3; i++)
            dial(&w.r, &c[i]);
        say(&c[0], "GET /short?0 HTTP/1.1\r\nHost: x\r\n\r\n");
        sayf(&c[1], "POST /post?1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", LONG_BODY);
        say_bytes(&c[1], body, sizeof body);
        sayf(&c[2], "GET /big/%d?2 HTTP/1.1\r\nHost: x\r\n\r\n", LONG_BODY);
        check(&c[0], 0, true);
        check(&c[1], 1, false);
        check(&c[2], 2, true);
        front_worker_state now;
        EVENTUALLY(front_worker_now(w.r.f, atomic_load(&w.number), &now) == FRONT_OK && now.in_flight == 0 && now.queued == 0);
        REQUIRE(!now.is_broken);
        rig_settle(&w.r);
        survived = deaths == atomic_load(&w.deaths) ? survived + 1 : 0;
    }
    printf("     killed at up to %d steps\n", n);
    REQUIRE(n > 30);
    crew_stop(&w);
}

static void a_thread_is_killed_at_each_step(void)
{
    killed_at_each_step(false);
}

static void an_event_loop_is_killed_at_each_step(void)
{
    killed_at_each_step(true);
}

int main(int argc, char **argv)
{
    static const test tests[] = {
        {"a_thread_is_killed_at_each_step", a_thread_is_killed_at_each_step, 0},
        {"an_event_loop_is_killed_at_each_step", an_event_loop_is_killed_at_each_step, 0},
        {NULL, NULL, 0},
    };

    return rig_main(tests, argc, argv);
}
