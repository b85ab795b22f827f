/*
 * clock.h - the time of the front: without the gaps in which the process was frozen, and as a Date.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <time.h>

#include "http/date.h"
#include "state.h"

/* Announces when the next turn of the loop begins, unless the process is frozen; INT64_MAX: no turn is due. */
static inline void clock_expect(front *f, int64_t due)
{
    atomic_store_explicit(&f->clock.due, due, memory_order_relaxed);
}

static inline void clock_add_gap(front *f, int64_t gap)
{
    atomic_fetch_add(&f->clock.frozen, gap);
}

static inline int64_t clock_now(void) /* front_now() */
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static inline int64_t clock_without_gaps(const front *f, int64_t at) /* a moment, as in front_clock() */
{
    return at - atomic_load_explicit(&f->clock.frozen, memory_order_relaxed);
}

/* L: the line with the Date of now. */
static inline const char *clock_date(front *f)
{
    return date_line(&f->clock.date, time(NULL));
}

#endif
