/* answer.c - what the front sends by itself: published pages to probers, errors to clients, and last words to stderr. */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char *date_now(front *f)
{
    time_t second = time(NULL);

    if (second != f->date_second) {
        f->date_second = second;
        pages_date(second, f->date);
    }
    return f->date;
}

/* Sends a short response.  False if the connection is not ready for the next request (flushing, or at its end). */
static bool answer(front *f, front_conn *c, const char *bytes, size_t len)
{
    ssize_t n = TEMP_FAILURE_RETRY(send(c->fd, bytes, len, MSG_NOSIGNAL));

    if (n == -1 && errno != EAGAIN) {
        count_add(&f->count.resets, 1);
        conn_close(f, c);
        return false;
    }
    size_t sent = n > 0 ? (size_t)n : 0;
    count_add(&f->count.bytes_out, sent);
    if (sent < len) { /* the client does not read, so stop reading from it */
        if ((c->out = malloc(len - sent)) == NULL) {
            conn_close(f, c);
            return false;
        }
        c->out_len = len - sent;
        c->out_pos = c->out_mark = 0;
        memcpy(c->out, bytes + sent, c->out_len);
        atomic_fetch_add(&f->buffered, c->out_len);
        if (conn_watch(f, c, WATCH_OUT) != 0) {
            conn_close(f, c);
            return false;
        }
        conn_set_state(f, c, CONN_FLUSH);
        return false;
    }
    if (c->close) {
        conn_end(f, c);
        return false;
    }
    return true;
}

static void trim(const char **text, size_t *len)
{
    while (*len > 0 && (**text == ' ' || **text == '\t'))
        (*text)++, (*len)--;
    while (*len > 0 && ((*text)[*len - 1] == ' ' || (*text)[*len - 1] == '\t'))
        (*len)--;
}

/* The trimmed text before `separator`; *text and *len become the text after it.  False if nothing is left. */
static bool next_part(const char **text, size_t *len, char separator, const char **part, size_t *part_len)
{
    if (*len == 0)
        return false;
    const char *end = memchr(*text, separator, *len);
    size_t n = end != NULL ? (size_t)(end - *text) : *len;
    *part = *text;
    *part_len = n;
    trim(part, part_len);
    n += end != NULL;
    *text += n;
    *len -= n;
    return true;
}

/* "q=0", "q=0.", "q=0.000" */
static bool is_refusal(const char *parameter, size_t len)
{
    if (len < 3 || strncasecmp(parameter, "q=0", 3) != 0)
        return false;
    for (size_t i = 3; i < len; i++)
        if (parameter[i] != (i == 3 ? '.' : '0'))
            return false;
    return true;
}

/* Whether an Accept header names the media type with a quality other than 0 (RFC 9110 12.4.2). */
static bool accepts(const char *value, size_t len, const char *type)
{
    const char *range, *parameter;
    size_t range_len, parameter_len;

    while (next_part(&value, &len, ',', &range, &range_len)) {
        if (!next_part(&range, &range_len, ';', &parameter, &parameter_len) || parameter_len != strlen(type) ||
            strncasecmp(parameter, type, parameter_len) != 0)
            continue;
        bool refused = false;
        while (next_part(&range, &range_len, ';', &parameter, &parameter_len))
            refused |= is_refusal(parameter, parameter_len);
        if (!refused)
            return true;
    }
    return false;
}

/* Whether one of the query's parameters is `word`, or begins with `word` and '='. */
static bool has_parameter(const char *query, size_t len, const char *word)
{
    size_t n = strlen(word);

    for (const char *end = query + len, *next; query < end; query = next + 1) {
        if ((next = memchr(query, '&', (size_t)(end - query))) == NULL)
            next = end;
        if ((size_t)(next - query) >= n && memcmp(query, word, n) == 0 && (query + n == next || query[n] == '='))
            return true;
    }
    return false;
}

static enum pages_format format_wanted(const buffer *b, const http1_head *h)
{
    const char *query = b->data + h->query.pos;

    if (has_parameter(query, h->query.len, "format=json"))
        return PAGES_JSON;
    if (has_parameter(query, h->query.len, "verbose"))
        return PAGES_VERBOSE;
    for (unsigned i = 0; i < h->n_headers; i++) {
        const http1_header *x = &h->headers[i];
        if (x->name.len == 6 && x->value.len >= sizeof "application/json" - 1 && /* most probes send none, or a shorter one */
            strncasecmp(b->data + x->name.pos, "accept", 6) == 0 &&
            (accepts(b->data + x->value.pos, x->value.len, "application/health+json") ||
             accepts(b->data + x->value.pos, x->value.len, "application/json")))
            return PAGES_JSON;
    }
    return PAGES_TEXT;
}

void front_say(const char *format, ...)
{
    struct pollfd pfd = {.fd = STDERR_FILENO, .events = POLLOUT}; /* room for PIPE_BUF bytes, pipe(7) */
    va_list arguments;

    if (poll(&pfd, 1, 0) != 1)
        return;
    va_start(arguments, format);
    vdprintf(STDERR_FILENO, format, arguments);
    va_end(arguments);
}

/* Bytes over 127 are percent-encoded, since they may not be text, or may control a terminal (C1). */
static const char *quoted(const char *target, char *out, size_t size)
{
    size_t n = 0;

    for (; *target != '\0' && n + 4 <= size; target++)
        if ((unsigned char)*target < 0x80)
            out[n++] = *target;
        else
            n += (size_t)snprintf(out + n, size - n, "%%%02X", (unsigned)(unsigned char)*target);
    out[n] = '\0';
    return out;
}

void front_last_words(front *f, const char *why)
{
    front_flight flights[64];
    char target[3 * sizeof flights[0].target];
    size_t n = front_requests(f, flights, 64);

    front_say("%s: the interpreter shows no sign of life; %zu requests in flight\n", why, n);
    for (size_t i = 0; i < n; i++)
        front_say("  %s %s, %.3f s, thread %llu\n", flights[i].method, quoted(flights[i].target, target, sizeof target),
                  (double)flights[i].age / 1e9, (unsigned long long)flights[i].thread);
    if (f->last_words != 0)
        pthread_kill(pthread_self(), f->last_words);
}

static const pages_answer *page_answer(front *f, const page *p, enum pages_format format)
{
    enum pages_set set = PAGES_FRESH;

    if (atomic_load(&f->stage) >= FRONT_TERMINATING && p->answers[PAGES_DRAINING][format].status != 0) {
        set = PAGES_DRAINING;
    } else if (f->now >= atomic_load_explicit(&f->expires[p->slot], memory_order_relaxed)) {
        set = PAGES_EXPIRED;
        count_add(&f->count.stale, 1);
        if (p->slot == 0 && f->last_words != 0 && !f->mourned) {
            f->mourned = true;
            front_last_words(f, "liveness is failing"); /* the process may be killed because of the response that follows */
        }
    } else if (p->slot == 0) {
        f->mourned = false;
    }
    return &p->answers[set][format];
}

static void note_prober(front *f, const front_conn *c, const http1_head *h, unsigned status)
{
    const char *data = c->in->data, *agent = "";
    size_t agent_len = 0, path_len = h->path.len;
    uint8_t address[16] = {[10] = 0xff, [11] = 0xff};

    for (unsigned i = 0; i < h->n_headers; i++)
        if (h->headers[i].name.len == 10 && strncasecmp(data + h->headers[i].name.pos, "user-agent", 10) == 0) {
            agent = data + h->headers[i].value.pos;
            agent_len = h->headers[i].value.len;
            break;
        }
    if (c->peer.any.sa_family == AF_INET)
        memcpy(address + 12, &c->peer.v4.sin_addr, 4);
    else if (c->peer.any.sa_family == AF_INET6)
        memcpy(address, &c->peer.v6.sin6_addr, 16);
    if (h->form == HTTP1_ASTERISK)
        tally_probe(&f->probers, address, agent, agent_len, "*", 1, status, f->now);
    else
        tally_probe(&f->probers, address, agent, agent_len, data + h->path.pos,
                    path_len > 1 && data[h->path.pos + path_len - 1] == '/' ? path_len - 1 : path_len, status, f->now);
}

bool conn_answer_page(front *f, front_conn *c, const http1_head *h)
{
    static char empty[] = "Content-Length: 0\r\n", allow[] = "Allow: GET, HEAD, OPTIONS\r\nContent-Length: 0\r\n";
    static const pages_answer not_allowed = {405, sizeof allow - 1, 0, allow};
    static const pages_answer options = {200, sizeof empty - 1, 0, empty};
    static const pages_answer none = {503, sizeof empty - 1, 0, empty};
    buffer *b = c->in;
    const pages_answer *a;
    char out[PAGES_MAX_SIZE], extra[64] = "";

    if (h->form == HTTP1_ASTERISK) {
        a = &options;
    } else if (h->method_id != HTTP1_GET && h->method_id != HTTP1_HEAD && h->method_id != HTTP1_OPTIONS) {
        a = &not_allowed;
    } else {
        a = page_answer(f, pages_find(f->pages, b->data + h->path.pos, h->path.len), format_wanted(b, h));
        if (a->status == 0)
            a = &none;
    }
    if (h->method_id == HTTP1_OPTIONS && h->form != HTTP1_ASTERISK) /* for *, the application may allow more */
        strcat(extra, "Allow: GET, HEAD, OPTIONS\r\n");
    if (c->close)
        strcat(extra, "Connection: close\r\n");
    else if (h->minor == 0)
        strcat(extra, "Connection: keep-alive\r\n");
    count_add(&f->count.probes, 1);
    note_prober(f, c, h, a->status);
    size_t len = pages_render(a, date_now(f), extra, h->method_id == HTTP1_HEAD, out);
    conn_next(c);
    if (!answer(f, c, out, len))
        return false;
    conn_set_state(f, c, CONN_IDLE); /* restarts the deadline */
    return true;
}

/* A worker thread is still using the connection, so only its socket is touched. */
void conn_answer_late(front *f, front_conn *c)
{
    static const char text[] = "the request took too long\n";
    char out[512];
    bool is_head = c->in->head.method_id == HTTP1_HEAD;
    int len = snprintf(out, sizeof out,
                       "HTTP/1.1 504 %s\r\nDate: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
                       "Connection: close\r\n\r\n%s",
                       pages_reason(504), date_now(f), sizeof text - 1, is_head ? "" : text);
    ssize_t n = send(c->fd, out, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n > 0)
        count_add(&f->count.bytes_out, (uint64_t)n);
    shutdown(c->fd, SHUT_WR);
    tally_add(&f->durations, c->in->head.method_id, 504, f->now - c->arrived);
}

/* Sends a short error and ends the connection.  The response to HEAD has no content, whatever its status (RFC 9110 9.3.2);
 * the method of a refused head is known, unless the error was in the method. */
void conn_refuse(front *f, front_conn *c, unsigned status, const char *text)
{
    char out[512];
    bool is_head = c->in != NULL && c->in->head.method_id == HTTP1_HEAD;
    int len = snprintf(out, sizeof out,
                       "HTTP/1.1 %u %s\r\nDate: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
                       "%sConnection: close\r\n\r\n%s",
                       status, pages_reason(status), date_now(f), strlen(text), status == 503 ? "Retry-After: 1\r\n" : "",
                       is_head ? "" : text);
    c->close = c->linger = true;
    bool has_head = c->in != NULL && c->in->head_len != 0, was_queued = c->state == CONN_WORKER;
    pthread_mutex_lock(&f->mutex);
    tally_add(&f->durations, has_head ? c->in->head.method_id : HTTP1_OTHER, status, was_queued ? f->now - c->arrived : 0);
    pthread_mutex_unlock(&f->mutex);
    answer(f, c, out, (size_t)len);
}
