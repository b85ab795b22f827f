/*
 * loop.h - one turn of the loop, which only dispatches: to the listener, to connections, to the queue of the workers.
 */
#ifndef LOOP_H
#define LOOP_H

#include "handoff.h"
#include "state.h"

/* For the leader: one turn, which waits at most `timeout` milliseconds (-1: forever) for events.
 * FRONT_OK or a negative errno. */
int loop_turn(front *f, int timeout, enum handoff_waking waking);
int loop_timeout(front *f); /* milliseconds until something must be done even without events; -1: never */

#endif
