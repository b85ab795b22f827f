/*
 * steps.h - the inputs of fuzz_front.c as lists of steps, and how libFuzzer changes them: it inserts requests that a small
 * grammar makes, right and wrong ones, and inserts, removes, moves and cuts steps, so that what a client does stays sensible
 * where flipped bytes would make another step of it, and lose all that follow.  A quarter of the changes are of bytes.
 */
#ifndef STEPS_H
#define STEPS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The codes below the first are steps that say so many bytes and one. */
enum { STEP_PHRASE = 0x60, STEP_CUT_PHRASE = 0x80, STEP_BLOCK = 0xa0 };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static size_t step_size(const uint8_t *step, size_t left)
{
    size_t n = *step < STEP_PHRASE ? 2u + *step : *step >= STEP_CUT_PHRASE && *step < STEP_BLOCK ? 2 : 1;
    return n < left ? n : left;
}

/* ------------------------------------------------------------------------------------------------ a request's grammar */

typedef struct {
    uint32_t state;
    size_t len;
    char text[2048];
} grammar;

/* One of n; xorshift. */
static uint32_t pick(grammar *g, uint32_t n)
{
    g->state ^= g->state << 13;
    g->state ^= g->state >> 17;
    g->state ^= g->state << 5;
    return g->state % n;
}

__attribute__((format(printf, 2, 3))) static void add(grammar *g, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(g->text + g->len, sizeof g->text - g->len, format, arguments);
    va_end(arguments);
    if (n > 0 && (size_t)n < sizeof g->text - g->len)
        g->len += (size_t)n;
}

static void add_body(grammar *g, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        add(g, "%c", 'a' + (int)(i % 26));
}

#define ONE_OF(g, ...) ((const char *const[]){__VA_ARGS__})[pick(g, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))]

/* Seven of eight are right. */
static void add_request(grammar *g)
{
    const bool wrong = pick(g, 8) == 0;
    const uint32_t kind = pick(g, 4), len = pick(g, 6) == 0 ? pick(g, 1500) : pick(g, 60); /* of the body, or of its chunks */

    add(g, "%s /%s%s HTTP/1.%s\r\n", ONE_OF(g, "GET", "POST", "HEAD", "PUT", "OPTIONS"),
        ONE_OF(g, "r", "s", "i", "c", "w", "healthz"), ONE_OF(g, "", "", "?q"), ONE_OF(g, "1", "1", "1", "0"));
    add(g, "Host: x\r\n%s", ONE_OF(g, "", "", "", "", "Connection: close\r\n", "Connection: keep-alive\r\n", "Expect: 100-continue\r\n"));
    if (wrong)
        add(g, "%s", ONE_OF(g, "Host: y\r\n", "Content-Length: 1, 2\r\n", "a : b\r\n", "Transfer-Encoding: gzip\r\n", "a: b\r\n c\r\n", "\n"));
    if (kind == 0) {
        add(g, "\r\n");
    } else if (kind == 1) {
        add(g, "Content-Length: %u\r\n\r\n", wrong ? len + pick(g, 6000) : len);
        add_body(g, len);
    } else {
        const uint32_t chunks = pick(g, 4);
        add(g, "Transfer-Encoding: chunked\r\n%s\r\n", wrong && pick(g, 2) ? "Content-Length: 5\r\n" : "");
        for (uint32_t i = 0; i < chunks; i++) {
            const uint32_t size = len / chunks + 1;
            add(g, pick(g, 2) ? "%x%s\r\n" : "0%X%s\r\n", size, ONE_OF(g, "", "", ";a=b", ";a=\"b\""));
            add_body(g, wrong && pick(g, 2) ? size - 1 : size);
            add(g, "\r\n");
        }
        add(g, "0\r\n%s\r\n", ONE_OF(g, "", "", "a: b\r\n"));
    }
}

/* As steps that say it: in one breath, or in parts with something between them. */
static size_t say_request(grammar *g, uint8_t *out)
{
    const bool parts = pick(g, 2) == 0;
    size_t n = 0, len;

    for (const char *p = g->text, *end = p + g->len; p < end; p += len) {
        const size_t most = parts ? 1 + pick(g, STEP_PHRASE) : STEP_PHRASE;
        len = (size_t)(end - p) < most ? (size_t)(end - p) : most;
        out[n++] = (uint8_t)(len - 1);
        memcpy(out + n, p, len);
        n += len;
        if (parts && pick(g, 3) == 0)
            out[n++] = (uint8_t)(0xb0 + pick(g, 0x30)); /* waits, hears, or is another client */
    }
    return n;
}

/* ------------------------------------------------------------------------------------------------------ changes */

/* A place between two steps, chosen evenly. */
static size_t border(grammar *g, const uint8_t *data, size_t size)
{
    size_t chosen = 0;
    uint32_t n = 1;

    for (size_t i = 0; i < size;) {
        i += step_size(data + i, size - i);
        if (pick(g, ++n) == 0)
            chosen = i;
    }
    return chosen;
}

/* The size afterwards; as before if there is no room. */
static size_t insert(uint8_t *data, size_t size, size_t max_size, size_t at, const uint8_t *bytes, size_t n)
{
    if (n > max_size - size)
        return size;
    memmove(data + at + n, data + at, size - at);
    memcpy(data + at, bytes, n);
    return size + n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    grammar g = {.state = seed | 1};
    uint8_t steps[3 * sizeof g.text];

    size_t at = border(&g, data, size), n = at < size ? step_size(data + at, size - at) : 0;
    switch (pick(&g, 8)) {
    case 0:
    case 1: /* a request, or some in one piece */
        do
            add_request(&g);
        while (pick(&g, 3) == 0);
        return insert(data, size, max_size, at, steps, say_request(&g, steps));
    case 2: /* anything of one byte: a phrase, a block, wait, hear, another client, half-close, reset, drain */
        *steps = (uint8_t)(pick(&g, 6) ? STEP_BLOCK + pick(&g, 0x60) : STEP_PHRASE + pick(&g, 0x20));
        return insert(data, size, max_size, at, steps, 1);
    case 3: /* removes one */
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    case 4: /* repeats one, there or elsewhere */
        memcpy(steps, data + at, n);
        return insert(data, size, max_size, pick(&g, 2) ? at : border(&g, data, size), steps, n);
    case 5: /* says it in two parts */
        if (n > 2 && data[at] < STEP_PHRASE) {
            const uint8_t first = (uint8_t)(1 + pick(&g, (uint32_t)n - 2)), rest = (uint8_t)(n - 1 - first);
            const size_t now = insert(data, size, max_size, at + 1 + first, &(uint8_t){(uint8_t)(rest - 1)}, 1);
            if (now > size)
                data[at] = (uint8_t)(first - 1);
            return now;
        }
        /* fall through */
    default:
        return LLVMFuzzerMutate(data, size, max_size);
    }
}

/* The beginning of one and the end of another. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size, uint8_t *out, size_t max_size,
                                 unsigned seed)
{
    grammar g = {.state = seed | 1};
    size_t head = border(&g, a, a_size), tail = border(&g, b, b_size);

    head = head < max_size ? head : max_size;
    memcpy(out, a, head);
    const size_t rest = b_size - tail < max_size - head ? b_size - tail : max_size - head;
    memcpy(out + head, b + tail, rest);
    return head + rest;
}

#endif
