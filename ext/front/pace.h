/*
 * pace.h - the rule that a client must keep up with, in both directions: in each period of a timeout that is spent waiting for
 * it, it sends or takes more bytes than min_body_rate allows for.  Whoever does not is late.
 */
#ifndef PACE_H
#define PACE_H

#include "state.h"

/* Whether `moved` bytes are enough for a period of `timeout` nanoseconds. */
static inline bool pace_is_kept(const front *f, uint64_t moved, int64_t timeout)
{
    return moved > (uint64_t)(timeout / MILLISECOND) * f->limits.min_body_rate / 1000;
}

#endif
