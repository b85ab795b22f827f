/*
 * routes.h - how much of the interpreter's time requests take, by what they ask for.
 *
 * The table has a fixed size, and an update costs a few nanoseconds.  A route that is not in it counts as cheap.
 */
#ifndef ROUTES_H
#define ROUTES_H

#include <stdint.h>

#include "http/http1.h"

#define ROUTES 256 /* a power of two */

typedef struct {
    struct {
        uint32_t key; /* 0: free */
        int64_t cost; /* moving average, nanoseconds of CPU time */
    } all[ROUTES];
} routes;

/* Of the method and the path.  What has a digit in it is not part of the route: it may be an id.  Never 0. */
uint32_t routes_key(const http1_head *h, const char *data);

int64_t routes_cost(const routes *r, uint32_t key);
void routes_note(routes *r, uint32_t key, int64_t cost);

#endif
