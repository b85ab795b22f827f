/* front.c - the loop of front.h.  It dispatches to conn.c; exchange.c has the functions for workers. */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS      64    /* per turn: a worker waits for at most this many to be read */
#define ACCEPTS     64    /* per turn */
#define ACCEPT_ROW  16    /* turns with connections to accept, after which a turn accepts twice as many */
#define EAGER       16    /* connections to look for a request at once, after one whose request was there */
#define OVERFLOW    128   /* connections beyond the limit: probes get their page, other requests 503 */
#define SECOND      1000000000LL
#define MILLISECOND 1000000LL
#define LAST_SECOND SECOND
#define DISTANCES   1000 /* connections whose round trip is measured at the end */
#define OVERFLOW_TIMEOUT SECOND
#define GATHER SECOND /* time limit for a body to gather in its socket */
#define RETRY_ACCEPT (100 * MILLISECOND)
#define NAP MILLISECOND /* longest sleep of the thread in front_run() while nobody leads; a probe may wait this long */
#define LATE NAP   /* a nap that takes this much longer was late */
#define STRAIN 250 /* added for a late nap; each other nap subtracts 1 */
#define MAX_STRAIN (4 * STRAIN)
#define WATCH SECOND /* longest wait if pages expire, as a longer one could not be told from a freeze */
#define HOLD (20 * MILLISECOND) /* longest wait of a held body after a worker has finished reading another one */
#define PAUSE (100 * MILLISECOND) /* after this long without work, the load may have changed */
#define MIN_QUIET (5 * MILLISECOND) /* time for handshakes under way before the listener closes, or as */
#define MAX_QUIET (500 * MILLISECOND) /* long as two round trips to the most distant client */

enum { LISTENER = 0xffffffff, WAKE = 0xfffffffe, SIGNALS = 0xfffffffd };

static void on_accept(front *f, int n, bool rests);
static void on_signal(front *f);
static void take_pages(front *f);
static void take_back(front *f);
static void hand_over(front *f, bool taking);
static void expire(front *f);
static void change_stage(front *f);
static void close_listener(front *f);
static void stop_workers(front *f);
static void give_up(front *f);
static void on_gap(front *f, int64_t gap);

/* ---------------------------------------------------------------- the loop */

int front_turn(front *f, int timeout, bool taking)
{
    struct epoll_event events[EVENTS];
    int64_t due = timeout < 0 ? INT64_MAX : f->now + timeout * MILLISECOND;

    atomic_store_explicit(&f->due, due, memory_order_relaxed);
    int n = epoll_wait(f->epoll_fd, events, EVENTS, timeout);

    f->now = front_now();
    f->turn++;
    if (n == -1) {
        if (errno != EINTR)
            return f->error = -errno;
        n = 0;
    }
    if (f->now - FRONT_GAP > due)
        on_gap(f, f->now - due);
    take_pages(f);
    take_back(f);
    for (front_conn *c; f->n_spooling > 0 && (c = spool_finished(f)) != NULL;)
        conn_spooled(f, c);
    if (atomic_load_explicit(&f->n_held, memory_order_relaxed) > 0)
        conn_release(f);
    for (front_conn *c = f->waiting[CONN_AGAIN].first, *last = f->waiting[CONN_AGAIN].last, *next; c != NULL; c = next) {
        next = c == last ? NULL : c->next; /* connections after `last` were added in this turn */
        conn_readable(f, c);
    }
    for (int i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)events[i].data.u64, generation = (uint32_t)(events[i].data.u64 >> 32);
        if (slot == LISTENER)
            on_accept(f, n, timeout == 0);
        else if (slot == SIGNALS)
            on_signal(f);
        else if (slot == WAKE)
            (void)!read(f->wake_fd, &(uint64_t){0}, sizeof(uint64_t));
        else if (f->conns[slot].generation == generation)
            conn_event(f, &f->conns[slot], events[i].events);
    }
    expire(f);
    if (atomic_load(&f->wanted_stage) > atomic_load(&f->stage))
        change_stage(f);
    hand_over(f, taking);
    if (atomic_load(&f->stage) == FRONT_CLOSING && !f->listening && f->n_open == 0)
        atomic_store(&f->stage, FRONT_STOPPED);
    return FRONT_OK;
}

/* Whether short requests have been finished since the last look; then workers run the loop between two of them. */
static bool workers_lead(front *f)
{
    pthread_mutex_lock(&f->mutex);
    bool progress = f->n_finished != f->seen_finished && f->service_time < LONG_REQUEST;
    f->seen_finished = f->n_finished;
    pthread_mutex_unlock(&f->mutex);
    return progress;
}

/* Lets probes be answered while the application uses all CPU time: a thread with short slices runs soon after it wakes
 * (EEVDF; requests for slices exist since Linux 6.12).  100 us is the minimum.  This needs no privilege, gives no additional
 * CPU time, and has no effect on other kernels. */
static void want_short_slices(front *f, bool wanted)
{
    struct { /* sched_attr of <linux/sched/types.h>, which cannot be included beside <sched.h> */
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } own;

    if (f->short_slices == wanted)
        return;
    f->short_slices = wanted;
    if (syscall(SYS_sched_getattr, 0, &own, sizeof own, 0) == 0 && own.policy == SCHED_OTHER) {
        own.runtime = wanted ? 100000 : 0; /* 0: the default */
        syscall(SYS_sched_setattr, 0, &own, 0);
    }
}

/* Sleeps for a while without leading.  With short slices, the end of each nap interrupts a thread that may hold the
 * interpreter lock, and until it runs again all others wait for the lock.  (A one-row query with 32 connections on one core:
 * 1.3 calls of futex() per request -> 0.5.)  So short slices are turned off unless one nap in STRAIN is late without them. */
static void nap(front *f, int64_t length)
{
    int64_t begin = front_now();

    nanosleep(&(struct timespec){.tv_nsec = (long)length}, NULL);
    if (front_now() - begin > length + LATE)
        f->strain = f->strain < MAX_STRAIN ? f->strain + STRAIN : f->strain;
    else if (f->strain > 0)
        f->strain--;
    want_short_slices(f, f->strain > MAX_STRAIN / 2);
}

int front_run(front *f)
{
    bool napped = false; /* if so, events have probably arrived meanwhile */

    if (f->foreign)
        return FRONT_CLOSED;
    atomic_store(&f->has_run, true);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    pthread_mutex_lock(&f->lead); /* waits here while a worker leads */
    f->now = front_now();
    while (atomic_load(&f->stage) != FRONT_STOPPED && f->error == 0) {
        f->relaxed = workers_lead(f);
        int timeout = f->relaxed || napped ? 0 : front_timeout(f);
        if (timeout != 0)
            want_short_slices(f, true); /* the event that ends the wait must be handled at once */
        int64_t before = f->now;
        int rv = front_turn(f, timeout, false);
        if (f->now - before > PAUSE)
            f->strain = 0;
        int64_t length = f->relaxed ? NAP : f->backlog;
        napped = rv == FRONT_OK && length >= LONG_REQUEST;
        if (napped) {
            pthread_mutex_unlock(&f->lead);
            nap(f, length < NAP ? length : NAP);
            pthread_mutex_lock(&f->lead);
        }
    }
    int error = f->error;
    f->error = 0;
    atomic_store_explicit(&f->due, INT64_MAX, memory_order_relaxed);
    if (error == 0)
        stop_workers(f);
    pthread_mutex_unlock(&f->lead);
    return error != 0 ? error : FRONT_CLOSED;
}

/* Releases idle workers, and wakes those that read or write, which then find a closed connection. */
static void stop_workers(front *f)
{
    if (f->closed) /* front_run() may be called again */
        return;
    uint64_t lost = atomic_load(&f->n_worker);

    spool_stop(f);
    lost += f->n_spooling;
    for (int s = CONN_BODY; s <= CONN_HELD; s++)
        for (front_conn *c = f->waiting[s].first; c != NULL; c = c->next)
            lost++;
    for (front_conn *c = f->waiting[CONN_FLUSH].first; c != NULL; c = c->next)
        lost += c->owed;
    for (front_conn *c = f->waiting[CONN_AGAIN].first; c != NULL; c = c->next)
        lost += c->owed;
    pthread_mutex_lock(&f->mutex);
    f->closed = true;
    for (front_conn *c = f->returned.first; c != NULL; c = c->next)
        lost -= !c->owed; /* returned and counted since the loop's last look */
    count_add(&f->count.aborted, lost);
    while (f->idle_workers != NULL)
        rouse(pop_idle(f));
    for (front_conn *c = f->taken.first; c != NULL; c = c->next) {
        atomic_store(&c->gone, true);
        shutdown(c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&f->mutex);
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
    int rv = on ? watch_fd(f, f->listen_fd, LISTENER, EPOLLIN) : epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, f->listen_fd, NULL);
    if (rv == 0)
        f->listener_armed = on;
    return rv;
}

/* How long epoll may sleep, in milliseconds. */
int front_timeout(front *f)
{
    int64_t due = INT64_MAX, now;

    if (f->waiting[CONN_AGAIN].first != NULL || f->batch.first != NULL)
        return 0;
    for (int s = CONN_SILENT; s < CONN_AGAIN; s++)
        if (f->waiting[s].first != NULL && f->waiting[s].first->deadline < due)
            due = f->waiting[s].first->deadline;
    if (f->listener_retry != 0 && f->listener_retry < due)
        due = f->listener_retry;
    if (f->listener_closes != 0 && f->listener_closes < due)
        due = f->listener_closes;
    if (f->gives_up != 0 && f->gives_up < due)
        due = f->gives_up;
    if (atomic_load_explicit(&f->lease, memory_order_relaxed) != 0 && f->now + WATCH < due)
        due = f->now + WATCH;
    if (atomic_load_explicit(&f->n_worker, memory_order_relaxed) > 0) {
        /* Connections are returned without a ring, and their idle time starts when we look.  While requests wait although
         * workers sleep (hand_over() woke only one, expecting short requests), look again at once. */
        int64_t look = f->now + (atomic_load_explicit(&f->n_held, memory_order_relaxed) > 0 ? HOLD : SECOND);
        pthread_mutex_lock(&f->mutex);
        if (f->ready.first != NULL) {
            if (f->n_idle_workers > 0)
                look = f->now + MILLISECOND;
            if (f->ready.first->deadline < due)
                due = f->ready.first->deadline;
        }
        for (front_conn *c = f->limits.request_timeout != 0 ? f->taken.first : NULL; c != NULL; c = c->next)
            if (!c->late) {
                if (c->deadline < look)
                    look = c->deadline > f->now + MILLISECOND ? c->deadline : f->now + MILLISECOND;
                break;
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

/* -------------------------------------------------------------------- freezes */

/* Liveness expires later by the time of the freeze, up to the duration of its last renewal. */
static void move_liveness(front *f, int64_t gap)
{
    int64_t former = atomic_load(&f->expires[0]), wanted, from, most;

    do {
        if (former == 0)
            return;
        from = former > f->now ? former : f->now;
        most = from + atomic_load(&f->lease) - atomic_load(&f->moved);
        wanted = former + gap < most ? former + gap : most;
        if (wanted <= from)
            return;
    } while (!atomic_compare_exchange_strong(&f->expires[0], &former, wanted)); /* repeat if it has just been renewed */
    atomic_fetch_add(&f->moved, wanted - from);
}

static void on_gap(front *f, int64_t gap)
{
    atomic_fetch_add(&f->frozen, gap);
    move_liveness(f, gap);
    for (size_t slot = 1; slot < PAGES_SLOTS; slot++)
        if (atomic_load(&f->expires[slot]) > f->now)
            atomic_store(&f->expires[slot], f->now);
    for (int s = CONN_SILENT; s < CONN_AGAIN; s++) /* all of a list by the same amount, which preserves the order */
        for (front_conn *c = f->waiting[s].first; c != NULL; c = c->next)
            c->deadline += gap;
    pthread_mutex_lock(&f->mutex);
    for (front_conn *c = f->ready.first; c != NULL; c = c->next)
        c->deadline += gap;
    for (front_conn *c = f->taken.first; c != NULL; c = c->next)
        c->deadline += gap;
    pthread_mutex_unlock(&f->mutex);
    if (f->gives_up != 0)
        f->gives_up += gap;
    if (f->listener_closes != 0)
        f->listener_closes += gap;
}

/* ----------------------------------------------------------------- accepting */

/* Whether the peer is one of the trusted proxies. */
static bool is_proxy(const front *f, const union proxy_peer *peer)
{
    unsigned char address[16] = {[10] = 0xff, [11] = 0xff};

    if (peer->any.sa_family == AF_INET6)
        memcpy(address, &peer->v6.sin6_addr, 16);
    else if (peer->any.sa_family == AF_INET)
        memcpy(address + 12, &peer->v4.sin_addr, 4);
    else
        return false;
    for (unsigned i = 0; i < f->limits.n_proxies; i++) {
        const front_network *n = &f->limits.proxies[i];
        unsigned bytes = n->bits / 8, rest = n->bits % 8;
        if (memcmp(address, n->address, bytes) == 0 &&
            (rest == 0 || (address[bytes] ^ n->address[bytes]) >> (8 - rest) == 0))
            return true;
    }
    return false;
}

/* Records the longest round trip to a client, for stop_handshakes().  It uses the minimum of each connection, because others
 * include delayed acknowledgements. */
static void note_distance(front *f, int fd)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_min_rtt != UINT32_MAX &&
        info.tcpi_min_rtt * 1000LL > f->farthest)
        f->farthest = info.tcpi_min_rtt * 1000LL;
}

static void conn_start(front *f, int fd, const void *peer, size_t peer_len, bool reserve)
{
    front_conn *c = conn_new(f, fd);

    if (c == NULL) { /* even the overflow is full: close the oldest connection that has its response, or in the overflow */
        front_conn *oldest = f->waiting[CONN_LINGER].first;
        if (oldest == NULL)
            oldest = f->waiting[CONN_OVERFLOW].first;
        count_add(&f->count.shed, 1);
        if (oldest != NULL)
            conn_close(f, oldest);
        if ((c = conn_new(f, fd)) == NULL) {
            end_socket(fd, false);
            return;
        }
    }
    memcpy(&c->peer, peer, peer_len < sizeof c->peer ? peer_len : sizeof c->peer);
    if (atomic_load_explicit(&f->stage, memory_order_relaxed) == FRONT_TERMINATING)
        note_distance(f, fd);
    c->proxied = f->limits.n_proxies > 0 && is_proxy(f, &c->peer);
    c->reserve = reserve;
    if (reserve || f->n_open - f->n_overflow > f->limits.max_connections) {
        c->overflow = true;
        f->n_overflow++;
    }
    conn_set_state(f, c, c->overflow ? CONN_OVERFLOW : CONN_SILENT);
    count_add(&f->count.accepted, 1);
    /* The request may have arrived already; if it seldom has, looking only costs a system call. */
    if (reserve || f->eager > 0 || f->count.accepted % 16 == 0) {
        conn_readable(f, c);
        if (c->fd == fd && c->state == CONN_SILENT && c->in == NULL)
            f->eager -= f->eager > 0;
        else
            f->eager = EAGER;
    } else if (conn_watch(f, c, WATCH_IN) != FRONT_OK) {
        conn_close(f, c);
    }
}

static int accept_one(front *f, struct sockaddr_storage *peer, socklen_t *len)
{
    *len = sizeof *peer;
    return accept4(f->listen_fd, (struct sockaddr *)peer, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

/* The connection on the reserve descriptor had RETRY_ACCEPT to send its request; the next one may be a probe. */
static void free_reserve(front *f)
{
    for (front_conn *c = f->waiting[CONN_OVERFLOW].first; c != NULL; c = c->next)
        if (c->reserve) {
            conn_close(f, c);
            return;
        }
}

/* Accepts up to `max` connections.  Returns whether there may be more. */
static bool accept_some(front *f, int max)
{
    struct sockaddr_storage peer;
    socklen_t len;
    int fd;

    for (int i = 0; i < max; i++) {
        fd = accept_one(f, &peer, &len);
        if (fd != -1) {
            conn_start(f, fd, &peer, len, false);
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO || errno == EPERM)
            continue;
        if (errno == EAGAIN)
            return false;
        /* EMFILE, ENFILE, ENOBUFS, ENOMEM: no descriptor.  One is reserved for this case, so that a probe still gets its
         * response; until it is free again, or for a while, we stop listening instead of spinning. */
        count_add(&f->count.accept_errors, 1);
        if (f->reserve_fd == -1)
            free_reserve(f);
        if (f->reserve_fd != -1) {
            close(f->reserve_fd);
            f->reserve_fd = -1;
            fd = accept_one(f, &peer, &len);
            if (fd != -1)
                conn_start(f, fd, &peer, len, true);
            else
                f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            if (fd != -1 && f->reserve_fd != -1)
                continue; /* already served and closed */
        }
        listener_arm(f, false);
        f->listener_retry = f->now + RETRY_ACCEPT;
        return false;
    }
    return true;
}

/* An accept() that finds nothing has created a socket and a file before, which costs as much as three turns.  So a turn
 * accepts one connection, and twice as many after each row of turns in which the backlog did not run out; more if it matters
 * less, among `n` events or if the loop `rests` between turns. */
static void on_accept(front *f, int n, bool rests)
{
    int max = rests ? ACCEPTS : n / 4 > f->accepts ? n / 4 : f->accepts;

    f->accept_row = f->turn == f->accept_turn + 1 ? f->accept_row + 1 : 0;
    f->accept_turn = f->turn;
    if (!accept_some(f, max)) {
        f->accepts = 1;
        f->accept_row = 0;
    } else if (f->accept_row == ACCEPT_ROW) {
        f->accepts = f->accepts < ACCEPTS ? 2 * f->accepts : ACCEPTS;
        f->accept_row = 0;
    }
}

/* ------------------------------------------------------------ workers, and back */

static void take_pages(front *f)
{
    pages *table = atomic_exchange(&f->incoming, NULL);
    if (table != NULL) {
        pages_free(f->pages);
        f->pages = table;
    }
}

/* The loop owns the connection again. */
static void from_worker(front *f, front_conn *c)
{
    atomic_fetch_sub_explicit(&f->n_worker, 1, memory_order_relaxed);
    f->n_unread -= c->unread;
    c->unread = false;
    conn_body_drop(f, c);
}

/* Connections that workers have returned. */
static void take_back(front *f)
{
    pthread_mutex_lock(&f->mutex);
    front_conn *c = f->returned.first, *next;
    f->returned.first = f->returned.last = NULL;
    pthread_mutex_unlock(&f->mutex);

    for (; c != NULL; c = next) {
        next = c->next;
        from_worker(f, c);
        bool pending = c->pending;
        c->pending = false;
        if (c->fd == -1) {
            conn_close(f, c);
        } else if (c->out != NULL || c->file != -1) {
            conn_set_state(f, c, CONN_FLUSH);
            if (conn_watch(f, c, WATCH_OUT) != 0) {
                conn_close(f, c);
                continue;
            }
            conn_flush(f, c);
        } else if (c->close) {
            conn_end(f, c);
        } else {
            conn_next(c);
            if (c->in != NULL && c->in->len > 0) {
                c->drained = false;
                conn_set_state(f, c, CONN_AGAIN); /* after those that wait already */
                continue;
            }
            buffer_drop(f, c);
            conn_set_state(f, c, CONN_IDLE);
            if (pending || c->hup || c->eof || !c->drained)
                conn_readable(f, c);
        }
    }
}

/* Hands the requests of this turn to the workers.  One thread serves short requests faster than several that pass the
 * interpreter lock around.  So no worker is woken if the leader will take a request itself (`taking`), if a woken worker is
 * about to run, or if a worker is busy and makes progress.  When requests are long, workers wake each other (front_take), and
 * front_timeout() handles the rest. */
static void hand_over(front *f, bool taking)
{
    front_conn *refused = NULL, *c;
    waiter *next = NULL;

    pthread_mutex_lock(&f->mutex);
    bool some = f->batch.first != NULL;
    while ((c = f->batch.first) != NULL) {
        list_remove(&f->batch, c);
        if (f->n_ready >= f->limits.max_queue) {
            c->next = refused;
            refused = c;
            continue;
        }
        c->with_worker = c->queued = true;
        c->thread = 0;
        c->deadline = f->now + f->limits.queue_timeout;
        list_push(&f->ready, c);
        f->n_ready++;
    }
    if (f->ready.first != NULL && f->n_idle_workers > 0 && !taking && (more_do_more(f) || !f->relaxed || f->n_taken == 0) &&
        (f->n_woken == 0 || f->now - f->ready.first->arrived > MILLISECOND))
        next = pop_idle(f);
    bool returned = f->returned.first != NULL;
    /* A request that arrives while all workers are busy and others wait, only waits in the queue. */
    f->backlog = 0;
    if (some && f->n_idle_workers == 0 && f->n_taken > 0)
        f->backlog = f->n_ready * f->service_time / f->n_taken / 2;
    pthread_mutex_unlock(&f->mutex);
    rouse(next);

    while ((c = refused) != NULL) {
        refused = c->next;
        c->next = NULL;
        from_worker(f, c);
        count_add(&f->count.shed, 1);
        conn_refuse(f, c, 503, "too many requests waiting\n");
    }
    if (returned) /* an edge may have been recorded for one of them after the worker had looked */
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
        from_worker(f, c);
        count_add(&f->count.timeouts, 1);
        conn_refuse(f, c, 503, "no worker became free in time\n");
    }
}

/* Sends RST at once: connect() to no address does (connect(2)).  By its number, as ThreadSanitizer takes the function for the
 * creation of the descriptor, and each later use in another thread for a race. */
static int reset(int fd)
{
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};

    return (int)syscall(SYS_connect, fd, &nobody, sizeof nobody);
}

/* Requests that have taken too long.  They are in the order in which workers took them. */
static void expire_requests(front *f)
{
    pthread_mutex_lock(&f->mutex);
    for (front_conn *c = f->taken.first; c != NULL && (c->late || c->deadline <= f->now); c = c->next) {
        int none = ANSWER_NONE, begun = ANSWER_BEGUN;
        if (c->late)
            continue;
        if (atomic_compare_exchange_strong(&c->answer, &none, ANSWER_504)) {
            conn_answer_late(f, c);
        } else if (atomic_compare_exchange_strong(&c->answer, &begun, ANSWER_CUT)) {
            reset(c->fd); /* a FIN could look like the end of the response */
            atomic_store(&c->gone, true);
        } else {
            continue; /* just finished, or sending 100 (Continue); the next turn handles it */
        }
        c->late = true;
        f->n_late++;
        count_add(&f->count.request_timeouts, 1);
        atomic_store(&c->interrupted, true);
    }
    pthread_mutex_unlock(&f->mutex);
}

static void expire(front *f)
{
    front_conn *c;

    for (int s = CONN_SILENT; s <= CONN_IDLE; s++)
        while ((c = f->waiting[s].first) != NULL && c->deadline <= f->now) {
            char byte;
            if (recv(c->fd, &byte, 1, MSG_PEEK) == 1) /* a request has just arrived; a FIN now would lose it */
                conn_readable(f, c);
            else
                conn_linger(f, c);
        }
    for (int s = CONN_HEAD; s <= CONN_OVERFLOW; s++)
        while ((c = f->waiting[s].first) != NULL && c->deadline <= f->now) {
            count_add(&f->count.timeouts, 1);
            if (c->in == NULL)
                conn_close(f, c);
            else
                conn_refuse(f, c, 408, "the request did not arrive in time\n");
        }
    while ((c = f->waiting[CONN_BODY].first) != NULL && c->deadline <= f->now) {
        if (conn_keeps_up(f, c)) {
            conn_set_state(f, c, CONN_BODY);
            continue;
        }
        conn_refuse_for(f, c, FRONT_E_LATE);
    }
    while ((c = f->waiting[CONN_GATHER].first) != NULL && c->deadline <= f->now)
        conn_gathered(f, c);
    while ((c = f->waiting[CONN_HELD].first) != NULL && c->deadline <= f->now) {
        count_add(&f->count.timeouts, 1);
        conn_refuse(f, c, 503, "no worker became free in time\n");
    }
    while ((c = f->waiting[CONN_FLUSH].first) != NULL && c->deadline <= f->now) {
        size_t done = c->out != NULL ? c->out_pos : (size_t)c->file_pos;
        uint64_t wanted = (uint64_t)(f->limits.write_timeout / MILLISECOND) * f->limits.min_body_rate / 1000;
        if (done - c->out_mark > wanted) {
            c->out_mark = done;
            conn_set_state(f, c, CONN_FLUSH);
            continue;
        }
        count_add(&f->count.timeouts, 1);
        conn_close(f, c);
    }
    while ((c = f->waiting[CONN_LINGER].first) != NULL && c->deadline <= f->now)
        conn_close(f, c);
    expire_queue(f);
    if (f->limits.request_timeout != 0)
        expire_requests(f);
    if (f->listener_retry != 0 && f->listener_retry <= f->now) {
        f->listener_retry = 0;
        if (f->reserve_fd == -1)
            f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (listener_arm(f, true) != 0)
            f->listener_retry = f->now + RETRY_ACCEPT;
    }
    if (f->gives_up != 0 && f->gives_up <= f->now)
        give_up(f);
    if (f->listener_closes != 0 && f->listener_closes <= f->now)
        close_listener(f);
}

/* ------------------------------------------------------------------- shutdown */

/* The drain should have ended the process by now; the thread that runs it does not get the interpreter lock. */
static void give_up(front *f)
{
    front_last_words(f, "the drain has passed its deadline");
    front_say("stopped: %u aborted at the deadline\n", (unsigned)atomic_load(&f->n_worker));
    _exit(1);
}

static void on_signal(front *f)
{
    unsigned char signals[16];
    ssize_t n = read(f->signal_fd, signals, sizeof signals);

    if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR)) { /* its writer is gone, so it would be readable forever */
        epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, f->signal_fd, NULL);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (signals[i] > 63 || !(f->draining_signals >> signals[i] & 1))
            continue;
        front_advance(f, FRONT_TERMINATING);
        if (f->n_signals > 0 && f->now - f->last_signal < SECOND) /* supervisors send the same signal twice */
            continue;
        f->last_signal = f->now;
        f->n_signals++;
        if (f->n_signals == 1 && f->give_up != 0)
            f->gives_up = f->now + f->give_up;
        if (f->n_signals == 3) {
            front_say("pkg: third signal, leaving at once\n");
            _exit(1);
        }
    }
}

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62 /* Linux 5.1; include/uapi/asm-generic/socket.h */
#endif

/* Closing a listening socket resets connections that have not been accepted.  So new handshakes are stopped first: the
 * socket is bound to a network interface that does not exist, with the highest possible number.  From then on a SYN finds no
 * listener and is refused, as it would be by the closed socket a moment later, so its client has sent no data.  A handshake
 * under way is looked up by itself and not through the listener, and completes; its connection has the interface of its SYN:
 * any.  Since Linux 5.7 this needs no capability for a socket that is not bound to an interface.  (A filter that drops SYN
 * segments has the same effect, but hardened kernels refuse SO_ATTACH_FILTER without CAP_NET_ADMIN.)
 *
 * Handshakes under way get the time of two round trips to complete, the backlog is accepted, and the listener closes when no
 * connection has arrived for this time.  If the binding is refused (older kernels; systems that only resemble Linux),
 * a connection made between the last accept and the close is reset.  The same happens everywhere to a connection that is
 * represented by a SYN cookie, which the kernel does not know before its last segment arrives.  The kernel uses cookies in a
 * flood, while more handshakes are under way than the backlog holds, and if net.ipv4.tcp_syncookies is 2. */
static void stop_handshakes(front *f)
{
    int none = INT_MAX, bound = 0;

    /* Some systems accept an option that they do not know and ignore it. */
    if (setsockopt(f->listen_fd, SOL_SOCKET, SO_BINDTOIFINDEX, &none, sizeof none) == -1 ||
        getsockopt(f->listen_fd, SOL_SOCKET, SO_BINDTOIFINDEX, &bound, &(socklen_t){sizeof bound}) == -1)
        atomic_store(&f->not_bound, errno);
    else if (bound != none)
        atomic_store(&f->not_bound, EOPNOTSUPP);
    for (uint32_t i = 0, n = 0; i < f->n_used && n < DISTANCES; i++)
        if (f->conns[i].state != CONN_FREE && f->conns[i].state != CONN_WORKER) { /* not one that a worker owns */
            note_distance(f, f->conns[i].fd);
            n++;
        }
    f->quiet = 2 * f->farthest < MIN_QUIET ? MIN_QUIET : 2 * f->farthest > MAX_QUIET ? MAX_QUIET : 2 * f->farthest;
    f->closes_at_most = f->now + 2 * MAX_QUIET;
    f->seen_accepted = f->count.accepted;
    f->listener_closes = f->now + f->quiet;
}

static void close_listener(front *f)
{
    f->listener_closes = 0;
    while (accept_some(f, ACCEPTS))
        ;
    if (f->listener_retry != 0) { /* out of descriptors: waiting connections must not be reset for that */
        f->listener_closes = f->listener_retry;
        return;
    }
    if (f->seen_accepted != f->count.accepted && f->now < f->closes_at_most) { /* more connections may be under way */
        f->seen_accepted = f->count.accepted;
        f->listener_closes = f->now + f->quiet;
        return;
    }
    listener_arm(f, false);
    f->listening = false;
    shutdown(f->listen_fd, SHUT_RDWR); /* refuses connections from now on; its owner closes it */
}

int front_close_fault(const front *f)
{
    return atomic_load(&f->not_bound);
}

/* From now on a connection stays in this state for at most one more second. */
static void hasten(front *f, enum conn_state state)
{
    int64_t most = LAST_SECOND < f->timeout[state] ? LAST_SECOND : f->timeout[state];

    f->timeout[state] = most;
    for (front_conn *c = f->waiting[state].first; c != NULL; c = c->next)
        if (c->deadline > f->now + most)
            c->deadline = f->now + most;
}

static void change_stage(front *f)
{
    int wanted = atomic_load(&f->wanted_stage);

    if (wanted == FRONT_CLOSING) {
        stop_handshakes(f);
        hasten(f, CONN_SILENT);
        hasten(f, CONN_IDLE);
        hasten(f, CONN_LINGER);
    }
    atomic_store(&f->stage, wanted);
}

void front_ring(front *f)
{
    if (!f->foreign) /* the number may belong to another file by now */
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

/* ------------------------------------------------------------------------ forks */

static pthread_mutex_t open_mutex = PTHREAD_MUTEX_INITIALIZER; /* held during fork(): the child gets a consistent list */
static front *open_fronts;
static atomic_bool has_forked;

static void before_fork(void)
{
    pthread_mutex_lock(&open_mutex);
    atomic_store(&has_forked, open_fronts != NULL || atomic_load(&has_forked));
}

static void after_fork(void)
{
    pthread_mutex_unlock(&open_mutex);
}

/* Whether `fd` is one of the front's connections.  The table may contain one that another thread had just closed when the
 * process forked, and whose number has been reused; only the front's sockets have its port. */
static bool is_connection(const front *f, int fd)
{
    struct sockaddr_storage name;
    socklen_t len = sizeof name;

    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &len) == -1 || name.ss_family != f->name.ss_family)
        return false;
    if (name.ss_family == AF_INET)
        return ((struct sockaddr_in *)&name)->sin_port == ((const struct sockaddr_in *)&f->name)->sin_port;
    if (name.ss_family == AF_INET6)
        return ((struct sockaddr_in6 *)&name)->sin6_port == ((const struct sockaddr_in6 *)&f->name)->sin6_port;
    return memcmp(&name, &f->name, sizeof name) == 0;
}

/* Runs in the child, which has a single thread, and only uses calls that are allowed after fork() (signal-safety(7)). */
static void disown(front *f)
{
    f->foreign = true;
    for (int i = 0; i < 2; i++)
        close((int[]){f->epoll_fd, f->wake_fd}[i]);
    f->epoll_fd = f->wake_fd = -1;
    spool_disown(f);
    if (!atomic_load(&f->has_run)) /* there are no connections, and the child may serve on the socket itself */
        return;
    for (uint32_t i = 0; f->conns != NULL && i < f->n_used; i++) {
        front_conn *c = &f->conns[i];
        if (c->state != CONN_FREE && c->fd != -1 && is_connection(f, c->fd))
            close(c->fd);
        if (c->spooled != NULL && c->spooled->fd != -1)
            close(c->spooled->fd);
        c->fd = -1;
        atomic_store(&c->gone, true);
    }
    if (f->listening && atomic_load(&f->stage) != FRONT_STOPPED && is_connection(f, f->listen_fd)) {
        /* Its owner will close the number, which must not belong to another file by then. */
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null != -1) {
            dup3(null, f->listen_fd, O_CLOEXEC);
            close(null);
        }
    }
}

static void in_child(void)
{
    for (front *f = open_fronts; f != NULL; f = f->next_open)
        if (!f->foreign)
            disown(f);
    atomic_store(&has_forked, false);
    pthread_mutex_init(&open_mutex, NULL);
}

static int note_open(front *f)
{
    static bool is_watching; /* under open_mutex */
    int rv = 0;

    pthread_mutex_lock(&open_mutex);
    if (!is_watching && (rv = pthread_atfork(before_fork, after_fork, in_child)) == 0)
        is_watching = true;
    if (rv == 0) {
        f->next_open = open_fronts;
        open_fronts = f;
    }
    pthread_mutex_unlock(&open_mutex);
    return -rv;
}

static void note_closed(front *f)
{
    pthread_mutex_lock(&open_mutex);
    for (front **p = &open_fronts; *p != NULL; p = &(*p)->next_open)
        if (*p == f) {
            *p = f->next_open;
            break;
        }
    pthread_mutex_unlock(&open_mutex);
}

bool front_is_foreign(const front *f)
{
    return f->foreign;
}

/* A child may not have closed its copy yet, or may have been created in another way.  FIN and RST must not wait for it. */
void end_socket(int fd, bool by_reset)
{
    if (atomic_load_explicit(&has_forked, memory_order_relaxed)) {
        if (!by_reset || reset(fd) == -1)
            shutdown(fd, SHUT_RDWR);
    }
    close(fd);
}

/* ---------------------------------------------------------- settings, lifetime */

void front_give_up_after(front *f, int64_t nanoseconds)
{
    f->give_up = nanoseconds;
}

int front_watch_signals(front *f, int fd, uint64_t draining, int last_words_signal)
{
    f->signal_fd = fd;
    f->draining_signals = draining;
    f->last_words = last_words_signal;
    return watch_fd(f, fd, SIGNALS, EPOLLIN);
}

void front_publish(front *f, pages *table)
{
    pages_free(atomic_exchange(&f->incoming, table)); /* frees one that the loop has not fetched yet */
    front_ring(f);
}

void front_renew(front *f, unsigned slot, int64_t nanoseconds)
{
    int64_t now;

    if (slot >= PAGES_SLOTS)
        return;
    do { /* again, if this thread was frozen in between */
        now = front_now();
        atomic_store(&f->expires[slot], now + nanoseconds);
    } while (front_now() - now > FRONT_GAP);
    if (slot == 0) {
        atomic_store_explicit(&f->lease, nanoseconds, memory_order_relaxed);
        atomic_store_explicit(&f->moved, 0, memory_order_relaxed);
    }
}

int64_t front_frozen(const front *f)
{
    return atomic_load_explicit(&f->frozen, memory_order_relaxed);
}

int64_t front_clock(const front *f)
{
    int64_t frozen = atomic_load(&f->frozen), due = atomic_load(&f->due), now = front_now();

    return (due != INT64_MAX && now - FRONT_GAP > due ? due : now) - frozen;
}

int64_t front_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

/* The kernel limits SO_RCVLOWAT to half of the maximum size of a socket's buffer (net.ipv4.tcp_rmem). */
static size_t longest_gathering(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), most = INT_MAX;

    if (fd == -1)
        return 0;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most) == -1 ||
        getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &most, &(socklen_t){sizeof most}) == -1 || most == INT_MAX)
        most = 0;
    close(fd);
    return (size_t)most;
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
    f->timeout[CONN_SILENT] = f->timeout[CONN_IDLE] = limits->idle_timeout;
    f->timeout[CONN_HEAD] = limits->header_timeout;
    f->timeout[CONN_GATHER] = GATHER;
    f->timeout[CONN_OVERFLOW] = OVERFLOW_TIMEOUT;
    f->timeout[CONN_BODY] = f->timeout[CONN_HELD] = limits->body_timeout;
    f->timeout[CONN_FLUSH] = limits->write_timeout;
    f->timeout[CONN_LINGER] = limits->linger_timeout;
    f->accepts = 1;
    f->eager = EAGER;
    f->due = INT64_MAX;
    f->now = front_now();
    pthread_mutex_init(&f->lead, NULL);
    pthread_mutex_init(&f->mutex, NULL);
    pthread_mutex_init(&f->probers.mutex, NULL);
    f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    f->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (f->epoll_fd == -1 || f->wake_fd == -1 || f->reserve_fd == -1) {
        rv = -errno;
        front_close(f);
        return rv;
    }
    f->limits.body_spool = NULL;
    if (limits->body_spool != NULL && (f->limits.body_spool = strdup(limits->body_spool)) == NULL) {
        front_close(f);
        return -ENOMEM;
    }
    f->gather_size = longest_gathering();
    f->conns = calloc(f->n_slots, sizeof *f->conns);
    if (f->conns == NULL) {
        front_close(f);
        return -ENOMEM;
    }
    f->listening = true;
    if (getsockname(listen_fd, (struct sockaddr *)&f->name, &(socklen_t){sizeof f->name}) == -1)
        f->name.ss_family = AF_UNSPEC;
    if ((rv = note_open(f)) != 0 || (rv = listener_arm(f, true)) != 0 || (rv = watch_fd(f, f->wake_fd, WAKE, EPOLLIN)) != 0) {
        front_close(f);
        return rv;
    }
    *out = f;
    return FRONT_OK;
}

void front_close(front *f)
{
    note_closed(f);
    if (f->foreign || !spool_close(f)) /* other threads were using it at the fork, or one still is: its memory is not freed */
        return;
    for (uint32_t i = 0; i < f->n_used; i++) {
        front_conn *c = &f->conns[i];
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
    for (buffer *b = f->spare, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    free(f->conns);
    free((void *)(uintptr_t)f->limits.body_spool);
    pages_free(f->pages);
    pages_free(atomic_load(&f->incoming));
    for (size_t i = 0; i < 3; i++) {
        int fd = (int[]){f->epoll_fd, f->wake_fd, f->reserve_fd}[i];
        if (fd != -1)
            close(fd);
    }
    pthread_mutex_destroy(&f->lead);
    pthread_mutex_destroy(&f->mutex);
    pthread_mutex_destroy(&f->probers.mutex);
    free(f);
}
