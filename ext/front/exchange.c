/* exchange.c - exchange.h over the socket, in the process of the front. */
#define _GNU_SOURCE
#include "exchange.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "body.h"
#include "clock.h"
#include "conn.h"
#include "eventloop.h"
#include "handoff.h"
#include "io.h"
#include "leader.h"
#include "pace.h"
#include "remote.h"
#include "spool.h"
#include "state.h"

#define INTERRUPTION (100 * MILLISECOND) /* how often a waiting thread checks whether it should stop */

/* ------------------------------------------------------------------------ take */

int front_take(front *f, front_request *out, int64_t timeout)
{
    return front_come(f, out, timeout, NULL);
}

int front_come(front *f, front_request *out, int64_t timeout, int64_t *came)
{
    bool closed;

    if (f->foreign)
        return FRONT_CLOSED;
    if (f->remote != NULL)
        return remote_take(f, out, timeout, came);
    front_conn *c = leader_take(f, timeout, came, &closed);
    if (c == NULL)
        return closed ? FRONT_CLOSED : FRONT_TIMEOUT;

    count_add(&f->count.queue_ns, (uint64_t)(c->begun - c->arrived));
    if (eventloop_serves(f) && conn_watch(f, c, WATCH_IN) != FRONT_OK) /* it wants to know when the client leaves */
        atomic_store_explicit(&c->gone, true, memory_order_relaxed);
    buffer *b = c->in;
    out->conn = c;
    out->head = &b->head;
    out->data = b->data;
    out->head_len = b->head_len;
    out->body = b->data + b->head_len;
    out->body_len = b->body_len;
    out->body_complete = c->complete && c->spooled == NULL;
    out->body_spooled = c->complete && c->spooled != NULL;
    out->is_repeated = false;
    out->listener = c->listener;
    out->arrived = c->arrived;
    memcpy(&out->peer, &c->peer, sizeof out->peer);
    return FRONT_OK;
}

/* ------------------------------------------------------------------------ read */

/* Waits for the socket until `deadline`, which is extended by the time for which the process is frozen (also added to
 * `*frozen`, if given).  FRONT_OK, FRONT_E_LATE, or -EPIPE when the front has stopped. */
static int look_at_socket(front_conn *c, short events, int64_t deadline, int64_t *frozen)
{
    int64_t looked = 0;

    for (;;) {
        /* The client of a Unix socket may have sent everything before it left.  The socket of one that has left is always
         * readable, so a reader learns of it by reading. */
        bool ended = events != POLLIN && atomic_load_explicit(&c->gone, memory_order_relaxed);
        if (ended || atomic_load_explicit(&c->interrupted, memory_order_relaxed))
            return -EPIPE;
        int64_t now = clock_now(), left;
        if (looked != 0 && now - looked > INTERRUPTION + FRONT_GAP) {
            deadline += now - looked;
            if (frozen != NULL)
                *frozen += now - looked;
        }
        looked = now;
        if ((left = deadline - now) <= 0)
            return FRONT_E_LATE;
        if (left > INTERRUPTION)
            left = INTERRUPTION;
        struct pollfd p = {.fd = c->fd, .events = events};
        int n = poll(&p, 1, (int)((left + MILLISECOND - 1) / MILLISECOND));
        if (n > 0)
            return FRONT_OK;
        if (n == -1 && errno != EINTR)
            return -errno;
    }
}

static int wait_socket(front_conn *c, short events, int64_t deadline, int64_t *frozen)
{
    atomic_store_explicit(&c->awaits, events == POLLIN ? FRONT_AWAITS_BODY : FRONT_AWAITS_ROOM, memory_order_relaxed);
    int rv = look_at_socket(c, events, deadline, frozen);
    atomic_store_explicit(&c->awaits, FRONT_AWAITS_NOTHING, memory_order_relaxed);
    return rv;
}

/* The body must arrive at min_body_rate, checked each time a body_timeout has been spent waiting for it.  Time that the
 * application takes between two reads does not count, and many short waits add up. */
static int wait_body(front *f, front_conn *c)
{
    int64_t begin = clock_now(), frozen = 0;
    int64_t deadline = begin + f->limits.body_timeout - c->body_waited, soon = begin + MILLISECOND;
    int rv = wait_socket(c, POLLIN, soon < deadline ? soon : deadline, &frozen);

    if (rv == FRONT_E_LATE && soon < deadline) {
        io_acknowledge(c->fd);
        rv = wait_socket(c, POLLIN, deadline + frozen, &frozen);
    }
    bool keeps_up = front_may_read_on(f, c, clock_now() - begin - frozen);
    return rv != FRONT_OK && rv != FRONT_E_LATE ? rv : keeps_up ? FRONT_OK : FRONT_E_LATE;
}

static int send_parts(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait);

/* The result of a failed send: the response has lost a part and counts as aborted. */
static int is_cut(front_conn *c, int error)
{
    atomic_store_explicit(&c->cut, true, memory_order_relaxed);
    return error;
}

static int say_continue(front *f, front_conn *c, bool wait)
{
    struct iovec iov = {.iov_base = (char *)(uintptr_t)continue_text, .iov_len = sizeof continue_text - 1};
    int none = ANSWER_NONE, interim = ANSWER_INTERIM;

    c->expect = false;
    if (f->limits.request_timeout == 0)
        return send_parts(f, c, &iov, 1, 0, wait);
    if (!atomic_compare_exchange_strong(&c->answer, &none, ANSWER_INTERIM) && none != ANSWER_BEGUN)
        return -EPIPE;
    int rv = send_parts(f, c, &iov, 1, 0, wait);
    atomic_compare_exchange_strong(&c->answer, &interim, ANSWER_NONE);
    return rv;
}

/* One read from the socket of a body with Content-Length, directly into the caller's buffer. */
static ssize_t read_plain(front *f, front_conn *c, char *buf, size_t len)
{
    ssize_t n = io_read(c->fd, buf, len < c->body_left ? len : (size_t)c->body_left);

    if (c->switched) /* epoll(7): a short read has emptied the socket */
        c->read_dry = n > 0 && (size_t)n < len;
    if (n > 0) {
        count_add(&f->count.bytes_in, (uint64_t)n);
        c->body_left -= (uint64_t)n;
        c->body_read += (uint64_t)n;
        c->complete = c->body_left == 0;
        return n;
    }
    return n == 0 ? FRONT_E_TRUNCATED : -errno;
}

/* One read of a chunked body through the buffer.  FRONT_OK or an error. */
static int read_chunked(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (b->cap - b->head_len < 1024) {
        handoff_lock(f); /* front_requests() may be reading */
        int rv = buffer_grow(f, c, 0, b->head_len + 4096);
        handoff_unlock(f);
        if (rv != FRONT_OK)
            return rv;
        b = c->in;
    }
    b->body_len = c->body_given = 0;
    b->len = b->raw = b->head_len;
    ssize_t n = io_read(c->fd, b->data + b->len, b->cap - b->len);
    if (n == 0)
        return FRONT_E_TRUNCATED;
    if (n == -1)
        return -errno;
    count_add(&f->count.bytes_in, (uint64_t)n);
    b->len += (size_t)n;
    return body_decode(f, c);
}

/* A connection of raw bytes may be silent for hours, so it has no buffer. */
static void keep_head(front *f, front_conn *c)
{
    handoff_lock(f); /* front_requests() may be reading */
    buffer_keep_head(f, c);
    handoff_unlock(f);
}

ssize_t front_read(front *f, front_conn *c, char *buf, size_t len, bool wait)
{
    if (len == 0)
        return 0;
    if (f->foreign)
        return -EPIPE;
    if (f->remote != NULL)
        return remote_read(f, c, buf, len, wait);
    for (;;) {
        if (f->limits.request_timeout != 0 && atomic_load_explicit(&c->answer, memory_order_relaxed) >= ANSWER_504)
            return -EPIPE;
        /* A disk may have to be waited for.  An event loop does so, as nothing would tell it that it can go on: it only gets
         * such a body for worker processes, or if it came before there was an event loop. */
        if (c->spooled != NULL && c->spooled->given < c->spooled->size)
            return wait || eventloop_serves(f) ? spool_read(c->spooled, buf, len) : -EAGAIN;
        size_t there = c->in->body_len - c->body_given;
        if (there > 0) {
            if (there > len)
                there = len;
            memcpy(buf, c->in->data + c->in->head_len + c->body_given, there);
            c->body_given += there;
            if (c->switched && c->body_given == c->in->body_len)
                keep_head(f, c);
            return (ssize_t)there;
        }
        if (c->complete)
            return 0;
        if (c->expect) {
            if (!wait && !eventloop_serves(f))
                return -EAGAIN;
            int rv = say_continue(f, c, wait);
            if (rv == FRONT_AGAIN) /* the client has not even read former responses; a part of the line may have been sent */
                rv = is_cut(c, -EPIPE);
            if (rv != FRONT_OK)
                return rv;
        }
        ssize_t n = c->chunked ? read_chunked(f, c) : read_plain(f, c, buf, len);
        if (n > 0)
            return n;
        if (n == FRONT_OK || n == -EINTR)
            continue;
        if (n != -EAGAIN)
            return n;
        if (!wait)
            return -EAGAIN;
        int rv = wait_body(f, c);
        if (rv != FRONT_OK)
            return rv;
    }
}

bool front_body_pending(const front_conn *c)
{
    return !c->complete;
}

uint64_t front_body_left(const front_conn *c)
{
    if (c->slot != NULL)
        return remote_body_left(c);
    uint64_t in_file = c->spooled != NULL ? c->spooled->size - c->spooled->given : 0;

    return in_file + c->in->body_len - c->body_given + c->body_left;
}

bool front_is_gone(front_conn *c)
{
    if (c->slot != NULL)
        return atomic_load_explicit(&c->slot->gone, memory_order_relaxed);
    return atomic_load_explicit(&c->gone, memory_order_relaxed);
}

void front_interrupt(front_conn *c)
{
    atomic_store_explicit(&c->interrupted, true, memory_order_relaxed);
}

/* ------------------------------------------------------------------------ send */

static size_t iov_total(const struct iovec *iov, int n)
{
    size_t total = 0;

    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    return total;
}

static void iov_advance(struct iovec *iov, int n, size_t by)
{
    for (int i = 0; i < n && by > 0; i++) {
        size_t part = iov[i].iov_len < by ? iov[i].iov_len : by;
        iov[i].iov_base = (char *)iov[i].iov_base + part;
        iov[i].iov_len -= part;
        by -= part;
    }
}

bool front_begin_response(front *f, front_conn *c)
{
    if (f->remote != NULL)
        return remote_begin_response(f, c);
    bool expect = atomic_load_explicit(&c->expect, memory_order_relaxed);

    atomic_store_explicit(&c->expect, false, memory_order_relaxed); /* runs for each response, so without a barrier */
    if (c->complete)
        return true;
    /* For workers so much is collected before; how long a chunked one is will only be known when the client has been told that
     * it may send its next request.  Whether a body comes that has not been asked for is not known. */
    c->skips = eventloop_streams(f) && !expect && (c->chunked || c->body_left <= f->limits.body_buffer_size);
    return c->skips;
}

/* The loop has the rest of a response, which later data would overtake. */
static bool is_left(const front_conn *c)
{
    return c->out != NULL || c->file != -1;
}

/* Why nothing more can be written, or FRONT_OK.  A response that has lost a part must not continue: the client would take
 * what follows for that part, and the end for the end of a complete response. */
static int is_over(const front_conn *c)
{
    return is_left(c) ? -EALREADY : atomic_load_explicit(&c->cut, memory_order_relaxed) ? -EPIPE : FRONT_OK;
}

/* Leaves the content of iov with the loop. */
static int leave(front *f, front_conn *c, struct iovec *iov, int n, size_t total)
{
    if (!buffers_reserve(f, total))
        return FRONT_AGAIN;
    if ((c->out = malloc(total)) == NULL) {
        buffers_return(f, total);
        return FRONT_AGAIN;
    }
    c->out_len = total;
    c->out_pos = c->out_mark = 0;
    for (char *p = c->out; n > 0; iov++, n--) {
        memcpy(p, iov->iov_base, iov->iov_len);
        p += iov->iov_len;
        iov->iov_len = 0;
    }
    return FRONT_OK;
}

/* Whether the worker may send its response, because the loop has not sent 504 instead. */
static bool may_answer(front *f, front_conn *c)
{
    int state = ANSWER_NONE;

    if (f->limits.request_timeout == 0)
        return true;
    while (state == ANSWER_NONE || state == ANSWER_INTERIM)
        if (atomic_compare_exchange_strong(&c->answer, &state, ANSWER_BEGUN))
            return true;
    return state == ANSWER_BEGUN;
}

int front_send(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait)
{
    if (f->remote != NULL)
        return f->foreign ? -EPIPE : remote_send(f, c, iov, n, wait);
    return may_answer(f, c) ? send_parts(f, c, iov, n, keep, wait) : -EPIPE;
}

/* Waits until the socket takes more of a response, `left` bytes of which are missing.  Writing must keep its pace, checked once
 * per write_timeout: `*mark` bytes were missing when the period began that ends at `*deadline`; 0: none has begun.
 * FRONT_OK, or an error with which the response is cut. */
static int wait_writable(front *f, front_conn *c, uint64_t left, uint64_t *mark, int64_t *deadline)
{
    if (*deadline == 0)
        *deadline = clock_now() + f->limits.write_timeout;
    int rv = wait_socket(c, POLLOUT, *deadline, NULL);
    if (rv == FRONT_E_LATE && pace_is_kept(f, *mark - left, f->limits.write_timeout)) {
        *mark = left;
        *deadline = 0;
        return FRONT_OK;
    }
    return rv == FRONT_OK ? FRONT_OK : is_cut(c, rv);
}

static int send_parts(front *f, front_conn *c, struct iovec *iov, int n, size_t keep, bool wait)
{
    size_t total = iov_total(iov, n);
    uint64_t mark = total;
    int64_t deadline = 0;

    if (f->foreign)
        return -EPIPE;
    int refused = is_over(c);
    if (refused != FRONT_OK)
        return refused;
    if (keep > f->limits.response_buffer_size)
        keep = f->limits.response_buffer_size;
    while (total > 0) {
        ssize_t sent = io_write_parts(c->fd, iov, n);
        if (sent >= 0) {
            count_add(&f->count.bytes_out, (uint64_t)sent);
            iov_advance(iov, n, (size_t)sent);
            total -= (size_t)sent;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN) {
            int error = errno;
            atomic_store_explicit(&c->gone, true, memory_order_relaxed);
            return is_cut(c, -error);
        }
        if (total <= keep && leave(f, c, iov, n, total) == FRONT_OK)
            return FRONT_OK;
        if (!wait)
            return FRONT_AGAIN;
        int rv = wait_writable(f, c, total, &mark, &deadline);
        if (rv != FRONT_OK)
            return rv;
    }
    return FRONT_OK;
}

int front_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len, bool leave_rest)
{
    uint64_t mark = len;
    int64_t deadline = 0;

    if (f->foreign)
        return -EPIPE;
    if (f->remote != NULL)
        return remote_send_file(f, c, fd, offset, len);
    if (!may_answer(f, c))
        return -EPIPE;
    int refused = len > 0 ? is_over(c) : FRONT_OK;
    if (refused != FRONT_OK)
        return refused;
    while (len > 0) {
        /* The loop gets the rest when the socket is full, so it seldom waits for a disk. */
        ssize_t sent = io_write_file(c->fd, fd, &offset, len < 262144 ? (size_t)len : 262144);
        if (sent > 0) {
            count_add(&f->count.bytes_out, (uint64_t)sent);
            len -= (uint64_t)sent;
            continue;
        }
        if (sent == 0)
            return is_cut(c, -EIO); /* the file is shorter than announced */
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return is_cut(c, -errno);
        if (leave_rest && (c->file = fcntl(fd, F_DUPFD_CLOEXEC, 0)) != -1) {
            c->file_pos = offset;
            c->file_left = len;
            c->out_mark = (size_t)offset;
            return FRONT_OK;
        }
        int rv = wait_writable(f, c, len, &mark, &deadline);
        if (rv != FRONT_OK)
            return rv;
    }
    return FRONT_OK;
}

/* ---------------------------------------------------------------------- finish */

void front_trace(front *f, front_conn *c, const uint8_t *id)
{
    if (f->foreign)
        return;
    if (f->remote != NULL)
        remote_trace(c, id);
    else
        handoff_trace(f, c, id);
}

unsigned front_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status)
{
    int fd;

    if (f->foreign)
        return status;
    if (f->remote != NULL)
        return remote_finish(f, c, keep_alive, abort, status);
    handoff_result result = {.abort = abort, .rest = is_left(c), .status = status, .end = clock_now()};
    if (atomic_load_explicit(&c->cut, memory_order_relaxed))
        result.abort = true; /* no matter what the application does about it */
    if (f->limits.request_timeout != 0) {
        int state = atomic_exchange(&c->answer, ANSWER_DONE);
        if (state == ANSWER_504) { /* a reset must not destroy what the client has received */
            result.is_answered = true;
            result.abort = keep_alive = false;
            result.status = 504;
        } else if (state == ANSWER_CUT) {
            keep_alive = false;
        }
    }
    if (result.abort) /* the announced body will not arrive; only an immediate end of the connection shows that */
        io_reset_at_end(c->fd);
    if (!keep_alive && !c->close)
        c->close = c->linger = true;
    c->skips = c->skips && !c->complete;
    c->body_mark = c->body_read;
    if (!c->complete && !c->skips)
        c->close = c->linger = true; /* the rest of the body cannot be distinguished from a request */
    if (!c->close && !result.abort && !(c->watched & EPOLLIN)) /* reports what has arrived meanwhile, so nobody has to look */
        c->read_dry = conn_watch(f, c, WATCH_IN) == FRONT_OK;

    bool ring = handoff_return(f, c, &result, &fd);
    if (fd != -1)
        io_end(fd, result.abort);
    if (ring)
        front_ring(f);
    return result.status;
}

/* ----------------------------------------------------------------- an event loop */

int front_serve_by_eventloop(front *f, int epoll_fd)
{
    return f->foreign ? -EPIPE : f->remote != NULL ? -ENOTSUP : eventloop_open(f, epoll_fd);
}

unsigned front_wait(front *f, int64_t timeout)
{
    return leader_wait(f, timeout);
}

int front_serve_by_reader(front *f)
{
    if (f->remote != NULL)
        return f->foreign ? -EPIPE : remote_serve_by_reader(f);
    return f->foreign ? -EPIPE : eventloop_open_elsewhere(f);
}

unsigned front_look(front *f)
{
    return f->remote != NULL ? remote_look(f, true) : leader_look(f);
}

unsigned front_settle(front *f)
{
    return f->remote != NULL ? remote_look(f, false) : leader_settle(f);
}

int64_t front_eventloop_looks(const front *f)
{
    return eventloop_looks(f);
}

int64_t front_eventloop_turn(const front *f)
{
    return eventloop_turn(f);
}

void front_turns(const front *f, tally_waits *out)
{
    eventloop_turns(f, out);
}

int front_watch_turns(front *f, front_turn *out)
{
    return f->foreign ? FRONT_CLOSED : eventloop_watch_turns(f, out);
}

int front_await(front *f, front_conn *c, unsigned what, void *tag)
{
    if (f->remote != NULL)
        return f->foreign ? -EPIPE : remote_await(f, c, what, tag);
    int rv = f->foreign ? -EPIPE : conn_watch(f, c, what & FRONT_WRITABLE ? WATCH_OUT : WATCH_IN);

    if (rv != FRONT_OK)
        return rv;
    handoff_lock(f);
    c->tag = tag;
    if (what == 0)
        eventloop_dismiss(f, c);
    bool waits = !atomic_load(&c->gone) && !atomic_load(&c->interrupted) && eventloop_await(c, what);
    handoff_unlock(f);
    return waits ? FRONT_AGAIN : FRONT_OK;
}

void *front_moved(front *f)
{
    handoff_lock(f);
    front_conn *c = eventloop_moved(f);
    handoff_unlock(f);
    return c != NULL ? c->tag : NULL;
}

int front_switch(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (f->foreign)
        return -EPIPE;
    if (f->remote != NULL)
        return remote_switch(f, c);
    if (!may_answer(f, c))
        return -EPIPE;
    if (b->head.chunked || b->head.content_length > 0 || b->head.minor == 0 || c->switched)
        return -EINVAL;
    handoff_switch(f, c);
    b->body_len = b->len - b->raw; /* what follows the head */
    b->raw = b->len;
    c->body_given = 0;
    c->body_left = UINT64_MAX; /* no end */
    c->chunked = c->read_dry = false;
    atomic_store(&c->complete, false);
    if (b->body_len == 0)
        keep_head(f, c);
    return FRONT_OK;
}

bool front_is_dry(const front_conn *c)
{
    return c->read_dry;
}

bool front_reserve(front *f, size_t bytes)
{
    return buffers_reserve(f, bytes);
}

void front_unreserve(front *f, size_t bytes)
{
    buffers_return(f, bytes);
}

void front_take_late(front *f)
{
    handoff_lock(f);
    eventloop_take_late(f);
    handoff_unlock(f);
}

bool front_is_late(const front_conn *c)
{
    int answer = c->slot != NULL ? atomic_load(&c->slot->late) : atomic_load(&c->answer);

    return answer == ANSWER_504 || answer == ANSWER_CUT;
}

bool front_may_read_on(front *f, front_conn *c, int64_t waited)
{
    c->body_waited += waited;
    if (c->body_waited < f->limits.body_timeout)
        return true;
    c->body_waited = 0;
    return body_keeps_up(f, c);
}

bool front_may_send_on(front *f, front_conn *c, uint64_t taken)
{
    if (pace_is_kept(f, taken, f->limits.write_timeout))
        return true;
    is_cut(c, FRONT_E_LATE);
    return false;
}
