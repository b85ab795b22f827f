/*
 * exchange.h - the one seam between the front and whoever serves: a worker takes a request, reads its body, writes its
 * response, and gives it back.
 *
 * The caller knows nothing about what carries the request.  exchange.c does it over the client's socket, in the process of
 * the front; another carrier would implement the same functions.
 *
 * Threads: front_take() to front_finish() in any; a request belongs to whoever has taken it.
 * This file includes no Python header, and must not.
 */
#ifndef EXCHANGE_H
#define EXCHANGE_H

#include <sys/uio.h>

#include "front.h"
#include "http/proxy.h"

typedef struct front_conn front_conn;

/* A request lent to a worker.  Pointers are valid until front_finish(). */
typedef struct {
    front_conn *conn;
    const http1_head *head;
    const char *data;  /* the bytes that head's spans point into */
    size_t head_len;
    const char *body;  /* the part that has arrived, decoded */
    size_t body_len;
    bool body_complete; /* that is the whole body */
    bool body_spooled;  /* the whole body has arrived, and front_body_left() is its length */
    bool is_repeated;  /* a worker process has died in it */
    unsigned listener; /* the number of the socket from which the connection was accepted */
    int64_t arrived;   /* monotonic nanoseconds, when the head was complete */
    union proxy_peer peer;
} front_request;

int front_take(front *f, front_request *out, int64_t timeout); /* nanoseconds; 0: do not wait; < 0: forever */
/* The same for a worker that needs an interpreter.  With a timeout of 0 it is called by one that has it, otherwise by one that has
 * not.  FRONT_TIMEOUT of the latter: there is a request, to be taken by a call with 0 as soon as it has the interpreter again.
 * `*came` is 0 at first, and kept from call to call. */
int front_come(front *f, front_request *out, int64_t timeout, int64_t *came);
ssize_t front_read(front *f, front_conn *c, char *buf, size_t len, bool wait); /* 0 at the end; -EAGAIN without wait */
/* A final response begins; reading the body after it does not send 100 (Continue).  Whether the connection can be used
 * again: the body has arrived, or what an event loop leaves of it is short enough that the loop reads it away. */
bool front_begin_response(front *f, front_conn *c);
/* Both return -EALREADY after the end of a response has been left with the loop, and -EPIPE after a part of it was lost by
 * an error or a client that does not read; front_finish() then cuts the connection.  front_send() advances iov. */
int front_send(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait);
int front_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len, bool leave);
bool front_body_pending(const front_conn *c); /* a part of the body has not been read from the socket yet */
uint64_t front_body_left(const front_conn *c);    /* bytes that front_read() will still return of a body of known length */
bool front_is_gone(front_conn *c);            /* the peer reset the connection, or closed a Unix socket */
void front_interrupt(front_conn *c);          /* makes front_read, front_send etc. in another thread fail soon */
/* The request belongs to the trace with this id (TALLY_TRACE bytes), which the caller keeps until front_finish(): statistics may
 * show it as an example of how long requests take. */
void front_trace(front *f, front_conn *c, const uint8_t *id);
/* status: 0 if none was sent.  Returns the status that was sent: 504 if the loop has responded instead of the worker. */
unsigned front_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status);

/* -------------------------------------------- for an event loop, one thread that serves in place of workers (eventloop.h)
 *
 * It calls front_wait(), front_take() with 0, and front_read() and front_send() without `wait`: on -EAGAIN and FRONT_AGAIN it
 * calls front_await(). */

enum front_news {
    FRONT_REQUESTS = 1, /* front_take() has some */
    FRONT_MOVED = 2,    /* front_moved() has some */
    FRONT_OTHERS = 4,   /* its own epoll descriptor may have some */
    FRONT_LATE = 8,     /* request_timeout has cut off requests; until front_take_late() */
};

enum front_progress {
    FRONT_READABLE = 1,
    FRONT_WRITABLE = 2,
    FRONT_LEFT = 4, /* the client has sent FIN or reset the connection, or its request was cut off; this remains */
};

/* From now on an event loop serves, whose epoll descriptor is `epoll_fd`.  Once, and with no workers.  FRONT_OK or a negative
 * errno. */
int front_serve_by_eventloop(front *f, int epoll_fd);
/* Waits, and leads meanwhile, until there is something to do: a set of enum front_news.  nanoseconds; < 0: forever */
unsigned front_wait(front *f, int64_t timeout);
void front_want_requests(front *f, bool wanted); /* whether front_wait() returns for requests */
/* In place of these two, for an event loop that waits elsewhere: the descriptor that it has to watch, or a negative errno. */
int front_serve_by_reader(front *f);
/* To be called when that descriptor is readable, and whenever something has been served: what there is to do now, a set of
 * enum front_news.  Neither waits.  After front_settle() has returned 0 the descriptor tells of what comes. */
unsigned front_look(front *f);
unsigned front_settle(front *f);
/* How often it has asked for work; -1 while it waits for some, or if there is none.  From any thread. */
int64_t front_eventloop_looks(const front *f);
/* How long it has been in this turn, without the gaps in which the process was frozen; 0 while it waits.  From any thread. */
int64_t front_eventloop_turn(const front *f);
void front_turns(const front *f, tally_waits *out); /* how long its turns took */
/* Waits for the next turn that lasts longer than slow_callback_duration, or for the end of the one that it returned last.
 * FRONT_OK, FRONT_CLOSED when the front has stopped or no event loop serves, or a negative errno.  In one thread. */
int front_watch_turns(front *f, front_turn *out);
/* FRONT_AGAIN: front_moved() will return `tag` once, when one of `what` (enum front_progress) has happened.  FRONT_OK: it has
 * happened already.  Or a negative errno.  Without `what` it will not be returned. */
int front_await(front *f, front_conn *c, unsigned what, void *tag);
void *front_moved(front *f); /* NULL: no more */
/* From now on the connection has raw bytes in both directions: front_read() returns whatever comes, beginning with what has
 * come already, and FRONT_E_TRUNCATED at the end; no time limit ends it.  The caller has to send 101 (Switching Protocols), and
 * to close the connection in the end.  FRONT_OK; -EINVAL for a request of HTTP/1.0 or one with a body; -EPIPE if it was cut off. */
int front_switch(front *f, front_conn *c);
bool front_is_dry(const front_conn *c); /* whether the last front_read() of such a connection has left nothing in the socket */
/* Memory of the caller that is part of buffer_size.  Whether there is room for so many more bytes. */
bool front_reserve(front *f, size_t bytes);
void front_unreserve(front *f, size_t bytes);
void front_take_late(front *f);
bool front_is_late(const front_conn *c); /* request_timeout has cut off the request */
/* What waiting in front_read() and front_send() does beside it: `waited` nanoseconds have been spent waiting for more of the
 * body; since the last call, one write_timeout ago, the client has taken `taken` bytes of the response.  Whether to go on; a
 * client that does not keep up is given up. */
bool front_may_read_on(front *f, front_conn *c, int64_t waited);
bool front_may_send_on(front *f, front_conn *c, uint64_t taken);

#endif
