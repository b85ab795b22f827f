/*
 * sockets.h - the listening sockets: what is served on each, and whether the loop looks at it.
 */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "state.h"

#define SOCKETS_EAGER 16 /* connections to look for a request at once, after one whose request was there */

int sockets_open(front *f, const front_listen *sockets, unsigned n); /* all of them; FRONT_OK or a negative errno */
void sockets_disown(front *f);               /* in a forked child */
bool sockets_know(const front *f, int fd);   /* whether it is one of them, or a connection of one */

/* For the leader. */
int sockets_arm(front *f, unsigned which, bool on); /* whether epoll reports connections that wait */
int sockets_arm_all(front *f, bool on);             /* the first error, after all have been tried */
void sockets_end(front *f);                         /* nobody is accepted any more */

static inline unsigned sockets_count(const front *f)
{
    return f->sockets.n;
}

static inline bool sockets_are_closed(const front *f)
{
    return !f->sockets.are_open;
}

static inline listening *sockets_at(front *f, unsigned which)
{
    return &f->sockets.all[which];
}

static inline const front_listen *sockets_serve(const front *f, const front_conn *c) /* what, on this connection */
{
    return &f->sockets.all[c->listener].listen;
}

static inline bool sockets_are_unix(const front *f, const front_conn *c)
{
    return f->sockets.all[c->listener].name.ss_family == AF_UNIX;
}

#endif
