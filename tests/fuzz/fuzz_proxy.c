/*
 * fuzz_proxy.c - proxy_parse() under libFuzzer.  Whatever the bytes:
 *
 *   - nothing outside of them is read (exact sizes, ASan), and a header is no longer than what there is;
 *   - every beginning of a header is "more wanted", and bytes after one change nothing;
 *   - `peer` stays as it was unless there is a header;
 *   - a version 1 line of TCP4 or TCP6 that is taken holds five words parted by single spaces and nothing else (2.1).
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_proxy.c ext/http/proxy.c && ./a.out tests/fuzz/corpus/proxy
 */
#include "http/proxy.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

/* On a copy of exactly that size, so that ASan sees a byte read too far. */
static int parse(const uint8_t *data, size_t size, union proxy_peer *peer)
{
    char *copy = malloc(size != 0 ? size : 1);

    CHECK(copy != NULL);
    if (size != 0)
        memcpy(copy, data, size);
    memset(peer, 0xa5, sizeof *peer);
    int rv = proxy_parse(copy, size, peer);
    free(copy);
    return rv;
}

static void check_line(const uint8_t *line, size_t len)
{
    int spaces = 0;

    CHECK(len <= 107 && memcmp(line + len - 2, "\r\n", 2) == 0);
    if (len >= 13 && memcmp(line + 6, "UNKNOWN", 7) == 0)
        return;
    for (size_t i = 0; i < len - 2; i++) {
        CHECK(line[i] >= ' ' && line[i] < 127);
        if (line[i] == ' ') {
            CHECK(line[i + 1] != ' ' && line[i + 1] != '\r');
            spaces++;
        }
    }
    CHECK(spaces == 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    union proxy_peer peer, part, untouched;
    int rv = parse(data, size, &peer);

    memset(&untouched, 0xa5, sizeof untouched);
    CHECK(rv >= PROXY_MALFORMED && (rv <= 0 || (size_t)rv <= size));
    if (rv <= 0) {
        CHECK(memcmp(&peer, &untouched, sizeof peer) == 0);
        return 0;
    }
    for (int i = 0; i < rv; i++)
        CHECK(parse(data, (size_t)i, &part) == PROXY_PARTIAL && memcmp(&part, &untouched, sizeof part) == 0);
    CHECK(parse(data, (size_t)rv, &part) == rv && memcmp(&part, &peer, sizeof part) == 0);
    if (data[0] == 'P')
        check_line(data, (size_t)rv);
    return 0;
}
