/*
 * front.h - the HTTP front: one epoll loop that accepts connections, frames requests, answers the published
 * pages (health probes) by itself and hands everything else to worker threads.
 *
 * Theory of operation
 * -------------------
 * A connection has one owner at any time: the loop, or one worker.  It changes hands twice a request,
 *
 *      loop --ready--> worker --returned--> loop
 *
 * through two lists guarded by one mutex, which is never held over a system call that can block.  Between
 * front_take() and front_finish() the worker owns the connection's buffers and its socket; the loop only notes
 * that something happened there (`pending`), so nothing else needs a lock.
 *
 * Sockets are watched edge-triggered and registered once, so giving a connection back mostly costs no epoll_ctl.  The
 * price is a rule: an edge seen while a worker owns the connection is remembered under the mutex, and whoever
 * comes second acts on it - the worker rings the loop, or the loop finds the connection in `returned`.  While a worker
 * reads a body on, only resets are reported (WATCH_RESET); at its end the worker itself has the rest reported again.
 *
 * Events carry slot and generation; a generation ends when the slot is recycled, so stale events die by themselves.
 *
 * A request is handed over when its head and its body have arrived: a slow client never holds a worker.  A body of up to
 * `body_buffer_size` is collected in its buffer, a longer one gathers in the socket if the kernel holds so much, and any
 * other is written to a file by a thread of its own (spool.h).  Where there is no room for that, with `stream_bodies`, and
 * where 100 (Continue) is to be said once the application wants the body, the worker reads it through front_read() as it
 * comes.  While every second worker waits for such a body already, further ones wait in the loop, and of those that are
 * expected the loop asks for the beginning itself.  A response's last part is left with the loop when the socket does not take it, up to
 * `response_buffer_size`: a slow reader does not hold a worker either.
 *
 * The loop is run by one thread at a time, the leader (the pattern is known as leader/followers).  While requests take
 * long, that is the thread in front_run(), and it wakes workers.  While they are short, it is a worker which has nothing
 * to do: it waits for events itself, takes the request that they bring and stops leading; nobody has to be woken, and
 * the next time it looks several requests have come.  The thread in front_run() then waits until a worker stops leading,
 * looks once, and sleeps for a millisecond as long as requests get done.  As soon as none does, because the workers wait
 * for the interpreter lock or for something else, it leads again and stays: probes never wait for a worker.
 * (Hello world with 32 connections on one core: 7.7 us of CPU a request if the loop always hands over, 6.3 like this.)
 * Where long requests queue up, who comes only waits longer, and waking the loop for each takes the core from a worker
 * that holds the interpreter lock: so it looks at most so often that half the queue is done meanwhile, or each millisecond.
 * (A one-row query, the same way: 0.67 wake-ups of the loop a request -> 0.10, 103 us -> 93.)
 *
 * At max_connections a request on one more connection takes the place of a connection that waits for nothing: of one that
 * has never sent a request, else of the one kept alive for the longest time.  Who says nothing displaces nobody.
 *
 * Time in which the process is frozen (SIGSTOP, a cgroup's freezer, CPU only while there are requests) is nobody's fault.
 * A turn that begins more than FRONT_GAP after it should have is the sign of it: whatever waits gets that time on top.
 * Liveness (slot 0) expires later by it as well, but from one renewal to the next by no more than it was renewed for: an
 * interpreter that hangs while the CPU is taken away again and again is found all the same.  The pages of the other slots
 * tell of the time before; they count as expired until they are renewed.
 *
 * Shutdown is a stage that only grows (enum front_stage).
 *
 * A front belongs to the process that opened it.  A process forked from that one (multiprocessing, os.fork() in the
 * application) has copies of its memory and of its descriptors, but none of its other threads: a lock may be held there
 * for ever, and a byte said on a connection would be said in the middle of somebody else's response.  So a handler of
 * pthread_atfork() makes the child's copy foreign: it closes the connections, and the listening socket of a front that
 * has run; from then on every call returns at once and does nothing (front_take(): FRONT_CLOSED, reading and writing:
 * -EPIPE).  A front that has not run yet leaves its listening socket open, for the front that the child may open on it.
 * The flag is written while the child has one thread, and never in the parent: who asks pays a plain load.  Where a
 * process has forked, its connections end with shutdown() before close(), which alone would wait for the child's copy.
 *
 * Threads: front_run() on one thread; front_take() to front_finish() on any; the rest from any thread.
 * This file includes no Python header, and must not.
 */
#ifndef FRONT_H
#define FRONT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "http1.h"
#include "pages.h"
#include "proxy.h"
#include "tally.h"

/* Results below zero are negative errno values, or one of FRONT_E_*. */
enum front_result {
    FRONT_OK = 0,
    FRONT_TIMEOUT = 1,     /* nothing became ready in time */
    FRONT_CLOSED = 2,      /* the front has stopped, or every connection is closed */
    FRONT_AGAIN = 3,       /* would have to wait */
};

enum {
    FRONT_E_LATE = -1001,      /* the client did not keep up with body_timeout or min_body_rate: 408 */
    FRONT_E_TOO_LARGE = -1002, /* the body passes max_body_size: 413 */
    FRONT_E_TRUNCATED = -1003, /* the client closed in the middle of its body */
    FRONT_E_CHUNK = -1004,     /* malformed chunked body: 400 */
};

enum front_stage {
    FRONT_SERVING,
    FRONT_TERMINATING, /* draining answers, Connection: close on every response */
    FRONT_CLOSING,     /* backlog accepted, listener closed, idle connections get a last second */
    FRONT_STOPPED,     /* front_run() returns at once; whatever is in flight is aborted */
};

typedef struct front front;
typedef struct front_conn front_conn;

/* An IPv4 network in its IPv6-mapped form, or an IPv6 network. */
typedef struct {
    unsigned char address[16];
    uint8_t bits;
} front_network;

#define FRONT_MAX_NETWORKS 64

typedef struct {
    http1_limits head;
    uint32_t max_connections;
    uint32_t max_queue;          /* requests waiting for a worker */
    uint64_t max_body_size;      /* bytes, decoded */
    size_t body_buffer_size;     /* bytes of body collected before hand-over */
    size_t response_buffer_size; /* bytes of response left with the loop */
    size_t buffer_size;          /* bytes of all growing buffers together */
    uint32_t min_body_rate;      /* bytes a second, either direction */
    int64_t header_timeout, body_timeout, idle_timeout, write_timeout, queue_timeout, linger_timeout; /* nanoseconds */
    front_network proxies[FRONT_MAX_NETWORKS]; /* peers that may begin a connection with a PROXY header */
    unsigned n_proxies;
    bool proxy_optional; /* a connection of theirs may also begin without one */
    int64_t request_timeout; /* nanoseconds from front_take() on; 0: none.  Then the loop answers 504, or cuts what has begun */
    bool stream_bodies; /* a body that is longer than its buffer goes to its worker as it comes */
    const char *body_spool;   /* directory for the others, or NULL: in memory; copied */
    uint64_t body_spool_size; /* bytes of all of them together */
    bool parallel; /* workers run at the same time: there is no interpreter lock that they share */
} front_limits;

/* A request on loan to a worker.  Pointers are valid until front_finish(). */
typedef struct {
    front_conn *conn;
    const http1_head *head;
    const char *data;  /* the bytes that head's spans point into */
    size_t head_len;
    const char *body;  /* what has arrived, decoded */
    size_t body_len;
    bool body_complete; /* that is all */
    bool body_spooled;  /* all of it has come, and front_body_left() is its length */
    int64_t arrived;   /* monotonic nanoseconds, when the head was complete */
    union proxy_peer peer;
} front_request;

/* A request in flight, for people (front_requests). */
typedef struct {
    char method[16];
    char target[128]; /* without the query, which may hold secrets */
    int64_t age;      /* nanoseconds since its head was complete */
    uint64_t thread;  /* kernel thread id of the worker, 0 while queued */
    bool late;        /* its request_timeout has passed: the client has been answered */
} front_flight;

typedef struct {
    uint64_t accepted, requests, probes, rejected, timeouts, shed, resets, bytes_in, bytes_out, stale, accept_errors, closed;
    uint64_t connections, idle, queued, in_flight, served, aborted, buffered, queue_ns, request_timeouts, late;
    uint64_t spooled, spool_failures, spool_bytes; /* bodies; bodies for which there was no room; now in files */
    int spool_error; /* errno value of the last failure; EFBIG: body_spool_size, ENOBUFS: buffer_size */
    uint64_t finished; /* by workers; of these served are those whose whole response is out */
} front_counters;

int front_open(front **out, int listen_fd, const front_limits *limits);
void front_close(front *f); /* only after front_run() and every worker have returned; does not close listen_fd */

bool front_is_foreign(const front *f); /* it belongs to the process that this one was forked from */

int front_run(front *f); /* the loop; FRONT_CLOSED at the end of the last stage, or a negative errno */
void front_advance(front *f, enum front_stage stage); /* never goes back; async-signal-safe */
enum front_stage front_stage_now(const front *f);

/* Once FRONT_CLOSING: why new handshakes could not be stopped before the listener closes (an errno value), 0 if they were.
 * If not, a connection made in the very moment of the end is reset. */
int front_close_fault(const front *f);

/* Reads signal numbers, one byte each, from `fd` (signal.set_wakeup_fd): one whose bit is set in `draining` (1 << number)
 * advances to FRONT_TERMINATING without waiting for anybody.  `last_words` (0: none) is raised in the loop thread before the
 * first answer of an expired page of slot 0.  At the third signal the process ends at once, with exit code 1; one within a
 * second of the one before is not counted. */
int front_watch_signals(front *f, int fd, uint64_t draining, int last_words);

/* If front_run() has not returned so long after the first signal, the process ends with last words and exit code 1:
 * whoever should end it does not get the interpreter lock.  0: never.  Before front_watch_signals(). */
void front_give_up_after(front *f, int64_t nanoseconds);

/* Takes ownership of `table`. */
void front_publish(front *f, pages *table);
void front_renew(front *f, unsigned slot, int64_t nanoseconds);

#define FRONT_GAP 2000000000LL /* nanoseconds */
int64_t front_frozen(const front *f); /* nanoseconds of all gaps in which the process was frozen */
int64_t front_clock(const front *f);  /* front_now() without them; stands still in one that has not been noticed yet */

/* Worker side. */
int front_take(front *f, front_request *out, int64_t timeout); /* nanoseconds; 0: do not wait; < 0: for ever */
ssize_t front_read(front *f, front_conn *c, char *buf, size_t len, bool wait); /* 0 at the end; -EAGAIN without wait */
void front_answer(front_conn *c); /* a final response begins: what is read after it is not asked for by 100 Continue */
/* Both: -EALREADY once the end of a response has been left with the loop; -EPIPE once a part of it is lost, by an error
 * or a client that does not read, and front_finish() cuts the connection then.  front_send() advances iov. */
int front_send(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait);
int front_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len, bool leave);
bool front_body_pending(const front_conn *c); /* some of the body has not been read from the socket yet */
uint64_t front_body_left(const front_conn *c);    /* what front_read() will give of a body of known length */
bool front_is_gone(front_conn *c);            /* the peer reset the connection */
void front_interrupt(front_conn *c);          /* makes another thread's front_read, front_send and the like fail soon */
/* status: 0 if none was sent.  Returns what was: 504 if the loop has answered in the worker's place. */
unsigned front_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status);

void front_count(front *f, front_counters *out);
size_t front_requests(front *f, front_flight *out, size_t max);
size_t front_durations(front *f, tally_series *out, size_t max);
size_t front_probers(front *f, tally_prober *out, size_t max);
int64_t front_now(void); /* CLOCK_MONOTONIC, nanoseconds */

#endif
