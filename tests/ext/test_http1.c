/*
 * test_http1.c - http1.c by tables: named cases by RFC section, each fed whole,
 * cut at every byte, byte by byte, and with bytes after it, through every
 * instruction set this machine has.  Buffers are of the exact size, so that the
 * address sanitizer sees a byte read outside.
 *
 *     cc -std=c11 -g -fsanitize=address,undefined -Iext tests/ext/test_http1.c && ./a.out
 *
 * It includes the source, not the header, to reach each variant.
 */
#include "http/http1.c"

#include <stdio.h>
#include <stdlib.h>

static int failures, checks;

static void fail(const char *test, const char *what, const char *got, const char *want) {
    failures++;
    printf("FAIL %s (%s)\n  got   %s\n  want  %s\n", test, what, got, want);
}

static void expect(const char *test, const char *what, const char *got, const char *want) {
    checks++;
    if (strcmp(got, want) != 0)
        fail(test, what, got, want);
}

static void expect_int(const char *test, const char *what, long got, long want) {
    char a[32], b[32];
    snprintf(a, sizeof a, "%ld", got);
    snprintf(b, sizeof b, "%ld", want);
    expect(test, what, a, b);
}

/* Exactly these bytes on the heap. */
static char *exact(const char *bytes, size_t len) {
    char *copy = malloc(len ? len : 1);
    if (!copy)
        abort();
    memcpy(copy, bytes, len);
    return copy;
}

/* Variants --------------------------------------------------------------- */

typedef int parse_function(const uint8_t *, const uint8_t *, const http1_limits *, http1_head *);
typedef const uint8_t *scan_function(const struct class *, const uint8_t *, const uint8_t *, const uint8_t *);

typedef struct block block_function(const uint8_t *);

static struct {
    const char *name;
    parse_function *parse;
    scan_function *scan;
    block_function *block;
} variants[4];
static size_t n_variants;

static void find_variants(void) {
#define VARIANT(label, parse_it, scan_it, block_it) \
    variants[n_variants].name = label, variants[n_variants].parse = parse_it, variants[n_variants].scan = scan_it, \
    variants[n_variants++].block = block_it
    VARIANT("portable", parse_portable, scan_portable, NULL);
#ifdef HTTP1_X86
    if (__builtin_cpu_supports("ssse3"))
        VARIANT("ssse3", parse_ssse3, scan_ssse3, block_ssse3);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
        VARIANT("avx2", parse_avx2, scan_avx2, block_avx2);
#endif
#ifdef HTTP1_NEON
    VARIANT("neon", parse_neon, scan_neon, block_neon);
#endif
}

/* Heads ------------------------------------------------------------------ */

static const http1_limits LIMITS = {.max_head_size = 32768, .max_target_size = 8192, .max_headers = 100};

static size_t put(char *out, size_t at, size_t size, const char *label, const char *buf, http1_span s) {
    return at + (size_t)snprintf(out + at, size - at, "%s%.*s", label, (int)s.len, buf + s.pos);
}

/* Where the path follows from the target it is not worth a word. */
static size_t expected_path(const http1_head *h) {
    return h->form != HTTP1_ORIGIN ? 0u : h->target.len - (h->has_query ? h->query.len + 1u : 0u);
}

/* A head in one line: what the tables below hold. */
static void describe(char *out, size_t size, int n, const char *buf, const http1_head *h) {
    static const char *const forms[] = {"", " absolute", " authority", " asterisk"};
    size_t at;
    if (n <= 0) {
        snprintf(out, size, "%s", n ? http1_error_name(n) : "PARTIAL");
        return;
    }
    at = put(out, 0, size, h->method_id == HTTP1_OTHER ? "other:" : "", buf, h->method);
    at = put(out, at, size, " ", buf, h->target);
    at += (size_t)snprintf(out + at, size - at, " 1.%d%s", h->minor, forms[h->form]);
    if (h->form == HTTP1_ABSOLUTE || h->path.len != expected_path(h))
        at = put(out, at, size, " path=", buf, h->path);
    if (h->has_query)
        at = put(out, at, size, " query=", buf, h->query);
    if (h->authority.len)
        at = put(out, at, size, " authority=", buf, h->authority);
    if (h->host.len)
        at = put(out, at, size, h->bad_host ? " bad_host=" : " host=", buf, h->host);
    if (h->has_length)
        at += (size_t)snprintf(out + at, size - at, " length=%llu", (unsigned long long)h->content_length);
    at += (size_t)snprintf(out + at, size - at, "%s%s%s", h->chunked ? " chunked" : "", h->keep_alive ? "" : " close",
                           h->expect_continue ? " continue" : "");
    for (size_t i = 0; i < h->n_headers; i++) {
        if (TEXT_IS(buf + h->headers[i].name.pos, h->headers[i].name.len, "host"))
            continue; /* shown above */
        at = put(out, at, size, " | ", buf, h->headers[i].name);
        at = put(out, at, size, "=", buf, h->headers[i].value);
    }
}

/* One call on an exact copy, by one variant, or by the function everybody calls; described. */
static int call(size_t variant, const char *raw, size_t len, size_t seen, const http1_limits *limits, char *out,
                size_t size) {
    char *buf = exact(raw, len);
    static http1_head head;
    const uint8_t *p = (uint8_t *)buf;
    int n;
    memset(&head, 0xa5, sizeof head); /* nothing may be taken from the last time */
    n = variant < n_variants ? variants[variant].parse(p, p + len, limits, &head)
                             : http1_parse_head(buf, len, seen, limits, &head);
    describe(out, size, n, buf, &head);
    free(buf);
    return n;
}

static void check_head(const char *test, const char *raw, size_t len, const http1_limits *limits, const char *want) {
    static char got[70000], label[64];
    static const char *const after[] = {
        "\r\n", "\r", "\n", "x", "GET / HTTP/1.1\r\n\r\n", "\x80 0123456789abcdef0123456789abcdef",
        "A: b\r\nGET / HTTP/1.1\r\nHost: 0123456789abcdef0123456789abcdef.example.com\r\n\r\n"};
    const int verdict = call(n_variants, raw, len, 0, limits, got, sizeof got);
    const size_t head_len = verdict > 0 ? (size_t)verdict : 0;

    expect(test, "whole", got, want);
    if (strcmp(got, want) != 0)
        return;
    if (verdict > 0)
        expect_int(test, "length", verdict, (long)len);

    for (size_t v = 0; v < n_variants; v++)
        if (len < limits->max_head_size) { /* else the verdict is not the variant's alone */
            call(v, raw, len, 0, limits, got, sizeof got);
            expect(test, variants[v].name, got, want);
        }

    /* Long ones too, so that short heads are read through the window as well. */
    if (verdict != HTTP1_PARTIAL)
        for (size_t i = 0; i < sizeof after / sizeof *after; i++) {
            const size_t n = strlen(after[i]);
            char *more = malloc(len + n);
            if (!more)
                abort();
            memcpy(more, raw, len);
            memcpy(more + len, after[i], n);
            for (size_t v = 0; v <= n_variants; v++)
                if (len + n < limits->max_head_size) {
                    call(v, more, len + n, 0, limits, got, sizeof got);
                    expect(test, "with more after it", got, want);
                }
            free(more);
        }

    /* What came first, then the whole. A cut of a good head is partial, of a bad one partial or the same error. */
    for (size_t cut = 0; cut < len; cut += len > 2000 ? 37 : 1)
        for (size_t v = 0; v <= n_variants; v++) {
            const int n = call(v, raw, cut, 0, limits, got, sizeof got);
            snprintf(label, sizeof label, "cut at %zu", cut);
            if (n == HTTP1_PARTIAL && v == n_variants) {
                call(v, raw, len, cut, limits, got, sizeof got);
                expect(test, label, got, want);
            } else if (n != HTTP1_PARTIAL) {
                expect(test, label, n == verdict && verdict < 0 ? got : "a verdict too early", want);
            }
        }

    /* Byte by byte. */
    for (size_t seen = 0, n = 1; n <= len; seen = n++) {
        const int r = call(n_variants, raw, n, seen, limits, got, sizeof got);
        if (r != HTTP1_PARTIAL) {
            expect(test, "byte by byte", got, want);
            expect_int(test, "byte by byte: length", r > 0 ? (long)n : 0, (long)head_len);
            break;
        }
        if (n == len)
            expect(test, "byte by byte", "PARTIAL", verdict == 0 ? want : "a verdict");
    }
}

#define H "Host: h\r\n"
#define GET "GET / HTTP/1.1\r\n" H
#define POST "POST / HTTP/1.1\r\n" H
#define END "\r\n"
#define OK_GET "GET / 1.1 host=h"
#define OK_POST "POST / 1.1 host=h"
#define S(literal) literal, sizeof(literal) - 1

static const struct {
    const char *name, *raw;
    size_t len;
    const char *want;
} HEADS[] = {
    /* RFC 9112 2.2: line ends and empty lines */
    {"simplest 1.0", S("GET / HTTP/1.0\r\n\r\n"), "GET / 1.0 close"},
    {"simplest 1.1", S(GET END), OK_GET},
    {"one empty line before", S("\r\n" GET END), OK_GET},
    {"four empty lines before", S("\r\n\r\n\r\n\r\n" GET END), OK_GET},
    {"five empty lines before", S("\r\n\r\n\r\n\r\n\r\n" GET END), "EMPTY_LINES"},
    {"LF before", S("\n" GET END), "LINE_END"},
    {"CR before", S("\r" GET END), "LINE_END"},
    {"nothing", S(""), "PARTIAL"},
    {"only an empty line", S("\r\n"), "PARTIAL"},
    {"LF after request line", S("GET / HTTP/1.1\nHost: h\r\n\r\n"), "LINE_END"},
    {"CR after request line", S("GET / HTTP/1.1\rHost: h\r\n\r\n"), "LINE_END"},
    {"LF after header", S("GET / HTTP/1.1\r\nHost: h\n\r\n"), "LINE_END"},
    {"LF as end", S(GET "\n"), "LINE_END"},
    {"CR LF missing at end", S(GET "\rX"), "LINE_END"},
    {"CR CR LF", S(GET "A: b\r\r\n\r\n"), "LINE_END"},
    {"CR in value", S(GET "A: b\rTransfer-Encoding: chunked\r\n\r\n"), "LINE_END"},
    {"LF in name", S(GET "A\nb: c\r\n\r\n"), "LINE_END"},
    {"space before first header", S("GET / HTTP/1.1\r\n " H END), "FOLDED_LINE"},

    /* 3: request line */
    {"HTTP/0.9", S("GET /\r\n\r\n"), "REQUEST_LINE"},
    {"HTTP/0.9, space", S("GET / \r\n\r\n"), "VERSION"},
    {"no target", S("GET  HTTP/1.1\r\n"), "REQUEST_LINE"},
    {"two spaces before target", S("GET  / HTTP/1.1\r\n" H END), "REQUEST_LINE"},
    {"two spaces before version", S("GET /  HTTP/1.1\r\n" H END), "VERSION"},
    {"tab", S("GET\t/ HTTP/1.1\r\n" H END), "METHOD"},
    {"tab before version", S("GET /\tHTTP/1.1\r\n" H END), "TARGET"},
    {"space at end", S("GET / HTTP/1.1 \r\n" H END), "LINE_END"},
    {"space first", S(" GET / HTTP/1.1\r\n" H END), "METHOD"},
    {"method and end", S("GET\r\n\r\n"), "METHOD"},
    {"TLS hello", S("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), "METHOD"},
    {"HTTP/2 preface", S("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "TARGET"},

    /* 3.1: methods */
    {"method not known", S("PROPFIND /m HTTP/1.1\r\n" H END), "other:PROPFIND /m 1.1 host=h"},
    {"methods have a case", S("get / HTTP/1.1\r\n" H END), "other:get / 1.1 host=h"},
    {"any tchar", S("!#$%&'*+-.^_`|~09aZ / HTTP/1.1\r\n" H END), "other:!#$%&'*+-.^_`|~09aZ / 1.1 host=h"},
    {"HEAD", S("HEAD / HTTP/1.1\r\n" H END), "HEAD / 1.1 host=h"},
    {"PUT", S("PUT / HTTP/1.1\r\n" H END), "PUT / 1.1 host=h"},
    {"DELETE", S("DELETE / HTTP/1.1\r\n" H END), "DELETE / 1.1 host=h"},
    {"PATCH", S("PATCH / HTTP/1.1\r\n" H END), "PATCH / 1.1 host=h"},
    {"TRACE", S("TRACE / HTTP/1.1\r\n" H END), "TRACE / 1.1 host=h"},
    {"32 bytes", S("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF / HTTP/1.1\r\n" H END),
     "other:ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF / 1.1 host=h"},
    {"33 bytes", S("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\n"), "METHOD_SIZE"},
    {"no end", S("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG"), "METHOD_SIZE"},
    {"separator", S("GE(T / HTTP/1.1\r\n" H END), "METHOD"},
    {"NUL", S("GE\0T / HTTP/1.1\r\n" H END), "METHOD"},
    {"over 127", S("G\xc3\x89T / HTTP/1.1\r\n" H END), "METHOD"},

    /* 3.2.1: origin-form */
    {"query", S("GET /a/b?x=1&y=2 HTTP/1.1\r\n" H END), "GET /a/b?x=1&y=2 1.1 query=x=1&y=2 host=h"},
    {"empty query", S("GET /a? HTTP/1.1\r\n" H END), "GET /a? 1.1 query= host=h"},
    {"query with '?'", S("GET /a?b?c/d HTTP/1.1\r\n" H END), "GET /a?b?c/d 1.1 query=b?c/d host=h"},
    {"what browsers send", S("GET /\"<>\\^`{|}?\"<>\\^`{|}% HTTP/1.1\r\n" H END),
     "GET /\"<>\\^`{|}?\"<>\\^`{|}% 1.1 query=\"<>\\^`{|}% host=h"},
    {"slashes", S("GET //h/..//. HTTP/1.1\r\n" H END), "GET //h/..//. 1.1 host=h"},
    {"fragment", S("GET /a#b HTTP/1.1\r\n" H END), "TARGET"},
    {"fragment in query", S("GET /a?b#c HTTP/1.1\r\n" H END), "TARGET"},
    {"NUL in path", S("GET /a\0 HTTP/1.1\r\n" H END), "TARGET"},
    {"DEL in query", S("GET /?\x7f HTTP/1.1\r\n" H END), "TARGET"},
    {"CR in path", S("GET /\rX HTTP/1.1\r\n" H END), "REQUEST_LINE"},
    {"relative", S("GET index.html HTTP/1.1\r\n" H END), "TARGET"},
    {"only a query", S("GET ?a HTTP/1.1\r\n" H END), "TARGET"},

    /* 3.2.2: absolute-form; Host may differ and does not count */
    {"absolute", S("GET http://a.b:80/c?d HTTP/1.1\r\n" H END),
     "GET http://a.b:80/c?d 1.1 absolute path=/c query=d authority=a.b:80 host=h"},
    {"absolute, no path", S("GET HTTPS://a HTTP/1.1\r\n" H END), "GET HTTPS://a 1.1 absolute path= authority=a host=h"},
    {"absolute, only query", S("GET http://a?b/c HTTP/1.1\r\n" H END),
     "GET http://a?b/c 1.1 absolute path= query=b/c authority=a host=h"},
    {"absolute, IPv6", S("GET http://[::1]:8/ HTTP/1.1\r\n" H END),
     "GET http://[::1]:8/ 1.1 absolute path=/ authority=[::1]:8 host=h"},
    {"absolute, no Host", S("GET http://a/ HTTP/1.1\r\n\r\n"), "HOST_MISSING"},
    {"absolute in 1.0", S("GET http://a/ HTTP/1.0\r\n\r\n"), "GET http://a/ 1.0 absolute path=/ authority=a close"},
    {"userinfo", S("GET http://u:p@a/ HTTP/1.1\r\n" H END), "TARGET"},
    {"shortest absolute", S("GET http://a HTTP/1.1\r\n" H END), "GET http://a 1.1 absolute path= authority=a host=h"},
    {"no authority", S("GET http:///a HTTP/1.1\r\n" H END), "TARGET"},
    {"nothing but scheme", S("GET http:// HTTP/1.1\r\n" H END), "TARGET"},
    {"query for authority", S("GET http://?a HTTP/1.1\r\n" H END), "TARGET"},
    {"other scheme", S("GET ftp://a/ HTTP/1.1\r\n" H END), "TARGET"},
    {"bad port", S("GET http://a:x/ HTTP/1.1\r\n" H END), "TARGET"},

    /* 3.2.3, 3.2.4: authority-form and asterisk-form */
    {"CONNECT", S("CONNECT a.b:443 HTTP/1.1\r\n" H END), "CONNECT a.b:443 1.1 authority authority=a.b:443 host=h"},
    {"CONNECT, IPv6", S("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n" H END),
     "CONNECT [2001:db8::1]:443 1.1 authority authority=[2001:db8::1]:443 host=h"},
    {"CONNECT, no port", S("CONNECT a.b HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, empty port", S("CONNECT a.b: HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, port 0", S("CONNECT a.b:0 HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, port 65536", S("CONNECT a.b:65536 HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, path", S("CONNECT /a HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, query", S("CONNECT a:1?b HTTP/1.1\r\n" H END), "TARGET"},
    {"CONNECT, absolute", S("CONNECT http://a:1 HTTP/1.1\r\n" H END), "TARGET"},
    {"authority for GET", S("GET a.b:80 HTTP/1.1\r\n" H END), "TARGET"},
    {"OPTIONS *", S("OPTIONS * HTTP/1.1\r\n" H END), "OPTIONS * 1.1 asterisk host=h"},
    {"OPTIONS *?", S("OPTIONS *? HTTP/1.1\r\n" H END), "TARGET"},
    {"GET *", S("GET * HTTP/1.1\r\n" H END), "TARGET"},

    /* 2.3: versions */
    {"1.2 is 1.1", S("GET / HTTP/1.2\r\n" H END), OK_GET},
    {"1.9 is 1.1", S("GET / HTTP/1.9\r\n" H END), OK_GET},
    {"2.0", S("GET / HTTP/2.0\r\n" H END), "VERSION_MAJOR"},
    {"0.9", S("GET / HTTP/0.9\r\n\r\n"), "VERSION_MAJOR"},
    {"lower case", S("GET / http/1.1\r\n" H END), "VERSION"},
    {"two digits", S("GET / HTTP/11.1\r\n" H END), "VERSION"},
    {"two minor digits", S("GET / HTTP/1.10\r\n" H END), "LINE_END"},
    {"no minor", S("GET / HTTP/1\r\n" H END), "VERSION"},
    {"comma", S("GET / HTTP/1,1\r\n" H END), "VERSION"},
    {"RTSP", S("GET / RTSP/1.0\r\n" H END), "VERSION"},
    {"a fourth word", S("GET / HTTP/1.1 x\r\n" H END), "LINE_END"},

    /* 5: header lines */
    {"white space", S(GET "A: \t b c \t\r\n\r\n"), OK_GET " | A=b c"},
    {"no white space", S(GET "A:b\r\n\r\n"), OK_GET " | A=b"},
    {"empty value", S(GET "A:\r\nB: \r\nC: \t \r\n\r\n"), OK_GET " | A= | B= | C="},
    {"obs-text", S(GET "A: \x80\xff\xa0\r\n\r\n"), OK_GET " | A=\x80\xff\xa0"},
    {"tab inside", S(GET "A: b\tc\r\n\r\n"), OK_GET " | A=b\tc"},
    {"a long value", S(GET "A: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n\r\n"),
     OK_GET " | A=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
    {"a long name", S(GET "A123456789abcdef0123456789abcdef0123456789abcdef0: b\r\n\r\n"),
     OK_GET " | A123456789abcdef0123456789abcdef0123456789abcdef0=b"},
    {"any tchar in name", S(GET "!#$%&'*+-.^_`|~09aZ: b\r\n\r\n"), OK_GET " | !#$%&'*+-.^_`|~09aZ=b"},
    {"no colon", S(GET "A\r\n\r\n"), "LINE_END"},
    {"no name", S(GET ": b\r\n\r\n"), "HEADER_NAME"},
    {"space before colon", S(GET "A : b\r\n\r\n"), "HEADER_NAME"},
    {"tab before colon", S(GET "A\t: b\r\n\r\n"), "HEADER_NAME"},
    {"space in name", S(GET "A B: c\r\n\r\n"), "HEADER_NAME"},
    {"NUL in name", S(GET "A\0: b\r\n\r\n"), "HEADER_NAME"},
    {"over 127 in name", S(GET "A\xe9: b\r\n\r\n"), "HEADER_NAME"},
    {"slash in name", S(GET "A/b: c\r\n\r\n"), "HEADER_NAME"},
    {"folded", S(GET "A: b\r\n c\r\n\r\n"), "FOLDED_LINE"},
    {"folded by tab", S(GET "A: b\r\n\tc\r\n\r\n"), "FOLDED_LINE"},
    {"folded, empty", S(GET "A: b\r\n \r\n\r\n"), "FOLDED_LINE"},
    {"NUL in value", S(GET "A: b\0\r\n\r\n"), "HEADER_VALUE"},
    {"DEL in value", S(GET "A: b\x7f\r\n\r\n"), "HEADER_VALUE"},
    {"ESC in value", S(GET "A: b\x1b\r\n\r\n"), "HEADER_VALUE"},
    {"VT in value", S(GET "A: \x0b\r\n\r\n"), "HEADER_VALUE"},

    /* 3.2: Host; RFC 3986 3.2.2 */
    {"no Host", S("GET / HTTP/1.1\r\n\r\n"), "HOST_MISSING"},
    {"no Host, 1.2", S("GET / HTTP/1.2\r\n\r\n"), "HOST_MISSING"},
    {"two", S(GET "host: h\r\n\r\n"), "HOST_REPEATED"},
    {"two, 1.0", S("GET / HTTP/1.0\r\nHost: a\r\nHOST: a\r\n\r\n"), "HOST_REPEATED"},
    {"two, both empty", S("GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n"), "HOST_REPEATED"},
    {"empty", S("GET / HTTP/1.1\r\nHost:\r\n\r\n"), "GET / 1.1"},
    {"empty port", S("GET / HTTP/1.1\r\nHost: a:\r\n\r\n"), "GET / 1.1 host=a:"},
    {"port", S("GET / HTTP/1.1\r\nHost: 10.0.0.1:65535\r\n\r\n"), "GET / 1.1 host=10.0.0.1:65535"},
    {"underscore", S("GET / HTTP/1.1\r\nHost: a_b.c\r\n\r\n"), "GET / 1.1 host=a_b.c"},
    {"sub-delims", S("GET / HTTP/1.1\r\nHost: a,!$&'()*+;=~-\r\n\r\n"), "GET / 1.1 host=a,!$&'()*+;=~-"},
    {"pct-encoded", S("GET / HTTP/1.1\r\nHost: H%4fSt:1\r\n\r\n"), "GET / 1.1 host=H%4fSt:1"},
    {"pct-encoded at the end", S("GET / HTTP/1.1\r\nHost: %00%c3%A0\r\n\r\n"), "GET / 1.1 host=%00%c3%A0"},
    {"pct-encoded, then a port", S("GET / HTTP/1.1\r\nHost: %0a:00080\r\n\r\n"), "GET / 1.1 host=%0a:00080"},
    {"bad pct-encoded", S("GET / HTTP/1.1\r\nHost: a%4\r\n\r\n"), "GET / 1.1 bad_host=a%4"},
    {"bad pct-encoded 2", S("GET / HTTP/1.1\r\nHost: a%4g\r\n\r\n"), "GET / 1.1 bad_host=a%4g"},
    {"IPv6", S("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"), "GET / 1.1 host=[::1]"},
    {"IPv6, any", S("GET / HTTP/1.1\r\nHost: [::]:80\r\n\r\n"), "GET / 1.1 host=[::]:80"},
    {"IPv6, full", S("GET / HTTP/1.1\r\nHost: [1:22:333:4444:a:bb:ccc:dddd]\r\n\r\n"),
     "GET / 1.1 host=[1:22:333:4444:a:bb:ccc:dddd]"},
    {"IPv6, run inside", S("GET / HTTP/1.1\r\nHost: [1:2:3::7:8]\r\n\r\n"), "GET / 1.1 host=[1:2:3::7:8]"},
    {"IPv6, run last", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7::]\r\n\r\n"), "GET / 1.1 host=[1:2:3:4:5:6:7::]"},
    {"IPv6, IPv4 in it", S("GET / HTTP/1.1\r\nHost: [::ffff:1.22.255.0]\r\n\r\n"),
     "GET / 1.1 host=[::ffff:1.22.255.0]"},
    {"IPv6, full, IPv4", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7.8.9.10]\r\n\r\n"),
     "GET / 1.1 host=[1:2:3:4:5:6:7.8.9.10]"},
    {"IPv6, nine groups", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:8:9]\r\n\r\n"),
     "GET / 1.1 bad_host=[1:2:3:4:5:6:7:8:9]"},
    {"IPv6, seven groups", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7]\r\n\r\n"), "GET / 1.1 bad_host=[1:2:3:4:5:6:7]"},
    {"IPv6, two runs", S("GET / HTTP/1.1\r\nHost: [1::2::3]\r\n\r\n"), "GET / 1.1 bad_host=[1::2::3]"},
    {"IPv6, three colons", S("GET / HTTP/1.1\r\nHost: [:::]\r\n\r\n"), "GET / 1.1 bad_host=[:::]"},
    {"IPv6, colon first", S("GET / HTTP/1.1\r\nHost: [:1:2:3:4:5:6:7]\r\n\r\n"),
     "GET / 1.1 bad_host=[:1:2:3:4:5:6:7]"},
    {"IPv6, colon last", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6:7:]\r\n\r\n"),
     "GET / 1.1 bad_host=[1:2:3:4:5:6:7:]"},
    {"IPv6, five digits", S("GET / HTTP/1.1\r\nHost: [::12345]\r\n\r\n"), "GET / 1.1 bad_host=[::12345]"},
    {"IPv6, run of one before IPv4", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5::6.7.8.9]\r\n\r\n"),
     "GET / 1.1 host=[1:2:3:4:5::6.7.8.9]"},
    {"IPv6, run of none before IPv4", S("GET / HTTP/1.1\r\nHost: [1:2:3:4:5:6::7.8.9.0]\r\n\r\n"),
     "GET / 1.1 bad_host=[1:2:3:4:5:6::7.8.9.0]"},
    {"IPv6, octet 256", S("GET / HTTP/1.1\r\nHost: [::1.2.3.256]\r\n\r\n"), "GET / 1.1 bad_host=[::1.2.3.256]"},
    {"IPv6, octet 01", S("GET / HTTP/1.1\r\nHost: [::1.2.3.01]\r\n\r\n"), "GET / 1.1 bad_host=[::1.2.3.01]"},
    {"IPv6, three octets", S("GET / HTTP/1.1\r\nHost: [::1.2.3]\r\n\r\n"), "GET / 1.1 bad_host=[::1.2.3]"},
    {"IPv6, zone", S("GET / HTTP/1.1\r\nHost: [fe80::1%25e]\r\n\r\n"), "GET / 1.1 bad_host=[fe80::1%25e]"},
    {"IPv6, empty", S("GET / HTTP/1.1\r\nHost: []\r\n\r\n"), "GET / 1.1 bad_host=[]"},
    {"IPv6, open", S("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"), "GET / 1.1 bad_host=[::1"},
    {"IPv6, junk after", S("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n"), "GET / 1.1 bad_host=[::1]x"},
    {"IPv6, no brackets", S("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n"), "GET / 1.1 bad_host=::1"},
    {"IPvFuture", S("GET / HTTP/1.1\r\nHost: [v1f.a:b]:1\r\n\r\n"), "GET / 1.1 host=[v1f.a:b]:1"},
    {"IPvFuture, short", S("GET / HTTP/1.1\r\nHost: [V0.:]\r\n\r\n"), "GET / 1.1 host=[V0.:]"},
    {"IPvFuture, no letter", S("GET / HTTP/1.1\r\nHost: [1f.a]\r\n\r\n"), "GET / 1.1 bad_host=[1f.a]"},
    {"IPvFuture, no dot", S("GET / HTTP/1.1\r\nHost: [v1:a]\r\n\r\n"), "GET / 1.1 bad_host=[v1:a]"},
    {"IPvFuture, slash", S("GET / HTTP/1.1\r\nHost: [v1.a/]\r\n\r\n"), "GET / 1.1 bad_host=[v1.a/]"},
    {"IPvFuture, no version", S("GET / HTTP/1.1\r\nHost: [v.a]\r\n\r\n"), "GET / 1.1 bad_host=[v.a]"},
    {"IPvFuture, nothing", S("GET / HTTP/1.1\r\nHost: [v1.]\r\n\r\n"), "GET / 1.1 bad_host=[v1.]"},
    {"only a port", S("GET / HTTP/1.1\r\nHost: :80\r\n\r\n"), "GET / 1.1 bad_host=:80"},
    {"port, letters", S("GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n"), "GET / 1.1 bad_host=a:8x"},
    {"port of six digits", S("GET / HTTP/1.1\r\nHost: a:000080\r\n\r\n"), "GET / 1.1 bad_host=a:000080"},
    {"port too high", S("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"), "GET / 1.1 bad_host=a:65536"},
    {"two ports", S("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n"), "GET / 1.1 bad_host=a:80:80"},
    {"userinfo in Host", S("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), "GET / 1.1 bad_host=u@a"},
    {"URL in Host", S("GET / HTTP/1.1\r\nHost: http://a\r\n\r\n"), "GET / 1.1 bad_host=http://a"},
    {"space in Host", S("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), "GET / 1.1 bad_host=a b"},
    {"Envoy's", S("GET / HTTP/1.1\r\nHost: outbound|80||svc\r\n\r\n"), "GET / 1.1 bad_host=outbound|80||svc"},
    {"obs-text in Host", S("GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n"), "GET / 1.1 bad_host=\xe9"},
    {"control in Host", S("GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n"), "HEADER_VALUE"},

    /* RFC 9110 8.6, 9112 6.2: Content-Length */
    {"length", S(POST "Content-Length: 5\r\n\r\n"), OK_POST " length=5 | Content-Length=5"},
    {"length 0", S(POST "content-length:0\r\n\r\n"), OK_POST " length=0 | content-length=0"},
    {"length 003", S(POST "CONTENT-LENGTH: 003\r\n\r\n"), OK_POST " length=3 | CONTENT-LENGTH=003"},
    {"length 2^63-1", S(POST "Content-Length: 9223372036854775807\r\n\r\n"),
     OK_POST " length=9223372036854775807 | Content-Length=9223372036854775807"},
    {"length 2^63", S(POST "Content-Length: 9223372036854775808\r\n\r\n"), "CONTENT_LENGTH"},
    {"length 2^64+5", S(POST "Content-Length: 18446744073709551621\r\n\r\n"), "CONTENT_LENGTH"},
    {"length empty", S(POST "Content-Length: \r\n\r\n"), "CONTENT_LENGTH"},
    {"length +5", S(POST "Content-Length: +5\r\n\r\n"), "CONTENT_LENGTH"},
    {"length -5", S(POST "Content-Length: -5\r\n\r\n"), "CONTENT_LENGTH"},
    {"length 0x5", S(POST "Content-Length: 0x5\r\n\r\n"), "CONTENT_LENGTH"},
    {"length 5 5", S(POST "Content-Length: 5 5\r\n\r\n"), "CONTENT_LENGTH"},
    {"length 5, 5", S(POST "Content-Length: 5, 5\r\n\r\n"), "CONTENT_LENGTH"},
    {"length twice", S(POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), "CONTENT_LENGTH_REPEATED"},
    {"length_", S(POST "Content_Length: 5\r\n\r\n"), OK_POST " | Content_Length=5"},

    /* 9112 6.1: Transfer-Encoding */
    {"chunked", S(POST "Transfer-Encoding: chunked\r\n\r\n"), OK_POST " chunked | Transfer-Encoding=chunked"},
    {"cHuNkEd", S(POST "transfer-encoding:\t cHuNkEd \r\n\r\n"), OK_POST " chunked | transfer-encoding=cHuNkEd"},
    {"chunked twice", S(POST "Transfer-Encoding: chunked, chunked\r\n\r\n"), "TRANSFER_ENCODING"},
    {"chunked in two lines", S(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
     "TRANSFER_ENCODING"},
    {"not last", S(POST "Transfer-Encoding: chunked, gzip\r\n\r\n"), "TRANSFER_ENCODING"},
    {"not last, two lines", S(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n"),
     "TRANSFER_ENCODING"},
    {"gzip", S(POST "Transfer-Encoding: gzip\r\n\r\n"), "TRANSFER_CODING"},
    {"gzip, chunked", S(POST "Transfer-Encoding: gzip, chunked\r\n\r\n"), "TRANSFER_CODING"},
    {"gzip;q=1, chunked", S(POST "Transfer-Encoding: gzip;q=1, chunked\r\n\r\n"), "TRANSFER_CODING"},
    {"identity", S(POST "Transfer-Encoding: identity\r\n\r\n"), "TRANSFER_CODING"},
    {"xchunked", S(POST "Transfer-Encoding: xchunked\r\n\r\n"), "TRANSFER_CODING"},
    {"chunked;a=b", S(POST "Transfer-Encoding: chunked;a=b\r\n\r\n"), "TRANSFER_ENCODING"},
    {"chunked x", S(POST "Transfer-Encoding: chunked x\r\n\r\n"), "TRANSFER_ENCODING"},
    {"quoted", S(POST "Transfer-Encoding: \"chunked\"\r\n\r\n"), "TRANSFER_ENCODING"},
    {"empty coding", S(POST "Transfer-Encoding:\r\n\r\n"), "TRANSFER_ENCODING"},
    {"empty element", S(POST "Transfer-Encoding: , chunked\r\n\r\n"), "TRANSFER_ENCODING"},
    {"empty element last", S(POST "Transfer-Encoding: chunked,\r\n\r\n"), "TRANSFER_ENCODING"},
    {"obs-text in coding", S(POST "Transfer-Encoding: chun\xedked\r\n\r\n"), "TRANSFER_ENCODING"},
    {"both", S(POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), "FRAMING"},
    {"both, other order", S(POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), "FRAMING"},
    {"both, other coding", S(POST "Transfer-Encoding: x\r\nContent-Length: 5\r\n\r\n"), "FRAMING"},
    {"coding in 1.0", S("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), "TRANSFER_ENCODING_1_0"},
    {"coding_", S(POST "Transfer_Encoding: chunked\r\n\r\n"), OK_POST " | Transfer_Encoding=chunked"},

    /* 9112 9.3: Connection */
    {"close", S(GET "Connection: close\r\n\r\n"), OK_GET " close | Connection=close"},
    {"Close, in a list", S(GET "connection: x, Close ,y\r\n\r\n"), OK_GET " close | connection=x, Close ,y"},
    {"close wins", S(GET "Connection: close\r\nConnection: keep-alive\r\n\r\n"),
     OK_GET " close | Connection=close | Connection=keep-alive"},
    {"closed", S(GET "Connection: closed, xclose, clos\r\n\r\n"), OK_GET " | Connection=closed, xclose, clos"},
    {"empty list", S(GET "Connection: ,, ,\r\n\r\n"), OK_GET " | Connection=,, ,"},
    {"1.0 kept alive", S("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), "GET / 1.0 | Connection=Keep-Alive"},
    {"1.0 both", S("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"),
     "GET / 1.0 close | Connection=keep-alive, close"},

    /* RFC 9110 10.1.1: Expect */
    {"continue", S(POST "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n"),
     OK_POST " length=1 continue | Expect=100-Continue | Content-Length=1"},
    {"continue, chunked", S(POST "expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"),
     OK_POST " chunked continue | expect=100-continue | Transfer-Encoding=chunked"},
    {"continue, no body", S(POST "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n"),
     OK_POST " length=0 | Expect=100-continue | Content-Length=0"},
    {"continue, 1.0", S("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"),
     "POST / 1.0 length=1 close | Expect=100-continue | Content-Length=1"},
    {"other expectation", S(POST "Expect: 200-ok\r\n\r\n"), "EXPECTATION"},
    {"one more expectation", S(POST "Expect: 100-continue, x\r\n\r\n"), "EXPECTATION"},
    {"other expectation, 1.0", S("GET / HTTP/1.0\r\nExpect: x\r\n\r\n"), "GET / 1.0 close | Expect=x"},

    /* What they really send */
    {"kube-probe",
     S("GET /healthz HTTP/1.1\r\nHost: 10.244.1.7:8080\r\nUser-Agent: kube-probe/1.29\r\nAccept: */*\r\n"
       "Connection: close\r\n\r\n"),
     "GET /healthz 1.1 host=10.244.1.7:8080 close | User-Agent=kube-probe/1.29 | Accept=*/* | Connection=close"},
    {"HAProxy", S("OPTIONS / HTTP/1.0\r\n\r\n"), "OPTIONS / 1.0 close"},
    {"curl", S("GET /readyz?verbose HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"),
     "GET /readyz?verbose 1.1 query=verbose host=localhost:8080 | User-Agent=curl/8.5.0 | Accept=*/*"},
};

static void test_heads(void) {
    for (size_t i = 0; i < sizeof HEADS / sizeof *HEADS; i++)
        check_head(HEADS[i].name, HEADS[i].raw, HEADS[i].len, &LIMITS, HEADS[i].want);
}

/* Limits ----------------------------------------------------------------- */

/* "GET /aaa HTTP/1.1", Host, then n headers "A: vvv"; returns its length. */
static size_t build(char *out, size_t target, size_t n, size_t value, bool complete) {
    size_t at = 0;
    memcpy(out, "GET /", 5);
    at = 5;
    memset(out + at, 'a', target - 1);
    at += target - 1;
    memcpy(out + at, " HTTP/1.1\r\nHost: h\r\n", 20);
    at += 20;
    for (size_t i = 0; i < n; i++) {
        memcpy(out + at, "A: ", 3);
        at += 3;
        memset(out + at, 'v', value);
        at += value;
        memcpy(out + at, "\r\n", 2);
        at += 2;
    }
    if (complete) {
        memcpy(out + at, "\r\n", 2);
        at += 2;
    }
    return at;
}

static void check_limit(const char *test, const char *raw, size_t len, const http1_limits *limits, int want) {
    static char got[140000];
    char name[64];
    int n = call(n_variants, raw, len, 0, limits, got, sizeof got);
    snprintf(name, sizeof name, "%s", want > 0 ? "accepted" : want ? http1_error_name(want) : "PARTIAL");
    expect(test, "whole", n > 0 ? "accepted" : got, name);
    for (size_t step = 1; step < 5000; step = step * 3 + 1) {
        size_t seen = 0, upto = 0;
        do {
            seen = upto;
            upto = upto + step < len ? upto + step : len;
            n = call(n_variants, raw, upto, seen, limits, got, sizeof got);
        } while (n == HTTP1_PARTIAL && upto < len);
        expect(test, "in steps", n > 0 ? "accepted" : got, name);
    }
}

static void test_limits(void) {
    static char raw[70000];
    http1_limits small = {.max_head_size = 400, .max_target_size = 50, .max_headers = 5};
    http1_limits widest = {.max_head_size = 65535, .max_target_size = 65535, .max_headers = 65535};
    http1_limits none = {0, 0, 0};
    size_t len;

    len = build(raw, 50, 4, 10, true);
    check_limit("target at its limit", raw, len, &small, 1);
    len = build(raw, 51, 4, 10, true);
    check_limit("target over its limit", raw, len, &small, HTTP1_E_TARGET_SIZE);
    check_limit("target over its limit, no end", raw, 4 + 51, &small, HTTP1_E_TARGET_SIZE);
    check_limit("target at its limit, no end", raw, 4 + 50, &small, HTTP1_PARTIAL);
    len = build(raw, 1, 5, 10, true);
    check_limit("headers over their number", raw, len, &small, HTTP1_E_HEADER_COUNT);
    len = build(raw, 1, 1, 400 - 25 - 5 - 2, true);
    check_limit("head at its limit", raw, len, &small, 1);
    expect_int("head at its limit", "is of that size", (long)len, 400);
    raw[len - 2] = raw[len - 1] = 'x';
    check_limit("head at its limit, no end", raw, len, &small, HTTP1_E_HEAD_SIZE);
    len = build(raw, 1, 1, 400 - 25 - 5 - 1, true);
    check_limit("head over its limit", raw, len, &small, HTTP1_E_HEAD_SIZE);
    len = build(raw, 1, 1, 600, true);
    check_limit("head far over its limit", raw, len, &small, HTTP1_E_HEAD_SIZE);
    small.max_target_size = 1000;
    len = build(raw, 500, 0, 0, true);
    check_limit("target longer than a head", raw, len, &small, HTTP1_E_TARGET_SIZE);

    len = build(raw, 1, 127, 5, true);
    check_limit("128 headers", raw, len, &widest, 1);
    len = build(raw, 1, 128, 5, true);
    check_limit("129 headers", raw, len, &widest, HTTP1_E_HEADER_COUNT);
    len = build(raw, 65535 - 4 - 20 - 2, 0, 0, true);
    expect_int("65535 bytes", "is of that size", (long)len, 65535);
    check_limit("65535 bytes", raw, len, &widest, 1);
    check_limit("a limit of nothing", raw, 10, &none, HTTP1_E_TARGET_SIZE);
}

/* Errors in a long line are found before it ends. */
static void test_early(void) {
    static char raw[40000];
    static http1_head head;
    size_t seen = 0, found = 0;
    memset(raw, 'v', sizeof raw);
    memcpy(raw, "GET / HTTP/1.1\r\nHost: h\r\nA: ", 28);
    raw[1000] = 1;
    for (size_t n = 1; n < sizeof raw && !found; seen = n++)
        if (http1_parse_head(raw, n, seen, &LIMITS, &head) < 0)
            found = n;
    expect_int("early", "a control in a value", (long)found, 1001);

    memcpy(raw, "GET / HTTP/1.1\r\nHost: h\r\n", 25);
    memset(raw + 25, 'n', sizeof raw - 25);
    raw[300] = '(';
    for (size_t n = 1, was = found = 0; n < sizeof raw && !found; was = n++)
        if (http1_parse_head(raw, n, was, &LIMITS, &head) < 0)
            found = n;
    expect_int("early", "a separator in a name, at the next power of two", (long)found, 512);

    raw[300] = '\r';
    for (size_t n = 1, was = found = 0; n < sizeof raw && !found; was = n++)
        if (http1_parse_head(raw, n, was, &LIMITS, &head) < 0)
            found = n;
    expect_int("early", "a bare CR in a name", (long)found, 301);

    memcpy(raw + 25, "A: ", 3);
    for (size_t n = 1, was = found = 0; n < sizeof raw && !found; was = n++)
        if (http1_parse_head(raw, n, was, &LIMITS, &head) < 0)
            found = n;
    expect_int("early", "a bare CR in a value", (long)found, 302);

    expect_int("early", "nothing new", http1_parse_head(raw, 280, 280, &LIMITS, &head), HTTP1_PARTIAL);
}

/* Chunked bodies --------------------------------------------------------- */

static void decode(char *out, size_t size, const char *raw, size_t len, size_t cut, size_t step, bool in_place) {
    http1_chunked d;
    char *body = malloc(len + 1);
    size_t at = 0, produced = 0;
    int r = 0;
    if (!body)
        abort();
    http1_chunked_init(&d);
    while (r == 0 && at < len) {
        size_t n = at < cut ? cut - at : step ? (step < len - at ? step : len - at) : len - at, given = n, made = 0;
        char *src = exact(raw + at, n), *dst = in_place ? src : malloc(n);
        if (!dst)
            abort();
        r = http1_chunked_decode(&d, src, &n, dst, &made);
        if (n > given || made > n || (r == 0 && n != given))
            fail("decode", "counts", "too many or too few", "");
        memcpy(body + produced, dst, made);
        produced += made;
        at += n;
        if (!in_place)
            free(dst);
        free(src);
    }
    if (r < 0)
        snprintf(out, size, "%s", http1_error_name(r));
    else
        snprintf(out, size, "%s:%.*s", r ? "complete" : "more", (int)produced, body);
    if (r > 0)
        snprintf(out + strlen(out), size - strlen(out), ":%.*s", (int)(len - at), raw + at);
    if (r != 0) { /* both ends are final */
        size_t n = 1, made = 1;
        char byte = '0';
        expect_int("decode", "after the end", http1_chunked_decode(&d, &byte, &n, &byte, &made), r);
        expect_int("decode", "after the end nothing is consumed", (long)(n + made), 0);
    }
    free(body);
}

#define LAST "0\r\n\r\n"
static const struct {
    const char *name, *raw;
    size_t len;
    const char *want;
} BODIES[] = {
    {"one", S("5\r\nhello\r\n" LAST), "complete:hello:"},
    {"empty", S(LAST), "complete::"},
    {"two", S("6\r\nhello \r\n5\r\nworld\r\n" LAST), "complete:hello world:"},
    {"something after", S("5\r\nhello\r\n" LAST "GET /"), "complete:hello:GET /"},
    {"hexadecimal", S("a\r\n0123456789\r\nA\r\n0123456789\r\n" LAST), "complete:01234567890123456789:"},
    {"zeros", S("0005\r\nhello\r\n000\r\n\r\n"), "complete:hello:"},
    {"16 digits", S("0000000000000005\r\nhello\r\n" LAST), "complete:hello:"},
    {"17 digits", S("00000000000000005\r\nhello\r\n" LAST), "CHUNK_SIZE"},
    {"2^63-1", S("7fffffffffffffff\r\nhello"), "more:hello"},
    {"2^63", S("8000000000000000\r\nhello"), "CHUNK_SIZE"},
    {"CRLF in data", S("4\r\n\r\n\r\n\r\n" LAST), "complete:\r\n\r\n:"},
    {"a chunk in data", S("b\r\n5\r\nhello\r\n0\r\n" LAST), "complete:5\r\nhello\r\n0:"},
    {"unfinished size", S("5"), "more:"},
    {"unfinished data", S("5\r\nhel"), "more:hel"},
    {"unfinished end", S("5\r\nhello\r\n0\r\n"), "more:hello"},
    {"no last chunk", S("5\r\nhello\r\n"), "more:hello"},
    {"plus", S("+5\r\nhello\r\n" LAST), "CHUNK_SIZE"},
    {"letter", S("g\r\n"), "CHUNK_SIZE"},
    {"digit, letter", S("5g\r\nhello\r\n"), "CHUNK_SIZE"},
    {"0x", S("0x5\r\nhello\r\n"), "CHUNK_SIZE"},
    {"no size", S("\r\n"), "CHUNK_SIZE"},
    {"space first", S(" 5\r\nhello\r\n"), "CHUNK_SIZE"},
    {"only an extension", S(";a\r\nhello\r\n"), "CHUNK_SIZE"},
    {"LF after size", S("5\nhello\r\n" LAST), "CHUNK_SIZE"},
    {"CR after size", S("5\rhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"LF after last size", S("0\n\r\n"), "CHUNK_SIZE"},
    {"data too long", S("5\r\nhello!\r\n" LAST), "CHUNK_END"},
    {"LF after data", S("5\r\nhello\n" LAST), "CHUNK_END"},
    {"CR after data", S("5\r\nhello\r0\r\n\r\n"), "CHUNK_END"},

    /* RFC 9112 7.1.1 */
    {"extension", S("5;a\r\nhello\r\n0;b;c\r\n\r\n"), "complete:hello:"},
    {"extension with value", S("5;a=b;c=d\r\nhello\r\n" LAST), "complete:hello:"},
    {"extension with white space", S("5 \t; a = \"b\\\"\\\\;\xff\" ; c\r\nhello\r\n" LAST), "complete:hello:"},
    {"empty quoted", S("5;a=\"\"\r\nhello\r\n" LAST), "complete:hello:"},
    {"no name", S("5;\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"no value", S("5;a=\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"no semicolon", S("5 a\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"space after size", S("5 \r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"space after name", S("5;a \r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"space after value", S("5;a=b \r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"space after quoted", S("5;a=\"b\" \r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"two names", S("5;a b\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"two values", S("5;a=b c\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"quoted, then token", S("5;a=\"b\"c\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"open quotes", S("5;a=\"b\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"quoted CR", S("5;a=\"\\\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"LF", S("5;a\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"LF in quotes", S("5;a=\"\n\"\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"CR", S("5;a\rb\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},
    {"NUL", S("5;a\0\r\nhello\r\n" LAST), "CHUNK_EXTENSION"},

    /* 7.1.2 */
    {"trailer", S("5\r\nhello\r\n0\r\nA: b\r\n\r\n"), "complete:hello:"},
    {"trailers", S("0\r\nA: b\r\nC:\r\nContent-Length: 5\r\n\r\nX"), "complete::X"},
    {"trailer, no name", S("0\r\n: b\r\n\r\n"), "TRAILER"},
    {"trailer, no colon", S("0\r\nab\r\n\r\n"), "TRAILER"},
    {"trailer, space in name", S("0\r\nA B: c\r\n\r\n"), "TRAILER"},
    {"trailer, space before colon", S("0\r\nA : c\r\n\r\n"), "TRAILER"},
    {"trailer, folded", S("0\r\nA: b\r\n c\r\n\r\n"), "TRAILER"},
    {"trailer, NUL", S("0\r\nA: b\0\r\n\r\n"), "TRAILER"},
    {"trailer, LF", S("0\r\nA: b\n\n"), "TRAILER"},
    {"trailer, CR", S("0\r\nA: b\rC: d\r\n\r\n"), "TRAILER"},
    {"LF as end", S("0\r\n\n"), "TRAILER"},
    {"CR as end", S("0\r\n\rX"), "TRAILER"},
};

static void check_body(const char *name, const char *raw, size_t len, const char *want, char *got, size_t size) {
    for (int in_place = 0; in_place < 2; in_place++) {
        decode(got, size, raw, len, 0, 0, in_place);
        expect(name, "whole", got, want);
        for (size_t cut = 1; cut < len; cut += len > 2000 ? 41 : 1) {
            decode(got, size, raw, len, cut, 0, in_place);
            expect(name, "in two", got, want);
        }
        for (size_t step = 1; step < 8; step++) {
            decode(got, size, raw, len, 0, step, in_place);
            expect(name, "in steps", got, want);
        }
    }
}

static void test_bodies(void) {
    static char got[70000], raw[70000];
    http1_chunked d;
    size_t len, n, made;
    char *p;
    for (size_t i = 0; i < sizeof BODIES / sizeof *BODIES; i++)
        check_body(BODIES[i].name, BODIES[i].raw, BODIES[i].len, BODIES[i].want, got, sizeof got);

    /* The limits, to the byte. */
    for (size_t more = 0; more < 2; more++) {
        len = (size_t)sprintf(raw, "1;");
        memset(raw + len, 'a', MAX_EXTENSION_SIZE / 2 - 1);
        len += MAX_EXTENSION_SIZE / 2 - 1;
        len += (size_t)sprintf(raw + len, "\r\nx\r\n0;");
        memset(raw + len, 'a', MAX_EXTENSION_SIZE / 2 - 1 + more);
        len += MAX_EXTENSION_SIZE / 2 - 1 + more;
        len += (size_t)sprintf(raw + len, "\r\n\r\n");
        check_body("extensions at their limit", raw, len, more ? "CHUNK_EXTENSION_SIZE" : "complete:x:", got,
                   sizeof got);

        len = (size_t)sprintf(raw, "0\r\nA:");
        memset(raw + len, 'a', MAX_TRAILER_SIZE - 4 + more);
        len += MAX_TRAILER_SIZE - 4 + more;
        len += (size_t)sprintf(raw + len, "\r\n\r\n");
        check_body("trailers at their limit", raw, len, more ? "TRAILER_SIZE" : "complete::", got, sizeof got);

        len = (size_t)sprintf(raw, "0\r\n");
        for (size_t i = 0; i < MAX_TRAILERS + more; i++)
            len += (size_t)sprintf(raw + len, "A:\r\n");
        len += (size_t)sprintf(raw + len, "\r\n");
        check_body("trailers at their number", raw, len, more ? "TRAILER_SIZE" : "complete::", got, sizeof got);
    }

    /* Into a place before the source, as when heads and bodies share a buffer. */
    len = (size_t)sprintf(raw, "....5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    p = exact(raw, len);
    n = len - 4;
    http1_chunked_init(&d);
    expect_int("overlapping", "result", http1_chunked_decode(&d, p + 4, &n, p, &made), 1);
    snprintf(got, sizeof got, "%.*s", (int)made, p);
    expect("overlapping", "body", got, "hello world");
    free(p);
}

/* Classes, scanning, errors ---------------------------------------------- */

static bool is_alnum(int c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool is_one_of(int c, const char *set) {
    return c != 0 && strchr(set, c) != NULL;
}

static void test_classes(void) {
    for (int c = 0; c < 256; c++) {
        const bool visible = c > 0x20 && c < 0x7f, token = is_alnum(c) || is_one_of(c, "!#$%&'*+-.^_`|~");
        char name[32];
        snprintf(name, sizeof name, "byte %d", c);
        expect_int(name, "token", is_in(&TOKEN, (uint8_t)c), token);
        expect_int(name, "text", is_in(&TEXT, (uint8_t)c), visible || c == ' ' || c == '\t' || c > 127);
        expect_int(name, "path", is_in(&PATH, (uint8_t)c), (visible && c != '#' && c != '?') || c > 127);
        expect_int(name, "query", is_in(&QUERY, (uint8_t)c), (visible && c != '#') || c > 127);
        expect_int(name, "host", is_in(&HOST, (uint8_t)c), is_alnum(c) || is_one_of(c, "-._~!$&'()*+,;="));
        const int line = LINE.low[c & 15] & LINE.high[c >> 4];
        expect_int(name, "token in a line", (line & LINE_TOKEN) != 0, token);
        expect_int(name, "text in a line", (line & ~LINE_TOKEN) != 0, is_in(&TEXT, (uint8_t)c) && c != '\t');
        expect_int(name, "hex", hex_value((uint8_t)c) >= 0, (is_alnum(c) && c <= 'F') || (c >= 'a' && c <= 'f'));
    }
}

/* Every byte at every place of every length, from every offset. */
static void test_scans(void) {
    static const struct class *const classes[] = {&TOKEN, &TEXT, &PATH, &QUERY, &HOST};
    for (size_t v = 0; v < n_variants; v++)
        for (size_t k = 0; k < 5; k++)
            for (size_t len = 1; len < 100; len += len < 40 ? 1 : 7)
                for (size_t at = 0; at < len; at++) {
                    char *buf = malloc(len);
                    if (!buf)
                        abort();
                    uint8_t *p = (uint8_t *)buf;
                    memset(buf, 'a', len);
                    for (size_t from = 0; from <= at; from += from < 3 ? 1 : 13) {
                        const uint8_t *want;
                        const uint8_t byte = (uint8_t)(at * 37 + len * 11 + from);
                        p[at] = byte;
                        want = is_in(classes[k], byte) ? p + len : p + at;
                        expect_int("scan", variants[v].name, variants[v].scan(classes[k], p, p + from, p + len) - p,
                                   want - p);
                    }
                    free(buf);
                }
}

/* A block says of each byte what the classes say. */
static void test_blocks(void) {
    uint8_t bytes[64];
    for (size_t v = 0; v < n_variants; v++)
        for (unsigned turn = 0; variants[v].block && turn < 64 * 256; turn++) {
            struct block want = {0, 0}, got;
            for (unsigned i = 0; i < 64; i++) {
                bytes[i] = (uint8_t)(i == turn / 256 ? turn : turn % 3 ? 'a' : i * 41 + turn * 7);
                want.names |= (uint64_t)!is_in(&TOKEN, bytes[i]) << i;
                want.values |= (uint64_t)(!is_in(&TEXT, bytes[i]) || bytes[i] == '\t') << i;
            }
            got = variants[v].block(bytes);
            expect_int("block: names", variants[v].name, got.names == want.names, 1);
            expect_int("block: values", variants[v].name, got.values == want.values, 1);
        }
}

static void test_errors(void) {
#define CHECK_ERROR(name, status, text) \
    expect("errors", "name", http1_error_name(HTTP1_E_##name), #name); \
    expect_int(#name, "status", http1_error_status(HTTP1_E_##name), status); \
    expect(#name, "text", http1_error_text(HTTP1_E_##name), text);
    HTTP1_ERRORS(CHECK_ERROR)
    expect_int("errors", "first", HTTP1_E_REQUEST_LINE, -1);
    expect_int("errors", "no error", http1_error_status(0), 500);
    expect_int("errors", "not known", http1_error_status(-HTTP1_ERROR_END), 500);
    expect_int("errors", "not known", http1_error_status(1), 500);
    expect_int("chunked", "size", sizeof(http1_chunked) < 48, 1);
}

int main(void) {
    find_variants();
    test_classes();
    test_scans();
    test_blocks();
    test_heads();
    test_limits();
    test_early();
    test_bodies();
    test_errors();
    printf("http1: %d checks, %d failures;", checks, failures);
    for (size_t v = 0; v < n_variants; v++)
        printf(" %s", variants[v].name);
    printf("\n");
    return failures != 0;
}
