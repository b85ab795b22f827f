/*
 * eventloop.h - an application's event loop (asyncio), which serves requests in place of workers.
 *
 * Theory of operation
 * -------------------
 * It is one thread, here called the event loop, that serves many requests at a time and must wait for none of them.  It
 * takes a request as a worker does and owns the connection until front_finish().  When reading or writing would have to
 * wait, it says what it waits for (front_await), and goes on with other requests.  An event of the connection that the leader
 * sees then puts it into the list `moved`, from which the event loop takes it in its next turn.
 *
 *      `seen`    what has happened to the connection since the event loop last asked: sockets are edge-triggered, so an edge
 *                between a read that found nothing and front_await() must not be lost; those before it takes the connection
 *                from `moved` do not count
 *      `wanted`  what the event loop waits for; empty while the connection is in `moved`
 *
 * Both, and the list, are guarded by the queue's mutex; front_finish() ends them in the same step as the ownership.
 *
 * While it has nothing to do, the event loop leads (leader.h): asyncio's epoll descriptor is watched by the front's, so one
 * epoll_wait() waits for clients and for everything else that asyncio watches, and a probe or a part of a request does not even
 * wake the interpreter.  The watch is level-triggered, and only exists while the event loop leads: in other hands an event
 * that only asyncio can take would end every wait at once.  (An edge-triggered watch of another epoll descriptor loses events
 * under gVisor.)
 *
 * While the event loop runs tasks nobody leads.  The front's own thread looks after a millisecond, and then, as long as the
 * event loop comes back each time, every two (each look costs 15 us), without taking the lead.  If it has not come back,
 * something blocks it, and the front's own thread leads for LEAD_SHORTEST, the next time for twice as long, up to LEAD_LONGEST.
 * Otherwise callbacks of a few milliseconds would change the leader all the time.  Meanwhile the event loop sleeps on its own
 * descriptor and on `wake_fd`.  As being woken costs a message of a WebSocket half as much again, it is let lead earlier if
 * turns of a millisecond or more have taken less than half of the last LEAD_SHORTEST.
 *
 *      BUSY --front_wait()--> LEADING --something to do--> BUSY       the loop was free
 *      BUSY --front_wait()--> ASLEEP --woken, or timeout--> BUSY      somebody else leads
 *
 * A turn is the time in which it is BUSY, from one wait to the next.  Each is counted by its length, at its end.  While one
 * lasts, the front's own thread sees it, which naps or leads by then, and tells front_watch_turns() of a turn that lasts longer
 * than slow_callback_duration; nobody wakes for it before.  If that thread, which needs no interpreter lock, was late itself, the
 * process stood still or had no CPU: what the turn has taken until then is not held against it.  The one turn that it would not
 * see begins when asyncio's own descriptors, or a timeout, end the sleep of the event loop; then it is rung, unless it looks in
 * time anyway.
 *
 * One that waits elsewhere
 * ------------------------
 * libuv has no place for a wait of ours, so uvloop watches a descriptor (`watched_fd`, an epoll descriptor with `wake_fd` in it)
 * and calls front_look() when it is readable, and front_settle() when it has served what there was.  In between it is BUSY and
 * nobody rings; otherwise it is ASLEEP, whatever else it runs.
 *
 *      ASLEEP --front_look()--> BUSY --front_settle(), nothing is left--> ASLEEP
 *
 * The front's own thread leads, and rings.  But each ring, and the change of threads, costs more than a short request takes
 * (4 us of 15).  When the event loop looks often, the front's own thread therefore lets it lead: it adds the front's epoll
 * descriptor to `watched_fd`, naps, and the event loop turns the front's loop itself within front_look(), without waiting.
 * When a nap passes in which it has not looked, the front's own thread takes that away again.
 *
 * Its turns are those in which the front has something for it, from the ring or front_look() on.  Of what else it runs nothing is
 * known; so, while it has requests, the front's own thread rings when it has not looked for half the time that counts
 * as slow.  Without requests it rests, and whoever renews liveness, twice a second, knocks: if the event loop is blocked, it is
 * BUSY from then on, and the next knock has that thread look at it.
 */
#ifndef EVENTLOOP_H
#define EVENTLOOP_H

#include "state.h"

/* Whether an event loop serves, and not workers.  Any thread; never changes back.  The descriptors were set before it did. */
static inline bool eventloop_serves(const front *f)
{
    return atomic_load_explicit(&f->eventloop.state, memory_order_acquire) != EVENTLOOP_ABSENT;
}

/* The same, of one that takes bodies as they come. */
static inline bool eventloop_streams(const front *f)
{
    return eventloop_serves(f) && !atomic_load_explicit(&f->eventloop.gathers, memory_order_relaxed);
}

/* Whether it carries requests to worker processes, and from now on does, with a bell that anybody may ring. */
static inline bool eventloop_carries(const front *f)
{
    return f->eventloop.bell_fd != -1;
}

static inline void eventloop_carry(front *f, int bell_fd)
{
    f->eventloop.bell_fd = bell_fd;
}

/* Of these: whether they want bodies whole; how many requests they can serve at a time. */
static inline void eventloop_gather(front *f, bool gathers)
{
    atomic_store_explicit(&f->eventloop.gathers, gathers, memory_order_relaxed);
}

static inline uint32_t eventloop_room(const front *f)
{
    return atomic_load_explicit(&f->eventloop.room, memory_order_relaxed);
}

static inline void eventloop_add_room(front *f, int64_t more)
{
    atomic_fetch_add_explicit(&f->eventloop.room, (uint32_t)more, memory_order_relaxed);
}

/* Async-signal-safe. */
static inline void eventloop_bell(front *f)
{
    if (eventloop_carries(f) && !f->foreign)
        (void)!write(f->eventloop.bell_fd, &(uint64_t){1}, sizeof(uint64_t));
}

/* The same of one that waits elsewhere. */
static inline bool eventloop_is_elsewhere(const front *f)
{
    return eventloop_serves(f) && f->eventloop.watched_fd != -1;
}

int64_t eventloop_looks(const front *f); /* front_eventloop_looks() */
int64_t eventloop_turn(const front *f);  /* front_eventloop_turn() */
void eventloop_turns(const front *f, tally_waits *out); /* front_turns() */
int eventloop_watch_turns(front *f, front_turn *out);   /* front_watch_turns() */
void eventloop_end_watch(front *f);      /* the front has stopped */
int eventloop_open(front *f, int outer_fd); /* once.  FRONT_OK or a negative errno */
int eventloop_open_elsewhere(front *f);     /* instead: the descriptor that it has to watch */
void eventloop_init(front *f);
void eventloop_free(front *f);
void eventloop_disown(front *f); /* in a forked child */

/* ----------------------------------------------------------------------------------------------------- its side */

int64_t eventloop_look(front *f); /* it asks for work, and its turn ends; the time, nanoseconds */
bool eventloop_lead(front *f); /* L: it leads from now on, until eventloop_return().  False: it cannot watch the outer one */
void eventloop_return(front *f, int64_t now); /* a turn begins */
bool eventloop_has_others(front *f);  /* whether asyncio has events of its own; asked once */
void eventloop_begin_sleep(front *f); /* M, when there is nothing to do */
void eventloop_sleep(front *f, int64_t timeout); /* nanoseconds; < 0: until it is woken */
bool eventloop_may_lead(const front *f);         /* for one that waits elsewhere: whether it turns the loop itself */
void eventloop_heed(front *f);                   /* it has been woken, and its descriptor is no longer readable for that */

front_conn *eventloop_moved(front *f); /* M: the next one in `moved`, or NULL */
bool eventloop_take_late(front *f);    /* M: whether a request has been cut off; asked once */
bool eventloop_has_late(const front *f); /* M: the same, not asked */
bool eventloop_await(front_conn *c, unsigned what); /* M: whether it has to wait, and will be told; false: it has been seen */
void eventloop_begin(front_conn *c);                /* M: it owns the connection */
void eventloop_dismiss(front *f, front_conn *c);    /* M: it waits for nothing */
void eventloop_end(front *f, front_conn *c);        /* M: no longer */

/* ------------------------------------------------------------------------------------------------- the leader's side */

void eventloop_on_outer(front *f); /* L: the outer descriptor is readable */
/* L, for the front's own thread: whether the event loop comes back soon, so that this thread need not lead. */
bool eventloop_keeps_up(front *f);
/* The same without the lead, after a nap: whether it has looked for work meanwhile. */
bool eventloop_has_turned(front *f);
void eventloop_take_lead(front *f); /* L: one that waits elsewhere does not lead any more */
/* L, likewise: looks at the turn.  When to look at it again, nanoseconds; INT64_MAX: no need.  `nap`: how long it sleeps now if
 * it does not lead, otherwise 0. */
int64_t eventloop_watch(front *f, int64_t nap);
/* L, likewise, while it has requests: when to ring one that waits elsewhere, to hear from it; INT64_MAX: no need. */
int64_t eventloop_silent_until(front *f);

/* M, and so are the next two: the connection's socket has had these events (enum front_progress). */
void eventloop_note(front *f, front_conn *c, unsigned events);
/* Whether it sleeps, and eventloop_ring() must follow without the mutex.  It counts as awake from now on. */
bool eventloop_rouse(front *f);
bool eventloop_has_moved(const front *f);
void eventloop_note_late(front *f); /* M: request_timeout has cut off a request of it */

static inline void eventloop_ring(front *f, bool needed)
{
    if (needed && !f->foreign)
        (void)!write(f->eventloop.wake_fd, &(uint64_t){1}, sizeof(uint64_t));
}

#endif
