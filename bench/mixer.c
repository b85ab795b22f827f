/*
 * mixer.c - a closed loop of several kinds of requests on connections that end after a few: HttpArena's API profiles.
 *
 *     mixer PORT SECONDS CONNECTIONS REUSE PATH...
 *         Each connection sends REUSE requests for one path, one after the other, and then another one takes its place, for
 *         the next path.  Prints the number of responses with status 200, of others and of connections that were cut.
 *
 * One thread; a response is read as far as its Content-Length, and chunks to the last one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LONGEST 65536 /* bytes of a response */

typedef struct {
    int fd;
    unsigned path, left; /* left: requests on this connection */
    size_t got;
    char in[LONGEST + 1];
} client;

static int epoll_fd;
static struct sockaddr_in address;
static char requests[64][512];
static size_t request_len[64];
static unsigned n_paths, reuse, next_path;
static unsigned long answered, refused, cut;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void ask(client *c)
{
    c->got = 0;
    (void)!send(c->fd, requests[c->path], request_len[c->path], MSG_NOSIGNAL); /* an error is seen by recv() */
}

static void begin(client *c, uint32_t number)
{
    int on = 1;
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = number};

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd == -1 || connect(c->fd, (struct sockaddr *)&address, sizeof address) == -1) { /* loopback: takes no time */
        perror("connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &ev) == -1) {
        perror("epoll_ctl");
        exit(1);
    }
    c->path = next_path++ % n_paths;
    c->left = reuse;
    ask(c);
}

/* Whether the whole response is there. */
static bool is_whole(const client *c)
{
    const char *end = strstr(c->in, "\r\n\r\n"), *length;

    if (end == NULL)
        return false;
    if ((length = strcasestr(c->in, "\r\ncontent-length:")) != NULL && length < end)
        return c->got - (size_t)(end + 4 - c->in) >= (size_t)atol(length + 17);
    return c->got >= 5 && memcmp(c->in + c->got - 5, "0\r\n\r\n", 5) == 0;
}

static void receive(client *c, uint32_t number)
{
    ssize_t n = recv(c->fd, c->in + c->got, LONGEST - c->got, MSG_DONTWAIT);

    if (n == -1 && errno == EAGAIN)
        return;
    if (n > 0) {
        c->got += (size_t)n;
        c->in[c->got] = '\0';
        if (!is_whole(c) && c->got < LONGEST)
            return;
        if (c->got >= 12 && memcmp(c->in + 9, "200", 3) == 0)
            answered++;
        else
            refused++;
        if (--c->left > 0 && strcasestr(c->in, "\r\nconnection: close") == NULL) {
            ask(c);
            return;
        }
    } else {
        cut++;
    }
    close(c->fd);
    begin(c, number);
}

int main(int argc, char **argv)
{
    struct epoll_event events[256];

    if (argc < 6 || argc > 69) {
        fprintf(stderr, "usage: mixer PORT SECONDS CONNECTIONS REUSE PATH...\n");
        return 2;
    }
    uint32_t count = (uint32_t)atoi(argv[3]);
    client *clients = calloc(count, sizeof *clients);
    if (clients == NULL || (epoll_fd = epoll_create1(EPOLL_CLOEXEC)) == -1) {
        perror("mixer");
        return 1;
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                   .sin_port = htons((uint16_t)atoi(argv[1]))};
    reuse = (unsigned)atoi(argv[4]);
    for (n_paths = 0; (int)n_paths < argc - 5; n_paths++)
        request_len[n_paths] = (size_t)snprintf(requests[n_paths], sizeof requests[0],
                                                "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", argv[n_paths + 5]);
    double start = now(), end = start + atof(argv[2]);
    for (uint32_t i = 0; i < count; i++)
        begin(&clients[i], i);
    while (now() < end) {
        int n = epoll_wait(epoll_fd, events, 256, 100);
        for (int i = 0; i < n; i++)
            receive(&clients[events[i].data.u32], events[i].data.u32);
    }
    printf("%lu %lu %lu %.3f\n", answered, refused, cut, now() - start);
    return 0;
}
