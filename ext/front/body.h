/*
 * body.h - buffers, and the bodies of requests in them: what the loop, the spool's thread and workers do alike with a
 * connection that they own.
 */
#ifndef BODY_H
#define BODY_H

#include "state.h"

static inline uint64_t body_room_used(const front *f)
{
    return atomic_load(&f->room.buffered);
}

static inline void buffers_take(front *f, size_t bytes) /* without asking */
{
    atomic_fetch_add(&f->room.buffered, bytes);
}

static inline void buffers_return(front *f, size_t bytes)
{
    atomic_fetch_sub(&f->room.buffered, bytes);
}

/* Room for a body that gathers in its socket: what is left must hold it, but everybody else may use the same bytes.  False
 * if there is none.  For the leader. */
static inline bool buffers_expect(front *f, size_t bytes)
{
    if (atomic_fetch_add(&f->room.buffered, bytes) + bytes > f->limits.buffer_size) {
        buffers_return(f, bytes);
        return false;
    }
    atomic_fetch_add(&f->room.gathering, bytes);
    return true;
}

static inline void buffers_expect_no_more(front *f, size_t bytes)
{
    atomic_fetch_sub(&f->room.gathering, bytes);
    buffers_return(f, bytes);
}

#define BUFFER_SIZE 2048 /* first block: large enough for nearly every head, small enough for 10,000 slow clients */

/* Adds `more` bytes to those of all buffers.  False if there is no room for them. */
bool buffers_reserve(front *f, size_t more);

/* Grows c->in to at least `wanted` bytes and twice its size, but at most `max` bytes.
 * FRONT_OK, -ENOBUFS (budget or max), -ENOMEM. */
int buffer_grow(front *f, front_conn *c, size_t wanted, size_t max);

/* Keeps only the head in c->in, in as little memory as it needs. */
void buffer_keep_head(front *f, front_conn *c);

/* Decodes [raw, len) of the buffer in place; sets c->complete at the end of the body.
 * FRONT_OK or FRONT_E_*. */
int body_decode(front *f, front_conn *c);

bool body_keeps_up(front *f, front_conn *c); /* whether it has arrived fast enough; checked once per body_timeout */

static const char continue_text[] = "HTTP/1.1 100 Continue\r\n\r\n";

#endif
