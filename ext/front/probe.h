/*
 * probe.h - published pages: which answer a prober gets, and how long it is true.
 */
#ifndef PROBE_H
#define PROBE_H

#include "state.h"

#define WATCH SECOND /* longest wait if pages expire, as a longer one could not be told from a freeze */

/* All for the leader. */

/* Takes the table that front_publish() has left. */
static inline void probe_take_pages(front *f)
{
    pages *table = atomic_exchange(&f->incoming, NULL);
    if (table != NULL) {
        pages_free(f->pages);
        f->pages = table;
    }
}

static inline int64_t probe_due(const front *f) /* when to look at the time again; INT64_MAX: never */
{
    return atomic_load_explicit(&f->lease, memory_order_relaxed) != 0 ? f->now + WATCH : INT64_MAX;
}

/* Renders the answer to a request of a page, or to `OPTIONS *`.  Returns its length. */
size_t probe_answer(front *f, const front_conn *c, const http1_head *h, char out[PAGES_MAX_SIZE]);
void probe_freeze(front *f, int64_t gap); /* after the process has been frozen */

#endif
