/*
 * fuzz_head.c - http1_parse_head() under libFuzzer.  Whatever the bytes:
 *
 *   - nothing outside of them is read (buffers of the exact size, ASan);
 *   - every instruction set gives the same verdict and the same head;
 *   - a cut anywhere gives "partial" or the final verdict, and then that verdict
 *     (an error at the latest when its line ends);
 *   - bytes after a head change nothing;
 *   - what is accepted, and nothing else, is what a second, naive reading of the
 *     RFC accepts; and it says the same about framing, Host and the connection.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_head.c
 *     ./a.out tests/fuzz/corpus/head
 */
#include "http/http1.c"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static const http1_limits LIMITS = {.max_head_size = 4096, .max_target_size = 200, .max_headers = 8};

/* The naive reading ------------------------------------------------------ */

struct text {
    const char *at;
    size_t len;
};

static bool equal(struct text t, const char *word) {
    if (t.len != strlen(word))
        return false;
    for (size_t i = 0; i < t.len; i++)
        if ((t.at[i] >= 'A' && t.at[i] <= 'Z' ? t.at[i] + 32 : t.at[i]) != word[i])
            return false;
    return true;
}

static bool all_of(struct text t, const char *set) {
    for (size_t i = 0; i < t.len; i++)
        if (!t.at[i] || !strchr(set, t.at[i]))
            return false;
    return true;
}

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define TCHARS DIGITS LETTERS "!#$%&'*+-.^_`|~"
#define NAMES DIGITS LETTERS "-._~!$&'()*+,;="

static struct text part(struct text t, size_t from, size_t to) {
    return (struct text){t.at + from, to - from};
}

static size_t find(struct text t, char c) {
    size_t i = 0;
    while (i < t.len && t.at[i] != c)
        i++;
    return i;
}

static struct text strip(struct text t) {
    while (t.len && (t.at[0] == ' ' || t.at[0] == '\t'))
        t = part(t, 1, t.len);
    while (t.len && (t.at[t.len - 1] == ' ' || t.at[t.len - 1] == '\t'))
        t.len--;
    return t;
}

/* uri-host [ ":" port ]; IPv6 by the C library. */
static bool good_authority(struct text t, bool needs_port) {
    size_t host = 0, ports;
    long port;
    char copy[64] = {0};
    unsigned char address[16];
    if (t.len && t.at[0] == '[') {
        size_t close = find(t, ']');
        struct text inside;
        if (close == t.len)
            return false;
        inside = part(t, 1, close);
        if (inside.len && (inside.at[0] == 'v' || inside.at[0] == 'V')) {
            size_t dot = find(inside, '.');
            if (dot < 2 || dot + 1 >= inside.len || !all_of(part(inside, 1, dot), DIGITS "abcdefABCDEF") ||
                !all_of(part(inside, dot + 1, inside.len), NAMES ":"))
                return false;
        } else {
            if (inside.len >= sizeof copy || !all_of(inside, DIGITS "abcdefABCDEF:."))
                return false;
            memcpy(copy, inside.at, inside.len);
            if (inet_pton(AF_INET6, copy, address) != 1)
                return false;
        }
        host = close + 1;
    } else {
        host = find(t, ':');
        if (host == 0)
            return false;
        for (size_t i = 0; i < host; i++)
            if (t.at[i] == '%') {
                if (i + 2 >= host || !all_of(part(t, i + 1, i + 3), DIGITS "abcdefABCDEF"))
                    return false;
                i += 2;
            } else if (!all_of(part(t, i, i + 1), NAMES)) {
                return false;
            }
    }
    if (host == t.len)
        return !needs_port;
    if (t.at[host] != ':')
        return false;
    ports = t.len - host - 1;
    if (ports == 0)
        return !needs_port;
    if (ports > 5 || !all_of(part(t, host + 1, t.len), DIGITS))
        return false;
    memset(copy, 0, sizeof copy);
    memcpy(copy, t.at + host + 1, ports);
    port = atol(copy);
    return port <= 65535 && (port > 0 || !needs_port);
}

struct naive {
    bool good, bad_host, has_length, chunked, keep_alive, expect;
    unsigned long long length;
    size_t size, n_headers;
    int minor;
};

static bool good_target(struct text method, struct text t) {
    size_t start, question, slash;
    for (size_t i = 0; i < t.len; i++)
        if ((unsigned char)t.at[i] <= ' ' || t.at[i] == 127 || t.at[i] == '#')
            return false;
    if (t.len == 0 || t.len > LIMITS.max_target_size)
        return false;
    if (method.len == 7 && memcmp(method.at, "CONNECT", 7) == 0)
        return good_authority(t, true);
    if (t.at[0] == '/')
        return true;
    if (t.len == 1 && t.at[0] == '*')
        return method.len == 7 && memcmp(method.at, "OPTIONS", 7) == 0;
    start = t.len > 7 && equal(part(t, 0, 7), "http://") ? 7 : t.len > 8 && equal(part(t, 0, 8), "https://") ? 8 : 0;
    if (!start)
        return false;
    t = part(t, start, t.len);
    question = find(t, '?');
    slash = find(t, '/');
    return good_authority(part(t, 0, slash < question ? slash : question), false);
}

/* All of the rules on the first head in these bytes, one after another; not good if there is no end to it. */
static struct naive read_naively(const char *bytes, size_t len) {
    struct naive r = {0};
    struct text all = {bytes, len}, line, method, target, version, length = {0, 0}, host = {0, 0};
    size_t at = 0, empty = 0, n_host = 0, n_length = 0, n_chunked = 0;
    bool closing = false, keeping = false, other_expect = false, coding = false, good = true;

    while (len - at >= 2 && memcmp(bytes + at, "\r\n", 2) == 0) {
        at += 2;
        if (++empty > 4)
            return r;
    }
    for (size_t n = 0;; n++) {
        size_t end = at;
        while (end + 1 < len && memcmp(bytes + end, "\r\n", 2) != 0)
            end++;
        if (end + 1 >= len)
            return r;
        line = part(all, at, end);
        at = end + 2;
        for (size_t i = 0; i < line.len; i++)
            if ((line.at[i] >= 0 && line.at[i] < 32 && line.at[i] != '\t') || line.at[i] == 127)
                return r;
        if (n == 0) {
            const size_t one = find(line, ' ');
            size_t two;
            if (one == line.len)
                return r;
            two = one + 1 + find(part(line, one + 1, line.len), ' ');
            if (two == line.len)
                return r;
            method = part(line, 0, one);
            target = part(line, one + 1, two);
            version = part(line, two + 1, line.len);
            if (method.len == 0 || method.len > 32 || !all_of(method, TCHARS) || !good_target(method, target))
                return r;
            if (version.len != 8 || memcmp(version.at, "HTTP/1.", 7) != 0 || !all_of(part(version, 7, 8), DIGITS))
                return r;
            r.minor = version.at[7] != '0';
            continue;
        }
        if (line.len == 0)
            break;
        {
            const size_t colon = find(line, ':');
            struct text name = part(line, 0, colon), value;
            if (colon == 0 || colon == line.len || !all_of(name, TCHARS) || ++r.n_headers > LIMITS.max_headers)
                return r;
            value = strip(part(line, colon + 1, line.len));
            if (equal(name, "host")) {
                host = value;
                n_host++;
            } else if (equal(name, "content-length")) {
                length = value;
                n_length++;
            } else if (equal(name, "transfer-encoding")) {
                coding = true;
                if (!equal(value, "chunked"))
                    good = false;
                n_chunked++;
            } else if (equal(name, "connection") || equal(name, "expect")) {
                for (size_t from = 0; from <= value.len;) {
                    const size_t comma = from + find(part(value, from, value.len), ',');
                    struct text member = strip(part(value, from, comma));
                    if (equal(name, "expect")) {
                        if (equal(member, "100-continue"))
                            r.expect = true;
                        else if (member.len)
                            other_expect = true;
                    } else {
                        closing |= equal(member, "close");
                        keeping |= equal(member, "keep-alive");
                    }
                    from = comma + 1;
                }
            }
        }
    }
    r.size = at;
    if (at > LIMITS.max_head_size || n_host > 1 || (r.minor && n_host == 0) || n_length > 1 || n_chunked > 1)
        return r;
    if (coding && (n_length || !r.minor))
        return r;
    if (n_length) {
        char digits[20] = {0};
        if (length.len == 0 || length.len > 19 || !all_of(length, DIGITS))
            return r;
        memcpy(digits, length.at, length.len);
        r.length = strtoull(digits, NULL, 10);
        if (r.length > 9223372036854775807ull)
            return r;
        r.has_length = true;
    }
    if (r.minor && other_expect)
        return r;
    r.good = good;
    r.bad_host = host.len != 0 && !good_authority(host, false);
    r.chunked = coding;
    r.keep_alive = !closing && (r.minor || keeping);
    r.expect = r.expect && r.minor && (r.chunked || r.length > 0);
    return r;
}

/* The checks ------------------------------------------------------------- */

static int parse_exact(const char *bytes, size_t len, size_t seen, http1_head *head) {
    char *copy = malloc(len ? len : 1);
    int n;
    if (!copy)
        abort();
    memcpy(copy, bytes, len);
    n = http1_parse_head(copy, len, seen, &LIMITS, head);
    free(copy);
    return n;
}

static void check_same(int n, const http1_head *a, int m, const http1_head *b) {
    CHECK(n == m);
    if (n > 0) {
        CHECK(memcmp(a, b, offsetof(http1_head, headers)) == 0);
        CHECK(memcmp(a->headers, b->headers, a->n_headers * sizeof *a->headers) == 0);
    }
}

/* What a call with `seen` says; an error may wait there until the line ends, so it is ended. */
static int parse_rest(const char *bytes, size_t len, size_t seen, int verdict, http1_head *head) {
    int n = parse_exact(bytes, len, seen, head);
    if (n == HTTP1_PARTIAL && verdict < 0 && seen >= REPARSE_ALWAYS) {
        char *ended = malloc(len + 1);
        if (!ended)
            abort();
        memcpy(ended, bytes, len);
        ended[len] = '\n';
        n = parse_exact(ended, len + 1, len, head);
        free(ended);
    }
    return n;
}

static void check_span(http1_span s, int n) {
    CHECK(s.pos + s.len <= n);
}

static void check_head(const char *bytes, int n, const http1_head *head) {
    const http1_span spans[] = {head->method, head->target, head->path, head->query, head->authority, head->host};
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        check_span(spans[i], n);
    CHECK(n <= LIMITS.max_head_size && head->target.len <= LIMITS.max_target_size);
    CHECK(head->n_headers <= LIMITS.max_headers);
    CHECK(memcmp(bytes + n - 4, "\r\n\r\n", 4) == 0);
    CHECK(bytes[head->target.pos - 1] == ' ' && bytes[head->target.pos + head->target.len] == ' ');
    CHECK(!(head->has_length && head->chunked));
    if (head->has_query)
        CHECK(bytes[head->query.pos - 1] == '?');
    if (head->form == HTTP1_ORIGIN)
        CHECK(head->path.pos == head->target.pos && bytes[head->path.pos] == '/');
    for (size_t i = 0; i < head->n_headers; i++) {
        const http1_header *h = &head->headers[i];
        check_span(h->name, n);
        check_span(h->value, n);
        CHECK(h->name.len > 0 && bytes[h->name.pos + h->name.len] == ':' && bytes[h->name.pos - 1] == '\n');
        CHECK(h->value.pos > h->name.pos + h->name.len);
        if (h->value.len)
            CHECK(!is_space((uint8_t)bytes[h->value.pos]) &&
                  !is_space((uint8_t)bytes[h->value.pos + h->value.len - 1]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static http1_head head, other;
    const char *bytes = (const char *)data;
    const struct naive naive = read_naively(bytes, size);
    const int verdict = parse_exact(bytes, size, 0, &head);
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ data[i]) * 16777619u;

    /* The second opinion. */
    CHECK((verdict > 0) == naive.good);
    if (verdict > 0) {
        check_head(bytes, verdict, &head);
        CHECK((size_t)verdict == naive.size && head.n_headers == naive.n_headers && head.minor == naive.minor);
        CHECK(head.bad_host == naive.bad_host && head.has_length == naive.has_length);
        CHECK(head.content_length == naive.length && head.chunked == naive.chunked);
        CHECK(head.keep_alive == naive.keep_alive && head.expect_continue == naive.expect);
    } else if (verdict < 0) {
        CHECK(http1_error_status(verdict) >= 400 && http1_error_status(verdict) != 500);
    }

    /* Every instruction set. */
    if (size < LIMITS.max_head_size) {
        check_same(verdict, &head, parse_portable(data, data + size, &LIMITS, &other), &other);
#ifdef HTTP1_X86
        if (__builtin_cpu_supports("ssse3"))
            check_same(verdict, &head, parse_ssse3(data, data + size, &LIMITS, &other), &other);
#endif
    }

    /* A few cuts, and all the bytes after them at once. */
    for (int i = 0; i < 4 && size > 0; i++) {
        const size_t cut = (hash = hash * 1103515245u + 12345u) / 8 % size;
        const int n = parse_exact(bytes, cut, 0, &other);
        if (n == HTTP1_PARTIAL)
            check_same(verdict, &head, parse_rest(bytes, size, cut, verdict, &other), &other);
        else
            check_same(verdict, &head, n, &other);
        CHECK(!(verdict > 0 && cut < (size_t)verdict && n != HTTP1_PARTIAL));
    }

    /* In steps. */
    for (size_t step = hash % 7 + 1, seen = 0, n = step;; seen = n, n += step) {
        int now;
        n = n < size ? n : size;
        now = n < size ? parse_exact(bytes, n, seen, &other) : parse_rest(bytes, n, seen, verdict, &other);
        if (now != HTTP1_PARTIAL || n == size) {
            check_same(verdict, &head, now, &other);
            break;
        }
        step += n / 64;
    }

    /* With more after it: the bytes themselves. */
    if (verdict != HTTP1_PARTIAL && size < 1000) {
        char *twice = malloc(2 * size + 1);
        if (!twice)
            abort();
        memcpy(twice, bytes, size);
        memcpy(twice + size, bytes, size);
        check_same(verdict, &head, parse_exact(twice, 2 * size, 0, &other), &other);
        free(twice);
    }
    return 0;
}
