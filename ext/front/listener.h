/*
 * listener.h - the listening sockets: how many connections a turn accepts, what happens without descriptors, and how they
 * close without resetting anybody.
 */
#ifndef LISTENER_H
#define LISTENER_H

#include "state.h"

/* All for the leader. */
int listener_open(front *f, const front_listen *sockets, unsigned n); /* all of them; FRONT_OK or a negative errno */
void listener_disown(front *f);      /* in a forked child */
bool listener_knows(const front *f, int fd); /* whether it is one of the sockets, or a connection of one */
/* Its `events` are some of `n`; `rests`: the loop does, between turns. */
void listener_accept(front *f, unsigned which, uint32_t events, int n, bool rests);
void listener_stop_handshakes(front *f); /* the last stage has begun: the sockets will close */
void listener_retry(front *f);
void listener_close(front *f);

static inline bool listeners_are_closed(const front *f)
{
    return !f->listeners.are_open;
}

static inline const front_listen *listener_of(const front *f, const front_conn *c)
{
    return &f->listeners.all[c->listener].listen;
}

static inline bool listener_is_unix(const front *f, const front_conn *c)
{
    return f->listeners.all[c->listener].name.ss_family == AF_UNIX;
}

static inline void listener_extend(front *f, int64_t gap) /* its deadline */
{
    if (f->listeners.closes != 0)
        f->listeners.closes += gap;
}

static inline int64_t listener_due(const front *f, int64_t due)
{
    if (f->listeners.retry != 0 && f->listeners.retry < due)
        due = f->listeners.retry;
    if (f->listeners.closes != 0 && f->listeners.closes < due)
        due = f->listeners.closes;
    return due;
}

static inline void listener_expire(front *f)
{
    if (f->listeners.retry != 0 && f->listeners.retry <= f->now)
        listener_retry(f);
    if (f->listeners.closes != 0 && f->listeners.closes <= f->now)
        listener_close(f);
}

#endif
