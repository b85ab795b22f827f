/*
 * io.h - the one door for the bytes of clients' sockets.
 *
 * No other file receives from such a socket or sends to it, so what a byte goes through on its way can change here alone.
 * All of the functions for bytes are those of the kernel: they never wait, and return -1 with errno.  None raises
 * SIGPIPE but sendfile(), which is why Python ignores that signal.
 */
#ifndef IO_H
#define IO_H

#include <netinet/in.h>
#include <linux/tcp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

extern atomic_bool io_has_forked; /* a forked child may have copies of the sockets; written by front.c */

static inline ssize_t io_read(int fd, char *buf, size_t len) /* 0: the peer has sent FIN */
{
    return recv(fd, buf, len, 0);
}

/* Reads bytes that nobody wants.  TCP does not even copy them; `sink` is for other sockets. */
static inline ssize_t io_discard(int fd, char *sink, size_t len)
{
    return recv(fd, sink, len, MSG_TRUNC);
}

static inline bool io_has_bytes(int fd) /* whether one could be read now */
{
    char byte;

    return recv(fd, &byte, 1, MSG_PEEK) == 1;
}

static inline ssize_t io_write(int fd, const char *bytes, size_t len)
{
    return send(fd, bytes, len, MSG_NOSIGNAL);
}

static inline ssize_t io_write_parts(int fd, struct iovec *iov, int n)
{
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n};

    return n == 1 ? send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL) : sendmsg(fd, &m, MSG_NOSIGNAL);
}

static inline ssize_t io_write_file(int fd, int file, off_t *pos, size_t len) /* 0: the file ends before */
{
    return sendfile(fd, file, pos, len);
}

static inline void io_end_output(int fd) /* FIN after what has been written */
{
    shutdown(fd, SHUT_WR);
}

static inline void io_cut(int fd) /* both directions; another thread may be using it */
{
    shutdown(fd, SHUT_RDWR);
}

/* Lets bytes gather in the socket: it is readable when `len` of them are there.  1: as usual. */
static inline bool io_gather(int fd, int len)
{
    return setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &len, sizeof len) == 0;
}

size_t io_longest_gathering(void); /* bytes that a socket can hold so; 0: unknown */

/* From now on closing it sends RST.  The client of a Unix socket gets ECONNRESET, after what was sent to it, only if it has
 * sent something that was not read; otherwise it sees the end of the stream. */
static inline void io_reset_at_end(int fd)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

size_t io_received(int fd); /* bytes that wait to be read */

void io_reset(int fd); /* sends RST at once; the client of a Unix socket sees the end of the stream */
void io_end(int fd, bool by_reset); /* closes a connection, even if a forked child has a copy of the descriptor */

/* Acknowledges received data now, not after the usual 40 ms: nginx waits for it with the last part of a body (Nagle). */
static inline void io_acknowledge(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

#endif
