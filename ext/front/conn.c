/* conn.c - see conn.h. */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "body.h"
#include "clock.h"
#include "eventloop.h"
#include "handoff.h"
#include "io.h"
#include "pace.h"
#include "probe.h"
#include "reserve.h"
#include "sockets.h"
#include "spool.h"

#define PIPELINE 16  /* requests of one connection per turn, for fairness */
#define DISPLACED 16 /* connections of a kind that are examined to find one to displace */
#define OVERDUE 1000000 /* nanoseconds waited for each millisecond of patience */
#define LITTLE   4096 /* bytes to read so that the window opens */
#define SPARES   256 /* buffers kept for reuse */
#define BLOCKS   16  /* of 64 KiB of a file, for one connection per turn */
#define OVERFLOW 128 /* connections beyond the limit: for probes, and for requests until they have a place */
#define OVERFLOW_TIMEOUT SECOND
#define GATHER SECOND    /* time limit for a body to gather in its socket */

static void conn_end(front *f, front_conn *c);
static void conn_flush(front *f, front_conn *c);
static void conn_gathered(front *f, front_conn *c);
static void on_linger(front *f, front_conn *c);
static void proceed(front *f, front_conn *c);
static void spool_body(front *f, front_conn *c);
static size_t buffer_max(const front *f, const front_conn *c);

static int watch(front *f, front_conn *c, uint32_t events)
{
    struct epoll_event ev = {
        .events = events,
        .data.u64 = (uint64_t)c->generation << 32 | (uint32_t)(c - f->table.conns),
    };

    if (epoll_ctl(f->epoll_fd, c->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &ev) == -1)
        return -errno;
    c->registered = true;
    c->watched = events;
    return FRONT_OK;
}

/* Also reports what has been reported before. */
static int conn_watch_anew(front *f, front_conn *c)
{
    return watch(f, c, WATCH_IN | c->watched);
}

int conn_watch(front *f, front_conn *c, uint32_t events)
{
    return (c->watched & events) == events ? FRONT_OK : watch(f, c, events | c->watched);
}

/* ------------------------------------------------------------------ the table */

int conn_open(front *f)
{
    const front_limits *limits = &f->limits;

    f->table.n_slots = limits->max_connections + OVERFLOW;
    f->table.timeout[CONN_SILENT] = f->table.timeout[CONN_IDLE] = limits->idle_timeout;
    f->table.timeout[CONN_HEAD] = limits->header_timeout;
    f->table.timeout[CONN_GATHER] = GATHER;
    f->table.timeout[CONN_OVERFLOW] = OVERFLOW_TIMEOUT;
    f->table.timeout[CONN_BODY] = f->table.timeout[CONN_HELD] = f->table.timeout[CONN_REST] = limits->body_timeout;
    f->table.timeout[CONN_FLUSH] = limits->write_timeout;
    f->table.timeout[CONN_LINGER] = limits->linger_timeout;
    f->table.gather_size = io_longest_gathering();
    f->table.conns = calloc(f->table.n_slots, sizeof *f->table.conns);
    return f->table.conns == NULL ? -ENOMEM : FRONT_OK;
}

void conn_free(front *f)
{
    for (uint32_t i = 0; i < f->table.n_used; i++) {
        front_conn *c = &f->table.conns[i];
        if (c->state == CONN_FREE)
            continue;
        if (c->fd != -1)
            close(c->fd);
        if (c->file != -1)
            close(c->file);
        if (c->spooled != NULL && c->spooled->fd != -1)
            close(c->spooled->fd);
        free(c->spooled);
        free(c->out);
        free(c->in);
    }
    for (buffer *b = f->table.spare, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    free(f->table.conns);
}

void conn_disown(front *f)
{
    for (uint32_t i = 0; f->table.conns != NULL && i < f->table.n_used; i++) {
        front_conn *c = &f->table.conns[i];
        /* The table may contain one that another thread had just closed when the process forked, and whose number has been
         * reused; only the front's sockets have a listener's port. */
        if (c->state != CONN_FREE && c->fd != -1 && sockets_know(f, c->fd))
            close(c->fd);
        if (c->spooled != NULL && c->spooled->fd != -1)
            close(c->spooled->fd);
        c->fd = -1;
        atomic_store(&c->gone, true);
    }
}

/* ------------------------------------------------------------- lists, slots */

static bool is_listed(enum conn_state state)
{
    return state != CONN_WORKER && state != CONN_SPOOL && state != CONN_FREE;
}

void conn_set_state(front *f, front_conn *c, enum conn_state state)
{
    if (is_listed(c->state))
        list_remove(&f->table.waiting[c->state], c);
    if (c->state == CONN_GATHER && state != CONN_FREE)
        io_gather(c->fd, 1);
    if (c->state == CONN_HELD)
        handoff_note_held(f, false);
    if (state == CONN_HELD)
        handoff_note_held(f, true);
    c->state = state;
    if (is_listed(state)) {
        c->deadline = f->now + f->table.timeout[state];
        list_push(&f->table.waiting[state], c);
    }
}

front_conn *conn_new(front *f, int fd)
{
    front_conn *c = f->table.free;

    if (c != NULL) {
        f->table.free = c->next;
    } else {
        if (f->table.n_used == f->table.n_slots)
            return NULL;
        c = &f->table.conns[f->table.n_used++]; /* first use: its memory is touched only now */
    }
    uint32_t generation = c->generation;
    memset(c, 0, sizeof *c);
    c->generation = generation;
    c->fd = fd;
    c->file = -1;
    f->table.n_open++;
    return c;
}

static void buffer_drop(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (b == NULL)
        return;
    c->in = NULL;
    if (b->cap > BUFFER_SIZE) {
        buffers_return(f, b->cap - BUFFER_SIZE);
        free(b);
    } else if (b->cap == BUFFER_SIZE && f->table.n_spare < SPARES) {
        b->next = f->table.spare;
        f->table.spare = b;
        f->table.n_spare++;
    } else {
        free(b);
    }
}

static void out_drop(front *f, front_conn *c)
{
    if (c->out != NULL) {
        buffers_return(f, c->out_len);
        free(c->out);
        c->out = NULL;
    }
    if (c->file != -1) {
        close(c->file);
        c->file = -1;
    }
}

static void conn_body_drop(front *f, front_conn *c)
{
    if (c->awaited > 0) {
        buffers_expect_no_more(f, c->awaited);
        c->awaited = 0;
    }
    spool_drop(f, c);
}

/* The one place where a connection ends. */
void conn_close(front *f, front_conn *c)
{
    conn_set_state(f, c, CONN_FREE);
    if (c->owed) /* its response had not been sent completely */
        count_add(&f->count.aborted, 1);
    if (c->fd != -1)
        io_end(c->fd, false);
    c->fd = -1;
    conn_body_drop(f, c);
    buffer_drop(f, c);
    out_drop(f, c);
    if (c->overflow)
        f->table.n_overflow--;
    if (c->reserve)
        reserve_restore(f);
    c->generation++;
    c->prev = NULL;
    c->next = f->table.free;
    f->table.free = c;
    f->table.n_open--;
    count_add(&f->count.closed, 1);
}

/* Sends FIN, then reads on: closing a socket with unread bytes would make the kernel send RST, which can destroy the
 * response before the client has read it (RFC 9112 9.6). */
static void conn_linger(front *f, front_conn *c)
{
    out_drop(f, c);
    conn_body_drop(f, c);
    buffer_drop(f, c);
    io_end_output(c->fd);
    if (!c->overflow) /* it has had its response, and holds no place among max_connections */
        conn_mark_overflow(f, c);
    if (c->eof || c->reserve || conn_watch(f, c, WATCH_IN) != 0) { /* the reserve descriptor is needed for the next one */
        conn_close(f, c);
        return;
    }
    conn_set_state(f, c, CONN_LINGER);
    on_linger(f, c);
}

void conn_make_room(front *f)
{
    front_conn *oldest = f->table.waiting[CONN_LINGER].first;

    /* A flood of another listener does not end the connections of one for health. */
    for (front_conn *c = f->table.waiting[CONN_OVERFLOW].first; oldest == NULL && c != NULL; c = c->next)
        if (sockets_serve(f, c)->requests)
            oldest = c;
    if (oldest == NULL)
        oldest = f->table.waiting[CONN_OVERFLOW].first;
    if (oldest != NULL)
        conn_close(f, oldest);
}

void conn_close_reserve(front *f)
{
    for (front_conn *c = f->table.waiting[CONN_OVERFLOW].first; c != NULL; c = c->next)
        if (c->reserve) {
            conn_close(f, c);
            return;
        }
}

bool conn_next_socket(const front *f, uint32_t *i, int *fd)
{
    while (*i < f->table.n_used) {
        const front_conn *c = &f->table.conns[(*i)++];
        if (c->state != CONN_FREE && c->state != CONN_WORKER) {
            *fd = c->fd;
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------- reading */

static unsigned progress_of(uint32_t events)
{
    return (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? FRONT_READABLE : 0) |
           (events & (EPOLLOUT | EPOLLHUP | EPOLLERR) ? FRONT_WRITABLE : 0) |
           (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? FRONT_LEFT : 0);
}

void conn_event(front *f, uint32_t slot, uint32_t generation, uint32_t events)
{
    front_conn *c = &f->table.conns[slot];

    if (c->generation != generation)
        return;
    if (events & (EPOLLHUP | EPOLLERR))
        atomic_store_explicit(&c->gone, true, memory_order_relaxed);
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        c->hup = true; /* there will be no further edge for the end of the stream */
    switch (c->state) {
    case CONN_WORKER:
        handoff_note_event(f, c, progress_of(events));
        break;
    case CONN_SILENT:
    case CONN_IDLE:
    case CONN_HEAD:
    case CONN_OVERFLOW:
    case CONN_BODY:
    case CONN_HELD:
    case CONN_REST:
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            conn_readable(f, c);
        break;
    case CONN_GATHER:
        conn_gathered(f, c);
        break;
    case CONN_FLUSH:
        if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            conn_flush(f, c);
        break;
    case CONN_LINGER:
        on_linger(f, c);
        break;
    case CONN_AGAIN: /* read in the next turn anyway */
    case CONN_SPOOL: /* the spool's thread reads it */
    case CONN_FREE:
    case CONN_STATES:
        break;
    }
}

void conn_resume(front *f)
{
    conn_list *again = &f->table.waiting[CONN_AGAIN];

    for (front_conn *c = again->first, *last = again->last, *next; c != NULL; c = next) {
        next = c == last ? NULL : c->next; /* connections after `last` were added in this turn */
        conn_readable(f, c);
    }
}

static buffer *buffer_new(front *f)
{
    buffer *b = f->table.spare;

    if (b != NULL) {
        f->table.spare = b->next;
        f->table.n_spare--;
    } else if ((b = malloc(sizeof *b + BUFFER_SIZE)) == NULL) {
        return NULL;
    }
    b->cap = BUFFER_SIZE;
    b->len = b->head_len = b->body_len = b->raw = 0;
    b->head.method_id = HTTP1_OTHER; /* until it is known; for conn_refuse() */
    return b;
}

/* Reads once, so that no connection delays the others.  After a read that fills the buffer, it reads again in the next turn,
 * or at once if the buffer can grow, which happens only a few times. */
void conn_readable(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (c->file != -1) {
        conn_flush(f, c);
        return;
    }
    if (b == NULL && (b = c->in = buffer_new(f)) == NULL) {
        conn_close(f, c);
        return;
    }
    if (b->len == b->cap && buffer_grow(f, c, b->head_len != 0 ? b->len + io_received(c->fd) : 0, buffer_max(f, c)) == FRONT_OK)
        b = c->in;
    c->read_dry = false;
    if (b->len < b->cap) {
        ssize_t n = io_read(c->fd, b->data + b->len, b->cap - b->len);
        if (n > 0) {
            count_add(&f->count.bytes_in, (uint64_t)n);
            c->read_dry = (size_t)n < b->cap - b->len && !c->hup; /* epoll(7): a short read has emptied the socket */
            b->len += (size_t)n;
        } else if (n == 0) {
            c->eof = true;
        } else if (errno == EAGAIN || errno == EINTR) {
            c->read_dry = errno == EAGAIN;
        } else {
            count_add(&f->count.resets, 1);
            conn_close(f, c);
            return;
        }
    }
    proceed(f, c);
}

/* More bytes are needed: wait for an edge.  What the last read has left in the socket makes one in the next turn.  The
 * connection does not go through CONN_AGAIN for it, which would restart its deadline each time, so that a client that fills
 * its buffer one byte at a time could stay forever. */
static void want_more(front *f, front_conn *c, enum conn_state state)
{
    if (c->eof) { /* the rest will not arrive; an incomplete request needs no response (RFC 9112 8) */
        conn_close(f, c);
        return;
    }
    if (c->in != NULL && c->in->len == 0)
        buffer_drop(f, c);
    if (c->overflow)
        state = CONN_OVERFLOW;
    else if (state == CONN_IDLE && !c->spoken)
        state = CONN_SILENT;
    if ((!(c->watched & EPOLLIN) || !c->read_dry) && conn_watch_anew(f, c) != 0) {
        conn_close(f, c);
        return;
    }
    if (c->state != state) /* a partial read does not extend the deadline */
        conn_set_state(f, c, state);
}

/* ---------------------------------------------------------------- responding */

/* Sends a short response.  False if the connection is not ready for the next request (flushing, or at its end). */
static bool answer(front *f, front_conn *c, const char *bytes, size_t len)
{
    ssize_t n = TEMP_FAILURE_RETRY(io_write(c->fd, bytes, len));

    if (n == -1 && errno != EAGAIN) {
        count_add(&f->count.resets, 1);
        conn_close(f, c);
        return false;
    }
    size_t sent = n > 0 ? (size_t)n : 0;
    count_add(&f->count.bytes_out, sent);
    if (sent < len) { /* the client does not read, so stop reading from it */
        if ((c->out = malloc(len - sent)) == NULL) {
            conn_close(f, c);
            return false;
        }
        c->out_len = len - sent;
        c->out_pos = c->out_mark = 0;
        memcpy(c->out, bytes + sent, c->out_len);
        buffers_take(f, c->out_len);
        if (conn_watch(f, c, WATCH_OUT) != 0) {
            conn_close(f, c);
            return false;
        }
        conn_set_state(f, c, CONN_FLUSH);
        return false;
    }
    if (c->close) {
        conn_end(f, c);
        return false;
    }
    return true;
}

/* Moves what follows the finished request to the beginning of the buffer. */
static void conn_next(front_conn *c)
{
    buffer *b = c->in;

    if (b == NULL)
        return;
    b->len -= b->raw;
    memmove(b->data, b->data + b->raw, b->len);
    b->head_len = b->body_len = b->raw = 0;
}

static bool conn_answer_page(front *f, front_conn *c, const http1_head *h)
{
    char out[PAGES_MAX_SIZE];
    size_t len = probe_answer(f, c, h, out);

    conn_next(c);
    if (!answer(f, c, out, len))
        return false;
    conn_set_state(f, c, CONN_IDLE); /* restarts the deadline */
    return true;
}

/* Sends a short error and ends the connection.  The response to HEAD has no content, whatever its status (RFC 9110 9.3.2);
 * the method of a refused head is known, unless the error was in the method. */
void conn_refuse(front *f, front_conn *c, unsigned status, const char *text)
{
    char out[PAGES_REFUSAL_SIZE];
    bool is_head = c->in != NULL && c->in->head.method_id == HTTP1_HEAD;
    size_t len = pages_refusal(status, clock_date(f), text, is_head, out);

    c->close = c->linger = true;
    bool has_head = c->in != NULL && c->in->head_len != 0, was_queued = c->state == CONN_WORKER;
    handoff_tally(f, has_head ? c->in->head.method_id : HTTP1_OTHER, status, was_queued ? f->now - c->arrived : 0);
    answer(f, c, out, len);
}

/* ----------------------------------------------------- from bytes to requests */

static size_t body_room(const front *f, const front_conn *c)
{
    return c->in->head_len + f->limits.body_buffer_size;
}

static size_t buffer_max(const front *f, const front_conn *c)
{
    return c->in->head_len != 0 ? body_room(f, c) : f->heads.max_head_size;
}

/* Whether a body is read by whoever serves, as it comes. */
static bool streams_bodies(const front *f)
{
    return f->limits.stream_bodies || eventloop_streams(f);
}

static void to_worker(front *f, front_conn *c)
{
    /* The worker reads it; edges would only wake the loop for each part. */
    bool reads_on = !c->complete && !c->expect && !eventloop_serves(f);

    if (reads_on)
        c->read_dry = false;
    if (reads_on ? watch(f, c, WATCH_RESET) != 0 : !c->close && conn_watch(f, c, WATCH_IN) != 0) {
        conn_close(f, c);
        return;
    }
    c->arrived = f->now;
    c->body_given = 0;
    c->pending = false; /* edges before the last read do not count; later ones do */
    c->seen = c->hup || c->eof ? FRONT_LEFT : 0;
    count_add(&f->count.requests, 1);
    conn_set_state(f, c, CONN_WORKER);
    handoff_add(f, c);
}

/* Whether the rest of a body will not arrive.  A TCP client is gone when it has reset the connection, and what it sent before
 * is lost.  The client of a Unix socket is gone as soon as it closes; all that it has sent is there. */
static bool has_lost_rest(const front *f, const front_conn *c)
{
    return atomic_load_explicit(&c->gone, memory_order_relaxed) &&
           (!sockets_are_unix(f, c) || (!c->chunked && io_received(c->fd) < c->body_left));
}

/* Lets a body stream to its worker; at most half of the workers read such bodies at a time. */
static void stream_body(front *f, front_conn *c)
{
    if (!handoff_may_keep(f)) {
        to_worker(f, c);
    } else if (has_lost_rest(f, c)) {
        count_add(&f->count.resets, 1);
        conn_close(f, c);
    } else if (conn_watch(f, c, WATCH_IN) != FRONT_OK) { /* the body may have arrived before that */
        conn_close(f, c);
    } else if (c->state != CONN_HELD) {
        conn_set_state(f, c, CONN_HELD);
    }
}

void conn_release(front *f)
{
    for (front_conn *c = f->table.waiting[CONN_HELD].first, *next; c != NULL; c = next) {
        next = c->next;
        stream_body(f, c);
        if (c->state == CONN_HELD)
            return;
    }
}

static void conn_refuse_for(front *f, front_conn *c, int error)
{
    switch (error) {
    case FRONT_E_LATE:
        count_add(&f->count.timeouts, 1);
        conn_refuse(f, c, 408, "the body did not arrive in time\n");
        break;
    case FRONT_E_CHUNK:
        conn_refuse(f, c, 400, "malformed chunked body\n");
        break;
    case FRONT_E_TOO_LARGE:
        conn_refuse(f, c, 413, "body too large\n");
        break;
    case FRONT_E_TRUNCATED:
        conn_refuse(f, c, 400, "body cut short\n");
        break;
    case FRONT_E_DISPLACED:
        count_add(&f->count.shed, 1);
        conn_refuse(f, c, 503, "too many connections\n");
        break;
    default: /* an error of the socket */
        count_add(&f->count.resets, 1);
        conn_close(f, c);
    }
}

static bool say_continue(front_conn *c)
{
    return io_write(c->fd, continue_text, sizeof continue_text - 1) == sizeof continue_text - 1;
}

/* How long a connection may make the server wait in a state, in milliseconds, before one with a request is more welcome.
 * Whoever connects to send a request has it ready; a head comes in a few packets; a body that fits into its buffer takes
 * longer; a connection that is kept may be wanted again at any moment, and the longer it was idle the less.  0: it gives way
 * to nobody. */
static const int64_t patience[CONN_STATES] = {
    [CONN_SILENT] = 100, [CONN_HEAD] = 1000, [CONN_BODY] = 5000, [CONN_GATHER] = 5000, [CONN_REST] = 5000, [CONN_IDLE] = 60000,
};

/* Whether it has sent something that has not been read: a request that has just arrived. */
static bool has_spoken(const front_conn *c)
{
    return (c->state == CONN_SILENT || c->state == CONN_IDLE) && (c->in != NULL || io_has_bytes(c->fd));
}

/* The connection that has made the server wait the longest, as a multiple of its state's patience: the first of a state,
 * or of the first few.  `*overdue`: whether its patience is used up.  NULL: each connection is in use. */
static front_conn *longest_waiting(front *f, bool *overdue)
{
    front_conn *longest = NULL;
    int64_t most = -1;

    for (int s = 0; s < CONN_STATES; s++) {
        front_conn *c = patience[s] != 0 ? f->table.waiting[s].first : NULL;
        for (int i = 1; c != NULL && has_spoken(c); i++)
            c = i < DISPLACED ? c->next : NULL;
        if (c == NULL)
            continue;
        int64_t waited = (f->now - (c->deadline - f->table.timeout[s])) / patience[s];
        if (waited > most) {
            most = waited;
            longest = c;
        }
    }
    *overdue = most >= OVERDUE;
    return longest;
}

/* Takes the place of another connection among max_connections for `c`, whose request is there.  Whoever sends nothing gets a
 * FIN, as in the drain; whoever has begun a request gets 503.  Bodies that are being spooled are with another thread, and
 * give way a little later. */
static bool take_place(front *f, front_conn *c)
{
    bool overdue;

    if (atomic_load(&f->stage) != FRONT_SERVING || c->reserve)
        return false;
    front_conn *old = longest_waiting(f, &overdue);
    if (!overdue && spool_displace(f, f->table.n_spooling))
        old = NULL;
    else if (old == NULL)
        return false;
    c->overflow = false; /* first, as the end of the other one may need the slot */
    f->table.n_overflow--;
    c->close = !c->in->head.keep_alive;
    c->linger = false;
    if (old == NULL)
        return true;
    if (old->state == CONN_SILENT || old->state == CONN_IDLE || old->state == CONN_REST)
        conn_linger(f, old);
    else
        conn_refuse_for(f, old, FRONT_E_DISPLACED);
    return true;
}

/* Whether a connection whose request is there may be served.  If not, it has been told. */
static bool has_place(front *f, front_conn *c)
{
    if (!c->overflow || take_place(f, c))
        return true;
    conn_refuse_for(f, c, FRONT_E_DISPLACED);
    return false;
}

/* Handles a complete head.  True: the response has been sent; continue with the next request. */
static bool on_head(front *f, front_conn *c)
{
    buffer *b = c->in;
    const http1_head *h = &b->head;
    bool has_body = h->chunked || h->content_length > 0;

    c->spoken = true;
    const front_listen *at = sockets_serve(f, c);
    bool health = at->pages && probe_finds(f, b->data + h->path.pos, h->path.len);
    c->close = !h->keep_alive || c->overflow || atomic_load(&f->stage) >= FRONT_DRAINING;
    c->linger = c->close && h->keep_alive;
    if (h->form == HTTP1_ASTERISK || health) {
        if (has_body) { /* do not read the body; the connection cannot be used after it */
            c->close = c->linger = true;
            b->raw = b->len;
        }
        return conn_answer_page(f, c, h);
    }
    if (h->bad_host) {
        count_add(&f->count.rejected, 1);
        conn_refuse(f, c, 400, "invalid Host\n");
    } else if (!at->requests) {
        conn_refuse(f, c, 404, "not found\n");
    } else if (h->method_id == HTTP1_CONNECT) {
        count_add(&f->count.rejected, 1);
        conn_refuse(f, c, 501, "no tunnels here\n");
    } else if (h->content_length > f->limits.max_body_size) {
        conn_refuse_for(f, c, FRONT_E_TOO_LARGE);
    } else if ((has_body && !h->expect_continue) || has_place(f, c)) { /* a body must be there as well */
        c->chunked = h->chunked;
        c->body_left = h->content_length;
        c->body_read = c->body_mark = 0;
        c->body_waited = 0;
        atomic_init(&c->complete, !has_body); /* no other thread has it yet */
        atomic_init(&c->expect, has_body && h->expect_continue && b->len == b->raw);
        if (h->chunked)
            http1_chunked_init(&c->decoder);
        /* A chunked body as well: when it is collected it has a length, which most applications require. */
        if (c->expect && ((h->chunked && !streams_bodies(f)) || handoff_may_keep(f)))
            c->expect = !say_continue(c);
        if (c->complete || c->expect) { /* with Expect, 100 (Continue) is sent when the application wants the body */
            to_worker(f, c);
            return false;
        }
        if (!c->overflow)
            conn_set_state(f, c, CONN_BODY);
        return true;
    }
    return false;
}

static bool gather_rest(front_conn *c)
{
    return io_gather(c->fd, (int)c->body_left);
}

/* If the rest of a body fits into the socket's buffer, it gathers there, up to SO_RCVLOWAT, and the worker receives it
 * at once into the bytes for the application, instead of part by part as it arrives (a 1 MiB upload: 180 us of CPU -> 90).  This
 * amount must fit into what is left of buffer_size, but everybody else may use the same bytes: otherwise clients that
 * announce bodies and send nothing would leave no buffer for long heads.  The kernel may hold less than it has promised,
 * so a body that has not arrived after a second is read and spooled. */
static bool gather_body(front *f, front_conn *c)
{
    /* A Unix socket has room for what the sender's buffer holds, which is less, and unknown here. */
    if (streams_bodies(f) || c->chunked || c->body_left > f->table.gather_size || sockets_are_unix(f, c))
        return false;
    size_t rest = (size_t)c->body_left;
    if (!buffers_expect(f, rest))
        return false;
    if (conn_watch(f, c, WATCH_IN) != FRONT_OK || !gather_rest(c)) {
        buffers_expect_no_more(f, rest);
        return false;
    }
    c->awaited = (uint32_t)rest;
    conn_set_state(f, c, CONN_GATHER);
    io_acknowledge(c->fd);
    return true;
}

/* Reads a little, so that the kernel announces the larger window of SO_RCVLOWAT to the client: it does so only after a read,
 * and a client that has filled the old window sends nothing before.  False: there is no room. */
static bool open_window(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (b->cap - b->len < LITTLE && buffer_grow(f, c, b->len + LITTLE, body_room(f, c)) == FRONT_OK)
        b = c->in;
    size_t room = b->cap - b->len < LITTLE ? b->cap - b->len : LITTLE;
    ssize_t n = room > 0 ? io_read(c->fd, b->data + b->len, room < c->body_left ? room : (size_t)c->body_left) : 0;
    if (n > 0) {
        count_add(&f->count.bytes_in, (uint64_t)n);
        b->len += (size_t)n;
        body_decode(f, c);
    }
    return n > 0 && gather_rest(c);
}

/* Checks how much has gathered; the kernel reports less when the window is nearly full. */
static void conn_gathered(front *f, front_conn *c)
{
    size_t there = io_received(c->fd);

    if (atomic_load_explicit(&c->gone, memory_order_relaxed)) {
        count_add(&f->count.resets, 1);
        conn_close(f, c);
    } else if (there >= c->body_left) {
        to_worker(f, c);
    } else if (c->hup) {
        conn_refuse_for(f, c, FRONT_E_TRUNCATED);
    } else if (c->deadline > f->now && (there == 0 || open_window(f, c))) {
        if (there > 0 && io_received(c->fd) >= c->body_left)
            to_worker(f, c);
    } else {
        conn_body_drop(f, c);
        spool_body(f, c);
    }
}

/* The spool's thread reads the rest into a file. */
static void spool_body(front *f, front_conn *c)
{
    if (streams_bodies(f)) {
        stream_body(f, c);
        return;
    }
    if (watch(f, c, WATCH_RESET) != FRONT_OK) {
        conn_close(f, c);
        return;
    }
    c->read_dry = false;
    conn_set_state(f, c, CONN_SPOOL);
    f->table.n_spooling++;
    if (spool_take(f, c) != FRONT_OK)
        conn_spooled(f, c);
}

void conn_spooled(front *f, front_conn *c)
{
    f->table.n_spooling--;
    conn_set_state(f, c, CONN_BODY);
    switch (c->spooled != NULL ? c->spooled->result : FRONT_AGAIN) {
    case FRONT_OK:
        to_worker(f, c);
        break;
    case FRONT_AGAIN: /* most applications ignore a body without a length, so an error is better */
        if (c->chunked) {
            count_add(&f->count.shed, 1);
            conn_refuse(f, c, 503, "no room for the body\n");
        } else {
            stream_body(f, c);
        }
        break;
    default:
        c->eof = c->eof || c->spooled->result == FRONT_E_TRUNCATED;
        conn_refuse_for(f, c, c->spooled->result);
    }
}

/* A body that is longer than its buffer. */
static void await_body(front *f, front_conn *c)
{
    if (gather_body(f, c))
        conn_gathered(f, c);
    else
        spool_body(f, c);
}

/* Whether the rest of the body, or more of it, can be collected in the buffer, and has not arrived yet. */
static bool collects(front *f, front_conn *c)
{
    size_t room = body_room(f, c);
    bool fits = c->overflow || f->limits.stream_bodies || c->body_left <= room - c->in->len;

    if (eventloop_streams(f) && !c->overflow) /* it gets what there is; nothing has to be waited for */
        return false;
    if (c->state == CONN_HELD || c->in->len >= room || !fits)
        return false;
    if (c->in->len < c->in->cap) {
        if (c->read_dry)
            io_acknowledge(c->fd);
        want_more(f, c, CONN_BODY);
        return true;
    }
    if (buffer_grow(f, c, c->in->len + io_received(c->fd), room) != FRONT_OK)
        return false;
    conn_readable(f, c);
    return true;
}

static void on_body(front *f, front_conn *c)
{
    int rv = body_decode(f, c);

    if (rv == FRONT_OK && c->eof && !c->complete)
        rv = FRONT_E_TRUNCATED;
    if (rv != FRONT_OK)
        conn_refuse_for(f, c, rv);
    else if ((!c->complete && collects(f, c)) || !has_place(f, c))
        return;
    else if (c->complete)
        to_worker(f, c);
    else if (c->state == CONN_HELD)
        stream_body(f, c);
    else
        await_body(f, c);
}

/* Handles a PROXY header at the beginning of a connection.  False: more bytes are needed, or it was malformed. */
static bool take_proxy_header(front *f, front_conn *c)
{
    buffer *b = c->in;
    int n = proxy_parse(b->data, b->len, &c->peer);

    if (n == PROXY_PARTIAL) {
        want_more(f, c, CONN_HEAD);
        return false;
    }
    if (n == PROXY_MALFORMED) {
        count_add(&f->count.rejected, 1);
        conn_refuse(f, c, 400, "malformed PROXY header\n");
        return false;
    }
    if (n == PROXY_ABSENT && !f->limits.proxy_optional && sockets_serve(f, c)->requests) { /* the client's address is missing */
        count_add(&f->count.rejected, 1);
        conn_refuse(f, c, 400, "the PROXY header is missing\n");
        return false;
    }
    c->proxied = false;
    if (n > 0) {
        b->raw = (size_t)n;
        conn_next(c);
    }
    if (b->len > 0)
        return true;
    want_more(f, c, CONN_IDLE); /* drops the buffer */
    return false;
}

/* A head that is longer than the buffer.  At the limit for one head it is too large; at the limit for all buffers together,
 * the client may try again. */
static void grow_head(front *f, front_conn *c)
{
    int rv = buffer_grow(f, c, 0, f->heads.max_head_size);

    if (rv == FRONT_OK) {
        conn_readable(f, c); /* the rest has probably arrived */
    } else if (rv == -ENOBUFS) {
        conn_refuse(f, c, 431, "request head too large\n");
    } else {
        count_add(&f->count.shed, 1);
        conn_refuse(f, c, 503, "no buffer is free\n");
    }
}

/* Reads away what is left of the body of a request that has its response.  True: all of it, and the next request may
 * follow. */
static bool skip_rest(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (body_decode(f, c) != FRONT_OK) { /* or it is longer than a body may be */
        conn_linger(f, c);
        return false;
    }
    c->skips = !c->complete;
    if (c->skips) {
        b->len = b->raw = b->body_len = 0;
        want_more(f, c, CONN_REST);
        return false;
    }
    conn_next(c);
    return true;
}

/* Processes the bytes of a connection until they run out, or something else must happen first. */
static void proceed(front *f, front_conn *c)
{
    for (int i = 0; i < PIPELINE; i++) {
        buffer *b = c->in;
        if (c->skips && !skip_rest(f, c))
            return;
        if (b->head_len != 0) {
            on_body(f, c);
            return;
        }
        if (b->len == 0) {
            want_more(f, c, CONN_IDLE);
            return;
        }
        if (c->proxied && !take_proxy_header(f, c))
            return;
        size_t seen = c->eof ? 0 : b->raw; /* the last parse finds every error */
        int n = http1_parse_head(b->data, b->len, seen, &f->heads, &b->head);
        if (n < 0) {
            count_add(&f->count.rejected, 1);
            char text[96];
            snprintf(text, sizeof text, "%s\n", http1_error_text(n));
            conn_refuse(f, c, (unsigned)http1_error_status(n), text);
            return;
        }
        if (n == HTTP1_PARTIAL) {
            /* Some clients send an empty line after a body (RFC 9112 2.2), which does not begin a request. */
            bool empty_line = b->len <= 2 && memcmp(b->data, "\r\n", b->len) == 0;
            b->raw = b->len;
            if (b->len < b->cap)
                want_more(f, c, empty_line ? CONN_IDLE : CONN_HEAD);
            else
                grow_head(f, c);
            return;
        }
        b->head_len = b->raw = (size_t)n;
        if (!on_head(f, c))
            return;
    }
    c->read_dry = false;
    conn_set_state(f, c, CONN_AGAIN);
}

/* The response has been sent, and the connection must be closed. */
static void conn_end(front *f, front_conn *c)
{
    if (c->eof || (!c->linger && (c->in == NULL || c->in->len == c->in->raw)))
        conn_close(f, c);
    else
        conn_linger(f, c);
}

static void conn_flush(front *f, front_conn *c)
{
    while (c->out != NULL) {
        ssize_t n = io_write(c->fd, c->out + c->out_pos, c->out_len - c->out_pos);
        if (n == -1) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN)
                return;
            count_add(&f->count.resets, 1);
            conn_close(f, c);
            return;
        }
        count_add(&f->count.bytes_out, (uint64_t)n);
        c->out_pos += (size_t)n;
        if (c->out_pos == c->out_len) {
            buffers_return(f, c->out_len);
            free(c->out);
            c->out = NULL;
        }
    }
    for (int i = 0; c->file != -1; i++) {
        if (i == BLOCKS) { /* its reader is fast: let others have their turn */
            conn_set_state(f, c, CONN_AGAIN);
            return;
        }
        size_t block = c->file_left < 65536 ? (size_t)c->file_left : 65536;
        ssize_t n = block == 0 ? 0 : io_write_file(c->fd, c->file, &c->file_pos, block);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1 && errno == EAGAIN) {
            if (c->state != CONN_FLUSH)
                conn_set_state(f, c, CONN_FLUSH);
            return;
        }
        if (n <= 0 && c->file_left > 0) { /* an error, or the file has shrunk: the announced length cannot be sent */
            conn_close(f, c);
            return;
        }
        count_add(&f->count.bytes_out, (uint64_t)n);
        c->file_left -= (uint64_t)n;
        if (c->file_left == 0)
            out_drop(f, c);
    }
    if (c->owed) {
        c->owed = false;
        count_add(&f->count.served, 1);
    }
    if (c->close) {
        conn_end(f, c);
        return;
    }
    conn_next(c);
    c->read_dry = false;
    conn_set_state(f, c, CONN_AGAIN);
}

static void on_linger(front *f, front_conn *c)
{
    char sink[65536];
    ssize_t n = TEMP_FAILURE_RETRY(io_discard(c->fd, sink, sizeof sink));

    if (n == -1 && errno == EAGAIN)
        return;
    if (n > 0 && c->was_idle) {
        c->was_idle = false;
        count_add(&f->count.too_late, 1);
    }
    /* A client that is still sending is read on in the next turn, until the deadline.  If its bytes stayed in a buffer that is
     * full, it would wait for room, and then lose the response to the reset. */
    if (n <= 0 || conn_watch_anew(f, c) != FRONT_OK)
        conn_close(f, c);
}

/* --------------------------------------------------------------- back from workers */

void conn_from_worker(front *f, front_conn *c)
{
    handoff_forget(f, c);
    conn_body_drop(f, c);
}

void conn_returned(front *f, front_conn *c)
{
    bool pending = c->pending;

    conn_from_worker(f, c);
    c->pending = false;
    if (c->fd == -1) {
        conn_close(f, c);
    } else if (c->out != NULL || c->file != -1) {
        conn_set_state(f, c, CONN_FLUSH);
        if (conn_watch(f, c, WATCH_OUT) != 0) {
            conn_close(f, c);
            return;
        }
        conn_flush(f, c);
    } else if (c->close) {
        conn_end(f, c);
    } else {
        conn_next(c);
        if (c->in != NULL && c->in->len > 0) {
            c->read_dry = false;
            conn_set_state(f, c, CONN_AGAIN); /* after those that wait already */
            return;
        }
        buffer_drop(f, c);
        conn_set_state(f, c, c->skips ? CONN_REST : CONN_IDLE);
        if (pending || c->hup || c->eof || !c->read_dry)
            conn_readable(f, c);
    }
}

/* -------------------------------------------------------------------- deadlines */

void conn_expire(front *f)
{
    front_conn *c;

    for (int s = CONN_SILENT; s <= CONN_IDLE; s++)
        while ((c = f->table.waiting[s].first) != NULL && c->deadline <= f->now) {
            if (io_has_bytes(c->fd)) /* a request has just arrived; a FIN now would lose it */
                conn_readable(f, c);
            else {
                c->was_idle = true;
                conn_linger(f, c);
            }
        }
    for (int s = CONN_HEAD; s <= CONN_OVERFLOW; s++)
        while ((c = f->table.waiting[s].first) != NULL && c->deadline <= f->now) {
            count_add(&f->count.timeouts, 1);
            if (c->in == NULL)
                conn_close(f, c);
            else
                conn_refuse(f, c, 408, "the request did not arrive in time\n");
        }
    while ((c = f->table.waiting[CONN_BODY].first) != NULL && c->deadline <= f->now) {
        if (body_keeps_up(f, c)) {
            conn_set_state(f, c, CONN_BODY);
            continue;
        }
        conn_refuse_for(f, c, FRONT_E_LATE);
    }
    while ((c = f->table.waiting[CONN_GATHER].first) != NULL && c->deadline <= f->now)
        conn_gathered(f, c);
    while ((c = f->table.waiting[CONN_HELD].first) != NULL && c->deadline <= f->now) {
        count_add(&f->count.timeouts, 1);
        conn_refuse(f, c, 503, handoff_overdue_text(f));
    }
    while ((c = f->table.waiting[CONN_FLUSH].first) != NULL && c->deadline <= f->now) {
        size_t done = c->out != NULL ? c->out_pos : (size_t)c->file_pos;
        if (pace_is_kept(f, done - c->out_mark, f->limits.write_timeout)) {
            c->out_mark = done;
            conn_set_state(f, c, CONN_FLUSH);
            continue;
        }
        count_add(&f->count.timeouts, 1);
        conn_close(f, c);
    }
    while ((c = f->table.waiting[CONN_REST].first) != NULL && c->deadline <= f->now) {
        if (atomic_load(&f->stage) < FRONT_CLOSING && body_keeps_up(f, c))
            conn_set_state(f, c, CONN_REST);
        else
            conn_linger(f, c);
    }
    while ((c = f->table.waiting[CONN_LINGER].first) != NULL && c->deadline <= f->now)
        conn_close(f, c);
}

void conn_extend(front *f, int64_t gap)
{
    for (int s = CONN_SILENT; s < CONN_AGAIN; s++) /* all of a list by the same amount, which preserves the order */
        for (front_conn *c = f->table.waiting[s].first; c != NULL; c = c->next)
            c->deadline += gap;
}

void conn_hasten(front *f, enum conn_state state, int64_t most)
{
    if (most > f->table.timeout[state])
        most = f->table.timeout[state];
    f->table.timeout[state] = most;
    for (front_conn *c = f->table.waiting[state].first; c != NULL; c = c->next)
        if (c->deadline > f->now + most)
            c->deadline = f->now + most;
}

uint64_t conn_lost(const front *f)
{
    uint64_t lost = f->table.n_spooling;

    for (int s = CONN_BODY; s <= CONN_HELD; s++)
        for (front_conn *c = f->table.waiting[s].first; c != NULL; c = c->next)
            lost++;
    for (front_conn *c = f->table.waiting[CONN_FLUSH].first; c != NULL; c = c->next)
        lost += c->owed;
    for (front_conn *c = f->table.waiting[CONN_AGAIN].first; c != NULL; c = c->next)
        lost += c->owed;
    return lost;
}
