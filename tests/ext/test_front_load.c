/*
 * test_front_load.c - the front under load: random pipelines from many connections in which no request may wait for a
 * wake-up that does not come.  A second, quiet run with few connections shows lost wake-ups that traffic of others or the
 * loop's own look, once a second, would hide.
 *
 *     cc -g -fsanitize=thread -Iext tests/ext/test_front_load.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

/* ------------------------------------------------------------------------- random requests, checked answers */

#define DEPTH 32 /* requests of a connection without an answer, at most */

typedef struct {
    client c;
    char *out;
    size_t out_len, out_pos, out_cap;
    int64_t next; /* when to send the next piece */
    struct expected {
        char target[64];
        bool is_page, is_head;
        size_t body;
        uint64_t hash;
        int64_t sent; /* 0: not all of it yet */
        size_t end;   /* where it ends in what was said since the beginning */
    } expected[DEPTH];
    int n, first;
    size_t said; /* bytes handed to the socket since the beginning */
    size_t queued;
    bool half_closed;
} talker;

typedef struct {
    rig *r;
    pthread_t thread;
    int n_talkers;
    unsigned seed;
    int64_t until, patience, worst;
    uint64_t answered;
    bool quiet, disconnects;
} crowd;

static unsigned dice(crowd *w, unsigned sides)
{
    return (unsigned)rand_r(&w->seed) % sides;
}

static void append(talker *t, const char *bytes, size_t len)
{
    if (t->out_len + len > t->out_cap) {
        t->out_cap = (t->out_len + len) * 2;
        t->out = realloc(t->out, t->out_cap);
        REQUIRE(t->out != NULL);
    }
    memcpy(t->out + t->out_len, bytes, len);
    t->out_len += len;
    t->queued += len;
}

static void add_request(crowd *w, talker *t)
{
    static _Atomic unsigned serial;
    static _Thread_local char body[200000], line[512];
    struct expected *e = &t->expected[(t->first + t->n++) % DEPTH];
    unsigned kind = dice(w, 16);
    size_t len = 0, n;

    memset(e, 0, sizeof *e);
    e->hash = RIG_HASH;
    if (kind < 4) {
        e->is_page = true;
        e->is_head = kind == 0;
        n = (size_t)snprintf(line, sizeof line, "%s /healthz HTTP/1.1\r\nHost: x\r\n\r\n", e->is_head ? "HEAD" : "GET");
        append(t, line, n);
    } else {
        snprintf(e->target, sizeof e->target, "/%s/%u", kind == 15 ? "late/1?" : "echo", atomic_fetch_add(&serial, 1));
        if (kind >= 10) {
            len = kind == 10 ? dice(w, 150000) : dice(w, 3000);
            for (size_t i = 0; i < len; i++)
                body[i] = rig_byte(i + kind);
            e->hash = rig_hash(RIG_HASH, body, len);
        }
        e->body = len;
        if (len > 0 && (kind == 10 ? dice(w, 2) == 0 : kind % 2 == 0)) { /* of the long ones, chunked ones are spooled */
            n = (size_t)snprintf(line, sizeof line, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", e->target, len);
            append(t, line, n);
            append(t, body, len);
        } else if (len > 0) {
            n = (size_t)snprintf(line, sizeof line, "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", e->target);
            append(t, line, n);
            for (size_t at = 0; at < len;) {
                size_t part = 1 + dice(w, 5000);
                part = part < len - at ? part : len - at;
                append(t, line, (size_t)snprintf(line, sizeof line, "%zx\r\n", part));
                append(t, body + at, part);
                append(t, "\r\n", 2);
                at += part;
            }
            append(t, "0\r\nT: 1\r\n\r\n", 11);
        } else if (kind == 9) { /* a head that fills the front's first buffer exactly */
            n = (size_t)snprintf(line, sizeof line, "GET %s HTTP/1.1\r\nHost: x\r\nX: ", e->target);
            append(t, line, n);
            memset(body, 'x', 2048);
            append(t, body, 2048 - 4 - n);
            append(t, "\r\n\r\n", 4);
        } else {
            n = (size_t)snprintf(line, sizeof line, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", e->target);
            append(t, line, n);
        }
    }
    e->end = t->queued;
}

static void begin(crowd *w, talker *t)
{
    dial(w->r, &t->c);
    t->out_len = t->out_pos = t->said = t->queued = 0;
    t->n = t->first = 0;
    t->half_closed = false;
    t->next = 0;
}

static void check_answer(crowd *w, talker *t, int64_t now)
{
    struct expected *e = &t->expected[t->first];
    reply a;

    REQUIRE(hear_by(&t->c, &a, e->is_head, now + PATIENCE));
    REQUIRE(t->n > 0, "an answer to nothing: %s", a.head);
    REQUIRE(a.status == 200 && !a.cut, "%s: %d %s %s", e->target, a.status, a.head, a.body);
    if (e->is_page) {
        REQUIRE(e->is_head || strcmp(a.body, "ok") == 0, "in place of a page: %s", a.body);
    } else {
        char want[256];
        snprintf(want, sizeof want, "%s %s %zu %016llx\n", e->body > 0 ? "POST" : "GET", e->target, e->body, (unsigned long long)e->hash);
        REQUIRE(strcmp(a.body, want) == 0, "got %s want %s", a.body, want);
    }
    if (e->sent != 0 && now - e->sent > w->worst)
        w->worst = now - e->sent;
    w->answered++;
    t->first = (t->first + 1) % DEPTH;
    t->n--;
}

static void step(crowd *w, talker *t, int64_t now, bool readable, bool last)
{
    if (readable && (t->n > 0 || t->half_closed)) {
        do {
            if (t->n == 0) { /* half-closed, all answered: the end comes, promptly */
                hear_end(&t->c);
                hang_up(&t->c);
                begin(w, t);
                return;
            }
            check_answer(w, t, now);
        } while (t->c.len > 0);
    }
    if (t->n > 0) {
        struct expected *e = &t->expected[t->first];
        REQUIRE(e->sent == 0 || now - e->sent < w->patience, "%s%s: no answer for %.3f s; %d outstanding", e->target, e->is_page ? "page" : "",
                (double)(now - e->sent) / 1e9, t->n);
    }
    if (t->out_pos == t->out_len && !last && !t->half_closed && now >= t->next) {
        if (w->disconnects && dice(w, 200) == 0) { /* in the middle of whatever it is doing */
            reset(&t->c);
            begin(w, t);
            return;
        }
        t->out_pos = t->out_len = 0;
        for (unsigned i = dice(w, 6) == 0 ? dice(w, 20) + 1 : 1; i > 0 && t->n < DEPTH; i--)
            add_request(w, t);
    }
    if (t->out_pos < t->out_len && now >= t->next) {
        size_t part = t->out_len - t->out_pos;
        if (dice(w, 3) == 0)
            part = 1 + dice(w, (unsigned)part);
        ssize_t n = send(t->c.fd, t->out + t->out_pos, part, MSG_DONTWAIT | MSG_NOSIGNAL);
        REQUIRE(n > 0 || errno == EAGAIN, "send: %s", strerror(errno));
        if (n > 0) {
            t->out_pos += (size_t)n;
            t->said += (size_t)n;
            now = front_now();
            for (int i = 0; i < t->n; i++) {
                struct expected *e = &t->expected[(t->first + i) % DEPTH];
                if (e->sent == 0 && e->end <= t->said)
                    e->sent = now;
            }
            if (w->disconnects && t->out_pos == t->out_len && dice(w, 300) == 0) {
                shutdown(t->c.fd, SHUT_WR);
                t->half_closed = true;
            }
        }
        switch (dice(w, w->quiet ? 3 : 6)) {
        case 0:
            t->next = now + dice(w, 200) * 1000LL;
            break;
        case 1:
            t->next = now + dice(w, w->quiet ? 30 : 5) * MS;
            break;
        default:
            t->next = now;
        }
    }
}

static void *talk(void *arg)
{
    crowd *w = arg;
    talker *t = calloc((size_t)w->n_talkers, sizeof *t);
    struct pollfd *p = calloc((size_t)w->n_talkers, sizeof *p);
    bool last = false, busy = true;

    REQUIRE(t != NULL && p != NULL);
    for (int i = 0; i < w->n_talkers; i++)
        begin(w, &t[i]);
    while (busy) {
        for (int i = 0; i < w->n_talkers; i++)
            p[i] = (struct pollfd){.fd = t[i].c.fd, .events = POLLIN};
        REQUIRE(poll(p, (nfds_t)w->n_talkers, 1) >= 0);
        int64_t now = front_now();
        last = now > w->until;
        busy = !last;
        for (int i = 0; i < w->n_talkers; i++) {
            step(w, &t[i], now, (p[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0, last);
            busy = busy || t[i].n > 0;
        }
    }
    for (int i = 0; i < w->n_talkers; i++) {
        hang_up(&t[i].c);
        free(t[i].out);
    }
    free(t);
    free(p);
    return NULL;
}

static void load(int crowds, int talkers, int workers, int64_t duration, int64_t patience, bool quiet, bool disconnects)
{
    rig r;
    crowd w[8];
    uint64_t answered = 0;
    int64_t worst = 0;

    rig_start(&r, NULL, workers);
    rig_publish(&r);
    for (int i = 0; i < crowds; i++) {
        w[i] = (crowd){.r = &r, .n_talkers = talkers, .seed = (unsigned)front_now() + (unsigned)i, .until = front_now() + duration,
                       .patience = patience, .quiet = quiet, .disconnects = disconnects};
        REQUIRE(pthread_create(&w[i].thread, NULL, talk, &w[i]) == 0);
    }
    for (int i = 0; i < crowds; i++) {
        pthread_join(w[i].thread, NULL);
        answered += w[i].answered;
        worst = w[i].worst > worst ? w[i].worst : worst;
    }
    printf("     %llu answers, the slowest after %.3f s\n", (unsigned long long)answered, (double)worst / 1e9);
    REQUIRE(answered > 100);
    rig_stop(&r);
}

/* The loop looks by itself once a second: what waits for that has been lost. */
static void quiet_pipelines(void) { load(1, 1, 2, 4 * SEC, 900 * MS, true, false); }
static void quiet_pipelines_long(void) { load(2, 1, 3, 40 * SEC, 900 * MS, true, false); }
static void pipelines(void) { load(2, 100, 6, 4 * SEC, 5 * SEC, false, false); }
static void pipelines_disconnects(void) { load(2, 50, 4, 4 * SEC, 5 * SEC, false, true); }
static void pipelines_one_worker(void) { load(2, 20, 1, 3 * SEC, 5 * SEC, false, true); }
static void pipelines_long(void) { load(3, 200, 8, 60 * SEC, 5 * SEC, false, true); }

static const test tests[] = {
    {"quiet_pipelines", quiet_pipelines, ALONE},
    {"pipelines", pipelines, ALONE},
    {"pipelines_disconnects", pipelines_disconnects, ALONE},
    {"pipelines_one_worker", pipelines_one_worker, ALONE},
    {"quiet_pipelines_long", quiet_pipelines_long, SLOW | ALONE},
    {"pipelines_long", pipelines_long, SLOW | ALONE},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
