/* last_words.c - see last_words.h. */
#define _GNU_SOURCE
#include "last_words.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "eventloop.h"
#include "handoff.h"

void last_words_say(const char *format, ...)
{
    struct pollfd pfd = {.fd = STDERR_FILENO, .events = POLLOUT}; /* room for PIPE_BUF bytes, pipe(7) */
    va_list arguments;

    if (poll(&pfd, 1, 0) != 1)
        return;
    va_start(arguments, format);
    vdprintf(STDERR_FILENO, format, arguments);
    va_end(arguments);
}

/* Bytes over 127 are percent-encoded, since they may not be text, or may control a terminal (C1). */
static const char *quoted(const char *target, char *out, size_t size)
{
    size_t n = 0;

    for (; *target != '\0' && n + 4 <= size; target++)
        if ((unsigned char)*target < 0x80)
            out[n++] = *target;
        else
            n += (size_t)snprintf(out + n, size - n, "%%%02X", (unsigned)(unsigned char)*target);
    out[n] = '\0';
    return out;
}

void last_words_write(front *f, const char *why)
{
    front_flight flights[64];
    char target[3 * sizeof flights[0].target];
    size_t n = front_requests(f, FRONT_TAKEN | FRONT_QUEUED, flights, 64);
    front_counters counters;

    handoff_count(f, &counters);
    last_words_say("%s: the interpreter shows no sign of life; %llu requests in flight\n", why,
                   (unsigned long long)counters.in_flight);
    if (eventloop_turn(f) > SECOND)
        last_words_say("  the event loop has been blocked for %.3f s\n", (double)eventloop_turn(f) / 1e9);
    for (size_t i = 0; i < n; i++)
        last_words_say("  %s %s, %.3f s, thread %llu\n", flights[i].method, quoted(flights[i].target, target, sizeof target),
                  (double)flights[i].age / 1e9, (unsigned long long)flights[i].thread);
    if (counters.in_flight > n)
        last_words_say("  and %llu more\n", (unsigned long long)counters.in_flight - n);
    if (f->last_words.signal != 0)
        pthread_kill(pthread_self(), f->last_words.signal);
}
