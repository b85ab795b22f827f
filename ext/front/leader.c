/* leader.c - see leader.h. */
#define _GNU_SOURCE
#include "leader.h"

#include <errno.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "eventloop.h"
#include "handoff.h"
#include "loop.h"
#include "spool.h"

#define NAP MILLISECOND /* longest sleep of the thread in front_run() while nobody leads; a probe may wait this long */
#define LONG_NAP (2 * MILLISECOND) /* while the event loop turns */
#define LATE NAP   /* a nap that takes this much longer was late */
#define STRAIN 250 /* added for a late nap; each other nap subtracts 1 */
#define MAX_STRAIN (4 * STRAIN)
#define PAUSE (100 * MILLISECOND) /* after this long without work, the load may have changed */

/* -------------------------------------------------------------- the front's own thread */

/* Lets probes be answered while the application uses all CPU time: a thread with short slices runs soon after it wakes
 * (EEVDF; requests for slices exist since Linux 6.12).  100 us is the minimum.  This needs no privilege, gives no additional
 * CPU time, and has no effect on other kernels. */
static void want_short_slices(front *f, bool wanted)
{
    struct { /* sched_attr of <linux/sched/types.h>, which cannot be included beside <sched.h> */
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } own;

    if (f->leader.short_slices == wanted)
        return;
    f->leader.short_slices = wanted;
    if (syscall(SYS_sched_getattr, 0, &own, sizeof own, 0) == 0 && own.policy == SCHED_OTHER) {
        own.runtime = wanted ? 100000 : 0; /* 0: the default */
        syscall(SYS_sched_setattr, 0, &own, 0);
    }
}

/* Sleeps for a while without leading.  With short slices, the end of each nap interrupts a thread that may hold the
 * interpreter lock, and until it runs again all others wait for the lock.  (A one-row query with 32 connections on one core:
 * 1.3 calls of futex() per request -> 0.5.)  So short slices are turned off unless one nap in STRAIN is late without them. */
static void nap(front *f, int64_t length)
{
    int64_t begin = clock_now();

    nanosleep(&(struct timespec){.tv_nsec = (long)length}, NULL);
    if (clock_now() - begin > length + LATE)
        f->leader.strain = f->leader.strain < MAX_STRAIN ? f->leader.strain + STRAIN : f->leader.strain;
    else if (f->leader.strain > 0)
        f->leader.strain--;
    want_short_slices(f, f->leader.strain > MAX_STRAIN / 2);
}

/* Releases idle workers, and wakes those that read or write, which then find a closed connection. */
static void stop_workers(front *f)
{
    if (handoff_is_closed(f)) /* front_run() may be called again */
        return;
    spool_stop(f);
    eventloop_take_lead(f);
    eventloop_end_watch(f);
    handoff_close(f, handoff_workers(f) + conn_lost(f));
}

/* Whether workers, or the event loop, run the loop between two requests. */
static bool is_led_elsewhere(front *f)
{
    return eventloop_serves(f) ? eventloop_keeps_up(f) : handoff_progresses(f);
}

static int64_t time_left(int64_t until)
{
    int64_t now;

    return until == INT64_MAX ? -1 : (now = clock_now()) < until ? until - now : 0;
}

/* Milliseconds for loop_turn(), rounded up. */
static int longest_turn(front *f, int64_t until)
{
    int due = loop_timeout(f);
    int64_t left = time_left(until);

    left = left < 0 ? INT64_MAX : (left + MILLISECOND - 1) / MILLISECOND;
    return due < 0 ? (left > INT32_MAX ? -1 : (int)left) : due < left ? due : (int)left;
}

/* A turn of the loop; it is not called again after an error. */
static int turn(front *f, int timeout, enum handoff_waking waking)
{
    int error = loop_turn(f, timeout, waking);

    if (error != FRONT_OK)
        atomic_store(&f->leader.error, error);
    return error;
}

int64_t leader_watch(front *f, int64_t nap)
{
    int64_t look = eventloop_watch(f, nap);
    int64_t silent = handoff_workers(f) > 0 ? eventloop_silent_until(f) : INT64_MAX;

    if (silent != INT64_MAX && silent <= clock_now()) {
        handoff_ring(f);
        look = eventloop_watch(f, nap);
        silent = INT64_MAX;
    }
    return look < silent ? look : silent;
}

/* Naps, and naps on as long as the event loop comes back, and leads: to take the lead from it each time cost 2 % of the CPU. */
static void leave_lead(front *f, int64_t length)
{
    uint64_t turn;

    do {
        turn = f->turn;
        nap(f, length);
        length = LONG_NAP;
    } while (eventloop_serves(f) && eventloop_has_turned(f) && turn != f->turn && atomic_load(&f->stage) != FRONT_STOPPED &&
             f->leader.error == FRONT_OK && leader_watch(f, LONG_NAP));
}

int leader_run(front *f)
{
    bool napped = false, relaxed; /* if so, events have probably arrived meanwhile */

    if (f->foreign)
        return FRONT_CLOSED;
    prctl(PR_SET_TIMERSLACK, 1000UL);
    pthread_mutex_lock(&f->leader.lead); /* waits here while a worker leads */
    f->now = clock_now();
    while (atomic_load(&f->stage) != FRONT_STOPPED && f->leader.error == 0) {
        relaxed = is_led_elsewhere(f);
        int64_t look = eventloop_serves(f) ? leader_watch(f, relaxed ? NAP : 0) : INT64_MAX;
        int timeout = relaxed || napped ? 0 : longest_turn(f, look);
        if (timeout != 0)
            want_short_slices(f, true); /* the event that ends the wait must be handled at once */
        int64_t before = f->now;
        int error = turn(f, timeout, relaxed ? HANDOFF_RELAXED : HANDOFF_EAGER);
        if (f->now - before > PAUSE)
            f->leader.strain = 0;
        int64_t length = relaxed ? NAP : handoff_backlog(f);
        napped = error == FRONT_OK && length >= LONG_REQUEST;
        if (napped) {
            pthread_mutex_unlock(&f->leader.lead);
            leave_lead(f, length < NAP ? length : NAP);
            pthread_mutex_lock(&f->leader.lead);
        }
    }
    int error = f->leader.error;
    f->leader.error = 0;
    clock_expect(f, INT64_MAX);
    if (error == 0)
        stop_workers(f);
    pthread_mutex_unlock(&f->leader.lead);
    return error != 0 ? error : FRONT_CLOSED;
}

/* ------------------------------------------------------------------------ a worker */

/* Runs the loop until a request arrives, which the caller gets, so that no other thread has to be woken; if it `may_come`, until
 * requests share an interpreter. */
static front_conn *lead(front *f, bool may_come)
{
    front_conn *c = NULL;

    while (c == NULL && atomic_load(&f->stage) != FRONT_STOPPED && turn(f, loop_timeout(f), HANDOFF_TAKING) == FRONT_OK) {
        waiter *next = NULL;
        handoff_lock(f);
        bool comes = may_come && admission_shares_interpreter(f);
        if (!comes)
            c = handoff_pop(f, 0, &next);
        handoff_unlock(f);
        handoff_rouse(next);
        if (comes)
            break;
    }
    return c;
}

/* Takes the lead, unless another thread has it.  Only while requests are short: long ones keep the workers busy, and the front's
 * own thread hands them out. */
static bool take_lead(front *f)
{
    if (!handoff_is_short(f) || atomic_load(&f->stage) == FRONT_STOPPED || pthread_mutex_trylock(&f->leader.lead) != 0)
        return false;
    if (f->leader.error == FRONT_OK)
        return true;
    pthread_mutex_unlock(&f->leader.lead);
    return false;
}

/* With the queue's mutex held; `next` as for handoff_pop(). */
static front_conn *wait_for_request(front *f, int64_t *came, waiter **next)
{
    while (!handoff_is_closed(f)) {
        bool comes = came != NULL && admission_shares_interpreter(f);
        if (comes && handoff_may_come(f)) {
            *came = handoff_come(f);
            return NULL;
        }
        front_conn *c = comes ? NULL : handoff_pop(f, 0, next);
        if (c != NULL)
            return c;
        if (take_lead(f)) {
            handoff_unlock(f);
            c = lead(f, came != NULL);
            pthread_mutex_unlock(&f->leader.lead);
            handoff_lock(f);
            if (c != NULL)
                return c;
        } else {
            handoff_sleep_on(f);
        }
    }
    return NULL;
}

front_conn *leader_take(front *f, int64_t timeout, int64_t *came, bool *closed)
{
    front_conn *c = NULL;
    waiter *next = NULL;
    int64_t since = 0;

    if (came != NULL) {
        since = *came;
        *came = 0;
    }
    handoff_lock(f);
    if (timeout < 0)
        c = wait_for_request(f, came, &next);
    else if (!handoff_is_closed(f) && !(came != NULL && since == 0 && handoff_gives_way(f)))
        c = handoff_pop(f, since, &next);
    if (c == NULL && timeout > 0 && !handoff_is_closed(f)) {
        handoff_sleep(f, timeout);
        c = handoff_is_closed(f) ? NULL : handoff_pop(f, 0, &next);
    }
    *closed = handoff_is_closed(f);
    handoff_unlock(f);
    handoff_rouse(next);
    return c;
}

/* ------------------------------------------------------------------ the event loop */

/* Runs the loop until there is something to do for the caller.  Turns that only answer probes, or read parts of requests, do
 * not end it, so they do not need the interpreter.  What there is to do is asked as the leader: until then another thread may
 * have added to it, without a ring, because the event loop was not asleep. */
static unsigned lead_for_eventloop(front *f, int64_t until)
{
    unsigned news = handoff_news(f, false);

    do {
        if (turn(f, news != 0 ? 0 : longest_turn(f, until), HANDOFF_TAKING) != FRONT_OK)
            break;
        news |= handoff_news(f, false);
        if (eventloop_has_others(f))
            news |= FRONT_OTHERS;
    } while (news == 0 && atomic_load(&f->stage) != FRONT_STOPPED && time_left(until) != 0);
    return news;
}

/* It counts as awake before it looks, so that what it finds does not wake it.  A ring is taken before the last question: taken
 * afterwards, it might be that of something which has come in between. */
unsigned leader_look(front *f)
{
    bool leads = false;

    if (f->foreign)
        return 0;
    eventloop_return(f, eventloop_look(f));
    if (eventloop_may_lead(f) && atomic_load(&f->stage) != FRONT_STOPPED && pthread_mutex_trylock(&f->leader.lead) == 0) {
        if (f->leader.error == FRONT_OK)
            leads = turn(f, 0, HANDOFF_TAKING) == FRONT_OK;
        pthread_mutex_unlock(&f->leader.lead);
    }
    if (!leads || handoff_news(f, false) == 0) /* what has made its descriptor readable was not the front's, but a ring */
        eventloop_heed(f);
    return handoff_news(f, true);
}

unsigned leader_settle(front *f)
{
    if (f->foreign)
        return 0;
    eventloop_look(f);
    return handoff_news(f, true);
}

unsigned leader_wait(front *f, int64_t timeout)
{
    unsigned news = 0;

    if (f->foreign)
        return FRONT_OTHERS;
    int64_t now = eventloop_look(f), until = timeout < 0 ? INT64_MAX : timeout == 0 ? 0 : now + timeout;
    if (atomic_load(&f->stage) != FRONT_STOPPED && pthread_mutex_trylock(&f->leader.lead) == 0) {
        bool leads = f->leader.error == FRONT_OK && eventloop_lead(f);
        if (leads)
            news = lead_for_eventloop(f, until);
        eventloop_return(f, f->now);
        leads = leads && f->leader.error == FRONT_OK;
        pthread_mutex_unlock(&f->leader.lead);
        if (leads)
            return news;
    }
    /* Another thread leads, or nobody does any more. */
    if ((news |= handoff_news(f, timeout != 0)) == 0 && timeout != 0) {
        eventloop_sleep(f, time_left(until));
        news = handoff_news(f, false);
    }
    return news | FRONT_OTHERS;
}
