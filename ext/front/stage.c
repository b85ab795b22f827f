/* stage.c - see stage.h. */
#define _GNU_SOURCE
#include "stage.h"

#include <errno.h>
#include <unistd.h>

#include "eventloop.h"
#include "conn.h"
#include "handoff.h"
#include "last_words.h"
#include "listener.h"

#define LAST_SECOND SECOND

void front_give_up_after(front *f, int64_t nanoseconds)
{
    f->ending.give_up = nanoseconds;
}

/* The drain should have ended the process by now; the thread that runs it does not get the interpreter lock. */
void stage_give_up(front *f)
{
    last_words_write(f, "the drain has passed its deadline");
    last_words_say("stopped: %u aborted at the deadline\n", (unsigned)handoff_workers(f));
    _exit(1);
}

int front_watch_signals(front *f, int fd, uint64_t draining, int last_words_signal)
{
    f->ending.signal_fd = fd;
    f->ending.draining_signals = draining;
    last_words_init(f, last_words_signal);
    return front_watch_fd(f, fd, FRONT_SIGNALS, EPOLLIN);
}

void stage_signal(front *f)
{
    unsigned char signals[16];
    ssize_t n = read(f->ending.signal_fd, signals, sizeof signals);

    if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR)) { /* its writer is gone, so it would be readable forever */
        epoll_ctl(f->epoll_fd, EPOLL_CTL_DEL, f->ending.signal_fd, NULL);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (signals[i] > 63 || !(f->ending.draining_signals >> signals[i] & 1))
            continue;
        stage_advance(f, FRONT_DRAINING);
        front_ring(f);
        eventloop_bell(f);
        if (f->ending.n_signals > 0 && f->now - f->ending.last_signal < SECOND) /* supervisors send the same signal twice */
            continue;
        f->ending.last_signal = f->now;
        f->ending.n_signals++;
        if (f->ending.n_signals == 1 && f->ending.give_up != 0)
            f->ending.gives_up = f->now + f->ending.give_up;
        if (f->ending.n_signals == 3) {
            last_words_say("pkg: third signal, leaving at once\n");
            _exit(1);
        }
    }
}

void stage_change(front *f)
{
    int wanted = atomic_load(&f->ending.wanted);

    if (wanted == FRONT_CLOSING) {
        listener_stop_handshakes(f);
        conn_hasten(f, CONN_SILENT, LAST_SECOND);
        conn_hasten(f, CONN_IDLE, LAST_SECOND);
        conn_hasten(f, CONN_REST, LAST_SECOND);
        conn_hasten(f, CONN_LINGER, LAST_SECOND);
    }
    atomic_store(&f->stage, wanted);
}

void stage_advance(front *f, enum front_stage stage)
{
    int now = atomic_load(&f->ending.wanted);

    while (now < (int)stage && !atomic_compare_exchange_weak(&f->ending.wanted, &now, (int)stage))
        ;
}

enum front_stage stage_now(const front *f)
{
    int wanted = atomic_load(&f->ending.wanted), stage = atomic_load(&f->stage);

    return (enum front_stage)(wanted > stage ? wanted : stage);
}
