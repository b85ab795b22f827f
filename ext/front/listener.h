/*
 * listener.h - accepting: how many connections a turn accepts, what happens without descriptors, and how the listening
 * sockets close without resetting anybody.
 */
#ifndef LISTENER_H
#define LISTENER_H

#include "state.h"

/* All for the leader.  Its `events` are some of `n`; `rests`: the loop does, between turns. */
void listener_accept(front *f, unsigned which, uint32_t events, int n, bool rests);
void listener_stop_handshakes(front *f); /* the last stage has begun: the sockets will close */
void listener_retry(front *f);
void listener_close(front *f);

static inline void listener_extend(front *f, int64_t gap) /* its deadline */
{
    if (f->listener.closes != 0)
        f->listener.closes += gap;
}

static inline int64_t listener_due(const front *f, int64_t due)
{
    if (f->listener.retry != 0 && f->listener.retry < due)
        due = f->listener.retry;
    if (f->listener.closes != 0 && f->listener.closes < due)
        due = f->listener.closes;
    return due;
}

static inline void listener_expire(front *f)
{
    if (f->listener.retry != 0 && f->listener.retry <= f->now)
        listener_retry(f);
    if (f->listener.closes != 0 && f->listener.closes <= f->now)
        listener_close(f);
}

#endif
