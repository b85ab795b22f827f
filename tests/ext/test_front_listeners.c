/*
 * test_front_listeners.c - several listening sockets: TCP, Unix, for health only, without health pages, shared with others.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_listeners.c ext/{http,front}/?*.c -pthread && ./a.out [NAME]
 */
#include "rig.h"

#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/un.h>

#define GET(target) "GET " target " HTTP/1.1\r\nHost: x\r\n\r\n"

/* ------------------------------------------------------------------------------------------------ sockets */

static char folder[] = "/tmp/pkg-listeners-XXXXXX";

static struct sockaddr_un unix_address(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof a.sun_path, "%s/%s", folder, name);
    return a;
}

static void remove_folder(void)
{
    static const char *const names[] = {"main", "health", "bare", "shared"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(unix_address(names[i]).sun_path);
    rmdir(folder);
}

static int listen_unix(const char *name)
{
    struct sockaddr_un a = unix_address(name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    REQUIRE(fd != -1 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 4096) == 0, "%s", strerror(errno));
    return fd;
}

static int listen_tcp(struct sockaddr_in *address)
{
    rig r;

    rig_listen(&r);
    *address = r.address;
    return r.listen_fd;
}

static int dial_path(const char *name)
{
    struct sockaddr_un a = unix_address(name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    REQUIRE(fd != -1, "%s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
        return fd;
    int error = errno;
    close(fd);
    return -error;
}

static client dial_unix(const char *name)
{
    client c = {.fd = dial_path(name)};

    REQUIRE(c.fd >= 0, "%s", strerror(-c.fd));
    return c;
}

/* The status of one request on a connection of its own. */
static int ask(client c, const char *request)
{
    say(&c, request);
    reply a = hear(&c);
    REQUIRE(!a.cut);
    hang_up(&c);
    return a.status;
}

static client dial_main(rig *r)
{
    client c;
    dial(r, &c);
    return c;
}

/* A front on TCP and on Unix sockets of each kind, and what closes it. */
typedef struct {
    rig r;
    front_listen more[3]; /* after the TCP socket: "main", "health" and "bare" */
} house;

static void house_open(house *h, const front_limits *limits, int n_workers)
{
    REQUIRE(mkdtemp(folder) != NULL);
    h->more[0] = (front_listen){.fd = listen_unix("main"), .pages = true, .requests = true};
    h->more[1] = (front_listen){.fd = listen_unix("health"), .pages = true};
    h->more[2] = (front_listen){.fd = listen_unix("bare"), .requests = true};
    rig_start_on(&h->r, limits, n_workers, h->more, 3);
    rig_publish(&h->r);
}

static void house_close(house *h)
{
    rig_stop(&h->r);
    for (int i = 0; i < 3; i++)
        close(h->more[i].fd);
    remove_folder();
}

/* ------------------------------------------------------------------------------------------------ serving */

static void each_serves_what_it_is_for(void)
{
    house h;

    house_open(&h, NULL, 2);
    REQUIRE(ask(dial_main(&h.r), GET("/healthz")) == 200 && ask(dial_main(&h.r), GET("/echo")) == 200);
    REQUIRE(atomic_load(&h.r.handled) == 1);
    REQUIRE(ask(dial_unix("main"), GET("/healthz")) == 200 && ask(dial_unix("main"), GET("/echo")) == 200);
    REQUIRE(atomic_load(&h.r.handled) == 2);
    REQUIRE(ask(dial_unix("health"), GET("/healthz")) == 200 && ask(dial_unix("health"), GET("/readyz?verbose")) == 200);
    REQUIRE(ask(dial_unix("health"), "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n") == 200);
    REQUIRE(ask(dial_unix("health"), GET("/echo")) == 404);
    REQUIRE(ask(dial_unix("health"), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc") == 404);
    REQUIRE(ask(dial_unix("health"), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n") == 404);
    REQUIRE(ask(dial_unix("health"), "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n") == 404);
    REQUIRE(ask(dial_unix("health"), "nonsense\r\n\r\n") == 400);
    REQUIRE(atomic_load(&h.r.handled) == 2);
    REQUIRE(ask(dial_unix("bare"), GET("/healthz")) == 200); /* the application's */
    REQUIRE(ask(dial_unix("bare"), GET("/readyz")) == 200);
    REQUIRE(atomic_load(&h.r.handled) == 4);
    static const uint64_t accepted[] = {2, 2, 8, 2, 0};
    for (unsigned i = 0; i < 5; i++)
        REQUIRE(front_accepted(h.r.f, i) == accepted[i], "%u: %llu", i, (unsigned long long)front_accepted(h.r.f, i));
    REQUIRE(rig_count(&h.r).accepted == 14);

    client kept = dial_unix("health"); /* pages, one after the other */
    for (int i = 0; i < 100; i++) {
        say(&kept, GET("/healthz"));
        reply a = hear(&kept);
        REQUIRE(a.status == 200 && !a.close);
    }
    say(&kept, GET("/echo"));
    reply a = hear(&kept);
    REQUIRE(a.status == 404 && a.close);
    hear_end(&kept);
    hang_up(&kept);
    house_close(&h);
}

static void a_proxy_speaks_first_where_it_is_trusted(void)
{
    house h;

    REQUIRE(mkdtemp(folder) != NULL);
    h.more[0] = (front_listen){.fd = listen_unix("main"), .pages = true, .requests = true, .proxied = true};
    h.more[1] = (front_listen){.fd = listen_unix("health"), .pages = true, .proxied = true};
    h.more[2] = (front_listen){.fd = listen_unix("bare"), .requests = true};
    rig_start_on(&h.r, NULL, 1, h.more, 3);
    rig_publish(&h.r);
    static const char with[] = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" GET("/echo");
    REQUIRE(ask(dial_unix("main"), with) == 200);
    REQUIRE(ask(dial_unix("main"), "PROXY UNKNOWN\r\n" GET("/echo")) == 200);
    REQUIRE(ask(dial_unix("main"), GET("/echo")) == 400);
    REQUIRE(ask(dial_unix("health"), GET("/healthz")) == 200); /* a probe knows no client */
    REQUIRE(ask(dial_unix("bare"), with) == 400);
    REQUIRE(ask(dial_main(&h.r), with) == 400);
    REQUIRE(atomic_load(&h.r.handled) == 2);
    house_close(&h);
}

/* ------------------------------------------------------------------------------------------------ clients that leave */

/* A client that sends all of a request and closes at once is served, as over TCP. */
static void who_has_sent_a_request_may_leave(void)
{
    enum { SIZE = 60000 };
    static const char *const headers[] = {"Content-Length: 60000\r\n", "Transfer-Encoding: chunked\r\n"};

    for (int streams = 0; streams < 2; streams++) {
        house h;
        front_limits limits = rig_limits();
        int sent = 0;

        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        limits.stream_bodies = streams;
        limits.body_buffer_size = 4096; /* so that the body is spooled or streams */
        house_open(&h, &limits, 2);
        for (int held = 0; held < 2; held++) { /* while the workers are busy, and while they are not */
            client busy[2];
            rig_hold(&h.r, held);
            for (int i = 0; held && i < 2; i++) { /* of those two, one waits for its body: others that stream are held */
                busy[i] = dial_unix("main");
                if (i == 0)
                    say(&busy[i], GET("/hold"));
                else
                    say(&busy[i], "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
                EVENTUALLY(atomic_load(&h.r.handled) == sent + i + 1);
            }
            sent += held ? 2 : 0;
            for (int i = 0; i < 20; i++) {
                static char request[SIZE + 1000];
                int n = sprintf(request, "POST /echo HTTP/1.1\r\nHost: x\r\n%s\r\n", headers[i % 2]);
                n += i % 2 ? sprintf(request + n, "%x\r\n", SIZE) : 0;
                memset(request + n, 'x', SIZE);
                n += SIZE;
                n += i % 2 ? sprintf(request + n, "\r\n0\r\n\r\n") : 0;
                client c = dial_unix("main");
                REQUIRE(send(c.fd, request, (size_t)n, MSG_NOSIGNAL) == n);
                hang_up(&c);
                c = dial_unix("main");
                say(&c, GET("/echo"));
                hang_up(&c);
            }
            sent += 40;
            if (held) {
                say(&busy[1], "x");
                rig_hold(&h.r, false);
                for (int i = 0; i < 2; i++) {
                    reply a;
                    do
                        a = hear(&busy[i]);
                    while (a.status == 100);
                    REQUIRE(a.status == 200);
                    hang_up(&busy[i]);
                }
            }
            EVENTUALLY(atomic_load(&h.r.handled) == sent, "%d of %d", atomic_load(&h.r.handled), sent);
            rig_settle(&h.r); /* while a worker reads one of these bodies, the next that is announced is not for workers */
        }
        REQUIRE(atomic_load(&h.r.last_read) == 0, "%d", atomic_load(&h.r.last_read)); /* every body was whole */
        house_close(&h);
    }
}

static void who_leaves_before_is_noticed(void)
{
    static const char *const bodies[] = {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\nabc",
                                         "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
                                         "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "GET /ec", ""};

    for (int streams = 0; streams < 2; streams++) {
        house h;
        front_limits limits = rig_limits();

        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        limits.stream_bodies = streams;
        limits.body_buffer_size = 2; /* so that they stream */
        house_open(&h, &limits, 2);
        for (size_t i = 0; i < 5; i++) {
            client c = dial_unix("main");
            say(&c, bodies[i]);
            hang_up(&c);
            rig_settle(&h.r);
        }
        rig_hold(&h.r, true);
        client c = dial_unix("main"); /* front_is_gone() tells its worker */
        say(&c, GET("/hold"));
        EVENTUALLY(atomic_load(&h.r.holding) == 1);
        hang_up(&c);
        EVENTUALLY(atomic_load(&h.r.gone) == 1);
        rig_settle(&h.r);
        REQUIRE(rig_count(&h.r).aborted >= 1);
        house_close(&h);
    }
}

/* Bodies that are spooled, with the next request behind them: the loop looks by itself once a second only. */
static void spooled_bodies_do_not_wait(void)
{
    enum { SIZE = 90000 };
    static char body[SIZE];
    house h;

    house_open(&h, NULL, 2);
    client c = dial_unix("main");
    for (int i = 0; i < 300; i++) {
        int64_t begun = front_now();
        for (int k = 0; k < 2; k++) {
            sayf(&c, GET("/echo") "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", SIZE);
            REQUIRE(send(c.fd, body, SIZE, MSG_NOSIGNAL) == SIZE);
        }
        for (int k = 0; k < 4; k++)
            REQUIRE(hear(&c).status == 200);
        REQUIRE(SLOWNESS > 1 || front_now() - begun < 900 * MS, "%.3f s", (double)(front_now() - begun) / 1e9);
    }
    hang_up(&c);
    house_close(&h);
}

/* A held body whose client has left with a part of it makes room at once. */
static void half_a_body_is_not_held(void)
{
    house h;
    front_limits limits = rig_limits();

    limits.stream_bodies = true;
    limits.body_buffer_size = 2;
    house_open(&h, &limits, 2);
    client reading = dial_unix("main"); /* its worker waits for the rest, which is half of the workers */
    say(&reading, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    EVENTUALLY(atomic_load(&h.r.handled) == 1);
    client held = dial_unix("main");
    say(&held, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    EVENTUALLY(rig_count(&h.r).accepted == 2 && rig_count(&h.r).bytes_in >= 100);
    hang_up(&held);
    EVENTUALLY(rig_count(&h.r).connections == 1);
    REQUIRE(atomic_load(&h.r.handled) == 1);
    hang_up(&reading);
    house_close(&h);
}

/* ------------------------------------------------------------------------------------------------ responses that are cut */

static void a_cut_response_ends_short(void)
{
    house h;
    reply a;

    house_open(&h, NULL, 1);
    client c = dial_unix("main");
    say(&c, GET("/cut/1000"));
    a = hear(&c);
    REQUIRE(a.status == 200 && a.cut && a.body_len == 500);
    REQUIRE(receive(&c, front_now() + PATIENCE) == 0); /* a Unix socket has no reset, */
    hang_up(&c);
    c = dial_unix("main");
    rig_hold(&h.r, true);
    client busy = dial_unix("main");
    say(&busy, GET("/hold"));
    EVENTUALLY(atomic_load(&h.r.holding) == 1);
    say(&c, GET("/cut/1000"));
    EVENTUALLY(rig_count(&h.r).in_flight == 2);
    say(&c, "unread"); /* except for who has sent something that is not read, and then after what it got */
    rig_hold(&h.r, false);
    REQUIRE(hear(&busy).status == 200);
    ssize_t n;
    size_t got = 0;
    while ((n = receive(&c, front_now() + PATIENCE)) > 0)
        got += (size_t)n;
    REQUIRE(n == -1 && got > 500, "%zd after %zu bytes", n, got);
    hang_up(&c);
    hang_up(&busy);
    REQUIRE(rig_count(&h.r).aborted == 2);
    house_close(&h);
}

/* request_timeout, with a response that has begun: the client learns it at once, and so does the worker. */
static void a_late_response_is_cut(void)
{
    house h;
    front_limits limits = rig_limits();

    limits.request_timeout = 300 * MS * SLOWNESS;
    house_open(&h, &limits, 1);
    client c = dial_unix("main");
    say(&c, GET("/stream/8000000"));
    EVENTUALLY(rig_count(&h.r).request_timeouts == 1); /* it has read nothing of what fits into the socket */
    reply a = hear(&c);
    REQUIRE(a.status == 200 && a.cut && a.intact && a.body_len > 0 && a.body_len < 8000000);
    hang_up(&c);
    REQUIRE(ask(dial_unix("main"), GET("/echo")) == 200);
    rig_hold(&h.r, true);
    c = dial_unix("main");
    say(&c, GET("/begun")); /* by a worker that notices nothing */
    a = hear(&c);
    REQUIRE(a.status == 200 && a.cut && a.body_len == 0 && atomic_load(&h.r.holding) == 1);
    hang_up(&c);
    rig_hold(&h.r, false);
    int status = ask(dial_unix("main"), GET("/late/5000"));
    REQUIRE(status == 504, "%d", status);
    house_close(&h);
}

/* ------------------------------------------------------------------------------------------------ closing */

typedef struct {
    pthread_t thread;
    const char *name;
    int answered, lost;
} knocker;

/* One-shot clients without a pause, until they are refused. */
static void *knock(void *arg)
{
    knocker *k = arg;

    for (;;) {
        client c = {.fd = dial_path(k->name)};
        if (c.fd < 0) {
            REQUIRE(c.fd == -ECONNREFUSED, "%s", strerror(-c.fd));
            return NULL;
        }
        say(&c, GET("/echo"));
        reply a = hear(&c);
        k->answered += a.status == 200 && !a.cut;
        k->lost += a.status != 200 || a.cut;
        hang_up(&c);
    }
}

/* Nor if its path remains (a directory that may not be written), and clients go on to connect until the last moment. */
static void a_unix_socket_closes_without_losing_anybody(void)
{
    enum { N = 12 };

    for (int round = 0; round < 5; round++) {
        house h;
        knocker k[N];
        uint64_t answered = 0;

        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        house_open(&h, NULL, 3);
        for (int i = 0; i < N; i++) {
            k[i] = (knocker){.name = i % 2 ? "main" : "bare"};
            REQUIRE(pthread_create(&k[i].thread, NULL, knock, &k[i]) == 0);
        }
        EVENTUALLY(rig_count(&h.r).served > 200);
        front_advance(h.r.f, FRONT_DRAINING);
        front_advance(h.r.f, FRONT_CLOSING);
        EVENTUALLY(atomic_load(&h.r.loop_ended));
        for (int i = 0; i < N; i++) {
            pthread_join(k[i].thread, NULL);
            REQUIRE(k[i].lost == 0, "%d", k[i].lost);
            answered += (uint64_t)k[i].answered;
        }
        REQUIRE(rig_count(&h.r).served == answered && rig_count(&h.r).aborted == 0);
        REQUIRE(front_accepted(h.r.f, 1) + front_accepted(h.r.f, 3) == answered);
        REQUIRE(front_close_fault(h.r.f) == 0);
        rig_join(&h.r);
        for (int i = 0; i < 3; i++)
            close(h.more[i].fd);
        remove_folder();
    }
}

/* What has connected is served, what comes later waits for the next holder. */
static void a_shared_socket_stays_open(void)
{
    for (int is_unix = 0; is_unix < 2; is_unix++) {
        rig r, next;
        struct sockaddr_in address = {0};
        int accepts = 0;

        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        REQUIRE(mkdtemp(folder) != NULL);
        int fd = is_unix ? listen_unix("shared") : listen_tcp(&address); /* another process's */
        front_listen on = {.fd = dup(fd), .pages = true, .requests = true, .shared = true};
#define DIAL_SHARED() (is_unix ? dial_path("shared") : dial_address(&address))
        rig_start_on(&r, NULL, 1, &on, 1);
        client c = {.fd = DIAL_SHARED()}, held = {.fd = DIAL_SHARED()};
        REQUIRE(ask(c, GET("/echo")) == 200);
        rig_hold(&r, true);
        say(&held, GET("/hold"));
        EVENTUALLY(atomic_load(&r.holding) == 1);
        front_advance(r.f, FRONT_CLOSING);
        int own;
        EVENTUALLY((own = dial_address(&r.address)) == -ECONNREFUSED || (own >= 0 && close(own) == 0 && false));
        client waiting[10]; /* for this holder while it still looks, or for the next one */
        for (int i = 0; i < 10; i++) {
            waiting[i] = (client){.fd = DIAL_SHARED()};
            REQUIRE(waiting[i].fd >= 0, "%s", strerror(-waiting[i].fd));
            say(&waiting[i], GET("/echo"));
        }
        REQUIRE(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &(socklen_t){sizeof accepts}) == 0 && accepts == 1);
        rig_hold(&r, false);
        REQUIRE(hear(&held).status == 200);
        hang_up(&held);
        EVENTUALLY(atomic_load(&r.loop_ended));
        uint64_t accepted = front_accepted(r.f, 1);
        rig_join(&r);
        REQUIRE(getsockopt(on.fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &(socklen_t){sizeof accepts}) == -1); /* let go */
        close(on.fd);

        c.fd = DIAL_SHARED(); /* between two holders */
        on.fd = dup(fd);
        rig_start_on(&next, NULL, 1, &on, 1);
        REQUIRE(ask(c, GET("/echo")) == 200);
        for (int i = 0; i < 10; i++) {
            REQUIRE(hear(&waiting[i]).status == 200);
            hang_up(&waiting[i]);
        }
        REQUIRE(accepted + front_accepted(next.f, 1) == 13);
        rig_stop(&next);
        close(on.fd);
        close(fd);
        remove_folder();
#undef DIAL_SHARED
    }
}

/* Clients that do not stop to connect to a shared socket do not keep the loop from closing, nor from anything else. */
static void a_shared_socket_under_a_flood_is_left(void)
{
    enum { N = 4 };
    rig r;
    knocker k[N];

    REQUIRE(mkdtemp(folder) != NULL);
    int fd = listen_unix("shared"); /* another process's */
    front_listen on = {.fd = dup(fd), .pages = true, .requests = true, .shared = true};
    rig_start_on(&r, NULL, 2, &on, 1);
    for (int i = 0; i < N; i++) {
        k[i] = (knocker){.name = "shared"};
        REQUIRE(pthread_create(&k[i].thread, NULL, knock, &k[i]) == 0);
    }
    EVENTUALLY(rig_count(&r).served > 200);
    front_advance(r.f, FRONT_CLOSING);
    EVENTUALLY(atomic_load(&r.loop_ended));
    rig_join(&r);
    close(on.fd);
    on.fd = dup(fd);
    rig_start_on(&r, NULL, 2, &on, 1); /* which serves those that were left */
    EVENTUALLY(rig_count(&r).served > 200);
    shutdown(fd, SHUT_RDWR); /* ends them */
    for (int i = 0; i < N; i++) {
        pthread_join(k[i].thread, NULL);
        REQUIRE(k[i].lost == 0, "%d", k[i].lost);
    }
    rig_stop(&r);
    close(on.fd);
    close(fd);
    remove_folder();
}

/* shutdown() by another holder ends a socket for all of them; that must disturb nothing else. */
static void one_that_another_holder_has_shut(void)
{
    for (int is_unix = 0; is_unix < 2; is_unix++) {
        rig r;
        struct sockaddr_in address;

        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        REQUIRE(mkdtemp(folder) != NULL);
        front_listen on[2] = {{.fd = is_unix ? listen_unix("shared") : listen_tcp(&address), .requests = true, .shared = true},
                              {.fd = listen_unix("main"), .pages = true, .requests = true}};
        rig_start_on(&r, NULL, 1, on, 2);
        REQUIRE(ask(dial_main(&r), GET("/echo")) == 200);
        shutdown(on[0].fd, SHUT_RDWR);
        double before = cpu_seconds();
        int64_t end = front_now() + SEC;
        while (front_now() < end) {
            REQUIRE(ask(dial_unix("main"), GET("/echo")) == 200 && ask(dial_main(&r), GET("/echo")) == 200);
            usleep(50000);
        }
        REQUIRE(cpu_seconds() - before < 0.5, "%.2f s of CPU in a second", cpu_seconds() - before);
        REQUIRE(rig_count(&r).accept_errors == 0);
        front_advance(r.f, FRONT_CLOSING);
        EVENTUALLY(atomic_load(&r.loop_ended));
        rig_join(&r);
        close(on[0].fd);
        close(on[1].fd);
        remove_folder();
    }
}

/* ------------------------------------------------------------------------------------------------ descriptors, forks */

/* Allows so many more descriptors than there are, and returns the limit before. */
static struct rlimit leave_descriptors(rlim_t more)
{
    struct rlimit limit;
    int top = dup(0);

    close(top);
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    struct rlimit few = {.rlim_cur = (rlim_t)top + more, .rlim_max = limit.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
    return limit;
}

/* All listeners pause, a probe gets its response by the reserve descriptor, and then all of them accept again. */
static void without_descriptors_all_pause_and_return(void)
{
    enum { MANY = 64 };
    static const char *const names[] = {"main", "health", "bare"};
    house h;
    client c[MANY], late[3];
    struct rlimit limit;

    house_open(&h, NULL, 1);
    for (int i = 0; i < 3; i++) /* their descriptors exist before there are none */
        late[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int i = 0; i < MANY; i++) {
        c[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        c[i].len = 0;
    }
    limit = leave_descriptors(20);
    for (int i = 0; i < MANY; i++) {
        struct sockaddr_un a = unix_address(names[i % 3]);
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&a, sizeof a) == 0);
    }
    EVENTUALLY(rig_count(&h.r).accept_errors > 0);
    double before = cpu_seconds();
    usleep(500000);
    REQUIRE(cpu_seconds() - before < 0.3, "%.2f s of CPU in half a second", cpu_seconds() - before);
    REQUIRE(rig_count(&h.r).accept_errors < 30);
    for (int i = 0; i < 3; i++) { /* behind the others */
        struct sockaddr_un a = unix_address(names[i]);
        late[i].len = 0;
        REQUIRE(connect(late[i].fd, (struct sockaddr *)&a, sizeof a) == 0);
        say(&late[i], GET("/healthz"));
    }
    for (int i = 0; i < MANY; i++)
        hang_up(&c[i]);
    for (int i = 0; i < 3; i++)
        REQUIRE(hear(&late[i]).status == 200);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 3; i++)
            REQUIRE(ask(dial_unix(names[i]), GET("/healthz")) == 200);
        REQUIRE(ask(dial_main(&h.r), GET("/echo")) == 200);
    }
    for (int i = 0; i < 3; i++)
        hang_up(&late[i]);
    house_close(&h);
}

/* Out of them in the last stage: who waits in a backlog is told so by the reserve descriptor. */
static void without_descriptors_all_are_told_at_the_end(void)
{
    enum { MANY = 40 };
    house h;
    client c[MANY], held[20];
    struct rlimit limit;

    house_open(&h, NULL, 1);
    rig_hold(&h.r, true);
    for (int i = 0; i < 20; i++) {
        held[i] = dial_unix("main");
        say(&held[i], GET("/hold"));
    }
    EVENTUALLY(rig_count(&h.r).in_flight == 20);
    for (int i = 0; i < MANY; i++) {
        c[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        c[i].len = 0;
    }
    limit = leave_descriptors(0);
    for (int i = 0; i < MANY; i++) {
        struct sockaddr_un a = unix_address(i % 2 ? "main" : "bare");
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&a, sizeof a) == 0);
        say(&c[i], GET("/echo"));
    }
    front_advance(h.r.f, FRONT_CLOSING);
    for (int i = 0; i < MANY; i++) {
        int status = hear(&c[i]).status;
        REQUIRE(status == 503, "%d", status);
    }
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < MANY; i++)
        hang_up(&c[i]);
    rig_hold(&h.r, false);
    for (int i = 0; i < 20; i++) {
        REQUIRE(hear(&held[i]).status == 200);
        hang_up(&held[i]);
    }
    EVENTUALLY(atomic_load(&h.r.loop_ended));
    rig_join(&h.r);
    for (int i = 0; i < 3; i++)
        close(h.more[i].fd);
    remove_folder();
}

/* In the child: sockets whose own name is one of the front's, listening or accepted. */
static int kept_in_the_child(const rig *r, const front_listen *more, int n)
{
    int kept = 0;

    for (int fd = 3; fd < 256; fd++) {
        struct sockaddr_storage name = {0};
        socklen_t len = sizeof name;
        if (getsockname(fd, (struct sockaddr *)&name, &len) == -1)
            continue;
        const struct sockaddr_un *path = (const struct sockaddr_un *)&name;
        kept += name.ss_family == AF_UNIX ? len > sizeof(sa_family_t) && strncmp(path->sun_path, folder, strlen(folder)) == 0
                                          : ((struct sockaddr_in *)&name)->sin_port == r->address.sin_port;
    }
    for (int i = 0; i < n; i++) { /* the numbers belong to the owner, who will close them */
        int accepts;
        socklen_t len = sizeof accepts;
        kept += fcntl(more[i].fd, F_GETFD) == -1 ||
                getsockopt(more[i].fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) == 0;
    }
    return kept;
}

static void a_child_keeps_none_of_them(void)
{
    house h;
    client held[2];
    int status;

    house_open(&h, NULL, 2);
    rig_hold(&h.r, true);
    held[0] = dial_main(&h.r);
    held[1] = dial_unix("main");
    client idle = dial_unix("health");
    for (int i = 0; i < 2; i++)
        say(&held[i], "GET /hold HTTP/1.0\r\n\r\n");
    say(&idle, GET("/healthz"));
    REQUIRE(hear(&idle).status == 200);
    EVENTUALLY(atomic_load(&h.r.holding) == 2);
    pid_t pid = fork();
    REQUIRE(pid != -1);
    if (pid == 0)
        _exit(kept_in_the_child(&h.r, h.more, 3));
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%d kept", WEXITSTATUS(status));
    rig_hold(&h.r, false);
    for (int i = 0; i < 2; i++) { /* and the parent's go on */
        REQUIRE(hear(&held[i]).status == 200);
        hear_end(&held[i]);
        hang_up(&held[i]);
    }
    say(&idle, GET("/healthz"));
    REQUIRE(hear(&idle).status == 200);
    hang_up(&idle);
    REQUIRE(ask(dial_unix("bare"), GET("/echo")) == 200);
    client c = dial_unix("main"); /* a cut response still ends at once, without a reset */
    say(&c, GET("/cut/1000"));
    reply a = hear(&c);
    REQUIRE(a.status == 200 && a.cut);
    hang_up(&c);
    house_close(&h);
}

/* ------------------------------------------------------------------------------------------------ floods */

typedef struct {
    pthread_t thread;
    atomic_bool over;
    long made;
} flood;

/* Connects without a pause, sends nothing, and leaves. */
static void *connect_on(void *arg)
{
    enum { AT_ONCE = 400 }; /* more than there may be beyond max_connections */
    flood *o = arg;
    int fds[AT_ONCE];

    while (!atomic_load(&o->over)) {
        for (int i = 0; i < AT_ONCE; i++)
            fds[i] = dial_path("main");
        for (int i = 0; i < AT_ONCE; i++)
            if (fds[i] >= 0)
                close(fds[i]);
        o->made += AT_ONCE;
    }
    return NULL;
}

/* One listener under a flood starves no other one, and with all of max_connections in use health is still answered. */
static void a_flooded_listener_starves_no_other(void)
{
    enum { FULL = 20 };
    house h;
    front_limits limits = rig_limits();
    flood o[2] = {0};
    client full[FULL];

    limits.max_connections = FULL;
    house_open(&h, &limits, 2);
    rig_hold(&h.r, true);
    for (int i = 0; i < FULL; i++) { /* in use, so that nothing displaces them */
        full[i] = dial_unix("bare");
        say(&full[i], GET("/hold"));
    }
    EVENTUALLY(rig_count(&h.r).in_flight == FULL);
    for (int i = 0; i < 2; i++)
        REQUIRE(pthread_create(&o[i].thread, NULL, connect_on, &o[i]) == 0);
    int64_t longest = 0;
    for (int i = 0; i < 200; i++) {
        int64_t begun = front_now();
        client c = dial_unix("health");
        usleep(3000); /* others come meanwhile, and want its place */
        REQUIRE(ask(c, GET("/healthz")) == 200);
        if (front_now() - begun > longest)
            longest = front_now() - begun;
    }
    REQUIRE(longest < 2 * SEC * SLOWNESS, "%.1f ms", (double)longest / 1e6);
    for (int i = 0; i < 2; i++) {
        atomic_store(&o[i].over, true);
        pthread_join(o[i].thread, NULL);
        REQUIRE(o[i].made > 0);
    }
    rig_hold(&h.r, false);
    for (int i = 0; i < FULL; i++) {
        REQUIRE(hear(&full[i]).status == 200);
        hang_up(&full[i]);
    }
    house_close(&h);
}

static const test tests[] = {
    {"each_serves_what_it_is_for", each_serves_what_it_is_for, 0},
    {"a_proxy_speaks_first_where_it_is_trusted", a_proxy_speaks_first_where_it_is_trusted, 0},
    {"who_has_sent_a_request_may_leave", who_has_sent_a_request_may_leave, 0},
    {"who_leaves_before_is_noticed", who_leaves_before_is_noticed, 0},
    {"spooled_bodies_do_not_wait", spooled_bodies_do_not_wait, ALONE},
    {"half_a_body_is_not_held", half_a_body_is_not_held, 0},
    {"a_cut_response_ends_short", a_cut_response_ends_short, 0},
    {"a_late_response_is_cut", a_late_response_is_cut, 0},
    {"a_unix_socket_closes_without_losing_anybody", a_unix_socket_closes_without_losing_anybody, 0},
    {"a_shared_socket_stays_open", a_shared_socket_stays_open, 0},
    {"a_shared_socket_under_a_flood_is_left", a_shared_socket_under_a_flood_is_left, 0},
    {"one_that_another_holder_has_shut", one_that_another_holder_has_shut, ALONE},
    {"without_descriptors_all_pause_and_return", without_descriptors_all_pause_and_return, ALONE},
    {"without_descriptors_all_are_told_at_the_end", without_descriptors_all_are_told_at_the_end, ALONE},
    {"a_child_keeps_none_of_them", a_child_keeps_none_of_them, ALONE},
    {"a_flooded_listener_starves_no_other", a_flooded_listener_starves_no_other, ALONE},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
