/* access_record.c - see access_record.h. */
#include "access_record.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define FIXED_SIZE 416 /* at least the size of everything except the texts */

#define PUT(at, literal) put(at, literal, sizeof literal - 1)

static char *put(char *at, const char *text, size_t len)
{
    memcpy(at, text, len);
    return at + len;
}

static char *put_number(char *at, uint64_t number, int min_digits)
{
    char digits[20];
    int n = 0;

    do {
        digits[n++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0 || n < min_digits);
    while (n > 0)
        *at++ = digits[--n];
    return at;
}

/* The date and time of a second, 19 characters, rendered once per second in each thread. */
static const char *second_text(time_t second)
{
    static _Thread_local time_t rendered = -1;
    static _Thread_local char text[64];

    if (second != rendered) {
        struct tm t;
        gmtime_r(&second, &t);
        snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday,
                 t.tm_hour, t.tm_min, t.tm_sec);
        rendered = second;
    }
    return text;
}

/* Copies a text; sets `odd` if JSON would have to escape it.  Without a branch, so that the compiler can vectorise it. */
static char *put_text(char *at, record_text text, unsigned *odd)
{
    unsigned found = 0;

    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.at[i];
        found |= (unsigned)(c < 0x20) | (unsigned)(c > 0x7e) | (unsigned)(c == '"') | (unsigned)(c == '\\');
        at[i] = (char)c;
    }
    *odd |= found;
    return at + text.len;
}

static char *put_member(char *at, const char *name, size_t len, record_text text, unsigned *odd)
{
    at = put(at, name, len);
    at = put_text(at, text, odd);
    return PUT(at, "\"");
}

#define PUT_MEMBER(at, name, text, odd) put_member(at, ",\"" name "\":\"", sizeof name + 4, text, odd)

size_t record_json(const record *r, char *out)
{
    const record_text *texts[] = {&r->method, &r->path, &r->client, &r->agent, &r->trace_id, &r->span_id, &r->request_id};
    size_t size = FIXED_SIZE + r->method.len + r->path.len; /* both occur twice */
    uint64_t microseconds = ((uint64_t)r->duration + 500) / 1000;
    unsigned odd = 0;
    char *at = out;

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i]->len > RECORD_MAX_SIZE || (size += texts[i]->len) > RECORD_MAX_SIZE)
            return 0;

    at = PUT(at, "{\"timestamp\":\"");
    at = put(at, second_text((time_t)(r->when / 1000000000)), 19);
    at = PUT(at, ".");
    at = put_number(at, (uint64_t)(r->when % 1000000000 / 1000), 6);
    at = r->status >= 500 ? PUT(at, "Z\",\"severity\":\"ERROR\"") : PUT(at, "Z\",\"severity\":\"INFO\"");
    at = PUT(at, ",\"message\":\"");
    at = put_text(at, r->method, &odd);
    at = PUT(at, " ");
    at = put_text(at, r->path, &odd);
    at = PUT(at, " ");
    at = put_number(at, r->status, 1);
    at = PUT(at, "\",\"logger\":\"pkg.access\"");
    at = PUT_MEMBER(at, "http.request.method", r->method, &odd);
    at = PUT_MEMBER(at, "url.path", r->path, &odd);
    at = PUT(at, ",\"http.response.status_code\":");
    at = put_number(at, r->status, 1);
    at = PUT(at, ",\"duration\":");
    at = put_number(at, microseconds / 1000000, 1);
    at = PUT(at, ".");
    at = put_number(at, microseconds % 1000000, 6);
    at = PUT(at, ",\"http.request.body.size\":");
    at = put_number(at, r->received, 1);
    at = PUT(at, ",\"http.response.body.size\":");
    at = put_number(at, r->sent, 1);
    at = PUT_MEMBER(at, "client.address", r->client, &odd);
    if (r->agent.len > 0)
        at = PUT_MEMBER(at, "user_agent.original", r->agent, &odd);
    if (r->trace_id.len > 0)
        at = PUT_MEMBER(at, "trace_id", r->trace_id, &odd);
    if (r->span_id.len > 0)
        at = PUT_MEMBER(at, "span_id", r->span_id, &odd);
    if (r->request_id.len > 0)
        at = PUT_MEMBER(at, "request_id", r->request_id, &odd);
    at = PUT(at, "}\n");
    return odd ? 0 : (size_t)(at - out);
}
