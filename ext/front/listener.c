/* listener.c - see listener.h. */
#define _GNU_SOURCE
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "io.h"
#include "reserve.h"
#include "sockets.h"

#define ACCEPTS     64   /* per turn */
#define LAST_ACCEPTS 1024 /* of one socket, per turn, before it closes */
#define ACCEPT_ROW  16   /* turns with connections to accept, after which a turn accepts twice as many */
#define DISTANCES   1000 /* connections whose round trip is measured at the end */
#define RETRY_ACCEPT (100 * MILLISECOND)
#define MIN_QUIET (5 * MILLISECOND)   /* time for handshakes under way before the listener closes, or as */
#define MAX_QUIET (500 * MILLISECOND) /* long as two round trips to the most distant client */

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

/* Records the longest round trip to a client, for listener_stop_handshakes().  It uses the minimum of each connection, because
 * others include delayed acknowledgements. */
static void note_distance(front *f, int fd)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_min_rtt != UINT32_MAX &&
        info.tcpi_min_rtt * 1000LL > f->listener.farthest)
        f->listener.farthest = info.tcpi_min_rtt * 1000LL;
}

static void start(front *f, unsigned which, int fd, const void *peer, size_t peer_len, bool reserve)
{
    listening *l = sockets_at(f, which);
    front_conn *c = conn_new(f, fd);

    if (c == NULL) { /* even the overflow is full: close the oldest connection that has its response, or in the overflow */
        count_add(&f->count.shed, 1);
        conn_make_room(f);
        if ((c = conn_new(f, fd)) == NULL) {
            io_end(fd, false);
            return;
        }
    }
    c->listener = (uint8_t)which;
    if (l->name.ss_family != AF_UNIX) /* whose peers have no address */
        memcpy(&c->peer, peer, peer_len < sizeof c->peer ? peer_len : sizeof c->peer);
    if (atomic_load_explicit(&f->stage, memory_order_relaxed) == FRONT_DRAINING)
        note_distance(f, fd);
    c->proxied = l->listen.proxied || (f->limits.n_proxies > 0 && is_proxy(f, &c->peer));
    c->reserve = reserve;
    if (reserve || conn_is_full(f))
        conn_mark_overflow(f, c);
    conn_set_state(f, c, c->overflow ? CONN_OVERFLOW : CONN_SILENT);
    count_add(&f->count.accepted, 1);
    count_add(&l->accepted, 1);
    /* The request may have arrived already; if it seldom has, looking only costs a system call. */
    if (reserve || l->eager > 0 || f->count.accepted % 16 == 0) {
        conn_readable(f, c);
        if (c->fd == fd && c->state == CONN_SILENT && c->in == NULL)
            l->eager -= l->eager > 0;
        else
            l->eager = SOCKETS_EAGER;
    } else if (conn_watch(f, c, WATCH_IN) != FRONT_OK) {
        conn_close(f, c);
    }
}

static int accept_one(const listening *l, struct sockaddr_storage *peer, socklen_t *len)
{
    *len = sizeof *peer;
    return accept4(l->listen.fd, (struct sockaddr *)peer, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

/* Accepts up to `max` connections.  Returns whether there may be more. */
static bool accept_some(front *f, unsigned which, int max)
{
    const listening *l = sockets_at(f, which);
    struct sockaddr_storage peer;
    socklen_t len;
    int fd;

    for (int i = 0; i < max; i++) {
        fd = accept_one(l, &peer, &len);
        if (fd != -1) {
            start(f, which, fd, &peer, len, false);
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO || errno == EPERM)
            continue;
        if (errno == EAGAIN || errno == EINVAL) /* EINVAL: it has been shut */
            return false;
        /* EMFILE, ENFILE, ENOBUFS, ENOMEM: no descriptor.  One is reserved for this case, so that a probe still gets its
         * response; until it is free again, or for a while, we stop listening instead of spinning. */
        count_add(&f->count.accept_errors, 1);
        if (!reserve_is_there(f)) /* whoever uses it had RETRY_ACCEPT to send a request; the next one may be a probe */
            conn_close_reserve(f);
        if (reserve_is_there(f)) {
            reserve_give_up(f);
            fd = accept_one(l, &peer, &len);
            if (fd != -1)
                start(f, which, fd, &peer, len, true);
            else
                reserve_restore(f);
            if (fd != -1 && reserve_is_there(f))
                continue; /* already served and closed */
        }
        sockets_arm_all(f, false);
        f->listener.retry = f->now + RETRY_ACCEPT;
        return false;
    }
    return true;
}

/* Accepts the backlog.  Returns whether more has come meanwhile, so that a flood does not keep the loop. */
static bool accept_backlog(front *f, unsigned which)
{
    for (int n = 0; n < LAST_ACCEPTS; n += ACCEPTS)
        if (!accept_some(f, which, ACCEPTS))
            return false;
    return true;
}

/* An accept() that finds nothing has created a socket and a file before, which costs as much as three turns.  So a turn
 * accepts one connection, and twice as many after each row of turns in which the backlog did not run out; more if it matters
 * less, among `n` events or if the loop `rests` between turns. */
void listener_accept(front *f, unsigned which, uint32_t events, int n, bool rests)
{
    listening *l = sockets_at(f, which);
    int max = rests ? ACCEPTS : n / 4 > l->accepts ? n / 4 : l->accepts;

    if (!l->is_armed) /* another one has found no descriptor in this turn */
        return;
    l->accept_row = f->turn == l->accept_turn + 1 ? l->accept_row + 1 : 0;
    l->accept_turn = f->turn;
    if (!accept_some(f, which, max)) {
        l->accepts = 1;
        l->accept_row = 0;
    } else if (l->accept_row == ACCEPT_ROW) {
        l->accepts = l->accepts < ACCEPTS ? 2 * l->accepts : ACCEPTS;
        l->accept_row = 0;
    }
    if (events & EPOLLHUP) { /* another holder has shut it, which ends it for all */
        accept_backlog(f, which);
        l->is_shut = true;
        sockets_arm(f, which, false);
    }
}

void listener_retry(front *f)
{
    f->listener.retry = 0;
    reserve_restore(f);
    if (sockets_arm_all(f, true) != 0)
        f->listener.retry = f->now + RETRY_ACCEPT;
}

/* ------------------------------------------------------------------- closing */

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
static void stop_handshakes(front *f, int fd)
{
    int none = INT_MAX, bound = 0;

    /* Some systems accept an option that they do not know and ignore it. */
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &none, sizeof none) == -1 ||
        getsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &bound, &(socklen_t){sizeof bound}) == -1)
        atomic_store(&f->listener.not_bound, errno);
    else if (bound != none)
        atomic_store(&f->listener.not_bound, EOPNOTSUPP);
}

/* A Unix socket that is shut refuses connections, also if its path could not be freed, and what is in its backlog can still be
 * accepted: whoever has connected is there, as there is no handshake.  But epoll reports it forever. */
static void shut_unix(front *f, unsigned which)
{
    listening *l = sockets_at(f, which);

    sockets_arm(f, which, false);
    l->is_shut = true;
    shutdown(l->listen.fd, SHUT_RDWR);
    accept_backlog(f, which);
}

/* A shared socket must go on working for others, who also accept what comes after our last look. */
void listener_stop_handshakes(front *f)
{
    int fd;

    for (unsigned i = 0; i < sockets_count(f); i++) {
        const listening *l = sockets_at(f, i);
        if (l->listen.shared)
            continue;
        if (l->name.ss_family == AF_UNIX)
            shut_unix(f, i);
        else
            stop_handshakes(f, l->listen.fd);
    }
    for (uint32_t i = 0, n = 0; n < DISTANCES && conn_next_socket(f, &i, &fd); n++)
        note_distance(f, fd);
    int64_t quiet = 2 * f->listener.farthest;
    f->listener.quiet = quiet < MIN_QUIET ? MIN_QUIET : quiet > MAX_QUIET ? MAX_QUIET : quiet;
    f->listener.closes_at_most = f->now + 2 * MAX_QUIET;
    f->listener.seen_accepted = f->count.accepted;
    f->listener.closes = f->now + f->listener.quiet;
}

void listener_close(front *f)
{
    bool more = false;

    f->listener.closes = 0;
    for (unsigned i = 0; i < sockets_count(f); i++)
        more = accept_backlog(f, i) || more;
    if (f->listener.retry != 0) { /* out of descriptors: waiting connections must not be reset for that */
        f->listener.closes = f->listener.retry;
        return;
    }
    if (f->listener.seen_accepted != f->count.accepted && f->now < f->listener.closes_at_most) { /* more may be under way */
        f->listener.seen_accepted = f->count.accepted;
        f->listener.closes = more ? f->now : f->now + f->listener.quiet;
        return;
    }
    sockets_end(f);
}

int front_close_fault(const front *f)
{
    return atomic_load(&f->listener.not_bound);
}
