/* limits.c - the list of limits.h as a table. */
#include "limits.h"

#define NUMBER(name, usual, least, most) {#name, FRONT_KIND_NUMBER, offsetof(front_limits, name), usual, least, most},
#define SIZE(name, usual, least, most) {#name, FRONT_KIND_SIZE, offsetof(front_limits, name), usual, least, most},
#define DURATION(name, usual, least, most) {#name, FRONT_KIND_DURATION, offsetof(front_limits, name), usual, least, most},
#define FLAG(name, usual, least, most) {#name, FRONT_KIND_FLAG, offsetof(front_limits, name), usual, least, most},
static const front_limit list[] = {FRONT_LIMITS(NUMBER, SIZE, DURATION, FLAG)};

const front_limit *front_limit_at(unsigned i)
{
    return i < sizeof list / sizeof *list ? &list[i] : NULL;
}

void front_limit_set(front_limits *limits, const front_limit *line, uint64_t value)
{
    void *member = (char *)limits + line->offset;

    switch (line->kind) {
    case FRONT_KIND_NUMBER:
        *(uint32_t *)member = (uint32_t)value;
        break;
    case FRONT_KIND_SIZE:
        *(uint64_t *)member = value;
        break;
    case FRONT_KIND_DURATION:
        *(int64_t *)member = (int64_t)value;
        break;
    case FRONT_KIND_FLAG:
        *(bool *)member = value != 0;
        break;
    }
}
