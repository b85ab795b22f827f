/* front.c - the parts of front.h put together: opening and closing, forks, and what is counted. */
#define _GNU_SOURCE
#include "state.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "body.h"
#include "carrier.h"
#include "clock.h"
#include "conn.h"
#include "eventloop.h"
#include "handoff.h"
#include "io.h"
#include "leader.h"
#include "probe.h"
#include "remote.h"
#include "reserve.h"
#include "sockets.h"
#include "spool.h"
#include "stage.h"

/* ------------------------------------------------------------------------ forks */

static pthread_mutex_t open_mutex = PTHREAD_MUTEX_INITIALIZER; /* held during fork(): the child gets a consistent list */
static front *open_fronts;

static void before_fork(void)
{
    pthread_mutex_lock(&open_mutex);
    atomic_store(&io_has_forked, open_fronts != NULL || atomic_load(&io_has_forked));
}

static void after_fork(void)
{
    pthread_mutex_unlock(&open_mutex);
}

/* Runs in the child, which has a single thread, and only uses calls that are allowed after fork() (signal-safety(7)). */
static void disown(front *f)
{
    f->foreign = true;
    for (int i = 0; i < 2; i++)
        close((int[]){f->epoll_fd, f->wake_fd}[i]);
    f->epoll_fd = f->wake_fd = -1;
    eventloop_disown(f);
    spool_disown(f);
    if (!atomic_load(&f->has_run)) /* there are no connections, and the child may serve on the socket itself */
        return;
    conn_disown(f);
    sockets_disown(f);
}

static void in_child(void)
{
    for (front *f = open_fronts; f != NULL; f = f->next_open)
        if (!f->foreign)
            disown(f);
    atomic_store(&io_has_forked, false);
    pthread_mutex_init(&open_mutex, NULL);
}

static int note_open(front *f)
{
    static bool is_watching; /* under open_mutex */
    int rv = 0;

    pthread_mutex_lock(&open_mutex);
    if (!is_watching && (rv = pthread_atfork(before_fork, after_fork, in_child)) == 0)
        is_watching = true;
    if (rv == 0) {
        f->next_open = open_fronts;
        open_fronts = f;
    }
    pthread_mutex_unlock(&open_mutex);
    return -rv;
}

static void note_closed(front *f)
{
    pthread_mutex_lock(&open_mutex);
    for (front **p = &open_fronts; *p != NULL; p = &(*p)->next_open)
        if (*p == f) {
            *p = f->next_open;
            break;
        }
    pthread_mutex_unlock(&open_mutex);
}

bool front_is_foreign(const front *f)
{
    return f->foreign;
}

/* -------------------------------------------------------------------- lifetime */

static front *make(const front_limits *limits)
{
    front *f = calloc(1, sizeof *f);

    if (f == NULL)
        return NULL;
    f->limits = *limits;
    f->limits.body_spool = NULL;
    f->heads = (http1_limits){
        .max_head_size = (uint16_t)limits->max_header_size,
        .max_headers = (uint16_t)limits->max_headers,
        .max_target_size = (uint16_t)(limits->max_target_size < limits->max_header_size ? limits->max_target_size
                                                                                        : limits->max_header_size),
    };
    f->epoll_fd = f->wake_fd = -1;
    reserve_none(f);
    clock_expect(f, INT64_MAX);
    f->now = clock_now();
    leader_init(f);
    handoff_init(f);
    eventloop_init(f);
    probe_init(f);
    return f;
}

int front_open_remote(front **out, int socket, int bell_fd, const front_limits *limits)
{
    front *f = make(limits);
    int rv;

    if (f == NULL)
        return -ENOMEM;
    if ((rv = remote_open(f, socket, bell_fd)) != FRONT_OK || (rv = note_open(f)) != 0) {
        front_close(f);
        return rv;
    }
    *out = f;
    return FRONT_OK;
}

int front_open(front **out, const front_listen *sockets, unsigned n, const front_limits *limits)
{
    front *f = make(limits);
    int rv;

    if (f == NULL)
        return -ENOMEM;
    reserve_init(f);
    f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (f->epoll_fd == -1 || f->wake_fd == -1 || !reserve_is_there(f)) {
        rv = -errno;
        front_close(f);
        return rv;
    }
    if (limits->body_spool != NULL && (f->limits.body_spool = strdup(limits->body_spool)) == NULL) {
        front_close(f);
        return -ENOMEM;
    }
    if ((rv = conn_open(f)) != 0) {
        front_close(f);
        return rv;
    }
    if ((rv = note_open(f)) != 0 || (rv = sockets_open(f, sockets, n)) != 0 ||
        (rv = front_watch_fd(f, f->wake_fd, FRONT_WAKE, EPOLLIN)) != 0) {
        front_close(f);
        return rv;
    }
    *out = f;
    return FRONT_OK;
}

/* ------------------------------------------- for a front here, or for one whose sockets another process has */

int front_run(front *f)
{
    return f->remote != NULL ? remote_run(f) : leader_run(f);
}

void front_advance(front *f, enum front_stage stage)
{
    stage_advance(f, stage);
    if (f->remote != NULL) {
        remote_advance(f);
        return;
    }
    front_ring(f);
    eventloop_bell(f);
}

enum front_stage front_stage_now(const front *f)
{
    return f->remote != NULL ? remote_stage(f) : stage_now(f);
}

bool front_is_draining(const front *f)
{
    return f->remote != NULL ? remote_is_draining(f) : stage_now(f) != FRONT_SERVING;
}

void front_publish(front *f, pages *table)
{
    if (f->remote != NULL)
        pages_free(table); /* it serves none */
    else
        probe_publish(f, table);
}

void front_renew(front *f, unsigned slot, int64_t nanoseconds)
{
    if (f->remote != NULL)
        remote_renew(f, slot, nanoseconds);
    else
        probe_renew(f, slot, nanoseconds);
}

/* -------------------------------------------------------------------- */

void front_close(front *f)
{
    note_closed(f);
    if (f->foreign || !spool_close(f)) /* other threads were using it at the fork, or one still is: its memory is not freed */
        return;
    if (f->carrier != NULL)
        carrier_free(f);
    if (f->remote != NULL)
        remote_close(f);
    conn_free(f);
    free((void *)(uintptr_t)f->limits.body_spool);
    probe_free(f);
    reserve_give_up(f);
    for (size_t i = 0; i < 2; i++) {
        int fd = (int[]){f->epoll_fd, f->wake_fd}[i];
        if (fd != -1)
            close(fd);
    }
    leader_free(f);
    handoff_free(f);
    eventloop_free(f);
    free(f);
}

/* ------------------------------------------------------------------- for people */

void front_count(front *f, front_counters *out)
{
    if (f->remote != NULL && !f->foreign)
        remote_note_late(f);
#define LOAD(name, ...) out->name = atomic_load_explicit(&f->count.name, memory_order_relaxed);
#define CLEAR(name, ...) out->name = 0;
    FRONT_COUNTERS(LOAD, CLEAR)
#undef LOAD
#undef CLEAR
    out->buffered = body_room_used(f);
    spool_count(f, out);
    if (f->foreign)
        return;
    handoff_count(f, out);
    out->connections = conn_count(f);
}
