/*
 * tally.h - statistics for people: how long requests took and waited, and who probes.
 *
 * All tables have a fixed size, allocate nothing, and an update costs a few nanoseconds.  What does not fit is still
 * counted: a duration under status 0, a prober in place of the one that has been silent longest.
 */
#ifndef TALLY_H
#define TALLY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------ durations of requests: guarded by the caller's lock */

#define TALLY_BUCKETS 15 /* the 14 of OpenTelemetry's http.server.request.duration, and one for longer requests */
#define TALLY_SERIES 128 /* a power of two; pairs of method and status */

typedef struct {
    uint16_t status; /* of the response; 0 if none was sent, or the table was full */
    uint8_t method;  /* enum http1_method */
    uint8_t used;
    uint64_t count[TALLY_BUCKETS]; /* of each single bucket, not cumulative */
    uint64_t sum;                  /* nanoseconds */
} tally_series;

#define TALLY_TRACE 16     /* bytes of a trace's id */
#define TALLY_EXEMPLARS (2 * TALLY_BUCKETS)

/* The last request of a bucket that had a trace. */
typedef struct {
    uint8_t trace[TALLY_TRACE];
    int64_t duration; /* nanoseconds */
    int64_t when;     /* nanoseconds since the Unix epoch; 0: there was none */
    uint16_t status;  /* of its series */
    uint8_t method, bucket;
} tally_exemplar;

typedef struct {
    tally_series series[TALLY_SERIES];
    uint32_t n_used;
    tally_exemplar exemplars[TALLY_EXEMPLARS]; /* of each bucket, and then of each bucket of those that have failed */
} tally_durations;

extern const int64_t tally_bounds[TALLY_BUCKETS - 1]; /* upper bounds, inclusive, nanoseconds */

/* `trace`: the id of the request's trace, or NULL. */
void tally_add(tally_durations *t, uint8_t method, unsigned status, int64_t duration, const uint8_t *trace);

/* ------------------------------------------- waits of requests for a worker: guarded by the caller's lock, too */

#define TALLY_WAITS 13

typedef struct {
    uint64_t count[TALLY_WAITS]; /* of each single bucket, not cumulative */
    uint64_t sum;                /* nanoseconds */
} tally_waits;

/* Upper bounds, inclusive, nanoseconds.  The first is finer than those of durations: a request that is taken at once waits
 * for some microseconds, and one for which a worker has to become free for about as long as a request takes.  The last is
 * the default of queue_timeout. */
extern const int64_t tally_wait_bounds[TALLY_WAITS - 1];

void tally_add_wait(tally_waits *t, int64_t wait);

/* ------------------------------------ turns of an event loop, in the same buckets: one thread writes, any thread reads */

typedef struct {
    _Atomic uint64_t count[TALLY_WAITS], sum;
} tally_turns;

void tally_add_turn(tally_turns *t, int64_t took);
void tally_read_turns(const tally_turns *t, tally_waits *out);

/* -------------------------------------------------------------------- probers: one thread writes, any thread reads */

#define TALLY_PROBERS 32
#define TALLY_AGENT 48 /* bytes of the user agent that are kept */
#define TALLY_PAGE 32

typedef struct {
    uint8_t address[16]; /* IPv6; IPv4 as ::ffff:a.b.c.d */
    char agent[TALLY_AGENT];
    char page[TALLY_PAGE];
    uint8_t agent_len, page_len;
} tally_who;

typedef struct {
    tally_who who;
    uint64_t count;
    unsigned status; /* of the last response */
    int64_t last;    /* its time, monotonic nanoseconds */
} tally_prober;

typedef struct {
    uint32_t hash[TALLY_PROBERS]; /* used by the writing thread only */
    tally_who who[TALLY_PROBERS]; /* written under the mutex; the writing thread reads them without it */
    _Atomic uint64_t count[TALLY_PROBERS];
    _Atomic unsigned status[TALLY_PROBERS];
    _Atomic int64_t last[TALLY_PROBERS];
    _Atomic uint32_t n;
    pthread_mutex_t mutex;
} tally_probers;

void tally_probe(tally_probers *t, const uint8_t address[16], const char *agent, size_t agent_len, const char *page,
                 size_t page_len, unsigned status, int64_t now);
size_t tally_read_probers(tally_probers *t, tally_prober *out, size_t max);

#endif
