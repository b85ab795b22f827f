/*
 * carrier.h - the front's end of the areas (area.h): carries requests to worker processes, and their responses to the clients.
 *
 * Theory of operation
 * -------------------
 * To the front the carrier is an event loop that serves (eventloop.h): one thread in C, which takes a request only when a worker
 * has room for it, so the queue and its limits stay the front's; it never waits but in front_wait(), and leads meanwhile.
 * Other threads add workers, retire them and clear up behind them; `mutex` is free whenever the carrier waits.
 *
 * A request goes to the worker with the fewest requests, of those to the one that had one last, whose caches are warm.
 *
 * When a worker has died: what it had not begun goes to another one, as if it had not been given away.  A GET or HEAD that
 * it had begun, and not begun to answer, is repeated on another one, once, with a sign for the application; unless in this
 * minute MOST_DEADLY requests were lost in this way on two workers.  Other requests get 502; a response half sent is cut.
 */
#ifndef CARRIER_H
#define CARRIER_H

#include "front.h"

/* What became of a request whose worker has died. */
typedef struct {
    front_flight flight;
    enum front_outcome { FRONT_REPEATED, FRONT_502, FRONT_CUT } outcome;
} front_loss;

typedef struct {
    uint32_t in_flight, queued; /* requests; those of them that it has not begun */
    uint64_t served;
    int64_t expires[PAGES_SLOTS]; /* as renewed by its front_renew(), in front_now(); 0: never */
    bool is_broken;               /* what it has written makes no sense, and it gets no requests any more */
} front_worker_state;

/* From now on worker processes serve.  Once.  The descriptor that they need for front_open_remote(), or a negative errno. */
int front_open_workers(front *f);
int front_carry(front *f); /* in a thread, until the front has stopped */

/* A worker to be, which serves `threads` requests at a time; `streams`: takes bodies as they come.  The socket for its
 * front_open_remote(), which the caller closes, or a negative errno. */
int front_add_worker(front *f, uint32_t threads, bool streams, uint32_t *number);

/* These return -ENOENT if there is none with this number. */
/* How many requests it can serve at a time, at most those of its area; whether it takes bodies as they come. */
int front_suit_worker(front *f, uint32_t number, uint32_t room, bool streams);
int front_admit_worker(front *f, uint32_t number);  /* it gets requests from now on, */
int front_retire_worker(front *f, uint32_t number); /* and no more; when it has served those it has, its front_take() returns FRONT_CLOSED */
int front_worker_now(front *f, uint32_t number, front_worker_state *out);
/* How many requests it has, the first `max` of which are in `out`; their `thread` is not known. */
ssize_t front_worker_requests(front *f, uint32_t number, front_flight *out, size_t max);
/* Its process has ended.  How many requests it had begun, the first `max` of which are in `out`. */
ssize_t front_lose_worker(front *f, uint32_t number, front_loss *out, size_t max);

void carrier_free(front *f);

#endif
