/*
 * parse.c - measures nanoseconds per head of our parser and of picohttpparser in
 * one process, in interleaved rounds, so that disturbances affect both.
 *
 *     cc -O3 -msse4.2 -IDIR -c DIR/picohttpparser.c -o pico.o
 *     cc -O3 -Iext/http -IDIR -DPICO bench/parse.c ext/http/http1.c pico.o && ./a.out
 *
 * Without -DPICO only our parser is measured; with -DPORTABLE_TOO also its plain C
 * code (it then includes the source, so leave ext/http/http1.c out of the command).
 * `./a.out ours|pico CASE [TIMES]` runs one thing 100,000 or TIMES times, for callgrind
 * and perf.
 */
#define _POSIX_C_SOURCE 199309L
#ifdef PORTABLE_TOO
#include "http1.c"
#else
#include "http1.h"
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef PICO
#include "picohttpparser.h"
#endif

static const char PROBE[] =
    "GET /healthz HTTP/1.1\r\n"
    "Host: 10.244.1.7:8080\r\n"
    "User-Agent: kube-probe/1.29\r\n"
    "Accept: */*\r\n"
    "Connection: close\r\n"
    "\r\n";

static const char BROWSER[] =
    "GET /articles/2024/how-to-measure?utm_source=feed&page=2 HTTP/1.1\r\n"
    "Host: www.example.com\r\n"
    "Connection: keep-alive\r\n"
    "sec-ch-ua: \"Chromium\";v=\"124\", \"Not-A.Brand\";v=\"99\"\r\n"
    "sec-ch-ua-mobile: ?0\r\n"
    "sec-ch-ua-platform: \"Linux\"\r\n"
    "Upgrade-Insecure-Requests: 1\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 "
    "Safari/537.36\r\n"
    "Referer: https://www.example.com/articles/2024/index.html\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    "Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=yes\r\n"
    "\r\n";

static char many[8192]; /* 50 headers, 3.8 KB */

static size_t build_many(void) {
    size_t at = (size_t)sprintf(many, "POST /api/v1/orders/4711/items?expand=all HTTP/1.1\r\nHost: api.internal:8443\r\n");
    for (int i = 0; i < 49; i++) {
        at += (size_t)sprintf(many + at, "X-Forwarded-Header-%02d: ", i);
        for (int k = 0; k < 28 + i % 5 * 11; k++)
            many[at++] = (char)('a' + (i + k) % 26);
        at += (size_t)sprintf(many + at, "\r\n");
    }
    at += (size_t)sprintf(many + at, "\r\n");
    return at;
}

static const http1_limits LIMITS = {.max_head_size = 32768, .max_target_size = 8192, .max_headers = 100};

static int ours(const char *buf, size_t len) {
    static http1_head head;
    return http1_parse_head(buf, len, 0, &LIMITS, &head);
}

#ifdef PORTABLE_TOO
static int portable(const char *buf, size_t len) {
    static http1_head head;
    return parse_portable((const uint8_t *)buf, (const uint8_t *)buf + len, &LIMITS, &head);
}

#ifdef HTTP1_X86
static int ssse3(const char *buf, size_t len) {
    static http1_head head;
    return parse_ssse3((const uint8_t *)buf, (const uint8_t *)buf + len, &LIMITS, &head);
}
#endif
#endif

#ifdef PICO
static int pico(const char *buf, size_t len) {
    static struct phr_header headers[100];
    const char *method, *path;
    size_t method_len, path_len, n_headers = 100;
    int minor;
    return phr_parse_request(buf, len, &method, &method_len, &path, &path_len, &minor, headers, &n_headers, 0);
}
#endif

typedef int parser(const char *, size_t);
static const struct {
    const char *name;
    parser *parse;
} PARSERS[] = {
    {"ours", ours},
#ifdef PICO
    {"pico", pico},
#endif
#ifdef PORTABLE_TOO
    {"portable", portable},
#ifdef HTTP1_X86
    {"ssse3", ssse3},
#endif
#endif
};
enum { N_PARSERS = sizeof PARSERS / sizeof *PARSERS, N_CASES = 3, ROUNDS = 301, TURNS = 2000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    const struct {
        const char *name, *buf;
        size_t len;
    } cases[N_CASES] = {
        {"probe", PROBE, sizeof PROBE - 1},
        {"browser", BROWSER, sizeof BROWSER - 1},
        {"many", many, build_many()},
    };
    static double took[N_PARSERS][ROUNDS];
    const int times = argc > 3 ? atoi(argv[3]) : 100000;

    for (int c = 0; c < N_CASES; c++) {
        if (argc > 2) {
            for (int p = 0; p < N_PARSERS; p++)
                if (!strcmp(argv[1], PARSERS[p].name) && !strcmp(argv[2], cases[c].name))
                    for (int i = 0; i < times; i++)
                        if (PARSERS[p].parse(cases[c].buf, cases[c].len) != (int)cases[c].len)
                            return 1;
            continue;
        }
        for (int round = 0; round < ROUNDS; round++)
            for (int p = 0; p < N_PARSERS; p++) {
                const double start = now();
                for (int i = 0; i < TURNS; i++)
                    if (PARSERS[p].parse(cases[c].buf, cases[c].len) != (int)cases[c].len) {
                        fprintf(stderr, "%s does not parse %s\n", PARSERS[p].name, cases[c].name);
                        return 1;
                    }
                took[p][round] = (now() - start) / TURNS;
            }
        printf("%-8s %4zu bytes:", cases[c].name, cases[c].len);
        for (int p = 0; p < N_PARSERS; p++) {
            qsort(took[p], ROUNDS, sizeof(double), by_size);
            printf("  %s %.1f ns", PARSERS[p].name, took[p][ROUNDS / 2]);
        }
        printf("\n");
    }
    return 0;
}
