/*
 * stage.h - the stages of the front's end (enum front_stage), which only increase, and the signals that advance them.
 */
#ifndef STAGE_H
#define STAGE_H

#include "state.h"

/* All for the leader. */
void stage_signal(front *f); /* the descriptor of front_watch_signals() is readable */
void stage_change(front *f);
void stage_give_up(front *f);

static inline bool stage_is_due(const front *f)
{
    return atomic_load(&f->ending.wanted) > atomic_load(&f->stage);
}

void stage_advance(front *f, enum front_stage stage); /* front_advance(), which also rings */
enum front_stage stage_now(const front *f);           /* front_stage_now() */

static inline int64_t stage_due(const front *f, int64_t due)
{
    return f->ending.gives_up != 0 && f->ending.gives_up < due ? f->ending.gives_up : due;
}

static inline void stage_expire(front *f)
{
    if (f->ending.gives_up != 0 && f->ending.gives_up <= f->now)
        stage_give_up(f);
}

static inline void stage_extend(front *f, int64_t gap) /* its deadline */
{
    if (f->ending.gives_up != 0)
        f->ending.gives_up += gap;
}

#endif
