# Mirrors exchange.h, in its order; the documentation is there.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.types cimport off_t

from front cimport front, front_turn
from http1 cimport http1_head
from tally cimport tally_waits


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<netinet/in.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        INET6_ADDRSTRLEN
    struct sockaddr:
        unsigned short sa_family
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        in6_addr sin6_addr
    unsigned short ntohs(unsigned short n)


cdef extern from "front/exchange.h" nogil:
    ctypedef struct front_conn:
        pass

    union proxy_peer:
        sockaddr any
        sockaddr_in v4
        sockaddr_in6 v6

    ctypedef struct front_request:
        front_conn *conn
        const http1_head *head
        const char *data
        size_t head_len
        const char *body
        size_t body_len
        bint body_complete
        bint body_spooled
        bint is_repeated
        unsigned listener
        int64_t arrived
        proxy_peer peer

    int front_take(front *f, front_request *out, int64_t timeout)
    int front_come(front *f, front_request *out, int64_t timeout, int64_t *came)
    ssize_t front_read(front *f, front_conn *c, char *buf, size_t len, bint wait)
    bint front_begin_response(front *f, front_conn *c)
    int front_send(front *f, front_conn *c, iovec *iov, int n, size_t keep, bint wait)
    int front_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len, bint leave)
    bint front_body_pending(const front_conn *c)
    uint64_t front_body_left(const front_conn *c)
    bint front_is_gone(front_conn *c)
    void front_interrupt(front_conn *c)
    void front_trace(front *f, front_conn *c, const uint8_t *id)
    unsigned front_finish(front *f, front_conn *c, bint keep_alive, bint abort, unsigned status)

    enum front_news:
        FRONT_REQUESTS
        FRONT_MOVED
        FRONT_OTHERS
        FRONT_LATE

    enum front_progress:
        FRONT_READABLE
        FRONT_WRITABLE
        FRONT_LEFT

    int front_serve_by_eventloop(front *f, int epoll_fd)
    unsigned front_wait(front *f, int64_t timeout)
    int front_serve_by_reader(front *f)
    unsigned front_look(front *f)
    unsigned front_settle(front *f)
    int64_t front_eventloop_looks(const front *f)
    int64_t front_eventloop_turn(const front *f)
    void front_turns(const front *f, tally_waits *out)
    int front_watch_turns(front *f, front_turn *out)
    int front_await(front *f, front_conn *c, unsigned what, void *tag)
    void *front_moved(front *f)
    int front_switch(front *f, front_conn *c)
    bint front_is_dry(const front_conn *c)
    bint front_reserve(front *f, size_t bytes)
    void front_unreserve(front *f, size_t bytes)
    void front_take_late(front *f)
    bint front_is_late(const front_conn *c)
    bint front_may_read_on(front *f, front_conn *c, int64_t waited)
    bint front_may_send_on(front *f, front_conn *c, uint64_t taken)
