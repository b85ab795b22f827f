/* admission.c - see admission.h. */
#define _GNU_SOURCE
#include "admission.h"

#include <time.h>

#include "clock.h"

#define WINDOW (10 * MILLISECOND)
#define FEWEST 3 /* one computes, one waits for a response, and one has got it */

#define HEAVY (2 * MILLISECOND)      /* of CPU time */
#define PATIENCE (100 * MILLISECOND) /* a heavy request is held back for so long at most: one before it may take seconds */
#define CONTENDED (MILLISECOND / 4)  /* a wait for the interpreter that is longer */
#define LATELY (20 * MILLISECOND)
#define LAST_PART (20 * MILLISECOND) /* of its CPU time: for so long at most all others wait for a heavy request that is due */
#define LOOKED_AT 64 /* requests in the queue; if so many are held back it is not worth the time */

static int64_t cpu_time(clockid_t whose)
{
    struct timespec t = {0};

    clock_gettime(whose, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* The CPU time of a thread of this process, by the encoding of pthread_getcpuclockid(). */
static clockid_t clock_of(uint64_t thread)
{
    return (clockid_t)(~(uint32_t)thread << 3 | 6);
}

/* While the interpreter has no time left, which the CPU time of the process shows, one worker less takes requests from window to
 * window.  As soon as it has, one more does.  All do if much is left, if other threads compute beside it, or if less than one
 * request in a millisecond is finished: one of them may hold the lock for long.  Those that have been served since before the
 * window wait for something, and do not count.  (A one-row query through an ORM, 8 workers:
 * 2.8 voluntary changes of threads per request -> 1.9, and 2 % less CPU.) */
void admission_measure(front *f, const front_conn *taken, uint32_t busy, uint32_t idle, uint64_t finished)
{
    struct front_admission *a = &f->admission;
    uint32_t most = busy + idle, fewest = FEWEST;
    int64_t took = f->now - a->judged_at;

    if (most > a->enough)
        most = a->enough;
    if (!admission_shares_interpreter(f)) {
        a->enough = UINT32_MAX;
        return;
    }
    if (took < WINDOW)
        return;
    for (; taken != NULL && taken->begun < a->judged_at; taken = taken->next)
        fewest++;
    int64_t cpu = cpu_time(CLOCK_PROCESS_CPUTIME_ID), used = (cpu - a->judged_cpu) * 100 / took;
    if (used < 80 || used > 110 || (int64_t)(finished - a->judged_finished) < took / MILLISECOND)
        a->enough = UINT32_MAX;
    else if (used >= 95)
        a->enough = most > fewest ? most - 1 : fewest;
    else if (a->enough != UINT32_MAX)
        a->enough++;
    a->judged_at = f->now;
    a->judged_cpu = cpu;
    a->judged_finished = finished;
}

void admission_classify(front *f, front_conn *c)
{
    c->route = admission_shares_interpreter(f) ? routes_key(&c->in->head, c->in->data) : 0;
    c->cost = c->route != 0 ? routes_cost(&f->admission.routes, c->route) : 0;
    c->is_heavy = c->cost > HEAVY;
    c->due = c->arrived + c->cost;
}

/* Whether somebody who wanted the interpreter had to wait for it just now. */
static bool is_contended(const front *f, int64_t now)
{
    const struct front_admission *a = &f->admission;

    return a->entry > CONTENDED && now - a->entered_at < LATELY;
}

/* Whether another heavy request computes, and whoever wants the interpreter has to wait for it. */
static bool is_held_back(const front *f, const front_conn *c, int64_t now)
{
    const struct front_admission *a = &f->admission;
    int64_t most = f->limits.queue_timeout / 4 < PATIENCE ? f->limits.queue_timeout / 4 : PATIENCE;

    return c->is_heavy && a->n_heavy > 0 && now - c->arrived < most && is_contended(f, now);
}

/* Whether it has computed since the last look, and will be through with that soon; not known if it takes much longer than others
 * of its route. */
static bool is_ending(front_conn *c, int64_t now)
{
    if (c->ends >= 0 && now >= c->ends) {
        int64_t used = cpu_time(clock_of(c->thread)) - c->cpu_before, left = c->cost - used;
        bool computes = c->ends == 0 || used - c->used > (now - c->looked_at) / 8;
        if (c->ends == 0)
            c->latest = now + LAST_PART;
        c->looked_at = now;
        c->used = used;
        if (left < MILLISECOND)
            left = MILLISECOND;
        bool unknown = used > c->cost + c->cost / 2 || now >= c->latest;
        c->ends = !computes || unknown ? -1 : left > LAST_PART ? 0 : now + left;
    }
    return now < c->ends;
}

/* The heavy request that is due and ending, or NULL; `c` is the first that workers have.  Those that have arrived after it was
 * due do not pass it any more. */
static const front_conn *ending(const front *f, front_conn *c, int64_t now)
{
    if (f->admission.n_heavy == 0 || f->admission.entry <= CONTENDED)
        return NULL;
    while (c != NULL && !(c->is_heavy && c->due <= now))
        c = c->next;
    return c != NULL && is_ending(c, now) ? c : NULL;
}

/* Those that are held back are passed. */
front_conn *admission_pass(const front *f, front_conn *first, front_conn *taken)
{
    front_conn *c = first;
    int64_t now = clock_now();
    const front_conn *before = ending(f, taken, now);

    for (int n = 0; c != NULL && n < LOOKED_AT; c = c->next, n++)
        if (before != NULL && !c->is_heavy && c->arrived > before->due)
            return NULL;
        else if (!is_held_back(f, c, now))
            return c;
    return c == NULL ? NULL : first;
}

/* `waited`: how long a worker that has taken the request beside a heavy one has waited for the interpreter. */
static void note_entry(struct front_admission *a, const front_conn *c, int64_t waited)
{
    a->entry = c->is_heavy ? waited : a->entry + (waited - a->entry) / 4; /* another heavy one shows best how it is */
    a->entered_at = c->begun;
}

void admission_begin(front *f, front_conn *c, int64_t came)
{
    if (came != 0 && f->admission.is_beside)
        note_entry(&f->admission, c, c->begun - came);
    if (c->is_heavy) {
        f->admission.n_heavy++;
        f->admission.entered_at = c->begun;
    }
    c->ends = 0;
    c->cpu_before = c->route != 0 ? cpu_time(CLOCK_THREAD_CPUTIME_ID) : 0;
}

void admission_end(front *f, front_conn *c, bool by_taker)
{
    if (c->is_heavy)
        f->admission.n_heavy--;
    c->is_heavy = false;
    if (c->cpu_before != 0 && by_taker)
        routes_note(&f->admission.routes, c->route, cpu_time(CLOCK_THREAD_CPUTIME_ID) - c->cpu_before);
    c->cpu_before = 0;
}
