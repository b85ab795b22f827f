/*
 * conn.h - shared by front.c (the loop), conn.c (a connection owned by the loop), answer.c (responses of the loop itself),
 * spool.c (bodies in files) and exchange.c (the workers' side); no other file includes it.
 *
 * Who may access what:
 *   L  the leader, under front.lead    M  under front.mutex    O  the connection's owner (see front.h)
 */
#ifndef CONN_H
#define CONN_H

#include <linux/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "front.h"
#include "spool.h"

/* A connection is in exactly one state, and in the list of that state.  The lists of the waiting states are
 * timeout queues: all members have the same timeout, so the first is due first. */
enum conn_state {
    CONN_FREE,
    CONN_SILENT,   /* has never sent a request */
    CONN_IDLE,     /* no byte of the next request has arrived */
    CONN_HEAD,     /* part of a head */
    CONN_OVERFLOW, /* the same, beyond max_connections: a probe gets its page, any other request 503 */
    CONN_BODY,     /* head complete, body being collected */
    CONN_GATHER,   /* the body gathers in the socket, which is not read until the whole body has arrived */
    CONN_HELD,     /* its body will stream; waits until fewer workers are reading such bodies */
    CONN_FLUSH,    /* rest of a response being written */
    CONN_LINGER,   /* FIN sent; discards what still arrives, so that no reset destroys the response */
    CONN_AGAIN,    /* has had its share of this turn and continues in the next one */
    CONN_SPOOL,    /* the thread of spool.c is writing its body to a file */
    CONN_WORKER,   /* queued, or with a worker */
    CONN_STATES,
};

/* Who may respond to the client of a request with a worker; changed by compare-and-swap. */
enum answer_state {
    ANSWER_NONE,    /* nothing has been sent */
    ANSWER_INTERIM, /* the worker is sending 100 (Continue) */
    ANSWER_BEGUN,   /* the worker has started its response */
    ANSWER_DONE,    /* the worker returns the connection */
    ANSWER_504,     /* the loop has sent 504 because request_timeout has passed; the worker's output is dropped */
    ANSWER_CUT,     /* the loop has reset the connection within the response */
};

/* Bytes of a request, its head parsed.  data[0, head_len) is the head, then body_len decoded bytes of body, a gap
 * left by chunk framing, and [raw, len) has not been parsed. */
typedef struct buffer {
    struct buffer *next; /* L: free list */
    size_t cap, len, head_len, body_len, raw; /* raw: without a head, the length that the parser has seen */
    http1_head head;
    char data[];
} buffer;

typedef struct {
    struct front_conn *first, *last;
} conn_list;

struct front_conn {
    struct front_conn *prev, *next; /* L, M in the lists ready, taken and returned */
    int64_t deadline;               /* L; M while queued */
    int64_t arrived, begun;         /* O: when the request was ready to be served; when a worker took it */
    int fd;                         /* O */
    uint32_t generation;            /* L */
    enum conn_state state;          /* L */
    uint32_t watched;               /* O: the events that epoll reports */
    bool registered;                /* O: with epoll */
    bool overflow;                  /* L: beyond max_connections; closed after its first response, or lingers */
    bool proxied;                   /* L: may begin with a PROXY header, which has not been read */
    bool spoken;                    /* L: has sent a request */
    bool reserve;                   /* L: uses the reserve descriptor */
    bool eof;                       /* O: the peer has sent FIN, and everything before it has been read */
    bool hup;                       /* L: the peer has sent FIN; there may be unread bytes before it */
    bool unread;                    /* L: handed over before the whole body had arrived */
    bool drained;                   /* O: the loop's last read left nothing in the socket */
    bool chunked;                   /* O: body framing */
    atomic_bool expect, complete;   /* O: 100 (Continue) must be sent; the whole body has been read from the socket.  An
                                     * application may read the body in one thread and respond in another */
    bool close;                     /* O: close when the response has been sent */
    bool owed;                      /* O: the loop has the rest of a response, and counts it when it is sent */
    atomic_bool cut;                /* a response could not be completed: a reset, or a reader that is too slow */
    bool linger;                    /* O: the client did not ask to close, so it may be sending: read on after our FIN */
    bool with_worker;               /* M */
    bool pending;                   /* M: an edge was seen while with_worker */
    bool queued;                    /* M */
    _Atomic int answer;             /* enum answer_state, with a request_timeout only */
    bool late;                      /* M: its request_timeout has passed */
    atomic_bool gone;               /* reset by the peer */
    atomic_bool interrupted;        /* a thread that waits in front_read or front_send must return */
    buffer *in;                     /* O; NULL while idle */
    uint64_t body_left;             /* O: bytes of a Content-Length body that have not arrived */
    uint64_t body_read;             /* O: decoded bytes read so far */
    uint64_t body_mark;             /* O: body_read at the start of the current body_timeout period */
    int64_t body_waited;            /* O: how long a worker has waited in this period, nanoseconds */
    size_t body_given;              /* O: bytes of the body in `in` that front_read has returned */
    body_file *spooled;             /* O: NULL, or the beginning of the body, or all of it, in a file */
    http1_chunked decoder;          /* O */
    char *out;                      /* O: rest of a response */
    size_t out_len, out_pos, out_mark;
    int file;                       /* O: -1, or a file with the rest of a response */
    uint32_t awaited;               /* L: bytes of the body that may lie in the socket, part of front.buffered */
    off_t file_pos;
    uint64_t file_left;
    uint64_t thread;                /* M: the worker's kernel thread id */
    union proxy_peer peer;
};

typedef struct waiter {
    struct waiter *below; /* M */
    atomic_uint woken;    /* a futex; written with the mutex held */
} waiter;

struct front {
    struct front *next_open;        /* of all fronts of this process, under their mutex */
    bool foreign;                   /* belongs to the parent of this forked process; written while there is one thread */
    atomic_bool has_run;
    struct sockaddr_storage name;   /* of the listening socket, and so of each connection */
    front_limits limits;
    int epoll_fd, listen_fd, wake_fd, signal_fd, reserve_fd, last_words;
    uint64_t draining_signals;      /* a bit for each signal that starts the drain */
    int n_signals;                  /* L: number of received signals, without duplicates */
    int64_t last_signal, give_up, gives_up; /* L: the last signal; limit from the first signal on; its deadline */
    bool listening, listener_armed, mourned;
    int accepts, accept_row, eager; /* L: how many to accept per turn, for how many turns; for how many connections to
                                       look for a request at once */
    uint64_t turn, accept_turn;
    int64_t listener_closes; /* last stage: when the backlog counts as empty, unless more arrives; 0: not set */
    int64_t quiet, closes_at_most; /* L: required time without new connections; deadline for that */
    uint64_t seen_accepted;         /* L: count.accepted at the last look */
    atomic_int not_bound;           /* errno value if new handshakes could not be stopped, otherwise 0 */
    int64_t farthest;       /* L: the longest round trip to a client, nanoseconds, measured while draining */
    bool relaxed;           /* L: workers process short requests, and lead */
    int64_t backlog;        /* L: after a turn with new requests: how long half of the waiting ones keep all workers busy */
    bool short_slices;      /* whether the thread in front_run() has asked the scheduler for short slices, */
    int strain;             /* and how urgently it needs them */
    int error;              /* L: the error with which the loop has failed */
    int64_t listener_retry; /* when to listen again after accept failed; 0: not waiting */
    _Atomic int stage, wanted_stage;
    int64_t timeout[CONN_STATES];

    front_conn *conns;              /* limits.max_connections + OVERFLOW slots; memory is touched in order as needed */
    uint32_t n_slots, n_used, n_overflow;
    atomic_uint n_held;             /* L: connections in CONN_HELD; also read by a worker that returns one */
    uint32_t n_spooling;            /* L: connections in CONN_SPOOL */
    size_t gather_size;             /* longest rest of a body that a socket can hold; 0: unknown */
    struct spool *spool;            /* L: belongs to spool.c; NULL until a body is spooled */
    _Atomic uint64_t spool_bytes;   /* of all spooled bodies together */
    atomic_int spool_error;         /* the error of the last body that could not be spooled */
    uint32_t n_unread;              /* L: connections handed over before the whole body had arrived */
    _Atomic uint32_t n_open;
    front_conn *free;
    conn_list waiting[CONN_STATES]; /* L */
    conn_list batch;                /* L: requests of this turn that have not been handed over */
    uint32_t n_batch;
    buffer *spare;                  /* L */
    uint32_t n_spare;

    pthread_mutex_t lead;           /* held by the thread that runs the loop, the leader (L); locked before `mutex` */
    pthread_mutex_t mutex;
    conn_list ready, taken, returned; /* M */
    uint32_t n_ready, n_taken, n_late, n_idle_workers, n_woken; /* M */
    waiter *idle_workers;           /* M: the last to fall asleep is the first to wake */
    uint64_t n_finished, seen_finished; /* M: requests finished by workers; the same at the last look */
    bool closed;        /* M */
    int64_t service_time;           /* M: moving average of the time that a worker takes for a request, nanoseconds */
    _Atomic uint32_t n_worker;      /* connections in CONN_WORKER */

    pages *pages;                   /* L */
    _Atomic(pages *) incoming;      /* mailbox from front_publish */
    _Atomic int64_t expires[PAGES_SLOTS];
    _Atomic int64_t lease, moved;   /* of slot 0: duration of the last renewal; by how much gaps have moved it since */
    _Atomic int64_t due, frozen;    /* time by which the next turn begins unless the process is frozen; sum of all gaps */

    int64_t now;                    /* L: at the start of this turn */
    time_t date_second;             /* L */
    char date[32];                  /* L: IMF-fixdate */

    _Atomic uint64_t buffered;      /* bytes of buffers beyond the first block, including `gathering` */
    _Atomic uint64_t gathering;     /* `awaited` of all connections, which gives way to others; written by L */
    tally_durations durations;      /* M */
    tally_probers probers;          /* written by L */
    struct {
        _Atomic uint64_t accepted, requests, probes, rejected, timeouts, shed, resets, bytes_in, bytes_out, stale,
            accept_errors, closed, served, aborted, queue_ns, request_timeouts, spooled, spool_failures;
    } count;
};

#define LONG_REQUEST (100 * 1000LL) /* nanoseconds; in such a request the interpreter lock is probably free at times */
#define WATCH_RESET EPOLLET /* epoll always reports resets */
#define WATCH_IN (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define WATCH_OUT (WATCH_IN | EPOLLOUT)
#define BUFFER_SIZE 2048 /* first block: large enough for nearly every head, small enough for 10,000 slow clients */

static const char continue_text[] = "HTTP/1.1 100 Continue\r\n\r\n";

static inline void count_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline void list_push(conn_list *l, front_conn *c)
{
    c->next = NULL;
    c->prev = l->last;
    if (l->last != NULL)
        l->last->next = c;
    else
        l->first = c;
    l->last = c;
}

static inline void list_remove(conn_list *l, front_conn *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        l->first = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    else
        l->last = c->prev;
    c->prev = c->next = NULL;
}

/* conn.c: all for the leader.  If a function may close the connection, its caller must not access it afterwards. */
front_conn *conn_new(front *f, int fd); /* NULL if no slot is free */
void conn_set_state(front *f, front_conn *c, enum conn_state state);
void conn_event(front *f, front_conn *c, uint32_t events);
void conn_release(front *f); /* hands held bodies to workers, as far as allowed */
void conn_readable(front *f, front_conn *c);
void conn_next(front_conn *c); /* moves what follows the finished request to the beginning of the buffer */
void conn_flush(front *f, front_conn *c);
void conn_end(front *f, front_conn *c);    /* the response has been sent, and the connection must be closed */
void conn_linger(front *f, front_conn *c); /* sends FIN, then discards input until the peer is done */
void conn_close(front *f, front_conn *c);  /* the one place where a connection ends */
void buffer_drop(front *f, front_conn *c);
void conn_body_drop(front *f, front_conn *c); /* discards what is kept of a body outside the buffer */
bool conn_keeps_up(front *f, front_conn *c); /* whether its body has arrived fast enough; checked once per body_timeout */
void conn_refuse_for(front *f, front_conn *c, int error); /* with what its request has failed with: FRONT_E_* or an errno value */
size_t conn_received(const front_conn *c);   /* bytes that wait in the socket; for the owner */
void conn_gathered(front *f, front_conn *c); /* ends CONN_GATHER */
void conn_spooled(front *f, front_conn *c);  /* takes a connection back from spool.c */

/* Adds `more` bytes to those of all buffers.  False if there is no room for them. */
bool buffers_reserve(front *f, size_t more);

/* Makes epoll report edges of these events.  For the owner.  FRONT_OK or a negative errno. */
int conn_watch(front *f, front_conn *c, uint32_t events);

/* Grows c->in to at least `wanted` bytes and twice its size, but at most `max` bytes.
 * FRONT_OK, -ENOBUFS (budget or max), -ENOMEM. */
int buffer_grow(front *f, front_conn *c, size_t wanted, size_t max);

/* Decodes [raw, len) of the buffer in place; sets c->complete at the end of the body.
 * FRONT_OK or FRONT_E_*. */
int body_decode(front *f, front_conn *c);

/* answer.c: for the leader as well. */
bool conn_answer_page(front *f, front_conn *c, const http1_head *h); /* false if the connection is not ready for more */
void conn_refuse(front *f, front_conn *c, unsigned status, const char *text);
void conn_answer_late(front *f, front_conn *c); /* for a worker's connection, whose output it drops; with the mutex held */

/* Writes a line to stderr if that does not block. */
void front_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes to stderr: `why`, the requests in flight, and every Python stack (by the signal last_words). */
void front_last_words(front *f, const char *why);

/* Acknowledges received data now, not after the usual 40 ms: nginx waits for it with the last part of a body (Nagle). */
static inline void acknowledge(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

/* For the leader: one turn of the loop, which waits at most `timeout` milliseconds (-1: forever) for events.
 * `taking`: the caller will take a request itself if there is one.  FRONT_OK or a negative errno. */
int front_turn(front *f, int timeout, bool taking);
int front_timeout(front *f); /* milliseconds until something must be done even without events; -1: never */

/* Whether one more busy worker increases throughput; with the mutex held. */
static inline bool more_do_more(const front *f)
{
    return f->limits.parallel || f->service_time > LONG_REQUEST;
}

void front_ring(front *f);
void end_socket(int fd, bool by_reset); /* closes a connection, even if a forked child has a copy of the descriptor */
waiter *pop_idle(front *f); /* the idle worker that fell asleep last; with the mutex held */
void rouse(waiter *w);      /* wakes it; preferably without holding the mutex, which it needs.  May be NULL */

#endif
