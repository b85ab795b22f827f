/*
 * fuzz_chunked.c - http1_chunked_decode() under libFuzzer.  Whatever the bytes:
 *
 *   - nothing outside of them is read or written (exact sizes, ASan);
 *   - the result does not depend on how they are cut, nor on where they go;
 *   - no more is produced than consumed; nothing after the end is consumed;
 *   - what is complete, and nothing else, is complete for a second, naive
 *     decoder, with the same body.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_chunked.c ext/http/http1.c
 *     ./a.out tests/fuzz/corpus/chunked
 */
#include "http/http1.h"

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

/* The naive decoder: the whole message at once, by recursive descent --------- */

struct naive {
    const char *p, *end;
    char *body;
    size_t len, extensions, trailers;
    bool bad; /* an extension begins and is none */
};

static bool take(struct naive *d, const char *set) {
    if (d->p == d->end || !*d->p || !strchr(set, *d->p))
        return false;
    d->p++;
    return true;
}

#define TCHARS "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%&'*+-.^_`|~"

static bool take_token(struct naive *d) {
    if (!take(d, TCHARS))
        return false;
    while (take(d, TCHARS)) {
    }
    return true;
}

static void take_space(struct naive *d) {
    while (take(d, " \t")) {
    }
}

static bool take_text(struct naive *d) {
    const unsigned char c = d->p < d->end ? (unsigned char)*d->p : 0;
    if (c != '\t' && (c < 32 || c == 127))
        return false;
    d->p++;
    return true;
}

static bool take_crlf(struct naive *d) {
    return take(d, "\r") && take(d, "\n");
}

static bool take_extension(struct naive *d) {
    const char *before = d->p;
    take_space(d);
    if (!take(d, ";")) {
        d->p = before;
        return false;
    }
    take_space(d);
    d->bad = true;
    if (!take_token(d))
        return false;
    d->bad = false;
    before = d->p;
    take_space(d);
    if (!take(d, "=")) {
        d->p = before;
        return true;
    }
    take_space(d);
    if (!take(d, "\""))
        return !(d->bad = !take_token(d));
    while (!take(d, "\"")) {
        take(d, "\\");
        if (!take_text(d))
            return !(d->bad = true);
    }
    return true;
}

static bool take_trailer(struct naive *d) {
    if (!take_token(d) || !take(d, ":"))
        return false;
    while (take_text(d)) {
    }
    return take_crlf(d);
}

static bool take_body(struct naive *d) {
    for (;;) {
        const char *before = d->p;
        unsigned long long size;
        size_t digits;
        char copy[17] = {0};
        while (take(d, "0123456789abcdefABCDEF")) {
        }
        digits = (size_t)(d->p - before);
        if (digits == 0 || digits > 16)
            return false;
        memcpy(copy, before, digits);
        size = strtoull(copy, NULL, 16);
        if (size > 9223372036854775807ull)
            return false;
        before = d->p;
        while (take_extension(d)) {
        }
        d->extensions += (size_t)(d->p - before);
        if (d->bad || !take_crlf(d) || d->extensions > 4096)
            return false;
        if (size == 0)
            break;
        if ((size_t)(d->end - d->p) < size)
            return false;
        memcpy(d->body + d->len, d->p, size);
        d->len += size;
        d->p += size;
        if (!take_crlf(d))
            return false;
    }
    for (const char *before = d->p; !take_crlf(d); d->trailers++) {
        d->p -= d->p > before && d->p[-1] == '\r'; /* a CR alone was taken */
        if (!take_trailer(d) || d->trailers == 64 || d->p - before > 8192)
            return false;
    }
    return true;
}

/* The checks ------------------------------------------------------------- */

struct result {
    int verdict;
    size_t consumed, len;
};

/* Decodes in pieces of `step` bytes (0: all at once); `gap` bytes before each piece are room for its output. */
static struct result decode(const uint8_t *data, size_t size, size_t step, size_t gap, bool apart, char *body) {
    struct result r = {0, 0, 0};
    http1_chunked d;
    http1_chunked_init(&d);
    while (r.verdict == 0 && r.consumed < size) {
        const size_t left = size - r.consumed, n = step && step < left ? step : left;
        size_t src_len = n, dst_len = 12345;
        char *src = malloc(gap + n), *dst = apart ? malloc(n) : src;
        if (!src || !dst)
            abort();
        memcpy(src + gap, data + r.consumed, n);
        r.verdict = http1_chunked_decode(&d, src + gap, &src_len, dst, &dst_len);
        CHECK(src_len <= n && dst_len <= src_len);
        CHECK(r.verdict != 0 || src_len == n);
        memcpy(body + r.len, dst, dst_len);
        r.len += dst_len;
        r.consumed += src_len;
        if (apart)
            free(dst);
        free(src);
    }
    if (r.verdict != 0) {
        char byte = '0';
        size_t src_len = 1, dst_len = 1;
        CHECK(http1_chunked_decode(&d, &byte, &src_len, &byte, &dst_len) == r.verdict);
        CHECK(src_len == 0 && dst_len == 0);
    }
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *body = malloc(size + 1), *other = malloc(size + 1);
    struct naive naive = {(const char *)data, (const char *)data + size, other, 0, 0, 0, false};
    struct result whole;
    size_t hash = size;
    bool complete;
    if (!body || !other)
        abort();

    whole = decode(data, size, 0, 0, true, body);
    complete = take_body(&naive);
    CHECK((whole.verdict == 1) == complete);
    if (complete) {
        CHECK(naive.p == (const char *)data + whole.consumed);
        CHECK(naive.len == whole.len && memcmp(body, other, whole.len) == 0);
    }
    if (whole.verdict < 0)
        CHECK(http1_error_status(whole.verdict) == 400 || http1_error_status(whole.verdict) == 431);

    for (size_t i = 0; i < size; i++)
        hash = hash * 31 + data[i];
    for (int i = 0; i < 4; i++) {
        const size_t step = i == 0 ? 1 : hash % (i * 5u + 2) + 1;
        const struct result r = decode(data, size, step, i * 3u, i % 2 == 0, other);
        CHECK(r.verdict == whole.verdict && r.consumed == whole.consumed && r.len == whole.len);
        CHECK(memcmp(body, other, r.len) == 0);
        hash /= 7;
    }
    free(body);
    free(other);
    return 0;
}
