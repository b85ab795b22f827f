/*
 * front.h - the HTTP front: one epoll loop that accepts connections, frames requests, sends the published pages
 * (health probes) by itself, and hands all other requests to worker threads.
 *
 * Theory of operation
 * -------------------
 * A connection has exactly one owner at any time: the loop, one worker, or an application's event loop, which serves in
 * place of workers (eventloop.h) and is meant below where a worker is.  The owner changes twice per request,
 *
 *      loop --ready--> worker --returned--> loop
 *
 * through two lists guarded by one mutex, which is never held during a system call that can block.  Between front_take()
 * and front_finish() the worker owns the connection's buffers and its socket; the loop only notes that an event has
 * occurred (`pending`), so no other lock is needed.
 *
 * Sockets are registered once and edge-triggered, so that returning a connection usually needs no epoll_ctl.  The price is
 * a rule: an edge that arrives while a worker owns the connection is recorded under the mutex, and whichever side comes
 * second acts on it: the worker rings the loop, or the loop finds the connection in `returned`.  While a worker reads a
 * body, only resets are reported (WATCH_RESET); at the end the worker has the remaining events reported again.
 *
 * Events carry a slot and a generation; a generation ends when the slot is reused, so stale events are ignored.
 *
 * A request is handed to a worker when its head and its body have arrived, so a slow client never occupies a worker.  A
 * body of up to `body_buffer_size` is collected in its buffer; a longer one gathers in the socket if the kernel has room
 * for it; any other is written to a file by a separate thread (spool.h).  If there is no room for that, with
 * `stream_bodies`, and if 100 (Continue) must wait until the application wants the body, the worker reads the body through
 * front_read() as it arrives.  While half of the workers already wait for such bodies, further ones wait in the loop, and
 * for bodies announced with Expect the loop requests the beginning by itself.  If the socket does not accept the last part
 * of a response, up to `response_buffer_size` of it is left with the loop: a slow reader does not occupy a worker either.
 *
 * One thread at a time runs the loop, the leader (the pattern is known as leader/followers).  While requests are long, this
 * is the thread in front_run(), which wakes workers.  While they are short, it is an idle worker: it waits for events
 * itself, takes a request from them, and stops leading.  No other thread has to be woken, and when the worker polls again,
 * several requests have arrived.  The thread in front_run() then waits until a worker stops leading, polls once, and sleeps
 * for a millisecond at a time as long as requests are finished.  As soon as none is finished, because the workers wait for
 * the interpreter lock or for something else, it leads again and keeps leading: probes never wait for a worker.
 * (Hello world with 32 connections on one core: 7.7 us of CPU per request if the loop always hands over, 6.3 this way.)
 * When long requests queue up, a new one would only wait, and waking the loop for each of them takes the core from a worker
 * that holds the interpreter lock.  So the loop polls only when half of the queue is processed, or every millisecond.
 * (A one-row query, measured likewise: 0.67 wake-ups of the loop per request -> 0.10, 103 us -> 93.)
 *
 * At max_connections, a complete request on a new connection displaces the connection that has made the server wait the
 * longest, measured by what is usual in its state: for a first request, the rest of a head or of a body, or the next
 * request.  Whatever is not a complete request displaces none, so a flood of slow requests cannot push others out.
 *
 * Time for which the process is frozen (SIGSTOP, a cgroup's freezer, CPU only while there are requests) must not count as
 * anybody's delay.  A turn that begins more than FRONT_GAP after its due time reveals it; all deadlines are then extended by
 * the gap.  Liveness (slot 0) also expires later by the gap, but from one renewal to the next by no more than the time for
 * which it was renewed, so that a hanging interpreter is detected even if the CPU is taken away again and again.  Pages of
 * other slots describe the time before the gap; they count as expired until they are renewed.
 *
 * Shutdown is a stage that only increases (enum front_stage).
 *
 * A front belongs to the process that opened it.  A process forked from it (multiprocessing, os.fork() in the application)
 * has copies of its memory and descriptors, but none of its other threads: a lock may be held there forever, and a byte
 * sent on a connection would be sent in the middle of another response.  So a handler of pthread_atfork() marks the child's
 * copy as foreign: it closes the connections, and the listening sockets of a front that has run; from then on every call
 * returns at once and does nothing (front_take() returns FRONT_CLOSED, reading and writing return -EPIPE).  A front that has
 * not run yet keeps its listening sockets open, for a front that the child may open on them.  The flag is written while the
 * child has one thread, and never in the parent, so that checking it costs a plain load.  After a process has forked, its
 * connections end with shutdown() before close(), because close() alone would wait for the child's copy.
 *
 * Workers take requests and respond through exchange.h.
 *
 * Threads: front_run() in one thread; everything else from any thread.
 * This file includes no Python header, and must not.
 */
#ifndef FRONT_H
#define FRONT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "http/http1.h"
#include "counters.h"
#include "limits.h"
#include "http/pages.h"
#include "tally.h"

/* Results below zero are negative errno values, or one of FRONT_E_*. */
enum front_result {
    FRONT_OK = 0,
    FRONT_TIMEOUT = 1,     /* nothing became ready in time */
    FRONT_CLOSED = 2,      /* the front has stopped, or every connection is closed */
    FRONT_AGAIN = 3,       /* the call would have to wait */
};

enum {
    FRONT_E_LATE = -1001,      /* the client was too slow for body_timeout or min_body_rate: 408 */
    FRONT_E_TOO_LARGE = -1002, /* the body exceeds max_body_size: 413 */
    FRONT_E_TRUNCATED = -1003, /* the client closed the connection within its body */
    FRONT_E_CHUNK = -1004,     /* malformed chunked body: 400 */
    FRONT_E_DISPLACED = -1005, /* another request has taken the connection's place among max_connections: 503 */
};

enum front_stage {
    FRONT_SERVING,
    FRONT_DRAINING,    /* pages send their draining answers; Connection: close on every response */
    FRONT_CLOSING,     /* backlogs accepted, listeners closed, idle connections get one more second */
    FRONT_STOPPED,     /* front_run() returns at once; requests in flight are aborted */
};

typedef struct front front;

/* A listening socket, and what is served on its connections. */
typedef struct {
    int fd;
    bool shared;   /* other processes accept from it as well, now or later: it is never shut down */
    bool pages;    /* the published pages */
    bool requests; /* everything else; without it, that gets 404 */
    bool proxied;  /* a Unix socket on which connections begin with a PROXY header */
} front_listen;

enum { FRONT_MAX_LISTENERS = 17 };

/* A request in flight, or what was one before 101, for people (front_requests). */
typedef struct {
    char method[16];
    char target[128]; /* without the query, which may contain secrets */
    int64_t age;      /* nanoseconds since its head was complete */
    uint64_t thread;  /* kernel thread id of the worker, 0 while queued */
    bool late;        /* its request_timeout has passed, and the client has got 504 or a reset */
    int awaits;       /* enum front_awaits */
} front_flight;

/* What its thread waits for in front_read() or front_send(). */
enum front_awaits { FRONT_AWAITS_NOTHING, FRONT_AWAITS_BODY, FRONT_AWAITS_ROOM /* for a response, which the client does not take */ };

/* A slow turn of an event loop (front_watch_turns). */
typedef struct {
    uint64_t number; /* front_eventloop_looks() in this turn */
    int64_t took;    /* nanoseconds; 0: it has not ended */
    int64_t at;      /* front_now() when it was told */
} front_turn;

/* On `n` sockets, at most FRONT_MAX_LISTENERS. */
int front_open(front **out, const front_listen *sockets, unsigned n, const front_limits *limits);
void front_close(front *f); /* only after front_run() and every worker have returned; does not close the sockets */

/* In a worker process: its end of the area whose socket front_add_worker() has returned (carrier.h); `bell_fd` is that of
 * front_open_workers(). */
int front_open_remote(front **out, int socket, int bell_fd, const front_limits *limits);

bool front_is_foreign(const front *f); /* it belongs to the parent of this forked process */

int front_run(front *f); /* the loop; FRONT_CLOSED at the end of the last stage, or a negative errno */
void front_advance(front *f, enum front_stage stage); /* never goes back; async-signal-safe */
enum front_stage front_stage_now(const front *f);
bool front_is_draining(const front *f); /* whether connections are to be closed after their response */

uint64_t front_accepted(const front *f, unsigned listener); /* connections, of one socket */

/* In FRONT_CLOSING: an errno value if new handshakes could not be stopped before a listener closes, otherwise 0.  If they
 * could not, a connection made at that moment is reset. */
int front_close_fault(const front *f);

/* Reads signal numbers, one byte each, from `fd` (signal.set_wakeup_fd).  A signal whose bit is set in `draining`
 * (1 << number) advances to FRONT_DRAINING at once.  `last_words` (0: none) is raised in the loop's thread before an
 * expired page of slot 0 is sent for the first time.  At the third signal the process exits with 1 at once; a signal within
 * a second of the previous one does not count. */
int front_watch_signals(front *f, int fd, uint64_t draining, int last_words);

/* If front_run() has not returned this long after the first signal, the process writes last words and exits with 1,
 * because the code that should end it does not get the interpreter lock.  0: never.  Call before front_watch_signals(). */
void front_give_up_after(front *f, int64_t nanoseconds);

/* Takes ownership of `table`. */
void front_publish(front *f, pages *table);
void front_renew(front *f, unsigned slot, int64_t nanoseconds);

#define FRONT_GAP 2000000000LL /* nanoseconds */
int64_t front_frozen(const front *f); /* nanoseconds of all gaps in which the process was frozen */
int64_t front_clock(const front *f);  /* front_now() without these gaps; stands still in an unnoticed gap */

void front_count(front *f, front_counters *out);
/* Those of a set, in the order of this list. */
enum front_flights { FRONT_TAKEN = 1, FRONT_QUEUED = 2, FRONT_SWITCHED = 4 };
size_t front_requests(front *f, unsigned which, front_flight *out, size_t max);
size_t front_durations(front *f, tally_series *out, size_t max);
size_t front_exemplars(front *f, tally_exemplar *out); /* room for TALLY_EXEMPLARS */
void front_waits(front *f, tally_waits *out); /* for a worker, of requests that one has taken or that were refused in the queue */
size_t front_probers(front *f, tally_prober *out, size_t max);
int64_t front_now(void); /* CLOCK_MONOTONIC, nanoseconds */

#endif
