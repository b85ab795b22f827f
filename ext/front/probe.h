/*
 * probe.h - published pages: which answer a prober gets, and how long it is true.
 */
#ifndef PROBE_H
#define PROBE_H

#include "state.h"

#define WATCH SECOND /* longest wait if pages expire, as a longer one could not be told from a freeze */

static inline void probe_init(front *f)
{
    pthread_mutex_init(&f->published.probers.mutex, NULL);
}

static inline void probe_free(front *f)
{
    pages_free(f->published.pages);
    pages_free(atomic_load(&f->published.incoming));
    pthread_mutex_destroy(&f->published.probers.mutex);
}

void probe_publish(front *f, pages *table); /* front_publish() */
void probe_renew(front *f, unsigned slot, int64_t nanoseconds); /* front_renew() */

/* All that follow are for the leader. */

static inline bool probe_finds(const front *f, const char *path, size_t len) /* whether it is the path of a page */
{
    return pages_find(f->published.pages, path, len) != NULL;
}

/* Takes the table that front_publish() has left. */
static inline void probe_take_pages(front *f)
{
    pages *table = atomic_exchange(&f->published.incoming, NULL);
    if (table != NULL) {
        pages_free(f->published.pages);
        f->published.pages = table;
    }
}

static inline int64_t probe_due(const front *f) /* when to look at the time again; INT64_MAX: never */
{
    return atomic_load_explicit(&f->published.lease, memory_order_relaxed) != 0 ? f->now + WATCH : INT64_MAX;
}

/* Renders the answer to a request of a page, or to `OPTIONS *`.  Returns its length. */
size_t probe_answer(front *f, const front_conn *c, const http1_head *h, char out[PAGES_MAX_SIZE]);
void probe_freeze(front *f, int64_t gap); /* after the process has been frozen */

#endif
