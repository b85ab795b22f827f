/* handoff.c - see handoff.h. */
#define _GNU_SOURCE
#include "handoff.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "eventloop.h"
#include "io.h"

#define HOLD (20 * MILLISECOND) /* longest wait of a held body after a worker has finished reading another one */

static uint64_t thread_id(void)
{
    static _Thread_local uint64_t id;

    if (id == 0)
        id = (uint64_t)syscall(SYS_gettid);
    return id;
}

static front_conn *next_ready(const front *f)
{
    return admission_next(f, f->queue.ready.first, f->queue.taken.first, f->queue.n_taken);
}

static uint32_t n_workers(const front *f)
{
    return f->queue.n_taken + f->queue.n_idle_workers + f->queue.n_woken;
}

/* Requests of the queue that wait for the interpreter, and not for a worker. */
static uint32_t spared(const front *f)
{
    uint32_t free = next_ready(f) == NULL || admission_shares_interpreter(f) ? f->queue.n_idle_workers + f->queue.n_woken : 0;

    return free < f->queue.n_ready ? free : f->queue.n_ready;
}

/* ---------------------------------------------------------------------- sleeping */

/* A condition variable would also work, but a thread that returns from its wait marks the mutex as contended, which costs the
 * next unlock a system call, and a thread that is woken while we hold the mutex waits again at once. */
static long futex(atomic_uint *word, int operation, unsigned value, const struct timespec *until)
{
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, until, NULL, FUTEX_BITSET_MATCH_ANY);
}

/* The idle worker that fell asleep last; with the mutex held. */
static waiter *pop_idle(front *f)
{
    waiter *w = f->queue.idle_workers;

    f->queue.idle_workers = w->below;
    f->queue.n_idle_workers--;
    f->queue.n_woken++;
    atomic_store(&w->woken, 1);
    return w;
}

void handoff_wake(waiter *w)
{
    futex(&w->woken, FUTEX_WAKE, 1, NULL); /* it may have returned already; the kernel uses the address only as a name */
}

void handoff_sleep(front *f, int64_t timeout)
{
    waiter w = {.below = f->queue.idle_workers};
    struct timespec until;
    int64_t at = clock_now() + timeout;
    bool late = false;

    f->queue.idle_workers = &w;
    f->queue.n_idle_workers++;
    until.tv_sec = (time_t)(at / 1000000000);
    until.tv_nsec = (long)(at % 1000000000);
    while (!atomic_load(&w.woken) && !late) {
        pthread_mutex_unlock(&f->queue.mutex);
        late = futex(&w.woken, FUTEX_WAIT_BITSET, 0, timeout < 0 ? NULL : &until) == -1 && errno == ETIMEDOUT;
        pthread_mutex_lock(&f->queue.mutex);
    }
    if (atomic_load(&w.woken)) {
        f->queue.n_woken--;
        return;
    }
    for (waiter **p = &f->queue.idle_workers; *p != NULL; p = &(*p)->below) /* timed out: remove it from the stack */
        if (*p == &w) {
            *p = w.below;
            f->queue.n_idle_workers--;
            break;
        }
}

/* Nobody tells of a request that is held back now, so one of those who sleep looks again. */
void handoff_sleep_on(front *f)
{
    if (f->queue.ready.first == NULL || f->queue.n_woken > 0 || f->queue.is_looked_after) {
        handoff_sleep(f, -1);
        return;
    }
    f->queue.is_looked_after = true;
    handoff_sleep(f, MILLISECOND);
    f->queue.is_looked_after = false;
}

/* ------------------------------------------------------------- to a worker, and back */

bool handoff_may_come(const front *f)
{
    return admission_shares_interpreter(f) && f->queue.n_woken == 0 && next_ready(f) != NULL;
}

int64_t handoff_come(front *f)
{
    f->queue.n_woken++;
    admission_note_comer(f);
    return f->queue.came = clock_now();
}

bool handoff_gives_way(const front *f)
{
    return admission_shares_interpreter(f) && handoff_is_awaited(f->queue.came);
}

front_conn *handoff_pop_any(front *f, int64_t came, waiter **next)
{
    if (came != 0) {
        f->queue.n_woken--;
        f->queue.came = 0;
    }
    front_conn *c = next_ready(f);

    *next = NULL;
    if (c == NULL)
        return NULL;
    list_remove(&f->queue.ready, c);
    f->queue.n_ready--;
    c->queued = false;
    c->thread = thread_id();
    c->begun = clock_now();
    admission_begin(f, c, came);
    tally_add_wait(&f->queue.waits, c->begun - c->arrived);
    if (f->limits.request_timeout != 0) {
        c->deadline = c->begun + f->limits.request_timeout;
        c->late = false;
        atomic_store(&c->answer, ANSWER_NONE);
    }
    if (eventloop_serves(f))
        eventloop_begin(c);
    list_push(&f->queue.taken, c);
    f->queue.n_taken++;
    if (f->queue.ready.first != NULL && f->queue.n_idle_workers > 0 && f->queue.n_woken == 0 && admission_is_worth(f) &&
        next_ready(f) != NULL)
        *next = pop_idle(f);
    return c;
}

/* Hands the requests of this turn to the workers.  One thread serves short requests faster than several that pass the
 * interpreter lock around.  So no worker is woken if the leader will take a request itself, if a woken worker is
 * about to run, or if a worker is busy and makes progress.  When requests are long, workers wake each other (handoff_pop), and
 * handoff_due() sees to the rest. */
bool handoff_pass(front *f, enum handoff_waking waking, front_conn **refused)
{
    front_conn *c;
    waiter *next = NULL;

    *refused = NULL;
    pthread_mutex_lock(&f->queue.mutex);
    bool some = f->queue.batch.first != NULL;
    while ((c = f->queue.batch.first) != NULL) {
        list_remove(&f->queue.batch, c);
        if (f->queue.n_ready >= f->limits.max_queue && f->queue.n_ready - spared(f) >= f->limits.max_queue) {
            c->next = *refused;
            *refused = c;
            continue;
        }
        c->with_worker = c->queued = true;
        c->thread = 0;
        admission_classify(f, c);
        c->deadline = f->now + f->limits.queue_timeout;
        list_push(&f->queue.ready, c);
        f->queue.n_ready++;
    }
    if (f->queue.ready.first != NULL)
        admission_judge(f, f->queue.taken.first, f->queue.n_taken, n_workers(f) - f->queue.n_taken, f->queue.n_finished);
    if (f->queue.ready.first != NULL && f->queue.n_idle_workers > 0 && waking != HANDOFF_TAKING && next_ready(f) != NULL &&
        (admission_is_worth(f) || waking == HANDOFF_EAGER || f->queue.n_taken == 0) &&
        (f->queue.n_woken == 0 || (!admission_shares_interpreter(f) && f->now - f->queue.ready.first->arrived > MILLISECOND)))
        next = pop_idle(f);
    bool returned = f->queue.returned.first != NULL;
    /* A request that arrives while all workers are busy, or enough, and others wait, only waits in the queue.  So it does if a
     * worker waits for the interpreter to take the oldest. */
    f->queue.backlog = 0;
    if (some && f->queue.n_taken > 0 && !eventloop_serves(f) &&
        (f->queue.n_idle_workers == 0 || admission_is_full(f, f->queue.n_taken) ||
         (f->queue.came != 0 && f->now - f->queue.came > LONG_REQUEST)))
        f->queue.backlog = f->queue.n_ready * admission_service_time(f) / f->queue.n_taken / 2;
    bool sleeps = f->queue.ready.first != NULL && !f->queue.declined && eventloop_rouse(f);
    pthread_mutex_unlock(&f->queue.mutex);
    handoff_rouse(next);
    eventloop_ring(f, sleeps);
    return returned;
}

void handoff_switch(front *f, front_conn *c)
{
    pthread_mutex_lock(&f->queue.mutex);
    list_remove(&f->queue.taken, c);
    f->queue.n_taken--;
    admission_end(f, c, c->thread == thread_id());
    f->queue.n_late -= c->late;
    c->late = false;
    c->switched = true;
    list_push(&f->queue.switched, c);
    f->queue.n_switched++;
    tally_add(&f->queue.durations, c->in->head.method_id, 101, clock_now() - c->arrived, c->trace); /* of the handshake */
    pthread_mutex_unlock(&f->queue.mutex);
    count_add(&f->count.websockets_opened, 1);
}

void handoff_trace(front *f, front_conn *c, const uint8_t *id)
{
    pthread_mutex_lock(&f->queue.mutex);
    c->trace = id;
    pthread_mutex_unlock(&f->queue.mutex);
}

bool handoff_return(front *f, front_conn *c, const handoff_result *result, int *fd)
{
    const buffer *b = c->in;
    int64_t took = result->end - c->begun;

    *fd = -1;
    pthread_mutex_lock(&f->queue.mutex);
    if (!f->queue.closed) { /* a request cut off by the end has been counted there */
        if (result->is_answered)
            ; /* counted by the loop */
        else if (result->abort)
            count_add(&f->count.aborted, 1);
        else if (result->rest)
            c->owed = true; /* counted when it has been sent or cut off */
        else
            count_add(&f->count.served, 1);
    }
    if (!result->is_answered && !c->switched)
        tally_add(&f->queue.durations, b->head.method_id, result->status, result->end - c->arrived, c->trace);
    c->trace = NULL;
    list_remove(c->switched ? &f->queue.switched : &f->queue.taken, c);
    if (c->switched)
        f->queue.n_switched--;
    else
        f->queue.n_taken--;
    admission_end(f, c, c->thread == thread_id());
    f->queue.n_late -= c->late;
    c->late = false;
    if (result->abort || (c->close && !c->linger && !result->rest && b->raw == b->len)) {
        *fd = c->fd;
        c->fd = -1;
    }
    list_push(&f->queue.returned, c);
    c->with_worker = false;
    if (c->with_eventloop)
        eventloop_end(f, c);
    f->queue.n_finished++;
    if (!c->switched)
        admission_note_time(f, took);
    /* The loop must look soon at a connection that may have more in its socket without a further edge, or must be closed. */
    bool ring = result->rest || handoff_has_held(f) || atomic_load(&f->stage) >= FRONT_CLOSING ||
                (c->fd != -1 && (c->close || c->pending || !c->read_dry || b->raw < b->len));
    pthread_mutex_unlock(&f->queue.mutex);
    return ring;
}

bool handoff_begin(front *f, front_conn *c)
{
    pthread_mutex_lock(&f->queue.mutex);
    c->thread = thread_id();
    c->begun = clock_now();
    c->seen = 0;
    if (eventloop_serves(f))
        eventloop_begin(c);
    list_push(&f->queue.taken, c);
    f->queue.n_taken++;
    bool more = admission_is_worth(f);
    pthread_mutex_unlock(&f->queue.mutex);
    atomic_fetch_add_explicit(&f->queue.n_worker, 1, memory_order_relaxed);
    return more;
}

void handoff_end(front *f, front_conn *c)
{
    pthread_mutex_lock(&f->queue.mutex);
    list_remove(c->switched ? &f->queue.switched : &f->queue.taken, c);
    if (c->switched)
        f->queue.n_switched--;
    else
        f->queue.n_taken--;
    if (!c->switched)
        admission_note_time(f, clock_now() - c->begun);
    f->queue.n_late -= c->late;
    c->switched = c->late = false;
    if (c->with_eventloop)
        eventloop_end(f, c);
    f->queue.n_finished++;
    pthread_mutex_unlock(&f->queue.mutex);
    atomic_fetch_sub_explicit(&f->queue.n_worker, 1, memory_order_relaxed);
}

void handoff_note_event(front *f, front_conn *c, unsigned events)
{
    pthread_mutex_lock(&f->queue.mutex);
    c->pending = true; /* front_finish() will ring, or the loop finds it at the end of this turn */
    eventloop_note(f, c, events);
    bool sleeps = eventloop_has_moved(f) && eventloop_rouse(f);
    pthread_mutex_unlock(&f->queue.mutex);
    eventloop_ring(f, sleeps);
}

bool handoff_ring(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
    bool sleeps = eventloop_rouse(f);
    pthread_mutex_unlock(&f->queue.mutex);
    eventloop_ring(f, sleeps);
    return sleeps;
}

void handoff_knock(front *f)
{
    if (!f->foreign && eventloop_is_elsewhere(f) && !handoff_ring(f))
        front_ring(f); /* the front's own thread looks at its turn */
}

unsigned handoff_news(front *f, bool sleeps)
{
    pthread_mutex_lock(&f->queue.mutex);
    unsigned news = (f->queue.ready.first != NULL && !f->queue.declined ? FRONT_REQUESTS : 0) | (eventloop_has_moved(f) ? FRONT_MOVED : 0) |
                    (eventloop_has_late(f) ? FRONT_LATE : 0);
    if (sleeps && news == 0)
        eventloop_begin_sleep(f);
    pthread_mutex_unlock(&f->queue.mutex);
    return news;
}

/* Whether half of the workers may have to wait for their clients.  Then the loop collects a body that was announced with
 * Expect, and a body longer than its buffer waits, so that clients that announce bodies and send them slowly, or never, do
 * not block the others. */
bool handoff_may_keep(front *f)
{
    if (f->queue.n_unread == 0 || eventloop_streams(f)) /* which waits for no client */
        return false;
    pthread_mutex_lock(&f->queue.mutex);
    uint32_t workers = eventloop_carries(f) ? eventloop_room(f) : n_workers(f), reading = f->queue.n_unread;
    for (const front_conn *c = f->queue.taken.first; c != NULL; c = c->next) /* at most as many as there are workers */
        reading -= c->unread && atomic_load_explicit(&c->complete, memory_order_relaxed); /* has read its body and works */
    for (const front_conn *c = f->queue.returned.first; c != NULL; c = c->next) /* which the loop has not seen yet */
        reading -= c->unread;
    pthread_mutex_unlock(&f->queue.mutex);
    return reading > 0 && 2 * reading >= workers;
}

void front_want_requests(front *f, bool wanted)
{
    pthread_mutex_lock(&f->queue.mutex);
    f->queue.declined = !wanted;
    pthread_mutex_unlock(&f->queue.mutex);
}

bool handoff_progresses(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
    bool progress = f->queue.n_finished != f->queue.seen_finished && admission_service_time(f) < LONG_REQUEST;
    f->queue.seen_finished = f->queue.n_finished;
    pthread_mutex_unlock(&f->queue.mutex);
    return progress;
}

/* -------------------------------------------------------------------- deadlines */

const char *handoff_overdue_text(const front *f)
{
    return eventloop_serves(f) && !eventloop_carries(f) ? "the event loop was busy for too long\n" : "no worker became free in time\n";
}

void handoff_look_at_taken(front *f, bool (*look)(front *, front_conn *))
{
    for (front_conn *c = f->queue.taken.first; c != NULL; c = c->next)
        look(f, c);
}

void handoff_note_late(front *f, front_conn *c)
{
    c->late = true;
    f->queue.n_late++;
}

/* A worker thread is still using the connection, so only its socket is touched. */
static void answer_late(front *f, front_conn *c)
{
    static const char text[] = "the request took too long\n";
    char out[PAGES_REFUSAL_SIZE];
    size_t len = pages_refusal(504, clock_date(f), text, c->in->head.method_id == HTTP1_HEAD, out);
    ssize_t n = io_write(c->fd, out, len);

    if (n > 0)
        count_add(&f->count.bytes_out, (uint64_t)n);
    io_end_output(c->fd);
    tally_add(&f->queue.durations, c->in->head.method_id, 504, f->now - c->arrived, c->trace);
}

/* Requests that have taken too long.  They are in the order in which workers took them. */
void handoff_expire(front *f)
{
    pthread_mutex_lock(&f->queue.mutex);
    for (front_conn *c = f->queue.taken.first; c != NULL && (c->late || c->deadline <= f->now); c = c->next) {
        int none = ANSWER_NONE, begun = ANSWER_BEGUN;
        if (c->late)
            continue;
        if (atomic_compare_exchange_strong(&c->answer, &none, ANSWER_504)) {
            answer_late(f, c);
        } else if (atomic_compare_exchange_strong(&c->answer, &begun, ANSWER_CUT)) {
            io_reset(c->fd); /* a FIN could look like the end of the response */
            atomic_store(&c->gone, true);
        } else {
            continue; /* just finished, or sending 100 (Continue); the next turn handles it */
        }
        handoff_note_late(f, c);
        count_add(&f->count.request_timeouts, 1);
        atomic_store(&c->interrupted, true);
        eventloop_note(f, c, FRONT_READABLE | FRONT_WRITABLE | FRONT_LEFT);
        if (c->with_eventloop)
            eventloop_note_late(f);
    }
    bool sleeps = (eventloop_has_moved(f) || eventloop_has_late(f)) && eventloop_rouse(f);
    pthread_mutex_unlock(&f->queue.mutex);
    eventloop_ring(f, sleeps);
}

int64_t handoff_due(front *f, int64_t due, int64_t look)
{
    /* Connections are returned without a ring, and their idle time starts when we look.  While requests wait although
     * workers sleep (handoff_pass() woke only one, as requests were short, or are to begin in their order), look again soon. */
    if (handoff_has_held(f))
        look = f->now + HOLD;
    pthread_mutex_lock(&f->queue.mutex);
    if (f->queue.ready.first != NULL) {
        if (f->queue.n_idle_workers > 0 || next_ready(f) == NULL)
            look = f->now + MILLISECOND;
        if (f->queue.ready.first->deadline < due)
            due = f->queue.ready.first->deadline;
    }
    for (front_conn *c = f->limits.request_timeout != 0 ? f->queue.taken.first : NULL; c != NULL; c = c->next)
        if (!c->late) {
            if (c->deadline < look)
                look = c->deadline > f->now + MILLISECOND ? c->deadline : f->now + MILLISECOND;
            break;
        }
    pthread_mutex_unlock(&f->queue.mutex);
    return look < due ? look : due;
}

void handoff_extend(front *f, int64_t gap)
{
    pthread_mutex_lock(&f->queue.mutex);
    for (front_conn *c = f->queue.ready.first; c != NULL; c = c->next)
        c->deadline += gap;
    for (front_conn *c = f->queue.taken.first; c != NULL; c = c->next)
        c->deadline += gap;
    pthread_mutex_unlock(&f->queue.mutex);
}

void handoff_close(front *f, uint64_t lost)
{
    pthread_mutex_lock(&f->queue.mutex);
    f->queue.closed = true;
    for (front_conn *c = f->queue.returned.first; c != NULL; c = c->next)
        lost -= !c->owed; /* returned and counted since the loop's last look */
    count_add(&f->count.aborted, lost);
    while (f->queue.idle_workers != NULL)
        handoff_rouse(pop_idle(f));
    for (int pass = 0; pass < 2; pass++)
        for (front_conn *c = pass == 0 ? f->queue.taken.first : f->queue.switched.first; c != NULL; c = c->next) {
            atomic_store(&c->gone, true);
            io_cut(c->fd);
            eventloop_note(f, c, FRONT_READABLE | FRONT_WRITABLE | FRONT_LEFT);
        }
    bool sleeps = eventloop_rouse(f);
    pthread_mutex_unlock(&f->queue.mutex);
    eventloop_ring(f, sleeps);
}

/* -------------------------------------------------------------------- for people */

void handoff_tally(front *f, uint8_t method, unsigned status, int64_t duration)
{
    pthread_mutex_lock(&f->queue.mutex);
    tally_add(&f->queue.durations, method, status, duration, NULL);
    pthread_mutex_unlock(&f->queue.mutex);
}

void handoff_count(front *f, front_counters *out)
{
    pthread_mutex_lock(&f->queue.mutex);
    out->queued = f->queue.n_ready - spared(f);
    out->late = f->queue.n_late;
    out->in_flight = f->queue.n_ready + f->queue.n_taken; /* requests that are finished but not yet taken back do not count */
    out->finished = f->queue.n_finished;
    out->websockets = f->queue.n_switched;
    pthread_mutex_unlock(&f->queue.mutex);
}

static void copy_text(char *to, size_t size, const char *from, size_t len)
{
    size_t n = len < size - 1 ? len : size - 1;

    memcpy(to, from, n);
    to[n] = '\0';
}

size_t front_requests(front *f, unsigned which, front_flight *out, size_t max)
{
    size_t n = 0;
    int64_t now = clock_now();

    if (f->foreign)
        return 0;
    pthread_mutex_lock(&f->queue.mutex);
    const conn_list *lists[] = {&f->queue.taken, &f->queue.ready, &f->queue.switched};
    for (int pass = 0; pass < 3; pass++)
        for (front_conn *c = which >> pass & 1 ? lists[pass]->first : NULL; c != NULL && n < max; c = c->next, n++) {
            const buffer *b = c->in;
            const http1_head *h = &b->head;
            copy_text(out[n].method, sizeof out[n].method, b->data + h->method.pos, h->method.len);
            const char *target = b->data + h->target.pos, *query = memchr(target, '?', h->target.len);
            copy_text(out[n].target, sizeof out[n].target, target, query != NULL ? (size_t)(query - target) : h->target.len);
            out[n].age = now - c->arrived;
            out[n].thread = c->thread;
            out[n].late = pass == 0 && c->late;
            out[n].awaits = pass == 0 ? atomic_load_explicit(&c->awaits, memory_order_relaxed) : FRONT_AWAITS_NOTHING;
        }
    pthread_mutex_unlock(&f->queue.mutex);
    return n;
}

void front_waits(front *f, tally_waits *out)
{
    if (f->foreign) {
        *out = (tally_waits){0};
        return;
    }
    pthread_mutex_lock(&f->queue.mutex);
    *out = f->queue.waits;
    pthread_mutex_unlock(&f->queue.mutex);
}

size_t front_exemplars(front *f, tally_exemplar *out)
{
    size_t n = 0;

    if (f->foreign)
        return 0;
    pthread_mutex_lock(&f->queue.mutex);
    for (size_t i = 0; i < TALLY_EXEMPLARS; i++)
        if (f->queue.durations.exemplars[i].when != 0)
            out[n++] = f->queue.durations.exemplars[i];
    pthread_mutex_unlock(&f->queue.mutex);
    return n;
}

size_t front_durations(front *f, tally_series *out, size_t max)
{
    size_t n = 0;

    if (f->foreign)
        return 0;
    pthread_mutex_lock(&f->queue.mutex);
    for (size_t i = 0; i < TALLY_SERIES && n < max; i++)
        if (f->queue.durations.series[i].used)
            out[n++] = f->queue.durations.series[i];
    pthread_mutex_unlock(&f->queue.mutex);
    return n;
}
