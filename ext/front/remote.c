/* remote.c - see remote.h. */
#define _GNU_SOURCE
#include "remote.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "body.h"
#include "clock.h"
#include "eventloop.h"
#include "handoff.h"
#include "leader.h"
#include "pace.h"
#include "stage.h"

#define INTERRUPTION (100 * MILLISECOND) /* how often a waiting thread checks whether it should stop */

struct remote {
    area *area;
    uint64_t size;
    int bell_fd, wake_fd; /* the carrier's; the event loop's */
    uint32_t n_slots, slot_size, in_at, out_at;
    front_conn *conns; /* one for each slot */

    /* Held by the thread that waits for the next request, and comes for it: from its wait until it has the interpreter, and the
     * request (handoff.h says why). */
    pthread_mutex_t duty;
    _Atomic int64_t came; /* since when that thread waits for the interpreter, or 0 */
};

static uint32_t number_of(const struct remote *r, const front_conn *c)
{
    return (uint32_t)(c - r->conns);
}

/* Tells the carrier of this request. */
static void tell(struct remote *r, uint32_t number)
{
    AREA_STEP();
    area_note(r->area->news, number);
    AREA_STEP();
    if (atomic_load(&r->area->front_asleep) && atomic_exchange(&r->area->front_asleep, 0)) {
        AREA_STEP(); /* the carrier sleeps on, until it is told of the death */
        (void)!write(r->bell_fd, &(uint64_t){1}, sizeof(uint64_t));
    }
}

/* ------------------------------------------------------------------------ take */

/* The number of the oldest request that nobody has taken, or -1. */
static int64_t pop(area *a, uint32_t n_slots)
{
    uint32_t tail = atomic_load(&a->tail);

    while (tail != atomic_load_explicit(&a->head, memory_order_acquire)) {
        uint32_t number = atomic_load_explicit(&a->requests[tail % AREA_SLOTS], memory_order_relaxed);
        AREA_STEP();
        if (atomic_compare_exchange_weak(&a->tail, &tail, tail + 1))
            return number < n_slots ? (int64_t)number : -1;
    }
    return -1;
}

/* Requests that are left when the worker is retired are served. */
static bool is_over(const front *f)
{
    return remote_stage(f) >= FRONT_CLOSING;
}

static bool is_empty(area *a)
{
    return atomic_load(&a->head) == atomic_load(&a->tail);
}

/* As admission_shares_interpreter(), without the queue's mutex. */
static bool shares_interpreter(const front *f)
{
    return atomic_load_explicit(&f->remote->area->is_slow, memory_order_relaxed) && !f->limits.parallel && !eventloop_serves(f);
}

/* A request's number, or -1, and then `*came`, if given, says whether this thread has come for one. */
static int64_t wait_for_request(front *f, int64_t timeout, int64_t *came)
{
    struct remote *r = f->remote;
    area *a = r->area;
    int64_t until = timeout < 0 ? INT64_MAX : clock_now() + timeout;
    bool on_duty = false;

    for (;;) {
        bool comes = came != NULL && shares_interpreter(f);
        if (comes && !on_duty)
            pthread_mutex_lock(&r->duty);
        else if (!comes && on_duty)
            pthread_mutex_unlock(&r->duty);
        on_duty = comes;
        unsigned bell = atomic_load(&a->bell);
        AREA_STEP();
        atomic_fetch_add(&a->sleepers, 1); /* either this finds the request, or the front finds the sleeper */
        bool there = comes && !is_empty(a);
        int64_t number = comes ? -1 : pop(a, r->n_slots), left = timeout < 0 ? -1 : until - clock_now();
        bool ends = there || number != -1 || is_over(f) || (timeout >= 0 && left <= 0);
        if (!ends)
            area_wait(&a->bell, bell, left);
        AREA_STEP();
        atomic_fetch_sub(&a->sleepers, 1);
        if (there) {
            *came = clock_now();
            atomic_store_explicit(&r->came, *came, memory_order_relaxed);
            return -1; /* still on duty */
        }
        if (ends) {
            if (on_duty)
                pthread_mutex_unlock(&r->duty);
            return number;
        }
    }
}

static void wake_another(struct remote *r)
{
    atomic_fetch_add(&r->area->bell, 1);
    area_wake(&r->area->bell, 1);
}

/* The next request for a thread that has the interpreter, unless it leaves that to one that has come, as in handoff_gives_way(). */
static int64_t take_next(front *f, int64_t *came)
{
    struct remote *r = f->remote;
    bool has_come = came != NULL && *came != 0;
    int64_t since = atomic_load_explicit(&r->came, memory_order_relaxed);

    if (came != NULL && !has_come && handoff_is_awaited(since) && !is_over(f))
        return -1;
    int64_t number = pop(r->area, r->n_slots);
    if (has_come) {
        *came = 0;
        atomic_store_explicit(&r->came, 0, memory_order_relaxed);
        pthread_mutex_unlock(&r->duty);
    }
    return number;
}

int remote_take(front *f, front_request *out, int64_t timeout, int64_t *came)
{
    struct remote *r = f->remote;
    int64_t number = timeout == 0 || came == NULL ? take_next(f, came) : -1;

    if (number == -1 && timeout != 0)
        number = wait_for_request(f, timeout, came);
    if (number == -1)
        return is_over(f) && (came == NULL || *came == 0) ? FRONT_CLOSED : FRONT_TIMEOUT;

    front_conn *c = &r->conns[number];
    area_slot *s = c->slot = area_slot_at(r->area, r->slot_size, (uint32_t)number); /* here, so that few are touched */
    c->fd = c->file = -1;
    int end = atomic_load_explicit(&s->in_end, memory_order_acquire);
    uint64_t there = atomic_load_explicit(&s->in_head, memory_order_relaxed);
    c->in = &s->in;
    c->arrived = s->arrived;
    c->listener = (uint8_t)s->listener;
    c->chunked = s->chunked;
    c->body_left = 0;
    c->body_read = c->body_mark = there;
    c->body_waited = 0;
    c->read_dry = false;
    atomic_store_explicit(&c->complete, end == 1, memory_order_relaxed);
    atomic_store_explicit(&c->expect, s->expect, memory_order_relaxed);
    atomic_store_explicit(&c->cut, false, memory_order_relaxed);
    atomic_store_explicit(&c->interrupted, false, memory_order_relaxed);
    bool is_slow = handoff_begin(f, c);
    if (atomic_load_explicit(&r->area->is_slow, memory_order_relaxed) != is_slow)
        atomic_store_explicit(&r->area->is_slow, is_slow, memory_order_relaxed);
    if (is_slow && atomic_load(&r->area->sleepers) > 0 && atomic_load(&r->area->head) != atomic_load(&r->area->tail))
        wake_another(r);

    out->conn = c;
    out->head = &s->in.head;
    out->data = s->in.data;
    out->head_len = s->in.head_len;
    out->body = (char *)s + r->in_at;
    out->body_len = there;
    out->body_complete = end == 1;
    out->body_spooled = s->length >= 0;
    out->is_repeated = s->repeated;
    out->listener = s->listener;
    out->arrived = s->arrived;
    memcpy(&out->peer, &s->peer, sizeof out->peer);
    return FRONT_OK;
}

/* ------------------------------------------------------------------------ waiting */

/* Until something has changed in the slot since the caller looked, which it does again after `asleep` has been set. */
static void doze(front_conn *c, int64_t longest, enum front_awaits what)
{
    atomic_store_explicit(&c->awaits, (int)what, memory_order_relaxed);
    area_wait(&c->slot->asleep, 1, longest < INTERRUPTION ? longest : INTERRUPTION);
    atomic_store_explicit(&c->awaits, FRONT_AWAITS_NOTHING, memory_order_relaxed);
}

/* How long a doze took, if the process was not frozen meanwhile. */
static int64_t without_freeze(int64_t took)
{
    return took > INTERRUPTION + FRONT_GAP ? INTERRUPTION : took;
}

static bool is_hopeless(front *f, front_conn *c)
{
    return atomic_load_explicit(&c->slot->gone, memory_order_relaxed) || atomic_load(&c->slot->late) != 0 ||
           atomic_load_explicit(&c->interrupted, memory_order_relaxed) || remote_stage(f) == FRONT_STOPPED;
}

/* ------------------------------------------------------------------------ read */

/* Copies from a ring; at most to its end. */
static size_t copy_out(char *to, const char *ring, uint64_t size, uint64_t at, size_t len)
{
    size_t first = (size_t)(size - at % size);

    if (len > first)
        len = first;
    memcpy(to, ring + at % size, len);
    return len;
}

static ssize_t read_some(struct remote *r, front_conn *c, char *buf, size_t len)
{
    area_slot *s = c->slot;
    uint64_t tail = atomic_load_explicit(&s->in_tail, memory_order_relaxed);
    int end = atomic_load_explicit(&s->in_end, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&s->in_head, memory_order_acquire);

    c->body_read = head;
    if (end == 1 && c->switched) /* that was the request; the front does not know yet that more will come */
        end = 0;
    if (end == 1)
        atomic_store_explicit(&c->complete, true, memory_order_relaxed);
    if (head == tail)
        return end == 0 ? -EAGAIN : end == 1 ? 0 : end;
    size_t n = copy_out(buf, (char *)s + r->in_at, s->ring, tail, len < head - tail ? len : (size_t)(head - tail));
    AREA_STEP();
    atomic_store(&s->in_tail, tail + n);
    c->read_dry = n == head - tail;
    if (atomic_load(&s->in_full) && head - tail - n <= s->ring / 2)
        tell(r, number_of(r, c));
    return (ssize_t)n;
}

ssize_t remote_read(front *f, front_conn *c, char *buf, size_t len, bool wait)
{
    struct remote *r = f->remote;
    area_slot *s = c->slot;

    if (atomic_load_explicit(&s->late, memory_order_relaxed) != 0)
        return -EPIPE;
    ssize_t n = read_some(r, c, buf, len);
    if (n != -EAGAIN)
        return n;
    if (!atomic_load(&s->wants)) { /* 100 (Continue), if the client waits for it */
        atomic_store_explicit(&c->expect, false, memory_order_relaxed);
        AREA_STEP();
        atomic_store(&s->wants, 1);
        tell(r, number_of(r, c));
    }
    while (wait && n == -EAGAIN) {
        int64_t begin = clock_now();
        AREA_STEP();
        atomic_store(&s->asleep, 1);
        if ((n = read_some(r, c, buf, len)) == -EAGAIN)
            doze(c, f->limits.body_timeout - c->body_waited, FRONT_AWAITS_BODY);
        else
            break;
        c->body_waited += without_freeze(clock_now() - begin);
        if (c->body_waited >= f->limits.body_timeout) {
            c->body_waited = 0;
            if (!body_keeps_up(f, c))
                return FRONT_E_LATE;
        }
        if ((n = read_some(r, c, buf, len)) == -EAGAIN && is_hopeless(f, c))
            return -EPIPE;
    }
    return n;
}

uint64_t remote_body_left(const front_conn *c)
{
    uint64_t tail = atomic_load_explicit(&c->slot->in_tail, memory_order_relaxed);

    return (c->slot->length >= 0 ? (uint64_t)c->slot->length : atomic_load(&c->slot->in_head)) - tail;
}

/* ------------------------------------------------------------------------ send */

bool remote_begin_response(front *f, front_conn *c)
{
    area_slot *s = c->slot;
    bool expect = atomic_load_explicit(&c->expect, memory_order_relaxed);

    if (c->complete)
        return true;
    atomic_store_explicit(&c->expect, false, memory_order_relaxed);
    AREA_STEP();
    atomic_store_explicit(&s->begun, AREA_BEGUN, memory_order_relaxed); /* seen with the first byte */
    if (s->has_arrived || atomic_load_explicit(&s->in_end, memory_order_acquire) == 1)
        return true;
    uint64_t left = s->length < 0 ? 0 : (uint64_t)s->length - atomic_load(&s->in_head);
    return f->remote->area->streams && !expect && left <= f->limits.body_buffer_size;
}

/* Moves as much as there is room for into the ring.  Whether it is all. */
static bool send_some(struct remote *r, front_conn *c, struct iovec *iov, int n)
{
    area_slot *s = c->slot;
    char *ring = (char *)s + r->out_at;
    uint64_t begin = atomic_load_explicit(&s->out_head, memory_order_relaxed), head = begin;
    uint64_t most = atomic_load(&s->out_tail) + s->ring;

    while (n > 0 && head < most) {
        size_t part = iov->iov_len < most - head ? iov->iov_len : (size_t)(most - head);
        size_t first = (size_t)(s->ring - head % s->ring);
        if (part > first)
            part = first;
        AREA_STEP();
        memcpy(ring + head % s->ring, iov->iov_base, part);
        head += part;
        iov->iov_base = (char *)iov->iov_base + part;
        if ((iov->iov_len -= part) == 0)
            iov++, n--;
    }
    while (n > 0 && iov->iov_len == 0)
        iov++, n--;
    if (head != begin) {
        AREA_STEP();
        atomic_store_explicit(&s->out_head, head, memory_order_release);
        tell(r, number_of(r, c));
    }
    return n == 0;
}

int remote_send(front *f, front_conn *c, struct iovec *iov, int n, bool wait)
{
    struct remote *r = f->remote;
    area_slot *s = c->slot;
    int64_t begin = 0;
    uint64_t mark = 0;

    for (;;) {
        if (atomic_load_explicit(&c->cut, memory_order_relaxed) || is_hopeless(f, c))
            return -EPIPE;
        if (send_some(r, c, iov, n))
            return FRONT_OK;
        if (!wait)
            return FRONT_AGAIN;
        uint64_t tail = atomic_load(&s->out_tail);
        int64_t now = clock_now();
        if (begin == 0) {
            begin = now;
            mark = tail;
        } else if (now - begin >= f->limits.write_timeout) {
            if (!pace_is_kept(f, tail - mark, f->limits.write_timeout)) {
                atomic_store_explicit(&c->cut, true, memory_order_relaxed);
                return FRONT_E_LATE;
            }
            begin = now;
            mark = tail;
        }
        AREA_STEP();
        atomic_store(&s->asleep, 1);
        if (atomic_load(&s->out_head) - atomic_load(&s->out_tail) == s->ring) /* `tail` may be newer than what send_some() saw */
            doze(c, INTERRUPTION, FRONT_AWAITS_ROOM);
        int64_t took = clock_now() - now;
        begin += took - without_freeze(took);
    }
}

int remote_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len)
{
    char block[65536];

    while (len > 0) {
        ssize_t n = pread(fd, block, len < sizeof block ? (size_t)len : sizeof block, offset);
        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n == 0 ? -EIO : -errno;
            atomic_store_explicit(&c->cut, true, memory_order_relaxed);
            return error;
        }
        struct iovec iov = {.iov_base = block, .iov_len = (size_t)n};
        int rv = remote_send(f, c, &iov, 1, true);
        if (rv != FRONT_OK)
            return rv;
        offset += n;
        len -= (uint64_t)n;
    }
    return FRONT_OK;
}

void remote_trace(front_conn *c, const uint8_t *id)
{
    memcpy(c->slot->trace, id, TALLY_TRACE);
    atomic_store_explicit(&c->slot->traced, 1, memory_order_relaxed); /* seen with `ended` */
}

/* Whether the front has answered in place of the worker, which did not know yet.  With the queue's mutex held. */
static bool note_late(front *f, front_conn *c)
{
    if (c->late || atomic_load(&c->slot->late) == 0)
        return false;
    handoff_note_late(f, c);
    count_add(&f->count.request_timeouts, 1);
    return true;
}

void remote_note_late(front *f)
{
    if (eventloop_serves(f)) /* which is told */
        return;
    handoff_lock(f);
    handoff_look_at_taken(f, note_late);
    handoff_unlock(f);
}

unsigned remote_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status)
{
    area_slot *s = c->slot;

    if (atomic_load_explicit(&c->cut, memory_order_relaxed))
        abort = true;
    int late = atomic_load(&s->late);
    if (late != 0) {
        handoff_lock(f);
        note_late(f, c);
        handoff_unlock(f);
    }
    handoff_end(f, c);
    unsigned ended = AREA_ENDED | (keep_alive ? AREA_KEEP_ALIVE : 0u) | (abort ? AREA_ABORT : 0u) | status * AREA_STATUS;
    AREA_STEP();
    atomic_store_explicit(&s->ended, ended, memory_order_release); /* the slot may be used again from now on */
    tell(f->remote, number_of(f->remote, c));
    return late == ANSWER_504 ? 504 : status;
}

/* ----------------------------------------------------------------- an event loop */

int remote_serve_by_reader(front *f)
{
    struct remote *r = f->remote;
    struct epoll_event wakes = {.events = EPOLLIN};
    int fd = eventloop_open_elsewhere(f);

    if (fd >= 0 && epoll_ctl(fd, EPOLL_CTL_ADD, r->wake_fd, &wakes) == -1)
        return -errno;
    if (fd >= 0)
        atomic_store(&r->area->by_reader, 1);
    return fd;
}

/* What has happened to a request: a set of enum front_progress. */
static unsigned progress_of(const front_conn *c)
{
    area_slot *s = c->slot;
    int end = atomic_load(&s->in_end);
    uint64_t unsent = atomic_load(&s->out_head) - atomic_load(&s->out_tail);
    bool is_over = atomic_load(&s->gone) || atomic_load(&s->late) != 0;

    if (is_over)
        return FRONT_READABLE | FRONT_WRITABLE | FRONT_LEFT;
    return (atomic_load(&s->in_head) != atomic_load(&s->in_tail) || end < 0 || (end == 1 && !c->switched) ? FRONT_READABLE : 0) |
           (unsent <= s->ring / 2 ? FRONT_WRITABLE : 0) | (atomic_load(&s->left) ? FRONT_LEFT : 0);
}

/* Takes what the front has told.  With the queue's mutex held. */
static void take_news(front *f)
{
    struct remote *r = f->remote;

    for (uint32_t i = 0; i <= (r->n_slots - 1) / 64; i++) {
        if (atomic_load(&r->area->news_back[i]) == 0)
            continue;
        AREA_STEP();
        for (uint64_t bits = atomic_exchange(&r->area->news_back[i], 0); bits != 0; bits &= bits - 1) {
            front_conn *c = &r->conns[i * 64 + (uint32_t)__builtin_ctzll(bits)];
            if (!c->with_eventloop)
                continue;
            if (note_late(f, c))
                eventloop_note_late(f);
            eventloop_note(f, c, progress_of(c));
        }
    }
}

static unsigned news_of(front *f)
{
    area *a = f->remote->area;

    handoff_lock(f);
    take_news(f);
    unsigned news = (atomic_load(&a->head) != atomic_load(&a->tail) ? FRONT_REQUESTS : 0) |
                    (eventloop_has_moved(f) ? FRONT_MOVED : 0) | (eventloop_has_late(f) ? FRONT_LATE : 0);
    handoff_unlock(f);
    return news;
}

unsigned remote_look(front *f, bool begins)
{
    struct remote *r = f->remote;

    if (f->foreign)
        return 0;
    int64_t now = eventloop_look(f);
    if (begins) {
        eventloop_return(f, now);
        eventloop_heed(f);
        (void)!read(r->wake_fd, &(uint64_t){0}, sizeof(uint64_t));
    }
    unsigned news = news_of(f);
    if (news != 0)
        return news;
    eventloop_begin_sleep(f);
    AREA_STEP();
    atomic_store(&r->area->asleep, 1);
    if ((news = news_of(f)) != 0) { /* a ring that comes all the same only makes it look again */
        AREA_STEP();
        atomic_store(&r->area->asleep, 0);
        eventloop_return(f, now);
    }
    return news;
}

int remote_await(front *f, front_conn *c, unsigned what, void *tag)
{
    handoff_lock(f);
    c->tag = tag;
    bool has_happened = (progress_of(c) & what) != 0 || atomic_load(&c->interrupted);
    if (!has_happened)
        c->wanted |= (uint8_t)what;
    handoff_unlock(f);
    return has_happened ? FRONT_OK : FRONT_AGAIN;
}

int remote_switch(front *f, front_conn *c)
{
    const http1_head *h = &c->in->head;

    if (atomic_load(&c->slot->late) != 0 || atomic_load(&c->slot->gone))
        return -EPIPE;
    if (h->chunked || h->content_length > 0 || h->minor == 0 || c->switched)
        return -EINVAL;
    handoff_switch(f, c);
    atomic_store(&c->complete, false);
    AREA_STEP();
    atomic_store(&c->slot->begun, AREA_SWITCH);
    tell(f->remote, number_of(f->remote, c));
    return FRONT_OK;
}

/* ------------------------------------------------------------------- its life */

enum front_stage remote_stage(const front *f)
{
    area *a = f->remote->area;
    int stage = atomic_load_explicit(&a->stage, memory_order_relaxed), wanted = (int)stage_now(f);

    if (atomic_load_explicit(&a->retired, memory_order_relaxed) && stage < FRONT_CLOSING)
        stage = FRONT_CLOSING;
    return (enum front_stage)(wanted > stage ? wanted : stage);
}

bool remote_is_draining(const front *f)
{
    return atomic_load_explicit(&f->remote->area->stage, memory_order_relaxed) != FRONT_SERVING;
}

void remote_renew(front *f, unsigned slot, int64_t nanoseconds)
{
    if (slot < PAGES_SLOTS)
        atomic_store(&f->remote->area->expires[slot], clock_now() + nanoseconds);
    if (slot == 0)
        handoff_knock(f);
}

void remote_advance(front *f)
{
    atomic_fetch_add(&f->remote->area->bell, 1); /* whoever is about to sleep looks again */
    area_wake(&f->remote->area->bell, INT32_MAX);
    area_wake(&f->remote->area->stage, INT32_MAX);
}

int remote_run(front *f)
{
    area *a = f->remote->area;

    for (;;) {
        enum front_stage stage = remote_stage(f);
        clock_expect(f, INT64_MAX);
        if (stage == FRONT_STOPPED || f->foreign)
            return FRONT_CLOSED;
        front_counters counters;
        handoff_count(f, &counters);
        uint64_t left = counters.in_flight + counters.websockets;
        if (stage == FRONT_CLOSING && left == 0 && atomic_load(&a->tail) == atomic_load(&a->head))
            return FRONT_CLOSED;
        /* Nobody rings when a turn of an event loop begins. */
        int64_t longest = stage == FRONT_CLOSING ? 10 * MILLISECOND : SECOND, now = clock_now();
        if (eventloop_serves(f) && f->limits.slow_callback_duration != 0) {
            int64_t look = leader_watch(f, 0);
            int64_t often = handoff_workers(f) > 0 ? f->limits.slow_callback_duration / 2 : SECOND / 2;
            longest = look - now < often ? look - now : often;
        }
        if (longest < 0)
            longest = 0;
        clock_expect(f, now + longest);
        area_wait(&a->stage, (unsigned)atomic_load(&a->stage), longest);
        int64_t late = clock_now() - now - longest;
        if (late > FRONT_GAP)
            clock_add_gap(f, late);
    }
}

static int map(struct remote *r, int fd)
{
    struct stat is;

    if (fstat(fd, &is) == -1)
        return -errno;
    r->size = (uint64_t)is.st_size;
    if (r->size < sizeof(area))
        return -EINVAL;
    area *a = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (a == MAP_FAILED)
        return -errno;
    r->area = a;
    if (a->magic != AREA_MAGIC || a->version != AREA_VERSION || a->size != r->size)
        return -EINVAL;
    r->n_slots = a->n_slots;
    r->slot_size = a->slot_size;
    r->in_at = a->in_at;
    r->out_at = a->out_at;
    if ((r->conns = calloc(r->n_slots, sizeof *r->conns)) == NULL)
        return -ENOMEM;
    return FRONT_OK;
}

int remote_open(front *f, int socket, int bell_fd)
{
    struct remote *r = calloc(1, sizeof *r);
    int fds[2], rv;

    if (r == NULL)
        return -ENOMEM;
    f->remote = r;
    pthread_mutex_init(&r->duty, NULL);
    r->wake_fd = -1;
    if ((r->bell_fd = fcntl(bell_fd, F_DUPFD_CLOEXEC, 0)) == -1)
        return -errno;
    if ((rv = area_receive(socket, fds)) != FRONT_OK)
        return rv;
    r->wake_fd = fds[1];
    rv = map(r, fds[0]);
    close(fds[0]);
    return rv;
}

void remote_close(front *f)
{
    struct remote *r = f->remote;

    for (int i = 0; i < 2; i++)
        if ((int[]){r->bell_fd, r->wake_fd}[i] != -1)
            close((int[]){r->bell_fd, r->wake_fd}[i]);
    if (r->area != NULL)
        munmap(r->area, r->size);
    pthread_mutex_destroy(&r->duty);
    free(r->conns);
    free(r);
    f->remote = NULL;
}
