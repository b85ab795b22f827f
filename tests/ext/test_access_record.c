/*
 * test_access_record.c - access_record.c at its bounds: no line is longer than it may be, and none has what JSON would have to
 * escape.
 * (tests/logs/test_logs.py compares its lines with those of Python.)
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_access_record.c ext/{http,front}/?*.c -pthread && ./a.out
 */
#include "http/access_record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition, ...) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "FAIL %s:%d: %s\n     ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, " " __VA_ARGS__); \
            fputc('\n', stderr); \
            exit(1); \
        } \
    } while (0)

static access_record_text of(const char *text) { return (access_record_text){text, strlen(text)}; }

/* All numbers as long as they get. */
static access_record longest(void)
{
    return (access_record){.when = INT64_MAX, .duration = INT64_MAX, .received = UINT64_MAX, .sent = UINT64_MAX, .status = UINT32_MAX};
}

int main(void)
{
    enum { TEXTS = 9 };
    static char many[2 * ACCESS_RECORD_MAX_SIZE];
    char *out = malloc(ACCESS_RECORD_MAX_SIZE); /* so that a sanitizer sees a byte too many */
    size_t longest_line = 0;

    REQUIRE(out != NULL, "out of memory");
    memset(many, 'x', sizeof many);
    /* Each text, and all of them, at every length. */
    for (unsigned which = 1; which < 1U << TEXTS; which = which == 1U << (TEXTS - 1) ? (1U << TEXTS) - 1 : which << 1) {
        for (size_t len = 0; len < sizeof many; len++) {
            access_record r = longest();
            access_record_text *texts[TEXTS] = {&r.method,   &r.path,    &r.client,     &r.listener,    &r.agent,
                                                &r.trace_id, &r.span_id, &r.request_id, &r.trace_prefix};
            for (unsigned i = 0; i < TEXTS; i++)
                *texts[i] = which & 1U << i ? (access_record_text){many, len} : of("");
            enum access_record_schema schema = (enum access_record_schema)(len % ACCESS_RECORD_SCHEMAS);
            size_t n = access_record_json(&r, schema, out);
            REQUIRE(n <= ACCESS_RECORD_MAX_SIZE, "%zu bytes", n);
            REQUIRE(n > 0 || len > 45, "nothing of texts of %zu", len);
            REQUIRE(n == 0 || (out[n - 2] == '}' && out[n - 1] == '\n'), "no end");
            if (n > longest_line)
                longest_line = n;
        }
    }
    REQUIRE(longest_line > ACCESS_RECORD_MAX_SIZE - 100, "the room is not used: %zu bytes at most", longest_line);

    /* One character among others, at each place of a vector. */
    for (int c = 0; c < 256; c++)
        for (size_t place = 0; place < 70; place++) {
            char path[70];
            access_record r = {.method = of("GET"), .path = {path, sizeof path}, .client = of("::1"), .status = 200};
            memset(path, '/', sizeof path);
            path[place] = (char)c;
            int is_plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
            REQUIRE((access_record_json(&r, ACCESS_RECORD_OTEL, out) > 0) == is_plain, "character %d at %zu", c, place);
        }

    access_record r = {.when = 951782399123456789, .duration = 1499, .received = 7, .sent = 12345678901, .status = 503,
                .method = of("GET"), .path = of("/"), .client = of("::1"), .request_id = of("r")};
    const char *expected =
        "{\"timestamp\":\"2000-02-28T23:59:59.123456Z\",\"severity\":\"ERROR\",\"message\":\"GET / 503\","
        "\"logger\":\"pkg.access\",\"http.request.method\":\"GET\",\"url.path\":\"/\",\"http.response.status_code\":503,"
        "\"duration\":0.000001,\"http.request.body.size\":7,\"http.response.body.size\":12345678901,"
        "\"client.address\":\"::1\",\"request_id\":\"r\"}\n";
    for (int i = 0; i < 3; i++) { /* the second time from the rendered second, then a later one */
        size_t n = access_record_json(&r, ACCESS_RECORD_OTEL, out);
        REQUIRE(n == strlen(expected) && memcmp(out, expected, n) == 0, "%.*s", (int)n, out);
    }
    r.when += 1000000000;
    REQUIRE(access_record_json(&r, ACCESS_RECORD_OTEL, out) > 0 && strncmp(out + 14, "2000-02-29T00:00:00.123456Z", 27) == 0, "%.50s", out);
    free(out);
    return 0;
}
