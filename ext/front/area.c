/* area.c - see area.h. */
#define _GNU_SOURCE
#include "area.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>

#include "clock.h"

long area_wait(void *word, unsigned value, int64_t timeout)
{
    struct timespec t = {.tv_sec = (time_t)(timeout / SECOND), .tv_nsec = (long)(timeout % SECOND)};

    return syscall(SYS_futex, word, FUTEX_WAIT, value, timeout < 0 ? NULL : &t, NULL, 0);
}

void area_wake(void *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

typedef union {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
} rights;

int area_send(int socket, const int fds[2])
{
    rights r = {0};
    struct iovec iov = {.iov_base = &(char){0}, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &r, .msg_controllen = sizeof r};

    r.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(2 * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&r.head), fds, 2 * sizeof(int));
    return sendmsg(socket, &m, MSG_NOSIGNAL) == -1 ? -errno : FRONT_OK;
}

int area_receive(int socket, int fds[2])
{
    rights r;
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &r, .msg_controllen = sizeof r};

    if (recvmsg(socket, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) == -1)
        return -errno;
    if (m.msg_controllen < CMSG_LEN(2 * sizeof(int)) || r.head.cmsg_type != SCM_RIGHTS ||
        r.head.cmsg_len != CMSG_LEN(2 * sizeof(int)))
        return -EINVAL;
    memcpy(fds, CMSG_DATA(&r.head), 2 * sizeof(int));
    return FRONT_OK;
}
