/* carrier.c - see carrier.h. */
#define _GNU_SOURCE
#include "carrier.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "area.h"
#include "clock.h"
#include "eventloop.h"
#include "stage.h"
#include "state.h"

#define RING_OF_THREAD (256 * 1024) /* at most, so that a slot has room for it */
#define RING_OF_TASK (64 * 1024)    /* an event loop has many requests at a time */
#define MOST_DEADLY 3
#define PATIENCE (5 * MILLISECOND)
#define SHUNNED SECOND
#define MINUTE (60 * SECOND)

/* A request with a worker, in the slot of the same place. */
typedef struct {
    struct worker *worker;
    front_conn *c; /* NULL: the slot is free */
    uint64_t in_head, out_tail;
    uint32_t ring; /* the size of either */
    bool is_repeated;
    bool in_done;  /* no more of the body will come */
    unsigned begun; /* as the worker's */
    bool sent;     /* the client has a part of the response */
    bool failed;   /* the response has lost a part */
    bool has_left; /* the client has sent FIN, and the worker knows */
    int64_t blocked; /* since when the client does not take the rest of a response that has ended; 0: it does */
    uint64_t mark;   /* out_tail then */
    int64_t given;   /* when the worker has got it */
} errand;

typedef struct worker {
    struct worker *next;
    struct carrier *carrier;
    uint32_t number, room, n_slots, n_in_flight, head, ring, in_at, out_at, slot_size;
    bool is_admitted, is_retired, is_broken;
    bool is_due; /* it has news that it has not been rung for */
    area *area;
    uint64_t size, served, used;
    int64_t shunned; /* until when it gets no request that another one has room for */
    int wake_fd;
    uint32_t n_free, *free; /* slots; the last one was used last */
    errand *errands;
} worker;

/* A request that comes from a worker that did not begin it, or died in it. */
typedef struct again {
    struct again *next;
    front_conn *c;
    int64_t deadline;
    bool is_repeated;
    int in_end;
    int64_t length;
    size_t n;
    char body[]; /* the part that has been read */
} again;

struct carrier {
    pthread_mutex_t mutex;
    int bell_fd;
    worker *workers;
    int stage; /* what workers have been told */
    uint32_t n_added;
    uint64_t n_given;
    again *first, *last; /* before all in the front's queue */
    bool has_blocked; /* an errand may be */
    int64_t deadly[MOST_DEADLY]; /* when requests were lost on two workers; the oldest first */
};

/* ------------------------------------------------------------------------ telling a worker */

static area_slot *slot_of(const errand *e)
{
    const worker *w = e->worker;

    return area_slot_at(w->area, w->slot_size, (uint32_t)(e - w->errands));
}

/* Something has changed in the slot. */
static void tell(errand *e)
{
    worker *w = e->worker;
    area_slot *s = slot_of(e);

    if (atomic_load(&w->area->by_reader)) {
        area_note(w->area->news_back, (uint32_t)(e - w->errands));
        w->is_due = true;
    } else if (atomic_load(&s->asleep) && atomic_exchange(&s->asleep, 0)) {
        area_wake(&s->asleep, INT32_MAX);
    }
}

static uint32_t n_untaken(const worker *w)
{
    uint32_t n = w->head - atomic_load(&w->area->tail);

    return n <= w->n_slots ? n : 0;
}

/* When the oldest of the requests that the worker has not begun was given to it. */
static int64_t oldest(const worker *w)
{
    uint32_t number = atomic_load(&w->area->requests[(w->head - n_untaken(w)) % AREA_SLOTS]);

    return number < w->n_slots && w->errands[number].c != NULL ? w->errands[number].given : 0;
}

/* Wakes whoever serves, after a turn.  One thread that does short requests does them faster than several that pass the
 * interpreter lock around; when they are long, threads wake each other (remote.c). */
static void rouse(worker *w)
{
    area *a = w->area;
    uint32_t untaken = n_untaken(w);

    w->is_due = false;
    if (atomic_load(&a->by_reader)) {
        if (atomic_exchange(&a->asleep, 0))
            (void)!write(w->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
    } else if (untaken > 0 && atomic_load(&a->sleepers) > 0 &&
               (untaken == w->n_in_flight || atomic_load(&a->is_slow) || clock_now() - oldest(w) >= MILLISECOND)) {
        atomic_fetch_add(&a->bell, 1);
        area_wake(&a->bell, 1);
    }
}

/* ------------------------------------------------------------------------ one request */

static void cut_off(errand *e)
{
    e->failed = true;
    atomic_store_explicit(&slot_of(e)->gone, 1, memory_order_relaxed);
}

static bool is_read_whole(const front_conn *c)
{
    return !front_body_pending(c) && front_body_left(c) == 0;
}

/* Puts what has come of the body into the ring. */
static void fill(front *f, errand *e)
{
    worker *w = e->worker;
    area_slot *s = slot_of(e);
    char *ring = (char *)s + w->in_at;
    bool progress = false;

    if (e->in_done || (s->expect && !atomic_load(&s->wants)))
        return;
    for (;;) {
        uint64_t tail = atomic_load(&s->in_tail), used = e->in_head - tail;
        if (used > e->ring) {
            w->is_broken = true;
            return;
        }
        if (used == e->ring) {
            atomic_store(&s->in_full, 1);
            if (atomic_load(&s->in_tail) == tail)
                break;
            continue;
        }
        size_t at = (size_t)(e->in_head % e->ring), room = (size_t)(e->ring - used);
        ssize_t n = front_read(f, e->c, ring + at, room < e->ring - at ? room : e->ring - at, false);
        if (n > 0) {
            atomic_store_explicit(&s->in_full, 0, memory_order_relaxed);
            atomic_store_explicit(&s->in_head, e->in_head += (uint64_t)n, memory_order_release);
            progress = true;
            if (!is_read_whole(e->c))
                continue;
            n = 0; /* told with the last bytes, also if the ring is full: the worker may respond without asking for more */
        }
        if (n == -EAGAIN) {
            int rv = front_await(f, e->c, FRONT_READABLE, e);
            if (rv == FRONT_OK)
                continue;
            if (rv == FRONT_AGAIN)
                break;
            n = rv;
        }
        atomic_store_explicit(&s->in_end, n == 0 ? 1 : (int)n, memory_order_release);
        e->in_done = progress = true;
        break;
    }
    if (progress)
        tell(e);
}

/* What the worker has asked for, before anything that it has written. */
static void begin(front *f, errand *e)
{
    area_slot *s = slot_of(e);
    unsigned begun = atomic_load_explicit(&s->begun, memory_order_acquire);

    if (begun == e->begun)
        return;
    e->begun = begun;
    if (begun != AREA_SWITCH) {
        front_begin_response(f, e->c);
    } else if (front_switch(f, e->c) == FRONT_OK) {
        atomic_store(&s->in_end, 0);
        e->in_done = false;
    } else {
        cut_off(e);
        tell(e);
    }
}

/* Sends what there is of the response.  False: the client has to take some of it first. */
static bool drain(front *f, errand *e, bool is_whole)
{
    worker *w = e->worker;
    area_slot *s = slot_of(e);
    char *ring = (char *)s + w->out_at;
    uint64_t head;

    while ((head = atomic_load_explicit(&s->out_head, memory_order_acquire)) != e->out_tail) {
        if (head - e->out_tail > e->ring) {
            w->is_broken = true;
            return false;
        }
        begin(f, e);
        size_t total = (size_t)(head - e->out_tail), at = (size_t)(e->out_tail % e->ring);
        size_t first = total < e->ring - at ? total : e->ring - at;
        struct iovec iov[2] = {{ring + at, first}, {ring, total - first}};
        int rv = e->failed ? -EPIPE : front_send(f, e->c, iov, total > first ? 2 : 1, is_whole ? SIZE_MAX : 0, false);
        size_t sent = total - iov[0].iov_len - iov[1].iov_len;
        if (rv < 0 && !e->failed)
            cut_off(e);
        if (rv < 0)
            sent = total; /* nobody wants it */
        else if (sent > 0)
            e->sent = true;
        atomic_store(&s->out_tail, e->out_tail += sent);
        tell(e);
        if (rv == FRONT_AGAIN && (rv = front_await(f, e->c, FRONT_WRITABLE, e)) == FRONT_AGAIN)
            return false;
        if (rv < 0 && !e->failed)
            cut_off(e);
    }
    return true;
}

static void forget(errand *e)
{
    worker *w = e->worker;

    e->c = NULL;
    w->free[w->n_free++] = (uint32_t)(e - w->errands);
    w->n_in_flight--;
}

/* Does what can be done for a request, after something has happened. */
static void pump(front *f, errand *e)
{
    area_slot *s = slot_of(e);
    unsigned ended = atomic_load_explicit(&s->ended, memory_order_acquire);

    if (e->worker->is_broken)
        return;
    if (ended == 0)
        begin(f, e);
    bool is_sent = drain(f, e, ended != 0);
    if (ended == 0) {
        fill(f, e);
        return;
    }
    if (!is_sent && !(ended & AREA_ABORT)) { /* and there is no room to leave the rest with the loop */
        if (e->blocked == 0) {
            e->blocked = clock_now();
            e->mark = e->out_tail;
        }
        e->worker->carrier->has_blocked = true;
    } else if (!e->worker->is_broken) {
        uint8_t trace[TALLY_TRACE]; /* the worker's may change */
        if (atomic_load_explicit(&s->traced, memory_order_relaxed)) {
            memcpy(trace, s->trace, sizeof trace);
            front_trace(f, e->c, trace);
        }
        front_finish(f, e->c, ended & AREA_KEEP_ALIVE, ended & AREA_ABORT, ended / AREA_STATUS);
        e->worker->served++;
        forget(e);
    }
}

/* The worker is to know when the client leaves. */
static void look_whether_left(front *f, errand *e)
{
    area_slot *s = slot_of(e);

    if (e->has_left || front_await(f, e->c, FRONT_LEFT, e) == FRONT_AGAIN)
        return;
    e->has_left = true;
    atomic_store_explicit(&s->left, 1, memory_order_relaxed);
    if (front_is_gone(e->c))
        atomic_store_explicit(&s->gone, 1, memory_order_relaxed);
    tell(e);
}

static void give(front *f, worker *w, front_conn *c, const again *from)
{
    uint32_t number = w->free[--w->n_free];
    errand *e = &w->errands[number];
    area_slot *s = area_slot_at(w->area, w->slot_size, number);
    const buffer *b = c->in;

    *e = (errand){.worker = w, .c = c, .is_repeated = from != NULL && from->is_repeated, .given = clock_now()};
    e->ring = from != NULL && from->n > w->ring ? RING_OF_THREAD : w->ring;
    s->ring = e->ring;
    w->n_in_flight++;
    w->used = ++f->carrier->n_given;
    memcpy(&s->peer, &c->peer, sizeof s->peer);
    s->arrived = c->arrived;
    bool is_known = b->head.has_length || c->complete || c->spooled != NULL;
    s->length = from != NULL ? from->length : is_known ? (int64_t)front_body_left(c) : -1;
    s->listener = c->listener;
    s->repeated = e->is_repeated;
    s->expect = c->expect;
    s->chunked = c->chunked;
    s->has_arrived = c->complete;
    atomic_store_explicit(&s->in_tail, 0, memory_order_relaxed);
    atomic_store_explicit(&s->in_full, 0, memory_order_relaxed);
    atomic_store_explicit(&s->wants, 0, memory_order_relaxed);
    atomic_store_explicit(&s->out_head, 0, memory_order_relaxed);
    atomic_store_explicit(&s->out_tail, 0, memory_order_relaxed);
    atomic_store_explicit(&s->begun, 0, memory_order_relaxed);
    atomic_store_explicit(&s->traced, 0, memory_order_relaxed);
    atomic_store_explicit(&s->ended, 0, memory_order_relaxed);
    atomic_store_explicit(&s->gone, 0, memory_order_relaxed);
    atomic_store_explicit(&s->left, 0, memory_order_relaxed);
    atomic_store_explicit(&s->late, 0, memory_order_relaxed);
    atomic_store_explicit(&s->asleep, 0, memory_order_relaxed);
    if (from != NULL) {
        memcpy((char *)s + w->in_at, from->body, from->n);
        e->in_head = from->n;
        e->in_done = from->in_end != 0;
    }
    atomic_store_explicit(&s->in_head, e->in_head, memory_order_relaxed);
    atomic_store_explicit(&s->in_end, from != NULL ? from->in_end : 0, memory_order_relaxed);
    s->in.head_len = b->head_len;
    memcpy(&s->in.head, &b->head, (size_t)((const char *)&b->head.headers[b->head.n_headers] - (const char *)&b->head));
    memcpy(s->in.data, b->data, b->head_len);
    fill(f, e);
    look_whether_left(f, e);
    atomic_store_explicit(&w->area->requests[w->head % AREA_SLOTS], number, memory_order_relaxed);
    atomic_store(&w->area->head, ++w->head);
    w->is_due = true;
}

/* What has happened to a request that waits for another worker is seen when it is given to that one. */
static errand nobody;

/* The request goes to another worker, with what has been read of its body, unless the worker `had_begun` it. */
static void repeat(front *f, errand *e, bool had_begun)
{
    struct carrier *k = f->carrier;
    area_slot *s = slot_of(e);
    size_t n = had_begun ? 0 : (size_t)e->in_head;
    bool fits = n <= e->ring; /* more than that has been there only if the worker had begun it, whatever its memory says */
    again *a = fits ? malloc(sizeof *a + n) : NULL;

    front_await(f, e->c, 0, NULL);
    if (a == NULL) {
        e->worker->is_broken = e->worker->is_broken || !fits;
        front_finish(f, e->c, false, true, 0);
        return;
    }
    *a = (again){.c = e->c, .is_repeated = had_begun || e->is_repeated, .n = n, .length = s->length};
    a->deadline = clock_now() + f->limits.queue_timeout;
    if (e->in_done)
        a->in_end = atomic_load(&s->in_end);
    memcpy(a->body, (char *)s + e->worker->in_at, n);
    e->c->tag = &nobody; /* this errand may be freed */
    if (k->first == NULL)
        k->first = a;
    else
        k->last->next = a;
    k->last = a;
}

static void refuse(front *f, front_conn *c)
{
    static const char text[] = "the worker died\n";
    date_text line;
    char out[PAGES_REFUSAL_SIZE];
    bool is_head = c->in->head.method_id == HTTP1_HEAD;
    size_t len = pages_refusal(502, date_line(&line, time(NULL)), text, is_head, out);
    struct iovec iov = {.iov_base = out, .iov_len = len};

    front_begin_response(f, c);
    bool failed = front_send(f, c, &iov, 1, SIZE_MAX, false) != FRONT_OK;
    front_finish(f, c, false, failed, 502);
}

/* ------------------------------------------------------------------------ all of them */

/* A worker from which a request has been taken back, as it did not begin it, is tried again after a while. */
static void forgive(worker *w)
{
    if (w->shunned != 0 && clock_now() >= w->shunned)
        w->shunned = 0;
}

static bool is_before(const worker *w, const worker *other)
{
    if (w->shunned != 0 || other->shunned != 0)
        return w->shunned < other->shunned;
    return w->n_in_flight < other->n_in_flight || (w->n_in_flight == other->n_in_flight && w->used > other->used);
}

/* The worker for the next request, other than `not`, or NULL. */
static worker *least_busy(struct carrier *k, const worker *not)
{
    worker *best = NULL;

    for (worker *w = k->workers; w != NULL; w = w->next) {
        forgive(w);
        if (w != not && w->is_admitted && !w->is_broken && w->n_in_flight < w->room && (best == NULL || is_before(w, best)))
            best = w;
    }
    return best;
}

/* Gives requests to workers.  Whether there is room for more. */
static bool give_away(front *f)
{
    struct carrier *k = f->carrier;
    worker *w;

    while ((w = least_busy(k, NULL)) != NULL) {
        again *a = k->first;
        front_request taken;
        if (a != NULL) {
            k->first = a->next;
            if (front_is_late(a->c)) /* the loop has answered it meanwhile */
                front_finish(f, a->c, false, true, 0);
            else
                give(f, w, a->c, a);
            free(a);
        } else if (front_take(f, &taken, 0) == FRONT_OK) {
            give(f, w, taken.conn, NULL);
        } else {
            return true;
        }
    }
    return false;
}

/* Whether a worker has told of something. */
static bool take_news(front *f, bool is_last_look)
{
    bool some = false;

    for (worker *w = f->carrier->workers; w != NULL; w = w->next)
        for (uint32_t i = 0; i <= (w->n_slots - 1) / 64; i++) {
            if (atomic_load_explicit(&w->area->news[i], memory_order_relaxed) == 0)
                continue;
            some = true;
            if (is_last_look)
                return true;
            for (uint64_t bits = atomic_exchange(&w->area->news[i], 0); bits != 0; bits &= bits - 1) {
                uint32_t number = i * 64 + (uint32_t)__builtin_ctzll(bits);
                if (number < w->n_slots && w->errands[number].c != NULL)
                    pump(f, &w->errands[number]);
            }
        }
    return some;
}

static void take_moved(front *f)
{
    for (errand *e; (e = front_moved(f)) != NULL;) {
        if (e->c == NULL)
            continue;
        pump(f, e);
        if (e->c != NULL)
            look_whether_left(f, e);
    }
}

static void tell_late(front *f)
{
    front_take_late(f);
    for (worker *w = f->carrier->workers; w != NULL; w = w->next)
        for (uint32_t i = 0; i < w->n_slots; i++) {
            errand *e = &w->errands[i];
            if (e->c == NULL || !front_is_late(e->c) || atomic_load(&slot_of(e)->late) != 0)
                continue;
            atomic_store(&slot_of(e)->late, atomic_load(&e->c->answer));
            tell(e);
        }
}

static void tell_stage(worker *w, int stage)
{
    if (atomic_load_explicit(&w->area->stage, memory_order_relaxed) == stage)
        return;
    atomic_store(&w->area->stage, stage);
    area_wake(&w->area->stage, INT32_MAX);
    w->is_due = true;
    if (stage != FRONT_STOPPED)
        return;
    atomic_fetch_add(&w->area->bell, 1);
    area_wake(&w->area->bell, INT32_MAX);
}

static void note_sleep(front *f, unsigned asleep)
{
    for (worker *w = f->carrier->workers; w != NULL; w = w->next)
        atomic_store(&w->area->front_asleep, asleep);
}

/* A client that does not take the rest of a response, of which the worker knows nothing any more. */
static void watch_blocked(front *f)
{
    int64_t now = clock_now();

    f->carrier->has_blocked = false;
    for (worker *w = f->carrier->workers; w != NULL; w = w->next)
        for (uint32_t i = 0; i < w->n_slots; i++) {
            errand *e = &w->errands[i];
            if (e->c == NULL || e->blocked == 0)
                continue;
            f->carrier->has_blocked = true;
            if (now - e->blocked < f->limits.write_timeout)
                continue;
            if (!front_may_send_on(f, e->c, e->out_tail - e->mark))
                cut_off(e);
            e->blocked = now;
            e->mark = e->out_tail;
            pump(f, e);
        }
}

/* Another worker that has nothing to do for a request that this one does not begin, as it is stuck, or NULL. */
static worker *better_for(struct carrier *k, const worker *w)
{
    worker *other = least_busy(k, w);

    return other != NULL && n_untaken(other) == 0 && other->n_in_flight < w->n_in_flight ? other : NULL;
}

/* Takes back what a worker has not begun for PATIENCE although another one could. */
static void take_back(front *f)
{
    struct carrier *k = f->carrier;
    int64_t now = clock_now();

    for (worker *w = k->workers; w != NULL; w = w->next) {
        uint32_t tail = atomic_load(&w->area->tail);
        if (n_untaken(w) == 0 || now - oldest(w) < PATIENCE || better_for(k, w) == NULL)
            continue;
        uint32_t number = atomic_load(&w->area->requests[tail % AREA_SLOTS]);
        if (number < w->n_slots && w->errands[number].c != NULL &&
            atomic_compare_exchange_strong(&w->area->tail, &tail, tail + 1)) {
            repeat(f, &w->errands[number], false);
            forget(&w->errands[number]);
            w->shunned = now + SHUNNED;
        }
    }
}

/* Requests of dead workers for which no other has room in time. */
static void expire(front *f)
{
    struct carrier *k = f->carrier;

    for (again *a; (a = k->first) != NULL && a->deadline <= clock_now();) {
        k->first = a->next;
        refuse(f, a->c);
        free(a);
    }
}

/* All processes were frozen for so long, which no client answers for. */
static void excuse(struct carrier *k, int64_t gap)
{
    pthread_mutex_lock(&k->mutex);
    for (worker *w = k->workers; w != NULL; w = w->next)
        for (uint32_t i = 0; i < w->n_slots; i++)
            if (w->errands[i].blocked != 0)
                w->errands[i].blocked += gap;
    for (again *a = k->first; a != NULL; a = a->next)
        a->deadline += gap;
    pthread_mutex_unlock(&k->mutex);
}

/* How long the carrier may wait.  While requests wait although threads sleep, it wakes one after the other. */
static int64_t longest_wait(const front *f)
{
    struct carrier *k = f->carrier;
    int64_t longest = k->first != NULL || k->has_blocked ? SECOND / 4 : -1;

    for (worker *w = k->workers; w != NULL; w = w->next) {
        if (n_untaken(w) == 0)
            continue;
        if (!atomic_load(&w->area->by_reader) && atomic_load(&w->area->sleepers) > 0)
            return MILLISECOND;
        if (better_for(k, w) != NULL)
            longest = PATIENCE;
    }
    return longest;
}

int front_carry(front *f)
{
    struct carrier *k = f->carrier;
    unsigned news = 0;

    if (f->foreign)
        return FRONT_CLOSED;
    if (k == NULL)
        return -EINVAL;
    for (;;) {
        pthread_mutex_lock(&k->mutex);
        note_sleep(f, 0);
        if (news & FRONT_OTHERS)
            (void)!read(k->bell_fd, &(uint64_t){0}, sizeof(uint64_t));
        if (news & FRONT_LATE)
            tell_late(f);
        enum front_stage stage = stage_now(f);
        if (stage == FRONT_STOPPED && atomic_load(&f->stage) != FRONT_STOPPED) /* the leader has not seen it yet */
            stage = FRONT_CLOSING;
        k->stage = stage == FRONT_CLOSING ? FRONT_DRAINING : (int)stage; /* CLOSING of the front; the workers go on */
        for (worker *w = k->workers; w != NULL; w = w->next)
            tell_stage(w, k->stage);
        take_moved(f);
        take_news(f, false);
        if (k->has_blocked)
            watch_blocked(f);
        take_back(f);
        expire(f);
        front_want_requests(f, give_away(f));
        for (worker *w = k->workers; w != NULL; w = w->next)
            if (w->is_due || n_untaken(w) > 0)
                rouse(w);
        note_sleep(f, 1);
        int64_t wait = take_news(f, true) ? 0 : longest_wait(f), now = clock_now();
        pthread_mutex_unlock(&k->mutex);
        if (stage == FRONT_STOPPED)
            return FRONT_CLOSED;
        news = front_wait(f, wait);
        if (wait >= 0 && clock_now() - now > wait + FRONT_GAP)
            excuse(k, clock_now() - now - wait);
    }
}

/* ------------------------------------------------------------------------ workers come and go */

int front_open_workers(front *f)
{
    if (f->foreign)
        return -EPIPE;
    if (f->carrier != NULL)
        return -EALREADY;
    struct carrier *k = calloc(1, sizeof *k);
    if (k == NULL)
        return -ENOMEM;
    pthread_mutex_init(&k->mutex, NULL);
    if ((k->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) == -1) {
        free(k);
        return -errno;
    }
    f->carrier = k;
    f->limits.slow_callback_duration = 0; /* the carrier runs nobody's code */
    eventloop_carry(f, k->bell_fd);
    eventloop_gather(f, true);
    int rv = front_serve_by_eventloop(f, k->bell_fd);
    return rv == FRONT_OK ? k->bell_fd : rv;
}

static worker *find(front *f, uint32_t number)
{
    worker *w = f->carrier != NULL ? f->carrier->workers : NULL;

    while (w != NULL && w->number != number)
        w = w->next;
    return w;
}

static void free_worker(worker *w)
{
    if (w->area != NULL)
        munmap(w->area, w->size);
    if (w->wake_fd != -1)
        close(w->wake_fd);
    free(w->errands);
    free(w->free);
    free(w);
}

static uint32_t whole_pages(size_t size)
{
    return (uint32_t)((size + AREA_PAGE - 1) / AREA_PAGE * AREA_PAGE);
}

/* Makes its area.  The descriptor, or a negative errno. */
static int lay_out(const front *f, worker *w, bool streams)
{
    w->ring = streams ? RING_OF_TASK : RING_OF_THREAD;
    w->in_at = whole_pages(sizeof(area_slot) + f->heads.max_head_size);
    w->out_at = w->in_at + RING_OF_THREAD;
    w->slot_size = w->out_at + RING_OF_THREAD;
    w->size = AREA_SLOTS_AT + (uint64_t)w->slot_size * w->n_slots;
    int fd = memfd_create("pkg-worker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd == -1)
        return -errno;
    area *a = MAP_FAILED;
    if (ftruncate(fd, (off_t)w->size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        a = mmap(NULL, w->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (a == MAP_FAILED) {
        int error = errno;
        close(fd);
        return -error;
    }
    madvise(a, w->size, MADV_DONTFORK);
    w->area = a;
    a->magic = AREA_MAGIC;
    a->version = AREA_VERSION;
    a->size = w->size;
    a->n_slots = w->n_slots;
    a->slot_size = w->slot_size;
    a->in_at = w->in_at;
    a->out_at = w->out_at;
    a->streams = streams;
    return fd;
}

/* The socket with the two descriptors, or a negative errno. */
static int wrap(worker *w, int fd)
{
    int pair[2], rv;

    if ((w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) == -1 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == -1)
        return -errno;
    rv = area_send(pair[0], (int[]){fd, w->wake_fd});
    close(pair[0]);
    if (rv == FRONT_OK)
        return pair[1];
    close(pair[1]);
    return rv;
}

int front_add_worker(front *f, uint32_t threads, bool streams, uint32_t *number)
{
    struct carrier *k = f->carrier;

    if (f->foreign || k == NULL || threads == 0 || threads > AREA_SLOTS)
        return -EINVAL;
    worker *w = calloc(1, sizeof *w);
    if (w == NULL)
        return -ENOMEM;
    w->carrier = k;
    w->wake_fd = -1;
    w->room = w->n_slots = w->n_free = threads;
    w->errands = calloc(threads, sizeof *w->errands);
    w->free = calloc(threads, sizeof *w->free);
    int rv = w->errands == NULL || w->free == NULL ? -ENOMEM : lay_out(f, w, streams);
    if (rv >= 0) {
        int fd = rv;
        rv = wrap(w, fd);
        close(fd);
    }
    if (rv < 0) {
        free_worker(w);
        return rv;
    }
    for (uint32_t i = 0; i < threads; i++)
        w->free[i] = threads - 1 - i;
    pthread_mutex_lock(&k->mutex);
    *number = w->number = ++k->n_added;
    atomic_store(&w->area->stage, k->stage); /* front_carry() may have returned */
    w->next = k->workers;
    k->workers = w;
    pthread_mutex_unlock(&k->mutex);
    return rv;
}

static worker *lock_worker(front *f, uint32_t number)
{
    if (f->foreign || f->carrier == NULL)
        return NULL;
    pthread_mutex_lock(&f->carrier->mutex);
    worker *w = find(f, number);
    if (w == NULL)
        pthread_mutex_unlock(&f->carrier->mutex);
    return w;
}

int front_suit_worker(front *f, uint32_t number, uint32_t room, bool streams)
{
    worker *w = lock_worker(f, number);

    if (w == NULL)
        return -ENOENT;
    w->room = room < w->n_slots ? room : w->n_slots;
    w->area->streams = streams;
    w->ring = streams ? RING_OF_TASK : RING_OF_THREAD;
    pthread_mutex_unlock(&f->carrier->mutex);
    return FRONT_OK;
}

int front_admit_worker(front *f, uint32_t number)
{
    worker *w = lock_worker(f, number);

    if (w == NULL)
        return -ENOENT;
    if (!w->is_admitted && !w->is_retired) {
        w->is_admitted = true;
        eventloop_add_room(f, w->room);
        eventloop_gather(f, w->ring != RING_OF_TASK); /* not before: one that is still starting has no say */
    }
    pthread_mutex_unlock(&f->carrier->mutex);
    eventloop_bell(f);
    return FRONT_OK;
}

static void dismiss(front *f, worker *w)
{
    if (w->is_admitted)
        eventloop_add_room(f, -(int64_t)w->room);
    w->is_admitted = false;
}

int front_retire_worker(front *f, uint32_t number)
{
    worker *w = lock_worker(f, number);

    if (w == NULL)
        return -ENOENT;
    dismiss(f, w);
    w->is_retired = true;
    atomic_store(&w->area->retired, 1);
    atomic_fetch_add(&w->area->bell, 1);
    area_wake(&w->area->bell, INT32_MAX);
    area_wake(&w->area->stage, INT32_MAX);
    rouse(w);
    pthread_mutex_unlock(&f->carrier->mutex);
    return FRONT_OK;
}

int front_worker_now(front *f, uint32_t number, front_worker_state *out)
{
    worker *w = lock_worker(f, number);

    if (w == NULL)
        return -ENOENT;
    *out = (front_worker_state){.in_flight = w->n_in_flight, .queued = n_untaken(w), .served = w->served, .is_broken = w->is_broken};
    for (int i = 0; i < PAGES_SLOTS; i++)
        out->expires[i] = atomic_load(&w->area->expires[i]);
    pthread_mutex_unlock(&f->carrier->mutex);
    return FRONT_OK;
}

/* ------------------------------------------------------------------------ its death */

/* What becomes of a request that the worker had begun. */
static enum front_outcome part_with(front *f, errand *e, bool may_repeat)
{
    front_conn *c = e->c;
    const http1_head *h = &c->in->head;
    bool is_safe = (h->method_id == HTTP1_GET || h->method_id == HTTP1_HEAD) && !h->chunked && h->content_length == 0;

    if (e->sent || e->failed || e->begun == AREA_SWITCH || front_is_late(c)) {
        front_finish(f, c, false, true, 0);
        return FRONT_CUT;
    }
    if (is_safe && may_repeat && !e->is_repeated) {
        repeat(f, e, true);
        return FRONT_REPEATED;
    }
    refuse(f, c);
    return FRONT_502;
}

static void describe(const front_conn *c, front_flight *out)
{
    const http1_head *h = &c->in->head;
    const char *target = c->in->data + h->target.pos, *query = memchr(target, '?', h->target.len);

    snprintf(out->method, sizeof out->method, "%.*s", (int)h->method.len, c->in->data + h->method.pos);
    snprintf(out->target, sizeof out->target, "%.*s", query != NULL ? (int)(query - target) : (int)h->target.len, target);
    out->age = clock_now() - c->arrived;
    out->thread = 0;
    out->late = front_is_late(c);
    out->awaits = FRONT_AWAITS_NOTHING; /* its process knows */
}

static ssize_t clear_up(front *f, worker *w, front_loss *out, size_t max)
{
    struct carrier *k = f->carrier;
    int64_t now = clock_now();
    bool may_repeat = f->limits.retry_idempotent && (k->deadly[0] == 0 || now - k->deadly[0] > MINUTE);
    size_t n = 0;

    for (uint32_t i = 0; i < w->n_slots; i++) /* what it had finished, and the client has not taken yet */
        if (w->errands[i].c != NULL)
            pump(f, &w->errands[i]);
    for (uint32_t at = w->head - n_untaken(w); at != w->head; at++) {
        uint32_t number = atomic_load(&w->area->requests[at % AREA_SLOTS]);
        if (number < w->n_slots && w->errands[number].c != NULL && !w->errands[number].sent) {
            repeat(f, &w->errands[number], false);
            forget(&w->errands[number]);
        }
    }
    for (uint32_t i = 0; i < w->n_slots; i++) {
        errand *e = &w->errands[i];
        if (e->c == NULL)
            continue;
        front_loss loss;
        describe(e->c, &loss.flight);
        bool was_repeated = e->is_repeated;
        loss.outcome = part_with(f, e, may_repeat);
        if (was_repeated && loss.outcome == FRONT_502) {
            memmove(k->deadly, k->deadly + 1, sizeof k->deadly - sizeof *k->deadly);
            k->deadly[MOST_DEADLY - 1] = now;
        }
        if (n < max)
            out[n] = loss;
        n++;
        forget(e);
    }
    return (ssize_t)n;
}

ssize_t front_worker_requests(front *f, uint32_t number, front_flight *out, size_t max)
{
    worker *w = lock_worker(f, number);
    size_t n = 0;

    if (w == NULL)
        return -ENOENT;
    for (uint32_t i = 0; i < w->n_slots; i++)
        if (w->errands[i].c != NULL && n++ < max)
            describe(w->errands[i].c, &out[n - 1]);
    pthread_mutex_unlock(&f->carrier->mutex);
    return (ssize_t)n;
}

ssize_t front_lose_worker(front *f, uint32_t number, front_loss *out, size_t max)
{
    worker *w = lock_worker(f, number);

    if (w == NULL)
        return -ENOENT;
    struct carrier *k = f->carrier;
    dismiss(f, w);
    ssize_t n = clear_up(f, w, out, max);
    for (worker **p = &k->workers; *p != NULL; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    free_worker(w);
    pthread_mutex_unlock(&k->mutex);
    eventloop_bell(f);
    return n;
}

void carrier_free(front *f)
{
    struct carrier *k = f->carrier;

    for (worker *w = k->workers, *next; w != NULL; w = next) {
        next = w->next;
        free_worker(w);
    }
    for (again *a = k->first, *next; a != NULL; a = next) {
        next = a->next;
        free(a);
    }
    close(k->bell_fd);
    pthread_mutex_destroy(&k->mutex);
    free(k);
    f->carrier = NULL;
}
