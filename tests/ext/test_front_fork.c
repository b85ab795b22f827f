/*
 * test_front_fork.c - a process that is forked while the front runs: it gets nothing out, keeps nothing open, and returns
 * from every call.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_fork.c ext/{http,front}/?*.c -pthread && ./a.out [NAME]
 */
#include "rig.h"

/* In the child.  0: all is as it is to be; else the number of the line that is not. */
static int use_everything(rig *r, int connection)
{
    front_request q;
    front_counters n;
    front_flight flights[4];
    tally_series series[4];
    tally_prober probers[4];
    tally_waits waits;
    tally_exemplar exemplars[TALLY_EXEMPLARS];

#define EXPECT(condition) do { if (!(condition)) return __LINE__ % 256; } while (0)
    EXPECT(front_is_foreign(r->f));
    EXPECT(front_take(r->f, &q, -1) == FRONT_CLOSED);
    EXPECT(front_run(r->f) == FRONT_CLOSED);
    front_count(r->f, &n);
    EXPECT(n.connections == 0 && n.in_flight == 0);
    EXPECT(front_requests(r->f, FRONT_TAKEN, flights, 4) == 0 && front_durations(r->f, series, 4) == 0 && front_probers(r->f, probers, 4) == 0);
    EXPECT(front_exemplars(r->f, exemplars) == 0);
    front_waits(r->f, &waits);
    EXPECT(waits.sum == 0 && waits.count[0] == 0);
    front_renew(r->f, 0, SEC);
    front_publish(r->f, NULL);
    front_advance(r->f, FRONT_STOPPED);
    int accepts = 0;
    socklen_t len = sizeof accepts;
    EXPECT(getsockopt(r->listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) == -1 && errno == ENOTSOCK);
    struct sockaddr_in name;
    for (int fd = 3; fd < 256; fd++) { /* of the sockets with the front's port none is left, of the clients' all are */
        len = sizeof name;
        if (getsockname(fd, (struct sockaddr *)&name, &len) == 0 && len == sizeof name)
            EXPECT(name.sin_port != r->address.sin_port);
    }
    EXPECT(fcntl(connection, F_GETFD) != -1);
    front_close(r->f);
    return 0;
}

/* The child's exit code; it leaves when there is something to read at `end`. */
static pid_t child_of(rig *r, int connection, const int end[2], int done)
{
    pid_t pid = fork();

    REQUIRE(pid != -1);
    if (pid == 0) {
        close(end[1]); /* so that it ends with its parent, whatever becomes of that */
        int line = use_everything(r, connection);
        char byte = 0;
        (void)!write(done, &byte, 1);
        (void)!read(end[0], &byte, 1);
        _exit(line);
    }
    return pid;
}

static void the_child_owns_nothing(void)
{
    rig r;
    client idle, held;
    int end[2], done[2], status;
    char byte = 0;

    rig_start(&r, NULL, 2);
    rig_publish(&r);
    dial(&r, &idle);
    dial(&r, &held);
    rig_hold(&r, true);
    say(&held, "GET /hold HTTP/1.0\r\n\r\n");
    EVENTUALLY(atomic_load(&r.holding) == 1);
    REQUIRE(pipe(end) == 0 && pipe(done) == 0);
    pid_t pid = child_of(&r, held.fd, end, done[1]);
    REQUIRE(read(done[0], &byte, 1) == 1);
    REQUIRE(!front_is_foreign(r.f));

    rig_hold(&r, false); /* the response, and its end although the child lives */
    int64_t deadline = front_now() + PATIENCE;
    ssize_t n;
    size_t got = 0;
    while ((n = receive(&held, deadline)) > 0)
        got += (size_t)n;
    REQUIRE(n == 0 && got > 0, "%zd after %zu bytes", n, got);
    say(&idle, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    while ((n = receive(&idle, deadline)) > 0)
        ;
    REQUIRE(n == 0);

    REQUIRE(write(end[1], &byte, 1) == 1);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "line %d", WEXITSTATUS(status));
    hang_up(&held);
    hang_up(&idle);
    rig_stop(&r);
}

/* A copy that the child keeps, as one made by other means than fork() would: the end does not wait for it. */
static void the_end_waits_for_no_copy(void)
{
    rig r;
    int end[2], done[2], status;
    char byte = 0;

    rig_start(&r, NULL, 1);
    REQUIRE(pipe(end) == 0 && pipe(done) == 0);
    for (int aborts = 0; aborts < 2; aborts++) {
        client c;
        dial(&r, &c);
        rig_hold(&r, true);
        say(&c, "GET /healthz-not HTTP/1.1\r\nHost: x\r\n\r\n");
        EVENTUALLY(receive(&c, front_now() + PATIENCE) > 0);
        rig_hold(&r, false);
        int copy = -1; /* of the server's end, which is in no table: the child keeps it */
        struct sockaddr_in name;
        for (int fd = 3; fd < 256 && copy == -1; fd++) {
            socklen_t len = sizeof name;
            if (fd != r.listen_fd && getsockname(fd, (struct sockaddr *)&name, &len) == 0 && name.sin_port == r.address.sin_port)
                copy = dup(fd);
        }
        REQUIRE(copy != -1);
        pid_t pid = fork();
        REQUIRE(pid != -1);
        if (pid == 0) {
            close(end[1]); /* so that it ends with its parent, whatever becomes of that */
            (void)!write(done[1], &byte, 1);
            (void)!read(end[0], &byte, 1);
            _exit(fcntl(copy, F_GETFD) == -1);
        }
        REQUIRE(read(done[0], &byte, 1) == 1);
        close(copy);
        say(&c, aborts ? "GET /cut/1000 HTTP/1.1\r\nHost: x\r\n\r\n" : "GET /close HTTP/1.1\r\nHost: x\r\n\r\n");
        int64_t deadline = front_now() + PATIENCE;
        ssize_t n;
        while ((n = receive(&c, deadline)) > 0)
            ;
        REQUIRE(n == (aborts ? -1 : 0), "%zd", n);
        REQUIRE(front_now() < deadline, "%s", aborts ? "an abort" : "a close");
        REQUIRE(write(end[1], &byte, 1) == 1);
        REQUIRE(waitpid(pid, &status, 0) == pid);
        REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        hang_up(&c);
    }
    rig_stop(&r);
}

static const test tests[] = {
    {"the_child_owns_nothing", the_child_owns_nothing, ALONE},
    {"the_end_waits_for_no_copy", the_end_waits_for_no_copy, ALONE},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
