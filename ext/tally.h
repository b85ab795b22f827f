/*
 * tally.h - what the front remembers for people: how long requests took, and who probes.
 *
 * Both tables are of fixed size, allocate nothing, and cost a few nanoseconds where they are filled.  What does not
 * fit is still counted: a duration under status 0, a prober in place of the one that was silent longest.
 */
#ifndef TALLY_H
#define TALLY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------ durations of requests: the caller's lock guards them */

#define TALLY_BUCKETS 15 /* the 14 of OpenTelemetry's http.server.request.duration, and what is longer */
#define TALLY_SERIES 128 /* a power of two; pairs of method and status */

typedef struct {
    uint16_t status; /* of the response; 0: none was sent, or the table was full */
    uint8_t method;  /* enum http1_method */
    uint8_t used;
    uint64_t count[TALLY_BUCKETS]; /* of each bucket alone, not cumulated */
    uint64_t sum;                  /* nanoseconds */
} tally_series;

typedef struct {
    tally_series series[TALLY_SERIES];
    uint32_t n_used;
} tally_durations;

extern const int64_t tally_bounds[TALLY_BUCKETS - 1]; /* upper bounds, inclusive, nanoseconds */

void tally_add(tally_durations *t, uint8_t method, unsigned status, int64_t duration);

/* -------------------------------------------------------------------- probers: one thread fills, any thread reads */

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
    unsigned status; /* of the last answer */
    int64_t last;    /* when that was, monotonic nanoseconds */
} tally_prober;

typedef struct {
    uint32_t hash[TALLY_PROBERS]; /* the filling thread's alone */
    tally_who who[TALLY_PROBERS]; /* changed under the mutex; the filling thread reads them without */
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
