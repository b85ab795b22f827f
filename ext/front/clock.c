/* clock.c - see clock.h. */
#include "clock.h"

int64_t front_now(void)
{
    return clock_now();
}

int64_t front_frozen(const front *f)
{
    return atomic_load_explicit(&f->clock.frozen, memory_order_relaxed);
}

int64_t front_clock(const front *f)
{
    int64_t frozen = atomic_load(&f->clock.frozen), due = atomic_load(&f->clock.due), now = clock_now();

    return (due != INT64_MAX && now - FRONT_GAP > due ? due : now) - frozen;
}
