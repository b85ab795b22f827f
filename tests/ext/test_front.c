/*
 * test_front.c - what the front does for one client or a few, by tables and named cases, from real sockets, with threads as
 * workers.  (test_front_load.c has the many.)
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#include <sys/resource.h>
#include <sys/stat.h>

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

static bool contains(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* ----------------------------------------------------------------------------------------------- published pages */

static void pages_forms(void)
{
    static const struct {
        const char *request;
        int status;
        const char *body; /* NULL: as with HEAD */
        const char *in_head, *not_in_head;
        bool close;
    } cases[] = {
        {GET("/healthz"), 200, "ok", "Content-Length: 2\r\n", "Connection", false},
        {GET("/healthz/"), 200, "ok", "Date: ", "Allow", false},
        {GET("/healthz?"), 200, "ok", "", "Allow", false},
        {GET("/healthz?a=b&c"), 200, "ok", "", "Allow", false},
        {GET("/healthz?verbose"), 200, "ok verbose", "", "Allow", false},
        {GET("/healthz?a&verbose=1"), 200, "ok verbose", "", "Allow", false},
        {GET("/healthz?xverbose"), 200, "ok", "", "Allow", false},
        {GET("/healthz?verbosely"), 200, "ok", "", "Allow", false},
        {GET("/healthz?a=verbose"), 200, "ok", "", "Allow", false},
        {GET("/healthz?format=json"), 200, "ok json", "", "Allow", false},
        {GET("/healthz?a&format=json&b"), 200, "ok json", "", "Allow", false},
        {GET("/healthz?format=jsonp"), 200, "ok", "", "Allow", false},
        {GET("/healthz?reformat=json"), 200, "ok", "", "Allow", false},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\naccept: text/plain, application/json\r\n\r\n", 200, "ok json", "", "Allow", false},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nAccept: application/health+json\r\n\r\n", 200, "ok json", "", "Allow", false},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", 200, "ok", "", "Allow", false},
        {GET("/bare"), 200, "ok", "", "Allow", false},
        {GET("/bare?verbose"), 503, "", "Content-Length: 0\r\n", "Allow", false},
        {"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL, "Content-Length: 2\r\n", "Allow", false},
        {"OPTIONS /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, "ok", "Allow: GET, HEAD, OPTIONS\r\n", "Connection", false},
        {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 200, "", "Content-Length: 0\r\n", "Connection", false},
        {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 200, "", "", "Allow", false}, /* the application was not asked */
        {"OPTIONS * HTTP/1.0\r\n\r\n", 200, "", "Content-Length: 0\r\n", "Allow", true},
        {"POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405, "", "Allow: GET, HEAD, OPTIONS\r\n", "Connection", false},
        {"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405, "", "Allow: ", "", true},
        {"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405, "", "Allow: ", "Connection", false},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 200, "ok", "", "Allow", true},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 200, "ok", "", "Connection", false},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, "ok", "", "Allow", true},
        {"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, "ok", "", "Allow", true},
        {"GET /healthz HTTP/1.0\r\n\r\n", 200, "ok", "", "Allow", true},
        {"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, "ok", "Connection: keep-alive\r\n", "Allow", false},
        {"GET /healthz HTTP/1.1\r\nHost: outbound|80||svc\r\n\r\n", 200, "ok", "", "Connection", false},
        {"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 200, "ok", "", "Connection", false},
        {"GET /healthz HTTP/1.1\r\n\r\n", 400, "Host missing\n", "", "Allow", true},
        {"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, "ok", "", "Connection", false},
        {"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, "ok", "", "Connection", false},
    };
    rig r;

    rig_start(&r, NULL, 0);
    rig_publish(&r);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        client c;
        dial(&r, &c);
        say(&c, cases[i].request);
        reply a = hear_any(&c, cases[i].body == NULL);
        REQUIRE(a.status == cases[i].status && strcmp(a.body, cases[i].body != NULL ? cases[i].body : "") == 0, "%s%s%s",
                cases[i].request, a.head, a.body);
        REQUIRE(contains(a.head, cases[i].in_head), "%s%s", cases[i].request, a.head);
        REQUIRE(*cases[i].not_in_head == '\0' || !contains(a.head, cases[i].not_in_head), "%s%s", cases[i].request, a.head);
        REQUIRE(a.close == cases[i].close, "%s%s", cases[i].request, a.head);
        if (cases[i].close) {
            hear_end(&c);
        } else { /* and no byte of body or head was left lying about */
            say(&c, GET("/healthz"));
            a = hear(&c);
            REQUIRE(a.status == 200 && strcmp(a.body, "ok") == 0, "after %s%s", cases[i].request, a.head);
        }
        hang_up(&c);
    }
    REQUIRE(atomic_load(&r.handled) == 0);
    rig_stop(&r);
}

static reply ask(client *c, const char *request)
{
    say(c, request);
    return hear(c);
}

static void pages_expire_and_drain(void)
{
    rig r;
    client c, d;
    reply a;

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    a = ask(&c, GET("/healthz")); /* not published yet: an application's */
    REQUIRE(contains(a.body, "GET /healthz 0"), "%s", a.body);
    rig_publish(&r);
    EVENTUALLY((a = ask(&c, GET("/healthz")), strcmp(a.body, "ok") == 0));
    front_renew(r.f, 1, 50 * MS);
    a = ask(&c, GET("/readyz"));
    REQUIRE(a.status == 200, "%s", a.head);
    EVENTUALLY((a = ask(&c, GET("/readyz")), a.status == 503 && strcmp(a.body, "stale") == 0)); /* with no help from anybody */
    REQUIRE(rig_count(&r).stale > 0);
    a = ask(&c, GET("/healthz"));
    REQUIRE(a.status == 200, "another slot: %s", a.head);
    front_renew(r.f, 1, 3600 * SEC);
    a = ask(&c, GET("/readyz?verbose"));
    REQUIRE(a.status == 200 && strcmp(a.body, "ok verbose") == 0, "%s", a.body);
    dial(&r, &d);
    say(&d, GET("/readyz"));
    hear(&d);
    front_advance(r.f, FRONT_DRAINING);
    EVENTUALLY(front_stage_now(r.f) == FRONT_DRAINING);
    EVENTUALLY((a = ask(&d, GET("/readyz?format=json")), a.close)); /* the loop has seen it */
    REQUIRE(a.status == 503 && strcmp(a.body, "shutdown json") == 0, "%s%s", a.head, a.body);
    hear_end(&d);
    hang_up(&d);
    a = ask(&c, GET("/healthz")); /* no draining answer: goes on as before, but for the connection */
    REQUIRE(a.status == 200 && a.close && strcmp(a.body, "ok") == 0, "%s%s", a.head, a.body);
    hear_end(&c);
    hang_up(&c);
    rig_stop(&r);
}

static void pages_replaced_while_asked(void)
{
    rig r;
    client c;

    rig_start(&r, NULL, 0);
    rig_publish(&r);
    dial(&r, &c);
    for (int i = 0; i < 2000; i++) {
        rig_publish(&r);
        reply a = ask(&c, GET("/healthz?verbose"));
        REQUIRE(a.status == 200 && strcmp(a.body, "ok verbose") == 0, "%s", a.body);
    }
    hang_up(&c);
    rig_stop(&r);
}

static atomic_int words;

static void on_words(int signal_number)
{
    (void)signal_number;
    atomic_fetch_add(&words, 1);
}

static void last_words_once(void)
{
    rig r;
    client c, held;
    reply a;
    int pipe_fd[2], errors[2];
    char text[4096];

    signal(SIGUSR1, on_words);
    REQUIRE(pipe2(pipe_fd, O_NONBLOCK | O_CLOEXEC) == 0 && pipe2(errors, O_CLOEXEC) == 0);
    int before = dup(STDERR_FILENO);
    dup2(errors[1], STDERR_FILENO);
    rig_start(&r, NULL, 1);
    rig_publish(&r);
    REQUIRE(front_watch_signals(r.f, pipe_fd[0], 1 << SIGTERM, SIGUSR1) == 0);
    rig_hold(&r, true);
    dial(&r, &held);
    say(&held, GET("/hold/\xc3\xa4\xc2\x9b/me?secret=1"));
    EVENTUALLY(atomic_load(&r.holding) == 1);
    dial(&r, &c);
    a = ask(&c, GET("/healthz"));
    REQUIRE(a.status == 200 && atomic_load(&words) == 0);
    for (int round = 1; round <= 2; round++) {
        front_renew(r.f, 0, -1);
        for (int i = 0; i < 3; i++) {
            a = ask(&c, GET("/healthz"));
            REQUIRE(a.status == 503 && strcmp(a.body, "stale") == 0, "%s", a.head);
        }
        REQUIRE(atomic_load(&words) == round, "%d", atomic_load(&words));
        front_renew(r.f, 0, 3600 * SEC);
        a = ask(&c, GET("/healthz"));
        REQUIRE(a.status == 200);
    }
    dup2(before, STDERR_FILENO);
    close(before);
    ssize_t n = read(errors[0], text, sizeof text - 1);
    REQUIRE(n > 0);
    text[n] = '\0';
    REQUIRE(contains(text, "GET /hold/%C3%A4%C2%9B/me, ") && !contains(text, "secret"), "%s", text);
    rig_hold(&r, false);
    hear(&held);
    hang_up(&held);
    hang_up(&c);
    rig_stop(&r);
    for (int i = 0; i < 2; i++) {
        close(pipe_fd[i]);
        close(errors[i]);
    }
}

/* ------------------------------------------------------------------------------------------ requests to workers */

static void keep_alive_and_close(void)
{
    static const struct {
        const char *request;
        bool close;
    } cases[] = {
        {GET("/echo/1"), false},
        {"GET /echo HTTP/1.0\r\n\r\n", true},
        {"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false},
        {"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", true},
        {GET("/close"), true},
        {"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", false}, /* it had arrived: no harm */
        {"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n", true},
    };
    rig r;

    rig_start(&r, NULL, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        client c;
        dial(&r, &c);
        reply a = ask(&c, cases[i].request);
        REQUIRE(a.status == 200 && a.close == cases[i].close, "%s%s", cases[i].request, a.head);
        if (a.close) {
            int64_t begin = front_now();
            hear_end(&c);
            REQUIRE(front_now() - begin < 900 * MS, "the end came late: %s", cases[i].request);
        } else {
            a = ask(&c, GET("/echo/2"));
            REQUIRE(contains(a.body, "GET /echo/2 0"), "%s", a.body);
        }
        hang_up(&c);
    }
    rig_stop(&r);
}

static void split_at_every_byte(void)
{
    static const struct {
        const char *raw;
        int answers;
        const char *last;
    } cases[] = {
        {GET("/healthz?verbose"), 1, "ok verbose"},
        {GET("/echo/a"), 1, "GET /echo/a 0 "},
        {"POST /echo/b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" GET("/healthz"), 2, "ok"},
        {"POST /echo/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n02\r\nde\r\n0\r\nT: x\r\n\r\n\r\n" GET("/echo/d"),
         2, "GET /echo/d 0 "},
        {"GET /echo/e HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 1, "GET /echo/e 0 "},
    };
    rig r;
    client c;
    reply a;

    rig_start(&r, NULL, 1);
    rig_publish(&r);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t len = strlen(cases[i].raw);
        for (size_t cut = 0; cut < len; cut++) { /* cut == 0: byte by byte */
            uint64_t before = rig_count(&r).bytes_in;
            dial(&r, &c);
            for (size_t at = 0; at < len;) {
                size_t n = cut == 0 ? 1 : at == 0 ? cut : len - at;
                say_bytes(&c, cases[i].raw + at, n);
                at += n;
                wait_read(&r, before + at);
            }
            for (int k = 1; k <= cases[i].answers; k++) {
                a = hear(&c);
                REQUIRE(a.status == 200, "%s cut at %zu: %s%s", cases[i].raw, cut, a.head, a.body);
            }
            REQUIRE(strncmp(a.body, cases[i].last, strlen(cases[i].last)) == 0, "%s cut at %zu: %s", cases[i].raw, cut, a.body);
            hang_up(&c);
        }
    }
    rig_stop(&r);
}

static void bodies(void)
{
    static const size_t sizes[] = {1, 2, 1000, 1900, 1980, 2048, 4096, 5000, 65000, 65535, 65536, 65537, 65600, 200000, 1000000};
    char *body = malloc(1000000);
    rig r;
    client c;

    REQUIRE(body != NULL);
    for (size_t i = 0; i < 1000000; i++)
        body[i] = rig_byte(i);
    rig_start(&r, NULL, 2);
    dial(&r, &c);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int chunk = 0; chunk < 4; chunk++) {
            static const size_t chunks[] = {0, 1000000, 3000, 7};
            static char framed[8000000];
            size_t n = 0, len = sizes[i];
            uint64_t hash = rig_hash(RIG_HASH, body, len);
            char want[128];
            n += (size_t)sprintf(framed, "POST /echo HTTP/1.1\r\nHost: x\r\n");
            if (chunk == 0) {
                n += (size_t)sprintf(framed + n, "Content-Length: %zu\r\n\r\n", len);
                memcpy(framed + n, body, len);
                n += len;
            } else {
                n += (size_t)sprintf(framed + n, "Transfer-Encoding: chunked\r\n\r\n");
                for (size_t at = 0; at < len;) {
                    size_t part = chunks[chunk] < len - at ? chunks[chunk] : len - at;
                    n += (size_t)sprintf(framed + n, "%zX\r\n", part);
                    memcpy(framed + n, body + at, part);
                    n += part;
                    n += (size_t)sprintf(framed + n, "\r\n");
                    at += part;
                }
                n += (size_t)sprintf(framed + n, "0\r\n\r\n");
            }
            n += (size_t)sprintf(framed + n, GET("/echo/next")); /* must not be eaten with the body */
            say_bytes(&c, framed, n);
            reply a = hear(&c);
            snprintf(want, sizeof want, "POST /echo %zu %016llx\n", len, (unsigned long long)hash);
            REQUIRE(strcmp(a.body, want) == 0, "size %zu chunks %zu: %s", len, chunks[chunk], a.body);
            a = hear(&c);
            REQUIRE(strncmp(a.body, "GET /echo/next 0 ", 17) == 0, "size %zu chunks %zu: %s%s", len, chunks[chunk], a.head, a.body);
        }
    hang_up(&c);
    free(body);
    rig_stop(&r);
}

static void expectations(void)
{
    rig r;
    client c;
    reply a;

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    REQUIRE(a.status == 100, "%s", a.head);
    a = ask(&c, "abc");
    REQUIRE(a.status == 200 && !a.close && contains(a.body, "POST /echo 3 "), "%s", a.body);
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
    REQUIRE(a.status == 100, "%s", a.head);
    a = ask(&c, "2\r\nab\r\n0\r\n\r\n");
    REQUIRE(a.status == 200 && !a.close && contains(a.body, "POST /echo 2 "), "%s", a.body);
    /* a body that comes along makes it pointless (RFC 9110 10.1.1) */
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    REQUIRE(a.status == 200, "%s", a.head);
    /* too much is refused before anything is sent */
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n");
    REQUIRE(a.status == 413 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);
    /* a final status instead: the connection closes */
    dial(&r, &c);
    a = ask(&c, "POST /ignore HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    REQUIRE(a.status == 200 && a.close, "%s", a.head);
    say(&c, GET("/echo/smuggled")); /* read as a body, by whoever sent it */
    hear_end(&c);
    hang_up(&c);
    dial(&r, &c);
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\nContent-Length: 3\r\n\r\n");
    REQUIRE(a.status == 417 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);
    REQUIRE(atomic_load(&r.handled) == 4);
    rig_stop(&r);
}

static void repeat(char *to, char x, size_t n)
{
    memset(to, x, n);
    to[n] = '\0';
}

/* One answer, then the end; what follows on the connection is never looked at. */
static void refusals(void)
{
    static char long_target[9000], long_header[40000], many[3000], raw[70000];
    static const struct {
        const char *request;
        int status;
    } cases[] = {
        {"GET / HTTP/1.1\nHost: x\n\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400},
        {"GET http://a b/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
        {"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA b\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388609\r\n\r\n", 413},
        {long_target, 414},
        {long_header, 431},
        {many, 431},
        {"\x16\x03\x01\x02", 400},
    };
    rig r;
    client c;

    sprintf(long_target, "GET /%08200d HTTP/1.1\r\nHost: x\r\n\r\n", 0);
    strcpy(long_header, "GET / HTTP/1.1\r\nHost: x\r\nA: ");
    repeat(long_header + strlen(long_header), 'a', 33000);
    strcpy(many, "GET / HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 101; i++)
        strcat(many, "A: b\r\n");
    rig_start(&r, NULL, 1);
    rig_publish(&r);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int way = 0; way < 3; way++) {
            dial(&r, &c);
            snprintf(raw, sizeof raw, "%s%s%s%s", way == 2 ? GET("/healthz") : "", cases[i].request,
                     way > 0 ? GET("/echo/smuggled") GET("/healthz") : "", way > 0 ? GET("/echo/smuggled") : "");
            say(&c, raw);
            if (way == 2)
                REQUIRE(hear(&c).status == 200);
            reply a = hear(&c);
            REQUIRE(a.status == cases[i].status, "%s: %s%s", cases[i].request, a.head, a.body);
            REQUIRE(a.close && a.body_len < 64, "%s: %s%s", cases[i].request, a.head, a.body);
            REQUIRE(a.status != 503 || contains(a.head, "Retry-After"));
            hear_end(&c);
            hang_up(&c);
        }
    REQUIRE(atomic_load(&r.handled) == 0, "%d requests out of refused ones", atomic_load(&r.handled));
    rig_stop(&r);
}

/* Bodies that pass the limit or break only when the worker reads them. */
/* What answers HEAD has no content, also if it is a refusal (RFC 9110 9.3.2): whether the loop refuses, or the queue is full. */
static void refusals_of_head(void)
{
    static const struct {
        const char *request;
        int status;
    } cases[] = {
        {"HEAD / HTTP/1.1\r\n\r\n", 400},
        {"HEAD / HTTP/1.1\r\nHost: x y\r\n\r\n", 400},
        {"HEAD / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400},
        {"HEAD / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
        {"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400},
        {"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388609\r\n\r\n", 413},
        {"HEAD /echo HTTP/1.1\r\nHost: x\r\n\r\n", 503},
        {"HEAD /echo", 408},
        {"\r\nGET / HTTP/1.1\r\nHost: x y\r\n\r\n", -400}, /* and others have: nothing of HEAD is left in a buffer */
        {"PROXY x\r\n", -400},
    };
    front_limits limits = rig_limits();
    rig r;
    client c;

    limits.header_timeout = 300 * MS;
    limits.max_queue = 0;
    limits.proxies[0] = (front_network){.address = {[10] = 0xff, [11] = 0xff, [12] = 127}, .bits = 104};
    limits.n_proxies = 1;
    limits.proxy_optional = true;
    rig_start(&r, &limits, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool is_head = cases[i].status > 0;
        dial(&r, &c);
        say(&c, cases[i].request);
        reply a = hear_any(&c, is_head);
        REQUIRE(a.status == abs(cases[i].status) && a.close, "%s%s", cases[i].request, a.head);
        REQUIRE(is_head || a.body_len > 0, "%s%s", cases[i].request, a.head);
        hear_end(&c);
        hang_up(&c);
    }
    rig_stop(&r);
}

static void refused_by_the_reader(void)
{
    front_limits limits = rig_limits();
    static char chunk[200000];
    rig r;
    client c;
    reply a;

    limits.max_body_size = 150000;
    limits.stream_bodies = true;
    rig_start(&r, &limits, 1);
    memset(chunk, 'a', sizeof chunk);
    dial(&r, &c);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n");
    say_bytes(&c, chunk, sizeof chunk);
    say(&c, "\r\n0\r\n\r\n" GET("/echo/smuggled"));
    a = hear(&c);
    REQUIRE(a.status == 413 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);
    REQUIRE(atomic_load(&r.last_read) == FRONT_E_TOO_LARGE);
    dial(&r, &c);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n");
    say_bytes(&c, chunk, 70000);
    say(&c, "oops\r\n0\r\n\r\n" GET("/echo/smuggled"));
    a = hear(&c);
    REQUIRE(a.status == 400 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);
    REQUIRE(atomic_load(&r.last_read) == FRONT_E_CHUNK);
    dial(&r, &c);
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    say_bytes(&c, chunk, 70000);
    shutdown(c.fd, SHUT_WR);
    a = hear(&c);
    REQUIRE(a.status == 400 && a.close, "%s", a.head);
    REQUIRE(atomic_load(&r.last_read) == FRONT_E_TRUNCATED);
    hang_up(&c);
    REQUIRE(atomic_load(&r.handled) == 3);
    rig_stop(&r);
}

static void pipelined(void)
{
    rig r;
    client c, d;

    rig_start(&r, NULL, 4);
    rig_publish(&r);
    dial(&r, &c);
    dial(&r, &d);
    for (int i = 0; i < 300; i++)
        if (i % 3 == 0)
            sayf(&c, GET("/healthz?%d"), i);
        else
            sayf(&c, GET("/echo/%d"), i);
    for (int i = 0; i < 300; i++) {
        char want[64];
        reply a = hear(&c);
        snprintf(want, sizeof want, "GET /echo/%d 0 ", i);
        REQUIRE(strncmp(a.body, i % 3 == 0 ? "ok" : want, i % 3 == 0 ? 2 : strlen(want)) == 0, "%d: %s", i, a.body);
        if (i % 50 == 0)
            REQUIRE(ask(&d, GET("/healthz")).status == 200);
    }
    say(&c, GET("/echo/a") "GET /echo/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" GET("/echo/c"));
    REQUIRE(contains(hear(&c).body, "/echo/a") && contains(hear(&c).body, "/echo/b"));
    hear_end(&c);
    int handled = atomic_load(&r.handled);
    REQUIRE(handled == 202, "%d", handled);
    hang_up(&c);
    hang_up(&d);
    rig_stop(&r);
}

/* The loop looks by itself once a second: none of these may wait for that. */
static void nothing_waits_for_the_loop(void)
{
    static char head[4096];
    rig r;
    client c;

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    for (size_t size = 2047; size <= 2049; size++) { /* the first buffer of a connection holds 2048 bytes */
        size_t n = (size_t)sprintf(head, "GET /echo HTTP/1.1\r\nHost: x\r\nA: ");
        memset(head + n, 'a', size);
        strcpy(head + size - 4, "\r\n\r\n");
        for (int round = 0; round < 5; round++) {
            static char twice[8192];
            sprintf(twice, "%s" GET("/echo/second"), head);
            say(&c, twice);
            int64_t begin = front_now();
            hear(&c);
            REQUIRE(contains(hear(&c).body, "second"));
            REQUIRE(front_now() - begin < 900 * MS, "a request waited behind one of %zu bytes", size);
        }
    }
    hang_up(&c);
    for (int round = 0; round < 5; round++)
        for (int late = 0; late < 2; late++) { /* FIN with the request, or while it is served: answered, then closed */
            dial(&r, &c);
            say(&c, late ? GET("/late/30") : GET("/echo"));
            if (late)
                EVENTUALLY(rig_count(&r).in_flight == 1);
            shutdown(c.fd, SHUT_WR);
            int64_t begin = front_now();
            REQUIRE(hear(&c).status == 200);
            hear_end(&c);
            REQUIRE(front_now() - begin < 900 * MS, "the end waited, %d", late);
            hang_up(&c);
        }
    rig_stop(&r);
}

/* ------------------------------------------------------------------------------------------- deadlines and limits */

static void deadlines_of_the_loop(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c;
    reply a;

    limits.header_timeout = 150 * MS;
    limits.idle_timeout = 300 * MS;
    limits.body_timeout = 150 * MS;
    limits.min_body_rate = 1000;
    rig_start(&r, &limits, 1);
    rig_publish(&r);

    int64_t begin = front_now();
    dial(&r, &c);
    hear_end(&c); /* idle from the beginning */
    REQUIRE(front_now() - begin >= 290 * MS);
    hang_up(&c);

    dial(&r, &c);
    REQUIRE(ask(&c, GET("/echo")).status == 200);
    hear_end(&c); /* idle between requests */
    hang_up(&c);

    dial(&r, &c);
    say(&c, "\r\n");
    hear_end(&c); /* an empty line begins no request */
    hang_up(&c);

    dial(&r, &c);
    begin = front_now();
    for (const char *p = "GET /echo HTTP/1.1\r\nHost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; *p != '\0'; p++) { /* a byte now and then does not help */
        struct pollfd ended = {.fd = c.fd, .events = POLLIN};
        say_bytes(&c, p, 1);
        if (poll(&ended, 1, 20) == 1)
            break;
    }
    a = hear(&c);
    REQUIRE(a.status == 408 && a.close, "%s", a.head);
    REQUIRE(front_now() - begin < 900 * MS);
    hear_end(&c);
    hang_up(&c);

    dial(&r, &c); /* a body that stops */
    a = ask(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
    REQUIRE(a.status == 408 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);

    dial(&r, &c); /* 20 bytes in 15 ms: above the rate, for longer than body_timeout */
    say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    for (int i = 0; i < 50; i++) {
        say(&c, "01234567890123456789");
        usleep(10000);
    }
    a = hear(&c);
    REQUIRE(a.status == 200 && contains(a.body, "POST /echo 1000 "), "%s%s", a.head, a.body);
    hang_up(&c);
    REQUIRE(atomic_load(&r.handled) == 2);
    REQUIRE(rig_count(&r).timeouts == 2, "%llu", (unsigned long long)rig_count(&r).timeouts);
    rig_stop(&r);
}

/* A read that fills its buffer to the last byte is looked at again in the next turn.  That is no way to get more time. */
static void a_full_buffer_prolongs_no_deadline(void)
{
    static char head[4096];
    front_limits limits = rig_limits();
    rig r;

    limits.header_timeout = 400 * MS;
    limits.body_timeout = 150 * MS;
    limits.min_body_rate = 1000;
    rig_start(&r, &limits, 1);
    for (int chunked = 0; chunked < 2; chunked++) {
        client c;
        size_t n = (size_t)sprintf(head, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nA: ");
        memset(head + n, 'a', sizeof head - n);
        if (chunked)
            memcpy(head + 2047 - 4, "\r\n\r\n", 4); /* one byte of the first buffer is left for the body */
        dial(&r, &c);
        say_bytes(&c, head, chunked ? 2047 : 2048);
        int64_t begin = front_now();
        struct pollfd ended = {.fd = c.fd, .events = POLLIN};
        for (int i = 0; poll(&ended, 1, chunked ? 40 : 300) == 0; i++) {
            REQUIRE(front_now() - begin < 3 * SEC, "still waited for, %d", chunked);
            if (chunked)
                say(&c, i == 0 ? "1" : i == 1 ? ";" : "x"); /* the extension of a chunk's size */
            else if (i < 4)
                for (int k = 0; k < 1 << i; k++)
                    say_bytes(&c, head + n, 2048);
        }
        reply a = hear(&c);
        REQUIRE(a.status == 408 && a.close, "%s", a.head);
        REQUIRE(front_now() - begin < 900 * MS, "%lld ms", (long long)((front_now() - begin) / MS));
        hang_up(&c);
    }
    rig_stop(&r);
}

/* A probe that has been answered is the end of one wait and the beginning of the next. */
static void answered_probes_begin_deadlines_anew(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c;

    limits.idle_timeout = limits.header_timeout = 700 * MS;
    rig_start(&r, &limits, 0);
    rig_publish(&r);
    for (int partial = 0; partial < 2; partial++) {
        dial(&r, &c);
        if (partial)
            say(&c, "GET /healthz");
        for (int64_t begin = front_now(); front_now() - begin < 1500 * MS; usleep(50000)) {
            say(&c, partial ? " HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz" : GET("/healthz"));
            reply a = hear(&c);
            REQUIRE(a.status == 200 && !a.close, "%d %s", partial, a.head);
        }
        hang_up(&c);
    }
    rig_stop(&r);
}

static void deadlines_of_a_reader(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c;
    reply a;

    limits.body_buffer_size = 1000;
    limits.body_timeout = 200 * MS;
    limits.min_body_rate = 1000;
    limits.linger_timeout = 100 * MS;
    limits.stream_bodies = true;
    rig_start(&r, &limits, 1);
    for (int chunked = 0; chunked < 2; chunked++) {
        static char start[1500];
        memset(start, 'a', sizeof start);
        dial(&r, &c);
        say(&c, chunked ? "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"
                        : "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 65535\r\n\r\n");
        say_bytes(&c, start, sizeof start);
        EVENTUALLY(atomic_load(&r.handled) == 3 * chunked + 1);
        a = hear(&c); /* nothing more comes */
        REQUIRE(a.status == 408 && a.close && atomic_load(&r.last_read) == FRONT_E_LATE, "%s", a.head);
        hang_up(&c);

        /* A byte before each deadline: every single wait is in time, all together are not. */
        dial(&r, &c);
        say(&c, chunked ? "POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"
                        : "POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 65535\r\n\r\n");
        say_bytes(&c, start, sizeof start);
        int64_t begin = front_now();
        struct pollfd ended = {.fd = c.fd, .events = POLLIN};
        while (poll(&ended, 1, 50) == 0) {
            REQUIRE(front_now() - begin < 5 * SEC, "a byte every 50 ms holds a worker");
            say(&c, "x");
        }
        a = hear(&c);
        REQUIRE(a.status == 408 && a.close, "%s", a.head);
        hang_up(&c);

        /* An application that takes its time is not the client's fault. */
        dial(&r, &c);
        say(&c, chunked ? "POST /late/500 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n"
                        : "POST /late/500 HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n");
        say_bytes(&c, start, 1500);
        usleep(600000);
        say_bytes(&c, start, 500);
        if (chunked)
            say(&c, "\r\n0\r\n\r\n");
        a = hear(&c);
        REQUIRE(a.status == 200 && contains(a.body, "POST /late/500 2000 "), "%s%s", a.head, a.body);
        hang_up(&c);
    }
    rig_stop(&r);
}

/* A client that reads nothing of a response: the worker's part and the loop's have the same deadline. */
static void deadlines_of_a_writer(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c, d;

    limits.write_timeout = 300 * MS;
    limits.response_buffer_size = 10 << 20;
    rig_start(&r, &limits, 2);
    rig_file(&r, 40 << 20);
    dial(&r, &c);
    say(&c, GET("/big/9000000")); /* left with the loop */
    dial(&r, &d);
    say(&d, GET("/file/40000000"));
    EVENTUALLY(rig_count(&r).finished == 2);
    EVENTUALLY(rig_count(&r).timeouts == 2 && rig_count(&r).connections == 0);
    REQUIRE(rig_count(&r).aborted == 2 && rig_count(&r).served == 0);
    reply a = hear(&c);
    REQUIRE(a.status == 200 && a.cut && a.intact);
    a = hear(&d);
    REQUIRE(a.status == 200 && a.cut && a.intact);
    hang_up(&c);
    hang_up(&d);
    dial(&r, &c);
    say(&c, GET("/big/30000000")); /* more than may be left: the worker waits */
    EVENTUALLY(atomic_load(&r.last_send) == FRONT_E_LATE && rig_count(&r).connections == 0);
    REQUIRE(rig_count(&r).aborted == 3 && rig_count(&r).served == 0);
    hang_up(&c);
    dial(&r, &c); /* slowly, but above the rate */
    say(&c, GET("/big/9000000"));
    usleep(100000);
    for (int i = 0; i < 20; i++) {
        static char sink[50000];
        REQUIRE(recv(c.fd, sink, sizeof sink, MSG_WAITALL) > 0, "cut off though it read");
        usleep(50000);
    }
    hang_up(&c);
    rig_stop(&r);
}

static void queue_limits(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c[8];
    int status[2] = {0};

    limits.max_queue = 3;
    limits.queue_timeout = 300 * MS;
    rig_start(&r, &limits, 1);
    rig_publish(&r);
    rig_hold(&r, true);
    dial(&r, &c[0]);
    say(&c[0], GET("/hold"));
    EVENTUALLY(atomic_load(&r.holding) == 1);
    for (int i = 1; i < 8; i++) {
        dial(&r, &c[i]);
        say(&c[i], GET("/echo"));
    }
    for (int i = 1; i < 8; i++) { /* three wait in vain, four are refused at once */
        reply a = hear(&c[i]);
        REQUIRE(a.status == 503 && a.close && contains(a.head, "Retry-After: 1\r\n"), "%s", a.head);
        status[contains(a.body, "in time")]++;
        hear_end(&c[i]);
        hang_up(&c[i]);
    }
    REQUIRE(status[0] == 4 && status[1] == 3, "%d %d", status[0], status[1]);
    dial(&r, &c[1]);
    REQUIRE(ask(&c[1], GET("/healthz")).status == 200);
    hang_up(&c[1]);
    rig_hold(&r, false);
    REQUIRE(hear(&c[0]).status == 200);
    hang_up(&c[0]);
    front_counters n;
    EVENTUALLY((n = rig_count(&r), n.served == 1));
    REQUIRE(n.shed == 4 && n.timeouts == 3 && n.served == 1, "%llu %llu %llu", (unsigned long long)n.shed, (unsigned long long)n.timeouts, (unsigned long long)n.served);
    tally_waits waits;
    uint64_t in_all = 0;
    front_waits(r.f, &waits);
    for (int b = 0; b < TALLY_WAITS; b++)
        in_all += waits.count[b];
    REQUIRE(in_all == 4 && waits.sum > 3 * 290 * MS, "%llu", (unsigned long long)in_all); /* without those refused at once */
    for (int b = 0; tally_wait_bounds[b] < 290 * MS; b++)
        in_all -= waits.count[b];
    REQUIRE(in_all >= 3, "%llu", (unsigned long long)in_all);
    rig_stop(&r);
}

/* Beyond max_connections a probe is answered and the rest is told; places there never run out for the next. */
static void too_many_connections(void)
{
    enum { N = 200 };
    front_limits limits = rig_limits();
    rig r;
    static client idle[4], extra[N], c;
    reply a;

    limits.max_connections = 4;
    rig_start(&r, &limits, 1);
    rig_publish(&r);
    for (int i = 0; i < 4; i++) {
        dial(&r, &idle[i]);
        REQUIRE(ask(&idle[i], GET("/echo")).status == 200);
    }
    rig_hold(&r, true);
    for (int i = 0; i < 4; i++) /* they are in use, and give way to nobody */
        say(&idle[i], GET("/hold"));
    EVENTUALLY(rig_count(&r).requests == 8);
    for (int i = 0; i < 3; i++) {
        dial(&r, &c);
        a = ask(&c, GET("/healthz"));
        REQUIRE(a.status == 200 && a.close && strcmp(a.body, "ok") == 0, "%s", a.head);
        hear_end(&c);
        hang_up(&c);
        dial(&r, &c);
        a = ask(&c, GET("/echo"));
        REQUIRE(a.status == 503 && a.close && contains(a.head, "Retry-After"), "%s", a.head);
        hear_end(&c);
        hang_up(&c);
    }
    for (int i = 0; i < N; i++) /* more than there are places, and they say nothing */
        dial(&r, &extra[i]);
    dial(&r, &c);
    a = ask(&c, GET("/healthz"));
    REQUIRE(a.status == 200, "%s", a.head);
    hang_up(&c);
    REQUIRE(rig_count(&r).connections < 4 + 140);
    for (int i = 0; i < N; i++) { /* all are let go within about a second */
        hear_any(&extra[i], false);
        hang_up(&extra[i]);
    }
    rig_hold(&r, false);
    for (int i = 0; i < 4; i++) {
        REQUIRE(hear(&idle[i]).status == 200, "one below the limit has suffered");
        hang_up(&idle[i]);
    }
    rig_settle(&r);
    dial(&r, &c);
    REQUIRE(ask(&c, GET("/echo")).status == 200);
    hang_up(&c);
    rig_stop(&r);
}

static void descriptors_run_out(void)
{
    enum { N = 60 };
    rig r;
    static client c[N], probe;
    reply a;
    int spare = open("/dev/null", O_RDONLY | O_CLOEXEC), fd;

    rig_start(&r, NULL, 1);
    rig_publish(&r);
    for (int i = 0; i < N; i++) { /* the clients' own descriptors are there before the limit */
        c[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        c[i].len = 0;
    }
    probe = (client){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    fd = dup(spare);
    close(fd);
    struct rlimit limit, former;
    getrlimit(RLIMIT_NOFILE, &former);
    limit = former;
    limit.rlim_cur = (rlim_t)fd + 20; /* twenty connections from now on */
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < 20; i++) {
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
        say(&c[i], GET("/echo"));
        REQUIRE(hear(&c[i]).status == 200, "%d", i);
    }
    for (int i = 20; i < 25; i++) /* and more who wait */
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
    EVENTUALLY(rig_count(&r).accept_errors > 0);
    double cpu = cpu_seconds();
    REQUIRE(connect(probe.fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
    a = ask(&probe, GET("/healthz"));
    REQUIRE(a.status == 200, "%d %s", a.status, a.head);
    hang_up(&probe);
    usleep(700000);
    cpu = cpu_seconds() - cpu;
    REQUIRE(cpu < 0.5, "%.3f s of CPU while there was nothing to do", cpu);
    for (int i = 20; i < 25; i++) { /* those on the reserve descriptor are told or let go */
        hang_up(&c[i]);
    }
    a = ask(&c[0], GET("/echo")); /* who is in is served */
    REQUIRE(a.status == 200, "%s", a.head);
    for (int i = 1; i < 20; i++)
        hang_up(&c[i]);
    int64_t begin = front_now();
    REQUIRE(connect(c[30].fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
    a = ask(&c[30], GET("/echo"));
    REQUIRE(a.status == 200, "%d %s", a.status, a.head);
    REQUIRE(front_now() - begin < 500 * MS, "recovered after %lld ms", (long long)((front_now() - begin) / MS));
    setrlimit(RLIMIT_NOFILE, &former);
    for (int i = 0; i < N; i++)
        if (c[i].fd != -1)
            hang_up(&c[i]);
    close(spare);
    rig_stop(&r);
}

/* --------------------------------------------------------------------------------------------- difficult clients */

static void resets_in_every_state(void)
{
    static char big[200000];
    front_limits limits = rig_limits();
    rig r;
    client c, d;

    memset(big, 'a', sizeof big);
    limits.linger_timeout = 10 * SEC;
    rig_start(&r, &limits, 2);
    rig_publish(&r);
    rig_file(&r, 20 << 20);
    for (int way = 0; way < 2; way++) /* RST, FIN */
        for (int round = 0; round < 10; round++) {
            void (*leave)(client *) = way == 0 ? reset : hang_up;
            dial(&r, &c); /* nothing said */
            leave(&c);
            dial(&r, &c); /* idle after a request */
            ask(&c, GET("/echo"));
            leave(&c);
            dial(&r, &c); /* in the head */
            say(&c, "GET /ec");
            leave(&c);
            dial(&r, &c); /* in the body, being collected */
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
            leave(&c);
            dial(&r, &c); /* in the body, being read by a worker */
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
            say_bytes(&c, big, sizeof big);
            leave(&c);
            dial(&r, &c); /* in chunks */
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n");
            say_bytes(&c, big, sizeof big);
            leave(&c);
            dial(&r, &c); /* expecting 100 */
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n");
            leave(&c);
            dial(&r, &c); /* right after a request */
            say(&c, GET("/echo"));
            leave(&c);
            dial(&r, &c); /* a probe nobody waits for */
            say(&c, GET("/healthz"));
            leave(&c);
            dial(&r, &c); /* pipelined */
            for (int i = 0; i < 100; i++)
                say(&c, i % 2 ? GET("/healthz") : GET("/echo"));
            leave(&c);
            dial(&r, &c); /* while a response is written: by the worker */
            say(&c, GET("/stream/5000000"));
            receive(&c, front_now() + PATIENCE);
            leave(&c);
            dial(&r, &c); /* by the loop */
            say(&c, GET("/big/900000"));
            receive(&c, front_now() + PATIENCE);
            leave(&c);
            dial(&r, &c); /* from a file */
            say(&c, GET("/file/20000000"));
            receive(&c, front_now() + PATIENCE);
            leave(&c);
            dial(&r, &c); /* the response is refused, we linger */
            say(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc");
            hear(&c);
            leave(&c);
        }
    rig_settle(&r);
    /* waiting in the queue, and with a worker that asks */
    rig_hold(&r, true);
    for (int i = 0; i < 2; i++) {
        dial(&r, &c);
        say(&c, GET("/hold"));
        EVENTUALLY(atomic_load(&r.holding) == 1);
        dial(&r, &d);
        say(&d, GET("/hold"));
        EVENTUALLY(atomic_load(&r.holding) == 2);
        client queued;
        dial(&r, &queued);
        say(&queued, GET("/echo"));
        EVENTUALLY(rig_count(&r).queued == 1);
        reset(&queued);
        reset(&c);
        reset(&d);
        EVENTUALLY(atomic_load(&r.holding) == 0);
        EVENTUALLY(atomic_load(&r.gone) == 2 * (i + 1));
    }
    rig_hold(&r, false);
    dial(&r, &c);
    REQUIRE(ask(&c, GET("/echo")).status == 200 && ask(&c, GET("/healthz")).status == 200);
    hang_up(&c);
    rig_stop(&r);
}

/* By an application that does something else before it reads on. */
static void resets_amid_a_body_are_seen(void)
{
    front_limits limits = rig_limits();
    static char big[200000];
    rig r;
    client c;
    int seen = 0;

    limits.stream_bodies = true;
    rig_start(&r, &limits, 1);
    for (int i = 0; i < 10; i++) {
        rig_hold(&r, true);
        dial(&r, &c);
        if (i % 2) /* a connection that has been watched before */
            ask(&c, GET("/echo"));
        say(&c, "POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
        say_bytes(&c, big, 80000);
        EVENTUALLY(atomic_load(&r.holding) == 1);
        if (i % 4 < 2) {
            reset(&c);
            seen++;
            EVENTUALLY(atomic_load(&r.gone) == seen);
        } else { /* and the request behind it is read without help */
            rig_hold(&r, false);
            say_bytes(&c, big, 20000);
            say(&c, GET("/echo/behind"));
            REQUIRE(hear(&c).status == 200);
            REQUIRE(contains(hear(&c).body, "/echo/behind"));
            hang_up(&c);
        }
    }
    rig_stop(&r);
}

static void cut_responses_are_seen_as_such(void)
{
    rig r;
    client c;

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    reply a = ask(&c, GET("/cut/1000000"));
    REQUIRE(a.status == 200 && a.cut, "%zu", a.body_len);
    hang_up(&c);
    EVENTUALLY(rig_count(&r).aborted == 1);
    rig_stop(&r);
}

static void pipelines_without_reading(void)
{
    static char many[600000];
    rig r;
    client c, d;

    rig_start(&r, NULL, 2);
    rig_publish(&r);
    dial(&r, &d);
    for (int kind = 0; kind < 2; kind++) {
        size_t n = 0, said = 0;
        const char *one = kind == 0 ? GET("/healthz") : GET("/echo");
        while (n + 100 < sizeof many)
            n += (size_t)sprintf(many + n, "%s", one);
        dial(&r, &c);
        long before = resident();
        struct pollfd p = {.fd = c.fd, .events = POLLOUT};
        int waits = 0;
        while (said < 4000000 && waits < 20) { /* until it takes no more */
            ssize_t sent = send(c.fd, many + said % n, n - said % n, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent > 0)
                said += (size_t)sent;
            else
                waits = poll(&p, 1, 10) == 0 ? waits + 1 : 0;
            if (said % 5 == 0)
                REQUIRE(ask(&d, GET("/healthz")).status == 200);
        }
        REQUIRE(rig_count(&r).buffered < 2000000, "%llu", (unsigned long long)rig_count(&r).buffered);
        REQUIRE(resident() - before < 30000, "%ld KiB more", resident() - before); /* a sanitizer has its share */
        REQUIRE(ask(&d, GET("/healthz")).status == 200 && ask(&d, GET("/echo")).status == 200);
        for (size_t i = 0; i < said / strlen(one); i++) /* and all of it is answered once it reads */
            REQUIRE(hear(&c).status == 200);
        hang_up(&c);
        rig_settle_to(&r, 1);
    }
    hang_up(&d);
    rig_stop(&r);
}

static void slow_readers_hold_nobody_up(void)
{
    enum { N = 40 };
    front_limits limits = rig_limits();
    rig r;
    static client c[N];
    client d;

    limits.buffer_size = 64 << 20;
    rig_start(&r, &limits, 2);
    rig_publish(&r);
    rig_file(&r, 20 << 20);
    for (int i = 0; i < N; i++) {
        c[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        c[i].len = 0;
        setsockopt(c[i].fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
        if (i % 2)
            say(&c[i], GET("/big/1000000"));
        else
            say(&c[i], GET("/file/5000000"));
    }
    dial(&r, &d);
    for (int i = 0; i < 50; i++)
        REQUIRE(ask(&d, GET("/echo")).status == 200); /* two workers are free for this */
    EVENTUALLY(rig_count(&r).in_flight == 0);
    for (int i = 0; i < N; i++) {
        reply a = hear(&c[i]);
        REQUIRE(a.status == 200 && a.intact && a.body_len == (i % 2 ? 1000000 : 5000000), "%d: %zu", i, a.body_len);
        a = ask(&c[i], GET("/echo/again")); /* and the connection goes on */
        REQUIRE(a.status == 200 && contains(a.body, "again"));
        hang_up(&c[i]);
    }
    hang_up(&d);
    rig_stop(&r);
}

/* What is left with the loop has a bound for all together; beyond it workers wait. */
static void response_buffers_are_bounded(void)
{
    enum { N = 8 };
    front_limits limits = rig_limits();
    rig r;
    static client c[N];

    limits.buffer_size = 3000000;
    limits.response_buffer_size = 8000000;
    rig_start(&r, &limits, N);
    for (int i = 0; i < N; i++) {
        c[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        c[i].len = 0;
        setsockopt(c[i].fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
        REQUIRE(connect(c[i].fd, (struct sockaddr *)&r.address, sizeof r.address) == 0);
        say(&c[i], GET("/big/6000000"));
    }
    EVENTUALLY(atomic_load(&r.handled) == N);
    for (int i = 0; i < 50; i++) {
        REQUIRE(rig_count(&r).buffered <= 3000000);
        usleep(2000);
    }
    for (int i = 0; i < N; i++) {
        reply a = hear(&c[i]);
        REQUIRE(a.status == 200 && a.intact && a.body_len == 6000000, "%d: %zu %d", i, a.body_len, a.cut);
        hang_up(&c[i]);
    }
    rig_stop(&r);
}

/* A fast reader of a large file must not have the loop to itself. */
static atomic_bool reading;

static void *read_all(void *arg)
{
    client *c = arg;
    static _Thread_local char sink[1 << 20];
    ssize_t n;

    while ((n = recv(c->fd, sink, sizeof sink, 0)) > 0)
        ;
    atomic_store(&reading, false);
    return NULL;
}

static void a_fast_download_is_fair(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c, d;
    pthread_t thread;
    int64_t worst = 0;
    int probes = 0;

    rig_start(&r, &limits, 1);
    rig_publish(&r);
    rig_file(&r, 500u << 20);
    dial(&r, &d);
    ask(&d, GET("/healthz"));
    dial(&r, &c);
    say(&c, "GET /file/524288000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EVENTUALLY(rig_count(&r).finished == 1); /* with the loop now */
    atomic_store(&reading, true);
    REQUIRE(pthread_create(&thread, NULL, read_all, &c) == 0);
    while (atomic_load(&reading)) {
        int64_t begin = front_now();
        REQUIRE(ask(&d, GET("/healthz")).status == 200);
        if (front_now() - begin > worst)
            worst = front_now() - begin;
        probes++;
    }
    pthread_join(thread, NULL);
    printf("     %d probes meanwhile, the slowest %.1f ms\n", probes, (double)worst / 1e6);
    REQUIRE(worst < 250 * MS, "a probe waited %.1f ms", (double)worst / 1e6);
    hang_up(&c);
    hang_up(&d);
    rig_stop(&r);
}

/* ------------------------------------------------------------------------------------------------------ shutdown */

static void stages(void)
{
    rig r;
    client c, d, held, idle, half;
    reply a;

    rig_start(&r, NULL, 2);
    rig_publish(&r);
    rig_hold(&r, true);
    dial(&r, &held);
    say(&held, GET("/hold"));
    EVENTUALLY(atomic_load(&r.holding) == 1);
    dial(&r, &idle);
    ask(&idle, GET("/echo"));
    dial(&r, &half);
    uint64_t before = rig_count(&r).bytes_in;
    say(&half, "GET /echo/half HTTP/1.1\r\n");
    wait_read(&r, before + 25);
    front_advance(r.f, FRONT_DRAINING);
    dial(&r, &c); /* all is accepted, each response closes */
    EVENTUALLY((a = ask(&c, GET("/echo")), a.close || (usleep(1000), false)) || a.status != 200);
    REQUIRE(a.status == 200 && a.close, "%s", a.head);
    hear_end(&c);
    hang_up(&c);
    usleep(50000);
    REQUIRE(!atomic_load(&r.loop_ended));
    front_advance(r.f, FRONT_CLOSING);
    front_advance(r.f, FRONT_DRAINING); /* never back */
    REQUIRE(front_stage_now(r.f) == FRONT_CLOSING);
    a = ask(&idle, GET("/echo/last")); /* in its last second */
    REQUIRE(a.status == 200 && a.close && contains(a.body, "last"), "%d %s", a.status, a.head);
    hear_end(&idle);
    hang_up(&idle);
    a = ask(&half, "Host: x\r\n\r\n");
    REQUIRE(a.status == 200 && a.close, "%s", a.head);
    hear_end(&half);
    hang_up(&half);
    EVENTUALLY((d.fd = dial_address(&r.address)) == -ECONNREFUSED || (d.fd >= 0 && close(d.fd) == 0 && false));
    REQUIRE(!atomic_load(&r.loop_ended));
    rig_hold(&r, false);
    a = hear(&held);
    REQUIRE(a.status == 200 && a.close, "%s", a.head);
    hear_end(&held);
    hang_up(&held);
    EVENTUALLY(atomic_load(&r.loop_ended)); /* by itself */
    REQUIRE(front_stage_now(r.f) == FRONT_STOPPED && rig_count(&r).aborted == 0);
    rig_join(&r);
}

static void idle_connections_get_fin(void)
{
    rig r;
    client c;

    rig_start(&r, NULL, 1);
    dial(&r, &c);
    ask(&c, GET("/echo"));
    front_advance(r.f, FRONT_CLOSING);
    int64_t begin = front_now();
    hear_end(&c);
    REQUIRE(front_now() - begin > 900 * MS && front_now() - begin < 5 * SEC);
    say(&c, GET("/echo")); /* too late, and no reset for it while the FIN is not answered */
    EVENTUALLY(rig_count(&r).too_late == 1);
    usleep(50000);
    REQUIRE(recv(c.fd, c.buf, 1, MSG_DONTWAIT) == 0);
    hang_up(&c);
    EVENTUALLY(atomic_load(&r.loop_ended));
    rig_join(&r);
}

static void stop_aborts(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c[5];

    limits.body_buffer_size = 1000;
    rig_start(&r, &limits, 2);
    rig_hold(&r, true);
    for (int i = 0; i < 5; i++)
        dial(&r, &c[i]);
    say(&c[0], GET("/hold")); /* with a worker */
    EVENTUALLY(atomic_load(&r.holding) == 1);
    say(&c[1], "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\nExpect: 100-continue\r\n\r\n"); /* reading */
    REQUIRE(hear(&c[1]).status == 100);
    say(&c[2], GET("/echo")); /* queued */
    EVENTUALLY(rig_count(&r).queued == 1);
    uint64_t before = rig_count(&r).bytes_in;
    say(&c[3], "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nabc"); /* collecting */
    wait_read(&r, before + 56);
    int64_t begin = front_now();
    front_advance(r.f, FRONT_STOPPED);
    rig_join(&r); /* nobody waits for anybody */
    REQUIRE(front_now() - begin < 5 * SEC);
    for (int i = 0; i < 5; i++) {
        reply a = hear(&c[i]);
        REQUIRE(a.status <= 0 || i <= 1, "%d: %s", i, a.head);
        hang_up(&c[i]);
    }
}

/* Clients that connect while the listener closes are answered, or refused before they have said anything. */
typedef struct {
    rig *r;
    pthread_t thread;
    atomic_bool *stop;
    int answered, refused;
} knocker;

static void *knock(void *arg)
{
    knocker *k = arg;

    while (!atomic_load(k->stop)) {
        client c = {.fd = dial_address(&k->r->address)};
        if (c.fd < 0) {
            REQUIRE(c.fd == -ECONNREFUSED || c.fd == -ETIMEDOUT, "%s", strerror(-c.fd));
            k->refused++;
            break;
        }
        say(&c, k->answered % 2 ? GET("/echo") : "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab");
        reply a = hear(&c);
        REQUIRE(a.status == 200 && !a.cut, "after %d answers: %d, nothing but a %s", k->answered, a.status, a.status == -1 ? "reset" : "FIN");
        hang_up(&c);
        k->answered++;
    }
    return NULL;
}

static void nobody_is_lost_while_it_closes(void)
{
    for (int round = 0; round < 5; round++) {
        enum { N = 12 };
        rig r;
        knocker k[N];
        atomic_bool stop = false;
        int answered = 0, refused = 0;

        rig_start(&r, NULL, 3);
        for (int i = 0; i < N; i++) {
            k[i] = (knocker){.r = &r, .stop = &stop};
            REQUIRE(pthread_create(&k[i].thread, NULL, knock, &k[i]) == 0);
        }
        EVENTUALLY(rig_count(&r).served > 200);
        front_advance(r.f, FRONT_DRAINING);
        usleep(20000);
        front_advance(r.f, FRONT_CLOSING);
        EVENTUALLY(atomic_load(&r.loop_ended));
        for (int i = 0; i < N; i++) {
            pthread_join(k[i].thread, NULL);
            answered += k[i].answered;
            refused += k[i].refused;
        }
        REQUIRE(refused == N, "%d", refused);
        REQUIRE(rig_count(&r).served == (uint64_t)answered && rig_count(&r).aborted == 0);
        rig_join(&r);
    }
}

static void signals_from_a_pipe(void)
{
    rig r;
    client c;
    reply a;
    int fd[2];

    REQUIRE(pipe2(fd, O_NONBLOCK | O_CLOEXEC) == 0);
    rig_start(&r, NULL, 1);
    rig_publish(&r);
    REQUIRE(front_watch_signals(r.f, fd[0], 1 << SIGTERM | 1 << SIGINT, 0) == 0);
    dial(&r, &c);
    REQUIRE(write(fd[1], "\x11\x01", 2) == 2); /* SIGCHLD, SIGHUP: not ours */
    for (int i = 0; i < 5; i++)
        REQUIRE(ask(&c, GET("/readyz")).status == 200);
    REQUIRE(write(fd[1], &(char){SIGTERM}, 1) == 1);
    EVENTUALLY(front_stage_now(r.f) == FRONT_DRAINING);
    a = ask(&c, GET("/readyz"));
    REQUIRE(a.status == 503 && a.close, "%s", a.head);
    hang_up(&c);
    close(fd[1]); /* its writer goes: no reason to spin */
    usleep(50000);
    double cpu = cpu_seconds();
    usleep(300000);
    cpu = cpu_seconds() - cpu;
    REQUIRE(cpu < 0.15, "%.3f s of CPU on a closed pipe", cpu);
    rig_stop(&r);
    close(fd[0]);
}

/* -------------------------------------------------------------------------------------------------------- people */

static void flights_and_counters(void)
{
    rig r;
    client c[3];
    front_flight flights[8];
    static tally_series series[TALLY_SERIES];
    static tally_prober probers[TALLY_PROBERS];

    rig_start(&r, NULL, 1);
    rig_publish(&r);
    rig_hold(&r, true);
    for (int i = 0; i < 3; i++)
        dial(&r, &c[i]);
    say(&c[0], GET("/hold/a?secret"));
    EVENTUALLY(atomic_load(&r.holding) == 1);
    say(&c[1], "DELETE /echo/b HTTP/1.1\r\nHost: x\r\n\r\n");
    EVENTUALLY(rig_count(&r).queued == 1);
    REQUIRE(front_requests(r.f, FRONT_TAKEN | FRONT_QUEUED, flights, 8) == 2);
    REQUIRE(strcmp(flights[0].method, "GET") == 0 && strcmp(flights[0].target, "/hold/a") == 0 && flights[0].thread != 0);
    REQUIRE(strcmp(flights[1].method, "DELETE") == 0 && strcmp(flights[1].target, "/echo/b") == 0 && flights[1].thread == 0);
    REQUIRE(flights[0].age > 0 && flights[1].age > 0);
    REQUIRE(front_requests(r.f, FRONT_TAKEN | FRONT_QUEUED, flights, 1) == 1);
    REQUIRE(front_requests(r.f, FRONT_QUEUED, flights, 8) == 1 && strcmp(flights[0].target, "/echo/b") == 0);
    say(&c[2], "GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.30\r\n\r\n");
    hear(&c[2]);
    REQUIRE(front_probers(r.f, probers, TALLY_PROBERS) == 1);
    REQUIRE(probers[0].count == 1 && probers[0].status == 200 && probers[0].who.agent_len == 15);
    rig_hold(&r, false);
    hear(&c[0]);
    hear(&c[1]);
    EVENTUALLY(front_durations(r.f, series, TALLY_SERIES) == 2);
    front_counters n = rig_count(&r);
    REQUIRE(n.accepted == 3 && n.requests == 2 && n.probes == 1 && n.served == 2 && n.rejected == 0);
    for (int i = 0; i < 3; i++)
        hang_up(&c[i]);
    REQUIRE(front_requests(r.f, FRONT_TAKEN | FRONT_QUEUED | FRONT_SWITCHED, flights, 8) == 0);
    rig_stop(&r);
}

static void take_waits(void)
{
    rig r;
    front_request q;

    rig_start(&r, NULL, 0);
    REQUIRE(front_take(r.f, &q, 0) == FRONT_TIMEOUT);
    int64_t begin = front_now();
    REQUIRE(front_take(r.f, &q, 50 * MS) == FRONT_TIMEOUT);
    REQUIRE(front_now() - begin >= 50 * MS);
    client c;
    dial(&r, &c);
    say(&c, GET("/echo"));
    REQUIRE(front_take(r.f, &q, 20 * SEC) == FRONT_OK);
    rig_serve(&r, &q);
    REQUIRE(hear(&c).status == 200);
    hang_up(&c);
    rig_settle(&r);
    front_advance(r.f, FRONT_STOPPED);
    REQUIRE(front_take(r.f, &q, -1) == FRONT_CLOSED);
    REQUIRE(front_take(r.f, &q, 0) == FRONT_CLOSED);
    rig_join(&r);
}

typedef struct {
    rig *r;
    pthread_t thread;
    atomic_int result; /* of its wait; -1: it waits */
    int64_t came;
    front_request q;
} comer;

static void *come(void *arg)
{
    comer *me = arg;

    rig_is_server = true;
    atomic_store(&me->result, front_come(me->r->f, &me->q, -1, &me->came));
    return NULL;
}

/* Workers for whom the interpreter is busy: one at a time waits for it, and takes the oldest request when it has it. */
static void one_comes_and_takes_the_oldest(void)
{
    rig r;
    client c[2];
    front_request q;
    comer w[2];

    rig_start(&r, NULL, 0);
    for (int i = 0; i < 2; i++)
        dial(&r, &c[i]);
    say(&c[0], GET("/echo"));
    REQUIRE(front_take(r.f, &q, 20 * SEC) == FRONT_OK);
    usleep(5000); /* such requests are long */
    rig_serve(&r, &q);
    hear(&c[0]);

    for (int i = 0; i < 2; i++) {
        w[i] = (comer){.r = &r, .result = -1};
        REQUIRE(pthread_create(&w[i].thread, NULL, come, &w[i]) == 0);
    }
    usleep(20000);
    say(&c[0], GET("/echo?first"));
    EVENTUALLY(atomic_load(&w[0].result) != -1 || atomic_load(&w[1].result) != -1);
    int first = atomic_load(&w[0].result) != -1 ? 0 : 1;
    comer *a = &w[first], *b = &w[1 - first];
    REQUIRE(atomic_load(&a->result) == FRONT_TIMEOUT && a->came != 0);
    say(&c[1], GET("/echo?second"));
    usleep(50000);
    REQUIRE(atomic_load(&b->result) == -1, "two have come");
    REQUIRE(rig_count(&r).in_flight == 2 && rig_count(&r).queued == 0); /* they wait for the interpreter, and not for a worker */

    REQUIRE(front_come(r.f, &a->q, 0, &a->came) == FRONT_OK && a->came == 0);
    REQUIRE(memcmp(a->q.data + a->q.head->target.pos, "/echo?first", 11) == 0);
    EVENTUALLY(atomic_load(&b->result) == FRONT_TIMEOUT);
    rig_serve(&r, &a->q);
    usleep(2000);
    REQUIRE(front_come(r.f, &a->q, 0, &a->came) == FRONT_TIMEOUT && a->came == 0); /* leaves it to the other */
    REQUIRE(front_come(r.f, &b->q, 0, &b->came) == FRONT_OK);
    REQUIRE(memcmp(b->q.data + b->q.head->target.pos, "/echo?second", 12) == 0);
    rig_serve(&r, &b->q);
    REQUIRE(hear(&c[0]).status == 200 && hear(&c[1]).status == 200);
    for (int i = 0; i < 2; i++)
        pthread_join(w[i].thread, NULL);
    for (int i = 0; i < 2; i++)
        hang_up(&c[i]);
    rig_stop(&r);
}

/* -------------------------------------------------------------------------------------------- who runs the loop */

typedef struct {
    rig *r;
    int rounds;
    atomic_int *left; /* clients that are not done */
} hammerer;

static void *hammer(void *arg)
{
    hammerer *h = arg;
    client c;

    dial(h->r, &c);
    for (int i = 0; i < h->rounds; i++) {
        say(&c, GET("/echo"));
        REQUIRE(hear(&c).status == 200);
    }
    hang_up(&c);
    atomic_fetch_sub(h->left, 1);
    return NULL;
}

/* Short requests make workers lead.  Nothing gets lost when leading changes hands, and probes do not wait for it. */
static void workers_lead(void)
{
    front_limits limits = rig_limits();

    for (int parallel = 0; parallel < 2; parallel++) {
        rig r;
        client prober;
        pthread_t threads[6];
        atomic_int left = 6;
        int64_t longest = 0;

        limits.parallel = parallel;
        rig_start(&r, &limits, 4);
        rig_publish(&r);
        hammerer h = {&r, 2000, &left};
        for (int i = 0; i < 6; i++)
            REQUIRE(pthread_create(&threads[i], NULL, hammer, &h) == 0);
        dial(&r, &prober);
        while (atomic_load(&left) > 0) {
            int64_t begin = front_now();
            say(&prober, GET("/healthz"));
            REQUIRE(hear(&prober).status == 200);
            if (front_now() - begin > longest)
                longest = front_now() - begin;
        }
        REQUIRE(longest < 2 * SEC, "%lld ns", (long long)longest);
        for (int i = 0; i < 6; i++)
            pthread_join(threads[i], NULL);
        EVENTUALLY(rig_count(&r).served == 12000);
        hang_up(&prober);
        rig_stop(&r);
    }
}

/* A leader that gets stuck in its request leaves others behind it, which came in the same turn and were short so far. */
static void a_stuck_leader_holds_nobody_up(void)
{
    rig r;
    client c[4];

    rig_start(&r, NULL, 4);
    for (int i = 0; i < 4; i++)
        dial(&r, &c[i]);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 200; i++) {
            say(&c[0], GET("/echo"));
            REQUIRE(hear(&c[0]).status == 200);
        }
        rig_hold(&r, true);
        for (int i = 0; i < 4; i++)
            say(&c[i], i % 2 == 0 ? GET("/hold") : GET("/echo"));
        REQUIRE(hear(&c[1]).status == 200);
        REQUIRE(hear(&c[3]).status == 200);
        EVENTUALLY(atomic_load(&r.holding) == 2);
        rig_hold(&r, false);
        REQUIRE(hear(&c[0]).status == 200);
        REQUIRE(hear(&c[2]).status == 200);
    }
    for (int i = 0; i < 4; i++)
        hang_up(&c[i]);
    rig_stop(&r);
}

static const test tests[] = {
    {"pages_forms", pages_forms, 0},
    {"pages_expire_and_drain", pages_expire_and_drain, 0},
    {"pages_replaced_while_asked", pages_replaced_while_asked, 0},
    {"last_words_once", last_words_once, 0},
    {"keep_alive_and_close", keep_alive_and_close, 0},
    {"split_at_every_byte", split_at_every_byte, 0},
    {"bodies", bodies, 0},
    {"expectations", expectations, 0},
    {"refusals", refusals, 0},
    {"refusals_of_head", refusals_of_head, 0},
    {"refused_by_the_reader", refused_by_the_reader, 0},
    {"pipelined", pipelined, 0},
    {"nothing_waits_for_the_loop", nothing_waits_for_the_loop, ALONE},
    {"deadlines_of_the_loop", deadlines_of_the_loop, 0},
    {"a_full_buffer_prolongs_no_deadline", a_full_buffer_prolongs_no_deadline, 0},
    {"answered_probes_begin_deadlines_anew", answered_probes_begin_deadlines_anew, 0},
    {"deadlines_of_a_reader", deadlines_of_a_reader, 0},
    {"deadlines_of_a_writer", deadlines_of_a_writer, 0},
    {"queue_limits", queue_limits, 0},
    {"too_many_connections", too_many_connections, 0},
    {"descriptors_run_out", descriptors_run_out, ALONE},
    {"resets_in_every_state", resets_in_every_state, 0},
    {"resets_amid_a_body_are_seen", resets_amid_a_body_are_seen, 0},
    {"cut_responses_are_seen_as_such", cut_responses_are_seen_as_such, 0},
    {"pipelines_without_reading", pipelines_without_reading, 0},
    {"slow_readers_hold_nobody_up", slow_readers_hold_nobody_up, 0},
    {"response_buffers_are_bounded", response_buffers_are_bounded, 0},
    {"a_fast_download_is_fair", a_fast_download_is_fair, ALONE},
    {"stages", stages, 0},
    {"idle_connections_get_fin", idle_connections_get_fin, 0},
    {"stop_aborts", stop_aborts, 0},
    {"nobody_is_lost_while_it_closes", nobody_is_lost_while_it_closes, 0},
    {"signals_from_a_pipe", signals_from_a_pipe, ALONE},
    {"flights_and_counters", flights_and_counters, 0},
    {"take_waits", take_waits, 0},
    {"one_comes_and_takes_the_oldest", one_comes_and_takes_the_oldest, 0},
    {"workers_lead", workers_lead, 0},
    {"a_stuck_leader_holds_nobody_up", a_stuck_leader_holds_nobody_up, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
