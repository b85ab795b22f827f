/* access_record.c - see access_record.h. */
#include "access_record.h"

#include <string.h>
#include <time.h>

#include "date.h"
#include "text.h"

#define FIXED_SIZE 416 /* at least the size of everything except the texts */

/* Copies a text; sets `odd` if JSON would have to escape it.  Without a branch, so that the compiler can vectorise it. */
static char *put_text(char *at, access_record_text text, unsigned *odd)
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

static char *put_member(char *at, const char *name, size_t len, access_record_text text, unsigned *odd)
{
    at = text_put(at, name, len);
    at = put_text(at, text, odd);
    return TEXT_PUT(at, "\"");
}

#define PUT_MEMBER(at, name, text, odd) put_member(at, ",\"" name "\":\"", sizeof name + 4, text, odd)

size_t access_record_json(const access_record *r, char *out)
{
    static _Thread_local date_text stamp = {.second = -1};
    const access_record_text *texts[] = {&r->method, &r->path,     &r->client,  &r->listener,
                                         &r->agent,  &r->trace_id, &r->span_id, &r->request_id};
    size_t size = FIXED_SIZE + r->method.len + r->path.len; /* both occur twice */
    uint64_t microseconds = ((uint64_t)r->duration + 500) / 1000;
    unsigned odd = 0;
    char *at = out;

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i]->len > ACCESS_RECORD_MAX_SIZE || (size += texts[i]->len) > ACCESS_RECORD_MAX_SIZE)
            return 0;

    at = TEXT_PUT(at, "{\"timestamp\":\"");
    at = text_put(at, date_stamp(&stamp, (time_t)(r->when / 1000000000)), DATE_STAMP_SIZE);
    at = TEXT_PUT(at, ".");
    at = text_put_number(at, (uint64_t)(r->when % 1000000000 / 1000), 6);
    at = r->status >= 500 ? TEXT_PUT(at, "Z\",\"severity\":\"ERROR\"") : TEXT_PUT(at, "Z\",\"severity\":\"INFO\"");
    at = TEXT_PUT(at, ",\"message\":\"");
    at = put_text(at, r->method, &odd);
    at = TEXT_PUT(at, " ");
    at = put_text(at, r->path, &odd);
    at = TEXT_PUT(at, " ");
    at = text_put_number(at, r->status, 1);
    at = TEXT_PUT(at, "\",\"logger\":\"pkg.access\"");
    at = PUT_MEMBER(at, "http.request.method", r->method, &odd);
    at = PUT_MEMBER(at, "url.path", r->path, &odd);
    at = TEXT_PUT(at, ",\"http.response.status_code\":");
    at = text_put_number(at, r->status, 1);
    at = TEXT_PUT(at, ",\"duration\":");
    at = text_put_number(at, microseconds / 1000000, 1);
    at = TEXT_PUT(at, ".");
    at = text_put_number(at, microseconds % 1000000, 6);
    at = TEXT_PUT(at, ",\"http.request.body.size\":");
    at = text_put_number(at, r->received, 1);
    at = TEXT_PUT(at, ",\"http.response.body.size\":");
    at = text_put_number(at, r->sent, 1);
    at = PUT_MEMBER(at, "client.address", r->client, &odd);
    if (r->listener.len > 0)
        at = PUT_MEMBER(at, "listener", r->listener, &odd);
    if (r->agent.len > 0)
        at = PUT_MEMBER(at, "user_agent.original", r->agent, &odd);
    if (r->trace_id.len > 0)
        at = PUT_MEMBER(at, "trace_id", r->trace_id, &odd);
    if (r->span_id.len > 0)
        at = PUT_MEMBER(at, "span_id", r->span_id, &odd);
    if (r->request_id.len > 0)
        at = PUT_MEMBER(at, "request_id", r->request_id, &odd);
    at = TEXT_PUT(at, "}\n");
    return odd ? 0 : (size_t)(at - out);
}
