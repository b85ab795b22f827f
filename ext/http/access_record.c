/* access_record.c - see access_record.h. */
#include "access_record.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "date.h"
#include "text.h"

#define FIXED_SIZE 464 /* at least the size of everything except the texts */

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

typedef struct {
    const char *at;
    size_t len;
} literal;

#define LITERAL(text) ((literal){text, sizeof text - 1})
#define MEMBER(name) LITERAL(",\"" name "\":\"")

/* What a schema has between the values.  render() is compiled once for each, with these as constants. */
typedef struct {
    literal begin, error, info, logger, path, status, duration, received, sent, address, agent, end;
    literal trace_id, span_id, request_id;
    bool nanoseconds; /* the duration, otherwise seconds */
} names;

static const names otel = {
    .begin = LITERAL("{\"timestamp\":\""),
    .error = LITERAL("Z\",\"severity\":\"ERROR\""),
    .info = LITERAL("Z\",\"severity\":\"INFO\""),
    .logger = LITERAL("\",\"logger\":\"pkg.access\",\"http.request.method\":\""),
    .path = LITERAL("\",\"url.path\":\""),
    .status = LITERAL("\",\"http.response.status_code\":"),
    .duration = LITERAL(",\"duration\":"),
    .received = LITERAL(",\"http.request.body.size\":"),
    .sent = LITERAL(",\"http.response.body.size\":"),
    .address = MEMBER("client.address"),
    .agent = MEMBER("user_agent.original"),
    .end = LITERAL(""),
    .trace_id = MEMBER("trace_id"),
    .span_id = MEMBER("span_id"),
    .request_id = MEMBER("request_id"),
};

static const names gcp = {
    .begin = LITERAL("{\"time\":\""),
    .error = LITERAL("Z\",\"severity\":\"ERROR\""),
    .info = LITERAL("Z\",\"severity\":\"INFO\""),
    .logger = LITERAL("\",\"logger\":\"pkg.access\",\"httpRequest\":{\"requestMethod\":\""),
    .path = LITERAL("\",\"requestUrl\":\""),
    .status = LITERAL("\",\"status\":"),
    .duration = LITERAL(",\"latency\":\""),
    .received = LITERAL("s\",\"requestSize\":\""),
    .sent = LITERAL("\",\"responseSize\":\""),
    .address = LITERAL("\",\"remoteIp\":\""),
    .agent = MEMBER("userAgent"),
    .end = LITERAL("}"),
    .trace_id = MEMBER("logging.googleapis.com/trace"),
    .span_id = MEMBER("logging.googleapis.com/spanId"),
    .request_id = MEMBER("request_id"),
};

static const names ecs = {
    .begin = LITERAL("{\"@timestamp\":\""),
    .error = LITERAL("Z\",\"log.level\":\"error\""),
    .info = LITERAL("Z\",\"log.level\":\"info\""),
    .logger = LITERAL("\",\"ecs.version\":\"8.11.0\",\"log.logger\":\"pkg.access\",\"http.request.method\":\""),
    .path = LITERAL("\",\"url.path\":\""),
    .status = LITERAL("\",\"http.response.status_code\":"),
    .duration = LITERAL(",\"event.duration\":"),
    .received = LITERAL(",\"http.request.body.bytes\":"),
    .sent = LITERAL(",\"http.response.body.bytes\":"),
    .address = MEMBER("client.address"),
    .agent = MEMBER("user_agent.original"),
    .end = LITERAL(""),
    .trace_id = MEMBER("trace.id"),
    .span_id = MEMBER("span.id"),
    .request_id = MEMBER("http.request.id"),
    .nanoseconds = true,
};

static inline char *put(char *at, literal text)
{
    return text_put(at, text.at, text.len);
}

static char *put_member(char *at, literal name, access_record_text text, unsigned *odd)
{
    at = put(at, name);
    at = put_text(at, text, odd);
    return TEXT_PUT(at, "\"");
}

static inline __attribute__((always_inline)) size_t render(const names *n, const access_record *r, char *out)
{
    static _Thread_local date_text stamp = {.second = -1};
    uint64_t microseconds = ((uint64_t)r->duration + 500) / 1000;
    unsigned odd = 0;
    char *at = out;

    at = put(at, n->begin);
    at = text_put(at, date_stamp(&stamp, (time_t)(r->when / 1000000000)), DATE_STAMP_SIZE);
    at = TEXT_PUT(at, ".");
    at = text_put_number(at, (uint64_t)(r->when % 1000000000 / 1000), 6);
    at = r->status >= 500 ? put(at, n->error) : put(at, n->info);
    at = TEXT_PUT(at, ",\"message\":\"");
    at = put_text(at, r->method, &odd);
    at = TEXT_PUT(at, " ");
    at = put_text(at, r->path, &odd);
    at = TEXT_PUT(at, " ");
    at = text_put_number(at, r->status, 1);
    at = put(at, n->logger);
    at = put_text(at, r->method, &odd);
    at = put(at, n->path);
    at = put_text(at, r->path, &odd);
    at = put(at, n->status);
    at = text_put_number(at, r->status, 1);
    at = put(at, n->duration);
    if (n->nanoseconds) {
        at = text_put_number(at, (uint64_t)r->duration, 1);
    } else {
        at = text_put_number(at, microseconds / 1000000, 1);
        at = TEXT_PUT(at, ".");
        at = text_put_number(at, microseconds % 1000000, 6);
    }
    at = put(at, n->received);
    at = text_put_number(at, r->received, 1);
    at = put(at, n->sent);
    at = text_put_number(at, r->sent, 1);
    at = put_member(at, n->address, r->client, &odd);
    if (r->agent.len > 0)
        at = put_member(at, n->agent, r->agent, &odd);
    at = put(at, n->end);
    if (r->listener.len > 0)
        at = put_member(at, MEMBER("listener"), r->listener, &odd);
    if (r->trace_id.len > 0) {
        at = put(at, n->trace_id);
        at = put_text(at, r->trace_prefix, &odd);
        at = put_text(at, r->trace_id, &odd);
        at = TEXT_PUT(at, "\"");
    }
    if (r->span_id.len > 0)
        at = put_member(at, n->span_id, r->span_id, &odd);
    if (r->request_id.len > 0)
        at = put_member(at, n->request_id, r->request_id, &odd);
    at = TEXT_PUT(at, "}\n");
    return odd ? 0 : (size_t)(at - out);
}

size_t access_record_json(const access_record *r, enum access_record_schema schema, char *out)
{
    const access_record_text *texts[] = {&r->method,   &r->path,    &r->client,     &r->listener,    &r->agent,
                                         &r->trace_id, &r->span_id, &r->request_id, &r->trace_prefix};
    size_t size = FIXED_SIZE + r->method.len + r->path.len; /* both occur twice */

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i]->len > ACCESS_RECORD_MAX_SIZE || (size += texts[i]->len) > ACCESS_RECORD_MAX_SIZE)
            return 0;
    switch (schema) {
    case ACCESS_RECORD_GCP:
        return render(&gcp, r, out);
    case ACCESS_RECORD_ECS:
        return render(&ecs, r, out);
    case ACCESS_RECORD_OTEL:
    case ACCESS_RECORD_SCHEMAS:
        break;
    }
    return render(&otel, r, out);
}
