/*
 * conn.h - one connection in the loop's hands: its slot, its lists, reading, framing requests, responding, closing.
 *
 * All for the leader, but conn_watch().  If a function may close the connection, its caller must not access it afterwards.
 */
#ifndef CONN_H
#define CONN_H

#include "state.h"

#define WATCH_RESET EPOLLET /* epoll always reports resets */
#define WATCH_IN (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define WATCH_OUT (WATCH_IN | EPOLLOUT)

int conn_open(front *f);   /* the table of connections.  FRONT_OK or a negative errno */
void conn_free(front *f);  /* all of them, when nobody else uses the front */
void conn_disown(front *f); /* in a forked child: closes its copies */

/* What the listener has accepted. */
front_conn *conn_new(front *f, int fd); /* NULL if no slot is free */
void conn_make_room(front *f);          /* closes the oldest that has its response, or beyond the limit */
void conn_close_reserve(front *f);      /* closes the one that uses the reserve descriptor */

static inline uint32_t conn_count(const front *f)
{
    return f->table.n_open;
}

static inline bool conn_is_full(const front *f)
{
    return f->table.n_open - f->table.n_overflow > f->limits.max_connections;
}

static inline void conn_mark_overflow(front *f, front_conn *c)
{
    c->overflow = true;
    f->table.n_overflow++;
}

/* The socket of the next connection from slot *i on, unless a worker owns it.  False at the end. */
bool conn_next_socket(const front *f, uint32_t *i, int *fd);

/* What a turn of the loop does. */
void conn_event(front *f, uint32_t slot, uint32_t generation, uint32_t events); /* ignores a stale one */
void conn_readable(front *f, front_conn *c);
void conn_resume(front *f);                  /* goes on with those in CONN_AGAIN */
void conn_release(front *f);                 /* hands held bodies to workers, as far as allowed */
void conn_returned(front *f, front_conn *c); /* takes a connection back from its worker */
void conn_spooled(front *f, front_conn *c);  /* takes a connection back from spool.c */
void conn_from_worker(front *f, front_conn *c); /* the loop owns it again; for a request that no worker has taken */
void conn_refuse(front *f, front_conn *c, unsigned status, const char *text);
void conn_expire(front *f);                  /* ends or moves on those whose deadline has passed */
void conn_extend(front *f, int64_t gap);     /* all deadlines */
void conn_hasten(front *f, enum conn_state state, int64_t most); /* from now on nobody stays longer in this state */
uint64_t conn_lost(const front *f);          /* requests that would get no response if the front stopped now */

static inline bool conn_are_spooling(const front *f)
{
    return f->table.n_spooling > 0;
}

static inline bool conn_are_again(const front *f)
{
    return f->table.waiting[CONN_AGAIN].first != NULL;
}

static inline int64_t conn_due(const front *f) /* the first deadline, or INT64_MAX */
{
    int64_t due = INT64_MAX;

    for (int s = CONN_SILENT; s < CONN_AGAIN; s++)
        if (f->table.waiting[s].first != NULL && f->table.waiting[s].first->deadline < due)
            due = f->table.waiting[s].first->deadline;
    return due;
}

void conn_set_state(front *f, front_conn *c, enum conn_state state);
void conn_close(front *f, front_conn *c); /* the one place where a connection ends */

/* Makes epoll report edges of these events.  For the owner.  FRONT_OK or a negative errno. */
int conn_watch(front *f, front_conn *c, uint32_t events);

#endif
