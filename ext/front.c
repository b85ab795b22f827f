/* front.c - the loop of front.h.  Top-down: the loop reads first, then what it dispatches to. */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS      64    /* of one turn: a worker waits at most for so many to be read */
#define ACCEPTS     64    /* of one turn */
#define PIPELINE    16    /* requests of one connection in one turn, for fairness */
#define OVERFLOW    128   /* connections beyond the limit: probes are answered there, the rest gets 503 */
#define SPARES      256   /* buffers kept for reuse */
#define SECOND      1000000000LL
#define MILLISECOND 1000000LL
#define LAST_SECOND SECOND
#define OVERFLOW_TIMEOUT SECOND
#define RETRY_ACCEPT (100 * MILLISECOND)
#define QUIET_BACKLOG (20 * MILLISECOND) /* handshakes under way get this long to finish before the listener closes */

enum { LISTENER = 0xffffffff, WAKE = 0xfffffffe, SIGNALS = 0xfffffffd };

static void on_accept(front *f);
static void on_signal(front *f);
static void on_event(front *f, front_conn *c, uint32_t events);
static void on_readable(front *f, front_conn *c);
static void on_flush(front *f, front_conn *c);
static void on_linger(front *f, front_conn *c);
static void proceed(front *f, front_conn *c);
static void take_pages(front *f);
static void take_back(front *f);
static void hand_over(front *f);
static void expire(front *f);
static int next_timeout(front *f);
static void change_stage(front *f);
static void stop_workers(front *f);
static void conn_close(front *f, front_conn *c);
static void refuse(front *f, front_conn *c, unsigned status, const char *text);
static size_t buffer_max(const front *f, const front_conn *c);

/* ---------------------------------------------------------------- the loop */

int front_run(front *f, bool interruptible)
{
    struct epoll_event events[EVENTS];

    while (atomic_load(&f->stage) != FRONT_STOPPED) {
        int n = epoll_wait(f->epoll_fd, events, EVENTS, next_timeout(f));
        f->now = front_now();
        if (n == -1) {
            if (errno != EINTR)
                return -errno;
            if (interruptible)
                return FRONT_INTERRUPTED;
            n = 0;
        }
        take_pages(f);
        take_back(f);
        for (front_conn *c = f->waiting[CONN_AGAIN].first, *last = f->waiting[CONN_AGAIN].last, *next; c != NULL; c = next) {
            next = c == last ? NULL : c->next; /* who comes behind `last` does so in this turn */
            on_readable(f, c);
        }
        for (int i = 0; i < n; i++) {
            uint32_t slot = (uint32_t)events[i].data.u64, generation = (uint32_t)(events[i].data.u64 >> 32);
            if (slot == LISTENER)
                on_accept(f);
            else if (slot == SIGNALS)
                on_signal(f);
            else if (slot == WAKE)
                (void)!read(f->wake_fd, &(uint64_t){0}, sizeof(uint64_t));
            else if (f->conns[slot].generation == generation)
                on_event(f, &f->conns[slot], events[i].events);
        }
        expire(f);
        if (atomic_load(&f->wanted_stage) > atomic_load(&f->stage))
            change_stage(f);
        hand_over(f);
        if (atomic_load(&f->stage) == FRONT_CLOSING && !f->listening && f->n_open == 0)
            atomic_store(&f->stage, FRONT_STOPPED);
    }
    stop_workers(f);
    return FRONT_CLOSED;
}

/* Lets idle workers go, and wakes those in the middle of a read or a write up to a closed connection. */
static void stop_workers(front *f)
{
    uint64_t lost = atomic_load(&f->n_worker);

    for (front_conn *c = f->waiting[CONN_BODY].first; c != NULL; c = c->next)
        lost++;
    for (front_conn *c = f->waiting[CONN_FLUSH].first; c != NULL; c = c->next)
        lost++;
    count_add(&f->count.aborted, lost);
    pthread_mutex_lock(&f->mutex);
    f->closed = true;
    while (f->idle_workers != NULL)
        wake_one(f);
    for (front_conn *c = f->taken.first; c != NULL; c = c->next) {
        atomic_store(&c->gone, true);
        shutdown(c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&f->mutex);
}

static uint64_t event_id(const front *f, const front_conn *c)
{
    return (uint64_t)c->generation << 32 | (uint32_t)(c - f->conns);
}

static int watch_fd(front *f, int fd, uint64_t id, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.u64 = id};
    return epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == -1 ? -errno : 0;
}

static int listener_arm(front *f, bool on)
{
    if (f->listener_armed == on || !f->listening)
        return 0;
    f->listener_armed = on;
    if (on)
        return watch_fd(f, f->listen_fd, LISTENER, EPOLLIN);
    return epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, f->listen_fd, NULL);
}

/* How long epoll may sleep, in milliseconds. */
static int next_timeout(front *f)
{
    int64_t due = INT64_MAX, now;

    if (f->waiting[CONN_AGAIN].first != NULL)
        return 0;
    for (int s = CONN_IDLE; s < CONN_AGAIN; s++)
        if (f->waiting[s].first != NULL && f->waiting[s].first->deadline < due)
            due = f->waiting[s].first->deadline;
    if (f->listener_retry != 0 && f->listener_retry < due)
        due = f->listener_retry;
    if (f->listener_closes != 0 && f->listener_closes < due)
        due = f->listener_closes;
    if (atomic_load_explicit(&f->n_worker, memory_order_relaxed) > 0) {
        /* Connections come back without a ring; their idle time starts when we look.  And while requests wait
         * although workers sleep (hand_over() woke one only, expecting short requests), look again at once. */
        int64_t look = f->now + SECOND;
        pthread_mutex_lock(&f->mutex);
        if (f->ready.first != NULL) {
            if (f->n_idle_workers > 0)
                look = f->now + MILLISECOND;
            if (f->ready.first->deadline < due)
                due = f->ready.first->deadline;
        }
        pthread_mutex_unlock(&f->mutex);
        if (look < due)
            due = look;
    }
    if (due == INT64_MAX)
        return -1;
    now = front_now();
    return due <= now ? 0 : (int)((due - now + MILLISECOND - 1) / MILLISECOND);
}

/* ------------------------------------------------------------- lists, slots */

static void set_state(front *f, front_conn *c, enum conn_state state)
{
    if (c->state != CONN_WORKER && c->state != CONN_FREE)
        list_remove(&f->waiting[c->state], c);
    c->state = state;
    if (state != CONN_WORKER && state != CONN_FREE) {
        c->deadline = f->now + f->timeout[state];
        list_push(&f->waiting[state], c);
    }
}

static front_conn *conn_new(front *f, int fd)
{
    front_conn *c = f->free;

    if (c != NULL) {
        f->free = c->next;
    } else {
        if (f->n_used == f->n_slots)
            return NULL;
        c = &f->conns[f->n_used++]; /* first use: the page is touched only now */
    }
    uint32_t generation = c->generation;
    memset(c, 0, sizeof *c);
    c->generation = generation;
    c->fd = fd;
    c->file = -1;
    f->n_open++;
    return c;
}

static void buffer_drop(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (b == NULL)
        return;
    c->in = NULL;
    if (b->cap > BUFFER_SIZE) {
        atomic_fetch_sub(&f->buffered, b->cap - BUFFER_SIZE);
        free(b);
    } else if (f->n_spare < SPARES) {
        b->next = f->spare;
        f->spare = b;
        f->n_spare++;
    } else {
        free(b);
    }
}

static void out_drop(front *f, front_conn *c)
{
    if (c->out != NULL) {
        atomic_fetch_sub(&f->buffered, c->out_len);
        free(c->out);
        c->out = NULL;
    }
    if (c->file != -1) {
        close(c->file);
        c->file = -1;
    }
}

/* The one place where a connection ends. */
static void conn_close(front *f, front_conn *c)
{
    set_state(f, c, CONN_FREE);
    if (c->fd != -1)
        close(c->fd);
    c->fd = -1;
    buffer_drop(f, c);
    out_drop(f, c);
    if (c->overflow)
        f->n_overflow--;
    if (c->reserve && f->reserve_fd == -1)
        f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    c->generation++;
    c->prev = NULL;
    c->next = f->free;
    f->free = c;
    f->n_open--;
}

/* Says FIN, then reads on: closing with unread bytes would make the kernel send a reset, which can take the
 * response away from the client before it has read it (RFC 9112 9.6). */
static void conn_linger(front *f, front_conn *c)
{
    out_drop(f, c);
    buffer_drop(f, c);
    shutdown(c->fd, SHUT_WR);
    if (c->eof || (!c->watched && watch_fd(f, c->fd, event_id(f, c), EPOLLIN | EPOLLRDHUP | EPOLLET) != 0)) {
        conn_close(f, c);
        return;
    }
    c->watched = true;
    set_state(f, c, CONN_LINGER);
    on_linger(f, c);
}

/* ----------------------------------------------------------------- accepting */

static void conn_start(front *f, int fd, const void *peer, size_t peer_len, bool reserve)
{
    front_conn *c = conn_new(f, fd);

    if (c == NULL) { /* even the overflow is full: the oldest there has had its chance */
        front_conn *oldest = f->waiting[CONN_OVERFLOW].first;
        if (oldest == NULL)
            oldest = f->waiting[CONN_LINGER].first;
        count_add(&f->count.shed, 1);
        if (oldest != NULL)
            conn_close(f, oldest);
        if ((c = conn_new(f, fd)) == NULL) {
            close(fd);
            return;
        }
    }
    memcpy(&c->peer, peer, peer_len < sizeof c->peer ? peer_len : sizeof c->peer);
    c->reserve = reserve;
    if (reserve || f->n_open - f->n_overflow > f->limits.max_connections) {
        c->overflow = true;
        f->n_overflow++;
    }
    set_state(f, c, c->overflow ? CONN_OVERFLOW : CONN_IDLE);
    count_add(&f->count.accepted, 1);
    on_readable(f, c); /* the request is often there already */
}

static int accept_one(front *f, struct sockaddr_storage *peer, socklen_t *len)
{
    *len = sizeof *peer;
    return accept4(f->listen_fd, (struct sockaddr *)peer, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

static void on_accept(front *f)
{
    struct sockaddr_storage peer;
    socklen_t len;
    int fd;

    for (int i = 0; i < ACCEPTS; i++) {
        fd = accept_one(f, &peer, &len);
        if (fd != -1) {
            conn_start(f, fd, &peer, len, false);
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO || errno == EPERM)
            continue;
        if (errno == EAGAIN)
            return;
        /* EMFILE, ENFILE, ENOBUFS, ENOMEM: no descriptor.  One is kept back for this moment, so that a probe
         * still gets its answer; until it is free again, or for a while, we do not listen instead of spinning. */
        count_add(&f->count.accept_errors, 1);
        if (f->reserve_fd != -1) {
            close(f->reserve_fd);
            f->reserve_fd = -1;
            fd = accept_one(f, &peer, &len);
            if (fd != -1)
                conn_start(f, fd, &peer, len, true);
            else
                f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            if (fd != -1 && f->reserve_fd != -1)
                continue; /* answered and closed already */
        }
        listener_arm(f, false);
        f->listener_retry = f->now + RETRY_ACCEPT;
        return;
    }
}

/* ------------------------------------------------------------------- reading */

static void on_event(front *f, front_conn *c, uint32_t events)
{
    if (events & (EPOLLHUP | EPOLLERR))
        atomic_store_explicit(&c->gone, true, memory_order_relaxed);
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        c->hup = true; /* no further edge will come for the end of the stream */
    switch (c->state) {
    case CONN_WORKER:
        pthread_mutex_lock(&f->mutex);
        c->pending = true; /* front_finish() rings, or take_back() at the end of this turn finds it */
        pthread_mutex_unlock(&f->mutex);
        break;
    case CONN_IDLE:
    case CONN_HEAD:
    case CONN_OVERFLOW:
    case CONN_BODY:
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            on_readable(f, c);
        break;
    case CONN_FLUSH:
        if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            on_flush(f, c);
        break;
    case CONN_LINGER:
        on_linger(f, c);
        break;
    case CONN_AGAIN: /* will be read in the next turn anyway */
    case CONN_FREE:
    case CONN_STATES:
        break;
    }
}

static buffer *buffer_new(front *f)
{
    buffer *b = f->spare;

    if (b != NULL) {
        f->spare = b->next;
        f->n_spare--;
    } else if ((b = malloc(sizeof *b + BUFFER_SIZE)) == NULL) {
        return NULL;
    }
    b->cap = BUFFER_SIZE;
    b->len = b->head_len = b->body_len = b->raw = 0;
    return b;
}

int buffer_grow(front *f, front_conn *c, size_t max)
{
    buffer *b = c->in;
    size_t cap = b->cap * 2 < max ? b->cap * 2 : max;

    if (cap <= b->cap)
        return -ENOBUFS;
    size_t more = cap - b->cap;
    if (atomic_fetch_add(&f->buffered, more) + more > f->limits.buffer_size) {
        atomic_fetch_sub(&f->buffered, more);
        return -ENOBUFS;
    }
    if ((b = realloc(b, sizeof *b + cap)) == NULL) {
        atomic_fetch_sub(&f->buffered, more);
        return -ENOMEM;
    }
    b->cap = cap;
    c->in = b;
    return FRONT_OK;
}

static void refuse(front *f, front_conn *c, unsigned status, const char *text);

/* Reads once, so that nobody holds up the others; a read that fills its buffer is followed by one in the next turn. */
static void on_readable(front *f, front_conn *c)
{
    buffer *b = c->in;

    if (b == NULL && (b = c->in = buffer_new(f)) == NULL) {
        conn_close(f, c);
        return;
    }
    if (b->len == b->cap && buffer_grow(f, c, buffer_max(f, c)) == FRONT_OK)
        b = c->in;
    c->drained = false;
    if (b->len < b->cap) {
        ssize_t n = recv(c->fd, b->data + b->len, b->cap - b->len, 0);
        if (n > 0) {
            count_add(&f->count.bytes_in, (uint64_t)n);
            c->drained = (size_t)n < b->cap - b->len && !c->hup; /* epoll(7): a short read has emptied the socket */
            b->len += (size_t)n;
        } else if (n == 0) {
            c->eof = true;
        } else if (errno == EAGAIN || errno == EINTR) {
            c->drained = true;
        } else {
            count_add(&f->count.resets, 1);
            conn_close(f, c);
            return;
        }
    }
    proceed(f, c);
}

/* Nothing more can be done with what has been read: wait for an edge, or for the next turn. */
static void want_more(front *f, front_conn *c, enum conn_state state)
{
    if (c->eof) { /* the rest will not come; a request cut short is not worth an answer (RFC 9112 8) */
        conn_close(f, c);
        return;
    }
    if (c->in != NULL && c->in->len == 0)
        buffer_drop(f, c);
    if (c->overflow && state != CONN_AGAIN)
        state = CONN_OVERFLOW;
    if (!c->watched) { /* reports what is already there */
        if (watch_fd(f, c->fd, event_id(f, c), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) != 0) {
            conn_close(f, c);
            return;
        }
        c->watched = true;
    } else if (!c->drained) {
        state = CONN_AGAIN;
    }
    if (c->state != state) /* a partial read does not extend the deadline */
        set_state(f, c, state);
}

/* ----------------------------------------------------- from bytes to requests */

static size_t body_room(const front *f, const front_conn *c)
{
    return c->in->head_len + f->limits.body_buffer_size;
}

static size_t buffer_max(const front *f, const front_conn *c)
{
    return c->in->head_len != 0 ? body_room(f, c) : f->limits.head.max_head_size;
}

/* Moves what follows the request just answered to the front of the buffer. */
static void next_request(front_conn *c)
{
    buffer *b = c->in;

    if (b == NULL)
        return;
    b->len -= b->raw;
    memmove(b->data, b->data + b->raw, b->len);
    b->head_len = b->body_len = b->raw = 0;
}

static void to_worker(front *f, front_conn *c)
{
    if (!c->close && !c->watched) {
        if (watch_fd(f, c->fd, event_id(f, c), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) != 0) {
            conn_close(f, c);
            return;
        }
        c->watched = true;
    }
    c->arrived = f->now;
    c->body_given = 0;
    count_add(&f->count.requests, 1);
    set_state(f, c, CONN_WORKER);
    atomic_fetch_add_explicit(&f->n_worker, 1, memory_order_relaxed);
    list_push(&f->batch, c);
}

static bool answer_page(front *f, front_conn *c, const http1_head *h);
static void conn_end(front *f, front_conn *c);

/* What to do with a complete head.  True: answered, go on with the next request. */
static bool on_head(front *f, front_conn *c)
{
    buffer *b = c->in;
    const http1_head *h = &b->head;
    bool has_body = h->chunked || h->content_length > 0;

    c->close = !h->keep_alive || c->overflow || atomic_load(&f->stage) >= FRONT_TERMINATING;
    c->linger = c->close && h->keep_alive;
    if (h->form == HTTP1_ASTERISK || pages_find(f->pages, b->data + h->path.pos, h->path.len) != NULL) {
        if (has_body) { /* not worth reading; the connection can't be used after it */
            c->close = c->linger = true;
            b->raw = b->len;
        }
        return answer_page(f, c, h);
    }
    if (h->bad_host) {
        refuse(f, c, 400, "invalid Host\n");
    } else if (h->method_id == HTTP1_CONNECT) {
        refuse(f, c, 501, "no tunnels here\n");
    } else if (h->content_length > f->limits.max_body_size) {
        refuse(f, c, 413, "body too large\n");
    } else if (c->overflow) {
        count_add(&f->count.shed, 1);
        refuse(f, c, 503, "too many connections\n");
    } else {
        c->chunked = h->chunked;
        c->body_left = h->content_length;
        c->body_read = c->body_mark = 0;
        c->complete = !has_body;
        c->expect = has_body && h->expect_continue && b->len == b->raw;
        if (h->chunked)
            http1_chunked_init(&c->decoder);
        if (c->complete || c->expect) { /* who expects 100 (Continue) waits for the application to want the body */
            to_worker(f, c);
            return false;
        }
        set_state(f, c, CONN_BODY);
        return true;
    }
    return false;
}

int body_decode(front *f, front_conn *c)
{
    buffer *b = c->in;
    size_t consumed = b->len - b->raw, produced = 0;

    if (c->chunked) {
        int rv = http1_chunked_decode(&c->decoder, b->data + b->raw, &consumed, b->data + b->head_len + b->body_len, &produced);
        if (rv < 0)
            return FRONT_E_CHUNK;
        c->complete = rv == 1;
    } else {
        if (consumed > c->body_left)
            consumed = (size_t)c->body_left;
        produced = consumed;
        c->body_left -= consumed;
        c->complete = c->body_left == 0;
    }
    b->raw += consumed;
    b->body_len += produced;
    c->body_read += produced;
    if (c->body_read > f->limits.max_body_size)
        return FRONT_E_TOO_LARGE;
    if (!c->complete) /* all was consumed: close the gap that framing has left */
        b->len = b->raw = b->head_len + b->body_len;
    return FRONT_OK;
}

static void on_body(front *f, front_conn *c)
{
    int rv = body_decode(f, c);

    if (rv == FRONT_E_CHUNK)
        refuse(f, c, 400, "malformed chunked body\n");
    else if (rv != FRONT_OK)
        refuse(f, c, 413, "body too large\n");
    else if (c->complete || c->in->len >= body_room(f, c))
        to_worker(f, c);
    else if (c->eof)
        refuse(f, c, 400, "body cut short\n");
    else if (c->in->len == c->in->cap && buffer_grow(f, c, body_room(f, c)) != FRONT_OK)
        to_worker(f, c); /* no room to collect more: the worker reads the rest */
    else
        want_more(f, c, CONN_BODY);
}

/* Carries on with the bytes of a connection until they run out, or somebody else has to act. */
static void proceed(front *f, front_conn *c)
{
    for (int i = 0; i < PIPELINE; i++) {
        buffer *b = c->in;
        if (b->head_len != 0) {
            on_body(f, c);
            return;
        }
        if (b->len == 0) {
            want_more(f, c, CONN_IDLE);
            return;
        }
        int n = http1_parse_head(b->data, b->len, b->raw, &f->limits.head, &b->head);
        if (n < 0) {
            count_add(&f->count.rejected, 1);
            char text[96];
            snprintf(text, sizeof text, "%s\n", http1_error_text(n));
            refuse(f, c, (unsigned)http1_error_status(n), text);
            return;
        }
        if (n == HTTP1_PARTIAL) {
            b->raw = b->len;
            if (b->len == b->cap && buffer_grow(f, c, f->limits.head.max_head_size) != FRONT_OK)
                refuse(f, c, 431, "request head too large\n");
            else
                want_more(f, c, CONN_HEAD);
            return;
        }
        b->head_len = b->raw = (size_t)n;
        if (!on_head(f, c))
            return;
    }
    c->drained = false;
    set_state(f, c, CONN_AGAIN);
}

/* ------------------------------------------------------------------ answering */

static const char *date_now(front *f)
{
    time_t second = time(NULL);

    if (second != f->date_second) {
        struct tm tm;
        f->date_second = second;
        gmtime_r(&second, &tm);
        strftime(f->date, sizeof f->date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    }
    return f->date;
}

/* Sends a short response; false if the connection is not ready for the next request (flushing, or at its end). */
static bool answer(front *f, front_conn *c, const char *bytes, size_t len)
{
    ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL);

    if (n == -1 && errno != EAGAIN && errno != EINTR) {
        count_add(&f->count.resets, 1);
        conn_close(f, c);
        return false;
    }
    size_t sent = n > 0 ? (size_t)n : 0;
    count_add(&f->count.bytes_out, sent);
    if (sent < len) { /* the client does not read: so we stop reading from it */
        if ((c->out = malloc(len - sent)) == NULL) {
            conn_close(f, c);
            return false;
        }
        c->out_len = len - sent;
        c->out_pos = c->out_mark = 0;
        memcpy(c->out, bytes + sent, c->out_len);
        atomic_fetch_add(&f->buffered, c->out_len);
        if (!c->watched && watch_fd(f, c->fd, event_id(f, c), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) != 0) {
            conn_close(f, c);
            return false;
        }
        c->watched = true;
        set_state(f, c, CONN_FLUSH);
        return false;
    }
    if (c->close) {
        conn_end(f, c);
        return false;
    }
    return true;
}

static bool contains(const char *text, size_t len, const char *word)
{
    return memmem(text, len, word, strlen(word)) != NULL;
}

static enum pages_format format_wanted(const buffer *b, const http1_head *h)
{
    const char *query = b->data + h->query.pos;

    if (contains(query, h->query.len, "format=json"))
        return PAGES_JSON;
    if (contains(query, h->query.len, "verbose"))
        return PAGES_VERBOSE;
    for (unsigned i = 0; i < h->n_headers; i++) {
        const http1_header *x = &h->headers[i];
        if (x->name.len == 6 && strncasecmp(b->data + x->name.pos, "accept", 6) == 0 &&
            (contains(b->data + x->value.pos, x->value.len, "application/health+json") ||
             contains(b->data + x->value.pos, x->value.len, "application/json")))
            return PAGES_JSON;
    }
    return PAGES_TEXT;
}

/* The process may be killed for the answer that follows: say first what it was doing. */
static void last_words(front *f)
{
    front_flight flights[64];
    size_t n = front_requests(f, flights, 64);

    dprintf(STDERR_FILENO, "liveness is failing: the interpreter shows no sign of life; %zu requests in flight\n", n);
    for (size_t i = 0; i < n; i++)
        dprintf(STDERR_FILENO, "  %s %s, %.3f s, thread %llu\n", flights[i].method, flights[i].target,
                (double)flights[i].age / 1e9, (unsigned long long)flights[i].thread);
    pthread_kill(pthread_self(), f->last_words);
}

static void take_pages(front *f)
{
    pages *table = atomic_exchange(&f->incoming, NULL);
    if (table != NULL) {
        pages_free(f->pages);
        f->pages = table;
    }
}

static const pages_answer *page_answer(front *f, const page *p, enum pages_format format)
{
    enum pages_set set = PAGES_FRESH;

    if (atomic_load(&f->stage) >= FRONT_TERMINATING && p->answers[PAGES_DRAINING][format].status != 0) {
        set = PAGES_DRAINING;
    } else if (f->now >= atomic_load_explicit(&f->expires[p->slot], memory_order_relaxed)) {
        set = PAGES_EXPIRED;
        count_add(&f->count.stale, 1);
        if (p->slot == 0 && f->last_words != 0 && !f->mourned) {
            f->mourned = true;
            last_words(f);
        }
    } else if (p->slot == 0) {
        f->mourned = false;
    }
    return &p->answers[set][format];
}

static bool answer_page(front *f, front_conn *c, const http1_head *h)
{
    static char empty[] = "Content-Length: 0\r\n", allow[] = "Allow: GET, HEAD, OPTIONS\r\nContent-Length: 0\r\n";
    static const pages_answer not_allowed = {405, sizeof allow - 1, 0, allow};
    static const pages_answer options = {200, sizeof empty - 1, 0, empty};
    static const pages_answer none = {503, sizeof empty - 1, 0, empty};
    buffer *b = c->in;
    const pages_answer *a;
    char out[PAGES_MAX_SIZE], extra[64] = "";

    if (h->form == HTTP1_ASTERISK) {
        a = &options;
    } else if (h->method_id != HTTP1_GET && h->method_id != HTTP1_HEAD && h->method_id != HTTP1_OPTIONS) {
        a = &not_allowed;
    } else {
        a = page_answer(f, pages_find(f->pages, b->data + h->path.pos, h->path.len), format_wanted(b, h));
        if (a->status == 0)
            a = &none;
    }
    if (h->method_id == HTTP1_OPTIONS)
        strcat(extra, "Allow: GET, HEAD, OPTIONS\r\n");
    if (c->close)
        strcat(extra, "Connection: close\r\n");
    else if (h->minor == 0)
        strcat(extra, "Connection: keep-alive\r\n");
    count_add(&f->count.probes, 1);
    size_t len = pages_render(a, date_now(f), extra, h->method_id == HTTP1_HEAD, out);
    next_request(c);
    return answer(f, c, out, len);
}

/* A terse error of our own; the connection ends with it. */
static void refuse(front *f, front_conn *c, unsigned status, const char *text)
{
    char out[512];
    int len = snprintf(out, sizeof out,
                       "HTTP/1.1 %u %s\r\nDate: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
                       "%sConnection: close\r\n\r\n%s",
                       status, pages_reason(status), date_now(f), strlen(text), status == 503 ? "Retry-After: 1\r\n" : "", text);
    c->close = c->linger = true;
    answer(f, c, out, (size_t)len);
}

/* The response is out and the connection is to be closed. */
static void conn_end(front *f, front_conn *c)
{
    if (c->eof || (!c->linger && (c->in == NULL || c->in->len == c->in->raw)))
        conn_close(f, c);
    else
        conn_linger(f, c);
}

static void on_flush(front *f, front_conn *c)
{
    while (c->out != NULL) {
        ssize_t n = send(c->fd, c->out + c->out_pos, c->out_len - c->out_pos, MSG_NOSIGNAL);
        if (n == -1) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            count_add(&f->count.resets, 1);
            conn_close(f, c);
            return;
        }
        count_add(&f->count.bytes_out, (uint64_t)n);
        c->out_pos += (size_t)n;
        if (c->out_pos == c->out_len) {
            atomic_fetch_sub(&f->buffered, c->out_len);
            free(c->out);
            c->out = NULL;
        }
    }
    while (c->file != -1) {
        ssize_t n = c->file_left == 0 ? 0 : sendfile(c->fd, c->file, &c->file_pos, c->file_left < 65536 ? (size_t)c->file_left : 65536);
        if (n == -1 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0 && c->file_left > 0) { /* an error, or the file has shrunk: what was announced can't be kept */
            conn_close(f, c);
            return;
        }
        count_add(&f->count.bytes_out, (uint64_t)n);
        c->file_left -= (uint64_t)n;
        if (c->file_left == 0)
            out_drop(f, c);
    }
    if (c->close) {
        conn_end(f, c);
        return;
    }
    next_request(c);
    c->drained = false;
    set_state(f, c, CONN_AGAIN);
}

static void on_linger(front *f, front_conn *c)
{
    char sink[16384];
    ssize_t n;

    for (int i = 0; i < 16; i++) {
        n = recv(c->fd, sink, sizeof sink, 0);
        if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR)) {
            conn_close(f, c);
            return;
        }
        if (n == -1)
            return;
    }
    /* Still sending: leave the rest to the kernel's buffer, whose filling up ends it, and to the deadline. */
}

/* ------------------------------------------------------------ workers, and back */

/* Connections that workers have given back. */
static void take_back(front *f)
{
    pthread_mutex_lock(&f->mutex);
    front_conn *c = f->returned.first, *next;
    f->returned.first = f->returned.last = NULL;
    pthread_mutex_unlock(&f->mutex);

    for (; c != NULL; c = next) {
        next = c->next;
        atomic_fetch_sub_explicit(&f->n_worker, 1, memory_order_relaxed);
        bool pending = c->pending;
        c->pending = false;
        if (c->fd == -1) {
            conn_close(f, c);
        } else if (c->out != NULL || c->file != -1) {
            set_state(f, c, CONN_FLUSH);
            if (!c->watched && watch_fd(f, c->fd, event_id(f, c), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) != 0) {
                conn_close(f, c);
                continue;
            }
            c->watched = true;
            on_flush(f, c);
        } else if (c->close) {
            conn_end(f, c);
        } else {
            next_request(c);
            if (c->in != NULL && c->in->len > 0) {
                c->drained = false;
                set_state(f, c, CONN_AGAIN); /* behind those who wait already */
                continue;
            }
            buffer_drop(f, c);
            set_state(f, c, CONN_IDLE);
            if (pending || c->hup || c->eof)
                on_readable(f, c);
        }
    }
}

/* Requests of this turn go to the workers.  One is woken, and none if one is on its way: short requests are served
 * faster by one thread than by several that pass the interpreter lock around.  Where requests take long, workers
 * wake each other (front_take), and next_timeout() looks after the rest. */
static void hand_over(front *f)
{
    front_conn *refused = NULL, *c;

    pthread_mutex_lock(&f->mutex);
    while ((c = f->batch.first) != NULL) {
        list_remove(&f->batch, c);
        if (f->n_ready >= f->limits.max_queue) {
            c->next = refused;
            refused = c;
            continue;
        }
        c->with_worker = c->queued = true;
        c->pending = false;
        c->thread = 0;
        c->deadline = f->now + f->limits.queue_timeout;
        list_push(&f->ready, c);
        f->n_ready++;
    }
    if (f->ready.first != NULL && f->n_idle_workers > 0 &&
        (f->n_woken == 0 || f->now - f->ready.first->arrived > MILLISECOND))
        wake_one(f);
    bool returned = f->returned.first != NULL;
    pthread_mutex_unlock(&f->mutex);

    while ((c = refused) != NULL) {
        refused = c->next;
        c->next = NULL;
        atomic_fetch_sub_explicit(&f->n_worker, 1, memory_order_relaxed);
        count_add(&f->count.shed, 1);
        refuse(f, c, 503, "too many requests waiting\n");
    }
    if (returned) /* an edge may have been noted for one of them after the worker had looked */
        take_back(f);
}

static void expire_queue(front *f)
{
    for (;;) {
        pthread_mutex_lock(&f->mutex);
        front_conn *c = f->ready.first;
        if (c == NULL || c->deadline > f->now) {
            pthread_mutex_unlock(&f->mutex);
            return;
        }
        list_remove(&f->ready, c);
        f->n_ready--;
        c->with_worker = c->queued = false;
        pthread_mutex_unlock(&f->mutex);
        atomic_fetch_sub_explicit(&f->n_worker, 1, memory_order_relaxed);
        count_add(&f->count.timeouts, 1);
        refuse(f, c, 503, "no worker became free in time\n");
    }
}

static void expire(front *f)
{
    front_conn *c;

    while ((c = f->waiting[CONN_IDLE].first) != NULL && c->deadline <= f->now)
        conn_linger(f, c);
    for (int s = CONN_HEAD; s <= CONN_OVERFLOW; s++)
        while ((c = f->waiting[s].first) != NULL && c->deadline <= f->now) {
            count_add(&f->count.timeouts, 1);
            if (c->in == NULL)
                conn_close(f, c);
            else
                refuse(f, c, 408, "the request did not arrive in time\n");
        }
    while ((c = f->waiting[CONN_BODY].first) != NULL && c->deadline <= f->now) {
        uint64_t wanted = (uint64_t)(f->limits.body_timeout / MILLISECOND) * f->limits.min_body_rate / 1000;
        if (c->body_read - c->body_mark > wanted) {
            c->body_mark = c->body_read;
            set_state(f, c, CONN_BODY);
            continue;
        }
        count_add(&f->count.timeouts, 1);
        refuse(f, c, 408, "the body did not arrive in time\n");
    }
    while ((c = f->waiting[CONN_FLUSH].first) != NULL && c->deadline <= f->now) {
        size_t done = c->out != NULL ? c->out_pos : (size_t)c->file_pos;
        uint64_t wanted = (uint64_t)(f->limits.write_timeout / MILLISECOND) * f->limits.min_body_rate / 1000;
        if (done - c->out_mark > wanted) {
            c->out_mark = done;
            set_state(f, c, CONN_FLUSH);
            continue;
        }
        count_add(&f->count.timeouts, 1);
        count_add(&f->count.aborted, 1);
        conn_close(f, c);
    }
    while ((c = f->waiting[CONN_LINGER].first) != NULL && c->deadline <= f->now)
        conn_close(f, c);
    expire_queue(f);
    if (f->listener_retry != 0 && f->listener_retry <= f->now) {
        f->listener_retry = 0;
        if (f->reserve_fd == -1)
            f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        listener_arm(f, true);
    }
    if (f->listener_closes != 0 && f->listener_closes <= f->now) {
        f->listener_closes = 0;
        on_accept(f);
        listener_arm(f, false);
        f->listening = false;
        shutdown(f->listen_fd, SHUT_RDWR); /* refuses from now on; its owner closes it */
    }
}

/* ------------------------------------------------------------------- shutdown */

static void on_signal(front *f)
{
    unsigned char signals[16];
    ssize_t n = read(f->signal_fd, signals, sizeof signals);

    for (ssize_t i = 0; i < n; i++)
        if (signals[i] == SIGTERM || signals[i] == SIGINT)
            front_advance(f, FRONT_TERMINATING);
}

/* Closing a listening socket resets connections that have not been accepted.  So new handshakes are stopped first, by
 * a filter that drops SYN segments (their clients try again, and are refused then, having sent nothing); those
 * under way get a moment to finish, what the backlog holds is accepted, and only then the listener closes. */
static void stop_handshakes(front *f)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 13),           /* TCP flags */
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x12),        /* SYN, ACK */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x02, 0, 1),  /* SYN alone */
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
    };
    struct sock_fprog filter = {.len = sizeof code / sizeof code[0], .filter = code};

    (void)setsockopt(f->listen_fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter);
    f->listener_closes = f->now + QUIET_BACKLOG;
}

static void change_stage(front *f)
{
    int wanted = atomic_load(&f->wanted_stage);

    if (wanted == FRONT_CLOSING) {
        stop_handshakes(f);
        f->timeout[CONN_IDLE] = LAST_SECOND < f->timeout[CONN_IDLE] ? LAST_SECOND : f->timeout[CONN_IDLE];
        for (front_conn *c = f->waiting[CONN_IDLE].first; c != NULL; c = c->next)
            if (c->deadline > f->now + f->timeout[CONN_IDLE])
                c->deadline = f->now + f->timeout[CONN_IDLE];
        f->timeout[CONN_LINGER] = LAST_SECOND < f->timeout[CONN_LINGER] ? LAST_SECOND : f->timeout[CONN_LINGER];
    }
    atomic_store(&f->stage, wanted);
}

void front_ring(front *f)
{
    (void)!write(f->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
}

void front_advance(front *f, enum front_stage stage)
{
    int now = atomic_load(&f->wanted_stage);

    while (now < (int)stage && !atomic_compare_exchange_weak(&f->wanted_stage, &now, (int)stage))
        ;
    front_ring(f);
}

enum front_stage front_stage_now(const front *f)
{
    int wanted = atomic_load(&f->wanted_stage), stage = atomic_load(&f->stage);
    return (enum front_stage)(wanted > stage ? wanted : stage);
}

/* ---------------------------------------------------------- settings, lifetime */

int front_watch_signals(front *f, int fd, int last_words_signal)
{
    f->signal_fd = fd;
    f->last_words = last_words_signal;
    return watch_fd(f, fd, SIGNALS, EPOLLIN);
}

void front_publish(front *f, pages *table)
{
    pages_free(atomic_exchange(&f->incoming, table)); /* one that the loop has not fetched yet, if any */
    front_ring(f);
}

void front_renew(front *f, unsigned slot, int64_t nanoseconds)
{
    if (slot < PAGES_SLOTS)
        atomic_store(&f->expires[slot], front_now() + nanoseconds);
}

int64_t front_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

int front_open(front **out, int listen_fd, const front_limits *limits)
{
    front *f = calloc(1, sizeof *f);
    int rv;

    if (f == NULL)
        return -ENOMEM;
    f->limits = *limits;
    f->listen_fd = listen_fd;
    f->signal_fd = -1;
    f->n_slots = limits->max_connections + OVERFLOW;
    f->timeout[CONN_IDLE] = limits->idle_timeout;
    f->timeout[CONN_HEAD] = limits->header_timeout;
    f->timeout[CONN_OVERFLOW] = OVERFLOW_TIMEOUT;
    f->timeout[CONN_BODY] = limits->body_timeout;
    f->timeout[CONN_FLUSH] = limits->write_timeout;
    f->timeout[CONN_LINGER] = limits->linger_timeout;
    f->now = front_now();
    pthread_mutex_init(&f->mutex, NULL);
    f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (f->epoll_fd == -1 || f->wake_fd == -1 || f->reserve_fd == -1) {
        rv = -errno;
        front_close(f);
        return rv;
    }
    f->conns = calloc(f->n_slots, sizeof *f->conns);
    if (f->conns == NULL) {
        front_close(f);
        return -ENOMEM;
    }
    f->listening = true;
    if ((rv = listener_arm(f, true)) != 0 || (rv = watch_fd(f, f->wake_fd, WAKE, EPOLLIN)) != 0) {
        front_close(f);
        return rv;
    }
    *out = f;
    return FRONT_OK;
}

void front_close(front *f)
{
    for (uint32_t i = 0; i < f->n_used; i++) {
        front_conn *c = &f->conns[i];
        if (c->state == CONN_FREE)
            continue;
        if (c->fd != -1)
            close(c->fd);
        if (c->file != -1)
            close(c->file);
        free(c->out);
        free(c->in);
    }
    for (buffer *b = f->spare, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    free(f->conns);
    pages_free(f->pages);
    pages_free(atomic_load(&f->incoming));
    for (size_t i = 0; i < 3; i++) {
        int fd = (int[]){f->epoll_fd, f->wake_fd, f->reserve_fd}[i];
        if (fd != -1)
            close(fd);
    }
    pthread_mutex_destroy(&f->mutex);
    free(f);
}
