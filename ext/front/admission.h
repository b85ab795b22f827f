/*
 * admission.h - which of the requests that wait a worker may take: the interpreter runs one thread at a time.
 *
 * While it has no time left, a request that is taken all the same only waits for the interpreter in place of the queue, and
 * makes the others wait longer:
 *
 * - Short requests, such as queries through an ORM: fewer workers take them, down to a few, as each more only adds changes
 *   of the interpreter lock, which a query gives up a dozen times.
 * - Heavy ones, which compute for long: one at a time, so that the first is not as late as the last; the others, which are
 *   through with the interpreter in no time, pass them.  Not if it is free nevertheless, as they compute without it or wait.
 *   A heavy one is due after as long as it takes itself: then those that arrive do not pass it any more while it computes, for
 *   20 ms at most.  So under much load neither waits longer than in the order of arrival.  (The 99th percentiles in ms at 80 % of
 *   the capacity, of short and of heavy ones of 10 ms: 44 and 49 if they are due at once, 36 and 51 after 10 ms, 21 and 56 after
 *   30 ms; 38 and 53 in the order of arrival, 41 and 63 where workers take turns.  At half of the capacity: 18 and 35 after 10 ms,
 *   24 and 31 in the order of arrival.)
 *
 * Whoever finds nothing that it may take in a queue that is not empty looks again after a millisecond.  Neither rule holds where
 * the interpreter is not the bottleneck: with an event loop, for the carrier, without a lock.  All is called with the queue's
 * mutex held.
 */
#ifndef ADMISSION_H
#define ADMISSION_H

#include "eventloop.h"
#include "state.h"

#define LONG_REQUEST (100 * 1000LL) /* nanoseconds; in such a request the interpreter lock is probably free at times */

static inline void admission_init(front *f)
{
    f->admission.enough = UINT32_MAX;
}

/* How long requests take on average, nanoseconds; a guess without the mutex. */
static inline int64_t admission_service_time(const front *f)
{
    return f->admission.service_time;
}

static inline void admission_note_time(front *f, int64_t took)
{
    f->admission.service_time += (took - f->admission.service_time) / 8;
}

/* Whether one more busy worker increases throughput. */
static inline bool admission_is_worth(const front *f)
{
    return f->limits.parallel || admission_service_time(f) > LONG_REQUEST;
}

/* Whether requests share an interpreter, and are not so short that one worker serves them all. */
static inline bool admission_shares_interpreter(const front *f)
{
    return admission_is_worth(f) && !f->limits.parallel && !eventloop_serves(f);
}

/* Whether so many busy workers use all of the interpreter's time. */
static inline bool admission_is_full(const front *f, uint32_t busy)
{
    return busy >= f->admission.enough;
}

void admission_measure(front *f, const front_conn *taken, uint32_t busy, uint32_t idle, uint64_t finished);

/* In each turn: whether the interpreter has time left.  `taken`: the requests that workers have, the oldest first; `finished`:
 * how many have been so far. */
static inline void admission_judge(front *f, const front_conn *taken, uint32_t busy, uint32_t idle, uint64_t finished)
{
    if (admission_is_worth(f))
        admission_measure(f, taken, busy, idle, finished);
    else
        f->admission.enough = UINT32_MAX;
}

void admission_classify(front *f, front_conn *c); /* a request that enters the queue */
front_conn *admission_pass(const front *f, front_conn *first, front_conn *taken);

/* The request of the queue to take next, or NULL.  `taken`: as above. */
static inline front_conn *admission_next(const front *f, front_conn *first, front_conn *taken, uint32_t busy)
{
    if (first == NULL || admission_is_full(f, busy))
        return NULL;
    return first->is_heavy || f->admission.n_heavy > 0 ? admission_pass(f, first, taken) : first;
}

/* A worker has taken it, which was told to come for it at `came`, and has the interpreter since now, or 0; */
void admission_begin(front *f, front_conn *c, int64_t came);
static inline void admission_note_comer(front *f) /* one is told to come */
{
    f->admission.is_beside = f->admission.n_heavy > 0;
}
void admission_end(front *f, front_conn *c, bool by_taker); /* and is through with it; `by_taker`: called in the same thread */

#endif
