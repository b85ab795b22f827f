/* spool.c - the thread of spool.h, and the files it writes. */
#define _GNU_SOURCE
#include "spool.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "body.h"
#include "io.h"

#define EVENTS 64
#define READS  8                /* per turn of one connection */
#define BLOCK  (64 << 10)       /* bytes per read, if there is room for such a buffer */
#define PATIENCE 500000000L     /* nanoseconds: whoever closes the front may hold the interpreter lock */
#define WAKE   (-1)             /* in the pipe, beside descriptors to close */

struct spool {
    front *f;
    pthread_t thread;
    int epoll_fd, pipe[2]; /* the pipe carries descriptors to close, or WAKE */
    atomic_bool stopping;
    atomic_uint unwanted;  /* how many connections must be returned before their bodies are complete */
    conn_list waiting;     /* used by the thread; all have the same timeout, so the first is due first */
    pthread_mutex_t mutex;
    conn_list incoming, finished; /* under the mutex */
};

/* ------------------------------------------------------------------------ files */

/* Without a name, so that it disappears with the process, however that ends. */
static int open_in(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd != -1 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return fd;
    char path[PATH_MAX]; /* for file systems or kernels without unnamed files */
    int n = snprintf(path, sizeof path, "%s/pkg-body-XXXXXX", directory);
    if (n < 0 || (size_t)n >= sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if ((fd = mkostemp(path, O_CLOEXEC)) != -1)
        unlink(path);
    return fd;
}

static int open_file(const front *f, body_file *file)
{
    int fd = f->limits.body_spool != NULL ? open_in(f->limits.body_spool) : -1;

    file->in_memory = fd == -1;
    file->fd = fd != -1 ? fd : memfd_create("pkg-body", MFD_CLOEXEC);
    return file->fd;
}

/* FRONT_OK, or an errno value for what is exhausted. */
static int reserve(front *f, const body_file *file, size_t n)
{
    int full = EFBIG;

    if (atomic_fetch_add(&f->spooling.bytes, n) + n <= f->limits.body_spool_size) {
        if (!file->in_memory || buffers_reserve(f, n))
            return FRONT_OK;
        full = ENOBUFS;
    }
    atomic_fetch_sub(&f->spooling.bytes, n);
    return full;
}

static void release(front *f, const body_file *file, uint64_t n)
{
    atomic_fetch_sub(&f->spooling.bytes, n);
    if (file->in_memory)
        buffers_return(f, n);
}

/* Appends the body's bytes in the buffer to the file.  FRONT_OK, or an errno value; then the rest is still in the buffer. */
static int store(front *f, front_conn *c)
{
    buffer *b = c->in;
    body_file *file = c->spooled;
    size_t stored = 0;
    int error = FRONT_OK;

    if (b->body_len > 0 && file->fd == -1 && open_file(f, file) == -1) /* a body of which nothing has come needs no file */
        return errno;
    while (stored < b->body_len && error == FRONT_OK) {
        size_t rest = b->body_len - stored;
        if ((error = reserve(f, file, rest)) != FRONT_OK)
            break;
        ssize_t n = pwrite(file->fd, b->data + b->head_len + stored, rest, (off_t)file->size);
        if (n == -1 && errno != EINTR)
            error = errno;
        size_t written = n > 0 ? (size_t)n : 0;
        release(f, file, rest - written);
        stored += written;
        file->size += written;
    }
    b->body_len -= stored;
    if (stored > 0) /* bytes after the body stay where they are */
        memmove(b->data + b->head_len, b->data + b->head_len + stored, b->body_len);
    if (b->raw == b->len)
        b->raw = b->len = b->head_len + b->body_len;
    return error;
}

ssize_t spool_read(body_file *file, char *buf, size_t len)
{
    uint64_t there = file->size - file->given;

    for (;;) {
        ssize_t n = pread(file->fd, buf, there < len ? (size_t)there : len, (off_t)file->given);
        if (n > 0) {
            file->given += (uint64_t)n;
            return n;
        }
        if (n == 0 || errno != EINTR)
            return -EIO;
    }
}

static void tell(struct spool *s, int number)
{
    if (write(s->pipe[1], &number, sizeof number) == -1 && number != WAKE) /* a full pipe wakes the thread as well */
        close(number);
}

void spool_drop(front *f, front_conn *c)
{
    body_file *file = c->spooled;

    if (file == NULL)
        return;
    c->spooled = NULL; /* first, so that a child that is forked now does not close a reused number */
    release(f, file, file->size);
    if (file->fd != -1)
        tell(f->spooling.thread, file->fd);
    free(file);
}

/* ------------------------------------------------------------------- the thread */

/* Returns a connection to the loop. */
static void finish(struct spool *s, front_conn *c, int result)
{
    epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    list_remove(&s->waiting, c);
    c->spooled->result = result;
    if (result == FRONT_OK)
        count_add(&s->f->count.spooled, 1);
    pthread_mutex_lock(&s->mutex);
    list_push(&s->finished, c);
    if (s->unwanted > 0) /* whoever leaves makes room */
        s->unwanted--;
    pthread_mutex_unlock(&s->mutex);
    front_ring(s->f);
}

static void displace(struct spool *s)
{
    while (atomic_load(&s->unwanted) > 0 && s->waiting.first != NULL)
        finish(s, s->waiting.first, FRONT_E_DISPLACED);
}

static void give_up(struct spool *s, front_conn *c, int error)
{
    atomic_store(&s->f->spooling.error, error);
    count_add(&s->f->count.spool_failures, 1);
    finish(s, c, FRONT_AGAIN);
}

static void wait_anew(struct spool *s, front_conn *c)
{
    list_remove(&s->waiting, c);
    c->deadline = front_clock(s->f) + s->f->limits.body_timeout;
    list_push(&s->waiting, c);
}

/* Makes room for what waits in the socket, up to BLOCK, so that a client that sends little or nothing has no large buffer.
 * False if there is no room at all. */
static bool make_room(front *f, front_conn *c)
{
    size_t used = c->in->len, room = c->in->cap - used;

    if (room < BLOCK) {
        size_t there = io_received(c->fd);
        if (there > room || room == 0)
            (void)buffer_grow(f, c, used + (there < BLOCK ? there : BLOCK), used + BLOCK);
    }
    return c->in->cap > used;
}

/* Reads and writes until the socket is empty or others must have their turn. */
static void carry_on(struct spool *s, front_conn *c)
{
    front *f = s->f;

    for (int i = 0; i < READS; i++) {
        if (!make_room(f, c)) {
            give_up(s, c, ENOBUFS);
            return;
        }
        buffer *b = c->in;
        ssize_t n = io_read(c->fd, b->data + b->len, b->cap - b->len);
        if (n == -1 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            finish(s, c, n == 0 ? FRONT_E_TRUNCATED : -errno);
            return;
        }
        count_add(&f->count.bytes_in, (uint64_t)n);
        b->len += (size_t)n;
        bool emptied = b->len < b->cap;
        int rv = body_decode(f, c);
        if (rv != FRONT_OK) {
            finish(s, c, rv);
            return;
        }
        if ((rv = store(f, c)) != FRONT_OK) {
            give_up(s, c, rv);
            return;
        }
        if (c->complete) {
            finish(s, c, FRONT_OK);
            return;
        }
        if (emptied) {
            io_acknowledge(c->fd);
            return;
        }
    }
}

static void begin(struct spool *s, front_conn *c)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    int rv;

    list_push(&s->waiting, c);
    wait_anew(s, c);
    if ((rv = store(s->f, c)) != FRONT_OK)
        give_up(s, c, rv);
    else if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, c->fd, &ev) == -1)
        give_up(s, c, errno);
    else
        carry_on(s, c);
}

/* Closes the files whose descriptors are in the pipe.  False if it was empty. */
static bool close_files(struct spool *s)
{
    int numbers[256];
    ssize_t n = read(s->pipe[0], numbers, sizeof numbers);

    for (ssize_t i = 0; i < n / (ssize_t)sizeof numbers[0]; i++)
        if (numbers[i] != WAKE)
            close(numbers[i]);
    return n > 0;
}

static void take_incoming(struct spool *s)
{
    close_files(s);
    pthread_mutex_lock(&s->mutex);
    front_conn *c = s->incoming.first, *next;
    s->incoming.first = s->incoming.last = NULL;
    pthread_mutex_unlock(&s->mutex);
    for (; c != NULL; c = next) {
        next = c->next;
        begin(s, c);
    }
}

/* A client is late if it has sent too little in a period, and nothing waits to be read at its end. */
static void expire(struct spool *s)
{
    int64_t now = front_clock(s->f);
    front_conn *c;

    while ((c = s->waiting.first) != NULL && c->deadline <= now) {
        if (io_received(c->fd) > 0) {
            c->body_mark = c->body_read;
            wait_anew(s, c);
        } else if (body_keeps_up(s->f, c)) {
            wait_anew(s, c);
        } else {
            finish(s, c, FRONT_E_LATE);
        }
    }
}

static void *run(void *argument)
{
    struct spool *s = argument;
    struct epoll_event events[EVENTS];

    while (!atomic_load(&s->stopping)) {
        int64_t left = s->waiting.first != NULL ? s->waiting.first->deadline - front_clock(s->f) : -1;
        int timeout = s->waiting.first == NULL ? -1 : left <= 0 ? 0 : (int)((left + MILLISECOND - 1) / MILLISECOND);
        int n = epoll_wait(s->epoll_fd, events, EVENTS, timeout);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr == NULL)
                take_incoming(s);
            else
                carry_on(s, events[i].data.ptr);
        displace(s);
        expire(s);
    }
    return NULL;
}

/* --------------------------------------------------------------------- lifetime */

static void destroy(struct spool *s)
{
    if (s->pipe[0] != -1)
        while (close_files(s))
            ;
    for (size_t i = 0; i < 3; i++) {
        int fd = (int[]){s->epoll_fd, s->pipe[0], s->pipe[1]}[i];
        if (fd != -1)
            close(fd);
    }
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

static int start_thread(struct spool *s)
{
    sigset_t all, before;

    sigfillset(&all); /* signals belong to the interpreter */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rv = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rv == 0)
        pthread_setname_np(s->thread, "spool");
    return -rv;
}

static int start(front *f)
{
    struct spool *s = calloc(1, sizeof *s);
    int rv = FRONT_OK;

    if (s == NULL)
        return -ENOMEM;
    s->f = f;
    s->pipe[0] = s->pipe[1] = -1;
    pthread_mutex_init(&s->mutex, NULL);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    if ((s->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) == -1 || pipe2(s->pipe, O_CLOEXEC | O_NONBLOCK) == -1 ||
        epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->pipe[0], &ev) == -1)
        rv = -errno;
    if (rv == FRONT_OK)
        rv = start_thread(s);
    if (rv != FRONT_OK) {
        destroy(s);
        return rv;
    }
    f->spooling.thread = s;
    return FRONT_OK;
}

int spool_take(front *f, front_conn *c)
{
    int rv = f->limits.body_spool_size == 0 ? -EFBIG : f->spooling.thread == NULL ? start(f) : FRONT_OK;

    body_file *file = rv == FRONT_OK ? malloc(sizeof *file) : NULL;
    if (rv == FRONT_OK && file == NULL)
        rv = -ENOMEM;
    if (rv != FRONT_OK) {
        atomic_store(&f->spooling.error, -rv);
        count_add(&f->count.spool_failures, 1);
        return rv;
    }
    *file = (body_file){.fd = -1};
    c->spooled = file; /* last, as a child that is forked now closes what it finds there */
    pthread_mutex_lock(&f->spooling.thread->mutex);
    list_push(&f->spooling.thread->incoming, c);
    pthread_mutex_unlock(&f->spooling.thread->mutex);
    tell(f->spooling.thread, WAKE);
    return FRONT_OK;
}

bool spool_displace(front *f, uint32_t n_spooling)
{
    if (f->spooling.thread == NULL)
        return false;
    pthread_mutex_lock(&f->spooling.thread->mutex);
    uint32_t there = n_spooling;
    for (const front_conn *c = f->spooling.thread->finished.first; c != NULL; c = c->next)
        there--; /* it has left already */
    bool one_more = there > f->spooling.thread->unwanted;
    if (one_more)
        f->spooling.thread->unwanted++;
    pthread_mutex_unlock(&f->spooling.thread->mutex);
    if (one_more)
        tell(f->spooling.thread, WAKE);
    return one_more;
}

front_conn *spool_finished(front *f)
{
    pthread_mutex_lock(&f->spooling.thread->mutex);
    front_conn *c = f->spooling.thread->finished.first;
    if (c != NULL)
        list_remove(&f->spooling.thread->finished, c);
    pthread_mutex_unlock(&f->spooling.thread->mutex);
    return c;
}

void spool_stop(front *f)
{
    if (f->spooling.thread == NULL)
        return;
    atomic_store(&f->spooling.thread->stopping, true);
    tell(f->spooling.thread, WAKE);
}

bool spool_close(front *f)
{
    struct timespec until;

    if (f->spooling.thread == NULL)
        return true;
    spool_stop(f);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (until.tv_nsec + PATIENCE) / 1000000000;
    until.tv_nsec = (until.tv_nsec + PATIENCE) % 1000000000;
    if (pthread_timedjoin_np(f->spooling.thread->thread, NULL, &until) != 0) {
        pthread_detach(f->spooling.thread->thread);
        return false;
    }
    destroy(f->spooling.thread);
    f->spooling.thread = NULL;
    return true;
}

void spool_count(front *f, front_counters *out)
{
    out->spool_bytes = atomic_load(&f->spooling.bytes);
    out->spool_error = (uint64_t)atomic_load(&f->spooling.error);
}

void spool_disown(front *f)
{
    if (f->spooling.thread == NULL)
        return;
    close(f->spooling.thread->epoll_fd);
    close(f->spooling.thread->pipe[0]);
    close(f->spooling.thread->pipe[1]);
}
