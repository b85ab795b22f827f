/* counters.c - the list of counters.h as a table. */
#include "counters.h"

#define EVENT(name, metric, help) {#name, metric, help, offsetof(front_counters, name), true},
#define STATE(name, metric, help) {#name, metric, help, offsetof(front_counters, name), false},
static const front_counter list[] = {FRONT_COUNTERS(EVENT, STATE)};

const front_counter *front_counter_at(unsigned i)
{
    return i < sizeof list / sizeof *list ? &list[i] : NULL;
}

uint64_t front_counter_of(const front_counters *counters, const front_counter *line)
{
    return *(const uint64_t *)((const char *)counters + line->offset);
}
