/*
 * io.h - the sockets of clients, as all owners of a connection use them.
 */
#ifndef IO_H
#define IO_H

#include <netinet/in.h>
#include <linux/tcp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

extern atomic_bool io_has_forked; /* a forked child may have copies of the sockets; written by front.c */

size_t io_received(int fd); /* bytes that wait to be read */

int io_reset(int fd); /* sends RST at once */
void io_end(int fd, bool by_reset); /* closes a connection, even if a forked child has a copy of the descriptor */

/* Acknowledges received data now, not after the usual 40 ms: nginx waits for it with the last part of a body (Nagle). */
static inline void io_acknowledge(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

#endif
