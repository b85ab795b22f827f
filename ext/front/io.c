/* io.c - see io.h. */
#define _GNU_SOURCE
#include "io.h"

#include <limits.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

atomic_bool io_has_forked;

size_t io_received(int fd)
{
    int n = 0;

    return ioctl(fd, FIONREAD, &n) == 0 && n > 0 ? (size_t)n : 0;
}

/* The kernel limits SO_RCVLOWAT to half of the maximum size of a socket's buffer (net.ipv4.tcp_rmem). */
size_t io_longest_gathering(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), most = INT_MAX;

    if (fd == -1)
        return 0;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most) == -1 ||
        getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &most, &(socklen_t){sizeof most}) == -1 || most == INT_MAX)
        most = 0;
    close(fd);
    return (size_t)most;
}

/* connect() to no address does it (connect(2)).  By its number, as ThreadSanitizer takes the function for the creation of the
 * descriptor, and each later use in another thread for a race.  A Unix socket refuses it (EINVAL), and can only be shut. */
void io_reset(int fd)
{
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};

    if (syscall(SYS_connect, fd, &nobody, sizeof nobody) == -1)
        io_cut(fd);
}

/* A child may not have closed its copy yet, or may have been created in another way.  FIN and RST must not wait for it. */
void io_end(int fd, bool by_reset)
{
    if (atomic_load_explicit(&io_has_forked, memory_order_relaxed)) {
        if (by_reset)
            io_reset(fd);
        else
            io_cut(fd);
    }
    close(fd);
}
