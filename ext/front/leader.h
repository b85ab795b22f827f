/*
 * leader.h - who runs the loop: one thread at a time, the leader, under `lead` (see front.h).
 */
#ifndef LEADER_H
#define LEADER_H

#include "state.h"

/* For a worker: a request, for which it may lead meanwhile; or NULL.  timeout: nanoseconds; 0: do not wait; < 0: forever.
 * `*closed`: the front has stopped. */
front_conn *leader_take(front *f, int64_t timeout, bool *closed);

#endif
