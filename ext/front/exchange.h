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
    unsigned listener; /* the number of the socket from which the connection was accepted */
    int64_t arrived;   /* monotonic nanoseconds, when the head was complete */
    union proxy_peer peer;
} front_request;

int front_take(front *f, front_request *out, int64_t timeout); /* nanoseconds; 0: do not wait; < 0: forever */
ssize_t front_read(front *f, front_conn *c, char *buf, size_t len, bool wait); /* 0 at the end; -EAGAIN without wait */
void front_begin_response(front_conn *c); /* a final response begins; reading the body after it does not send 100 (Continue) */
/* Both return -EALREADY after the end of a response has been left with the loop, and -EPIPE after a part of it was lost by
 * an error or a client that does not read; front_finish() then cuts the connection.  front_send() advances iov. */
int front_send(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait);
int front_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len, bool leave);
bool front_body_pending(const front_conn *c); /* a part of the body has not been read from the socket yet */
uint64_t front_body_left(const front_conn *c);    /* bytes that front_read() will still return of a body of known length */
bool front_is_gone(front_conn *c);            /* the peer reset the connection, or closed a Unix socket */
void front_interrupt(front_conn *c);          /* makes front_read, front_send etc. in another thread fail soon */
/* status: 0 if none was sent.  Returns the status that was sent: 504 if the loop has responded instead of the worker. */
unsigned front_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status);

#endif
