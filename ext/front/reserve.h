/*
 * reserve.h - a descriptor that is kept for the moment when there are no others, so that a probe still gets its response.
 *
 * The listener gives it up to accept one more connection, which is closed after its first response; the end of that
 * connection restores it.
 */
#ifndef RESERVE_H
#define RESERVE_H

#include <fcntl.h>
#include <unistd.h>

#include "state.h"

static inline void reserve_init(front *f)
{
    f->reserve.fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static inline void reserve_none(front *f)
{
    f->reserve.fd = -1;
}

static inline bool reserve_is_there(const front *f)
{
    return f->reserve.fd != -1;
}

static inline void reserve_restore(front *f)
{
    if (f->reserve.fd == -1)
        f->reserve.fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static inline void reserve_give_up(front *f)
{
    if (f->reserve.fd != -1)
        close(f->reserve.fd);
    f->reserve.fd = -1;
}

#endif
