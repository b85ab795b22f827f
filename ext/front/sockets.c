/* sockets.c - see sockets.h. */
#define _GNU_SOURCE
#include "sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int sockets_arm(front *f, unsigned which, bool on)
{
    listening *l = &f->sockets.all[which];

    if (l->is_armed == on || !f->sockets.are_open || (on && l->is_shut))
        return 0;
    int rv = on ? front_watch_fd(f, l->listen.fd, (uint64_t)which << 32 | FRONT_LISTENER, EPOLLIN)
                : epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, l->listen.fd, NULL);
    if (rv == 0)
        l->is_armed = on;
    return rv;
}

int sockets_arm_all(front *f, bool on)
{
    int rv = 0;

    for (unsigned i = 0; i < f->sockets.n; i++) {
        int failed = sockets_arm(f, i, on);
        rv = rv != 0 ? rv : failed;
    }
    return rv;
}

int sockets_open(front *f, const front_listen *sockets, unsigned n)
{
    if (n > FRONT_MAX_LISTENERS)
        return -EINVAL;
    for (unsigned i = 0; i < n; i++) {
        listening *l = &f->sockets.all[i];
        l->listen = sockets[i];
        l->accepts = 1;
        l->eager = SOCKETS_EAGER;
        if (getsockname(l->listen.fd, (struct sockaddr *)&l->name, &(socklen_t){sizeof l->name}) == -1)
            l->name.ss_family = AF_UNSPEC;
    }
    f->sockets.n = n;
    f->sockets.are_open = true;
    return sockets_arm_all(f, true);
}

bool sockets_know(const front *f, int fd)
{
    struct sockaddr_storage name;

    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &(socklen_t){sizeof name}) == -1)
        return false;
    for (unsigned i = 0; i < f->sockets.n; i++) {
        const struct sockaddr_storage *own = &f->sockets.all[i].name;
        if (name.ss_family != own->ss_family)
            continue;
        if (name.ss_family == AF_INET
                ? ((struct sockaddr_in *)&name)->sin_port == ((const struct sockaddr_in *)own)->sin_port
            : name.ss_family == AF_INET6
                ? ((struct sockaddr_in6 *)&name)->sin6_port == ((const struct sockaddr_in6 *)own)->sin6_port
                : memcmp(&name, own, sizeof name) == 0)
            return true;
    }
    return false;
}

/* The socket's owner will close the number, which must not belong to another file by then. */
static void replace_by_null(int fd)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (null != -1) {
        dup3(null, fd, O_CLOEXEC);
        close(null);
    }
}

void sockets_disown(front *f)
{
    if (!f->sockets.are_open || atomic_load(&f->stage) == FRONT_STOPPED)
        return;
    for (unsigned i = 0; i < f->sockets.n; i++) {
        int fd = f->sockets.all[i].listen.fd;
        if (!sockets_know(f, fd))
            continue;
        replace_by_null(fd);
    }
}

void sockets_end(front *f)
{
    sockets_arm_all(f, false);
    f->sockets.are_open = false;
    /* Connections are refused from now on; the owner closes the socket.  A shared one is let go, so that the kernel refuses
     * connections if nobody else holds it, instead of accepting what nobody would read. */
    for (unsigned i = 0; i < f->sockets.n; i++)
        if (f->sockets.all[i].listen.shared)
            replace_by_null(f->sockets.all[i].listen.fd);
        else
            shutdown(f->sockets.all[i].listen.fd, SHUT_RDWR);
}

uint64_t front_accepted(const front *f, unsigned which)
{
    return which < f->sockets.n ? atomic_load_explicit(&f->sockets.all[which].accepted, memory_order_relaxed) : 0;
}
