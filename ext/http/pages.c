/* pages.c - see pages.h. */
#include "pages.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "date.h"
#include "text.h"

pages *pages_new(size_t max)
{
    if (max > PAGES_MAX)
        return NULL;
    pages *t = calloc(1, sizeof *t + max * sizeof t->page[0]);
    if (t != NULL)
        t->max = max;
    return t;
}

void pages_free(pages *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->n; i++) {
        free(t->page[i].path);
        for (int s = 0; s < PAGES_SETS; s++)
            for (int k = 0; k < PAGES_FORMATS; k++)
                free(t->page[i].answers[s][k].bytes);
    }
    free(t);
}

int pages_add(pages *t, const char *path, size_t path_len, unsigned slot)
{
    if (t->n == t->max || path_len == 0 || path_len > 1024 || slot >= PAGES_SLOTS)
        return -EINVAL;
    page *p = &t->page[t->n];
    if ((p->path = malloc(path_len)) == NULL)
        return -ENOMEM;
    memcpy(p->path, path, path_len);
    p->path_len = (uint16_t)path_len;
    p->slot = (uint8_t)slot;
    return (int)t->n++;
}

int pages_set_answer(pages *t, int number, enum pages_set set, enum pages_format format, unsigned status,
                     const char *headers, size_t headers_len, const char *body, size_t body_len)
{
    /* 256 bytes are reserved for the status line, Date, Connection and Allow. */
    if (status < 200 || status > 599 || headers_len + body_len > PAGES_MAX_SIZE - 256)
        return -EINVAL;
    pages_answer *a = &t->page[number].answers[set][format];
    if ((a->bytes = malloc(headers_len + body_len + 1)) == NULL)
        return -ENOMEM;
    memcpy(a->bytes, headers, headers_len);
    memcpy(a->bytes + headers_len, body, body_len);
    a->status = (uint16_t)status;
    a->headers_len = (uint16_t)headers_len;
    a->body_len = (uint16_t)body_len;
    return 0;
}

const page *pages_find(const pages *t, const char *path, size_t len)
{
    if (t == NULL)
        return NULL;
    if (len > 1 && path[len - 1] == '/')
        len--;
    for (size_t i = 0; i < t->n; i++)
        if (t->page[i].path_len == len && memcmp(t->page[i].path, path, len) == 0)
            return &t->page[i];
    return NULL;
}

size_t pages_render(const pages_answer *a, const char *date, const char *extra, bool head_only, char *out)
{
    const char *reason = pages_reason(a->status);
    char *p = text_put_number(TEXT_PUT(out, "HTTP/1.1 "), a->status, 3);

    *p++ = ' ';
    p = text_put(p, reason, strlen(reason));
    p = TEXT_PUT(p, "\r\n");
    p = text_put(p, date, DATE_LINE_SIZE);
    p = text_put(p, extra, strlen(extra));
    p = text_put(p, a->bytes, a->headers_len);
    p = TEXT_PUT(p, "\r\n");
    if (!head_only)
        p = text_put(p, a->bytes + a->headers_len, a->body_len);
    return (size_t)(p - out);
}

size_t pages_refusal(unsigned status, const char *date, const char *text, bool head_only, char out[PAGES_REFUSAL_SIZE])
{
    return (size_t)snprintf(out, PAGES_REFUSAL_SIZE,
                            "HTTP/1.1 %u %s\r\n%sContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
                            "%sConnection: close\r\n\r\n%s",
                            status, pages_reason(status), date, strlen(text), status == 502 || status == 503 ? "Retry-After: 1\r\n" : "",
                            head_only ? "" : text);
}

const char *pages_reason(unsigned status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 417: return "Expectation Failed";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "";
    }
}
