/* loop.c - see loop.h. */
#define _GNU_SOURCE
#include "loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "eventloop.h"
#include "listener.h"
#include "probe.h"
#include "sockets.h"
#include "spool.h"
#include "stage.h"

#define EVENTS 64 /* per turn: a worker waits for at most this many to be read */

static void on_gap(front *f, int64_t gap)
{
    clock_add_gap(f, gap);
    probe_freeze(f, gap);
    conn_extend(f, gap);
    handoff_extend(f, gap);
    stage_extend(f, gap);
    listener_extend(f, gap);
}

static void take_back(front *f)
{
    for (front_conn *c = handoff_returned(f), *next; c != NULL; c = next) {
        next = c->next;
        conn_returned(f, c);
    }
}

static void take_spooled(front *f)
{
    for (front_conn *c; conn_are_spooling(f) && (c = spool_finished(f)) != NULL;)
        conn_spooled(f, c);
}

/* A body that was given to the spool in this turn may be finished already, and this read takes its ring as well. */
static void on_wake(front *f)
{
    (void)!read(f->wake_fd, &(uint64_t){0}, sizeof(uint64_t));
    take_spooled(f);
}

static void hand_over(front *f, enum handoff_waking waking)
{
    front_conn *c, *refused;
    bool returned = handoff_pass(f, waking, &refused);

    while ((c = refused) != NULL) {
        refused = c->next;
        c->next = NULL;
        conn_from_worker(f, c);
        count_add(&f->count.shed, 1);
        conn_refuse(f, c, 503, "too many requests waiting\n");
    }
    if (returned) /* an edge may have been recorded for one of them after the worker had looked */
        take_back(f);
}

static void expire(front *f)
{
    front_conn *c;

    if (conn_due(f) <= f->now)
        conn_expire(f);
    while ((c = handoff_overdue(f)) != NULL) {
        conn_from_worker(f, c);
        count_add(&f->count.timeouts, 1);
        conn_refuse(f, c, 503, handoff_overdue_text(f));
    }
    if (f->limits.request_timeout != 0)
        handoff_expire(f);
    stage_expire(f);
    listener_expire(f);
}

int loop_turn(front *f, int timeout, enum handoff_waking waking)
{
    struct epoll_event events[EVENTS];
    int64_t due = timeout < 0 ? INT64_MAX : f->now + timeout * MILLISECOND;

    atomic_store_explicit(&f->has_run, true, memory_order_relaxed); /* workers may lead before the front's own thread */
    clock_expect(f, due);
    int n = epoll_wait(f->epoll_fd, events, EVENTS, timeout);

    f->now = clock_now();
    atomic_store_explicit(&f->turn, f->turn + 1, memory_order_relaxed);
    if (n == -1) {
        if (errno != EINTR)
            return -errno;
        n = 0;
    }
    if (f->now - FRONT_GAP > due)
        on_gap(f, f->now - due);
    probe_take_pages(f);
    take_back(f);
    take_spooled(f);
    if (handoff_has_held(f))
        conn_release(f);
    if (conn_are_again(f))
        conn_resume(f);
    for (int i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)events[i].data.u64, generation = (uint32_t)(events[i].data.u64 >> 32);
        if (slot == FRONT_LISTENER)
            listener_accept(f, generation, events[i].events, n, timeout == 0);
        else if (slot == FRONT_SIGNALS)
            stage_signal(f);
        else if (slot == FRONT_OUTER)
            eventloop_on_outer(f);
        else if (slot == FRONT_WAKE)
            on_wake(f);
        else
            conn_event(f, slot, generation, events[i].events);
    }
    expire(f);
    if (stage_is_due(f))
        stage_change(f);
    hand_over(f, waking);
    if (atomic_load(&f->stage) == FRONT_CLOSING && sockets_are_closed(f) && conn_count(f) == 0)
        atomic_store(&f->stage, FRONT_STOPPED);
    return FRONT_OK;
}

int loop_timeout(front *f)
{
    if (conn_are_again(f) || handoff_is_due(f))
        return 0;
    int64_t due = stage_due(f, listener_due(f, conn_due(f))), look = probe_due(f);
    if (look < due)
        due = look;
    if (handoff_workers(f) > 0)
        due = handoff_due(f, due, f->now + SECOND);
    if (due == INT64_MAX)
        return -1;
    int64_t now = clock_now();
    return due <= now ? 0 : (int)((due - now + MILLISECOND - 1) / MILLISECOND);
}
