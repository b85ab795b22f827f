/*
 * state.h - what the front's files share: the front, and one connection.
 *
 * Who may access what:
 *   L  the leader, under leader.lead    M  under queue.mutex    O  the connection's owner (see front.h)
 */
#ifndef STATE_H
#define STATE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "front.h"
#include "http/date.h"
#include "routes.h"

#define SECOND      1000000000LL
#define MILLISECOND 1000000LL

/* The beginning of a body, or all of it, in a file.  Made by the loop; it belongs to the connection's owner. */
typedef struct body_file {
    int fd;               /* -1: not open */
    bool in_memory;       /* a file of memory, and part of front.buffered */
    int result;           /* why the body is spooled no further; FRONT_OK: all of it is in the file */
    uint64_t size, given; /* bytes in it; how many of them front_read() has handed out */
} body_file;

/* A connection is in exactly one state, and in the list of that state.  The lists of the waiting states are
 * timeout queues: all members have the same timeout, so the first is due first. */
enum conn_state {
    CONN_FREE,
    CONN_SILENT,   /* has never sent a request */
    CONN_IDLE,     /* no byte of the next request has arrived */
    CONN_HEAD,     /* part of a head */
    CONN_OVERFLOW, /* all of that, beyond max_connections: a probe gets its page, a whole request a place, or 503 */
    CONN_BODY,     /* head complete, body being collected */
    CONN_GATHER,   /* the body gathers in the socket, which is not read until the whole body has arrived */
    CONN_HELD,     /* its body will stream; waits until fewer workers are reading such bodies */
    CONN_FLUSH,    /* rest of a response being written */
    CONN_REST,     /* the response has been sent, and what it has left of the body is read away */
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
    uint8_t listener;               /* the socket from which it was accepted */
    bool overflow;                  /* L: beyond max_connections; closed after its first response, or lingers */
    bool proxied;                   /* L: may begin with a PROXY header, which has not been read */
    bool spoken;                    /* L: has sent a request */
    bool was_idle;                  /* L: lingers because it was idle; what still comes is a request too late */
    bool reserve;                   /* L: uses the reserve descriptor */
    bool eof;                       /* O: the peer has sent FIN, and everything before it has been read */
    bool hup;                       /* L: the peer has sent FIN; there may be unread bytes before it */
    bool unread;                    /* L: handed over before the whole body had arrived */
    bool read_dry;                  /* O: the loop's last read left nothing in the socket */
    bool chunked;                   /* O: body framing */
    bool skips;                     /* O: the response ends before the body, the rest of which is read away */
    bool switched;                  /* O: raw bytes in both directions, after 101; in queue.switched */
    atomic_bool expect, complete;   /* O: 100 (Continue) must be sent; the whole body has been read from the socket.  An
                                     * application may read the body in one thread and respond in another */
    bool close;                     /* O: close when the response has been sent */
    bool owed;                      /* O: the loop has the rest of a response, and counts it when it is sent */
    atomic_bool cut;                /* a response could not be completed: a reset, or a reader that is too slow */
    bool linger;                    /* O: the client did not ask to close, so it may be sending: read on after our FIN */
    bool with_worker;               /* M */
    bool pending;                   /* M: an edge was seen while with_worker */
    bool queued;                    /* M */
    bool with_eventloop;            /* M: it has taken the request, and not a worker */
    bool is_moved;                  /* M: in eventloop.moved */
    uint8_t seen, wanted;           /* M: enum front_progress; see eventloop.h */
    _Atomic int answer;             /* enum answer_state, with a request_timeout only */
    bool late;                      /* M: its request_timeout has passed */
    const uint8_t *trace;           /* M: see front_trace() */
    atomic_int awaits;              /* enum front_awaits */
    atomic_bool gone;               /* reset by the peer, or closed by that of a Unix socket */
    atomic_bool interrupted;        /* a thread that waits in front_read or front_send must return */
    buffer *in;                     /* O; NULL while idle */
    uint64_t body_left;             /* O: bytes of a Content-Length body that have not arrived */
    uint64_t body_read;             /* O: decoded bytes read so far */
    uint64_t body_mark;             /* O: body_read at the start of the current body_timeout period, or of what is skipped */
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
    int64_t cpu_before;             /* M: its CPU time when it took the request, nanoseconds; 0: not known */
    uint32_t route;                 /* M: see routes.h; 0: not known */
    int64_t cost;                   /* M: how long such requests compute, nanoseconds; 0: not known */
    bool is_heavy;                  /* M: that is long; the next five are of such a request, nanoseconds: */
    int64_t due;                    /* M: when others do not pass it any more */
    int64_t ends;                   /* M: when it has probably computed; 0: not known, -1: not soon, or it waits */
    int64_t latest;                 /* M: until then others may wait for it */
    int64_t looked_at, used;        /* M: when that was estimated, and how long it had computed then */
    struct front_conn *next_moved;  /* M */
    void *tag;                      /* O: of the event loop */
    struct area_slot *slot;         /* in a worker process: its place in the area; otherwise NULL */
    union proxy_peer peer;
};

typedef struct waiter {
    struct waiter *below; /* M */
    atomic_uint woken;    /* a futex; written with the mutex held */
} waiter;

/* ---------------------------------------------------------------- the front, in parts that own something */

/* sockets.c: one listening socket. */
typedef struct {
    front_listen listen;
    struct sockaddr_storage name; /* and so of each of its connections */
    bool is_armed;                /* L: with epoll */
    bool is_shut;                 /* L: by shutdown(): never to be armed again */
    int accepts, accept_row;      /* L: how many to accept per turn, for how many turns */
    int eager;                    /* L: for how many connections to look for a request at once */
    uint64_t accept_turn;         /* L */
    _Atomic uint64_t accepted;    /* connections; written by L */
} listening;

/* sockets.c: all of them, which are opened and closed together. */
struct front_sockets {
    listening all[FRONT_MAX_LISTENERS];
    unsigned n;
    bool are_open;           /* L */
};

/* listener.c, for the leader: how they are accepted from, and end. */
struct front_listener {
    int64_t retry;           /* when to listen again after accept failed; 0: not waiting */
    int64_t closes;          /* last stage: when the backlogs count as empty, unless more arrives; 0: not set */
    int64_t quiet, closes_at_most; /* required time without new connections; deadline for that */
    uint64_t seen_accepted;  /* count.accepted at the last look */
    atomic_int not_bound;    /* errno value if new handshakes could not be stopped, otherwise 0 */
    int64_t farthest;        /* the longest round trip to a client, nanoseconds, measured while draining */
};

/* reserve.h, for the leader: the descriptor that is kept, or -1. */
struct front_reserve {
    int fd;
};

/* leader.c: who runs the loop. */
struct front_leader {
    pthread_mutex_t lead; /* held by the thread that runs the loop, the leader (L); locked before the queue's mutex */
    _Atomic int error;    /* written by L: the error with which the loop has failed */
    bool short_slices;    /* whether the thread in front_run() has asked the scheduler for short slices, */
    int strain;           /* and how urgently it needs them */
};

/* conn.c, for the leader: all connections. */
struct front_table {
    front_conn *conns; /* limits.max_connections + OVERFLOW slots; memory is touched in order as needed */
    uint32_t n_slots, n_used, n_overflow;
    _Atomic uint32_t n_open; /* read by any thread */
    uint32_t n_spooling;     /* connections in CONN_SPOOL */
    size_t gather_size;      /* longest rest of a body that a socket can hold; 0: unknown */
    front_conn *free;
    conn_list waiting[CONN_STATES];
    int64_t timeout[CONN_STATES];
    buffer *spare;
    uint32_t n_spare;
};

/* admission.c: which requests workers may take. */
struct front_admission {
    int64_t service_time;    /* M: moving average of the time that a worker takes for a request, nanoseconds */
    routes routes;           /* M: what requests cost */
    uint32_t n_heavy;        /* M: heavy requests with a worker */
    uint32_t enough;         /* M: so many busy workers use all of the interpreter's time; UINT32_MAX: not known */
    int64_t judged_at, judged_cpu; /* M: when that was last judged; the CPU time of the process then, nanoseconds, */
    uint64_t judged_finished;      /* and queue.n_finished */
    int64_t entry;           /* M: moving average of the waits for the interpreter beside a heavy request, nanoseconds, */
    int64_t entered_at;      /* and when one ended, or such a request began */
    bool is_beside;          /* M: a heavy request was with a worker when another one was told to come */
};

/* handoff.c: requests between the loop and the workers. */
struct front_queue {
    conn_list batch;         /* L: requests of this turn that have not been handed over */
    uint32_t n_unread;       /* L: connections handed over before the whole body had arrived */
    int64_t backlog;         /* L: after a turn with new requests: how long half of the waiting ones keep all workers busy */
    _Atomic uint32_t n_worker; /* connections in CONN_WORKER; written by L */
    atomic_uint n_held;      /* connections in CONN_HELD; written by L, read by a worker that returns one */

    pthread_mutex_t mutex;
    conn_list ready, taken, returned; /* M */
    conn_list switched;      /* M: no longer requests: they have no deadline, and do not count as in flight */
    uint32_t n_switched;     /* M */
    bool declined;           /* M: the carrier has no room, and is told of no request */
    uint32_t n_ready, n_taken, n_late, n_idle_workers; /* M */
    uint32_t n_woken;        /* M: workers that have not looked for a request yet, or wait for the interpreter to take it */
    int64_t came;            /* M: when a worker was told to come that has not taken a request yet, or 0 */
    bool is_looked_after;    /* M: a worker sleeps for a millisecond only, because requests are held back */
    waiter *idle_workers;    /* M: the last to fall asleep is the first to wake */
    uint64_t n_finished, seen_finished; /* M: requests finished by workers; the same at the last look */
    bool closed;             /* M */
    tally_durations durations; /* M */
    tally_waits waits;         /* M: for a worker */
};

/* What the event loop is doing. */
enum eventloop_state {
    EVENTLOOP_ABSENT,  /* workers serve */
    EVENTLOOP_BUSY,    /* running the application */
    EVENTLOOP_LEADING, /* waiting, as the leader */
    EVENTLOOP_ASLEEP,  /* waiting while another thread leads, or anywhere else; it must be woken */
};

/* eventloop.c: the event loop that serves in place of workers. */
struct front_eventloop {
    _Atomic int state;       /* enum eventloop_state */
    int outer_fd, wake_fd;   /* a duplicate of asyncio's epoll descriptor, and an eventfd; -1: none */
    bool is_watched;         /* L: the front's epoll descriptor reports outer_fd */
    int watched_fd;          /* of one that waits elsewhere: the epoll descriptor that it watches, or -1; */
    atomic_bool may_lead;    /* and that reports the front's, written by L */
    atomic_bool has_others;  /* outer_fd was readable */
    front_conn *moved_first, *moved_last; /* M */
    bool has_late;           /* M: request_timeout has cut off a request, and it has not been told */
    int bell_fd;             /* of one that carries requests to worker processes (carrier.h), or -1; */
    atomic_bool gathers;     /* these want bodies whole, */
    _Atomic uint32_t room;   /* and can serve so many requests at a time */
    _Atomic uint64_t looks;  /* how often it has asked for work */
    uint64_t seen_looks;     /* L, and so are all that follow: of the front's own thread, the same at its last look; */
    bool was_given_time;     /* it has napped since, for the event loop to come back; */
    int64_t window;          /* when it began to count the looks of one that waits elsewhere; */
    int64_t leads_until;     /* until when it leads itself because that did not happen, */
    _Atomic int64_t lead_time; /* and for how long then; any thread may read it */
    int64_t judged_at, judged; /* when it last looked whether it need not lead any more, and long_turns then */

    /* Its turns.  A turn is named by `looks`. */
    _Atomic int64_t began;     /* of this one, in front_clock(); 0: there has been none */
    tally_turns turns;         /* written by the event loop */
    _Atomic int64_t long_turns; /* the time of all that were longer than a nap of the front's own thread, nanoseconds */
    int told_fd;              /* an eventfd, to which front_watch_turns() listens; -1: none */
    _Atomic uint64_t slow;     /* the last turn that was told as slow, */
    _Atomic int64_t slow_took; /* and how long it took; 0: it has not ended */
    _Atomic int64_t watched_at; /* when the front's own thread looks at the turn again at the latest */
    uint64_t watched;          /* L: the turn that it saw at its last look, */
    int64_t expected, stalled; /* L: when it should have looked again at the latest; how much of the turn does not count */
    int n_stalls;              /* L: how often it was late in this turn */
    uint64_t heard;            /* L: of one that waits elsewhere: `looks` at the last look of that thread, */
    int64_t silent_until;      /* L: and when it must have changed */
};

/* probe.c: published pages, and who asked for them. */
struct front_published {
    pages *pages;              /* L */
    _Atomic(pages *) incoming; /* mailbox from front_publish */
    _Atomic int64_t expires[PAGES_SLOTS];
    _Atomic int64_t lease, moved; /* of slot 0: duration of the last renewal; by how much gaps have moved it since */
    bool mourned;              /* L: last words have been written since liveness expired */
    tally_probers probers;     /* written by L */
};

/* clock.c: the time. */
struct front_time {
    _Atomic int64_t due, frozen; /* time by which the next turn begins unless the process is frozen; sum of all gaps */
    date_text date;              /* L */
};

/* stage.c: how the front ends. */
struct front_ending {
    _Atomic int wanted;        /* enum front_stage; front.stage follows in the next turn */
    int signal_fd;
    uint64_t draining_signals; /* a bit for each signal that starts the drain */
    int n_signals;             /* L: number of received signals, without duplicates */
    int64_t last_signal, give_up, gives_up; /* L: the last signal; limit from the first signal on; its deadline */
};

/* body.c: the memory of all buffers together. */
struct front_room {
    _Atomic uint64_t buffered;  /* bytes of buffers beyond the first block, including `gathering` */
    _Atomic uint64_t gathering; /* `awaited` of all connections, which gives way to others; written by L */
};

/* spool.c: bodies in files. */
struct front_spooling {
    struct spool *thread;   /* L; NULL until a body is spooled */
    _Atomic uint64_t bytes; /* of all spooled bodies together */
    atomic_int error;       /* the error of the last body that could not be spooled */
};

/* last_words.c */
struct front_last_words {
    int signal; /* raised for the stacks of Python; 0: none */
};

#define FRONT_EVENT(name, ...) _Atomic uint64_t name;
#define FRONT_STATE(...)
struct front {
    struct front *next_open;        /* of all fronts of this process, under their mutex */
    bool foreign;                   /* belongs to the parent of this forked process; written while there is one thread */
    atomic_bool has_run;
    front_limits limits;
    http1_limits heads;             /* those of them that the parser knows */
    int epoll_fd, wake_fd;
    int64_t now;                    /* L: at the start of this turn */
    _Atomic uint64_t turn;          /* written by L: how often the loop has turned */
    _Atomic int stage;              /* enum front_stage; written by L */

    /* Each is touched by its file alone. */
    struct front_admission admission;
    struct front_queue queue;
    struct front_eventloop eventloop;
    struct front_table table;
    struct front_published published;
    struct front_time clock;
    struct front_leader leader;
    struct front_room room;
    struct front_sockets sockets;
    struct front_listener listener;
    struct front_reserve reserve;
    struct front_spooling spooling;
    struct front_ending ending;
    struct front_last_words last_words;
    struct carrier *carrier;        /* NULL until there are worker processes */
    struct remote *remote;          /* in a worker process: its end; most of the above is unused */

    struct { /* what happens, counted by whoever does it */
        FRONT_COUNTERS(FRONT_EVENT, FRONT_STATE)
    } count;
};

/* What epoll reports beside connections, in place of a slot.  A listener has its number in place of the generation. */
enum { FRONT_LISTENER = 0xffffffff, FRONT_WAKE = 0xfffffffe, FRONT_SIGNALS = 0xfffffffd, FRONT_OUTER = 0xfffffffc };

static inline int front_watch_fd(front *f, int fd, uint64_t id, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.u64 = id};
    return epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == -1 ? -errno : 0;
}

/* Ends the wait of the loop. */
static inline void front_ring(front *f)
{
    if (!f->foreign) /* the number may belong to another file by now */
        (void)!write(f->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
}

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

#endif
