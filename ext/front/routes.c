/* routes.c - see routes.h. */
#include "routes.h"

#define LONGEST 128 /* bytes of a path that are looked at */
#define FNV_BASIS 2166136261U
#define FNV_PRIME 16777619U

uint32_t routes_key(const http1_head *h, const char *data)
{
    const char *p = data + h->target.pos, *end = p + (h->target.len < LONGEST ? h->target.len : LONGEST);
    uint32_t key = (FNV_BASIS ^ h->method_id) * FNV_PRIME, before = key;
    bool has_digit = false;

    for (; p < end && *p != '?'; p++) {
        if (*p == '/') {
            if (has_digit)
                key = before;
            has_digit = false;
            before = key = (key ^ '/') * FNV_PRIME;
            continue;
        }
        has_digit |= *p >= '0' && *p <= '9';
        key = (key ^ (unsigned char)*p) * FNV_PRIME;
    }
    if (has_digit)
        key = before;
    return key != 0 ? key : 1;
}

int64_t routes_cost(const routes *r, uint32_t key)
{
    return r->all[key % ROUTES].key == key ? r->all[key % ROUTES].cost : 0;
}

#define MOST (64 * 1000000LL) /* of one request that counts, so that a first one, which imports, is forgotten soon */

/* A cheap one does not take the place of one that costs much, unless there are many of it. */
void routes_note(routes *r, uint32_t key, int64_t cost)
{
    int64_t *known = &r->all[key % ROUTES].cost;

    if (cost > MOST)
        cost = MOST;
    if (r->all[key % ROUTES].key == key) {
        *known += (cost - *known) / 4;
    } else if (cost >= *known) {
        r->all[key % ROUTES].key = key;
        *known = cost;
    } else {
        *known -= *known / 16;
    }
}
