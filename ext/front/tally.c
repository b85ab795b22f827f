/* tally.c - see tally.h. */
#include "tally.h"

#include <string.h>
#include <time.h>

#define MS 1000000LL

/* open-telemetry/semantic-conventions: docs/http/http-metrics.md, http.server.request.duration */
const int64_t tally_bounds[TALLY_BUCKETS - 1] = {5 * MS,   10 * MS,  25 * MS,   50 * MS,   75 * MS,   100 * MS,  250 * MS,
                                                 500 * MS, 750 * MS, 1000 * MS, 2500 * MS, 5000 * MS, 7500 * MS, 10000 * MS};

const int64_t tally_wait_bounds[TALLY_WAITS - 1] = {1 * MS,   5 * MS,   10 * MS,   25 * MS,   50 * MS,   100 * MS,
                                                    250 * MS, 500 * MS, 1000 * MS, 2500 * MS, 5000 * MS, 10000 * MS};

/* The bucket that a duration falls into; the last one has no bound. */
static unsigned bucket_of(int64_t duration, const int64_t *bounds, unsigned n_bounds)
{
    unsigned b = 0;

    while (b < n_bounds && duration > bounds[b])
        b++;
    return b;
}

/* Open addressing; the last free place is never used, so that a search ends and overflow has a place. */
static tally_series *find(tally_durations *t, uint8_t method, uint16_t status)
{
    for (unsigned i = status * 11u + method;; i++) {
        tally_series *s = &t->series[i % TALLY_SERIES];
        if (s->used && s->status == status && s->method == method)
            return s;
        if (!s->used) {
            if (t->n_used >= TALLY_SERIES - 2 && (status | method) != 0)
                return find(t, 0, 0);
            s->used = 1;
            s->status = status;
            s->method = method;
            t->n_used++;
            return s;
        }
    }
}

/* Failures are rare among the others, so they have a place of their own.  Not inline: requests without a trace do not pay. */
__attribute__((noinline)) static void put_exemplar(tally_durations *t, const tally_series *s, unsigned bucket, int64_t duration,
                                                   const uint8_t *trace)
{
    tally_exemplar *e = &t->exemplars[bucket + (s->status == 0 || s->status >= 500 ? TALLY_BUCKETS : 0)];
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    memcpy(e->trace, trace, TALLY_TRACE);
    e->duration = duration > 0 ? duration : 0;
    e->when = (int64_t)now.tv_sec * 1000 * MS + now.tv_nsec;
    e->status = s->status;
    e->method = s->method;
    e->bucket = (uint8_t)bucket;
}

void tally_add(tally_durations *t, uint8_t method, unsigned status, int64_t duration, const uint8_t *trace)
{
    tally_series *s = find(t, method, (uint16_t)(status <= 999 ? status : 0));
    unsigned bucket = bucket_of(duration, tally_bounds, TALLY_BUCKETS - 1);

    s->count[bucket]++;
    s->sum += duration > 0 ? (uint64_t)duration : 0;
    if (trace != NULL)
        put_exemplar(t, s, bucket, duration, trace);
}

void tally_add_wait(tally_waits *t, int64_t wait)
{
    t->count[bucket_of(wait, tally_wait_bounds, TALLY_WAITS - 1)]++;
    t->sum += wait > 0 ? (uint64_t)wait : 0;
}

/* Only one thread writes, so the additions need no lock. */
void tally_add_turn(tally_turns *t, int64_t took)
{
    unsigned b = bucket_of(took, tally_wait_bounds, TALLY_WAITS - 1);
    uint64_t count = atomic_load_explicit(&t->count[b], memory_order_relaxed);
    uint64_t sum = atomic_load_explicit(&t->sum, memory_order_relaxed);

    atomic_store_explicit(&t->count[b], count + 1, memory_order_relaxed);
    atomic_store_explicit(&t->sum, sum + (took > 0 ? (uint64_t)took : 0), memory_order_relaxed);
}

void tally_read_turns(const tally_turns *t, tally_waits *out)
{
    for (unsigned b = 0; b < TALLY_WAITS; b++)
        out->count[b] = atomic_load_explicit(&t->count[b], memory_order_relaxed);
    out->sum = atomic_load_explicit(&t->sum, memory_order_relaxed);
}

/* --------------------------------------------------------------------------------------------------- probers */

/* Up to 8 bytes from each end: a hash only selects the entries to compare with. */
static uint64_t ends(const void *bytes, size_t len)
{
    uint64_t a = 0, b = 0;
    size_t n = len < sizeof a ? len : sizeof a;

    memcpy(&a, bytes, n);
    memcpy(&b, (const char *)bytes + len - n, n);
    return a ^ (b * 0x9e3779b97f4a7c15u) ^ len;
}

static uint32_t hash_of(const uint8_t address[16], const char *agent, size_t agent_len, const char *page, size_t page_len)
{
    uint64_t x = ends(address, 16);

    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u ^ ends(agent, agent_len);
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u ^ ends(page, page_len);
    return (uint32_t)((x * 0x9e3779b97f4a7c15u) >> 32);
}

static int is_same(const tally_who *w, const uint8_t address[16], const char *agent, size_t agent_len, const char *page,
                   size_t page_len)
{
    return w->agent_len == agent_len && w->page_len == page_len && memcmp(w->address, address, 16) == 0 &&
           memcmp(w->agent, agent, agent_len) == 0 && memcmp(w->page, page, page_len) == 0;
}

void tally_probe(tally_probers *t, const uint8_t address[16], const char *agent, size_t agent_len, const char *page,
                 size_t page_len, unsigned status, int64_t now)
{
    uint32_t n = atomic_load_explicit(&t->n, memory_order_relaxed), i, hash;

    if (agent_len > TALLY_AGENT)
        agent_len = TALLY_AGENT;
    if (page_len > TALLY_PAGE)
        page_len = TALLY_PAGE;
    hash = hash_of(address, agent, agent_len, page, page_len);
    for (i = 0; i < n; i++)
        if (t->hash[i] == hash && is_same(&t->who[i], address, agent, agent_len, page, page_len))
            break;
    if (i == n) {
        if (n == TALLY_PROBERS) {
            i = 0;
            for (uint32_t k = 1; k < n; k++)
                if (atomic_load_explicit(&t->last[k], memory_order_relaxed) <
                    atomic_load_explicit(&t->last[i], memory_order_relaxed))
                    i = k;
        }
        pthread_mutex_lock(&t->mutex);
        tally_who *w = &t->who[i];
        memcpy(w->address, address, 16);
        memcpy(w->agent, agent, agent_len);
        memcpy(w->page, page, page_len);
        w->agent_len = (uint8_t)agent_len;
        w->page_len = (uint8_t)page_len;
        t->hash[i] = hash;
        atomic_store_explicit(&t->count[i], 0, memory_order_relaxed);
        if (n < TALLY_PROBERS)
            atomic_store_explicit(&t->n, n + 1, memory_order_relaxed);
        pthread_mutex_unlock(&t->mutex);
    }
    /* Only one thread writes, so the addition needs no lock. */
    atomic_store_explicit(&t->count[i], atomic_load_explicit(&t->count[i], memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_store_explicit(&t->status[i], status, memory_order_relaxed);
    atomic_store_explicit(&t->last[i], now, memory_order_relaxed);
}

size_t tally_read_probers(tally_probers *t, tally_prober *out, size_t max)
{
    pthread_mutex_lock(&t->mutex);
    size_t n = atomic_load_explicit(&t->n, memory_order_relaxed);
    if (n > max)
        n = max;
    for (size_t i = 0; i < n; i++) {
        out[i].who = t->who[i];
        out[i].count = atomic_load_explicit(&t->count[i], memory_order_relaxed);
        out[i].status = atomic_load_explicit(&t->status[i], memory_order_relaxed);
        out[i].last = atomic_load_explicit(&t->last[i], memory_order_relaxed);
    }
    pthread_mutex_unlock(&t->mutex);
    return n;
}
