/* eventloop.c - see eventloop.h. */
#define _GNU_SOURCE
#include "eventloop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"

#define LEAD_SHORTEST (100 * MILLISECOND) /* a pause of the garbage collector is forgotten soon */
#define LEAD_LONGEST (3200 * MILLISECOND)
#define CALM SECOND /* after so long without a delay, the next one is the first again */
#define LONG_TURN MILLISECOND /* the shortest nap of the front's own thread, after which it leads */
#define OFTEN 16 /* looks of one that waits elsewhere, */
#define WINDOW (10 * MILLISECOND) /* within such a time, after which it leads */

void eventloop_init(front *f)
{
    f->eventloop.outer_fd = f->eventloop.wake_fd = f->eventloop.watched_fd = f->eventloop.told_fd = -1;
    f->eventloop.bell_fd = -1;
}

static int open_with(front *f, int outer_fd, int watched_fd)
{
    if (f->eventloop.wake_fd != -1)
        return -EALREADY;
    if (f->eventloop.told_fd == -1 && (f->eventloop.told_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) == -1)
        return -errno;
    if ((f->eventloop.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) == -1)
        return -errno;
    /* Of our own, as asyncio closes its when it ends, and another thread may lead then. */
    if (outer_fd != -1 && (f->eventloop.outer_fd = fcntl(outer_fd, F_DUPFD_CLOEXEC, 0)) == -1)
        return -errno;
    f->eventloop.watched_fd = watched_fd;
    if (watched_fd != -1) {
        struct epoll_event wakes = {.events = EPOLLIN};
        if (epoll_ctl(watched_fd, EPOLL_CTL_ADD, f->eventloop.wake_fd, &wakes) == -1)
            return -errno;
    }
    atomic_store(&f->eventloop.state, EVENTLOOP_BUSY);
    return FRONT_OK;
}

int eventloop_open(front *f, int outer_fd)
{
    return open_with(f, outer_fd, -1);
}

int eventloop_open_elsewhere(front *f)
{
    int watched_fd = epoll_create1(EPOLL_CLOEXEC);

    if (watched_fd == -1)
        return -errno;
    int rv = open_with(f, -1, watched_fd);
    if (rv != FRONT_OK && f->eventloop.watched_fd != watched_fd)
        close(watched_fd);
    return rv != FRONT_OK ? rv : watched_fd;
}

int64_t eventloop_looks(const front *f)
{
    if (atomic_load_explicit(&f->eventloop.state, memory_order_relaxed) != EVENTLOOP_BUSY)
        return -1;
    return (int64_t)atomic_load_explicit(&f->eventloop.looks, memory_order_relaxed);
}

void eventloop_free(front *f)
{
    if (f->eventloop.outer_fd != -1)
        close(f->eventloop.outer_fd);
    if (f->eventloop.wake_fd != -1)
        close(f->eventloop.wake_fd);
    if (f->eventloop.watched_fd != -1)
        close(f->eventloop.watched_fd);
    if (f->eventloop.told_fd != -1)
        close(f->eventloop.told_fd);
}

void eventloop_disown(front *f)
{
    eventloop_free(f);
    f->eventloop.outer_fd = f->eventloop.wake_fd = f->eventloop.watched_fd = f->eventloop.told_fd = -1;
}

/* -------------------------------------------------------------------------- its turns */

static void begin_turn(front *f, int64_t at)
{
    atomic_store_explicit(&f->eventloop.began, at, memory_order_release);
}

static void tell(front *f)
{
    if (!f->foreign)
        (void)!write(f->eventloop.told_fd, &(uint64_t){1}, sizeof(uint64_t));
}

int64_t eventloop_turn(const front *f)
{
    int64_t began = atomic_load_explicit(&f->eventloop.began, memory_order_relaxed);

    if (began == 0 || atomic_load(&f->eventloop.state) != EVENTLOOP_BUSY)
        return 0;
    int64_t took = front_clock(f) - began;
    return took > 0 ? took : 0;
}

void eventloop_turns(const front *f, tally_waits *out)
{
    tally_read_turns(&f->eventloop.turns, out);
}

int eventloop_watch_turns(front *f, front_turn *out)
{
    struct front_eventloop *e = &f->eventloop;
    struct pollfd p = {.events = POLLIN};

    if (atomic_load(&e->state) == EVENTLOOP_ABSENT)
        return FRONT_CLOSED;
    p.fd = e->told_fd;
    while (poll(&p, 1, -1) == -1)
        if (errno != EINTR)
            return -errno;
    if (atomic_load(&f->stage) == FRONT_STOPPED) /* and everybody is to know */
        return FRONT_CLOSED;
    (void)!read(p.fd, &(uint64_t){0}, sizeof(uint64_t));
    out->number = atomic_load(&e->slow);
    out->took = atomic_load(&e->slow_took);
    out->at = clock_now();
    return FRONT_OK;
}

void eventloop_end_watch(front *f)
{
    if (atomic_load(&f->eventloop.state) != EVENTLOOP_ABSENT)
        tell(f);
}

#define STALL (50 * MILLISECOND) /* of the front's own thread; less is the scheduler's usual business on a busy machine */
#define SILENCE SECOND /* if slow_callback_duration is off, or longer */
#define MOST_STALLS 3            /* in one turn: where CPU is always short, turns are told all the same, but later */

int64_t eventloop_watch(front *f, int64_t nap)
{
    struct front_eventloop *e = &f->eventloop;
    int64_t slow = f->limits.slow_callback_duration, due = INT64_MAX;

    if (slow == 0)
        return INT64_MAX;
    /* Either this sees that it is BUSY, or whoever makes it BUSY sees that nobody looks. */
    atomic_store(&e->watched_at, INT64_MAX);
    bool busy = atomic_load(&e->state) == EVENTLOOP_BUSY;
    uint64_t number = atomic_load_explicit(&e->looks, memory_order_acquire);
    int64_t now = clock_now(), began = atomic_load_explicit(&e->began, memory_order_acquire);
    if (busy && began != 0) {
        if (atomic_load_explicit(&e->looks, memory_order_relaxed) != number) /* this is the beginning of another turn */
            began = front_clock(f);
        int64_t took = front_clock(f) - began;
        if (number != e->watched) {
            e->stalled = 0;
            e->n_stalls = 0;
        }
        if (now - e->expected > STALL && e->n_stalls < MOST_STALLS) {
            e->stalled = took; /* since when the process stood still is not known */
            e->n_stalls++;
        }
        e->watched = number;
        int64_t left = slow + e->stalled - took;
        if (atomic_load_explicit(&e->slow, memory_order_relaxed) == number) {
            ; /* it has been told */
        } else if (left <= 0) {
            atomic_store(&e->slow_took, 0);
            atomic_store(&e->slow, number);
            tell(f);
        } else {
            due = now + left;
        }
    }
    e->expected = nap != 0 ? now + nap : due;
    atomic_store(&e->watched_at, nap != 0 ? now : due);
    return due;
}

int64_t eventloop_silent_until(front *f)
{
    struct front_eventloop *e = &f->eventloop;
    int64_t slow = f->limits.slow_callback_duration;

    if (e->watched_fd == -1 || atomic_load(&e->state) != EVENTLOOP_ASLEEP)
        return INT64_MAX;
    uint64_t number = atomic_load_explicit(&e->looks, memory_order_relaxed);
    if (number != e->heard) {
        e->heard = number;
        e->silent_until = clock_now() + (slow != 0 && slow / 2 < SILENCE ? slow / 2 : SILENCE);
    }
    return e->silent_until;
}

/* -------------------------------------------------------------------------- its side */

int64_t eventloop_look(front *f)
{
    struct front_eventloop *e = &f->eventloop;
    uint64_t number = atomic_load_explicit(&e->looks, memory_order_relaxed);
    int64_t now = clock_now(), at = clock_without_gaps(f, now);
    int64_t began = atomic_load_explicit(&e->began, memory_order_relaxed);

    if (began != 0 && atomic_load_explicit(&e->state, memory_order_relaxed) == EVENTLOOP_BUSY) {
        tally_add_turn(&e->turns, at - began);
        if (at - began >= LONG_TURN)
            atomic_fetch_add_explicit(&e->long_turns, at - began, memory_order_relaxed);
    }
    if (atomic_load_explicit(&e->slow, memory_order_relaxed) == number && number != 0) {
        atomic_store(&e->slow_took, at > began ? at - began : 1);
        tell(f);
    }
    begin_turn(f, at); /* unless it waits now */
    atomic_store_explicit(&e->looks, number + 1, memory_order_release);
    return now;
}

bool eventloop_lead(front *f)
{
    if (!f->eventloop.is_watched) {
        if (front_watch_fd(f, f->eventloop.outer_fd, FRONT_OUTER, EPOLLIN) != 0)
            return false;
        f->eventloop.is_watched = true;
    }
    atomic_store(&f->eventloop.state, EVENTLOOP_LEADING);
    return true;
}

void eventloop_return(front *f, int64_t now)
{
    begin_turn(f, clock_without_gaps(f, now));
    atomic_store(&f->eventloop.state, EVENTLOOP_BUSY);
}

bool eventloop_has_others(front *f)
{
    return atomic_exchange_explicit(&f->eventloop.has_others, false, memory_order_relaxed);
}

void eventloop_begin_sleep(front *f)
{
    atomic_store(&f->eventloop.state, EVENTLOOP_ASLEEP);
}

bool eventloop_may_lead(const front *f)
{
    return atomic_load_explicit(&f->eventloop.may_lead, memory_order_relaxed);
}

void eventloop_heed(front *f)
{
    (void)!read(f->eventloop.wake_fd, &(uint64_t){0}, sizeof(uint64_t));
}

void eventloop_sleep(front *f, int64_t timeout)
{
    struct pollfd p[2] = {{.fd = f->eventloop.outer_fd, .events = POLLIN}, {.fd = f->eventloop.wake_fd, .events = POLLIN}};
    struct timespec t = {.tv_sec = (time_t)(timeout / SECOND), .tv_nsec = (long)(timeout % SECOND)};
    int asleep = EVENTLOOP_ASLEEP;

    if (ppoll(p, 2, timeout < 0 ? NULL : &t, NULL) > 0) {
        if (p[0].revents != 0)
            atomic_store_explicit(&f->eventloop.has_others, true, memory_order_relaxed);
        if (p[1].revents != 0)
            eventloop_heed(f);
    }
    /* Whoever has woken it meanwhile has said so; the byte that may follow ends the next sleep at once. */
    int64_t now = clock_now();
    if (!atomic_compare_exchange_strong(&f->eventloop.state, &asleep, EVENTLOOP_BUSY))
        return;
    begin_turn(f, clock_without_gaps(f, now));
    int64_t slow = f->limits.slow_callback_duration;
    if (slow != 0 && atomic_load(&f->eventloop.watched_at) - slow > now)
        front_ring(f);
}

front_conn *eventloop_moved(front *f)
{
    front_conn *c = f->eventloop.moved_first;

    if (c == NULL)
        return NULL;
    f->eventloop.moved_first = c->next_moved;
    if (c->next_moved == NULL)
        f->eventloop.moved_last = NULL;
    c->next_moved = NULL;
    c->is_moved = false;
    c->seen &= FRONT_LEFT; /* it tries again now, and finds what these edges were for */
    return c;
}

bool eventloop_has_late(const front *f)
{
    return f->eventloop.has_late;
}

bool eventloop_take_late(front *f)
{
    bool has_late = f->eventloop.has_late;

    f->eventloop.has_late = false;
    return has_late;
}

bool eventloop_await(front_conn *c, unsigned what)
{
    if (c->seen & what) {
        c->seen &= FRONT_LEFT; /* this stays true; an edge counts once */
        return false;
    }
    c->wanted |= (uint8_t)what;
    return true;
}

void eventloop_begin(front_conn *c)
{
    c->with_eventloop = true;
    c->wanted = 0;
}

void eventloop_dismiss(front *f, front_conn *c)
{
    c->wanted = 0;
    if (!c->is_moved)
        return;
    /* The list is short: the event loop empties it before it runs any task. */
    front_conn *before = NULL;
    for (front_conn *m = f->eventloop.moved_first; m != c; m = m->next_moved)
        before = m;
    if (before != NULL)
        before->next_moved = c->next_moved;
    else
        f->eventloop.moved_first = c->next_moved;
    if (f->eventloop.moved_last == c)
        f->eventloop.moved_last = before;
    c->next_moved = NULL;
    c->is_moved = false;
}

void eventloop_end(front *f, front_conn *c)
{
    c->with_eventloop = false;
    eventloop_dismiss(f, c);
}

/* ------------------------------------------------------------------ the leader's side */

void eventloop_on_outer(front *f)
{
    if (atomic_load(&f->eventloop.state) != EVENTLOOP_LEADING) {
        epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, f->eventloop.outer_fd, NULL);
        f->eventloop.is_watched = false;
    }
    atomic_store_explicit(&f->eventloop.has_others, true, memory_order_relaxed);
}

void eventloop_take_lead(front *f)
{
    if (!eventloop_may_lead(f))
        return;
    epoll_ctl(f->eventloop.watched_fd, EPOLL_CTL_DEL, f->epoll_fd, NULL);
    atomic_store_explicit(&f->eventloop.may_lead, false, memory_order_relaxed);
}

/* Whether one that waits elsewhere leads from now on, because it looks so often. */
static bool is_let_lead(front *f, uint64_t looks)
{
    struct front_eventloop *e = &f->eventloop;
    struct epoll_event turns = {.events = EPOLLIN};
    int64_t now = clock_now();

    if (now - e->window > WINDOW) {
        e->window = now;
        e->seen_looks = looks;
        return false;
    }
    if (looks - e->seen_looks < OFTEN || now < e->leads_until ||
        epoll_ctl(e->watched_fd, EPOLL_CTL_ADD, f->epoll_fd, &turns) == -1)
        return false;
    e->seen_looks = looks;
    e->was_given_time = true;
    atomic_store_explicit(&e->may_lead, true, memory_order_relaxed);
    return true;
}

/* While the front's own thread leads: whether long turns have become rare.  Looks at them once in LEAD_SHORTEST. */
static bool is_calm(front *f, int64_t now)
{
    struct front_eventloop *e = &f->eventloop;
    int64_t time = now - e->judged_at, turn;

    if (time < LEAD_SHORTEST)
        return false;
    int64_t took = atomic_load_explicit(&e->long_turns, memory_order_relaxed) - e->judged;
    e->judged_at = now;
    e->judged += took;
    if ((turn = eventloop_turn(f)) >= LONG_TURN)
        took += turn;
    return took < time / 2;
}

bool eventloop_keeps_up(front *f)
{
    struct front_eventloop *e = &f->eventloop;
    uint64_t looks = atomic_load_explicit(&e->looks, memory_order_relaxed);
    bool has_looked = looks != e->seen_looks, had_time = e->was_given_time;
    int64_t now = clock_now();

    if (now < e->leads_until && is_calm(f, now))
        e->leads_until = now;
    if (e->watched_fd != -1 && !eventloop_may_lead(f))
        return is_let_lead(f, looks);
    e->seen_looks = looks;
    e->was_given_time = false;
    if (now < e->leads_until)
        return false;
    if (has_looked || (!had_time && atomic_load(&e->state) != EVENTLOOP_ASLEEP)) {
        e->was_given_time = true;
        return true;
    }
    eventloop_take_lead(f);
    if (atomic_load(&e->state) == EVENTLOOP_ASLEEP) /* it is not needed */
        return false;
    int64_t last = now - e->leads_until < CALM ? atomic_load_explicit(&e->lead_time, memory_order_relaxed) : 0;
    int64_t time = last == 0 ? LEAD_SHORTEST : last < LEAD_LONGEST / 2 ? 2 * last : LEAD_LONGEST;
    atomic_store_explicit(&e->lead_time, time, memory_order_relaxed);
    e->leads_until = now + time;
    e->judged_at = now;
    e->judged = atomic_load_explicit(&e->long_turns, memory_order_relaxed);
    return false;
}

bool eventloop_has_turned(front *f)
{
    struct front_eventloop *e = &f->eventloop;
    uint64_t looks = atomic_load_explicit(&e->looks, memory_order_relaxed);
    bool has_looked = looks != e->seen_looks;

    if (clock_now() < e->leads_until || (e->watched_fd != -1 && !eventloop_may_lead(f)))
        return false;
    e->seen_looks = looks;
    if (!has_looked && atomic_load(&e->state) == EVENTLOOP_LEADING)
        e->was_given_time = false; /* it waits, and its next look comes after the turn that ends this */
    return has_looked;
}

bool eventloop_has_moved(const front *f)
{
    return f->eventloop.moved_first != NULL;
}

void eventloop_note_late(front *f)
{
    f->eventloop.has_late = true;
}

void eventloop_note(front *f, front_conn *c, unsigned events)
{
    c->seen |= (uint8_t)events;
    if (!c->with_eventloop || c->is_moved || !(c->wanted & events))
        return;
    c->wanted = 0;
    c->is_moved = true;
    if (f->eventloop.moved_last != NULL)
        f->eventloop.moved_last->next_moved = c;
    else
        f->eventloop.moved_first = c;
    f->eventloop.moved_last = c;
}

bool eventloop_rouse(front *f)
{
    int asleep = EVENTLOOP_ASLEEP;

    /* It falls asleep with the mutex held, so a plain look is enough where there is none. */
    if (atomic_load_explicit(&f->eventloop.state, memory_order_relaxed) != EVENTLOOP_ASLEEP ||
        !atomic_compare_exchange_strong(&f->eventloop.state, &asleep, EVENTLOOP_BUSY))
        return false;
    begin_turn(f, clock_without_gaps(f, clock_now())); /* it sees this when it takes the mutex */
    return true;
}
