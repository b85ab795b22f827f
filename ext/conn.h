/*
 * conn.h - what front.c (the loop), conn.c (a connection in the loop's hands), answer.c (what the loop says by itself)
 * and exchange.c (the workers' side) share; nobody else includes it.
 *
 * Who may touch what:
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

/* A connection is in exactly one state, and in the list of that state.  The lists of the waiting states are
 * timeout queues: all members wait equally long, so the head is due first. */
enum conn_state {
    CONN_FREE,
    CONN_SILENT,   /* has never sent a request */
    CONN_IDLE,     /* no byte of the next request yet */
    CONN_HEAD,     /* part of a head */
    CONN_OVERFLOW, /* the same, beyond max_connections: a probe is answered, anything else gets 503 */
    CONN_BODY,     /* head complete, body being collected */
    CONN_GATHER,   /* the body gathers in the socket, which is not read until all of it is there */
    CONN_HELD,     /* its body streams, and waits until few enough workers read such a body */
    CONN_FLUSH,    /* rest of a response being written */
    CONN_LINGER,   /* FIN sent, discarding what still comes so that the response is not lost to a reset */
    CONN_AGAIN,    /* has had its turn, goes on in the next one */
    CONN_SPOOL,    /* its body is being written to a file, by the thread of spool.c */
    CONN_WORKER,   /* queued, or with a worker */
    CONN_STATES,
};

/* Who may say something to the client of a request with a worker, decided by compare-and-swap. */
enum answer_state {
    ANSWER_NONE,    /* nobody has said anything */
    ANSWER_INTERIM, /* the worker is saying 100 (Continue) */
    ANSWER_BEGUN,   /* the worker has begun its response */
    ANSWER_DONE,    /* the worker gives the connection back */
    ANSWER_504,     /* the loop has answered, as request_timeout has passed; what the worker says is dropped */
    ANSWER_CUT,     /* the loop has reset the connection in the middle of the response */
};

/* Bytes of a request, its head parsed.  data[0, head_len) is the head, then body_len decoded bytes of body, a gap
 * left by chunk framing, and from `raw` to `len` what has not been looked at. */
typedef struct buffer {
    struct buffer *next; /* L: free list */
    size_t cap, len, head_len, body_len, raw; /* raw: while there is no head, how far the parser has looked */
    http1_head head;
    char data[];
} buffer;

typedef struct {
    struct front_conn *first, *last;
} conn_list;

struct front_conn {
    struct front_conn *prev, *next; /* L, M in the lists ready, taken and returned */
    int64_t deadline;               /* L; M while queued */
    int64_t arrived, begun;         /* O: when the request was complete enough to serve; when a worker took it */
    int fd;                         /* O */
    uint32_t generation;            /* L */
    enum conn_state state;          /* L */
    uint32_t watched;               /* O: what epoll reports */
    bool registered;                /* O: with epoll */
    bool overflow;                  /* L: beyond max_connections; closes after its first answer */
    bool proxied;                   /* L: may begin with a PROXY header, not read yet */
    bool spoken;                    /* L: has sent a request: not the first to give way to others */
    bool reserve;                   /* L: on the descriptor kept for such moments */
    bool eof;                       /* O: the peer has said FIN, and all before it has been read */
    bool hup;                       /* L: the peer has said FIN; there may be bytes before it */
    bool unread;                    /* L: handed over before all of the body had come */
    bool drained;                   /* O: the loop's last read left nothing in the socket */
    bool chunked;                   /* O: body framing */
    atomic_bool expect, complete;   /* O: 100 (Continue) is to be said; all of the body has been read from the socket.  An
                                     * application may read the body in one thread and answer in another */
    bool close;                     /* O: close once the response is out */
    bool owed;                      /* O: the rest of a worker's response lies with the loop: served once it is out */
    atomic_bool cut;                /* a response could not be sent on: reset, or too slow a reader */
    bool linger;                    /* O: not at the client's request, so it may be sending: read on after FIN */
    bool with_worker;               /* M */
    bool pending;                   /* M: an edge was seen while with_worker */
    bool queued;                    /* M */
    _Atomic int answer;             /* enum answer_state, with a request_timeout only */
    bool late;                      /* M: its request_timeout has passed */
    atomic_bool gone;               /* reset by the peer */
    atomic_bool interrupted;        /* whoever waits in front_read or front_send is to come back */
    buffer *in;                     /* O; NULL while idle */
    uint64_t body_left;             /* O: bytes of a Content-Length body still to come */
    uint64_t body_read;             /* O: decoded bytes read so far */
    uint64_t body_mark;             /* O: body_read when the present body_timeout period began */
    int64_t body_waited;            /* O: how much of that period a worker has waited, nanoseconds */
    size_t body_given;              /* O: bytes of in's body that front_read has handed out */
    size_t awaited;                 /* L: bytes of the body that may lie in the socket, part of front.buffered */
    uint64_t spooled, spool_given;  /* O: bytes of the body in the file `spool`; how many front_read has handed out */
    int spool;                      /* O: -1, or a file with the beginning of the body, or all of it */
    bool in_memory;                 /* O: that file is one of memory, and part of front.buffered */
    int spool_result;               /* O: why the body is spooled no further; FRONT_OK: all of it has been */
    http1_chunked decoder;          /* O */
    char *out;                      /* O: rest of a response */
    size_t out_len, out_pos, out_mark;
    int file;                       /* O: -1, or the rest of a response is in this file */
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
    bool foreign;                   /* of the process that this one was forked from; written where there is one thread */
    atomic_bool has_run;
    struct sockaddr_storage name;   /* the listening socket's, and so of each connection */
    front_limits limits;
    int epoll_fd, listen_fd, wake_fd, signal_fd, reserve_fd, last_words;
    uint64_t draining_signals;      /* a bit for each signal that begins the drain */
    int n_signals;                  /* L: how many of them have come, duplicates not counted */
    int64_t last_signal, give_up, gives_up; /* L: when; how long after the first the process ends, and so when */
    bool listening, listener_armed, mourned;
    int accepts, accept_row, eager; /* L: how many to accept a turn, for so many turns by now; how long to look for
                                       requests at once */
    uint64_t turn, accept_turn;
    int64_t listener_closes; /* last stage: when the backlog counts as empty, unless more has come; 0: not (any more) */
    int64_t quiet, closes_at_most; /* L: for how long nothing may have come; when that no longer matters */
    uint64_t seen_accepted;         /* L: of count.accepted, at the last look */
    atomic_int not_bound;           /* why new handshakes go on, an errno value; 0: they do not */
    int64_t farthest;       /* L: the longest round trip to a client, nanoseconds, looked at while draining */
    bool relaxed;           /* L: workers get on with short requests, and lead */
    int64_t backlog;        /* L: after a turn that brought requests, how long half of those waiting keep all workers busy */
    bool short_slices;      /* of the thread in front_run(): what it has asked the scheduler for, */
    int strain;             /* and how much it needs them */
    int error;              /* L: what the loop has failed with */
    int64_t listener_retry; /* when to listen again after accept failed; 0: not waiting */
    _Atomic int stage, wanted_stage;
    int64_t timeout[CONN_STATES];

    front_conn *conns;              /* limits.max_connections + OVERFLOW slots, touched from the front as needed */
    uint32_t n_slots, n_used, n_overflow;
    atomic_uint n_held;             /* L: connections in CONN_HELD; read where a worker comes back */
    uint32_t n_spooling;            /* L: connections in CONN_SPOOL */
    size_t gather_size;             /* longest rest of a body that a socket can hold; 0: not known */
    struct spool *spool;            /* L: of spool.c; NULL until a body is spooled */
    _Atomic uint64_t spool_bytes;   /* of all spooled bodies together */
    atomic_int spool_error;         /* what the last body that could not be spooled has failed with */
    uint32_t n_unread;              /* L: connections handed over before all of the body had come */
    _Atomic uint32_t n_open;
    front_conn *free;
    conn_list waiting[CONN_STATES]; /* L */
    conn_list batch;                /* L: requests of this turn, not handed over yet */
    uint32_t n_batch;
    buffer *spare;                  /* L */
    uint32_t n_spare;

    pthread_mutex_t lead;           /* held by whoever runs the loop: L below and above is for the leader; taken before `mutex` */
    pthread_mutex_t mutex;
    conn_list ready, taken, returned; /* M */
    uint32_t n_ready, n_taken, n_late, n_idle_workers, n_woken; /* M */
    waiter *idle_workers;           /* M: last to fall asleep, first to wake */
    uint64_t n_finished, seen_finished; /* M: requests that workers are done with; how many at the last look */
    bool closed;        /* M */
    int64_t service_time;           /* M: moving average of the time a worker keeps a request, nanoseconds */
    _Atomic uint32_t n_worker;      /* connections in CONN_WORKER */

    pages *pages;                   /* L */
    _Atomic(pages *) incoming;      /* mailbox from front_publish */
    _Atomic int64_t expires[PAGES_SLOTS];
    _Atomic int64_t lease, moved;   /* of slot 0: what it was last renewed for; by how much gaps have moved it since */
    _Atomic int64_t due, frozen;    /* by when the next turn begins, unless the process is frozen; all gaps together */

    int64_t now;                    /* L: at the start of this turn */
    time_t date_second;             /* L */
    char date[32];                  /* L: IMF-fixdate */

    _Atomic uint64_t buffered;      /* bytes of buffers beyond the first block */
    tally_durations durations;      /* M */
    tally_probers probers;          /* filled by L */
    struct {
        _Atomic uint64_t accepted, requests, probes, rejected, timeouts, shed, resets, bytes_in, bytes_out, stale,
            accept_errors, closed, served, aborted, queue_ns, request_timeouts, spooled, spool_failures;
    } count;
};

#define LONG_REQUEST (100 * 1000LL) /* nanoseconds: the interpreter lock is likely to be free for others meanwhile */
#define WATCH_RESET EPOLLET /* that, epoll always reports */
#define WATCH_IN (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define WATCH_OUT (WATCH_IN | EPOLLOUT)
#define BUFFER_SIZE 2048 /* first block: holds nearly every head, keeps 10,000 slow clients small */

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

/* conn.c: all for the loop thread.  Where a function may close the connection, its caller looks at it no more. */
front_conn *conn_new(front *f, int fd); /* NULL: no slot */
void conn_set_state(front *f, front_conn *c, enum conn_state state);
void conn_event(front *f, front_conn *c, uint32_t events);
void conn_release(front *f); /* held bodies go to workers, as far as may be */
void conn_readable(front *f, front_conn *c);
void conn_next(front_conn *c); /* moves what follows the request just answered to the front of the buffer */
void conn_flush(front *f, front_conn *c);
void conn_end(front *f, front_conn *c);    /* the response is out and the connection is to be closed */
void conn_linger(front *f, front_conn *c); /* FIN, then discard until the peer is done */
void conn_close(front *f, front_conn *c);  /* the one place where a connection ends */
void buffer_drop(front *f, front_conn *c);
void conn_body_drop(front *f, front_conn *c); /* what is kept of a body elsewhere than in the buffer */
bool conn_keeps_up(front *f, front_conn *c); /* its body has come fast enough; looked at once a body_timeout */
size_t conn_received(const front_conn *c);   /* bytes that wait in the socket; for its owner */
void conn_gathered(front *f, front_conn *c); /* of one in CONN_GATHER: it gathers no longer */
void conn_spooled(front *f, front_conn *c);  /* has come back from spool.c */

/* Counts `more` bytes among those of all buffers.  False: there is no room for them. */
bool buffers_reserve(front *f, size_t more);

/* Has edges of these events reported from now on.  For the connection's owner.  FRONT_OK or a negative errno. */
int conn_watch(front *f, front_conn *c, uint32_t events);

/* Room for `wanted` bytes in c->in, and for twice as many as now, within `max` for all of it.
 * FRONT_OK, -ENOBUFS (budget or max), -ENOMEM. */
int buffer_grow(front *f, front_conn *c, size_t wanted, size_t max);

/* Decodes in place what lies between raw and len of the buffer; sets c->complete at the end of the body.
 * FRONT_OK or FRONT_E_*. */
int body_decode(front *f, front_conn *c);

/* answer.c: for the loop thread, too. */
bool conn_answer_page(front *f, front_conn *c, const http1_head *h); /* false if the connection is not ready for more */
void conn_refuse(front *f, front_conn *c, unsigned status, const char *text);
void conn_answer_late(front *f, front_conn *c); /* of a connection with a worker, which says no more; with the mutex held */

/* A line to stderr if it can be taken at once: nobody may have to wait for who does not read it. */
void front_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For the log, straight to stderr: `why`, the requests in flight, and every Python stack (by the signal last_words). */
void front_last_words(front *f, const char *why);

/* Acknowledges what has been received now, not after the usual 40 ms: nginx sends a body's last part only then (Nagle). */
static inline void acknowledge(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

/* For the leader: one turn of the loop, waiting at most `timeout` milliseconds (-1: for ever) for something to happen.
 * `taking`: the caller takes a request itself if there is one.  FRONT_OK or a negative errno. */
int front_turn(front *f, int timeout, bool taking);
int front_timeout(front *f); /* for how long nothing has to be done unless something happens, in milliseconds; -1: for ever */

/* Whether one more worker gets more done; with the mutex held. */
static inline bool more_do_more(const front *f)
{
    return f->limits.parallel || f->service_time > LONG_REQUEST;
}

void front_ring(front *f);
void end_socket(int fd, bool reset); /* closes a connection, also if a forked child has a copy of the descriptor */
waiter *pop_idle(front *f); /* the idle worker that fell asleep last; with the mutex held */
void rouse(waiter *w);      /* wakes it; better without the mutex, which it wants.  NULL: nobody */

#endif
