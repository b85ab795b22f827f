/*
 * leader.h - who runs the loop: one thread at a time, the leader, under `lead` (see front.h).
 */
#ifndef LEADER_H
#define LEADER_H

#include "state.h"

/* For a worker: a request, for which it may lead meanwhile; or NULL.  timeout: nanoseconds; 0: do not wait; < 0: forever.
 * `came`: NULL, or when it was told to come, or 0; if given, it may be told to, and NULL is returned.  `*closed`: the front has
 * stopped. */
front_conn *leader_take(front *f, int64_t timeout, int64_t *came, bool *closed);

unsigned leader_wait(front *f, int64_t timeout); /* front_wait() */
unsigned leader_look(front *f);                  /* front_look() */
unsigned leader_settle(front *f);                /* front_settle() */

/* For the event loop: looks at its turn, and rings one that has long been silent.  When to look again. */
int64_t leader_watch(front *f, int64_t nap);

int leader_run(front *f); /* front_run() */

static inline void leader_init(front *f)
{
    pthread_mutex_init(&f->leader.lead, NULL);
}

static inline void leader_free(front *f)
{
    pthread_mutex_destroy(&f->leader.lead);
}

#endif
