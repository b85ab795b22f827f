/*
 * responder.c - the minimum that a server does in one thread: epoll, one read, one write of a fixed response.
 *
 * It shows the limit of the kernel on this machine and is not a server: it takes every read for a complete request, and
 * knows nothing about HTTP except "close" in the head.
 *
 *     responder PORT
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* As long as the response of our health page, so that the kernel transfers the same number of bytes. */
#define HEAD                                                                                                 \
    "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain; charset=utf-8\r\n" \
    "Content-Length: 2\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
static const char KEPT[] = HEAD "\r\nok", CLOSED[] = HEAD "Connection: close\r\n\r\nok";

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int epoll, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ev) == -1)
        die("epoll_ctl");
}

static void on_readable(int fd)
{
    char buf[4096];
    ssize_t n = recv(fd, buf, sizeof buf, 0);
    int ends = n <= 0 || memmem(buf, (size_t)n, "close", 5) != NULL;

    if (n > 0 && send(fd, ends ? CLOSED : KEPT, (ends ? sizeof CLOSED : sizeof KEPT) - 1, MSG_NOSIGNAL) == -1)
        ends = 1;
    if (ends)
        close(fd);
}

int main(int argc, char **argv)
{
    int on = 1, fd;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[64];

    if (argc != 2) {
        fprintf(stderr, "usage: responder PORT\n");
        return 2;
    }
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* inherited */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) == -1 || listen(listener, 4096) == -1)
        die("listen");
    watch(epoll, listener);
    for (;;) {
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd != listener) {
                on_readable(events[i].data.fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) != -1)
                watch(epoll, fd);
        }
    }
}
