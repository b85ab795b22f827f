/*
 * pages.h - published pages: complete responses rendered in advance, which the front sends without calling Python.
 *
 * A page is a path with up to three sets of answers: `fresh`; `expired`, sent when the page has expired without being
 * renewed, so that a hung interpreter cannot stay healthy; and optionally `draining`.  Each set has one answer for each
 * format.  One thread builds a table and passes it to the front; only the loop reads it.
 */
#ifndef PAGES_H
#define PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGES_SLOTS 64     /* expiry times; each page uses one of them */
#define PAGES_MAX 256      /* pages in a table */
#define PAGES_MAX_SIZE 4096 /* bytes of one rendered answer */

enum pages_set { PAGES_FRESH, PAGES_EXPIRED, PAGES_DRAINING, PAGES_SETS };
enum pages_format { PAGES_TEXT, PAGES_VERBOSE, PAGES_JSON, PAGES_FORMATS };

typedef struct {
    uint16_t status; /* 0: no such answer */
    uint16_t headers_len, body_len;
    char *bytes; /* headers, then body */
} pages_answer;

typedef struct {
    char *path;
    uint16_t path_len;
    uint8_t slot;
    pages_answer answers[PAGES_SETS][PAGES_FORMATS];
} page;

typedef struct {
    size_t n, max;
    page page[];
} pages;

pages *pages_new(size_t max); /* NULL if out of memory */
void pages_free(pages *t);    /* t may be NULL */

/* Adds a page without answers.  Returns its number, or -EINVAL or -ENOMEM. */
int pages_add(pages *t, const char *path, size_t path_len, unsigned slot);
/* `headers`: complete lines without Date and Connection. */
int pages_set_answer(pages *t, int number, enum pages_set set, enum pages_format format, unsigned status,
                     const char *headers, size_t headers_len, const char *body, size_t body_len);

/* The page of a path, ignoring one trailing slash; NULL if there is none. */
const page *pages_find(const pages *t, const char *path, size_t len);

/* Renders into `out` (PAGES_MAX_SIZE bytes) with the line of the `date` (date.h) and `extra` header lines.  Returns the
 * length. */
size_t pages_render(const pages_answer *a, const char *date, const char *extra, bool head_only, char *out);

#define PAGES_REFUSAL_SIZE 512

/* Renders a short error that ends the connection: `text`, a line of at most 128 bytes.  The response to HEAD has no content,
 * whatever its status (RFC 9110 9.3.2).  Returns the length. */
size_t pages_refusal(unsigned status, const char *date, const char *text, bool head_only, char out[PAGES_REFUSAL_SIZE]);

const char *pages_reason(unsigned status); /* the reason phrase of a status that the front sends; "" if unknown */

#endif
