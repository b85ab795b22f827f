/*
 * test_front_writing.c - what a worker may still write: nothing behind the end of a response that is left with the loop,
 * nothing behind a part that is lost; and each response is counted once, when its fate is known.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_writing.c ext/{http,front}/?*.c -pthread && ./a.out [NAME]
 */
#include "rig.h"

#define BIG (16u << 20) /* more than the sockets hold */
#define REQUEST "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
#define EMPTY "HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n"

static char *big_body(void)
{
    char *bytes = malloc(BIG);

    REQUIRE(bytes != NULL);
    for (size_t i = 0; i < BIG; i++)
        bytes[i] = rig_byte(i);
    return bytes;
}

static void start(rig *r, int64_t write_timeout)
{
    front_limits limits = rig_limits();

    limits.response_buffer_size = limits.buffer_size = 2 * (size_t)BIG;
    limits.write_timeout = write_timeout;
    rig_start(r, &limits, 0); /* the tests take requests themselves */
}

static front_conn *take_request(rig *r, client *c)
{
    front_request q;

    say(c, REQUEST);
    REQUIRE(front_take(r->f, &q, PATIENCE) == FRONT_OK);
    front_begin_response(r->f, q.conn);
    return q.conn;
}

static int put(rig *r, front_conn *c, const char *bytes, size_t len, size_t keep)
{
    struct iovec iov = {.iov_base = (char *)(uintptr_t)bytes, .iov_len = len};

    return front_send(r->f, c, &iov, 1, keep, true);
}

static void put_head(rig *r, front_conn *c)
{
    char head[128];
    int len = snprintf(head, sizeof head, "HTTP/1.1 200 X\r\nContent-Length: %u\r\n\r\n", BIG);

    REQUIRE(put(r, c, head, (size_t)len, 0) == FRONT_OK);
}

/* The end of a big response, which is left with the loop. */
static void put_rest(rig *r, front_conn *c, const char *bytes, bool file)
{
    put_head(r, c);
    if (file)
        REQUIRE(front_send_file(r->f, c, r->file, 0, BIG, true) == FRONT_OK);
    else
        REQUIRE(put(r, c, bytes, BIG, SIZE_MAX) == FRONT_OK);
}

static void nothing_follows_what_is_left(void)
{
    rig r;
    client c;
    char *bytes = big_body();

    start(&r, 30 * SEC);
    rig_file(&r, BIG);
    for (int file = 0; file < 2; file++) {
        uint64_t served = rig_count(&r).served;
        dial(&r, &c);
        front_conn *conn = take_request(&r, &c);
        put_rest(&r, conn, bytes, file);
        uint64_t buffered = rig_count(&r).buffered;
        REQUIRE(file ? buffered == 0 : buffered > 0);
        REQUIRE(put(&r, conn, "x", 1, 0) == -EALREADY);
        REQUIRE(put(&r, conn, bytes, BIG, SIZE_MAX) == -EALREADY);
        REQUIRE(front_send_file(r.f, conn, r.file, 0, 1000, false) == -EALREADY);
        REQUIRE(front_send_file(r.f, conn, r.file, 0, 1000, true) == -EALREADY);
        REQUIRE(rig_count(&r).buffered == buffered);
        front_finish(r.f, conn, true, false, 200);
        REQUIRE(rig_count(&r).served == served, "it is not out yet");
        reply a = hear(&c);
        REQUIRE(a.status == 200 && a.body_len == BIG && a.intact && !a.cut);
        EVENTUALLY(rig_count(&r).served == served + 1);

        conn = take_request(&r, &c); /* the next response on this connection may be written */
        REQUIRE(put(&r, conn, EMPTY, sizeof EMPTY - 1, SIZE_MAX) == FRONT_OK);
        front_finish(r.f, conn, true, false, 200);
        REQUIRE(hear(&c).status == 200);
        hang_up(&c);
        rig_settle(&r);
        REQUIRE(rig_count(&r).served == served + 2 && rig_count(&r).finished == served + 2 && rig_count(&r).aborted == 0);
    }
    free(bytes);
    rig_stop(&r);
}

/* The application goes on although the client has missed a part: what it writes then would be taken for that. */
static void nothing_follows_what_is_lost(void)
{
    rig r;
    char *bytes = big_body();

    start(&r, 200 * MS);
    rig_file(&r, BIG);
    for (int kind = 0; kind < 4; kind++) {
        client c;
        dial(&r, &c);
        front_conn *conn = take_request(&r, &c);
        put_head(&r, conn);
        if (kind == 0) { /* the client does not read */
            REQUIRE(put(&r, conn, bytes, BIG, 0) == FRONT_E_LATE);
        } else if (kind == 1) {
            REQUIRE(front_send_file(r.f, conn, r.file, 0, BIG, false) == FRONT_E_LATE);
        } else if (kind == 2) { /* the file is shorter than was announced */
            REQUIRE(front_send_file(r.f, conn, r.file, BIG - 1000, BIG, true) == -EIO);
        } else {
            reset(&c);
            int rv;
            while ((rv = put(&r, conn, bytes, 65536, 0)) == FRONT_OK)
                ;
            REQUIRE(rv < 0);
        }
        REQUIRE(put(&r, conn, "x", 1, 0) == -EPIPE);
        REQUIRE(put(&r, conn, bytes, BIG, SIZE_MAX) == -EPIPE);
        REQUIRE(front_send_file(r.f, conn, r.file, 0, 1000, true) == -EPIPE);
        front_finish(r.f, conn, true, false, 200); /* as if nothing had happened */
        if (kind != 3) {
            ssize_t n;
            while ((n = receive(&c, front_now() + PATIENCE)) > 0)
                c.len = 0;
            REQUIRE(n == -1, "a response that is not whole ends with a reset, not with %zd", n);
            hang_up(&c);
        }
        rig_settle(&r);
        front_counters n = rig_count(&r);
        REQUIRE(n.aborted == (unsigned)kind + 1 && n.served == 0 && n.finished == n.aborted);
    }
    free(bytes);
    rig_stop(&r);
}

/* The worker is done with it; whether the client gets it shows later. */
static void a_rest_that_is_lost_counts_once(void)
{
    rig r;
    char *bytes = big_body();

    start(&r, 200 * MS);
    rig_file(&r, BIG);
    for (int kind = 0; kind < 4; kind++) {
        bool file = kind & 1, resets = kind & 2;
        client c;
        dial(&r, &c);
        front_conn *conn = take_request(&r, &c);
        put_rest(&r, conn, bytes, file);
        front_finish(r.f, conn, true, false, 200);
        if (resets)
            reset(&c);
        EVENTUALLY(rig_count(&r).aborted == (unsigned)kind + 1); /* by the reset, or by write_timeout */
        if (!resets)
            hang_up(&c);
        rig_settle(&r);
        front_counters n = rig_count(&r);
        REQUIRE(n.aborted == (unsigned)kind + 1 && n.served == 0 && n.requests == n.aborted);
    }
    free(bytes);
    rig_stop(&r);
}

/* What is still with the loop at the end has not been served. */
static void a_rest_at_the_end_counts_once(void)
{
    rig r;
    client c[2];
    char *bytes = big_body();

    start(&r, 30 * SEC);
    rig_file(&r, BIG);
    for (int file = 0; file < 2; file++) {
        dial(&r, &c[file]);
        front_conn *conn = take_request(&r, &c[file]);
        put_rest(&r, conn, bytes, file);
        front_finish(r.f, conn, true, false, 200);
    }
    front_advance(r.f, FRONT_STOPPED);
    EVENTUALLY(atomic_load(&r.loop_ended));
    front_counters n = rig_count(&r);
    REQUIRE(n.aborted == 2 && n.served == 0, "%llu %llu", (unsigned long long)n.aborted, (unsigned long long)n.served);
    rig_join(&r);
    for (int file = 0; file < 2; file++)
        hang_up(&c[file]);
    free(bytes);
}

static const test tests[] = {
    {"nothing_follows_what_is_left", nothing_follows_what_is_left, 0},
    {"nothing_follows_what_is_lost", nothing_follows_what_is_lost, 0},
    {"a_rest_that_is_lost_counts_once", a_rest_that_is_lost_counts_once, 0},
    {"a_rest_at_the_end_counts_once", a_rest_at_the_end_counts_once, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
