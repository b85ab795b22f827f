/*
 * handoff.h - requests on their way from the loop to the workers, and back.
 *
 * A turn gathers requests in `batch`; at its end handoff_pass() queues them in `ready`.  A worker moves one to `taken`, and
 * from there to `returned`, where the loop finds it.  `mutex` guards the last three and the sleeping workers, and is never
 * held during a system call that can block.
 */
#ifndef HANDOFF_H
#define HANDOFF_H

#include "admission.h"
#include "clock.h"
#include "state.h"

static inline void handoff_init(front *f)
{
    pthread_mutex_init(&f->queue.mutex, NULL);
    admission_init(f);
}

static inline void handoff_free(front *f)
{
    pthread_mutex_destroy(&f->queue.mutex);
}

/* ----------------------------------------------------------------------------- the loop's side: for the leader */

/* Whether connections wait in CONN_HELD until fewer workers read bodies. */
static inline bool handoff_has_held(const front *f)
{
    return atomic_load_explicit(&f->queue.n_held, memory_order_relaxed) > 0;
}

/* Whom handoff_pass() may wake. */
enum handoff_waking {
    HANDOFF_TAKING,  /* nobody: the leader will take a request itself */
    HANDOFF_RELAXED, /* workers process short requests, and lead: one, unless a worker is busy */
    HANDOFF_EAGER,
};

/* The connection in CONN_WORKER has a request for the workers. */
static inline void handoff_add(front *f, front_conn *c)
{
    atomic_fetch_add_explicit(&f->queue.n_worker, 1, memory_order_relaxed);
    c->unread = !c->complete && c->awaited == 0; /* a body that has gathered in the socket does not make its worker wait */
    f->queue.n_unread += c->unread;
    list_push(&f->queue.batch, c);
}

static inline void handoff_note_held(front *f, bool is_held) /* a connection enters CONN_HELD, or leaves it */
{
    if (is_held)
        atomic_fetch_add(&f->queue.n_held, 1);
    else
        atomic_fetch_sub(&f->queue.n_held, 1);
}

/* The loop owns the connection again. */
static inline void handoff_forget(front *f, front_conn *c)
{
    atomic_fetch_sub_explicit(&f->queue.n_worker, 1, memory_order_relaxed);
    f->queue.n_unread -= c->unread;
    c->unread = false;
}

static inline bool handoff_is_due(const front *f)
{
    return f->queue.batch.first != NULL;
}

static inline uint32_t handoff_workers(front *f) /* connections queued, or with a worker */
{
    return atomic_load_explicit(&f->queue.n_worker, memory_order_relaxed);
}

/* Hands the requests of this turn to the workers.  `*refused`: a list of those that the queue has no place for.  Returns
 * whether connections have been returned meanwhile. */
bool handoff_pass(front *f, enum handoff_waking waking, front_conn **refused);

/* The list of connections that workers have returned. */
static inline front_conn *handoff_returned(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
    front_conn *c = f->queue.returned.first;
    f->queue.returned.first = f->queue.returned.last = NULL;
    pthread_mutex_unlock(&f->queue.mutex);
    return c;
}

/* A request that has waited in the queue for too long, or NULL. */
static inline front_conn *handoff_overdue(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
    front_conn *c = f->queue.ready.first;
    if (c != NULL && c->deadline > f->now)
        c = NULL;
    if (c != NULL) {
        list_remove(&f->queue.ready, c);
        f->queue.n_ready--;
        tally_add_wait(&f->queue.waits, f->now - c->arrived);
        c->with_worker = c->queued = false;
    }
    pthread_mutex_unlock(&f->queue.mutex);
    return c;
}

const char *handoff_overdue_text(const front *f);
void handoff_look_at_taken(front *f, bool (*look)(front *, front_conn *)); /* M: at each request that a worker has */
void handoff_note_late(front *f, front_conn *c); /* M: its request_timeout has passed, and it has been answered */
void handoff_expire(front *f);          /* responds for workers whose request_timeout has passed */
int64_t handoff_due(front *f, int64_t due, int64_t look); /* when something must be done; at most `due`, or `look` */
void handoff_note_event(front *f, front_conn *c, unsigned events); /* of a connection that a worker owns; enum front_progress */
bool handoff_may_keep(front *f);        /* whether half of the workers may have to wait for their clients */
bool handoff_ring(front *f);            /* the event loop, if it sleeps; whether it does */
bool handoff_progresses(front *f);      /* whether short requests have been finished since the last call */
void handoff_extend(front *f, int64_t gap); /* all deadlines */
void handoff_close(front *f, uint64_t lost); /* the front has stopped; `lost`: requests that end with it */

static inline int64_t handoff_backlog(const front *f) /* nanoseconds that half of the waiting requests keep all workers busy */
{
    return f->queue.backlog;
}

/* ---------------------------------------------------------------------------------------- the workers' side */

static inline void handoff_lock(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
}

static inline void handoff_unlock(front *f)
{
    pthread_mutex_unlock(&f->queue.mutex);
}

static inline bool handoff_is_closed(const front *f) /* with the mutex held */
{
    return f->queue.closed;
}

static inline bool handoff_is_short(const front *f) /* requests are; a guess without the mutex */
{
    return admission_service_time(f) < LONG_REQUEST;
}

/* Where requests share an interpreter, a worker that does not have it comes for a request, and takes the oldest when it has it: so
 * they begin in the order in which they have arrived, and not in that in which the interpreter lock wakes threads.  One comes at a
 * time, and the others sleep, as more threads that wait for the lock make its changes dearer.  (The 99th percentile of requests
 * that compute for 0.3 ms, at 62 % of the capacity: 3.1 ms -> 2.0.)  These three are called with the mutex held. */
bool handoff_may_come(const front *f);  /* whether it is to: nobody else comes, and there is a request */
int64_t handoff_come(front *f);         /* when; to be handed to handoff_pop() */
bool handoff_gives_way(const front *f); /* whether a worker that has the interpreter leaves the next request to one that has come */

/* Whether one that was told to come at `came`, or 0, has waited for so long: soon it makes the interpreter change hands within a
 * request, which it does after a millisecond. */
static inline bool handoff_is_awaited(int64_t came)
{
    return came != 0 && clock_now() - came > MILLISECOND / 2;
}

/* NULL: there is none, or enough workers are busy.  `came`: 0, or when it was told to come.  `next`: for handoff_rouse() without
 * the mutex, or NULL. */
front_conn *handoff_pop_any(front *f, int64_t came, waiter **next);
static inline front_conn *handoff_pop(front *f, int64_t came, waiter **next)
{
    *next = NULL;
    return f->queue.ready.first == NULL && came == 0 ? NULL : handoff_pop_any(f, came, next);
}

void handoff_wake(waiter *w);
void handoff_sleep(front *f, int64_t timeout); /* with the mutex held, which is released meanwhile; < 0: forever */
void handoff_sleep_on(front *f);               /* until there may be something to take */

unsigned handoff_news(front *f, bool sleeps); /* for the event loop: enum front_news; if there are none it may go to sleep */

/* Wakes it; preferably without holding the mutex, which it needs.  May be NULL. */
static inline void handoff_rouse(waiter *w)
{
    if (w != NULL)
        handoff_wake(w);
}

/* What was a request is a connection of raw bytes from now on. */
void handoff_switch(front *f, front_conn *c);

/* In a worker process: a thread has taken the request, and its end.  Whether more threads do more. */
bool handoff_begin(front *f, front_conn *c);
void handoff_end(front *f, front_conn *c);

/* The loop may count the request as well, when it is late. */
void handoff_trace(front *f, front_conn *c, const uint8_t *id);

/* How the worker leaves a request that it gives back. */
typedef struct {
    bool abort;       /* cut off */
    bool is_answered; /* by the loop, which has counted it */
    bool rest;        /* the loop has a part of the response */
    unsigned status;
    int64_t end;      /* when */
} handoff_result;

/* Gives a connection back.  `*fd`: its socket, if the caller has to close it, otherwise -1.  Whether to ring the loop. */
bool handoff_return(front *f, front_conn *c, const handoff_result *result, int *fd);

/* ------------------------------------------------------------------------------------------------ any thread */

void handoff_knock(front *f); /* now and then: so that it is seen whether an event loop that waits elsewhere is blocked */
void handoff_tally(front *f, uint8_t method, unsigned status, int64_t duration); /* a response without a worker */
void handoff_count(front *f, front_counters *out);

#endif
