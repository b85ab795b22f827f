# What the binding uses of front.h, limits.h and counters.h, in their order; the documentation is there.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pages cimport pages
from tally cimport tally_exemplar, tally_prober, tally_series, tally_waits


cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *src, char *dst, unsigned size)


cdef extern from "front/front.h" nogil:
    enum front_result:
        FRONT_OK
        FRONT_TIMEOUT
        FRONT_CLOSED
        FRONT_AGAIN

    enum:
        FRONT_E_LATE
        FRONT_E_TOO_LARGE
        FRONT_E_TRUNCATED
        FRONT_E_CHUNK

    enum front_stage:
        FRONT_SERVING
        FRONT_DRAINING
        FRONT_CLOSING
        FRONT_STOPPED

    ctypedef struct front:
        pass

    ctypedef struct front_network:
        unsigned char address[16]
        unsigned char bits

    enum:
        FRONT_MAX_NETWORKS

    ctypedef struct front_limits:
        front_network proxies[64]
        unsigned n_proxies
        const char *body_spool
        bint parallel

    enum front_kind:
        FRONT_KIND_NUMBER
        FRONT_KIND_SIZE
        FRONT_KIND_DURATION
        FRONT_KIND_FLAG

    ctypedef struct front_limit:
        const char *name
        front_kind kind
        uint64_t usual
        uint64_t least
        uint64_t most

    const front_limit *front_limit_at(unsigned i)
    void front_limit_set(front_limits *limits, const front_limit *line, uint64_t value)

    enum front_awaits:
        FRONT_AWAITS_NOTHING
        FRONT_AWAITS_BODY
        FRONT_AWAITS_ROOM

    ctypedef struct front_flight:
        char method[16]
        char target[128]
        int64_t age
        uint64_t thread
        bint late
        int awaits

    ctypedef struct front_turn:
        uint64_t number
        int64_t took
        int64_t at

    ctypedef struct front_counters:
        pass

    ctypedef struct front_counter:
        const char *name
        const char *metric
        const char *help
        bint is_event

    const front_counter *front_counter_at(unsigned i)
    uint64_t front_counter_of(const front_counters *counters, const front_counter *line)

    ctypedef struct front_listen:
        int fd
        bint shared
        bint pages
        bint requests
        bint proxied

    enum:
        FRONT_MAX_LISTENERS

    int front_open(front **out, const front_listen *sockets, unsigned n, const front_limits *limits)
    int front_open_remote(front **out, int socket, int bell_fd, const front_limits *limits)
    void front_close(front *f)

    bint front_is_foreign(const front *f)
    int front_run(front *f)
    void front_advance(front *f, front_stage stage)
    front_stage front_stage_now(const front *f)
    bint front_is_draining(const front *f)
    uint64_t front_accepted(const front *f, unsigned listener)
    int front_close_fault(const front *f)

    int front_watch_signals(front *f, int fd, uint64_t draining, int last_words)
    void front_give_up_after(front *f, int64_t nanoseconds)

    void front_publish(front *f, pages *table)
    void front_renew(front *f, unsigned slot, int64_t nanoseconds)
    int64_t front_frozen(const front *f)
    int64_t front_clock(const front *f)

    void front_count(front *f, front_counters *out)
    enum front_flights:
        FRONT_TAKEN
        FRONT_QUEUED
        FRONT_SWITCHED
    size_t front_requests(front *f, unsigned which, front_flight *out, size_t max)
    size_t front_durations(front *f, tally_series *out, size_t max)
    size_t front_exemplars(front *f, tally_exemplar *out)
    void front_waits(front *f, tally_waits *out)
    size_t front_probers(front *f, tally_prober *out, size_t max)
    int64_t front_now()
